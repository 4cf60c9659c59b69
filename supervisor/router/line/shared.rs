//! The line of all routers with the same Redis: gives sessions their numbers, tells the others who waits here, and learns
//! who waits there.
//!
//! Each step is one script: it counts this router's beat up, gives numbers to the sessions that have come, removes and
//! adds this router's tickets, and returns all tickets when they have changed. What is to be added and removed follows
//! from a comparison with the tickets that are there, so a step whose answer is lost, a Redis that has lost data and a
//! router that was taken for dead need nothing of their own.
//!
//! A router whose beat stays the same ([`Beats`]) is removed by another one, with its tickets.
//!
//! | Key | Holds |
//! | --- | --- |
//! | `…fleet:arrivals` | the last number that was given to a session |
//! | `…fleet:tickets` | the sessions that wait: number, router, and home or `-`; the score is the number |
//! | `…fleet:routers` | for each router: its beat |
//! | `…fleet:version` | how often the tickets have changed |
//! | `…fleet:changed` | no key, but the channel on which a router tells that it has changed the tickets |

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;
use std::time::Duration;

use redis::{Client, RedisResult, Script};
use tokio::time::{Instant, sleep, timeout};

use super::{Line, RouterId, Ticket, wish_word};
use crate::redis::{BEAT, Beats, Connection, RedisAddress, hear};

/// Time limit on connecting to the Redis, and on each answer.
const TIMEOUT: Duration = Duration::from_secs(1);
/// After a step, changes are gathered for as long as the step has taken, between these limits.
const MIN_PAUSE: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(100);
/// The pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Keys: arrivals, tickets, routers, version. Arguments: router, highest number that it knows, version that it knows,
/// channel; the number of sessions that have come, and for each where it wants to go, or nothing when it does not wait; the
/// number of tickets to remove, and these; the tickets to add.
///
/// Returns the number of the first session, the version, the tickets when their version was not the known one, and the
/// beats of all routers.
static STEP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local ARRIVALS, TICKETS, ROUTERS, VERSION = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local router, highest, known, channel = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
redis.call('HINCRBY', ROUTERS, router, 1)
local version = redis.call('GET', VERSION) or '0'
local is_known = version == known
local changes = 0
local function add(ticket)
    changes = changes + redis.call('ZADD', TICKETS, string.match(ticket, '^%d+'), ticket)
end
local last = math.max(tonumber(redis.call('GET', ARRIVALS) or '0'), highest)
local first = last + 1
local at = 5
for i = at + 1, at + tonumber(ARGV[at]) do
    last = last + 1
    if ARGV[i] ~= '' then
        add(string.format('%d %s %s', last, router, ARGV[i]))
    end
end
if last >= first then
    redis.call('SET', ARRIVALS, string.format('%d', last))
end
at = at + tonumber(ARGV[at]) + 1
for i = at + 1, at + tonumber(ARGV[at]) do
    changes = changes + redis.call('ZREM', TICKETS, ARGV[i])
end
for i = at + tonumber(ARGV[at]) + 1, #ARGV do
    add(ARGV[i])
end
if changes > 0 then
    version = redis.call('INCR', VERSION)
    redis.call('PUBLISH', channel, router)
end
local tickets = false
if not is_known then
    tickets = redis.call('ZRANGE', TICKETS, 0, -1)
end
return {first, tonumber(version), tickets, redis.call('HGETALL', ROUTERS)}
",
    )
});

/// Removes routers, each unless it has beaten since, and all tickets of routers that are not there. Keys: tickets,
/// routers, version. Arguments: channel, then each router and its beat, which is empty where it does not matter.
static SWEEP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local TICKETS, ROUTERS, VERSION = KEYS[1], KEYS[2], KEYS[3]
for i = 2, #ARGV, 2 do
    if ARGV[i + 1] == '' or redis.call('HGET', ROUTERS, ARGV[i]) == ARGV[i + 1] then
        redis.call('HDEL', ROUTERS, ARGV[i])
    end
end
local is_there = {}
for _, router in ipairs(redis.call('HKEYS', ROUTERS)) do
    is_there[router] = true
end
local changes = 0
for _, ticket in ipairs(redis.call('ZRANGE', TICKETS, 0, -1)) do
    if not is_there[string.match(ticket, '^%S+ (%S+)') or ''] then
        changes = changes + redis.call('ZREM', TICKETS, ticket)
    end
end
if changes > 0 then
    redis.call('INCR', VERSION)
    redis.call('PUBLISH', ARGV[1], '')
end
return changes
",
    )
});

/// A router's end of the line of all routers.
pub(in crate::router) struct SharedLine {
    line: Line,
    router: RouterId,
    client: Client,
    connection: Connection,
    address: RedisAddress,
}

/// What this router knows of the Redis.
#[derive(Debug, Default)]
struct Mirror {
    /// The version of the tickets; `None` when they are not known.
    version: Option<u64>,
    /// This router's tickets that are there.
    own: BTreeSet<Ticket>,
    beats: Beats,
}

/// What a step returns: the number of the first session that has come, the version, the tickets, the routers' beats.
type Reply = (u64, u64, Option<Vec<String>>, HashMap<String, u64>);

impl SharedLine {
    /// Makes the line that of all routers with the same Redis, once `run` is called. `router` is the id of this run.
    ///
    /// # Errors
    /// Returns an error when the address cannot be used. A Redis that does not answer is none.
    pub(in crate::router) fn new(
        line: Line,
        address: RedisAddress,
        router: u128,
    ) -> RedisResult<Self> {
        let router = RouterId(router);
        line.lock().router = router;
        let client = address.client(TIMEOUT)?;
        Ok(Self {
            line,
            router,
            connection: Connection::new(client.clone(), TIMEOUT),
            client,
            address,
        })
    }

