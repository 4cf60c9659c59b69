//! What sessions behind a router cost, and how long they pause when they lose their server.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context, ensure};
use futures_util::stream::{self, StreamExt};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::{Client, Heard, PATIENCE};
use crate::cost::memory;
use crate::figures::{Figures, milliseconds};
use crate::report::{Row, Target};
use crate::server::{ASK_AGAIN, Server};
use crate::store::Store;

/// Idle sessions in the router. Each has two sockets there.
const SESSIONS: usize = 5000;
/// Opened and closed before anything is measured, so that what all sessions share is there.
const WARM_UP_SESSIONS: usize = 50;
/// Connections that are made at once.
const CONNECTING: usize = 32;

/// Sessions in the line, those that are served, and how many of the line are let in.
const WAITING: usize = 1000;
const PLACES: usize = 6;
const RELEASES: usize = 300;
/// All clients have one address.
const LIMITS: [&str; 4] = [
    "--server.limits.max_connections=16000",
    "--server.limits.max_connections_per_client=16000",
    "--streaming.limits.max_unopened=8000",
    "--streaming.limits.max_unopened_per_client=8000",
];

fn open_many_files() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot open many files")
}

/// A key for a router and its servers.
pub(crate) struct Keys {
    folder: TempDir,
}

impl Keys {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(
            folder.path().join("key"),
            "a key that is long enough".replace(' ', "-").repeat(2),
        )?;
        Ok(Self { folder })
    }

    pub(crate) fn flag(&self, name: &str) -> String {
        format!("--{name}={}", self.folder.path().join("key").display())
    }

    fn router(&self, servers: &[Server], args: &[&str]) -> anyhow::Result<Server> {
        let replicas: Vec<_> = servers
            .iter()
            .map(|server| json!({"url": format!("http://{}", server.address)}))
            .collect();
        let replicas = json!(replicas).to_string();
        let key = self.flag("router.key_file");
        Server::start_router(&[&["--replicas", &replicas, &key], args].concat())
    }
}

/// Waits until so many servers have room, as the router sees them.
pub(crate) async fn with_room(router: &Server, servers: usize) -> anyhow::Result<()> {
    let linked = async {
        loop {
            let status = router.get("/status").await?;
            let replicas = status["replicas"].as_array().context("a list")?.iter();
            let has_room = |replica: &&serde_json::Value| {
                replica["report"]["free"]
                    .as_u64()
                    .is_some_and(|free| free > 0)
            };
            if replicas.filter(has_room).count() == servers {
                return anyhow::Ok(());
            }
            sleep(ASK_AGAIN).await;
        }
    };
    timeout(PATIENCE, linked).await?
}

pub(crate) async fn measure(runs: usize) -> anyhow::Result<Vec<Row>> {
    Ok(vec![moves(runs).await?, queue().await?, idle().await?])
}

/// Kills the server of a session that makes segments, again and again, and takes the time until another one has its job.
async fn moves(runs: usize) -> anyhow::Result<Row> {
    let (keys, store) = (Keys::new()?, Store::redis().await?);
    let key = keys.flag("server.router_keys_file");
    let args = store.with(&[&*key, "--sessions-per-gpu=4"]);
    let mut pauses = Vec::new();
    for _ in 0..runs {
        let mut servers = Vec::new();
        for _ in 0..2 {
            servers.push(Server::start_ready(1, &args).await?);
        }
        let router = keys.router(&servers, &[])?;
        with_room(&router, 2).await?;
        let opening = json!({"curated_prompts": ["a red fox"], "loop_generation_enabled": true});
        let (mut client, _) = Client::assigned(&router.address, opening).await?;
        client.until("media_segment_complete").await?;
        client.until("step_complete").await?;
        let status = router.get("/status").await?;
        let runs_at = |n: usize| status["replicas"][n]["sessions"] == 1;
        let n = (0..2).find(|n| runs_at(*n)).context("no server runs it")?;
        let killed = Instant::now();
        kill(servers[n].pid(), Signal::SIGKILL)?;
        let (heard, _) = client.until("gpu_assigned").await?;
        pauses.push(heard.duration_since(killed));
        client.until("ltx2_segment_complete").await?;
    }
    let figures = Figures::of(pauses.into_iter().map(milliseconds))?;
    Ok(Row {
        key: "fleet_move",
        what: "server killed, until another one has the session's job: p99",
        unit: "ms",
        python: "-",
        target: Target::AtMost(250.0),
        measured: figures.p99,
        figures: Some(figures),
        note: format!("{runs} kills of one of two servers with Redis"),
    })
}

/// What a client in the line tells.
struct Placed {
    number: usize,
    at: Instant,
    leave: oneshot::Sender<()>,
}

