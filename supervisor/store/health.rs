//! Whether the store works, for `/status`, `/readyz` and the log. An outage is logged once at its beginning and once at
//! its end, however many operations fail.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::error::{DataLoss, StoreError};
use crate::causes::with_causes;

/// A failed write says nothing about the store any more when none has followed for this long. Sessions repeat theirs
/// every few seconds until they succeed.
const FAILURE_COUNTS: Duration = Duration::from_secs(30);

/// Whether the store works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Working,
    Failing,
    /// The store answers, but has no room.
    Full,
}

/// The store's condition, as `/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    pub condition: Condition,
    /// When the store stopped working; `None` while it works.
    pub since: Option<SystemTime>,
    /// The last failure since the start, and when it happened.
    pub last_failure: Option<(String, SystemTime)>,
}

/// The kinds of operations by which the store is judged. Each can fail while the other one works: a store without room
/// takes beats, and beats leave the blobs alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Beat,
    Write,
}

/// What the outcomes of operations say about the store.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Record>);

#[derive(Debug, Default)]
struct Record {
    beat: Option<Failure>,
    write: Option<Failure>,
    outage: Option<Outage>,
    last_failure: Option<(String, SystemTime)>,
}

/// The last failure of a kind of operations that has not succeeded since.
#[derive(Clone, Copy, Debug)]
struct Failure {
    at: Instant,
    is_full: bool,
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    since: SystemTime,
    begun: Instant,
    failures: u64,
}

impl Health {
    /// Takes note of an operation's outcome.
    pub(super) fn observe<T>(&self, operation: Operation, outcome: &Result<T, StoreError>) {
        let now = Instant::now();
        let failure = match outcome {
            Ok(_) => None,
            // The store has answered as it should.
            Err(
                StoreError::Stale
                | StoreError::Unreserved
                | StoreError::Forgotten
                | StoreError::Newer(_)
                | StoreError::MediaFull { .. }
                | StoreError::Lost(DataLoss::MissingBlob(_)),
            ) => return,
            Err(error) => Some(error),
        };
        let mut record = self.lock();
        let last = match operation {
            Operation::Beat => &mut record.beat,
            Operation::Write => &mut record.write,
        };
        *last = failure.map(|error| Failure {
            at: now,
            is_full: matches!(error, StoreError::Full { .. }),
        });
        match failure {
            Some(error) => record.failed(error, now),
            None => record.settle(now),
        }
    }

    pub(super) fn status(&self) -> StoreStatus {
        let mut record = self.lock();
        record.settle(Instant::now());
        StoreStatus {
            condition: record.condition(),
            since: record.outage.map(|outage| outage.since),
            last_failure: record.last_failure.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Record {
    fn condition(&self) -> Condition {
        match (self.beat, self.write) {
            (None, None) => Condition::Working,
            (None, Some(Failure { is_full: true, .. })) => Condition::Full,
            _ => Condition::Failing,
        }
    }

    fn failed(&mut self, error: &StoreError, now: Instant) {
        let error = with_causes(error);
        let outage = self.outage.get_or_insert_with(|| {
            tracing::warn!(
                error,
                "the store does not work; sessions go on, and are stored when it works again"
            );
            Outage {
                since: SystemTime::now(),
                begun: now,
                failures: 0,
            }
        });
        outage.failures += 1;
        self.last_failure = Some((error, SystemTime::now()));
    }

    /// Ends the outage when nothing fails any more.
    fn settle(&mut self, now: Instant) {
        let counts = |failure: &Failure| now - failure.at < FAILURE_COUNTS;
        self.write = self.write.filter(counts);
        if self.condition() == Condition::Working
            && let Some(outage) = self.outage.take()
        {
            let seconds = (now - outage.begun).as_secs();
            let failures = outage.failures;
            tracing::info!(seconds, failures, "the store works again");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn failed() -> Result<(), StoreError> {
        Err(StoreError::unavailable("no route"))
    }

    fn full() -> Result<(), StoreError> {
        Err(StoreError::Full {
            max_sessions: 1,
            max_bytes: 1,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_works_when_no_kind_of_operation_fails() {
        use Operation::{Beat, Write};
        let health = Health::default();
        let check = |condition: Condition| {
            let status = health.status();
            assert_eq!(status.condition, condition);
            assert_eq!(status.since.is_some(), condition != Condition::Working);
        };
        check(Condition::Working);
        health.observe(Write, &failed());
        check(Condition::Failing);
        health.observe(Beat, &Ok(()));
        check(Condition::Failing);
        health.observe::<()>(Write, &Err(StoreError::Stale));
        check(Condition::Failing);
        health.observe(Write, &Ok(()));
        check(Condition::Working);
        let (reason, _) = health.status().last_failure.unwrap();
        assert_eq!(reason, "the store cannot be used now: no route");

        health.observe(Write, &full());
        check(Condition::Full);
        health.observe(Beat, &failed());
        check(Condition::Failing);
        health.observe(Beat, &Ok(()));
        check(Condition::Full);
        // The session that could not be stored is gone, and nobody tries any more.
        advance(FAILURE_COUNTS).await;
        check(Condition::Working);
    }
}