    /// Keeps the line, for ever.
    pub(in crate::router) async fn run(&self) {
        let channel = self.address.key("fleet:changed");
        let own = self.router.to_string();
        let heard = hear(&self.client, &channel, TIMEOUT, |router| {
            if router != own {
                self.line.0.to_share.notify_one();
            }
        });
        tokio::select! {
            () = heard => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let mut mirror = Mirror::default();
        let mut is_told = false;
        loop {
            let begun = Instant::now();
            if let Err(error) = self.step(&mut mirror).await {
                mirror = Mirror::default();
                self.line.part();
                if !is_told {
                    tracing::warn!(
                        redis = %self.address, %error,
                        "the line of all routers is lost; sessions wait in one of this router alone"
                    );
                    is_told = true;
                }
                sleep(RETRY_PAUSE).await;
                continue;
            }
            if is_told {
                tracing::info!(redis = %self.address, "the line is that of all routers again");
                is_told = false;
            }
            sleep(begun.elapsed().clamp(MIN_PAUSE, MAX_PAUSE)).await;
            // Err: it is time for a beat.
            let _ = timeout(BEAT, self.line.0.to_share.notified()).await;
        }
    }

    /// Tells the Redis what has changed here, and takes note of what has changed there.
    async fn step(&self, mirror: &mut Mirror) -> RedisResult<()> {
        let mut call = STEP.prepare_invoke();
        for key in ["arrivals", "tickets", "routers", "version"] {
            call.key(self.key(key));
        }
        call.arg(self.router.to_string());
        let (come, tickets) = {
            let state = self.line.lock();
            call.arg(state.highest);
            (state.unnumbered(), state.tickets())
        };
        call.arg(mirror.version.map_or_else(String::new, |v| v.to_string()));
        call.arg(self.key("changed"));
        call.arg(come.len());
        for (_, waits) in &come {
            call.arg(waits.as_ref().map_or("", wish_word));
        }
        call.arg(mirror.own.difference(&tickets).count());
        for gone in mirror.own.difference(&tickets) {
            call.arg(gone.to_string());
        }
        for new in tickets.difference(&mirror.own) {
            call.arg(new.to_string());
        }
        let (first, version, all, beats): Reply = self.connection.invoke(call).await?;
        mirror.version = Some(version);
        mirror.own = tickets;
        let mut numbered = Vec::new();
        for (number, (id, waits)) in (first..).zip(come) {
            mirror.own.extend(waits.map(|wish| Ticket {
                number,
                router: self.router,
                wish,
            }));
            numbered.push((id, number));
        }
        let mut foreign = None;
        let mut has_strays = false;
        if let Some(all) = all {
            let all = all.iter().filter_map(|text| Ticket::parse(text));
            let (own, others): (BTreeSet<_>, BTreeSet<_>) =
                all.partition(|ticket| ticket.router == self.router);
            has_strays = others
                .iter()
                .any(|ticket| !beats.contains_key(&ticket.router.to_string()));
            mirror.own = own;
            foreign = Some(others);
        }
        self.line.join(numbered, foreign);
        if self.line.lock().tickets() != mirror.own {
            self.line.0.to_share.notify_one();
        }
        let silent = mirror.beats.look(&beats, Instant::now());
        if has_strays || !silent.is_empty() {
            for (router, _) in &silent {
                tracing::warn!(router, "a router is gone; its sessions leave the line");
            }
            let silent = silent
                .into_iter()
                .map(|(router, beat)| (router, Some(beat)));
            self.sweep(&silent.collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// Removes routers that have not beaten since, and tickets without a router.
    async fn sweep(&self, routers: &[(String, Option<u64>)]) -> RedisResult<u64> {
        let mut call = SWEEP.prepare_invoke();
        for key in ["tickets", "routers", "version"] {
            call.key(self.key(key));
        }
        call.arg(self.key("changed"));
        for (router, beat) in routers {
            call.arg(router);
            call.arg(beat.map_or_else(String::new, |beat| beat.to_string()));
        }
        self.connection.invoke(call).await
    }

    /// Removes this router and its tickets.
    pub(in crate::router) async fn leave(&self) {
        let own = [(self.router.to_string(), None)];
        if let Err(error) = self.sweep(&own).await {
            tracing::debug!(%error, "others have to find out that this router is gone");
        }
    }

    fn key(&self, name: &str) -> String {
        self.address.key(&format!("fleet:{name}"))
    }
}

impl Line {
    /// Takes note of the numbers that sessions of this router got, and of the tickets of other routers if they have
    /// changed.
    fn join(&self, numbered: Vec<(u64, u64)>, foreign: Option<BTreeSet<Ticket>>) {
        let mut state = self.lock();
        let mut is_changed = !state.is_common || !numbered.is_empty();
        state.is_common = true;
        for (id, number) in numbered {
            state.number(id, number);
            state.highest = state.highest.max(number);
        }
        if let Some(foreign) = foreign {
            let highest = foreign.iter().map(|ticket| ticket.number).max();
            state.highest = state.highest.max(highest.unwrap_or_default());
            is_changed |= state.set_foreign(foreign);
        }
        drop(state);
        if is_changed {
            self.0.numbered.send_replace(());
            self.0.changes.send_replace(());
        }
    }

    /// Forgets the other routers: they are not heard of, and what is known of them is past.
    fn part(&self) {
        let mut state = self.lock();
        let was_common = std::mem::take(&mut state.is_common);
        state.set_foreign(BTreeSet::new());
        drop(state);
        if was_common {
            self.0.numbered.send_replace(());
            self.0.changes.send_replace(());
        }
    }
}
