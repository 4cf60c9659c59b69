//! Several routers before the same servers: one line, in the order of arrival, whichever router a client has come to.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::Instant;

use crate::cli::run;
use crate::durable::{Redis, folder};
use crate::harness::{Client, Heard, Server, until};
use crate::router::{KEY, Keys, with_room};

/// Servers with one place each, and routers with one line.
struct Fleet {
    redis: Redis,
    keys: Keys,
    servers: Vec<Server>,
    routers: Vec<Server>,
}

impl Fleet {
    async fn start(servers: usize, routers: usize) -> Self {
        let mut fleet = Self {
            redis: Redis::start().await,
            keys: Keys::new(KEY),
            servers: Vec::new(),
            routers: Vec::new(),
        };
        let keys = fleet.keys.flag("server.router_keys_file");
        for _ in 0..servers {
            fleet.servers.push(Server::start(&["--gpus=1", &keys]));
        }
        for _ in 0..routers {
            let router = fleet.router(&[]);
            fleet.routers.push(router);
        }
        for router in &fleet.routers {
            with_room(router, servers, 1).await;
            common(router, true).await;
        }
        fleet
    }

    /// A client that has a place, once all routers know that it does not wait any more.
    async fn active(&self, router: usize) -> Client {
        let client = self.routers[router].active(json!({})).await;
        for router in &self.routers {
            waiting(router, 0).await;
        }
        client
    }

    fn router(&self, args: &[&str]) -> Server {
        let addresses: Vec<_> = self.servers.iter().map(|server| &*server.address).collect();
        let store = format!("--router.store={}", self.redis.url);
        // A router that stands still has not heard of its servers for that time.
        let own = [store.as_str(), "--router.dead_after_seconds=60"];
        self.keys.router(&addresses, &[&own, args].concat())
    }
}

/// Waits until a router's line is that of all routers, or is not.
async fn common(router: &Server, is_common: bool) {
    until(&format!("the line is common: {is_common}"), async || {
        (router.status().await["line_is_common"] == is_common).then_some(())
    })
    .await;
}

async fn waiting(router: &Server, sessions: usize) {
    until(&format!("{sessions} sessions wait"), async || {
        (router.status().await["waiting"] == sessions).then_some(())
    })
    .await;
}

/// A client that waits, and its position.
async fn queued(router: &Server, position: usize) -> Client {
    let mut client = router.open(json!({})).await;
    assert_eq!(told(&mut client).await, (position, position + 1));
    client
}

/// The next position that a client is told, and the length of the line.
async fn told(client: &mut Client) -> (usize, usize) {
    let told = client.expect("queue_status").await;
    let number = |field: &str| usize::try_from(told[field].as_u64().unwrap()).unwrap();
    (number("position"), number("queue_depth"))
}

/// Waits until a client is told this position, and that it has not risen.
async fn told_until(client: &mut Client, position: usize) {
    let mut last = usize::MAX;
    while last != position {
        let (next, _) = told(client).await;
        assert!(next <= last, "{last} and then {next}");
        last = next;
    }
}

/// Waits until a client has a place.
async fn placed(client: &mut Client) {
    let mut last = usize::MAX;
    loop {
        match client.next().await {
            Heard::Text(text) if text["type"] == "queue_status" => {
                let next = usize::try_from(text["position"].as_u64().unwrap()).unwrap();
                assert!(next <= last, "{last} and then {next}");
                last = next;
            }
            Heard::Text(text) if text["type"] == "ltx2_stream_start" => return,
            Heard::Closed(code) => panic!("closed with {code:?}"),
            _ => {}
        }
    }
}

async fn leave(mut client: Client) {
    client.send(json!({"type": "leave"})).await;
    client.closed().await;
}

#[tokio::test]
async fn whoever_came_first_is_served_first_whichever_router_it_waits_at() {
    let fleet = Fleet::start(2, 3).await;
    let routers = &fleet.routers;
    let mut active = vec![fleet.active(0).await, fleet.active(1).await];
    let mut line = Vec::new();
    for (position, router) in [2, 0, 1, 1, 2, 0, 2].into_iter().enumerate() {
        line.push(queued(&routers[router], position).await);
    }
    for router in routers {
        waiting(router, line.len()).await;
    }
    // One in the middle goes; those behind it move up.
    let gone = line.remove(3);
    drop(gone);
    told_until(&mut line[5], 5).await;
    while !line.is_empty() {
        let begun = Instant::now();
        leave(active.remove(0)).await;
        placed(&mut line[0]).await;
        eprintln!("a free place was taken after {:?}", begun.elapsed());
        active.push(line.remove(0));
        for router in routers {
            waiting(router, line.len()).await;
        }
        for (position, client) in line.iter_mut().enumerate() {
            told_until(client, position).await;
        }
    }
}

