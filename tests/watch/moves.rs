//! Spectators at a router: their session moves between servers, and they see what its client gets.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{Client, Heard, Server, short, until};
use crate::moves::{Fleet, SLOW};
use crate::router::{KEY, Keys};

/// A session, and what is needed to watch it.
struct Session {
    client: Client,
    id: String,
    token: String,
}

impl Session {
    async fn open(at: &Server, init: Value) -> Self {
        let (client, id, token) = super::session(at, init).await;
        Self { client, id, token }
    }

    /// Takes the segment that was asked for: its binary messages.
    async fn take(&mut self) -> Vec<Vec<u8>> {
        let made = self.client.collect_until("ltx2_segment_complete").await;
        made.media
    }

    async fn spectator(&self, at: &Server, more: &str) -> Spectator {
        let query = format!("session={}&token={}{more}", self.id, self.token);
        let (socket, _) = super::watch(at, &query).await;
        Spectator {
            socket,
            texts: Vec::new(),
            media: Vec::new(),
            voids: 0,
        }
    }

    async fn film(&self, at: &Server) -> Value {
        let path = format!("/v1/sessions/{}/film?token={}", self.id, self.token);
        at.get(&path).await.1
    }
}

/// A spectator, and what it has of the segment that it is shown.
struct Spectator {
    socket: Client,
    texts: Vec<String>,
    media: Vec<Vec<u8>>,
    /// How often it was told that what it has is void.
    voids: usize,
}

impl Spectator {
    /// Takes the next message. Returns what is known of the segment when that was the last of it.
    async fn next(&mut self) -> Option<Value> {
        match self.socket.next().await {
            Heard::Media(media) => self.media.push(media),
            Heard::Text(text) if text["type"] == "error" => {
                assert_eq!(text["restarting"], true, "{text}");
                self.texts.clear();
                self.media.clear();
                self.voids += 1;
            }
            Heard::Text(text) if text["type"] == "film_segment" => {
                let expected = ["ltx2_segment_start", "media_init", "media_segment_complete"];
                assert_eq!(self.texts, expected);
                self.texts.clear();
                return Some(text);
            }
            Heard::Text(text) => self.texts.push(text["type"].as_str().unwrap().to_owned()),
            closed @ Heard::Closed(_) => panic!("{}", short(&closed)),
        }
        None
    }

    /// Waits until it has so many binary messages of a segment.
    async fn has(&mut self, messages: usize) {
        while self.media.len() < messages {
            assert_eq!(self.next().await, None, "the segment has no more");
        }
    }

    /// Takes the rest of a segment. Returns its binary messages.
    async fn segment(&mut self, segment_idx: usize) -> Vec<Vec<u8>> {
        loop {
            if let Some(facts) = self.next().await {
                assert_eq!(facts["segment_idx"], segment_idx);
                return std::mem::take(&mut self.media);
            }
        }
    }

    async fn is_told_of_the_end(&mut self) {
        self.socket.until_type("watch_end").await;
        assert_eq!(self.socket.closed().await, Some(1000));
    }
}

const PROMPTS: [&str; 5] = ["a red fox", "a blue hare", "a wood", "a lake", "snow"];

/// Asserts that a film has these segments, and that one who watches it from its beginning sees them.
async fn is_film(session: &Session, at: &Server, segments: &[Vec<Vec<u8>>]) {
    let mut spectator = session.spectator(at, "&from=0").await;
    let film = session.film(at).await;
    for (n, segment) in segments.iter().enumerate() {
        let hash = Sha256::digest(segment.concat());
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(film["segments"][n]["sha256"], hash);
        assert!(spectator.segment(n).await == *segment, "segment {n}");
    }
    assert_eq!(film["segments"].as_array().unwrap().len(), segments.len());
}

