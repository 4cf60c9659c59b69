//! Records in a file: they outlive this process, and no other process uses them meanwhile.
//!
//! The records are in memory too, and the rules are those of `ledger`; the file, a redb database, only keeps what has
//! changed. One thread owns both. It executes whatever has queued up as one transaction, so that many sessions share one
//! `fsync`, and answers after the commit: what was answered survives the end of the process at any instant. Beats are
//! not kept, for of the servers that wrote to the file none lives but this one.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use fastvideo_proto::ids::SessionId;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableHandle,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::ledger::Ledger;
use super::{
    BlobId, BlobKey, BlobRef, Change, Outcome, Record, Records, ReservationId, Revision, ServerId,
    Survey, Written,
};
use crate::store::StoreError;

/// The file's name in the folder that the operator names.
pub const FILE_NAME: &str = "sessions.redb";
/// Of the database; the records are in memory anyway.
const CACHE_BYTES: usize = 16 << 20;
/// A file that is smaller is not worth compacting.
const COMPACT_BYTES: u64 = 4 << 20;
/// Steps that may wait; more than that, and their callers are told that the file is too slow.
const QUEUE: usize = 4096;
/// Steps that share a transaction.
const BATCH: usize = 512;

const FORMAT: &[u8] = b"fastvideo-supervisor sessions 1";

type Rows = TableDefinition<'static, &'static str, &'static [u8]>;
/// The form of this file, the store's name, the last number given out.
const META: Rows = TableDefinition::new("meta");
/// All of a record but its body, which is long.
const HEADS: Rows = TableDefinition::new("heads");
const BODIES: Rows = TableDefinition::new("bodies");
const BLOBS: Rows = TableDefinition::new("blobs");
const CONDEMNED: Rows = TableDefinition::new("condemned");
const RESERVATIONS: Rows = TableDefinition::new("reservations");

/// Why a file of records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("{} is not a file of sessions, or of another version", .0.display())]
    Foreign(PathBuf),
    #[error("{} is damaged: {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("{} cannot be used", path.display())]
    Io { path: PathBuf, source: io::Error },
}

#[derive(Debug)]
pub struct FileRecords {
    name: String,
    steps: Option<SyncSender<Step>>,
    thread: Option<JoinHandle<()>>,
}

/// Does something with the ledger, and returns what is to be done when it has been committed or has not.
type Step = Box<dyn FnOnce(&mut Ledger) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), &Failure>) + Send>;

/// Why nothing of a transaction was kept.
type Failure = redb::Error;

impl FileRecords {
    /// Opens the file in that folder, or makes a new one. Takes a while when the file is large: it is checked.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join(FILE_NAME);
        let (steps, queue) = sync_channel(QUEUE);
        let (opened, is_open) = sync_channel(1);
        let file = path.clone();
        let thread = thread::Builder::new()
            .name("sessions-file".to_owned())
            .spawn(move || match Keeper::open(file) {
                Ok((keeper, name)) => {
                    let _ = opened.send(Ok(name));
                    keeper.run(&queue);
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            });
        let thread = thread.map_err(|source| OpenError::Io {
            path: path.clone(),
            source,
        })?;
        // The database panics at some kinds of damage.
        let panicked = |_| OpenError::Damaged {
            path,
            problem: "its contents make no sense".to_owned(),
        };
        let name = is_open.recv().map_err(panicked)??;
        Ok(Self {
            name,
            steps: Some(steps),
            thread: Some(thread),
        })
    }

    /// Executes one step and waits until it is committed.
    async fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce(&mut Ledger) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, answer) = oneshot::channel();
        let step: Step = Box::new(move |ledger| {
            let done = step(ledger);
            Box::new(move |committed| {
                let _ = sender.send(match committed {
                    Ok(()) => done,
                    Err(failure) => Err(StoreError::unavailable(failure.to_string())),
                });
            })
        });
        let steps = self.steps.as_ref().expect("only dropping takes it");
        steps.try_send(step).map_err(|error| {
            StoreError::unavailable(match error {
                TrySendError::Full(_) => "too many steps wait for the file of sessions",
                TrySendError::Disconnected(_) => "the file of sessions is not open any more",
            })
        })?;
        answer.await.map_err(StoreError::unavailable)?
    }
}

