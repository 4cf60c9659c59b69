//! The operations on sessions: create, hydrate, resume, snapshot, drop.
//!
//! Sessions and operators' requests call them. After a create or a resume, a session is written through its [`Lease`].

use std::time::SystemTime;

use fastvideo_proto::ids::SessionId;
use fastvideo_proto::stored::{Expectation, StoredSession};

use super::error::{DataLoss, StoreError};
use super::handle::SessionStore;
use super::ids::{RecordKey, ServerId};
use super::lease::Lease;
use super::leased_session::LeasedSession;
use super::pending_cleanup::CleanupTask;
use super::records::{BlobKind, BlobRef, Record, StoredRecord};
use super::saved_session::{ResumeToken, SavedSession, decode, tenant_of};
use super::state::State;
use super::writer::Replaces;
use crate::causes::with_causes;
use crate::tenant::Scope;

/// Why a session was not resumed. Nothing has changed then: the server that runs the session goes on with it.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError<E> {
    /// There is no such session, or it has another token: a caller without the token learns nothing about the session.
    #[error("there is no session {0} to resume with this token; it may have expired")]
    NotFound(SessionId),
    /// The caller's check refused the session.
    #[error("the session does not fit: {0}")]
    Unfit(E),
    /// The session is there, but it can never be resumed.
    #[error(transparent)]
    Lost(DataLoss),
    /// The store does not answer or is full; trying again may help.
    #[error(transparent)]
    Store(StoreError),
}

impl<E> From<StoreError> for ResumeError<E> {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Lost(loss) => Self::Lost(loss),
            error => Self::Store(error),
        }
    }
}

/// The content of a record, read at one moment.
enum Loaded {
    Session(SavedSession),
    /// The record was replaced in the meantime and has to be read again.
    Replaced,
}

impl SessionStore {
    /// Creates a session that this server runs.
    ///
    /// # Errors
    /// Returns an error when the store does not answer in time or is full.
    pub async fn create(
        &self,
        session: &SessionId,
        token: &ResumeToken,
        state: Option<&State>,
    ) -> Result<Lease, StoreError> {
        let saved = SavedSession::starting_from(state, token).of_tenant(&self.1.tenant);
        let owner = Some(self.0.server.clone());
        let epoch = self.0.records.epoch();
        let record = self.write_first(session, token, &saved, owner).await?;
        let leased = LeasedSession::new(session, token.hash(), saved, record, epoch);
        Ok(self.lease(leased))
    }

    /// Keeps a state as the starting point of a new session, which no server runs until a client resumes it.
    ///
    /// # Errors
    /// Returns the errors of [`Self::create`].
    pub async fn hydrate(&self, state: &State) -> Result<(SessionId, ResumeToken), StoreError> {
        let (session, token) = (SessionId::random(), ResumeToken::random());
        let saved = SavedSession {
            expected: Expectation::ClientGone,
            tenant: self.1.tenant.clone(),
            ..SavedSession::starting_from(Some(state), &token)
        };
        self.write_first(&session, &token, &saved, None).await?;
        Ok((session, token))
    }

