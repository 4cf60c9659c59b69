//! The sessions of this server in the store: created, stored after each segment, resumed, released, dropped.
//!
//! A session that runs is held by a [`Lease`]. Every write names the revision that it replaces, so a server whose session
//! was resumed elsewhere cannot write any more: it finds out at its next write or its next beat, whichever is first, and
//! [`Lease::lost`] ends. What must happen but cannot wait for the store (releasing, dropping, deleting blobs) is a chore
//! of the upkeep, which tries again until the store answers.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use fastvideo_proto::ids::SessionId;
use fastvideo_proto::stored::StoredSession;
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::blobs::BlobStore;
use super::records::{
    BlobId, BlobKey, BlobRef, Change, Record, Records, ReservationId, Revision, ServerId, Written,
};
use super::{State, StoreError};

mod upkeep;

pub use upkeep::Upkeep;

/// How often a write is tried whose reservation was taken back.
const MAX_RESERVATIONS: u32 = 3;

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
    reservations: AtomicU64,
    /// Blobs on their way, which go on when nobody waits for them any more.
    puts: TaskTracker,
    chores: Mutex<Chores>,
    chore_added: Notify,
    /// Locked by whoever does chores.
    doing_chores: AsyncMutex<()>,
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

impl Snapshot {
    fn body(&self, token_hash: [u8; 32]) -> StoredSession {
        StoredSession {
            token_hash: Some(token_hash),
            segments: self.progress.segments,
            start_frame: self.progress.start_frame,
            state: (self.state.as_ref()).map(|state| state.header_bytes().to_vec()),
        }
    }

    fn blob(&self) -> Option<(BlobId, Bytes)> {
        let state = self.state.as_ref()?;
        Some((BlobId::of_state(state), state.blob_bytes()))
    }
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

    /// Comparing two hashes of blake3 takes the same time wherever they differ.
    fn has(&self, hash: [u8; 32]) -> bool {
        blake3::Hash::from_bytes(hash) == self.hash()
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

/// What is left to do, in the order in which it came.
#[derive(Debug, Default)]
struct Chores {
    next: u64,
    waiting: BTreeMap<u64, Arc<Chore>>,
}

/// Something that must happen, whether or not the store answers now. Doing it twice does no harm.
#[derive(Debug)]
enum Chore {
    /// Nobody runs the session here any more; its state is kept for a while.
    Release(Arc<Held>),
    /// The session is over.
    Drop(Arc<Held>),
    /// A reservation that was not used, and what may have been put.
    Unreserve(ReservationId, Option<BlobKey>),
    Delete(Vec<BlobKey>),
}

/// A reservation of a blob; given back when it is dropped, unless a write has used it.
#[derive(Debug)]
struct Reservation {
    store: SessionStore,
    id: ReservationId,
    /// Known when the store has answered.
    blob: Option<BlobKey>,
    used: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.used {
            self.store.chore(Chore::Unreserve(self.id, self.blob));
        }
    }
}

/// What is to be written as a record.
struct Draft {
    owner: Option<ServerId>,
    body: Vec<u8>,
    blob: Option<(BlobId, Bytes)>,
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
            reservations: AtomicU64::new(0),
            puts: TaskTracker::new(),
            chores: Mutex::default(),
            chore_added: Notify::new(),
            doing_chores: AsyncMutex::default(),
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
        let snapshot = Snapshot {
            progress: Progress::default(),
            state: state.cloned(),
        };
        let stored = self.begin(session, token, &snapshot, true).await?;
        Ok(self.hold(Held::new(session, token, snapshot, stored)))
    }

    /// Keeps a state as the starting point of a new session, which nobody runs until somebody resumes it.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn hydrate(&self, state: &State) -> Result<(SessionId, ResumeToken), StoreError> {
        let (session, token) = (SessionId::random(), ResumeToken::random());
        let snapshot = Snapshot {
            progress: Progress::default(),
            state: Some(state.clone()),
        };
        self.begin(&session, &token, &snapshot, false).await?;
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
        let before = self.held().get(session).cloned();
        let before = before.filter(|held| token.has(held.token_hash));
        // Until this is done, whoever runs the session on this server writes nothing.
        let mut stored = match &before {
            Some(held) => Some((held, held.stored.lock().await)),
            None => None,
        };
        if let Some((held, stored)) = &mut stored
            && !held.lost.is_cancelled()
        {
            // The client may know of more than is stored yet.
            let owner = Some(self.0.server.clone());
            match self.write_latest(held, stored, owner).await {
                Ok(()) | Err(StoreError::Stale) => {}
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            let written = self.within(self.0.records.read(session)).await?;
            let written = written.ok_or_else(refused)?;
            let body = decode(&written.record.body)?;
            if !body.token_hash.is_some_and(|hash| token.has(hash)) {
                return Err(refused());
            }
            let Some(state) = self.load(session, &body, &written).await? else {
                continue;
            };
            let record = Record {
                owner: Some(self.0.server.clone()),
                ..written.record
            };
            let change = Change {
                session,
                expected: Some(written.revision),
                record: Some(&record),
                server: &self.0.server,
                reservation: None,
            };
            let outcome = match self.within(self.0.records.write(change)).await {
                Ok(outcome) => outcome,
                // Its last owner has just stored a segment or let go.
                Err(StoreError::Stale) => continue,
                Err(error) => return Err(error.into()),
            };
            self.delete(outcome.condemned);
            let snapshot = Snapshot {
                progress: progress(&body),
                state,
            };
            let stored = Stored {
                revision: outcome.revision,
                body,
                blobs: record.blobs,
            };
            let held = Held::new(session, token, snapshot.clone(), stored);
            return Ok((self.hold(held), snapshot));
        }
    }

