//! Records in Redis or Valkey, shared by several servers.
//!
//! Every operation is one script, so it is atomic and takes one round trip. All keys of a store begin with the same
//! hash tag, so that a cluster keeps them on one node. Redis's own expiry is not used: its clock may jump, and the
//! reference counts of blobs must change when a record expires; `Upkeep` finds what has expired. Redis must not evict
//! keys either (`maxmemory-policy noeviction`), and it should keep them on disk (`appendonly yes`).
//!
//! **Lost data.** A Redis may restart empty, or as it was some time ago (its last snapshot, a replica that was behind).
//! Every script therefore names the store's epoch and the highest number of the sequence that this server has seen, and
//! does nothing when the store has another epoch or is behind: [`StoreError::Forgotten`]. Then [`Records::adopt`] begins
//! another epoch, in which the sequence skips all numbers that may have been given out before, and the servers write the
//! records anew whose leases they hold ([`Records::restore`]). Other sessions are lost, and their blobs are orphaned.
//!
//! | Key | Holds |
//! | --- | --- |
//! | `…name` | the store's name |
//! | `…epoch` | a random number, replaced when the store was found to have lost data |
//! | `…sequence` | the last revision or edition that was given out |
//! | `…heads` | for each record: revision, owner or `-`, then each blob, its size, and `media` where it is of a film |
//! | `…bodies` | for each record: its body |
//! | `…origins` | for each record that was restored or removed in this epoch after a loss: its version before the loss |
//! | `…editions` | for each blob that is counted: its edition |
//! | `…counts` | for each blob that is counted, with its edition: its reference count |
//! | `…condemned` | the tombstones: blobs to be deleted |
//! | `…beats` | for each server that lives or has reservations: its beat |
//! | `…videos:TENANT` | the keys of the tenant's videos, in order; every script that writes a record keeps it as the records are |
//! | `…reserved:SERVER` | for each reservation of that server: its blobs |

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use fastvideo_proto::ids::VideoId;
use redis::{FromRedisValue, RedisError, Script, ScriptInvocation};

use super::{
    BlobKind, BlobRef, Order, Record, RecordWrite, Records, StoredRecord, Survey, SurveyedRecord,
    VideoPage, WriteOutcome,
};
use crate::redis::{Connection, FORGOTTEN};
use crate::store::error::{DataLoss, StoreError};
use crate::store::ids::{BlobId, BlobKey, Epoch, RecordKey, ReservationId, Revision, ServerId};
use crate::tenant::Tenant;

mod scripts;

use scripts::{
    ADOPT, BEAT, CONDEMN_UNKNOWN, FORGET, LIST, LOCATE, READ, RELEASE, RESERVE, RESTORE, RETIRE,
    STALE, SURVEY, WRITE,
};

pub use crate::redis::{RedisAddress, RedisAddressError};

/// By how much the sequence is raised above the highest number that a server has seen of a store that has lost data: far
/// more than other servers may have been given since that server last heard from it.
const LOST_NUMBERS: u64 = 1_000_000;
/// The word for a blob of a film.
const MEDIA: &str = "media";

/// Records in a Redis, which several servers may use.
#[derive(Debug)]
pub struct RedisRecords {
    address: RedisAddress,
    connection: Connection,
    identity: Mutex<Identity>,
    /// The highest number of the sequence that this server was told.
    seen: AtomicU64,
}

/// The store as this server knows it.
#[derive(Clone, Debug, Default)]
struct Identity {
    name: String,
    epoch: String,
    /// How often the store was adopted after a loss.
    adoptions: u64,
}

impl RedisRecords {
    /// Connects to the server. `timeout` limits connecting and each answer.
    ///
    /// # Errors
    /// Returns an error when there is no Redis that answers, or it refuses the user or the scripts.
    pub async fn connect(address: &RedisAddress, timeout: Duration) -> Result<Self, StoreError> {
        let client = address.client(timeout).map_err(unavailable)?;
        let records = Self {
            address: address.clone(),
            connection: Connection::new(client, timeout),
            identity: Mutex::default(),
            seen: AtomicU64::new(0),
        };
        let name = format!("redis-{:032x}", rand::random::<u128>());
        let identity = records.adopted(name).await?;
        *records.identity() = identity;
        Ok(records)
    }