    /// Takes a session over, whichever server runs it now; the previous lease is lost.
    ///
    /// `check` says whether the caller can go on with the session. It runs before anything is written, so that a
    /// session that does not fit stays where it runs; it runs again when the session was saved meanwhile.
    ///
    /// # Errors
    /// See [`ResumeError`].
    pub async fn resume<E>(
        &self,
        session: &SessionId,
        token: &ResumeToken,
        check: impl Fn(&SavedSession) -> Result<(), E>,
    ) -> Result<(Lease, SavedSession), ResumeError<E>> {
        let not_found = || -> ResumeError<E> {
            match self.is_restoring() {
                true => StoreError::Forgotten.into(),
                false => ResumeError::NotFound(session.clone()),
            }
        };
        let before = self.0.leased.get(session);
        let before = before.filter(|leased| {
            token.matches(leased.token_hash) && self.1.scope.has(&leased.latest().tenant)
        });
        // Until this is done, an older lease of the session on this server writes nothing.
        let mut locked = match &before {
            Some(leased) => Some((leased, leased.record.lock().await)),
            None => None,
        };
        if let Some((leased, record)) = &mut locked
            && !leased.lost.is_cancelled()
        {
            // The client may know of a newer version than the saved one.
            let owner = Some(self.0.server.clone());
            let written = self.write_latest(leased, record, owner, self.deadline());
            match written.await {
                Ok(()) | Err(StoreError::Stale) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let key = RecordKey::from(session.clone());
        loop {
            let epoch = self.0.records.epoch();
            let stored = self.within(self.0.records.read(&key)).await?;
            let stored = stored.ok_or_else(not_found)?;
            let body = decode(session, &stored.record.body)?;
            // Of a film whose state has expired, nothing is left that could go on.
            let is_over = body.state.is_none() && !body.film.is_empty();
            let is_there = self.1.scope.has(&tenant_of(&body));
            if is_over || !is_there || !body.token_hash.is_some_and(|hash| token.matches(hash)) {
                return Err(ResumeError::NotFound(session.clone()));
            }
            let Loaded::Session(saved) = self.load(session, &key, &body, &stored).await? else {
                continue;
            };
            check(&saved).map_err(ResumeError::Unfit)?;
            let body = StoredSession {
                expected: Expectation::GoesOn,
                released_at_ms: None,
                ..body
            };
            let record = Record {
                owner: Some(self.0.server.clone()),
                body: body.encode(),
                ..stored.record
            };
            let taken = self.swap_record(&key, stored.revision, Some(&record), self.deadline());
            let revision = match taken.await {
                Ok(revision) => revision,
                // Its last owner has just saved a segment or released the session.
                Err(StoreError::Stale) => continue,
                Err(error) => return Err(error.into()),
            };
            let record = StoredRecord { revision, record };
            let leased = LeasedSession::new(session, token.hash(), saved.clone(), record, epoch);
            return Ok((self.lease(leased), saved));
        }
    }

    /// Returns the last saved version of a session, whichever server runs it; `None` when there is no such session.
    ///
    /// # Errors
    /// Returns an error when the store does not answer, or what it has is damaged.
    pub async fn snapshot(&self, session: &SessionId) -> Result<Option<SavedSession>, StoreError> {
        let key = RecordKey::from(session.clone());
        loop {
            let Some(stored) = self.within(self.0.records.read(&key)).await? else {
                return match self.is_restoring() {
                    true => Err(StoreError::Forgotten),
                    false => Ok(None),
                };
            };
            let body = decode(session, &stored.record.body)?;
            if !self.1.scope.has(&tenant_of(&body)) {
                return Ok(None);
            }
            if let Loaded::Session(saved) = self.load(session, &key, &body, &stored).await? {
                return Ok(Some(saved));
            }
        }
    }

    /// Ends a session, whichever server runs it, and removes its state. Returns false when there is none.
    ///
    /// A session of this server ends even while the store does not answer; its record is removed as soon as it does.
    ///
    /// # Errors
    /// Returns an error when the store does not answer and this server does not run the session. Nothing has changed
    /// then.
    pub async fn drop(&self, session: &SessionId) -> Result<bool, StoreError> {
        if !self.sees(session).await? {
            return Ok(false);
        }
        let leased = self.0.leased.take(session);
        if let Some(leased) = &leased {
            leased.lost.cancel();
        }
        match self.remove_record(&session.clone().into()).await {
            Ok(false) if leased.is_none() && self.is_restoring() => Err(StoreError::Forgotten),
            Ok(removed) => Ok(removed || leased.is_some()),
            Err(error) if leased.is_some() => {
                let error = with_causes(&error);
                tracing::info!(session_id = %session, error, "session ended; its record is removed later");
                self.0.cleanup.add(CleanupTask::Drop(session.clone()));
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns whether a session may be there: false where it is another tenant's.
    async fn sees(&self, session: &SessionId) -> Result<bool, StoreError> {
        if self.1.scope == Scope::All {
            return Ok(true);
        }
        if let Some(leased) = self.0.leased.get(session) {
            return Ok(self.1.scope.has(&leased.latest().tenant));
        }
        let key = RecordKey::from(session.clone());
        match self.within(self.0.records.read(&key)).await? {
            Some(stored) => {
                let body = decode(session, &stored.record.body)?;
                Ok(self.1.scope.has(&tenant_of(&body)))
            }
            None => Ok(true),
        }
    }

    /// Writes the first record of a session.
    async fn write_first(
        &self,
        session: &SessionId,
        token: &ResumeToken,
        saved: &SavedSession,
        owner: Option<ServerId>,
    ) -> Result<StoredRecord, StoreError> {
        let released = owner.is_none().then(SystemTime::now);
        let draft = saved.draft(token.hash(), owner, released, |_| None);
        let key = session.clone().into();
        self.write_record(&key, Replaces::Nothing, &draft, self.deadline())
            .await
    }

    /// Reads the state that a record names. A session that runs here has it in memory already.
    async fn load(
        &self,
        session: &SessionId,
        key: &RecordKey,
        body: &StoredSession,
        stored: &StoredRecord,
    ) -> Result<Loaded, StoreError> {
        let saved = |state| {
            let mut saved = SavedSession::from_stored(body.clone(), state);
            saved.film.keep_media_in(&stored.record.blobs);
            Loaded::Session(saved)
        };
        let Some(header) = &body.state else {
            return Ok(saved(None));
        };
        if let Some(leased) = self.0.leased.get(session)
            && let Some(state) = leased.latest().state
            && state.header_bytes() == header
        {
            return Ok(saved(Some(state)));
        }
        match self.read_state(key, header, &stored.record.blobs).await {
            Ok(state) => Ok(saved(Some(state))),
            Err(StoreError::Lost(loss @ DataLoss::MissingBlob(_))) => {
                let now = self.within(self.0.records.read(key)).await?;
                match now {
                    Some(now) if now.revision == stored.revision => Err(loss.into()),
                    _ => Ok(Loaded::Replaced),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the state with that header, whose blob is that of its kind among the blobs of a record.
    ///
    /// # Errors
    /// Returns [`DataLoss::MissingBlob`] when the blob is gone, since the record was replaced or data were lost, and
    /// another error when the store does not answer or what it has is damaged.
    pub(super) async fn read_state(
        &self,
        record: &RecordKey,
        header: &[u8],
        blobs: &[BlobRef],
    ) -> Result<State, StoreError> {
        let Some(blob) = blobs.iter().find(|blob| blob.kind == BlobKind::State) else {
            return Err(DataLoss::StateWithoutBlob(record.clone()).into());
        };
        let bytes = self.within(self.0.blobs.get(blob.key)).await?.join();
        let (header, name) = (header.to_vec(), blob.key.id);
        let state = tokio::task::spawn_blocking(move || State::from_stored(header, name, &bytes));
        let state = state.await.map_err(StoreError::unavailable)?;
        state.map_err(|source| {
            let record = record.clone();
            DataLoss::State { record, source }.into()
        })
    }
}