/// Waits until the file is closed: the next one who opens it must not find it in use.
impl Drop for FileRecords {
    fn drop(&mut self) {
        self.steps = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the file of sessions has panicked");
        }
    }
}

#[async_trait]
impl Records for FileRecords {
    async fn name(&self) -> Result<String, StoreError> {
        Ok(self.name.clone())
    }

    async fn read(&self, session: &SessionId) -> Result<Option<Written>, StoreError> {
        let session = session.clone();
        self.step(move |ledger| Ok(ledger.read(&session))).await
    }

    async fn write(&self, change: Change<'_>) -> Result<Outcome, StoreError> {
        let Change {
            expected,
            reservation,
            ..
        } = change;
        let (session, server) = (change.session.clone(), change.server.clone());
        let record = change.record.cloned();
        self.step(move |ledger| {
            ledger.write(Change {
                session: &session,
                expected,
                record: record.as_ref(),
                server: &server,
                reservation,
            })
        })
        .await
    }

    async fn reserve(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobId],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let (server, blobs) = (server.clone(), blobs.to_vec());
        self.step(move |ledger| Ok(ledger.reserve(&server, reservation, &blobs)))
            .await
    }

    async fn release(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobKey],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let (server, blobs) = (server.clone(), blobs.to_vec());
        self.step(move |ledger| Ok(ledger.release(&server, reservation, &blobs)))
            .await
    }

    async fn locate(&self, blob: BlobId) -> Result<Option<BlobKey>, StoreError> {
        self.step(move |ledger| Ok(ledger.locate(blob))).await
    }

    async fn forget(&self, blobs: &[BlobKey]) -> Result<(), StoreError> {
        let blobs = blobs.to_vec();
        self.step(move |ledger| {
            ledger.forget(&blobs);
            Ok(())
        })
        .await
    }

    async fn condemn_unknown(&self, blobs: &[BlobKey]) -> Result<Vec<BlobKey>, StoreError> {
        let blobs = blobs.to_vec();
        self.step(move |ledger| Ok(ledger.condemn_unknown(&blobs)))
            .await
    }

    async fn beat(&self, server: &ServerId) -> Result<(), StoreError> {
        let server = server.clone();
        self.step(move |ledger| {
            ledger.beat(&server);
            Ok(())
        })
        .await
    }

    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobKey>, StoreError> {
        let server = server.clone();
        self.step(move |ledger| Ok(ledger.retire(&server))).await
    }

    async fn stale(&self, held: &[(SessionId, Revision)]) -> Result<Vec<SessionId>, StoreError> {
        let held = held.to_vec();
        self.step(move |ledger| Ok(ledger.stale(&held))).await
    }

    async fn survey(&self) -> Result<Survey, StoreError> {
        self.step(|ledger| Ok(ledger.survey())).await
    }
}

/// What the thread owns.
struct Keeper {
    path: PathBuf,
    /// None after a failure: then the ledger is not what the file has.
    open: Option<(Database, Ledger)>,
}

impl Keeper {
    fn open(path: PathBuf) -> Result<(Self, String), OpenError> {
        let mut database = open_database(&path)?;
        let long = std::fs::metadata(&path).is_ok_and(|file| file.len() > COMPACT_BYTES);
        // It is only an improvement, and a file that is damaged is found out below.
        if long && let Err(error) = database.compact() {
            tracing::warn!(%error, "the file of sessions stays as large as it is");
        }
        let name = begin(&database).map_err(|error| wrong(&path, error.into()))?;
        let name = name.ok_or_else(|| OpenError::Foreign(path.clone()))?;
        let ledger = load(&database).map_err(|error| error.at(&path))?;
        let open = Some((database, ledger));
        Ok((Self { path, open }, name))
    }

