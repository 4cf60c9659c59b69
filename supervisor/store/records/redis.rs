//! Records in Redis or Valkey, shared by several servers.
//!
//! Every step is one script, so it is atomic and one round trip. All keys of a store begin with the same hash tag, so a
//! cluster keeps them on one node. Nothing here uses Redis's own expiry: its clock may jump, and a blob must be counted
//! down when its record goes; what is old is found by `Upkeep`. So Redis must not evict keys either
//! (`maxmemory-policy noeviction`), and it should keep them on disk (`appendonly yes`): blobs of a Redis that has lost
//! its records belong to nobody.
//!
//! | Key | Holds |
//! | --- | --- |
//! | `…name` | the store's name |
//! | `…sequence` | the last revision or edition that was given out |
//! | `…heads` | for each session: revision, owner or `-`, then each blob and its size |
//! | `…bodies` | for each session: its record's body |
//! | `…editions` | for each blob that is counted: its edition |
//! | `…counts` | for each blob that is counted, with its edition: how often |
//! | `…condemned` | the blobs to be deleted |
//! | `…beats` | for each server that lives or has reservations: its beat |
//! | `…reserved:SERVER` | for each reservation of that server: its blobs |

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use fastvideo_proto::ids::SessionId;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{
    Client, ConnectionInfo, FromRedisValue, IntoConnectionInfo, RedisError, Script,
    ScriptInvocation,
};
use url::Url;

use super::{
    BlobId, BlobKey, BlobRef, Change, Outcome, Record, Records, ReservationId, Revision, ServerId,
    Survey, Written,
};
use crate::store::StoreError;

/// Between two attempts to connect again.
const MAX_RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Attempts to connect before waiting callers hear of it; the next caller begins anew.
const RETRIES: usize = 3;

/// How to reach a Redis, and which of its keys belong to the store.
#[derive(Clone)]
pub struct Address {
    connection: ConnectionInfo,
    prefix: String,
}

impl Address {
    /// Reads `redis://[user:password@]host[:port][/database][?prefix=…]`, the same with `rediss` for TLS or `valkey`,
    /// or `redis+unix:///path/of/socket[?db=…&prefix=…]`. Without a prefix the database's number takes its place.
    ///
    /// # Errors
    /// A sentence on what is wrong, without the password.
    pub fn parse(url: &Url) -> Result<Self, String> {
        let mut plain = url.clone();
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let (prefix, rest): (Vec<_>, Vec<_>) =
            pairs.into_iter().partition(|(name, _)| name == "prefix");
        let known = ["db", "protocol"];
        if let Some((name, _)) = rest
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()))
        {
            return Err(format!("has an unknown parameter `{name}`"));
        }
        plain.set_query(None);
        if !rest.is_empty() {
            plain.query_pairs_mut().extend_pairs(rest);
        }
        let connection = plain.into_connection_info();
        let connection =
            connection.map_err(|error| format!("is no address of a Redis: {error}"))?;
        let database = connection.redis_settings().db();
        let prefix = match prefix.into_iter().next_back() {
            Some((_, prefix)) => prefix,
            None => database.to_string(),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if prefix.is_empty() || !prefix.chars().all(allowed) {
            return Err(
                "has a prefix with other characters than letters, digits, - _ .".to_owned(),
            );
        }
        let settings = TcpSettings::default().set_nodelay(true);
        Ok(Self {
            connection: connection.set_tcp_settings(settings),
            prefix: format!("fastvideo:{{{prefix}}}:"),
        })
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("address", self.connection.addr())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Where the host is, without user and password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.connection.addr().fmt(f)
    }
}

#[derive(Debug)]
pub struct RedisRecords {
    address: Address,
    /// Reconnects by itself; a clone shares the connection.
    connection: Connection,
    name: String,
}

#[derive(Clone)]
struct Connection(ConnectionManager);