#[tokio::test]
async fn servers_that_are_killed_cost_spectators_a_pause() {
    let mut fleet = Fleet::start(3, SLOW).await;
    let mut session = Session::open(&fleet.router, json!({})).await;
    let mut early = session.spectator(&fleet.router, "").await;
    let mut film = session.spectator(&fleet.router, "&from=0").await;
    let mut segments = Vec::new();
    for (n, prompt) in PROMPTS.iter().enumerate() {
        session.client.prompt(prompt).await;
        // With the init segment only, and with more each time.
        early.has(n + 1).await;
        fleet.kill(fleet.running().await).await;
        let made = session.take().await;
        for spectator in [&mut early, &mut film] {
            assert!(spectator.segment(n).await == made, "segment {n}");
            assert_eq!(spectator.voids, 0);
        }
        segments.push(made);
        fleet.linked(3).await;
    }
    is_film(&session, &fleet.router, &segments).await;
}

#[tokio::test]
async fn servers_that_leave_are_not_seen_by_spectators() {
    let mut fleet = Fleet::start(2, SLOW).await;
    let mut session = Session::open(&fleet.router, json!({})).await;
    let mut spectator = session.spectator(&fleet.router, "").await;
    let mut segments = Vec::new();
    for (n, prompt) in PROMPTS[..3].iter().enumerate() {
        session.client.prompt(prompt).await;
        spectator.has(2).await;
        let leaving = fleet.running().await;
        fleet.servers[leaving].signal(Signal::SIGTERM);
        assert!(fleet.servers[leaving].exit().await.success());
        segments.push(session.take().await);
        assert!(spectator.segment(n).await == segments[n], "segment {n}");
        fleet.start_again(leaving);
        fleet.linked(2).await;
    }
    assert_eq!(spectator.voids, 0);
    is_film(&session, &fleet.router, &segments).await;
    session.client.send(json!({"type": "leave"})).await;
    spectator.is_told_of_the_end().await;
}

#[tokio::test]
async fn a_router_takes_as_many_spectators_as_the_server_that_runs_the_session() {
    let args = [SLOW, &["--streaming.watch.max_per_session=1"]].concat();
    let mut fleet = Fleet::start(2, &args).await;
    let mut session = Session::open(&fleet.router, json!({})).await;
    let mut spectator = session.spectator(&fleet.router, "").await;
    for (n, prompt) in PROMPTS[..2].iter().enumerate() {
        let query = format!("session={}&token={}", session.id, session.token);
        let refused = super::try_watch(&fleet.router, &query).await;
        assert_eq!(refused.err(), Some(503));
        session.client.prompt(prompt).await;
        spectator.has(2).await;
        fleet.kill(fleet.running().await).await;
        let made = session.take().await;
        assert!(spectator.segment(n).await == made);
        fleet.linked(2).await;
    }
}

#[tokio::test]
async fn a_server_that_stands_still_shows_nothing_twice_when_it_goes_on() {
    let fleet = Fleet::start(2, SLOW).await;
    let mut session = Session::open(&fleet.router, json!({})).await;
    let mut spectator = session.spectator(&fleet.router, "").await;
    session.client.prompt(PROMPTS[0]).await;
    spectator.has(2).await;
    let still = fleet.running().await;
    fleet.servers[still].signal(Signal::SIGSTOP);
    let first = session.take().await;
    assert!(spectator.segment(0).await == first);
    fleet.servers[still].signal(Signal::SIGCONT);
    session.client.prompt(PROMPTS[1]).await;
    let second = session.take().await;
    assert!(spectator.segment(1).await == second);
    assert_eq!(spectator.voids, 0);
    is_film(&session, &fleet.router, &[first, second]).await;
}

#[tokio::test]
async fn other_bytes_make_what_a_spectator_has_void() {
    let mut fleet = Fleet::start(1, SLOW).await;
    let coarse = "--streaming.encoder.crf=35".to_owned();
    let other = fleet.another(&[coarse]);
    let router = (fleet.keys).router(&[&fleet.servers[0].address, &other.address], &[]);
    until("both servers are linked", async || {
        let status = router.status().await;
        let replicas = status["replicas"].as_array().unwrap().iter();
        let free = replicas.filter(|replica| replica["report"]["free"] == 1);
        (free.count() == 2).then_some(())
    })
    .await;
    let mut session = Session::open(&router, json!({})).await;
    let mut spectator = session.spectator(&router, "").await;
    session.client.prompt(PROMPTS[0]).await;
    spectator.has(3).await;
    fleet.servers[0].kill().await;
    session.client.error().await;
    let made = session.take().await;
    assert!(spectator.segment(0).await == made);
    assert_eq!(spectator.voids, 1);
    is_film(&session, &router, &[made]).await;
}

