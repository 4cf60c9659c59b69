//! When the phases of a job began and ended, for the supervisor's metrics and traces.

use fastvideo_proto::job::{Phase, PhaseSpan};
use nix::time::{ClockId, clock_gettime};

/// The phases of one job. One of those that follow each other runs at any time; the encoding runs beside them.
#[derive(Debug)]
pub(crate) struct Phases {
    done: Vec<PhaseSpan>,
    /// The phase that runs, and when it began.
    running: Option<(Phase, u64)>,
}

impl Phases {
    /// Begins with a phase.
    pub(crate) fn begin(phase: Phase) -> Self {
        Self {
            done: Vec::new(),
            running: Some((phase, monotonic_us())),
        }
    }

    /// Ends the running phase and begins the next one. A phase that came before is gone on with.
    pub(crate) fn next(&mut self, phase: Phase) {
        self.end();
        let again = self.done.iter().position(|span| span.phase == phase);
        let began = match again {
            Some(position) => self.done.remove(position).start_us,
            None => monotonic_us(),
        };
        self.running = Some((phase, began));
    }

    /// Adds a phase that ran beside the others.
    pub(crate) fn beside(&mut self, phase: Phase, start_us: u64) {
        let end_us = monotonic_us();
        self.done.push(PhaseSpan {
            phase,
            start_us,
            end_us,
        });
    }

    /// Ends the running phase.
    pub(crate) fn end(&mut self) {
        if let Some((phase, start_us)) = self.running.take() {
            let end_us = monotonic_us();
            self.done.push(PhaseSpan {
                phase,
                start_us,
                end_us,
            });
        }
    }

    /// Ends the running phase, and returns all in the order in which they began.
    pub(crate) fn finish(mut self) -> Vec<PhaseSpan> {
        self.end();
        self.done.sort_by_key(|span| span.start_us);
        self.done
    }
}

/// Returns `CLOCK_MONOTONIC` in microseconds, which is the same for all processes of a machine.
pub(crate) fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock is always there");
    (now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_and_the_encoding_runs_beside_them() {
        let mut phases = Phases::begin(Phase::TextEncode);
        phases.next(Phase::Denoise);
        phases.next(Phase::Decode);
        let began = monotonic_us();
        phases.next(Phase::StatePack);
        phases.beside(Phase::Encode, began);
        let spans = phases.finish();
        let names = spans.iter().map(|span| span.phase.name());
        let mut sorted: Vec<_> = names.collect();
        sorted.sort_unstable();
        let expected = ["decode", "denoise", "encode", "state_pack", "text_encode"];
        assert_eq!(sorted, expected);
        assert!(spans.is_sorted_by_key(|span| span.start_us));
        assert!(spans.iter().all(|span| span.start_us <= span.end_us));
    }
}