    /// Executes steps until nobody can send any more.
    fn run(mut self, queue: &Receiver<Step>) {
        while let Ok(first) = queue.recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH {
                match queue.try_recv() {
                    Ok(step) => batch.push(step),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            self.execute(batch);
        }
    }

    fn execute(&mut self, batch: Vec<Step>) {
        if self.open.is_none() {
            self.open_again();
        }
        let Some((database, ledger)) = &mut self.open else {
            // Dropping a step is an answer too.
            return;
        };
        let answers: Vec<Answer> = batch.into_iter().map(|step| step(ledger)).collect();
        let committed = keep(database, ledger);
        for answer in answers {
            answer(committed.as_ref().copied());
        }
        if let Err(error) = committed {
            tracing::error!(%error, file = %self.path.display(), "nothing can be written to the file of sessions");
            self.open = None;
        }
    }

    /// After a failure the database wants to be opened anew, and the ledger has what the file has not.
    fn open_again(&mut self) {
        let open = || {
            let database = open_database(&self.path)?;
            let ledger = load(&database).map_err(|error| error.at(&self.path))?;
            Ok::<_, OpenError>((database, ledger))
        };
        match open() {
            Ok(open) => self.open = Some(open),
            Err(error) => tracing::error!(%error, "the file of sessions cannot be opened again"),
        }
    }
}

fn open_database(path: &Path) -> Result<Database, OpenError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    let mut database = builder.create(path).map_err(|error| wrong(path, error))?;
    match database.check_integrity() {
        Ok(true) => {}
        Ok(false) => tracing::warn!(file = %path.display(), "the file of sessions was repaired"),
        Err(error) => return Err(wrong(path, error)),
    }
    Ok(database)
}

fn wrong(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_path_buf();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path),
        DatabaseError::UpgradeRequired(_) => OpenError::Foreign(path),
        DatabaseError::Storage(redb::StorageError::Io(source)) => match source.kind() {
            // So the database says that the file does not begin like one.
            io::ErrorKind::InvalidData => OpenError::Foreign(path),
            _ => OpenError::Io { path, source },
        },
        error => OpenError::Damaged {
            path,
            problem: error.to_string(),
        },
    }
}

/// Makes the tables of a new file. Returns the store's name, none when the file is somebody else's.
fn begin(database: &Database) -> Result<Option<String>, redb::StorageError> {
    let run = || -> Result<Option<String>, redb::Error> {
        let transaction = database.begin_write()?;
        let is_new = transaction.list_tables()?.next().is_none();
        let ours = (transaction.list_tables()?).any(|table| table.name() == META.name());
        if !is_new && !ours {
            return Ok(None);
        }
        let name = {
            let mut meta = transaction.open_table(META)?;
            if is_new {
                let name = format!("file-{:032x}", rand::random::<u128>());
                meta.insert("format", FORMAT)?;
                meta.insert("name", name.as_bytes())?;
                meta.insert("sequence", &0_u64.to_le_bytes()[..])?;
            }
            let is_known = (meta.get("format")?).is_some_and(|format| format.value() == FORMAT);
            let name = meta.get("name")?.map(|name| name.value().to_vec());
            name.filter(|_| is_known)
                .and_then(|name| String::from_utf8(name).ok())
        };
        for table in [HEADS, BODIES, BLOBS, CONDEMNED, RESERVATIONS] {
            transaction.open_table(table)?;
        }
        if name.is_some() {
            transaction.commit()?;
        }
        Ok(name)
    };
    match run() {
        Ok(name) => Ok(name),
        Err(redb::Error::Io(error)) => Err(redb::StorageError::Io(error)),
        Err(error) => Err(redb::StorageError::Corrupted(error.to_string())),
    }
}

