//! The sessions of this server in the store: created, stored after each segment, resumed, released, dropped.
//!
//! A session that runs is held by a [`Lease`]. Every write names the revision that it replaces, so a server whose session
//! was resumed elsewhere cannot write any more: it finds out at its next write or its next beat, whichever is first, and
//! [`Lease::lost`] ends. What must happen but cannot wait for the store (releasing, dropping, deleting blobs) is a chore
//! of the upkeep, which tries again until the store answers.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use fastvideo_proto::ids::SessionId;
use fastvideo_proto::stored::StoredSession;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::blobs::BlobStore;
use super::records::{BlobId, BlobRef, Change, Record, Records, Revision, ServerId};
use super::{State, StoreError};

mod upkeep;

pub use upkeep::Upkeep;

/// How long a write waits for a blob to be gone that somebody is deleting and that it wants to put again.
const CONDEMNED_TIMEOUT: Duration = Duration::from_secs(10);
const CONDEMNED_PAUSE: Duration = Duration::from_millis(5);
/// Blobs above this are hashed on a thread for blocking work.
const LARGE_BLOB_BYTES: usize = 256 * 1024;

/// What is configured of the store's behaviour.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long the state of a session is kept that nobody runs.
    pub resume_ttl: Duration,
    /// A server that was silent for this long has lost its sessions: they count as sessions that nobody runs.
    pub lease: Duration,
    /// How long one operation of the store may take.
    pub timeout: Duration,
}

/// The sessions of all servers that share a store. Cheap to clone.
#[derive(Clone)]
pub struct SessionStore(Arc<Shared>);

struct Shared {
    config: Config,
    records: Arc<dyn Records>,
    blobs: BlobStore,
    server: ServerId,
    held: Mutex<HashMap<SessionId, Arc<Held>>>,
    chores: Mutex<Vec<Chore>>,
    chore_added: Notify,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Segments that are finished.
    pub segments: u32,
    /// Where the next one begins on the session's time line, in frames.
    pub start_frame: u64,
}

/// What is stored of a session.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub progress: Progress,
    /// None before the first segment is finished.
    pub state: Option<State>,
}

/// The right to resume a session: 64 lower-case hexadecimal digits, of which the store keeps only a hash.
#[derive(Clone, PartialEq, Eq)]
pub struct ResumeToken(String);

impl ResumeToken {
    /// 256 random bits.
    pub fn random() -> Self {
        let bits: [u128; 2] = rand::random();
        Self(format!("{:032x}{:032x}", bits[0], bits[1]))
    }

    /// What a client has sent; any text may be wrong.
    pub fn given(token: String) -> Self {
        Self(token)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn hash(&self) -> blake3::Hash {
        blake3::hash(self.0.as_bytes())
    }
}

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeToken(…)")
    }
}

