//! Records in Redis or Valkey, shared by several servers.
//!
//! Every operation is one script, so it is atomic and takes one round trip. All keys of a store begin with the same
//! hash tag, so that a cluster keeps them on one node. Redis's own expiry is not used: its clock may jump, and the
//! reference counts of blobs must change when a record expires; `Upkeep` finds what has expired. Redis must not evict
//! keys either (`maxmemory-policy noeviction`), and it should keep them on disk (`appendonly yes`): blobs whose records
//! Redis has lost are orphaned.
//!
//! | Key | Holds |
//! | --- | --- |
//! | `…name` | the store's name |
//! | `…sequence` | the last revision or edition that was given out |
//! | `…heads` | for each record: revision, owner or `-`, then each blob and its size |
//! | `…bodies` | for each record: its body |
//! | `…editions` | for each blob that is counted: its edition |
//! | `…counts` | for each blob that is counted, with its edition: its reference count |
//! | `…condemned` | the tombstones: blobs to be deleted |
//! | `…beats` | for each server that lives or has reservations: its beat |
//! | `…reserved:SERVER` | for each reservation of that server: its blobs |

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, FromRedisValue, RedisError, Script, ScriptInvocation};

use super::{BlobRef, Record, RecordWrite, Records, StoredRecord, Survey, WriteOutcome};
use crate::store::error::{DataLoss, StoreError};
use crate::store::ids::{BlobId, BlobKey, RecordKey, ReservationId, Revision, ServerId};

mod address;
mod scripts;

use scripts::{
    BEAT, CONDEMN_UNKNOWN, FORGET, LOCATE, NAME, READ, RELEASE, RESERVE, RETIRE, STALE, SURVEY,
    WRITE,
};

pub use address::{RedisAddress, RedisAddressError};

/// The longest pause between two attempts to connect again.
const MAX_RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often connecting is tried before the waiting callers get an error; the next caller begins anew.
const RETRIES: usize = 3;

/// Records in a Redis, which several servers may use.
#[derive(Debug)]
pub struct RedisRecords {
    address: RedisAddress,
    /// Reconnects by itself; a clone shares the connection.
    connection: Connection,
    name: String,
}

#[derive(Clone)]
struct Connection(ConnectionManager);

// Not derived, since the manager prints the password.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl RedisRecords {
    /// Connects to the server. `timeout` limits connecting and each answer.
    ///
    /// # Errors
    /// Returns an error when there is no Redis that answers, or it refuses the user or the scripts.
    pub async fn connect(address: &RedisAddress, timeout: Duration) -> Result<Self, StoreError> {
        // The build may link two providers of cryptography, and then rustls chooses neither by itself. An error means
        // that one is chosen already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // A peer that has vanished acknowledges nothing within the timeout; then a new connection is made.
        let tcp = (address.connection.tcp_settings().clone()).set_user_timeout(timeout);
        let info = address.connection.clone().set_tcp_settings(tcp);
        let client = Client::open(info).map_err(unavailable)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_max_delay(MAX_RETRY_PAUSE)
            .set_number_of_retries(RETRIES);
        let connection = ConnectionManager::new_with_config(client, config);
        let connection = connection.await.map_err(unavailable)?;
        let mut records = Self {
            address: address.clone(),
            connection: Connection(connection),
            name: String::new(),
        };
        let chosen = format!("redis-{:032x}", rand::random::<u128>());
        let mut call = NAME.key(records.key("name"));
        call.arg(chosen);
        records.name = records.run(call).await?;
        Ok(records)
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.address.prefix)
    }

    fn reserved(&self, server: &ServerId) -> String {
        self.key(&format!("reserved:{}", server.as_str()))
    }

    /// Begins a call of a script that counts references to blobs, with the keys that all of these scripts take first.
    fn counting<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        for name in ["sequence", "editions", "counts", "condemned"] {
            call.key(self.key(name));
        }
        call
    }

    async fn run<T: FromRedisValue>(&self, call: ScriptInvocation<'_>) -> Result<T, StoreError> {
        let mut connection = self.connection.0.clone();
        call.invoke_async(&mut connection)
            .await
            .map_err(unavailable)
    }
}

#[async_trait]
impl Records for RedisRecords {
    async fn name(&self) -> Result<String, StoreError> {
        Ok(self.name.clone())
    }

    async fn read(&self, key: &RecordKey) -> Result<Option<StoredRecord>, StoreError> {
        let mut call = READ.prepare_invoke();
        call.key(self.key("heads")).key(self.key("bodies"));
        call.arg(key.to_string());
        let (head, body): (Option<String>, Option<Vec<u8>>) = self.run(call).await?;
        let (Some(head), Some(body)) = (head, body) else {
            return Ok(None);
        };
        let RecordHead {
            revision,
            owner,
            blobs,
        } = RecordHead::parse(&head).ok_or_else(|| corrupt("head", &head))?;
        let record = Record { owner, blobs, body };
        Ok(Some(StoredRecord { revision, record }))
    }

    async fn write(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        let mut call = self.counting(&WRITE);
        call.key(self.key("heads")).key(self.key("bodies"));
        call.key(self.reserved(write.server));
        call.arg(write.key.to_string());
        call.arg(write.expected.map_or_else(String::new, |r| r.0.to_string()));
        call.arg(
            write
                .reservation
                .map_or_else(String::new, |r| r.0.to_string()),
        );
        match write.record {
            None => {
                call.arg("remove");
            }
            Some(record) => {
                let owner = record.owner.as_ref().map_or("-", ServerId::as_str);
                call.arg("put").arg(record.body.as_slice()).arg(owner);
                for blob in &record.blobs {
                    call.arg(format!("{}:{}", blob.key, blob.bytes));
                }
            }
        }
        let reply: Vec<String> = self.run(call).await?;
        let reply: Vec<&str> = reply.iter().map(String::as_str).collect();
        match reply.as_slice() {
            ["stale"] => Err(StoreError::Stale),
            ["unreserved"] => Err(StoreError::Unreserved),
            ["written", revision, condemned @ ..] => Ok(WriteOutcome {
                revision: Revision(number(revision)?),
                condemned: keys(condemned)?,
            }),
            other => Err(corrupt("reply", other)),
        }
    }