#[tokio::test]
async fn a_spectator_waits_where_there_is_no_place_as_its_client_does() {
    let args = [SLOW, &["--grace-seconds=0.1"]].concat();
    let mut fleet = Fleet::start(2, &args).await;
    let mut session = Session::open(&fleet.router, json!({})).await;
    let leaving = fleet.running().await;
    let mut other = fleet.servers[1 - leaving].active(json!({})).await;
    let mut spectator = session.spectator(&fleet.router, "").await;
    session.client.prompt(PROMPTS[0]).await;
    spectator.has(2).await;
    fleet.servers[leaving].signal(Signal::SIGTERM);
    fleet.servers[leaving].exit().await;
    until("the session waits", async || {
        (fleet.router.status().await["waiting"] == 1).then_some(())
    })
    .await;
    other.close(Some(1000)).await;
    let made = session.take().await;
    assert!(spectator.segment(0).await == made);
    is_film(&session, &fleet.router, &[made]).await;
    // An operator ends the session.
    let path = format!("/v1/sessions/{}", session.id);
    assert_eq!(fleet.router.call("DELETE", &path, None).await.0, 204);
    spectator.is_told_of_the_end().await;
}

#[tokio::test]
async fn a_spectator_is_told_when_no_server_goes_on_and_whether_one_may() {
    let mut fleet = Fleet::start(1, SLOW).await;
    let limit = "--router.failover_timeout_seconds=1";
    let address = fleet.servers[0].address.clone();
    let router = fleet.keys.router(&[&address], &[limit]);
    let memory = Keys::new(KEY);
    let mut only = memory.server(&[]);
    let before = memory.router(&[&only.address], &[]);
    for (server, router, is_over) in [
        (&mut fleet.servers[0], router, false),
        (&mut only, before, true),
    ] {
        until("the server is linked", async || {
            let report = router.status().await["replicas"][0]["report"].clone();
            report["free"].as_u64().filter(|free| *free > 0)
        })
        .await;
        let mut session = Session::open(&router, json!({})).await;
        let mut spectator = session.spectator(&router, "").await;
        session.client.segment(PROMPTS[0]).await;
        spectator.segment(0).await;
        server.kill().await;
        match is_over {
            true => spectator.is_told_of_the_end().await,
            false => assert_eq!(spectator.socket.closed().await, Some(1013)),
        }
    }
}

#[tokio::test]
async fn a_spectator_stays_when_its_client_resumes_at_another_server() {
    // A router without a key moves no session.
    let fleet = Fleet::start(2, SLOW).await;
    let mut servers = fleet.servers;
    let addresses = [&*servers[0].address, &*servers[1].address];
    let router = crate::router::router(&addresses);
    crate::router::states_are(&router, &["healthy", "healthy"]).await;
    let (mut client, ticket) = crate::resume::open(&router, json!({})).await;
    client.segment(PROMPTS[0]).await;
    let id = ticket["resume"]["session_id"].as_str().unwrap();
    let token = ticket["resume"]["token"].as_str().unwrap();
    let mut session = Session {
        id: id.to_owned(),
        token: token.to_owned(),
        client,
    };
    let mut spectator = session.spectator(&router, "").await;
    session.client.prompt(PROMPTS[1]).await;
    spectator.has(3).await;
    servers[0].kill().await;
    assert_eq!(session.client.closed().await, Some(1011));
    session.client = router.open(ticket).await;
    session.client.until_type("ltx2_stream_start").await;
    session.client.prompt(PROMPTS[2]).await;
    let made = session.take().await;
    assert!(spectator.segment(1).await == made);
    assert_eq!(spectator.voids, 1);
}