    /// Adopts the store as it is now. It gets this name if it has none.
    async fn adopted(&self, name: String) -> Result<Identity, StoreError> {
        let mut call = ADOPT.prepare_invoke();
        for key in ["name", "epoch", "sequence", "origins"] {
            call.key(self.key(key));
        }
        let epoch = format!("{:032x}", rand::random::<u128>());
        call.arg(name).arg(epoch).arg(self.seen()).arg(LOST_NUMBERS);
        let (name, epoch) = self.connection.invoke(call).await.map_err(unavailable)?;
        Ok(Identity {
            name,
            epoch,
            adoptions: 0,
        })
    }

    fn identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().expect("no holder of this lock panics")
    }

    fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Takes note of a number of the sequence.
    fn see(&self, number: u64) {
        self.seen.fetch_max(number, Ordering::Relaxed);
    }

    fn key(&self, name: &str) -> String {
        self.address.key(name)
    }

    fn reserved(&self, server: &ServerId) -> String {
        self.key(&format!("reserved:{}", server.as_str()))
    }

    /// Returns the key of the index of a tenant's videos.
    fn videos(&self, tenant: &Tenant) -> String {
        self.key(&format!("videos:{tenant}"))
    }

    /// Takes a record that was read.
    fn stored(&self, head: &str, body: Vec<u8>) -> Result<StoredRecord, StoreError> {
        let RecordHead {
            revision,
            owner,
            blobs,
        } = RecordHead::parse(head).ok_or_else(|| corrupt("head", head))?;
        self.see(revision.0);
        let record = Record { owner, blobs, body };
        Ok(StoredRecord { revision, record })
    }

    /// Begins a call of a script that counts references to blobs, with the keys that all of these scripts take first.
    fn counting(&self, script: &'static Script) -> ScriptInvocation<'static> {
        let mut call = script.prepare_invoke();
        for name in ["sequence", "editions", "counts", "condemned"] {
            call.key(self.key(name));
        }
        call
    }

    /// Invokes a script in the store as this server knows it.
    async fn run<T: FromRedisValue + Send + 'static>(
        &self,
        mut call: ScriptInvocation<'static>,
    ) -> Result<T, StoreError> {
        for name in ["name", "epoch", "sequence"] {
            call.key(self.key(name));
        }
        let Identity { name, epoch, .. } = self.identity().clone();
        call.arg(name).arg(epoch).arg(self.seen());
        let answer = self.connection.invoke(call).await;
        answer.map_err(|error| match error.code() {
            Some(FORGOTTEN) => StoreError::Forgotten,
            _ => unavailable(error),
        })
    }

    /// Invokes a script that writes a record.
    async fn write_by(
        &self,
        script: &'static Script,
        write: RecordWrite<'_>,
    ) -> Result<WriteOutcome, StoreError> {
        let mut call = self.counting(script);
        call.key(self.key("heads")).key(self.key("bodies"));
        call.key(self.reserved(write.server));
        call.key(self.key("origins"));
        if let RecordKey::Video { tenant, .. } = write.key {
            call.key(self.videos(tenant));
        }
        call.arg(write.key.to_string());
        call.arg(write.expected.map_or_else(String::new, |r| r.0.to_string()));
        call.arg(
            write
                .reservation
                .map_or_else(String::new, |r| r.0.to_string()),
        );
        call.arg(write.server.as_str());
        match write.record {
            None => {
                call.arg("remove");
            }
            Some(record) => {
                let owner = record.owner.as_ref().map_or("-", ServerId::as_str);
                call.arg("put").arg(record.body.as_slice()).arg(owner);
                for blob in &record.blobs {
                    call.arg(blob_word(blob));
                }
            }
        }
        let reply: Vec<String> = self.run(call).await?;
        let reply: Vec<&str> = reply.iter().map(String::as_str).collect();
        match reply.as_slice() {
            ["stale"] => Err(StoreError::Stale),
            ["unreserved"] => Err(StoreError::Unreserved),
            ["written", revision, condemned @ ..] => {
                let revision = number(revision)?;
                self.see(revision);
                Ok(WriteOutcome {
                    revision: Revision(revision),
                    condemned: keys(condemned)?,
                })
            }
            other => Err(corrupt("reply", other)),
        }
    }
}