/// Lets one session after the other leave, and takes the time until the next one of a long line has its place.
async fn queue() -> anyhow::Result<Row> {
    open_many_files()?;
    let (keys, store) = (Keys::new()?, Store::redis().await?);
    let key = keys.flag("server.router_keys_file");
    let own = [
        &*key,
        "--sessions-per-gpu=2",
        "--streaming.pool.keep_up=false",
        "--streaming.session_timeout_seconds=3600",
    ];
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(Server::start_ready(1, &store.with(&own)).await?);
    }
    let common = format!("--router.store={}", store.redis_url().context("Redis")?);
    let args = [&[&*common], &LIMITS[..]].concat();
    let mut routers = Vec::new();
    for _ in 0..3 {
        let router = keys.router(&servers, &args)?;
        with_room(&router, 3).await?;
        routers.push(router);
    }
    let (told, mut placed) = mpsc::channel(16);
    let mut clients = JoinSet::new();
    let mut active = VecDeque::new();
    for number in 0..WAITING + PLACES {
        let address = &routers[number % routers.len()].address;
        let mut client = Client::connect(address, json!({})).await?;
        if number >= PLACES {
            client.until("queue_status").await?;
        }
        clients.spawn(wait_in_line(client, number, told.clone()));
        if number < PLACES {
            active.push_back(next_placed(&mut placed).await?);
        }
    }
    let mut pauses = Vec::new();
    for number in (PLACES..).take(RELEASES) {
        // Otherwise two places could be free for one router and one for another.
        for router in &routers {
            in_line(router, WAITING + PLACES - number).await?;
        }
        let gone: Placed = active.pop_front().context("someone has a place")?;
        let freed = Instant::now();
        let _ = gone.leave.send(());
        let next = next_placed(&mut placed).await?;
        ensure!(
            next.number == number,
            "{} came before {number}",
            next.number
        );
        pauses.push(next.at.duration_since(freed));
        active.push_back(next);
    }
    while let Some(ended) = clients.try_join_next() {
        ended??;
    }
    let figures = Figures::of(pauses.into_iter().map(milliseconds))?;
    Ok(Row {
        key: "fleet_queue",
        what: "client leaves, until the next one in the line has its place: p99",
        unit: "ms",
        python: "-",
        target: Target::AtMost(50.0),
        measured: figures.p99,
        figures: Some(figures),
        note: format!(
            "{WAITING} waiting at 3 routers with Redis, {RELEASES} let in, in their order; no position rose"
        ),
    })
}

/// Waits until a router sees so many sessions in the line, and no free place.
async fn in_line(router: &Server, sessions: usize) -> anyhow::Result<()> {
    let seen = async {
        loop {
            let status = router.get("/status").await?;
            let replicas = status["replicas"].as_array().context("a list")?;
            let are_full = replicas.iter().all(|it| it["report"]["free"] == 0);
            if are_full && status["waiting"] == sessions {
                return anyhow::Ok(());
            }
            sleep(ASK_AGAIN).await;
        }
    };
    timeout(PATIENCE, seen)
        .await
        .context("the line is another one")?
}

async fn next_placed(placed: &mut mpsc::Receiver<Placed>) -> anyhow::Result<Placed> {
    let next = timeout(PATIENCE, placed.recv()).await;
    next.context("nobody has a place")?.context("all are gone")
}

/// Waits for a place, tells of it, and leaves when told to.
async fn wait_in_line(
    mut client: Client,
    number: usize,
    placed: mpsc::Sender<Placed>,
) -> anyhow::Result<()> {
    let mut last = u64::MAX;
    let at = loop {
        let (at, heard) = client.next().await?;
        match heard {
            Heard::Text(text) if text["type"] == "queue_status" => {
                let position = text["position"].as_u64().context("a position")?;
                ensure!(position <= last, "position {last}, and then {position}");
                last = position;
            }
            heard if heard.is("gpu_assigned") => break at,
            _ => {}
        }
    };
    let (leave, told) = oneshot::channel();
    let _ = placed.send(Placed { number, at, leave }).await;
    let _ = told.await;
    client.send(json!({"type": "leave"})).await?;
    client.until("ltx2_stream_complete").await?;
    Ok(())
}

/// Opens sessions that do nothing, and looks at the router's memory.
async fn idle() -> anyhow::Result<Row> {
    open_many_files()?;
    let keys = Keys::new()?;
    let key = keys.flag("server.router_keys_file");
    let own = [
        &*key,
        "--sessions-per-gpu=5000",
        "--streaming.pool.keep_up=false",
        "--max-sessions=6000",
        "--streaming.session_timeout_seconds=3600",
    ];
    let server = Server::start_ready(1, &[&own[..], &LIMITS[..]].concat()).await?;
    let servers = [server];
    let router = keys.router(&servers, &LIMITS)?;
    with_room(&router, 1).await?;
    drop(open(&router, WARM_UP_SESSIONS).await?);
    let before = memory(router.pid())?.resident;
    let clients = open(&router, SESSIONS).await?;
    let after = memory(router.pid())?.resident;
    ensure!(clients.len() == SESSIONS, "not all are open");
    Ok(Row {
        key: "fleet_idle_session_memory",
        what: "idle session, memory in the router",
        unit: "kB",
        python: "-",
        target: Target::AtMost(30.0),
        measured: (after - before) * 1.024 / SESSIONS as f64,
        figures: None,
        note: format!("{SESSIONS} sessions; resident before {before:.0} KiB, after {after:.0} KiB"),
    })
}

async fn open(router: &Server, count: usize) -> anyhow::Result<Vec<Client>> {
    let opening = stream::iter(0..count).map(|_| Client::open(&router.address));
    let clients: Vec<_> = opening.buffer_unordered(CONNECTING).collect().await;
    clients.into_iter().collect()
}