/// Why the tables cannot be read.
enum LoadError {
    Database(redb::Error),
    Row(String),
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

impl LoadError {
    fn at(self, path: &Path) -> OpenError {
        let path = path.to_path_buf();
        match self {
            Self::Database(redb::Error::Io(source)) => OpenError::Io { path, source },
            Self::Database(error) => OpenError::Damaged {
                path,
                problem: error.to_string(),
            },
            Self::Row(problem) => OpenError::Damaged { path, problem },
        }
    }
}

/// All of a record but its body.
#[derive(Serialize, Deserialize)]
struct Head {
    revision: Revision,
    owner: Option<ServerId>,
    blobs: Vec<BlobRef>,
}

fn load(database: &Database) -> Result<Ledger, LoadError> {
    let transaction = database.begin_read()?;
    let rows = |table: Rows| -> Result<HashMap<String, Vec<u8>>, LoadError> {
        let table = transaction.open_table(table)?;
        let mut rows = HashMap::new();
        for row in table.iter()? {
            let (key, value) = row?;
            rows.insert(key.value().to_owned(), value.value().to_vec());
        }
        Ok(rows)
    };
    let mut bodies = rows(BODIES)?;
    let mut records = HashMap::new();
    for (id, head) in rows(HEADS)? {
        let Head {
            revision,
            owner,
            blobs,
        } = json(HEADS, &id, &head)?;
        let body = bodies.remove(&id).ok_or_else(|| bad_row(BODIES, &id))?;
        let session = SessionId::parse(&id).ok_or_else(|| bad_row(HEADS, &id))?;
        let record = Record { owner, blobs, body };
        records.insert(session, Written { revision, record });
    }
    let blobs = keyed(BLOBS, rows(BLOBS)?, BlobId::parse)?;
    let condemned = keyed(CONDEMNED, rows(CONDEMNED)?, BlobKey::parse)?;
    let reservations = keyed(RESERVATIONS, rows(RESERVATIONS)?, parse_reservation)?;
    let meta = rows(META)?;
    let sequence = meta
        .get("sequence")
        .and_then(|n| n.as_slice().try_into().ok());
    let sequence = sequence.ok_or_else(|| bad_row(META, "sequence"))?;
    let sequence = u64::from_le_bytes(sequence);
    Ok(Ledger::kept(
        records,
        blobs,
        condemned,
        reservations,
        sequence,
    ))
}

fn keyed<K: Eq + Hash, V: for<'de> Deserialize<'de>>(
    table: Rows,
    rows: HashMap<String, Vec<u8>>,
    parse: impl Fn(&str) -> Option<K>,
) -> Result<HashMap<K, V>, LoadError> {
    let rows = rows.into_iter().map(|(key, value)| {
        let parsed = parse(&key).ok_or_else(|| bad_row(table, &key))?;
        Ok((parsed, json(table, &key, &value)?))
    });
    rows.collect()
}

fn json<T: for<'de> Deserialize<'de>>(
    table: Rows,
    key: &str,
    value: &[u8],
) -> Result<T, LoadError> {
    serde_json::from_slice(value).map_err(|_| bad_row(table, key))
}

fn bad_row(table: Rows, key: impl Display) -> LoadError {
    LoadError::Row(format!(
        "row {key} of table {} makes no sense",
        table.name()
    ))
}

fn reservation_key((server, id): &(ServerId, ReservationId)) -> String {
    format!("{}/{}", server.as_str(), id.0)
}

fn parse_reservation(key: &str) -> Option<(ServerId, ReservationId)> {
    let (server, id) = key.split_once('/')?;
    Some((
        ServerId::from_stored(server.to_owned()),
        ReservationId(id.parse().ok()?),
    ))
}

/// Writes what has changed, as one transaction.
fn keep(database: &Database, ledger: &mut Ledger) -> Result<(), Failure> {
    if !ledger.is_changed() {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    {
        let mut heads = transaction.open_table(HEADS)?;
        let mut bodies = transaction.open_table(BODIES)?;
        for (session, written) in ledger.records.take_changes() {
            let Some(Written { revision, record }) = written else {
                heads.remove(session.as_str())?;
                bodies.remove(session.as_str())?;
                continue;
            };
            let head = Head {
                revision: *revision,
                owner: record.owner.clone(),
                blobs: record.blobs.clone(),
            };
            heads.insert(session.as_str(), text(&head).as_slice())?;
            bodies.insert(session.as_str(), record.body.as_slice())?;
        }
    }
    keep_table(&transaction, BLOBS, ledger.blobs.take_changes(), |id| {
        id.to_string()
    })?;
    let condemned = ledger.condemned.take_changes();
    keep_table(&transaction, CONDEMNED, condemned, ToString::to_string)?;
    let reservations = ledger.reservations.take_changes();
    keep_table(&transaction, RESERVATIONS, reservations, reservation_key)?;
    let sequence = ledger.sequence.to_le_bytes();
    transaction
        .open_table(META)?
        .insert("sequence", &sequence[..])?;
    transaction.commit()?;
    Ok(())
}

fn keep_table<'a, K, V: Serialize + 'a>(
    transaction: &redb::WriteTransaction,
    table: Rows,
    changes: impl Iterator<Item = (K, Option<&'a V>)>,
    key: impl Fn(&K) -> String,
) -> Result<(), Failure> {
    let mut table = transaction.open_table(table)?;
    for (row, value) in changes {
        match value {
            Some(value) => table.insert(key(&row).as_str(), text(value).as_slice())?,
            None => table.remove(key(&row).as_str())?,
        };
    }
    Ok(())
}

fn text(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain values written to memory cannot fail")
}