#[async_trait]
impl Records for RedisRecords {
    async fn name(&self) -> Result<String, StoreError> {
        Ok(self.identity().name.clone())
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.identity().adoptions)
    }

    async fn adopt(&self) -> Result<(), StoreError> {
        let name = self.identity().name.clone();
        let adopted = self.adopted(name).await?;
        let mut identity = self.identity();
        *identity = Identity {
            adoptions: identity.adoptions + 1,
            ..adopted
        };
        Ok(())
    }

    async fn read(&self, key: &RecordKey) -> Result<Option<StoredRecord>, StoreError> {
        let mut call = READ.prepare_invoke();
        call.key(self.key("heads")).key(self.key("bodies"));
        call.arg(key.to_string());
        let (head, body): (Option<String>, Option<Vec<u8>>) = self.run(call).await?;
        let (Some(head), Some(body)) = (head, body) else {
            return Ok(None);
        };
        self.stored(&head, body).map(Some)
    }

    async fn write(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        self.write_by(&WRITE, write).await
    }

    async fn restore(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        self.write_by(&RESTORE, write).await
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
        let keys = keys(&self.run::<Vec<String>>(call).await?)?;
        for key in &keys {
            self.see(key.edition);
        }
        Ok(keys)
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

    async fn list(
        &self,
        tenant: &Tenant,
        page: VideoPage,
    ) -> Result<Vec<(VideoId, StoredRecord)>, StoreError> {
        let VideoPage {
            after,
            limit,
            order,
        } = page;
        let after = after.map(|id| {
            let tenant = tenant.clone();
            format!("({}", RecordKey::Video { tenant, id })
        });
        let (command, first, last) = match order {
            Order::Ascending => ("ZRANGEBYLEX", "-", "+"),
            Order::Descending => ("ZREVRANGEBYLEX", "+", "-"),
        };
        let mut call = LIST.prepare_invoke();
        call.key(self.key("heads")).key(self.key("bodies"));
        call.key(self.videos(tenant));
        call.arg(command).arg(after.as_deref().unwrap_or(first));
        call.arg(last).arg(limit);
        let rows: Vec<(String, String, Vec<u8>)> = self.run(call).await?;
        let records = rows.into_iter().map(|(key, head, body)| {
            let RecordKey::Video { id, .. } = record_key(&key)? else {
                return Err(corrupt("video's key", &key));
            };
            Ok((id, self.stored(&head, body)?))
        });
        records.collect()
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
            let RecordHead {
                revision,
                owner,
                blobs,
            } = head;
            Ok(SurveyedRecord::new(
                record_key(id)?,
                revision,
                owner,
                &blobs,
            ))
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
            let (key, rest) = word.split_once(':')?;
            let (bytes, kind) = match rest.split_once(':') {
                None => (rest, BlobKind::State),
                Some((bytes, MEDIA)) => (bytes, BlobKind::Media),
                Some(_) => return None,
            };
            Some(BlobRef {
                key: BlobKey::parse(key)?,
                bytes: bytes.parse().ok()?,
                kind,
            })
        };
        Some(Self {
            revision,
            owner,
            blobs: words.map(blob).collect::<Option<_>>()?,
        })
    }
}

/// Writes a blob for the script `WRITE`: its key, its size, and its kind unless that is the usual one.
fn blob_word(blob: &BlobRef) -> String {
    let BlobRef { key, bytes, kind } = blob;
    match kind {
        BlobKind::State => format!("{key}:{bytes}"),
        BlobKind::Media => format!("{key}:{bytes}:{MEDIA}"),
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

/// Returns whether the error may be that of a Redis that is still starting.
pub fn may_come(error: &StoreError) -> bool {
    let StoreError::Unavailable(error) = error else {
        return false;
    };
    let redis = error.downcast_ref::<RedisError>();
    redis.is_some_and(|error| {
        error.is_io_error() || matches!(error.code(), Some("LOADING" | "MASTERDOWN" | "TRYAGAIN"))
    })
}

fn unavailable(error: RedisError) -> StoreError {
    StoreError::unavailable(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_head_is_read_or_refused(
            text in r"(\PC|[0-9a-f]{64}|[0-9]{1,20}| |-|:){0,12}",
            revision: u64,
            owner in "[0-9a-f]{0,32}",
            blob in "[0-9a-f]{64}-[0-9]{1,5}:[0-9]{1,9}",
        ) {
            let _ = RecordHead::parse(&text);
            let head = RecordHead::parse(&format!("{revision} {owner} {blob}"));
            let number = |text: &str| text.starts_with('0') && text.len() > 1;
            let (_, edition) = blob.split_once('-').unwrap();
            let (edition, _) = edition.split_once(':').unwrap();
            prop_assert_eq!(head.is_some(), !number(edition));
        }
    }
}