    async fn reserve(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobId],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let mut call = self.counting(&RESERVE);
        call.key(self.key("beats")).key(self.reserved(server));
        call.arg(server.as_str()).arg(reservation.0);
        for blob in blobs {
            call.arg(blob.to_string());
        }
        keys(&self.run::<Vec<String>>(call).await?)
    }

    async fn release(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobKey],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let mut call = self.counting(&RELEASE);
        call.key(self.reserved(server)).arg(reservation.0);
        for blob in blobs {
            call.arg(blob.to_string());
        }
        let mut released = keys(&self.run::<Vec<String>>(call).await?)?;
        released.sort_unstable();
        released.dedup();
        Ok(released)
    }

    async fn locate(&self, blob: BlobId) -> Result<Option<BlobKey>, StoreError> {
        let mut call = LOCATE.prepare_invoke();
        call.key(self.key("editions")).arg(blob.to_string());
        let edition: Option<u64> = self.run(call).await?;
        Ok(edition.map(|edition| BlobKey { id: blob, edition }))
    }

    async fn forget(&self, blobs: &[BlobKey]) -> Result<(), StoreError> {
        let mut call = FORGET.prepare_invoke();
        call.key(self.key("condemned"));
        for blob in blobs {
            call.arg(blob.to_string());
        }
        self.run(call).await
    }

    async fn condemn_unknown(&self, blobs: &[BlobKey]) -> Result<Vec<BlobKey>, StoreError> {
        let mut call = self.counting(&CONDEMN_UNKNOWN);
        for blob in blobs {
            call.arg(blob.to_string());
        }
        keys(&self.run::<Vec<String>>(call).await?)
    }

    async fn beat(&self, server: &ServerId) -> Result<(), StoreError> {
        let mut call = BEAT.prepare_invoke();
        call.key(self.key("beats")).arg(server.as_str());
        self.run(call).await
    }

    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobKey>, StoreError> {
        let mut call = self.counting(&RETIRE);
        call.key(self.key("beats")).key(self.reserved(server));
        call.arg(server.as_str());
        keys(&self.run::<Vec<String>>(call).await?)
    }

    async fn stale(&self, known: &[(RecordKey, Revision)]) -> Result<Vec<RecordKey>, StoreError> {
        let mut call = STALE.prepare_invoke();
        call.key(self.key("heads"));
        for (key, revision) in known {
            call.arg(key.to_string()).arg(revision.0);
        }
        let stale: Vec<String> = self.run(call).await?;
        stale.iter().map(|id| record_key(id)).collect()
    }

    async fn survey(&self) -> Result<Survey, StoreError> {
        let mut call = SURVEY.prepare_invoke();
        for name in ["heads", "beats", "condemned", "counts"] {
            call.key(self.key(name));
        }
        type Reply = (
            HashMap<String, String>,
            HashMap<String, u64>,
            Vec<String>,
            usize,
        );
        let (heads, beats, condemned, blobs): Reply = self.run(call).await?;
        let records = heads.iter().map(|(id, head)| {
            let head = RecordHead::parse(head).ok_or_else(|| corrupt("head", head))?;
            Ok((record_key(id)?, head.revision, head.owner))
        });
        let servers = beats.into_iter();
        Ok(Survey {
            records: records.collect::<Result<_, StoreError>>()?,
            servers: servers
                .map(|(id, beat)| (ServerId::from_stored(id), beat))
                .collect(),
            condemned: keys(&condemned)?,
            blobs,
        })
    }
}

/// Everything in a record except its body.
struct RecordHead {
    revision: Revision,
    owner: Option<ServerId>,
    blobs: Vec<BlobRef>,
}

impl RecordHead {
    /// Parses what the script `WRITE` has written.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let revision = Revision(words.next()?.parse().ok()?);
        let owner = match words.next()? {
            "-" => None,
            server => Some(ServerId::from_stored(server.to_owned())),
        };
        let blob = |word: &str| {
            let (key, bytes) = word.split_once(':')?;
            Some(BlobRef {
                key: BlobKey::parse(key)?,
                bytes: bytes.parse().ok()?,
            })
        };
        Some(Self {
            revision,
            owner,
            blobs: words.map(blob).collect::<Option<_>>()?,
        })
    }
}

fn keys(texts: &[impl AsRef<str>]) -> Result<Vec<BlobKey>, StoreError> {
    let keys = texts.iter().map(AsRef::as_ref);
    keys.map(|text| BlobKey::parse(text).ok_or_else(|| corrupt("blob", text)))
        .collect()
}

fn number(text: &str) -> Result<u64, StoreError> {
    text.parse().map_err(|_| corrupt("number", text))
}

fn record_key(text: &str) -> Result<RecordKey, StoreError> {
    RecordKey::parse(text).ok_or_else(|| corrupt("record's key", text))
}

fn corrupt(expected: &'static str, given: impl fmt::Debug) -> StoreError {
    let given = format!("{given:?}");
    DataLoss::Row { expected, given }.into()
}

fn unavailable(error: RedisError) -> StoreError {
    StoreError::unavailable(error)
}