// Not derived: it prints the password.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl RedisRecords {
    /// Connects. `timeout`: for connecting and for each answer.
    ///
    /// # Errors
    /// When there is no Redis that answers, or it refuses the user or the scripts.
    pub async fn connect(address: &Address, timeout: Duration) -> Result<Self, StoreError> {
        // The build may have two, for other parts use another: then rustls chooses neither by itself. Err: it has one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // A peer that is gone without a word is noticed, and a new connection made, when it acknowledges nothing.
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

    /// A call of a script with the keys that scripts that count blobs use, in their order.
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

    async fn read(&self, session: &SessionId) -> Result<Option<Written>, StoreError> {
        let mut call = READ.prepare_invoke();
        call.key(self.key("heads")).key(self.key("bodies"));
        call.arg(session.as_str());
        let (head, body): (Option<String>, Option<Vec<u8>>) = self.run(call).await?;
        let (Some(head), Some(body)) = (head, body) else {
            return Ok(None);
        };
        let Head {
            revision,
            owner,
            blobs,
        } = Head::parse(&head).ok_or_else(|| corrupt("head", &head))?;
        let record = Record { owner, blobs, body };
        Ok(Some(Written { revision, record }))
    }

    async fn write(&self, change: Change<'_>) -> Result<Outcome, StoreError> {
        let mut call = self.counting(&WRITE);
        call.key(self.key("heads")).key(self.key("bodies"));
        call.key(self.reserved(change.server));
        call.arg(change.session.as_str());
        call.arg(
            change
                .expected
                .map_or_else(String::new, |r| r.0.to_string()),
        );
        call.arg(
            change
                .reservation
                .map_or_else(String::new, |r| r.0.to_string()),
        );
        match change.record {
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
            ["written", revision, condemned @ ..] => Ok(Outcome {
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

    async fn stale(&self, held: &[(SessionId, Revision)]) -> Result<Vec<SessionId>, StoreError> {
        let mut call = STALE.prepare_invoke();
        call.key(self.key("heads"));
        for (session, revision) in held {
            call.arg(session.as_str()).arg(revision.0);
        }
        let stale: Vec<String> = self.run(call).await?;
        stale.iter().map(|id| session_id(id)).collect()
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
        let sessions = heads.iter().map(|(id, head)| {
            let head = Head::parse(head).ok_or_else(|| corrupt("head", head))?;
            Ok((session_id(id)?, head.revision, head.owner))
        });
        let servers = beats.into_iter();
        Ok(Survey {
            sessions: sessions.collect::<Result<_, StoreError>>()?,
            servers: servers
                .map(|(id, beat)| (ServerId::from_stored(id), beat))
                .collect(),
            condemned: keys(&condemned)?,
            blobs,
        })
    }
}

/// All of a record but its body.
struct Head {
    revision: Revision,
    owner: Option<ServerId>,
    blobs: Vec<BlobRef>,
}

impl Head {
    /// Reads what the script that writes has written.
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

fn session_id(text: &str) -> Result<SessionId, StoreError> {
    SessionId::parse(text).ok_or_else(|| corrupt("session", text))
}

fn corrupt(what: &str, given: impl fmt::Debug) -> StoreError {
    StoreError::Corrupt(format!("{given:?} is no {what}"))
}

fn unavailable(error: RedisError) -> StoreError {
    StoreError::unavailable(error)
}

/// What scripts that count blobs begin with. A blob is named as in [`BlobKey`]: `<hash>-<edition>`.
const COUNTING: &str = r"
local SEQUENCE, EDITIONS, COUNTS, CONDEMNED = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local function count(id)
    local edition = redis.call('HGET', EDITIONS, id)
    if not edition then
        edition = tostring(redis.call('INCR', SEQUENCE))
        redis.call('HSET', EDITIONS, id, edition)
    end
    local key = id .. '-' .. edition
    redis.call('HINCRBY', COUNTS, key, 1)
    return key
end

local function discount(key, condemned)
    if redis.call('HEXISTS', COUNTS, key) == 1 and redis.call('HINCRBY', COUNTS, key, -1) <= 0 then
        redis.call('HDEL', COUNTS, key)
        redis.call('HDEL', EDITIONS, string.sub(key, 1, 64))
        redis.call('SADD', CONDEMNED, key)
        table.insert(condemned, key)
    end
end

local function discount_words(words, condemned)
    for key in string.gmatch(words, '%S+') do
        discount(key, condemned)
    end
end

local function condemn_unknown(first, condemned)
    for i = first, #ARGV do
        if redis.call('HEXISTS', COUNTS, ARGV[i]) == 0 then
            redis.call('SADD', CONDEMNED, ARGV[i])
            table.insert(condemned, ARGV[i])
        end
    end
end
";

fn counting(code: &str) -> Script {
    Script::new(&format!("{COUNTING}{code}"))
}

static NAME: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
redis.call('SETNX', KEYS[1], ARGV[1])
return redis.call('GET', KEYS[1])
",
    )
});

static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
return {redis.call('HGET', KEYS[1], ARGV[1]), redis.call('HGET', KEYS[2], ARGV[1])}
",
    )
});

