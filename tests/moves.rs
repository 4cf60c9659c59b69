//! Sessions that move between servers, behind a router: their clients see a pause, and not another byte.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::durable::{Redis, folder};
use crate::harness::{Client, Heard, Server, short, until};
use crate::router::{KEY, Keys};

/// Several servers with one store, behind a router.
struct Fleet {
    _redis: Redis,
    _blobs: TempDir,
    _keys: Keys,
    args: Vec<String>,
    servers: Vec<Server>,
    router: Server,
}

impl Fleet {
    async fn start(servers: usize, args: &[&str]) -> Self {
        let (redis, blobs, keys) = (
            Redis::start().await,
            tempfile::tempdir().unwrap(),
            Keys::new(KEY),
        );
        let own = [
            format!("--store={}", redis.url),
            folder("--blobs", blobs.path()),
            keys.flag("server.router_keys_file"),
            "--generator.synthetic.frame_ms=20".to_owned(),
            "--streaming.encoder.fragment_ms=100".to_owned(),
        ];
        let args: Vec<_> = own
            .into_iter()
            .chain(args.iter().map(|&arg| arg.to_owned()))
            .collect();
        let started: Vec<_> = (0..servers).map(|_| start(&args)).collect();
        let addresses: Vec<_> = started.iter().map(|server| &*server.address).collect();
        let router = keys.router(&addresses, &["--router.dead_after_seconds=1.5"]);
        let fleet = Self {
            _redis: redis,
            _blobs: blobs,
            _keys: keys,
            args,
            servers: started,
            router,
        };
        fleet.linked(servers).await;
        fleet
    }

    /// Waits until so many servers have room.
    async fn linked(&self, servers: usize) {
        until(&format!("{servers} servers are linked"), async || {
            let status = self.router.status().await;
            let replicas = status["replicas"].as_array().unwrap().iter();
            let is_there = |replica: &&Value| {
                let places = replica["report"]["places"].as_u64();
                places.is_some_and(|places| places > 0) && replica["status"] == "healthy"
            };
            (replicas.filter(is_there).count() == servers).then_some(())
        })
        .await;
    }

    /// The server that runs the only session.
    async fn running(&self) -> usize {
        until("a server runs the session", async || {
            for (n, server) in self.servers.iter().enumerate() {
                let Some(sessions) = try_sessions(server).await else {
                    continue;
                };
                if sessions > 0 {
                    return Some(n);
                }
            }
            None
        })
        .await
    }

    /// Kills a server and starts another one in its place.
    async fn kill(&mut self, n: usize) {
        self.servers[n].kill().await;
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.servers[n] = Server::start_at(&self.servers[n].address.clone(), &args);
    }
}

async fn try_sessions(server: &Server) -> Option<u64> {
    let (code, body) = server.get("/v1/sessions").await;
    (code == 200).then(|| body["sessions"].as_array().unwrap().len() as u64)
}

fn start(args: &[String]) -> Server {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Server::start(&args)
}

/// What a client hears, without what differs from one session to another and from one run to another.
fn plain(heard: Heard, session: &mut String) -> Option<Heard> {
    let Heard::Text(mut text) = heard else {
        return Some(heard);
    };
    let kind = text["type"].as_str().unwrap().to_owned();
    if kind == "gpu_assigned" {
        *session = text["session_id"].as_str().unwrap().to_owned();
        return None;
    }
    if kind == "step_complete" || kind == "queue_status" {
        return None;
    }
    let fields = text.as_object_mut().unwrap();
    for field in [
        "generation_time_ms",
        "e2e_latency_ms",
        "latency_ms",
        "resumable_until",
    ] {
        fields.remove(field);
    }
    if let Some(stream) = fields.get_mut("stream_id") {
        *stream = json!(stream.as_str().unwrap().replace(&*session, "session"));
    }
    Some(Heard::Text(text))
}

/// Everything that a client hears up to its close, while `disturb` goes on after each segment that it has completely.
async fn story(client: &mut Client, prompts: &[&str]) -> Vec<Heard> {
    let (mut all, mut session) = (Vec::new(), String::new());
    for prompt in prompts {
        client.prompt(prompt).await;
    }
    let mut finished = 0;
    loop {
        let heard = client.next().await;
        if let Heard::Text(text) = &heard
            && text["type"] == "ltx2_segment_complete"
        {
            finished += 1;
            if finished == prompts.len() {
                client.send(json!({"type": "leave"})).await;
            }
        }
        let is_last = matches!(heard, Heard::Closed(_));
        all.extend(plain(heard, &mut session));
        if is_last {
            return all;
        }
    }
}

#[track_caller]
fn compare(heard: &[Heard], expected: &[Heard]) {
    for (n, (heard, expected)) in heard.iter().zip(expected).enumerate() {
        assert!(
            heard == expected,
            "message {n}: {} instead of {}",
            short(heard),
            short(expected)
        );
    }
    assert_eq!(heard.len(), expected.len());
}

const PROMPTS: &[&str] = &[
    "a red fox",
    "a blue hare",
    "a wood",
    "a lake",
    "snow",
    "a city",
];

#[tokio::test]
async fn a_server_that_is_killed_costs_its_sessions_a_pause() {
    let mut fleet = Fleet::start(3, &["--gpus=1"]).await;
    let mut direct = fleet.servers[0].open(json!({})).await;
    let expected = story(&mut direct, PROMPTS).await;
    for round in 0..4 {
        let mut client = fleet.router.open(json!({})).await;
        let told = async { story(&mut client, PROMPTS).await };
        let kills = async {
            for kill in 0..3 {
                let n = fleet.running().await;
                // At other moments each time.
                tokio::time::sleep(Duration::from_millis(70 + 37 * (round * 3 + kill))).await;
                fleet.kill(n).await;
            }
        };
        let (heard, ()) = tokio::join!(told, kills);
        compare(&heard, &expected);
        fleet.linked(3).await;
    }
}

#[tokio::test]
async fn a_server_that_leaves_hands_its_sessions_on_between_two_segments() {
    let mut fleet = Fleet::start(2, &["--gpus=1"]).await;
    let mut direct = fleet.servers[0].open(json!({})).await;
    let expected = story(&mut direct, PROMPTS).await;
    let mut client = fleet.router.open(json!({})).await;
    let told = async { story(&mut client, PROMPTS).await };
    let left = async {
        let n = fleet.running().await;
        fleet.servers[n].signal(Signal::SIGTERM);
        let status = fleet.servers[n].exit().await;
        assert!(status.success(), "{status}");
        assert_ne!(fleet.running().await, n);
    };
    let (heard, ()) = tokio::join!(told, left);
    compare(&heard, &expected);
}
