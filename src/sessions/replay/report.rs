//! Compares a replay with what was recorded, and tells the differences.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use serde_json::{Value, json};

use super::facts::Fact;
use super::times::{SegmentTimes, Times};

/// Number of events that are shown of each side from the first difference on.
const SHOWN: usize = 4;

/// The differences between a recorded session and its replay.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Differences {
    /// Segments whose hashes differ, with both of them.
    hashes: Vec<(u32, String, String)>,
    /// Number of equal events, and those of both sides from the first difference in their order on.
    order: Option<(usize, Vec<String>, Vec<String>)>,
}

impl Differences {
    /// Compares the facts up to the first difference in their order.
    pub(super) fn between(recorded: &[Fact], replayed: &[Fact]) -> Self {
        let mut differences = Self::default();
        for at in 0..recorded.len().max(replayed.len()) {
            match (recorded.get(at), replayed.get(at)) {
                (Some(one), Some(other)) if one == other => {}
                (
                    Some(Fact::Finished { segment, sha256 }),
                    Some(Fact::Finished {
                        segment: same,
                        sha256: other,
                    }),
                ) if segment == same => {
                    let hashes = (*segment, sha256.clone(), other.clone());
                    differences.hashes.push(hashes);
                }
                _ => {
                    let rest = |facts: &[Fact]| -> Vec<String> {
                        let rest = facts.get(at..).unwrap_or_default();
                        rest.iter().take(SHOWN).map(Fact::to_string).collect()
                    };
                    differences.order = Some((at, rest(recorded), rest(replayed)));
                    break;
                }
            }
        }
        differences
    }

    pub(super) fn are_none(&self) -> bool {
        self.hashes.is_empty() && self.order.is_none()
    }
}

/// What a replay has come to.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) session_id: &'a str,
    pub(super) signature: &'a str,
    pub(super) differences: &'a Differences,
    /// Number of events that were compared.
    pub(super) events: usize,
    pub(super) recorded: &'a Times,
    pub(super) replayed: &'a Times,
    /// What else a reader should know.
    pub(super) notes: &'a [String],
}

impl Report<'_> {
    pub(super) fn print(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("a string takes any text");
        out
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "session {}: {}", self.session_id, self.signature)?;
        for note in self.notes {
            writeln!(out, "note: {note}")?;
        }
        self.table(out)?;
        for (segment, recorded, replayed) in &self.differences.hashes {
            writeln!(out, "segment {segment}: the SHA-256 differs")?;
            writeln!(out, "  recorded {recorded}")?;
            writeln!(out, "  replayed {replayed}")?;
        }
        if let Some((at, recorded, replayed)) = &self.differences.order {
            let shown = |facts: &[String]| match facts.is_empty() {
                true => "nothing more".to_owned(),
                false => facts.join(", "),
            };
            writeln!(out, "the order of events differs after {at} equal ones")?;
            writeln!(out, "  recorded {}", shown(recorded))?;
            writeln!(out, "  replayed {}", shown(replayed))?;
        }
        let segments = self.recorded.segments().count();
        match self.differences.are_none() {
            true => writeln!(
                out,
                "equal: {} events in the same order, {segments} segments with the same SHA-256",
                self.events
            ),
            false => writeln!(out, "different"),
        }
    }

    /// Prints the times side by side.
    fn table(&self, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "{:>8}{:>24}{:>24}{:>24}",
            "segment", "generation (ms)", "first byte (ms)", "last byte (ms)"
        )?;
        for segment in self.segments() {
            let (one, other) = (self.recorded.of(segment), self.replayed.of(segment));
            let cell = |of: fn(SegmentTimes) -> Option<f64>| {
                let side = |times: Option<SegmentTimes>| {
                    let ms = times.and_then(of);
                    ms.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.1}"))
                };
                format!("{} → {}", side(one), side(other))
            };
            writeln!(
                out,
                "{segment:>8}{:>24}{:>24}{:>24}",
                cell(|times| Some(times.generation_ms)),
                cell(|times| times.first_byte_ms),
                cell(|times| times.last_byte_ms)
            )?;
        }
        Ok(())
    }

    fn segments(&self) -> BTreeSet<u32> {
        (self.recorded.segments())
            .chain(self.replayed.segments())
            .collect()
    }

    pub(super) fn to_json(&self) -> Value {
        let hashes = self.differences.hashes.iter();
        let order = self.differences.order.as_ref();
        let segments = self.segments().into_iter().map(|segment| {
            json!({
                "segment_idx": segment,
                "recorded": self.recorded.of(segment),
                "replayed": self.replayed.of(segment),
            })
        });
        json!({
            "session_id": self.session_id,
            "signature": self.signature,
            "equal": self.differences.are_none(),
            "events": self.events,
            "hashes": hashes.map(|(segment, recorded, replayed)| json!({
                "segment_idx": segment, "recorded": recorded, "replayed": replayed,
            })).collect::<Vec<_>>(),
            "order": order.map(|(at, recorded, replayed)| json!({
                "equal_events": at, "recorded": recorded, "replayed": replayed,
            })),
            "segments": segments.collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(segment: u32, sha256: &str) -> Fact {
        Fact::Finished {
            segment,
            sha256: sha256.to_owned(),
        }
    }

    fn queued(segment: u32) -> Fact {
        Fact::Queued {
            segment,
            attempt: 1,
        }
    }

    #[test]
    fn all_hashes_are_compared_up_to_where_the_order_differs() {
        let recorded = [
            queued(0),
            finished(0, "a"),
            queued(1),
            finished(1, "b"),
            queued(2),
        ];
        let replayed = [queued(0), finished(0, "x"), queued(1), finished(1, "y")];
        let differences = Differences::between(&recorded, &replayed);
        let of = |segment, one: &str, other: &str| (segment, one.to_owned(), other.to_owned());
        assert_eq!(differences.hashes, [of(0, "a", "x"), of(1, "b", "y")]);
        let order = (4, vec!["segment 2 queued".to_owned()], Vec::new());
        assert_eq!(differences.order, Some(order));
        assert!(Differences::between(&recorded, &recorded).are_none());
    }
}