#[tokio::test]
async fn a_router_that_is_killed_leaves_the_line_with_its_sessions() {
    let mut fleet = Fleet::start(1, 2).await;
    let active = fleet.active(1).await;
    let _lost = [
        queued(&fleet.routers[0], 0).await,
        queued(&fleet.routers[0], 1).await,
    ];
    let mut last = queued(&fleet.routers[1], 2).await;
    let begun = Instant::now();
    fleet.routers[0].kill().await;
    told_until(&mut last, 0).await;
    let took = begun.elapsed();
    eprintln!("the tickets were gone after {took:?}");
    // They are to be gone within 4 s; the rest is for a machine with much to do.
    assert!(
        took > Duration::from_secs(2) && took < Duration::from_secs(8),
        "{took:?}"
    );
    leave(active).await;
    placed(&mut last).await;
}

#[tokio::test]
async fn a_router_that_stands_still_comes_back_with_its_sessions_at_their_place() {
    let fleet = Fleet::start(1, 2).await;
    let active = fleet.active(1).await;
    let mut first = queued(&fleet.routers[0], 0).await;
    let mut second = queued(&fleet.routers[1], 1).await;
    fleet.routers[0].signal(Signal::SIGSTOP);
    told_until(&mut second, 0).await;
    fleet.routers[0].signal(Signal::SIGCONT);
    waiting(&fleet.routers[1], 2).await;
    waiting(&fleet.routers[0], 2).await;
    leave(active).await;
    placed(&mut first).await;
    leave(first).await;
    placed(&mut second).await;
}

#[tokio::test]
async fn a_router_that_stops_leaves_the_line_at_once() {
    let mut fleet = Fleet::start(1, 2).await;
    let _active = fleet.active(1).await;
    let mut first = queued(&fleet.routers[0], 0).await;
    let mut second = queued(&fleet.routers[1], 1).await;
    fleet.routers[0].signal(Signal::SIGTERM);
    until("the router drains", async || {
        fleet.routers[0].log().contains("draining").then_some(())
    })
    .await;
    fleet.routers[0].signal(Signal::SIGTERM);
    assert_eq!(first.closed().await, Some(1001));
    told_until(&mut second, 0).await;
    assert!(fleet.routers[0].exit().await.success());
}

#[tokio::test]
async fn places_are_given_while_the_redis_stands_still_or_has_lost_everything() {
    let mut fleet = Fleet::start(1, 2).await;
    for is_stopped in [true, false] {
        let active = fleet.active(0).await;
        let mut before = queued(&fleet.routers[1], 0).await;
        if is_stopped {
            fleet.redis.signal(Signal::SIGSTOP);
        } else {
            fleet.redis.stop();
        }
        for router in &fleet.routers {
            common(router, false).await;
        }
        // Each router has a line of its own.
        let begun = Instant::now();
        let mut other = queued(&fleet.routers[0], 0).await;
        eprintln!("without a Redis: in the line after {:?}", begun.elapsed());
        leave(active).await;
        // It is not known who came earlier.
        let is_other = tokio::select! {
            () = placed(&mut before) => false,
            () = placed(&mut other) => true,
        };
        let (active, mut waits) = match is_other {
            true => (other, before),
            false => (before, other),
        };
        if is_stopped {
            fleet.redis.signal(Signal::SIGCONT);
        } else {
            fleet.redis.start_again().await;
        }
        for router in &fleet.routers {
            common(router, true).await;
            waiting(router, 1).await;
        }
        let mut new = queued(&fleet.routers[0], 1).await;
        leave(active).await;
        placed(&mut waits).await;
        leave(waits).await;
        placed(&mut new).await;
        leave(new).await;
        for router in &fleet.routers {
            with_room(router, 1, 1).await;
        }
    }
}

#[tokio::test]
async fn a_router_starts_while_its_redis_is_away_and_joins_the_line_later() {
    let mut fleet = Fleet::start(1, 1).await;
    fleet.redis.stop();
    common(&fleet.routers[0], false).await;
    let router = fleet.router(&[]);
    with_room(&router, 1, 1).await;
    let active = router.active(json!({})).await;
    let mut first = queued(&router, 0).await;
    until("it is warned", async || {
        let log = router.log();
        let told = log.matches("the line of all routers is lost").count();
        assert!(told <= 1, "{log}");
        (told == 1).then_some(())
    })
    .await;
    fleet.redis.start_again().await;
    common(&fleet.routers[0], true).await;
    waiting(&fleet.routers[0], 1).await;
    let mut second = queued(&fleet.routers[0], 1).await;
    leave(active).await;
    placed(&mut first).await;
    leave(first).await;
    placed(&mut second).await;
}

#[tokio::test]
async fn a_router_with_a_line_of_its_own_has_one() {
    let fleet = Fleet::start(1, 1).await;
    let _active = fleet.active(0).await;
    let _waiting = queued(&fleet.routers[0], 0).await;
    let router = fleet.router(&["--router.queue=memory"]);
    let _own = queued(&router, 0).await;
    assert_eq!(router.status().await["line_is_common"], false);
}