/// Why a session was not resumed.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// No such session, or not that token: who does not know the token learns nothing of the session.
    #[error("there is no session {0} to resume with this token; it may have expired")]
    Refused(SessionId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Something that must happen, whether or not the store answers now.
#[derive(Debug)]
enum Chore {
    /// Nobody runs the session here any more; its state is kept for a while.
    Release(Arc<Held>),
    /// The session is over.
    Drop(SessionId),
    /// Reservations that were not used.
    Unreserve(Vec<BlobId>),
    Delete(Vec<BlobId>),
}

/// A session that this server runs.
#[derive(Debug)]
struct Held {
    session: SessionId,
    token_hash: [u8; 32],
    lost: CancellationToken,
    /// What was last to be stored, whether or not it was.
    latest: Mutex<Snapshot>,
    /// Locked while the session is written.
    stored: AsyncMutex<Stored>,
}

/// What the store has.
#[derive(Debug)]
struct Stored {
    revision: Revision,
    body: StoredSession,
    blobs: Vec<BlobRef>,
}

/// The right to write a session's record. Dropping it releases the session: its state stays for the configured time.
#[derive(Debug)]
pub struct Lease {
    held: Arc<Held>,
    store: SessionStore,
    over: bool,
}

impl SessionStore {
    pub(super) fn new(config: Config, records: Arc<dyn Records>, blobs: BlobStore) -> Self {
        Self(Arc::new(Shared {
            config,
            records,
            blobs,
            server: ServerId::random(),
            held: Mutex::default(),
            chores: Mutex::default(),
            chore_added: Notify::new(),
        }))
    }

    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// A new session that this server runs.
    ///
    /// # Errors
    /// When the store does not answer in time or is full.
    pub async fn create(
        &self,
        session: &SessionId,
        token: &ResumeToken,
        state: Option<&State>,
    ) -> Result<Lease, StoreError> {
        let stored = self.begin(session, token, state, true).await?;
        let held = Arc::new(Held {
            session: session.clone(),
            token_hash: *token.hash().as_bytes(),
            lost: CancellationToken::new(),
            latest: Mutex::new(Snapshot {
                progress: Progress::default(),
                state: state.cloned(),
            }),
            stored: AsyncMutex::new(stored),
        });
        Ok(self.hold(held))
    }

    /// Keeps a state as the starting point of a new session, which nobody runs until somebody resumes it.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn hydrate(&self, state: &State) -> Result<(SessionId, ResumeToken), StoreError> {
        let (session, token) = (SessionId::random(), ResumeToken::random());
        self.begin(&session, &token, Some(state), false).await?;
        Ok((session, token))
    }

    /// Takes a session over, whoever runs it now; the other one loses it.
    ///
    /// # Errors
    /// See [`ResumeError`]; then nothing has changed.
    pub async fn resume(
        &self,
        session: &SessionId,
        token: &ResumeToken,
    ) -> Result<(Lease, Snapshot), ResumeError> {
        let refused = || ResumeError::Refused(session.clone());
        loop {
            let written = self.within(self.0.records.read(session)).await?;
            let written = written.ok_or_else(refused)?;
            let body = decode(&written.record.body)?;
            // Comparing two hashes of blake3 takes the same time wherever they differ.
            let right = body.token_hash.map(blake3::Hash::from_bytes) == Some(token.hash());
            if !right {
                return Err(refused());
            }
            let state = self.load(session, &body, &written.record.blobs).await?;
            let record = Record {
                owner: Some(self.0.server.clone()),
                ..written.record
            };
            let change = Change {
                session,
                expected: Some(written.revision),
                record: Some(&record),
                server: &self.0.server,
                reserved: &[],
            };
            let outcome = match self.within(self.0.records.write(change)).await {
                Ok(outcome) => outcome,
                // Its last owner has just stored a segment or let go.
                Err(StoreError::Stale) => continue,
                Err(error) => return Err(error.into()),
            };
            let snapshot = Snapshot {
                progress: progress(&body),
                state,
            };
            let held = Arc::new(Held {
                session: session.clone(),
                token_hash: *token.hash().as_bytes(),
                lost: CancellationToken::new(),
                latest: Mutex::new(snapshot.clone()),
                stored: AsyncMutex::new(Stored {
                    revision: outcome.revision,
                    body,
                    blobs: record.blobs,
                }),
            });
            return Ok((self.hold(held), snapshot));
        }
    }

    /// The last stored state of a session, whoever runs it; none when there is no such session.
    ///
    /// # Errors
    /// When the store does not answer, or what it has is damaged.
    pub async fn snapshot(&self, session: &SessionId) -> Result<Option<Snapshot>, StoreError> {
        let Some(written) = self.within(self.0.records.read(session)).await? else {
            return Ok(None);
        };
        let body = decode(&written.record.body)?;
        let state = self.load(session, &body, &written.record.blobs).await?;
        Ok(Some(Snapshot {
            progress: progress(&body),
            state,
        }))
    }

    /// Ends a session, whoever runs it, and drops its state. False when there is none.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn drop(&self, session: &SessionId) -> Result<bool, StoreError> {
        let held = self.held().remove(session);
        if let Some(held) = held {
            held.lost.cancel();
        }
        loop {
            let Some(written) = self.within(self.0.records.read(session)).await? else {
                return Ok(false);
            };
            let change = Change {
                session,
                expected: Some(written.revision),
                record: None,
                server: &self.0.server,
                reserved: &[],
            };
            match self.within(self.0.records.write(change)).await {
                Ok(outcome) => self.delete(outcome.condemned),
                Err(StoreError::Stale) => continue,
                Err(error) => return Err(error),
            }
            return Ok(true);
        }
    }

    /// Keeps blobs, such as those of an export, for as long as the state of a session that nobody runs.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn lend(&self, blob: Bytes) -> Result<BlobId, StoreError> {
        let size = blob.len() as u64;
        let hashed = blob.clone();
        let id = tokio::task::spawn_blocking(move || BlobId::of(&hashed))
            .await
            .map_err(StoreError::unavailable)?;
        let body = StoredSession {
            token_hash: None,
            segments: 0,
            start_frame: 0,
            state: None,
        };
        let record = Record {
            owner: None,
            blobs: vec![BlobRef { id, bytes: size }],
            body: body.encode(),
        };
        self.write(&SessionId::random(), None, &[], record, Some(blob))
            .await?;
        Ok(id)
    }

    /// A blob that the store has.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it has not, and when it does not answer.
    pub async fn blob(&self, id: BlobId) -> Result<Bytes, StoreError> {
        self.within(self.0.blobs.get(id)).await
    }

    /// Writes the first record of a session.
    async fn begin(
        &self,
        session: &SessionId,
        token: &ResumeToken,
        state: Option<&State>,
        owned: bool,
    ) -> Result<Stored, StoreError> {
        let body = StoredSession {
            token_hash: Some(*token.hash().as_bytes()),
            segments: 0,
            start_frame: 0,
            state: state.map(|state| state.header_bytes().to_vec()),
        };
        let blobs = match state {
            Some(state) => vec![self.blob_ref(state).await?],
            None => Vec::new(),
        };
        let record = Record {
            owner: owned.then(|| self.0.server.clone()),
            blobs,
            body: body.encode(),
        };
        let blob = state.map(State::blob_bytes);
        let (revision, record) = self.write(session, None, &[], record, blob).await?;
        Ok(Stored {
            revision,
            body,
            blobs: record.blobs,
        })
    }

    /// Writes a record of a session that this server runs, or that nobody runs. `known`: the blobs of the record that it
    /// replaces, which are in the store already.
    async fn write(
        &self,
        session: &SessionId,
        expected: Option<Revision>,
        known: &[BlobRef],
        record: Record,
        blob: Option<Bytes>,
    ) -> Result<(Revision, Record), StoreError> {
        let new: Vec<BlobId> = record
            .blobs
            .iter()
            .filter(|blob| !known.contains(blob))
            .map(|blob| blob.id)
            .collect();
        let deadline = Instant::now() + CONDEMNED_TIMEOUT;
        loop {
            match self
                .try_write(session, expected, &new, &record, blob.clone())
                .await
            {
                // Somebody deletes the blob, or took this server for dead and its reservation back.
                Err(StoreError::Condemned) if Instant::now() < deadline => {
                    sleep(CONDEMNED_PAUSE).await;
                }
                Err(error) => return Err(error),
                Ok(revision) => return Ok((revision, record)),
            }
        }
    }

    async fn try_write(
        &self,
        session: &SessionId,
        expected: Option<Revision>,
        new: &[BlobId],
        record: &Record,
        blob: Option<Bytes>,
    ) -> Result<Revision, StoreError> {
        let records = &self.0.records;
        if !new.is_empty() {
            self.within(records.reserve(&self.0.server, new)).await?;
        }
        let written = async {
            if let (Some(id), Some(blob)) = (new.first(), blob) {
                self.within(self.0.blobs.put(*id, blob)).await?;
            }
            let change = Change {
                session,
                expected,
                record: Some(record),
                server: &self.0.server,
                reserved: new,
            };
            self.within(records.write(change)).await
        };
        match written.await {
            Ok(outcome) => {
                self.delete(outcome.condemned);
                Ok(outcome.revision)
            }
            Err(error) => {
                if !new.is_empty() {
                    self.chore(Chore::Unreserve(new.to_vec()));
                }
                Err(error)
            }
        }
    }

    /// Writes what the session was last to be stored as, with that owner, as far as the store does not have it.
    async fn write_latest(
        &self,
        held: &Arc<Held>,
        stored: &mut Stored,
        owner: Option<ServerId>,
    ) -> Result<(), StoreError> {
        let Snapshot { progress, state } = held.latest();
        let body = StoredSession {
            token_hash: Some(held.token_hash),
            segments: progress.segments,
            start_frame: progress.start_frame,
            state: state.as_ref().map(|state| state.header_bytes().to_vec()),
        };
        let blobs = match &state {
            _ if body == stored.body => stored.blobs.clone(),
            Some(state) => vec![self.blob_ref(state).await?],
            None => Vec::new(),
        };
        let record = Record {
            owner,
            blobs,
            body: body.encode(),
        };
        loop {
            let (session, expected) = (&held.session, Some(stored.revision));
            let blob = state.as_ref().map(State::blob_bytes);
            let written = self.write(session, expected, &stored.blobs, record.clone(), blob);
            match written.await {
                Ok((revision, record)) => {
                    *stored = Stored {
                        revision,
                        body,
                        blobs: record.blobs,
                    };
                    return Ok(());
                }
                Err(StoreError::Stale) => {
                    if !self.is_still_ours(held, stored).await? {
                        return Err(StoreError::Stale);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a session whose revision is not the one that this server knows is its own all the same, because the answer
    /// to its last write was lost; then `stored` is what the store has. Otherwise the lease is lost.
    async fn is_still_ours(
        &self,
        held: &Arc<Held>,
        stored: &mut Stored,
    ) -> Result<bool, StoreError> {
        let written = self.within(self.0.records.read(&held.session)).await?;
        let is_current =
            (self.held().get(&held.session)).is_some_and(|current| Arc::ptr_eq(current, held));
        match written {
            Some(written)
                if is_current && written.record.owner.as_ref() == Some(&self.0.server) =>
            {
                *stored = Stored {
                    revision: written.revision,
                    body: decode(&written.record.body)?,
                    blobs: written.record.blobs,
                };
                Ok(true)
            }
            _ => {
                held.lost.cancel();
                Ok(false)
            }
        }
    }

    /// The state that a record names. Of a session that runs here it is at hand.
    async fn load(
        &self,
        session: &SessionId,
        body: &StoredSession,
        blobs: &[BlobRef],
    ) -> Result<Option<State>, StoreError> {
        let Some(header) = &body.state else {
            return Ok(None);
        };
        let held = self.held().get(session).cloned();
        if let Some(held) = held
            && let Some(state) = held.latest().state
            && state.header_bytes() == header
        {
            return Ok(Some(state));
        }
        let corrupt = |what: String| StoreError::Corrupt(format!("session {session}: {what}"));
        let Some(blob) = blobs.first() else {
            return Err(corrupt("it has a state and no blob".to_owned()));
        };
        let bytes = self.within(self.0.blobs.get(blob.id)).await?;
        let header = header.clone();
        let state = tokio::task::spawn_blocking(move || State::from_stored(header, &bytes)).await;
        match state {
            Ok(Ok(state)) => Ok(Some(state)),
            Ok(Err(error)) => Err(corrupt(error.to_string())),
            Err(panic) => Err(corrupt(panic.to_string())),
        }
    }

    async fn blob_ref(&self, state: &State) -> Result<BlobRef, StoreError> {
        let bytes = state.blob().len() as u64;
        let id = if state.blob().len() < LARGE_BLOB_BYTES {
            BlobId::of(state.blob())
        } else {
            let state = state.clone();
            tokio::task::spawn_blocking(move || BlobId::of(state.blob()))
                .await
                .map_err(StoreError::unavailable)?
        };
        Ok(BlobRef { id, bytes })
    }

    fn hold(&self, held: Arc<Held>) -> Lease {
        // Whoever ran the session on this server runs it no longer.
        if let Some(before) = self.held().insert(held.session.clone(), held.clone()) {
            before.lost.cancel();
        }
        Lease {
            held,
            store: self.clone(),
            over: false,
        }
    }

    /// This server does not run the session any more.
    fn let_go(&self, held: &Arc<Held>) {
        let mut all = self.held();
        if (all.get(&held.session)).is_some_and(|current| Arc::ptr_eq(current, held)) {
            all.remove(&held.session);
        }
    }

    /// An operation may not take for ever: a server that does not answer must not hold a session up.
    async fn within<T>(
        &self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match timeout(self.0.config.timeout, operation).await {
            Ok(done) => done,
            Err(late) => Err(StoreError::unavailable(late)),
        }
    }

    fn delete(&self, condemned: Vec<BlobId>) {
        if !condemned.is_empty() {
            self.chore(Chore::Delete(condemned));
        }
    }

    fn chore(&self, chore: Chore) {
        self.chores().push(chore);
        self.0.chore_added.notify_one();
    }

    fn chores(&self) -> MutexGuard<'_, Vec<Chore>> {
        self.0.chores.lock().expect("no holder of this lock panics")
    }

    fn held(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Held>>> {
        self.0.held.lock().expect("no holder of this lock panics")
    }
}

impl fmt::Debug for SessionStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionStore")
            .field("server", &self.0.server)
            .field("records", &self.0.records)
            .finish_non_exhaustive()
    }
}

impl Held {
    fn latest(&self) -> Snapshot {
        self.latest
            .lock()
            .expect("no holder of this lock panics")
            .clone()
    }
}

/// Writes a session's record on behalf of its lease.
#[derive(Debug)]
pub struct LeaseWriter {
    held: Arc<Held>,
    store: SessionStore,
}

impl LeaseWriter {
    /// Stores what the session has become, in place of what was stored before. Writes of one session follow each other.
    ///
    /// Must be run to its end, or a blob may stay reserved until this server ends.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when the session was resumed elsewhere or dropped; any other may pass.
    pub async fn store(self, progress: Progress, state: State) -> Result<(), StoreError> {
        let Self { held, store } = self;
        *held.latest.lock().expect("no holder of this lock panics") = Snapshot {
            progress,
            state: Some(state),
        };
        let mut stored = held.stored.lock().await;
        let owner = Some(store.0.server.clone());
        store.write_latest(&held, &mut stored, owner).await
    }
}

impl Lease {
    /// What stores the session; it may outlive the lease for a moment.
    pub fn writer(&self) -> LeaseWriter {
        LeaseWriter {
            held: self.held.clone(),
            store: self.store.clone(),
        }
    }

    /// Ends when the session was resumed elsewhere or dropped: it must not go on here.
    pub async fn lost(&self) {
        self.held.lost.cancelled().await;
    }

    /// The session is over: its state goes.
    pub fn end_session(&mut self) {
        let chore = Chore::Drop(self.held.session.clone());
        self.end(chore);
    }

    fn end(&mut self, chore: Chore) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        if self.held.lost.is_cancelled() {
            self.store.let_go(&self.held);
        } else {
            self.store.chore(chore);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let chore = Chore::Release(self.held.clone());
        self.end(chore);
    }
}

fn progress(body: &StoredSession) -> Progress {
    Progress {
        segments: body.segments,
        start_frame: body.start_frame,
    }
}

fn decode(body: &[u8]) -> Result<StoredSession, StoreError> {
    StoredSession::decode(body).map_err(|error| StoreError::Corrupt(error.to_string()))
}