    /// The last stored state of a session, whoever runs it; none when there is no such session.
    ///
    /// # Errors
    /// When the store does not answer, or what it has is damaged.
    pub async fn snapshot(&self, session: &SessionId) -> Result<Option<Snapshot>, StoreError> {
        loop {
            let Some(written) = self.within(self.0.records.read(session)).await? else {
                return Ok(None);
            };
            let body = decode(&written.record.body)?;
            if let Some(state) = self.load(session, &body, &written).await? {
                let progress = progress(&body);
                return Ok(Some(Snapshot { progress, state }));
            }
        }
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
                reservation: None,
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
        let draft = Draft {
            owner: None,
            body: body.encode(),
            blob: Some((id, blob)),
        };
        self.write(&SessionId::random(), None, &[], &draft).await?;
        Ok(id)
    }

    /// A blob that the store has.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it has not, and when it does not answer.
    pub async fn blob(&self, id: BlobId) -> Result<Bytes, StoreError> {
        match self.within(self.0.records.locate(id)).await? {
            Some(key) => self.within(self.0.blobs.get(key)).await,
            None => Err(StoreError::Missing(id)),
        }
    }

    /// Writes the first record of a session.
    async fn begin(
        &self,
        session: &SessionId,
        token: &ResumeToken,
        snapshot: &Snapshot,
        owned: bool,
    ) -> Result<Stored, StoreError> {
        let body = snapshot.body(*token.hash().as_bytes());
        let draft = Draft {
            owner: owned.then(|| self.0.server.clone()),
            body: body.encode(),
            blob: snapshot.blob(),
        };
        let (revision, blobs) = self.write(session, None, &[], &draft).await?;
        Ok(Stored {
            revision,
            body,
            blobs,
        })
    }

