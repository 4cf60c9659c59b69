//! All configuration keys. The flags, the environment variables, the checks of the file and `--help` are generated from
//! them.
//!
//! Each key is declared in the module that it configures.

use fastvideo_supervisor_core::engines::{self, default_request, ltx2, synthetic, warmup};
use fastvideo_supervisor_core::settings::KeySpec;
use fastvideo_supervisor_core::{http, ingress, pool, prompt, session, store};

use crate::logging;

/// The keys in the order in which `--help` and `check` show them; the keys of a section stay together.
static LISTS: [&[&KeySpec]; 18] = [
    engines::config::KEYS,
    ltx2::KEYS,
    synthetic::KEYS,
    http::config::KEYS,
    logging::KEYS,
    ingress::config::LIMIT_KEYS,
    default_request::KEYS,
    session::config::KEYS,
    session::config::WATCH_KEYS,
    warmup::KEYS,
    pool::config::KEYS,
    pool::config::ENCODER_KEYS,
    store::config::KEYS,
    store::config::RECORDING_KEYS,
    prompt::config::KEYS,
    prompt::config::SAFETY_KEYS,
    session::config::LOG_KEYS,
    session::config::LIMIT_KEYS,
];

/// Returns all keys in order.
pub(crate) fn all() -> impl Iterator<Item = &'static KeySpec> {
    LISTS.into_iter().flatten().copied()
}

/// Returns the key with this path.
pub(crate) fn find(path: &str) -> Option<&'static KeySpec> {
    all().find(|key| key.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_default_fits_its_key() {
        for key in all() {
            if let Some(default) = key.default {
                let text = default.to_string();
                assert!(key.kind.read_text(&text).is_some(), "{}", key.path);
            }
        }
    }

    #[test]
    fn every_key_says_what_holds_without_a_default() {
        for key in all() {
            let told = key.help.contains("[default");
            let silent = ["generator.model_path", "generator.synthetic.faults"];
            let optional = key.default.is_none()
                && !silent.contains(&key.path)
                && !key.path.ends_with("negative_prompt")
                && !key.path.ends_with("num_workers");
            assert_eq!(told, optional, "{}", key.path);
        }
    }

    #[test]
    fn paths_and_flags_are_unique() {
        let mut seen = HashSet::new();
        for key in all() {
            assert!(seen.insert(key.path), "{}", key.path);
            assert!(
                key.short.is_none_or(|short| seen.insert(short)),
                "{}",
                key.path
            );
        }
    }

    #[test]
    fn the_keys_of_a_section_stay_together() {
        let mut ended = HashSet::new();
        let mut current = "";
        for key in all() {
            // A section may be interrupted by a section within it.
            if key.section() != current && !current.starts_with(key.section()) {
                assert!(ended.insert(key.section()), "{}", key.path);
            }
            current = key.section();
        }
    }
}