/// Arguments: session, expected revision, reservation, then `remove`, or `put`, body, owner, blobs with their sizes.
static WRITE: LazyLock<Script> = LazyLock::new(|| {
    counting(
        r"
local HEADS, BODIES, RESERVED = KEYS[5], KEYS[6], KEYS[7]
local session, expected, reservation, what = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local head = redis.call('HGET', HEADS, session)
if (head and string.match(head, '^%d+') or '') ~= expected then
    return {'stale'}
end
local reserved = ''
if reservation ~= '' then
    reserved = redis.call('HGET', RESERVED, reservation)
    if not reserved then
        return {'unreserved'}
    end
end
local revision = tostring(redis.call('INCR', SEQUENCE))
if what == 'put' then
    local words = {revision, ARGV[6]}
    for i = 7, #ARGV do
        count(string.sub(ARGV[i], 1, 64))
        table.insert(words, ARGV[i])
    end
    redis.call('HSET', HEADS, session, table.concat(words, ' '))
    redis.call('HSET', BODIES, session, ARGV[5])
else
    redis.call('HDEL', HEADS, session)
    redis.call('HDEL', BODIES, session)
end
local reply = {'written', revision}
if head then
    for key in string.gmatch(head, '(%x+%-%d+):%d+') do
        discount(key, reply)
    end
end
if reservation ~= '' then
    redis.call('HDEL', RESERVED, reservation)
    discount_words(reserved, reply)
end
return reply
",
    )
});

/// Arguments: server, reservation, blobs.
static RESERVE: LazyLock<Script> = LazyLock::new(|| {
    counting(
        r"
local BEATS, RESERVED = KEYS[5], KEYS[6]
local keys = {}
for i = 3, #ARGV do
    table.insert(keys, count(ARGV[i]))
end
redis.call('HSETNX', BEATS, ARGV[1], 0)
redis.call('HSET', RESERVED, ARGV[2], table.concat(keys, ' '))
return keys
",
    )
});

/// Arguments: reservation, blobs.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    counting(
        r"
local RESERVED = KEYS[5]
local condemned = {}
local reserved = redis.call('HGET', RESERVED, ARGV[1])
if reserved then
    redis.call('HDEL', RESERVED, ARGV[1])
    discount_words(reserved, condemned)
end
condemn_unknown(2, condemned)
return condemned
",
    )
});

static LOCATE: LazyLock<Script> =
    LazyLock::new(|| Script::new("return redis.call('HGET', KEYS[1], ARGV[1])"));

static FORGET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
for i = 1, #ARGV do
    redis.call('SREM', KEYS[1], ARGV[i])
end
",
    )
});

static CONDEMN_UNKNOWN: LazyLock<Script> = LazyLock::new(|| {
    counting(
        r"
local condemned = {}
condemn_unknown(1, condemned)
return condemned
",
    )
});

static BEAT: LazyLock<Script> =
    LazyLock::new(|| Script::new("redis.call('HINCRBY', KEYS[1], ARGV[1], 1)"));

static RETIRE: LazyLock<Script> = LazyLock::new(|| {
    counting(
        r"
local BEATS, RESERVED = KEYS[5], KEYS[6]
local condemned = {}
for _, reserved in ipairs(redis.call('HVALS', RESERVED)) do
    discount_words(reserved, condemned)
end
redis.call('DEL', RESERVED)
redis.call('HDEL', BEATS, ARGV[1])
return condemned
",
    )
});

/// Arguments: sessions, each followed by the revision that it should have.
static STALE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local stale = {}
for i = 1, #ARGV, 2 do
    local head = redis.call('HGET', KEYS[1], ARGV[i])
    if not head or string.match(head, '^%d+') ~= ARGV[i + 1] then
        table.insert(stale, ARGV[i])
    end
end
return stale
",
    )
});

static SURVEY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]),
    redis.call('SMEMBERS', KEYS[3]), redis.call('HLEN', KEYS[4])}
",
    )
});