    /// Writes a record. `known`: the blobs of the record that it replaces, which are in the store already.
    async fn write(
        &self,
        session: &SessionId,
        expected: Option<Revision>,
        known: &[BlobRef],
        draft: &Draft,
    ) -> Result<(Revision, Vec<BlobRef>), StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_write(session, expected, known, draft).await {
                // This server was stopped for a while.
                Err(StoreError::Unreserved) if tries < MAX_RESERVATIONS => {}
                done => return done,
            }
        }
    }

    async fn try_write(
        &self,
        session: &SessionId,
        expected: Option<Revision>,
        known: &[BlobRef],
        draft: &Draft,
    ) -> Result<(Revision, Vec<BlobRef>), StoreError> {
        let mut reservation = None;
        let mut blobs = Vec::new();
        if let Some((id, bytes)) = &draft.blob {
            let key = match known.iter().find(|blob| blob.key.id == *id) {
                Some(blob) => blob.key,
                None => {
                    let (reserved, key) = self.reserve(*id).await?;
                    reservation = Some(self.put(reserved, key, bytes.clone()).await?);
                    key
                }
            };
            let bytes = bytes.len() as u64;
            blobs.push(BlobRef { key, bytes });
        }
        let record = Record {
            owner: draft.owner.clone(),
            blobs: blobs.clone(),
            body: draft.body.clone(),
        };
        let change = Change {
            session,
            expected,
            record: Some(&record),
            server: &self.0.server,
            reservation: reservation.as_ref().map(|reservation| reservation.id),
        };
        let outcome = self.within(self.0.records.write(change)).await?;
        if let Some(reservation) = &mut reservation {
            reservation.used = true;
        }
        self.delete(outcome.condemned);
        Ok((outcome.revision, blobs))
    }

    async fn reserve(&self, blob: BlobId) -> Result<(Reservation, BlobKey), StoreError> {
        let id = ReservationId(self.0.reservations.fetch_add(1, Ordering::Relaxed));
        let mut reservation = Reservation {
            store: self.clone(),
            id,
            blob: None,
            used: false,
        };
        let blobs = [blob];
        let reserving = self.0.records.reserve(&self.0.server, id, &blobs);
        let keys = self.within(reserving).await?;
        let key = keys.first().copied();
        let key = key.ok_or_else(|| StoreError::Corrupt("nothing was reserved".to_owned()))?;
        reservation.blob = Some(key);
        Ok((reservation, key))
    }

    /// Puts a blob that is reserved. The reservation outlives whoever waits here: what is still being put when it ends
    /// would be deleted before it is there.
    async fn put(
        &self,
        reservation: Reservation,
        key: BlobKey,
        bytes: Bytes,
    ) -> Result<Reservation, StoreError> {
        let (done, is_done) = oneshot::channel();
        let blobs = self.0.blobs.clone();
        let putting = async move {
            let outcome = blobs.put(key, bytes).await;
            // When nobody waits any more, this drops the reservation.
            let _ = done.send((reservation, outcome));
        };
        self.0.puts.spawn(putting.in_current_span());
        let waited = async { is_done.await.map_err(StoreError::unavailable) };
        let (reservation, outcome) = self.within(waited).await?;
        outcome.map(|()| reservation)
    }

    /// Writes what the session was last to be stored as, with that owner, as far as the store does not have it.
    async fn write_latest(
        &self,
        held: &Arc<Held>,
        stored: &mut Stored,
        owner: Option<ServerId>,
    ) -> Result<(), StoreError> {
        let latest = held.latest();
        let body = latest.body(held.token_hash);
        if body == stored.body && owner.is_some() {
            return Ok(());
        }
        let draft = Draft {
            owner,
            body: body.encode(),
            blob: latest.blob(),
        };
        loop {
            let (session, expected) = (&held.session, Some(stored.revision));
            match self.write(session, expected, &stored.blobs, &draft).await {
                Ok((revision, blobs)) => {
                    *stored = Stored {
                        revision,
                        body,
                        blobs,
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
        match written {
            Some(written)
                if self.holds(held) && written.record.owner.as_ref() == Some(&self.0.server) =>
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

    /// The state that a record names, of a session that runs here the one that is at hand; none when the record is not
    /// the session's any more: read it again.
    async fn load(
        &self,
        session: &SessionId,
        body: &StoredSession,
        written: &Written,
    ) -> Result<Option<Option<State>>, StoreError> {
        let Some(header) = &body.state else {
            return Ok(Some(None));
        };
        let held = self.held().get(session).cloned();
        if let Some(held) = held
            && let Some(state) = held.latest().state
            && state.header_bytes() == header
        {
            return Ok(Some(Some(state)));
        }
        let corrupt = |what: String| StoreError::Corrupt(format!("session {session}: {what}"));
        let Some(blob) = written.record.blobs.first() else {
            return Err(corrupt("it has a state and no blob".to_owned()));
        };
        let bytes = match self.within(self.0.blobs.get(blob.key)).await {
            Err(StoreError::Missing(id)) => {
                let now = self.within(self.0.records.read(session)).await?;
                return match now {
                    Some(now) if now.revision == written.revision => Err(StoreError::Missing(id)),
                    _ => Ok(None),
                };
            }
            got => got?,
        };
        let header = header.clone();
        let name = blob.key.id;
        let state =
            tokio::task::spawn_blocking(move || State::from_stored(header, name, &bytes)).await;
        match state {
            Ok(Ok(state)) => Ok(Some(Some(state))),
            Ok(Err(error)) => Err(corrupt(error.to_string())),
            Err(panic) => Err(corrupt(panic.to_string())),
        }
    }

    /// Whether this server still runs the session.
    fn holds(&self, held: &Arc<Held>) -> bool {
        is_current(&self.held(), held)
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
        if is_current(&all, held) {
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

    fn delete(&self, condemned: Vec<BlobKey>) {
        if !condemned.is_empty() {
            self.chore(Chore::Delete(condemned));
        }
    }

    fn chore(&self, chore: Chore) {
        let mut chores = self.chores();
        let number = chores.next;
        chores.next += 1;
        chores.waiting.insert(number, Arc::new(chore));
        drop(chores);
        self.0.chore_added.notify_one();
    }

    fn chores(&self) -> MutexGuard<'_, Chores> {
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
    fn new(
        session: &SessionId,
        token: &ResumeToken,
        latest: Snapshot,
        stored: Stored,
    ) -> Arc<Self> {
        Arc::new(Self {
            session: session.clone(),
            token_hash: *token.hash().as_bytes(),
            lost: CancellationToken::new(),
            latest: Mutex::new(latest),
            stored: AsyncMutex::new(stored),
        })
    }

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
    /// # Errors
    /// [`StoreError::Stale`] when the session was resumed elsewhere or dropped; any other may pass.
    pub async fn store(self, progress: Progress, state: State) -> Result<(), StoreError> {
        let Self { held, store } = self;
        *held.latest.lock().expect("no holder of this lock panics") = Snapshot {
            progress,
            state: Some(state),
        };
        let mut stored = held.stored.lock().await;
        if held.lost.is_cancelled() {
            return Err(StoreError::Stale);
        }
        // The session may have ended and been released while its last state was on its way.
        let owner = store.holds(&held).then(|| store.0.server.clone());
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
        let chore = Chore::Drop(self.held.clone());
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

fn is_current(all: &HashMap<SessionId, Arc<Held>>, held: &Arc<Held>) -> bool {
    (all.get(&held.session)).is_some_and(|current| Arc::ptr_eq(current, held))
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