#[tokio::test]
async fn what_names_no_redis_is_refused_with_its_key_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("router.yaml");
    for (line, expected) in [
        ("store: http://a", "`router.store` must be a Redis, but it"),
        ("store: here", "`router.store` must be redis://host:port"),
        ("store: redis://u:hunter2@a?x=1", "unknown parameter `x`"),
        ("queue: redis", "`router.queue` must be"),
        (
            "discovery: store",
            "`router.discovery` must be `replicas`, or `router.store` to be given",
        ),
    ] {
        let file = format!("router:\n  replicas:\n    - url: http://a:8000\n  {line}\n");
        std::fs::write(&path, file).unwrap();
        let (code, _, said) = run(&["router", "--config", path.to_str().unwrap()]).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(said.contains("router.yaml:4"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn every_router_tells_how_many_gpus_are_wanted() {
    let fleet = Fleet::start(2, 2).await;
    let _active = [fleet.active(0).await, fleet.active(1).await];
    let _waiting = [
        queued(&fleet.routers[0], 0).await,
        queued(&fleet.routers[1], 1).await,
        queued(&fleet.routers[0], 2).await,
    ];
    let expected = json!({
        "waiting": 3, "sessions": 2, "places": 2, "free": 0, "gpus": 2, "wanted_gpus": 5,
    });
    for router in &fleet.routers {
        until("the demand is known", async || {
            let (code, demand) = router.get("/v1/fleet/demand").await;
            assert_eq!(code, 200);
            (demand == expected).then_some(())
        })
        .await;
    }
}

/// A server with one place that routers find, at an address of its own.
fn announced(redis: &Redis, blobs: &Path, keys: &Keys, name: &str) -> Server {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let args = [
        format!("--store={}", redis.url),
        folder("--blobs", blobs),
        keys.flag("server.router_keys_file"),
        format!("--server.advertise_url=http://{address}"),
        format!("--server.name={name}"),
        "--gpus=1".to_owned(),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Server::start_at(&address, &args)
}

/// Waits until a router knows these servers and no others, in any order.
async fn found(router: &Server, expected: &[&str]) {
    until(
        &format!("these servers are known: {expected:?}"),
        async || {
            let status = router.status().await;
            let replicas = status["replicas"].as_array().unwrap().iter();
            let mut names: Vec<_> = replicas.map(|replica| replica["name"].clone()).collect();
            names.sort_by_key(ToString::to_string);
            (names == expected).then_some(())
        },
    )
    .await;
}

#[tokio::test]
async fn servers_that_come_are_found_and_those_that_are_killed_are_dropped() {
    let (mut redis, blobs, keys) = (
        Redis::start().await,
        tempfile::tempdir().unwrap(),
        Keys::new(KEY),
    );
    let store = format!("--router.store={}", redis.url);
    let router = keys.router(&[], &["--router.discovery=store", &store]);
    let mut nobody = router.open(json!({})).await;
    assert_eq!(nobody.error().await["code"], "gpu_unavailable");
    assert_eq!(nobody.closed().await, Some(1013));

    let mut first = announced(&redis, blobs.path(), &keys, "first");
    found(&router, &["first"]).await;
    with_room(&router, 1, 1).await;
    let mut client = router.active(json!({})).await;
    client.segment("a red fox").await;
    let second = announced(&redis, blobs.path(), &keys, "second");
    found(&router, &["first", "second"]).await;
    with_room(&router, 1, 1).await;
    // A router that comes later knows both when it takes its first client.
    let late = keys.router(&[], &["--router.discovery=store", &store]);
    let mut other = late.active(json!({})).await;
    found(&late, &["first", "second"]).await;
    other.segment("a wood").await;
    leave(other).await;

    let begun = Instant::now();
    first.kill().await;
    found(&router, &["second"]).await;
    eprintln!("a server was dropped after {:?}", begun.elapsed());
    client.segment("a blue hare").await;
    // Servers are not forgotten with the Redis.
    redis.stop();
    until("the router notices", async || {
        let log = router.log();
        log.contains("servers that come and go are not noticed")
            .then_some(())
    })
    .await;
    redis.start_again().await;
    until("the router looks again", async || {
        let log = router.log();
        log.contains("servers are looked for again").then_some(())
    })
    .await;
    found(&router, &["second"]).await;
    let log = router.log();
    assert_eq!(log.matches("server is gone").count(), 1, "{log}");
    client.segment("a lake").await;
    leave(client).await;
    second.signal(Signal::SIGTERM);
    found(&router, &[]).await;
}

#[tokio::test]
async fn a_server_names_an_address_where_it_announces_one() {
    for bad in ["ftp://a", "a:8000", "http://u:p@a", "http://a?x"] {
        let flag = format!("--server.advertise_url={bad}");
        let (code, _, said) = run(&["--gpus=1", &flag]).await;
        assert_eq!(code, Some(2), "{said}");
        let expected = "`server.advertise_url` must be an http:// or https:// address";
        assert!(said.contains(expected), "{said}");
    }
}
