//! Sessions that move between servers, behind a router: their clients see a pause, and not another byte.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::durable::{Redis, folder};
use crate::harness::{Client, Heard, PATIENCE, Server, merge, short, until};
use crate::initial_image;
use crate::prompts;
use crate::provider::Provider;
use crate::router::{KEY, Keys, with_room};

/// Several servers with one store, behind a router.
pub(crate) struct Fleet {
    redis: Redis,
    _blobs: TempDir,
    pub(crate) keys: Keys,
    args: Vec<String>,
    pub(crate) servers: Vec<Server>,
    pub(crate) router: Server,
}

impl Fleet {
    pub(crate) async fn start(servers: usize, args: &[&str]) -> Self {
        let (redis, blobs, keys) = (
            Redis::start().await,
            tempfile::tempdir().unwrap(),
            Keys::new(KEY),
        );
        let own = [
            format!("--store={}", redis.url),
            folder("--blobs", blobs.path()),
            keys.flag("server.router_keys_file"),
            "--streaming.encoder.fragment_ms=100".to_owned(),
        ];
        let args: Vec<_> = own
            .into_iter()
            .chain(args.iter().map(|&arg| arg.to_owned()))
            .collect();
        let started: Vec<_> = (0..servers).map(|_| start(&args)).collect();
        let addresses: Vec<_> = started.iter().map(|server| &*server.address).collect();
        let router = keys.router(
            &addresses,
            &[
                "--router.dead_after_seconds=1.5",
                "--router.wait_for_replica_seconds=60",
            ],
        );
        let fleet = Self {
            redis,
            _blobs: blobs,
            keys,
            args,
            servers: started,
            router,
        };
        fleet.linked(servers).await;
        fleet
    }

