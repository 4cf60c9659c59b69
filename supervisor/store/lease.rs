//! The lease of a session: the right of one server to run it and to write its record.
//!
//! The lease is kept in the record itself, as its owner, and the record's revision is the fencing token: every write
//! names the revision that it replaces. A server whose lease was taken over finds out at its next write or its next
//! beat, whichever is first; then [`Lease::lost`] resolves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use fastvideo_proto::stored::Expectation;
use fastvideo_proto::trace::TraceContext;

use super::error::StoreError;
use super::film::{Film, RecordedSegment, Recording, blob_of};
use super::handle::{Deadline, SessionStore};
use super::ids::ServerId;
use super::leased_session::LeasedSession;
use super::pending_cleanup::CleanupTask;
use super::records::StoredRecord;
use super::saved_session::{Progress, ResumeToken, Watch};
use super::state::State;
use super::writer::Replaces;

/// The right to run a session and to write its record. Dropping it releases the session: its state stays for the
/// configured time.
#[derive(Debug)]
pub struct Lease {
    leased: Arc<LeasedSession>,
    store: SessionStore,
    /// Whether the lease was given back or its session has ended.
    over: bool,
}

/// Writes a session's record on behalf of its lease.
#[derive(Clone, Debug)]
pub struct LeaseWriter {
    leased: Arc<LeasedSession>,
    store: SessionStore,
}

impl Lease {
    /// Returns a writer of the session, which may outlive the lease for a moment.
    pub fn writer(&self) -> LeaseWriter {
        LeaseWriter {
            leased: self.leased.clone(),
            store: self.store.clone(),
        }
    }

    /// Resolves when the session was resumed elsewhere or dropped: it must not go on here.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub async fn lost(&self) {
        self.leased.lost.cancelled().await;
    }

    /// Takes note that the client has this many segments, from the first one on: the store may drop their media first.
    pub fn set_received(&self, segments: u32) {
        self.leased.set_received(segments);
    }

    /// Takes note that the client has this many media messages of a segment, and all of those before.
    pub fn acknowledge(&self, segment_idx: u32, messages: u32) {
        let has_all = self.leased.update(|latest| {
            let segment = latest.film.segment(segment_idx);
            let media = segment.and_then(|segment| segment.media.as_ref());
            media.is_some_and(|media| media.messages.len() <= messages as usize)
        });
        if has_all {
            self.set_received(segment_idx + 1);
        }
    }

    /// Returns the token for those who may watch the session.
    pub fn watch_token(&self, token: &ResumeToken) -> String {
        token.watch_token(self.leased.update(|latest| latest.watch.number))
    }

    /// Takes note that the session goes on after its last permitted segment.
    pub fn extend(&self) {
        self.leased.update(|latest| latest.extensions += 1);
    }

    /// Takes note of the session's span. The next write stores it.
    pub fn set_trace(&self, span: TraceContext) {
        self.leased.update(|latest| latest.trace = Some(span));
    }

    /// Takes note of what is expected of the session once the lease is given back.
    pub fn expect(&self, expected: Expectation) {
        self.leased.update(|latest| latest.expected = expected);
    }

    /// Makes another watch token valid, and no other one; returns it. The session is to be written then.
    pub fn renew_watch_token(&self, token: &ResumeToken) -> String {
        let number = self.leased.update(|latest| {
            let number = latest.watch.number.wrapping_add(1);
            latest.watch = Watch::by(token, number);
            number
        });
        token.watch_token(number)
    }

    /// Ends the session for good: its state and its film are removed.
    pub fn end_session(&mut self) {
        let task = CleanupTask::End(self.leased.clone());
        self.end(task);
    }

    fn end(&mut self, task: CleanupTask) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        if self.leased.lost.is_cancelled() {
            (self.store.0.leased).remove(&self.leased.session, &self.leased);
        } else {
            self.store.0.cleanup.add(task);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let task = CleanupTask::Release(self.leased.clone());
        self.end(task);
    }
}

impl LeaseWriter {
    /// Counts a segment that the client was told of before it was stored.
    pub fn saved_late(&self) {
        self.store.0.metrics.saved_late();
    }

    /// Commits a segment: the latest version of the session has it from now on, in memory.
    pub fn commit(&self, progress: Progress, state: State) {
        self.leased.update(|latest| {
            latest.progress = progress;
            latest.state = Some(state);
        });
    }

    /// Adds a segment to the film, in memory. It is not stored before it is committed.
    pub fn record(&self, recorded: RecordedSegment) {
        if let Some(recording) = self.store.config().recording {
            self.leased
                .update(|latest| self.add_to_film(recorded, recording, &mut latest.film));
        }
    }

    /// Adds a segment to the film. Without room, it has no media there.
    fn add_to_film(&self, recorded: RecordedSegment, recording: Recording, film: &mut Film) {
        let RecordedSegment {
            mut segment,
            content,
        } = recorded;
        let mut lost = 0;
        if let Some(media) = &segment.media {
            let unwritten = &self.store.0.unwritten;
            match unwritten.take(content, recording.max_bytes) {
                Some(unwritten) => self.leased.add_unwritten(blob_of(media), unwritten),
                None => {
                    Arc::make_mut(&mut segment).media = None;
                    lost = 1;
                }
            }
        }
        film.push(segment);
        lost += film.fit(recording.max_session_bytes, self.leased.received());
        self.store.count_lost(&self.leased, lost);
    }

