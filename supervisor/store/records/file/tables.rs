//! The tables of the file: reads a ledger from them, and writes its changes to them.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::io;
use std::path::{Path, PathBuf};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableHandle,
};
use serde::{Deserialize, Serialize};

use super::super::ledger::Ledger;
use super::super::{BlobRef, Record, StoredRecord};
use crate::causes::with_causes;
use crate::store::ids::{BlobId, BlobKey, RecordKey, ReservationId, Revision, ServerId};

/// Size of the database's cache. It is small, since the records are in memory anyway.
const CACHE_BYTES: usize = 16 << 20;
/// Only a file that is larger than this is compacted.
const COMPACT_BYTES: u64 = 4 << 20;
const FORMAT: &[u8] = b"fastvideo-supervisor sessions 1";

type Rows = TableDefinition<'static, &'static str, &'static [u8]>;
/// The format of this file, the store's name, the last number that was given out.
const META: Rows = TableDefinition::new("meta");
/// Everything in a record except its body, which is long.
const HEADS: Rows = TableDefinition::new("heads");
const BODIES: Rows = TableDefinition::new("bodies");
const BLOBS: Rows = TableDefinition::new("blobs");
const CONDEMNED: Rows = TableDefinition::new("condemned");
const RESERVATIONS: Rows = TableDefinition::new("reservations");

/// Why a file of records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileOpenError {
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("{} is not a file of sessions, or of another version", .0.display())]
    Foreign(PathBuf),
    #[error("{} is damaged: {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("{} cannot be used: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Opens the database and checks it.
pub(super) fn open_database(path: &Path) -> Result<Database, FileOpenError> {
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

/// Adds the file's path to an error.
pub(super) fn wrong(path: &Path, error: DatabaseError) -> FileOpenError {
    let path = path.to_path_buf();
    match error {
        DatabaseError::DatabaseAlreadyOpen => FileOpenError::InUse(path),
        DatabaseError::UpgradeRequired(_) => FileOpenError::Foreign(path),
        DatabaseError::Storage(redb::StorageError::Io(source)) => match source.kind() {
            // The database reports this for a file that does not begin like a database.
            io::ErrorKind::InvalidData => FileOpenError::Foreign(path),
            _ => FileOpenError::Io { path, source },
        },
        error => FileOpenError::Damaged {
            path,
            problem: with_causes(&error),
        },
    }
}

/// Compacts a long file. A failure does no harm; damage is found when the file is read.
pub(super) fn compact(database: &mut Database, path: &Path) {
    let is_long = std::fs::metadata(path).is_ok_and(|file| file.len() > COMPACT_BYTES);
    if is_long && let Err(error) = database.compact() {
        let error = with_causes(&error);
        tracing::warn!(error, "the file of sessions stays as large as it is");
    }
}

/// Creates the tables of a new file. Returns the store's name, or `None` when the file belongs to another program.
pub(super) fn begin(database: &Database) -> Result<Option<String>, redb::StorageError> {
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
        Err(error) => Err(redb::StorageError::Corrupted(with_causes(&error))),
    }
}

/// Why the tables cannot be read.
pub(super) enum LoadError {
    Database(redb::Error),
    Row(String),
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

impl LoadError {
    pub(super) fn at(self, path: &Path) -> FileOpenError {
        let path = path.to_path_buf();
        match self {
            Self::Database(redb::Error::Io(source)) => FileOpenError::Io { path, source },
            Self::Database(error) => FileOpenError::Damaged {
                path,
                problem: with_causes(&error),
            },
            Self::Row(problem) => FileOpenError::Damaged { path, problem },
        }
    }
}

/// Everything in a record except its body.
#[derive(Serialize, Deserialize)]
struct RecordHead {
    revision: Revision,
    owner: Option<ServerId>,
    blobs: Vec<BlobRef>,
}

/// Reads the whole ledger.
pub(super) fn load(database: &Database) -> Result<Ledger, LoadError> {
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
    for (row, head) in rows(HEADS)? {
        let RecordHead {
            revision,
            owner,
            blobs,
        } = json(HEADS, &row, &head)?;
        let body = bodies.remove(&row).ok_or_else(|| bad_row(BODIES, &row))?;
        let key = RecordKey::parse(&row).ok_or_else(|| bad_row(HEADS, &row))?;
        let record = Record { owner, blobs, body };
        records.insert(key, StoredRecord { revision, record });
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

/// Writes the changes of the ledger as one transaction.
pub(super) fn keep(database: &Database, ledger: &mut Ledger) -> Result<(), redb::Error> {
    if !ledger.is_changed() {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    {
        let mut heads = transaction.open_table(HEADS)?;
        let mut bodies = transaction.open_table(BODIES)?;
        for (key, stored) in ledger.records.take_changes() {
            let row = key.to_string();
            let Some(StoredRecord { revision, record }) = stored else {
                heads.remove(row.as_str())?;
                bodies.remove(row.as_str())?;
                continue;
            };
            let head = RecordHead {
                revision: *revision,
                owner: record.owner.clone(),
                blobs: record.blobs.clone(),
            };
            heads.insert(row.as_str(), text(&head).as_slice())?;
            bodies.insert(row.as_str(), record.body.as_slice())?;
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
) -> Result<(), redb::Error> {
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
