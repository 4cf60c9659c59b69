//! The Lua scripts, one for each operation. Redis executes a script atomically.

use std::sync::LazyLock;

use redis::Script;

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

fn counting(code: &str) -> Script {
    Script::new(&format!("{COUNTING}{code}"))
}

pub(super) static NAME: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
redis.call('SETNX', KEYS[1], ARGV[1])
return redis.call('GET', KEYS[1])
",
    )
});

pub(super) static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
return {redis.call('HGET', KEYS[1], ARGV[1]), redis.call('HGET', KEYS[2], ARGV[1])}
",
    )
});

/// The compare-and-swap of a record. Arguments: record, expected revision, reservation, then `remove`, or `put`, body,
/// owner, blobs with their sizes.
pub(super) static WRITE: LazyLock<Script> = LazyLock::new(|| {
    counting(
        r"
local HEADS, BODIES, RESERVED = KEYS[5], KEYS[6], KEYS[7]
local record, expected, reservation, what = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local head = redis.call('HGET', HEADS, record)
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
    redis.call('HSET', HEADS, record, table.concat(words, ' '))
    redis.call('HSET', BODIES, record, ARGV[5])
else
    redis.call('HDEL', HEADS, record)
    redis.call('HDEL', BODIES, record)
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
    LazyLock::new(|| Script::new("return redis.call('HGET', KEYS[1], ARGV[1])"));

pub(super) static FORGET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
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
    LazyLock::new(|| Script::new("redis.call('HINCRBY', KEYS[1], ARGV[1], 1)"));

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

pub(super) static SURVEY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]),
    redis.call('SMEMBERS', KEYS[3]), redis.call('HLEN', KEYS[4])}
",
    )
});