    /// Writes the latest version of the session in place of the one before. Writes of one session follow each other.
    ///
    /// Takes no longer than the configured timeout, waiting for the write before included.
    ///
    /// # Errors
    /// Returns [`StoreError::Stale`] when the session was resumed elsewhere or dropped; any other error may be
    /// temporary.
    pub async fn write(self) -> Result<(), StoreError> {
        let Self { leased, store } = self;
        let deadline = store.deadline();
        let mut record = deadline
            .limit(async { Ok(leased.record.lock().await) })
            .await?;
        if leased.lost.is_cancelled() {
            return Err(StoreError::Stale);
        }
        // The session may have ended and been released while its last state was on its way.
        let owner = store
            .0
            .leased
            .holds(&leased.session, &leased)
            .then(|| store.0.server.clone());
        store
            .write_latest(&leased, &mut record, owner, deadline)
            .await
    }
}

impl SessionStore {
    /// Makes the lease of a session whose record names this server as its owner.
    pub(super) fn lease(&self, leased: Arc<LeasedSession>) -> Lease {
        // An older lease of the session on this server is lost.
        if let Some(before) = self.0.leased.insert(&leased.session, leased.clone()) {
            before.lost.cancel();
        }
        Lease {
            leased,
            store: self.clone(),
            over: false,
        }
    }

    /// Writes the latest version of the session with that owner, unless the store has it already.
    pub(super) async fn write_latest(
        &self,
        leased: &Arc<LeasedSession>,
        record: &mut StoredRecord,
        owner: Option<ServerId>,
        deadline: Deadline,
    ) -> Result<(), StoreError> {
        let released = owner.is_none().then(SystemTime::now);
        loop {
            let epoch = self.0.records.epoch();
            let is_lost = leased.epoch() < epoch;
            let known = match is_lost {
                true => &[],
                false => record.record.blobs.as_slice(),
            };
            let draft = leased.draft(owner.clone(), released, known);
            if draft.body == record.record.body && draft.owner.is_some() && !is_lost {
                return Ok(());
            }
            let replaces = match is_lost {
                true => Replaces::Lost(record.revision),
                false => Replaces::Record(record),
            };
            let written = self.write_record(&leased.key, replaces, &draft, deadline);
            match written.await {
                Ok(written) => {
                    let before = std::mem::replace(record, written);
                    leased.set_epoch(epoch);
                    leased.written(&record.record.blobs);
                    if is_lost {
                        tracing::info!(session_id = %leased.session, "session stored anew");
                        self.condemn_orphans(&before.record.blobs).await;
                    }
                    return Ok(());
                }
                Err(error @ StoreError::MediaFull { .. }) => {
                    let dropped = leased.update(|latest| latest.film.drop_oldest());
                    let Some(dropped) = dropped else {
                        return Err(error);
                    };
                    let lost = u32::from(dropped >= leased.received());
                    self.count_lost(leased, lost);
                }
                Err(StoreError::Stale) if is_lost => {
                    leased.lost.cancel();
                    return Err(StoreError::Stale);
                }
                Err(StoreError::Stale) => {
                    if !self.is_still_ours(leased, record, deadline).await? {
                        return Err(StoreError::Stale);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Counts segments whose media were dropped although the client may not have had them.
    fn count_lost(&self, leased: &LeasedSession, segments: u32) {
        if segments == 0 {
            return;
        }
        let all = &self.0.lost_segments;
        if all.fetch_add(segments.into(), Ordering::Relaxed) == 0 {
            tracing::warn!(session_id = %leased.session, "no room for media that the client may lack; this is told once, and counted in /status");
        }
    }

    /// Removes the record of a session that this server runs, unless it runs elsewhere by now.
    pub(super) async fn remove_leased(
        &self,
        leased: &Arc<LeasedSession>,
        record: &mut StoredRecord,
    ) -> Result<(), StoreError> {
        loop {
            let deadline = self.deadline();
            if leased.epoch() < self.0.records.epoch() {
                let removed = self.remove_lost(&leased.key, record.revision);
                return deadline.limit(removed).await;
            }
            let removed = self.swap_record(&leased.key, record.revision, None, deadline);
            match removed.await {
                Ok(_) => return Ok(()),
                Err(StoreError::Stale) => {
                    if !self.is_still_ours(leased, record, deadline).await? {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns whether this server still owns a session whose revision is not the one that it knows, because the answer
    /// to its last write was lost; then `record` becomes what the store has. Otherwise the lease is lost: a record that
    /// is gone in the epoch in which it was written was removed.
    pub(super) async fn is_still_ours(
        &self,
        leased: &Arc<LeasedSession>,
        record: &mut StoredRecord,
        deadline: Deadline,
    ) -> Result<bool, StoreError> {
        let epoch = self.0.records.epoch();
        let current = deadline.limit(self.0.records.read(&leased.key)).await?;
        if leased.epoch() < epoch {
            // The store may have lost the record: it is to be restored.
            return Ok(true);
        }
        match current {
            Some(current)
                if self.0.leased.holds(&leased.session, leased)
                    && current.record.owner.as_ref() == Some(&self.0.server) =>
            {
                *record = current;
                Ok(true)
            }
            _ => {
                leased.lost.cancel();
                Ok(false)
            }
        }
    }
}
