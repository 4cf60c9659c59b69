//! Suggests the known key that an unknown one was probably meant to be.

use super::keys::Table;

/// The lowest similarity (0 to 1) of a suggestion; one below it would confuse more than help.
const MIN_LIKENESS: f64 = 0.6;
/// The factor on the similarity of a key of another section: such a slip is less likely than a typing error.
const ELSEWHERE: f64 = 0.9;

/// Returns the known key or section that is most similar to `unknown`.
pub(super) fn nearest(table: &Table, unknown: &str) -> Option<String> {
    let (section, name) = split(unknown);
    let mut best: Option<(f64, &str)> = None;
    for candidate in candidates(table) {
        let (other_section, other_name) = split(candidate);
        let likeness = match section == other_section {
            true => strsim::normalized_damerau_levenshtein(name, other_name),
            false => {
                f64::max(
                    strsim::normalized_damerau_levenshtein(unknown, candidate),
                    strsim::normalized_damerau_levenshtein(name, other_name),
                ) * ELSEWHERE
            }
        };
        if likeness >= MIN_LIKENESS && best.is_none_or(|(most, _)| likeness > most) {
            best = Some((likeness, candidate));
        }
    }
    best.map(|(_, candidate)| candidate.to_owned())
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// Returns all keys and all sections that lead to them.
fn candidates(table: &Table) -> impl Iterator<Item = &'static str> + use<> {
    table.paths().flat_map(|path| {
        let ends = path.match_indices('.').map(|(end, _)| end);
        ends.chain([path.len()]).map(|end| &path[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::SERVER;

    #[test]
    fn unknown_keys_lead_to_the_known_one() {
        let check = |unknown: &str, expected: Option<&str>| {
            assert_eq!(nearest(&SERVER, unknown).as_deref(), expected, "{unknown}");
        };
        check("streming", Some("streaming"));
        check("streaming.warmup.enabeld", Some("streaming.warmup.enabled"));
        check(
            "streaming.session_timeout",
            Some("streaming.session_timeout_seconds"),
        );
        check(
            "server.session_timeout_seconds",
            Some("streaming.session_timeout_seconds"),
        );
        check(
            "default_request.sampling.witdh",
            Some("default_request.sampling.width"),
        );
        check(
            "generator.engine.offload.dit_layer_wise",
            Some("generator.engine.offload.dit_layerwise"),
        );
        check("sampling", Some("default_request.sampling"));
        check("zzz", None);
    }
}
