//! The Lua scripts, one for each operation. Redis executes a script atomically.

use std::sync::LazyLock;

use redis::Script;

/// The beginning of all scripts but `ADOPT`: does nothing in a store that has lost data since the caller last heard from
/// it. The last keys are the store's name, epoch and sequence; the last arguments the name and the epoch that the
/// caller knows, and the highest number of the sequence that it has seen.
const GUARD: &str = r"
local SEEN, KNOWN_EPOCH, KNOWN_NAME = table.remove(ARGV), table.remove(ARGV), table.remove(ARGV)
local SEQUENCE_KEY, EPOCH_KEY, NAME_KEY = table.remove(KEYS), table.remove(KEYS), table.remove(KEYS)
if redis.call('GET', NAME_KEY) ~= KNOWN_NAME or redis.call('GET', EPOCH_KEY) ~= KNOWN_EPOCH
    or tonumber(redis.call('GET', SEQUENCE_KEY) or '0') < tonumber(SEEN) then
    return redis.error_reply('FORGOTTEN the store has lost data')
end
";

/// The common beginning of all scripts that count references to blobs. A blob is named by its key, `<hash>-<edition>`.
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

fn guarded(code: &str) -> Script {
    Script::new(&format!("{GUARD}{code}"))
}

fn counting(code: &str) -> Script {
    guarded(&format!("{COUNTING}{code}"))
}

/// Begins with a store, or goes on with one that has lost data. Keys: name, epoch, sequence, origins. Arguments: the
/// name and the epoch that a store gets which has none, the highest number of the sequence that the caller has seen, by
/// how much the sequence is to skip the numbers that were given out before the loss.
///
/// A store whose sequence is behind what the caller has seen was set back; it begins another epoch, so that no other
/// server goes on without noticing.
pub(super) static ADOPT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local NAME, EPOCH, SEQUENCE, ORIGINS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
redis.call('SETNX', NAME, ARGV[1])
local seen = tonumber(ARGV[3])
local sequence = tonumber(redis.call('GET', SEQUENCE) or '0')
if redis.call('EXISTS', EPOCH) == 0 or sequence < seen then
    redis.call('SET', EPOCH, ARGV[2])
    redis.call('DEL', ORIGINS)
    if seen > 0 then
        redis.call('SET', SEQUENCE, string.format('%d', math.max(sequence, seen) + tonumber(ARGV[4])))
    end
end
return {redis.call('GET', NAME), redis.call('GET', EPOCH)}
",
    )
});

pub(super) static READ: LazyLock<Script> = LazyLock::new(|| {
    guarded(
        r"
return {redis.call('HGET', KEYS[1], ARGV[1]), redis.call('HGET', KEYS[2], ARGV[1])}
",
    )
});

/// The compare-and-swap of a record. Arguments: record, expected revision, reservation, server, then `remove`, or `put`,
/// body, owner, blobs with their sizes.
pub(super) static WRITE: LazyLock<Script> = LazyLock::new(|| write(false));

/// Writes or removes a record that the store may have lost, with the arguments of `WRITE`.
pub(super) static RESTORE: LazyLock<Script> = LazyLock::new(|| write(true));

fn write(restores: bool) -> Script {
    counting(&format!("local RESTORES = {restores}{WRITING}"))
}

/// The code that `WRITE` and `RESTORE` share. The last key is there for videos alone: the index that the record is in.
const WRITING: &str = r"
local HEADS, BODIES, RESERVED, ORIGINS, VIDEOS = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local record, expected, reservation, server, what = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local head = redis.call('HGET', HEADS, record)
local current, owner = string.match(head or '', '^(%d+) (%S+)')
local origin = redis.call('HGET', ORIGINS, record)
if RESTORES then
    local version, lost = tonumber(origin or current or ''), tonumber(expected)
    if version and (version > lost or (version == lost and owner ~= server)) then
        return {'stale'}
    end
elseif (current or '') ~= expected then
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
    local words = {revision, ARGV[7]}
    for i = 8, #ARGV do
        count(string.sub(ARGV[i], 1, 64))
        table.insert(words, ARGV[i])
    end
    redis.call('HSET', HEADS, record, table.concat(words, ' '))
    redis.call('HSET', BODIES, record, ARGV[6])
    if VIDEOS then
        redis.call('ZADD', VIDEOS, 0, record)
    end
else
    redis.call('HDEL', HEADS, record)
    redis.call('HDEL', BODIES, record)
    if VIDEOS then
        redis.call('ZREM', VIDEOS, record)
    end
end
if RESTORES then
    redis.call('HSET', ORIGINS, record, expected)
elseif origin and ARGV[7] ~= owner then
    redis.call('HSET', ORIGINS, record, revision)
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
";

/// Reserves blobs. Arguments: server, reservation, blobs.
pub(super) static RESERVE: LazyLock<Script> = LazyLock::new(|| {
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

/// Releases a reservation. Arguments: reservation, blobs.
pub(super) static RELEASE: LazyLock<Script> = LazyLock::new(|| {
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

pub(super) static LOCATE: LazyLock<Script> =
    LazyLock::new(|| guarded("return redis.call('HGET', KEYS[1], ARGV[1])"));

pub(super) static FORGET: LazyLock<Script> = LazyLock::new(|| {
    guarded(
        r"
for i = 1, #ARGV do
    redis.call('SREM', KEYS[1], ARGV[i])
end
",
    )
});

pub(super) static CONDEMN_UNKNOWN: LazyLock<Script> = LazyLock::new(|| {
    counting(
        r"
local condemned = {}
condemn_unknown(1, condemned)
return condemned
",
    )
});

pub(super) static BEAT: LazyLock<Script> =
    LazyLock::new(|| guarded("redis.call('HINCRBY', KEYS[1], ARGV[1], 1)"));

pub(super) static RETIRE: LazyLock<Script> = LazyLock::new(|| {
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

/// Finds records whose revision has changed. Arguments: records, each followed by the revision that it should have.
pub(super) static STALE: LazyLock<Script> = LazyLock::new(|| {
    guarded(
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

/// Reads a page of records. Arguments: the command that reads the index in the wanted order, the bounds, the most records.
pub(super) static LIST: LazyLock<Script> = LazyLock::new(|| {
    guarded(
        r"
local HEADS, BODIES, VIDEOS = KEYS[1], KEYS[2], KEYS[3]
local rows = {}
for _, record in ipairs(redis.call(ARGV[1], VIDEOS, ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])) do
    table.insert(rows, {record, redis.call('HGET', HEADS, record), redis.call('HGET', BODIES, record)})
end
return rows
",
    )
});

pub(super) static SURVEY: LazyLock<Script> = LazyLock::new(|| {
    guarded(
        r"
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]),
    redis.call('SMEMBERS', KEYS[3]), redis.call('HLEN', KEYS[4])}
",
    )
});