    /// Waits until so many servers have room.
    pub(crate) async fn linked(&self, servers: usize) {
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
    pub(crate) async fn running(&self) -> usize {
        running(&self.servers).await
    }

    /// Kills a server and starts another one in its place.
    pub(crate) async fn kill(&mut self, n: usize) {
        self.servers[n].kill().await;
        self.start_again(n);
    }

    /// Starts a server of the same store with more arguments. The router does not know it.
    pub(crate) fn another(&self, more: &[String]) -> Server {
        start(&[&self.args, more].concat())
    }

    /// Starts another server in the place of one that is gone.
    pub(crate) fn start_again(&mut self, n: usize) {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.servers[n] = Server::start_at(&self.servers[n].address.clone(), &args);
    }
}

/// Which of these servers runs the only session.
async fn running(servers: &[Server]) -> usize {
    until("a server runs the session", async || {
        for (n, server) in servers.iter().enumerate() {
            if try_sessions(server).await.is_some_and(|count| count > 0) {
                return Some(n);
            }
        }
        None
    })
    .await
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

/// Segments that take long enough for a server to be killed in each part of them.
pub(crate) const SLOW: &[&str] = &["--gpus=1", "--generator.synthetic.frame_ms=20"];

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
    let mut fleet = Fleet::start(3, SLOW).await;
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
    let mut fleet = Fleet::start(2, SLOW).await;
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

#[tokio::test]
async fn a_playlist_has_no_end_before_its_session_is_over() {
    let mut fleet = Fleet::start(3, &[SLOW, &["--grace-seconds=1"]].concat()).await;
    let (servers, router) = (&mut fleet.servers, &fleet.router);
    let mut client = router.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    let text = |field: &str| assigned[field].as_str().unwrap();
    let (id, token) = (text("session_id"), text("watch_token"));
    let path = format!("/v1/sessions/{id}/index.m3u8?token={token}");
    let playlist = async |server: &Server| {
        let answer = server.request("GET", &path, None).await;
        assert_eq!(answer.status(), 200, "{}", answer.body());
        answer.into_body()
    };
    let polled = async {
        loop {
            let list = playlist(router).await;
            assert!(!list.contains("ENDLIST"), "{list}");
        }
    };
    let moved = async {
        client.segment(PROMPTS[0]).await;
        client.prompt(PROMPTS[1]).await;
        client.until_type("media_init").await;
        let killed = running(servers).await;
        servers.swap_remove(killed).kill().await;
        client.until_type("ltx2_segment_complete").await;
        // There is no other place for it.
        let leaving = running(servers).await;
        let mut other = servers[1 - leaving].active(json!({})).await;
        servers[leaving].signal(Signal::SIGTERM);
        servers[leaving].exit().await;
        servers.swap_remove(leaving);
        assert!(!playlist(&servers[0]).await.contains("ENDLIST"));
        client.prompt(PROMPTS[2]).await;
        other.close(Some(1000)).await;
        client.until_type("ltx2_segment_complete").await;
    };
    tokio::select! {
        () = polled => {}
        () = moved => {}
    }
    client.send(json!({"type": "leave"})).await;
    client.closed().await;
    let ended = until("the list has ended", async || {
        let list = playlist(router).await;
        list.contains("#EXT-X-ENDLIST").then_some(list)
    })
    .await;
    assert_eq!(ended.matches("#EXTINF").count(), 3, "{ended}");
}

/// What the clients of a large fleet do, each in its own way: what it opens its session with, what it says, and for how
/// many messages of a type it waits after that.
fn scripts() -> Vec<(Value, Vec<(Value, &'static str)>)> {
    const DONE: &str = "ltx2_segment_complete";
    let say = |kind: &str, more: Value| {
        let mut message = json!({"type": kind});
        merge(&mut message, more);
        message
    };
    let ask = |prompt: &str| say("segment_prompt_source", json!({"prompt": prompt}));
    let named = |id: &str| {
        let more = json!({"prompt": format!("a {id} sea"), "request_id": id, "seed": 7});
        say("segment_prompt_source", more)
    };
    let toggle = |kind: &str, field: &str, on: bool| say(kind, json!({field: on}));
    let pause = |on| toggle("generation_paused_updated", "paused", on);
    let snapshot = || say("snapshot_state", json!({}));
    const SNAPSHOT: &str = "continuation_state_snapshot";
    vec![
        // A picture to begin with, and a snapshot after each segment.
        (
            json!({"initial_image": initial_image::small()}),
            vec![
                (ask("a red fox"), DONE),
                (snapshot(), SNAPSHOT),
                (ask("a blue hare"), DONE),
                (snapshot(), SNAPSHOT),
                (ask("a wood"), DONE),
            ],
        ),
        // A loop, which goes on while nobody asks for anything.
        (
            json!({
                "curated_prompts": ["a red fox", "a lake", "snow"],
                "loop_generation_enabled": true,
            }),
            vec![(Value::Null, DONE); 4],
        ),
        // Requests that wait while the session is paused, and are changed then.
        (
            json!({}),
            vec![
                (pause(true), ""),
                (named("a"), ""),
                (named("b"), ""),
                (named("c"), ""),
                (
                    say("edit_request", json!({"request_id": "c", "position": 0})),
                    "request_edited",
                ),
                (
                    say(
                        "edit_request",
                        json!({"request_id": "a", "prompt": "a lake"}),
                    ),
                    "request_edited",
                ),
                (
                    say("withdraw_request", json!({"request_id": "b"})),
                    "request_withdrawn",
                ),
                (say("withdraw_request", json!({"request_id": "z"})), "error"),
                (pause(false), DONE),
                (Value::Null, DONE),
            ],
        ),
        // Prompts that a language model enhances.
        (
            json!({"enhancement_enabled": true}),
            vec![
                (ask("a red fox"), DONE),
                (ask("a blue hare"), DONE),
                (toggle("enhancement_updated", "enabled", false), ""),
                (ask("a wood"), DONE),
            ],
        ),
        // All at once.
        (
            json!({"stream_mode": "legacy_jpeg"}),
            vec![
                (ask("a red fox"), ""),
                (ask("a blue hare"), ""),
                (ask("a wood"), DONE),
                (Value::Null, DONE),
                (Value::Null, DONE),
            ],
        ),
    ]
}

/// Plays a script, and returns what the client has heard up to its last step. It is compared as it comes.
async fn play(
    address: &str,
    init: &Value,
    steps: &[(Value, &str)],
    expected: Option<&[Heard]>,
) -> Vec<Heard> {
    let url = format!("ws://{address}/v1/stream");
    let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let mut client = Client { socket };
    let mut opening = json!({"type": "session_init_v2"});
    merge(&mut opening, init.clone());
    client.send(opening).await;
    let (mut all, mut session) = (Vec::new(), String::new());
    let mut opened = false;
    for (say, until) in steps {
        if !say.is_null() {
            // A message before the session is there would be none that waits.
            while !opened {
                let heard = client.next().await;
                assert!(
                    !matches!(heard, Heard::Closed(_)),
                    "{}: {all:?}",
                    short(&heard)
                );
                opened = matches!(&heard, Heard::Text(text) if text["type"] == "ltx2_stream_start");
                all.extend(plain(heard, &mut session));
            }
            client.send(say.clone()).await;
        }
        let mut is_done = until.is_empty();
        while !is_done {
            let heard = client.next().await;
            is_done = match &heard {
                Heard::Text(text) => text["type"] == *until,
                Heard::Media(_) => false,
                Heard::Closed(code) => panic!("closed with {code:?} before {until}"),
            };
            all.extend(plain(heard, &mut session));
            if let (Some(expected), Some(last)) = (expected, all.len().checked_sub(1)) {
                compare(&all[last..], &expected[last..][..1]);
            }
        }
    }
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;
    assert_eq!(client.closed().await, Some(1000));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_all_kinds_outlive_their_servers() {
    let (sessions, kills) = match std::env::var("FASTVIDEO_TEST_FLEET").is_ok() {
        true => (200, 60),
        false => (100, 12),
    };
    let provider = Provider::shouting().await;
    let more = [
        "--gpus=2",
        "--streaming.pool.sessions_per_gpu=100",
        "--streaming.limits.max_sessions_per_client=1000",
        "--generator.synthetic.frame_ms=1",
    ];
    let args = prompts::with(&provider, &more);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut fleet = Fleet::start(3, &args).await;
    let scripts = scripts();
    let mut expected = HashMap::new();
    for (n, (init, steps)) in scripts.iter().enumerate() {
        expected.insert(n, play(&fleet.servers[0].address, init, steps, None).await);
    }
    let (is_over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let address = fleet.router.address.clone();
    let client = async |n: usize| {
        let kind = n % scripts.len();
        let (init, steps) = &scripts[kind];
        while !is_over.load(Ordering::Relaxed) {
            let expected = &expected[&kind];
            let heard = play(&address, init, steps, Some(expected)).await;
            compare(&heard, expected);
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    };
    let disturbed = async {
        for n in 0..3 {
            fleet.servers[n].signal(Signal::SIGTERM);
            assert!(fleet.servers[n].exit().await.success());
            fleet.start_again(n);
            fleet.linked(3).await;
        }
        for _ in 0..kills {
            let pause = rand::random_range(0..300);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            fleet.kill(rand::random_range(0..3)).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all((0..sessions).map(client)), disturbed);
    let rounds = rounds.load(Ordering::Relaxed);
    assert!(rounds >= sessions, "{rounds} sessions");
    eprintln!("{rounds} sessions");
}

/// Passes connections on to a server, and breaks session links after some messages of the server.
struct Scissors {
    address: String,
    /// The number of messages after which the next link breaks; no link breaks at the largest.
    cut_after: Arc<AtomicUsize>,
    /// Whether a part of the message after the last one is passed on.
    in_the_middle: Arc<AtomicBool>,
    _passing: JoinSet<()>,
}

impl Scissors {
    async fn before(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cut_after = Arc::new(AtomicUsize::new(usize::MAX));
        let in_the_middle = Arc::new(AtomicBool::new(false));
        let (limit, middle) = (cut_after.clone(), in_the_middle.clone());
        let mut passing = JoinSet::new();
        passing.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (router, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&server).await.unwrap();
                let (limit, middle) = (limit.clone(), middle.clone());
                connections.spawn(pass(router, server, limit, middle));
            }
        });
        Self {
            address,
            cut_after,
            in_the_middle,
            _passing: passing,
        }
    }
}

async fn pass(
    mut router: TcpStream,
    mut server: TcpStream,
    limit: Arc<AtomicUsize>,
    middle: Arc<AtomicBool>,
) {
    let mut head = vec![0; 4096];
    let Ok(length @ 1..) = router.read(&mut head).await else {
        return;
    };
    server.write_all(&head[..length]).await.unwrap();
    let is_session = head[..length].starts_with(b"GET /v1/router/session");
    if !is_session {
        let _ = tokio::io::copy_bidirectional(&mut router, &mut server).await;
        return;
    }
    let limit = limit.swap(usize::MAX, Ordering::Relaxed);
    let (mut from_router, mut to_router) = router.into_split();
    let (from_server, mut to_server) = server.into_split();
    let down = async {
        let mut from_server = BufReader::new(from_server);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            from_server.read_line(&mut line).await?;
            to_router.write_all(line.as_bytes()).await?;
        }
        for _ in 0..limit {
            let frame = frame(&mut from_server).await?;
            to_router.write_all(&frame).await?;
        }
        let rest = frame(&mut from_server).await?;
        if middle.load(Ordering::Relaxed) {
            to_router.write_all(&rest[..rest.len() / 2]).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let up = tokio::io::copy(&mut from_router, &mut to_server);
    tokio::select! {
        _ = down => {}
        _ = up => {}
    }
}

/// One frame of a server, which masks nothing.
async fn frame(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; 2];
    from.read_exact(&mut frame).await?;
    let more = match frame[1] {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mut length = u64::from(frame[1]);
    if more > 0 {
        let mut long = vec![0; more];
        from.read_exact(&mut long).await?;
        length = long.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        frame.extend(long);
    }
    let head = frame.len();
    frame.resize(head + usize::try_from(length).unwrap(), 0);
    from.read_exact(&mut frame[head..]).await?;
    Ok(frame)
}

#[tokio::test]
async fn a_link_may_break_between_any_two_messages_and_in_each_of_them() {
    let keys = Keys::new(KEY);
    let server = keys.server(&["--streaming.encoder.fragment_ms=100"]);
    let scissors = Scissors::before(server.address.clone()).await;
    let router = keys.router(&[&scissors.address], &[]);
    with_room(&router, 1, 2).await;
    let scripts = scripts();
    for kind in [0, 2] {
        let (init, steps) = &scripts[kind];
        let expected = play(&server.address, init, steps, None).await;
        for in_the_middle in [false, true] {
            scissors
                .in_the_middle
                .store(in_the_middle, Ordering::Relaxed);
            let mut cut_after = 0;
            loop {
                scissors.cut_after.store(cut_after, Ordering::Relaxed);
                let heard = play(&router.address, init, steps, Some(&expected)).await;
                compare(&heard, &expected);
                // Links that were not broken have more messages than a session has here.
                cut_after += 1;
                if cut_after > 40 {
                    break;
                }
            }
        }
    }
    server.sessions(0).await;
}

#[tokio::test]
async fn a_server_that_stands_still_loses_its_sessions_and_disturbs_nobody_when_it_goes_on() {
    let fleet = Fleet::start(2, SLOW).await;
    let mut direct = fleet.servers[0].open(json!({})).await;
    let expected = story(&mut direct, PROMPTS).await;
    let mut client = fleet.router.open(json!({})).await;
    let told = async { story(&mut client, PROMPTS).await };
    let stopped = async {
        let n = fleet.running().await;
        fleet.servers[n].signal(Signal::SIGSTOP);
        fleet.servers[1 - n].sessions(1).await;
        fleet.servers[n].signal(Signal::SIGCONT);
        fleet.servers[n].sessions(0).await;
    };
    let (heard, ()) = tokio::join!(told, stopped);
    compare(&heard, &expected);
}

#[tokio::test]
async fn a_server_that_gives_other_bytes_begins_the_segment_anew() {
    let mut fleet = Fleet::start(1, SLOW).await;
    let other = fleet.another(&["--streaming.encoder.crf=35".to_owned()]);
    let router = fleet
        .keys
        .router(&[&fleet.servers[0].address, &other.address], &[]);
    with_room(&router, 2, 1).await;
    let mut direct = other.open(json!({})).await;
    direct.until_type("ltx2_stream_start").await;
    let expected = direct.segment("a red fox").await;
    direct.close(None).await;
    let mut client = router.open(json!({})).await;
    client.prompt("a red fox").await;
    let init = client.until_type("media_init").await;
    assert!(init["stream_id"].as_str().unwrap().ends_with("-0-1"));
    for _ in 0..2 {
        let heard = client.next().await;
        assert!(!matches!(heard, Heard::Closed(_)));
    }
    fleet.servers[0].kill().await;
    let error = client.error().await;
    assert_eq!(
        (&error["code"], &error["restarting"], &error["segment_idx"]),
        (&json!("worker_failed"), &json!(true), &json!(0))
    );
    let again = client.collect_until("ltx2_segment_complete").await;
    assert_eq!(again.only("ltx2_segment_start")["attempt"], 2);
    let init = again.only("media_init");
    assert!(init["stream_id"].as_str().unwrap().ends_with("-0-2"));
    assert!(again.media == expected.media, "other bytes than its own");
}

#[tokio::test]
async fn a_worker_that_is_lost_where_there_is_no_other_one_moves_its_session() {
    let fleet = Fleet::start(2, SLOW).await;
    let mut direct = fleet.servers[0].active(json!({})).await;
    let mut expected = Vec::new();
    for prompt in &PROMPTS[..3] {
        expected.push(direct.segment(prompt).await);
    }
    direct.close(None).await;
    let mut client = fleet.router.active(json!({})).await;
    client.prompt(PROMPTS[0]).await;
    client.until_type("ltx2_segment_start").await;
    let n = fleet.running().await;
    nix::sys::signal::kill(fleet.servers[n].worker_pid(0).await, Signal::SIGKILL).unwrap();
    let first = client.collect_until("ltx2_segment_complete").await;
    assert!(first.media == expected[0].media, "other bytes");
    assert_eq!(fleet.running().await, 1 - n);
    for (prompt, expected) in PROMPTS[1..3].iter().zip(&expected[1..]) {
        assert!(client.segment(prompt).await.media == expected.media);
    }
}

#[tokio::test]
async fn a_session_that_moves_waits_for_its_store() {
    let mut fleet = Fleet::start(2, &[]).await;
    let mut direct = fleet.servers[0].active(json!({})).await;
    let mut expected = Vec::new();
    for prompt in &PROMPTS[..2] {
        expected.push(direct.segment(prompt).await);
    }
    direct.close(None).await;
    let mut client = fleet.router.active(json!({})).await;
    assert!(client.segment(PROMPTS[0]).await.media == expected[0].media);
    fleet.redis.save().await;
    let n = fleet.running().await;
    fleet.redis.stop();
    fleet.servers[n].kill().await;
    until("the session is in the line", async || {
        (fleet.router.status().await["waiting"] == 1).then_some(())
    })
    .await;
    client.prompt(PROMPTS[1]).await;
    fleet.redis.start_again().await;
    let again = client.collect_until("ltx2_segment_complete").await;
    assert!(again.media == expected[1].media, "other bytes");
}

#[tokio::test]
async fn a_session_of_which_the_store_has_lost_a_segment_is_refused() {
    let mut fleet = Fleet::start(2, &[]).await;
    let mut client = fleet.router.active(json!({})).await;
    client.segment(PROMPTS[0]).await;
    fleet.redis.save().await;
    client.segment(PROMPTS[1]).await;
    let n = fleet.running().await;
    // As when a replica takes over that has not got the last writes.
    fleet.redis.stop();
    fleet.servers[n].kill().await;
    fleet.redis.start_again().await;
    let error = client.error().await;
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("session_rejected"), &json!(false))
    );
    assert_eq!(client.closed().await, Some(1000));
}

#[tokio::test]
async fn what_was_only_in_a_servers_memory_is_lost_with_it() {
    let keys = Keys::new(KEY);
    let (mut first, second) = (keys.server(&[]), keys.server(&[]));
    let router = keys.router(&[&first.address, &second.address], &[]);
    with_room(&router, 2, 2).await;
    let mut client = router.active(json!({})).await;
    client.segment("a red fox").await;
    first.sessions(1).await;
    first.kill().await;
    let error = client.error().await;
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("router bridge failed: "), "{message}");
    assert_eq!(client.closed().await, Some(1011));
}

/// The close code of a session link, whatever comes before.
async fn closed(mut link: Client) -> Option<u16> {
    loop {
        let message = timeout(PATIENCE, link.socket.next()).await;
        match message.expect("the link ends in time") {
            Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

#[tokio::test]
async fn a_router_that_breaks_the_rules_of_a_session_link_harms_nobody() {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;

    let keys = Keys::new(KEY);
    let server = keys.server(&[]);
    let mut other = server.active(json!({})).await;
    let link = async |key: &str| {
        let url = format!("ws://{}/v1/router/session", server.address);
        let mut request = url.into_client_request().unwrap();
        let bearer = format!("Bearer {key}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        let connected = tokio_tungstenite::connect_async(request).await;
        connected.map(|(socket, _)| Client { socket })
    };
    assert!(link("another-key-that-is-long-enough-too").await.is_err());
    let open = |head: &str| format!("{{\"open\":{head}}}\n{{\"type\":\"session_init_v2\"}}");
    let moved = |checkpoint: &str, media: &str| {
        open(&format!(
            "{{\"address\":\"192.0.2.1\",\"moved\":{{\"session\":\"0123\",\"resume_token\":\"x\",\"seq\":0,\
             \"checkpoint\":{checkpoint},\"media\":[{media}]}}}}"
        ))
    };
    let large = format!("\"{}\"", "x".repeat(5 << 20));
    for first in [
        "",
        "{",
        "\"client\"\n{}",
        "{\"open\":{}}",
        "{\"open\":{\"address\":\"192.0.2.1\"}}",
        &moved("null", ""),
        &moved("[1, 2]", ""),
        &moved("{}", "\"abc\""),
        &moved(&large, ""),
    ] {
        let mut router = link(KEY).await.unwrap();
        router.send_text(first).await;
        assert_eq!(
            router.closed().await,
            Some(1008),
            "{}",
            &first[..first.len().min(99)]
        );
    }
    for then in [
        "{",
        "{\"open\":{\"address\":\"192.0.2.1\"}}",
        "{\"passed\":{}}",
    ] {
        let mut router = link(KEY).await.unwrap();
        router.send_text(&open("{\"address\":\"192.0.2.1\"}")).await;
        router.send_text(then).await;
        closed(router).await;
    }
    // A link on which nothing is opened, one with a binary message, and one that just ends.
    let mut silent = link(KEY).await.unwrap();
    silent.send_binary(b"abc").await;
    closed(silent).await;
    drop(link(KEY).await.unwrap());
    server.sessions(1).await;
    other.segment("a red fox").await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_left_as_at_a_server() {
    let keys = Keys::new(KEY);
    let server = keys.server(&[
        "--streaming.limits.slow_client_timeout_seconds=1",
        "--streaming.limits.max_unsent_bytes=100000",
        "--default_request.sampling.width=640",
        "--default_request.sampling.height=480",
    ]);
    let router = keys.router(&[&server.address], &[]);
    let mut client = router
        .active(json!({
            "curated_prompts": ["a red fox"], "loop_generation_enabled": true, "stream_mode": "legacy_jpeg",
        }))
        .await;
    server.sessions(1).await;
    server.sessions(0).await;
    let code = client.closed().await;
    assert!(matches!(code, Some(1008) | None), "{code:?}");
}

#[tokio::test]
async fn an_idle_session_makes_room_for_one_that_waits_at_the_router() {
    let keys = Keys::new(KEY);
    let server = keys.server(&["--streaming.idle_while_others_wait_seconds=0.4"]);
    let router = keys.router(&[&server.address], &[]);
    let mut idle = [
        router.active(json!({})).await,
        router.active(json!({})).await,
    ];
    let mut waiting = router.open(json!({})).await;
    waiting.expect("queue_status").await;
    waiting.until_type("ltx2_stream_start").await;
    let ended = async |client: &mut Client| {
        client.until_type("idle_warning").await;
        client.until_type("session_timeout").await;
        client.closed().await
    };
    let [first, second] = &mut idle;
    let code = tokio::select! {
        code = ended(first) => code,
        code = ended(second) => code,
    };
    assert_eq!(code, Some(1000));
}
