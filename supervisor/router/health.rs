//! What the probes of a server say of its health. It does no I/O.
//!
//! A server is unknown until the first probe succeeds or a number of them has failed. After that it changes its state
//! when enough probes in a row say so.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Serialize;

/// How many probes in a row change the state of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Failed ones, at least 1.
    pub failure: u32,
    /// Successful ones, at least 1.
    pub recovery: u32,
}

/// Whether a server answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaStatus {
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
}

/// What the probes of a server have said.
#[derive(Clone, Debug, Default)]
pub struct ReplicaHealth {
    status: ReplicaStatus,
    last_ok: Option<SystemTime>,
    last_latency: Option<Duration>,
    consecutive_failures: u32,
    consecutive_successes: u32,
}

impl ReplicaHealth {
    pub fn status(&self) -> ReplicaStatus {
        self.status
    }

    pub fn is_healthy(&self) -> bool {
        self.status == ReplicaStatus::Healthy
    }

    /// Returns when a probe last succeeded.
    pub fn last_ok(&self) -> Option<SystemTime> {
        self.last_ok
    }

    /// Returns how long the last successful probe took.
    pub fn last_latency(&self) -> Option<Duration> {
        self.last_latency
    }

    /// Returns whether there was no probe so far.
    pub(super) fn is_unprobed(&self) -> bool {
        self.last_ok.is_none() && self.consecutive_failures == 0
    }

    /// Returns how many probes have failed since the last successful one.
    pub fn consecutive_failures(&self) -> u32 {
        self.consecutive_failures
    }

    /// Records a probe: how long the answer took, or `None` when there was none.
    pub(super) fn record(&mut self, latency: Option<Duration>, thresholds: &Thresholds) {
        match latency {
            Some(latency) => {
                self.last_ok = Some(SystemTime::now());
                self.last_latency = Some(latency);
                self.consecutive_failures = 0;
                self.consecutive_successes = self.consecutive_successes.saturating_add(1);
                let needed = match self.status {
                    ReplicaStatus::Unhealthy => thresholds.recovery,
                    ReplicaStatus::Unknown | ReplicaStatus::Healthy => 1,
                };
                if self.consecutive_successes >= needed {
                    self.status = ReplicaStatus::Healthy;
                }
            }
            None => {
                self.consecutive_successes = 0;
                self.consecutive_failures = self.consecutive_failures.saturating_add(1);
                if self.consecutive_failures >= thresholds.failure {
                    self.status = ReplicaStatus::Unhealthy;
                }
            }
        }
    }
}

impl fmt::Display for ReplicaStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state after a sequence of probes, as the definition says: looked at as a whole.
    fn model(probes: &[bool], thresholds: &Thresholds) -> ReplicaStatus {
        let mut status = ReplicaStatus::Unknown;
        for end in 1..=probes.len() {
            let last = probes[end - 1];
            let run = probes[..end].iter().rev();
            let run = u32::try_from(run.take_while(|probe| **probe == last).count()).unwrap();
            status = match (status, last) {
                (ReplicaStatus::Unknown, true) => ReplicaStatus::Healthy,
                (ReplicaStatus::Unhealthy, true) if run >= thresholds.recovery => {
                    ReplicaStatus::Healthy
                }
                (_, false) if run >= thresholds.failure => ReplicaStatus::Unhealthy,
                (status, _) => status,
            };
        }
        status
    }

    #[test]
    fn every_sequence_of_six_probes_leads_where_the_definition_says() {
        for (failure, recovery) in [(1, 1), (3, 2), (2, 3), (6, 6)] {
            let thresholds = Thresholds { failure, recovery };
            for bits in 0..1_u32 << 6 {
                let probes: Vec<bool> = (0..6).map(|n| bits >> n & 1 == 1).collect();
                let mut health = ReplicaHealth::default();
                for end in 1..=probes.len() {
                    let latency = probes[end - 1].then_some(Duration::from_millis(1));
                    health.record(latency, &thresholds);
                    let expected = model(&probes[..end], &thresholds);
                    assert_eq!(health.status(), expected, "{probes:?} {thresholds:?}");
                }
                let failed = probes.iter().rev().take_while(|probe| !**probe);
                assert_eq!(health.consecutive_failures() as usize, failed.count());
                assert_eq!(health.last_ok().is_some(), probes.contains(&true));
            }
        }
    }
}
