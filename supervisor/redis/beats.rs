//! Beats: whoever is there counts a number up in a Redis, and others watch it. No clocks are compared, and time in which
//! nobody could look proves nothing.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// The longest time between two beats, and between two looks.
pub(crate) const BEAT: Duration = Duration::from_millis(500);
/// Whoever has the same beat for so long counts as gone.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
/// When the watcher has not looked for so long, the silence of the others proves nothing.
const MAX_GAP: Duration = Duration::from_millis(1500);

/// What one watcher has seen of the beats.
#[derive(Debug, Default)]
pub(crate) struct Beats {
    /// The beat of each, and when it was first seen.
    seen: HashMap<String, (u64, Instant)>,
    last_look: Option<Instant>,
}

impl Beats {
    /// Takes note of the beats at that time. Returns those who are gone, with their last beats.
    pub(crate) fn look(
        &mut self,
        beats: &HashMap<String, u64>,
        now: Instant,
    ) -> Vec<(String, u64)> {
        let gap = self.last_look.map(|last| now - last);
        if gap.is_some_and(|gap| gap > MAX_GAP) {
            self.seen.clear();
        }
        self.last_look = Some(now);
        self.seen.retain(|id, _| beats.contains_key(id));
        let mut silent = Vec::new();
        for (id, &beat) in beats {
            let seen = self.seen.entry(id.clone()).or_insert((beat, now));
            if seen.0 != beat {
                *seen = (beat, now);
            } else if now - seen.1 >= SILENCE {
                silent.push((id.clone(), beat));
            }
        }
        silent
    }

    /// Returns since when somebody has the last beat that was seen.
    pub(crate) fn since(&self, id: &str) -> Option<Instant> {
        self.seen.get(id).map(|(_, since)| *since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_the_same_beat_while_somebody_looks_is_gone() {
        let begun = Instant::now();
        let mut watch = Beats::default();
        let mut look = |after_ms: u64, beats: &[(&str, u64)]| {
            let beats = beats.iter().map(|(id, beat)| ((*id).to_owned(), *beat));
            let silent = watch.look(&beats.collect(), begun + Duration::from_millis(after_ms));
            let mut silent: Vec<_> = silent.into_iter().map(|(id, _)| id).collect();
            silent.sort();
            silent
        };
        for second in 0..3 {
            assert!(look(second * 1000, &[("a", second), ("b", 7)]).is_empty());
        }
        assert_eq!(look(3000, &[("a", 3), ("b", 7)]), ["b"]);
        assert!(look(4000, &[("a", 4)]).is_empty());
        // It is there again, and another one is silent while nobody looks.
        assert!(look(5000, &[("a", 4), ("b", 7)]).is_empty());
        assert!(look(9000, &[("a", 4), ("b", 8)]).is_empty());
        assert!(look(10_000, &[("a", 4), ("b", 9)]).is_empty());
        assert!(look(11_000, &[("a", 4), ("b", 9)]).is_empty());
        assert_eq!(look(12_000, &[("a", 4), ("b", 10)]), ["a"]);
    }
}
