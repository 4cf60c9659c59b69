//! Servers and routers that find each other through a Redis: a server announces its address while it is there
//! ([`Announcement`]), and a router looks who is ([`Directory`]).
//!
//! | Key | Holds |
//! | --- | --- |
//! | `…fleet:servers` | for each server, by a random id: what it announces, in JSON |
//! | `…fleet:server_beats` | for each server: its beat |

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisResult, Script, ScriptInvocation};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use url::Url;

use crate::redis::{BEAT, Beats, Connection, RedisAddress, SILENCE};

/// Time limit on connecting to the Redis, and on each answer.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The longest description that is read.
const MAX_DESCRIPTION_BYTES: usize = 4096;

/// Keys: servers, beats. Arguments: id, description.
static ANNOUNCE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
",
    )
});

/// Keys: servers, beats. Arguments: servers, each with its last beat, which is empty where it does not matter.
static REMOVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
for i = 1, #ARGV, 2 do
    if ARGV[i + 1] == '' or redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[i + 1] then
        redis.call('HDEL', KEYS[1], ARGV[i])
        redis.call('HDEL', KEYS[2], ARGV[i])
    end
end
",
    )
});

/// Keys: servers, beats.
static LOOK: LazyLock<Script> = LazyLock::new(|| {
    Script::new("return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}")
});

/// What a server tells routers of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    /// Where routers reach it.
    pub(crate) url: Url,
    pub(crate) name: Option<String>,
    pub(crate) zone: Option<String>,
}

/// The same in JSON.
#[derive(Serialize, Deserialize)]
struct Announced {
    url: String,
    name: Option<String>,
    zone: Option<String>,
}

/// A Redis where servers are found.
struct Place {
    connection: Connection,
    address: RedisAddress,
}

impl Place {
    fn new(address: RedisAddress) -> RedisResult<Self> {
        let client = address.client(TIMEOUT)?;
        Ok(Self {
            connection: Connection::new(client, TIMEOUT),
            address,
        })
    }

    fn call(&self, script: &'static Script) -> ScriptInvocation<'static> {
        let mut call = script.prepare_invoke();
        for key in ["fleet:servers", "fleet:server_beats"] {
            call.key(self.address.key(key));
        }
        call
    }

    /// Removes servers, each unless its beat is another one.
    async fn remove(&self, servers: &[(String, Option<u64>)]) -> RedisResult<()> {
        let mut call = self.call(&REMOVE);
        for (id, beat) in servers {
            call.arg(id);
            call.arg(beat.map_or_else(String::new, |beat| beat.to_string()));
        }
        self.connection.invoke(call).await
    }
}

/// A server's end.
pub(crate) struct Announcement {
    place: Place,
    id: String,
    description: String,
}

impl Announcement {
    /// # Errors
    /// Returns an error when the address cannot be used. A Redis that does not answer is none.
    pub(crate) fn new(address: RedisAddress, description: Description) -> RedisResult<Self> {
        let announced = Announced {
            url: description.url.into(),
            name: description.name,
            zone: description.zone,
        };
        Ok(Self {
            place: Place::new(address)?,
            id: format!("{:032x}", rand::random::<u128>()),
            description: serde_json::to_string(&announced).expect("strings are JSON"),
        })
    }

    /// Announces the server, for ever.
    pub(crate) async fn run(&self) {
        let mut is_told = false;
        loop {
            let mut call = self.place.call(&ANNOUNCE);
            call.arg(&self.id).arg(&self.description);
            match self.place.connection.invoke::<()>(call).await {
                Ok(()) => is_told = false,
                Err(error) if !is_told => {
                    let redis = &self.place.address;
                    tracing::warn!(%redis, %error, "routers may not find this server");
                    is_told = true;
                }
                Err(_) => {}
            }
            sleep(BEAT).await;
        }
    }

    /// Tells that the server is there no more.
    pub(crate) async fn end(&self) {
        if let Err(error) = self.place.remove(&[(self.id.clone(), None)]).await {
            tracing::debug!(%error, "routers have to find out that this server is gone");
        }
    }
}

/// A router's end: the servers that are there.
pub(crate) struct Directory {
    place: Place,
    beats: Beats,
    /// The servers, and since when each has its last beat.
    servers: BTreeMap<String, (Description, Instant)>,
    is_away: bool,
}

impl Directory {
    /// # Errors
    /// Returns an error when the address cannot be used. A Redis that does not answer is none.
    pub(crate) fn new(address: RedisAddress) -> RedisResult<Self> {
        Ok(Self {
            place: Place::new(address)?,
            beats: Beats::default(),
            servers: BTreeMap::new(),
            is_away: false,
        })
    }

    /// Returns the servers that are there, the same as before when the Redis does not answer.
    pub(crate) async fn look(&mut self) -> Vec<Description> {
        match self.try_look().await {
            Ok(()) if self.is_away => {
                tracing::info!(redis = %self.place.address, "servers are looked for again");
                self.is_away = false;
            }
            Ok(()) => {}
            Err(error) => {
                if !self.is_away {
                    let redis = &self.place.address;
                    tracing::warn!(%redis, %error, "servers that come and go are not noticed");
                }
                self.is_away = true;
                self.beats = Beats::default();
                let now = Instant::now();
                for (_, last) in self.servers.values_mut() {
                    *last = now;
                }
            }
        }
        let servers = self.servers.values();
        servers
            .map(|(description, _)| description.clone())
            .collect()
    }

    async fn try_look(&mut self) -> RedisResult<()> {
        let call = self.place.call(&LOOK);
        type Reply = (HashMap<String, String>, HashMap<String, u64>);
        let (servers, beats): Reply = self.place.connection.invoke(call).await?;
        let now = Instant::now();
        let silent = self.beats.look(&beats, now);
        for (id, text) in servers {
            if let (Some(description), Some(last)) = (parse(&text), self.beats.since(&id)) {
                self.servers.insert(id, (description, last));
            }
        }
        // Also one that is not there any more stays for that time: a Redis that has lost its data soon hears of it again.
        self.servers.retain(|_, (_, last)| now - *last < SILENCE);
        if !silent.is_empty() {
            let silent = silent.into_iter().map(|(id, beat)| (id, Some(beat)));
            self.place.remove(&silent.collect::<Vec<_>>()).await?;
        }
        Ok(())
    }
}

/// Parses what a server announces; `None` where it is no such thing.
fn parse(text: &str) -> Option<Description> {
    if text.len() > MAX_DESCRIPTION_BYTES {
        return None;
    }
    let Announced { url, name, zone } = serde_json::from_str(text).ok()?;
    let url = Url::parse(&url).ok().filter(is_address)?;
    Some(Description { url, name, zone })
}

/// Returns whether a URL is the address of a server: http or https, without user, password and query.
pub(crate) fn is_address(url: &Url) -> bool {
    let has_user = !url.username().is_empty() || url.password().is_some();
    let is_web = matches!(url.scheme(), "http" | "https") && url.host().is_some();
    is_web && !has_user && url.query().is_none() && url.fragment().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_servers_are_taken() {
        let check = |url: &str, is_taken: bool| {
            let text = format!(r#"{{"url": "{url}", "name": null, "zone": null}}"#);
            assert_eq!(parse(&text).is_some(), is_taken, "{url}");
        };
        check("http://10.0.0.1:8000", true);
        check("https://a.example/below", true);
        for url in ["ftp://a", "http://u:p@a", "http://a?x", "unix:/a", "", "a"] {
            check(url, false);
        }
        check(
            &format!("http://{}", "a".repeat(MAX_DESCRIPTION_BYTES)),
            false,
        );
    }
}
