//! What an active session that waits for its client's next request costs the supervisor.

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::client::Client;
use crate::cost::memory;
use crate::report::{Row, Target};
use crate::server::Server;

const SESSIONS: usize = 5000;
/// Opened and closed before anything is measured, so that what all sessions share is there.
const WARM_UP_SESSIONS: usize = 50;
/// Connections that are made at once.
const CONNECTING: usize = 64;

pub(crate) async fn measure() -> anyhow::Result<Vec<Row>> {
    // Two ends of each connection, one of them here.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot open many files")?;
    let server = Server::start_ready(
        1,
        &[
            "--sessions-per-gpu=5000",
            "--streaming.pool.keep_up=false",
            "--max-sessions=6000",
            // All clients have one address.
            "--server.limits.max_connections=12000",
            "--server.limits.max_connections_per_client=12000",
            "--streaming.session_timeout_seconds=3600",
        ],
    )
    .await?;
    drop(open(&server, WARM_UP_SESSIONS).await?);
    let before = memory(server.pid())?.resident;
    let clients = open(&server, SESSIONS).await?;
    let after = memory(server.pid())?.resident;
    let held = server.get("/health").await?["sessions"].as_u64();
    let answered = all_answer(clients).await?;
    let each = (after - before) * 1.024 / SESSIONS as f64;
    Ok(vec![
        Row {
            key: "idle_session_memory",
            what: "idle session, memory in the supervisor",
            unit: "kB",
            python: "28.8 kB",
            target: Target::AtMost(20.0),
            measured: each,
            figures: None,
            note: format!("resident before {before:.0} KiB, after {after:.0} KiB"),
        },
        Row {
            key: "idle_sessions_held",
            what: "idle sessions held, all of which answer",
            unit: "",
            python: "-",
            target: Target::AtLeast(5000.0),
            measured: answered as f64,
            figures: None,
            note: format!("{} at once by /health", held.unwrap_or_default()),
        },
    ])
}

async fn open(server: &Server, count: usize) -> anyhow::Result<Vec<Client>> {
    let opening = stream::iter(0..count).map(|_| server.session());
    let clients: Vec<_> = opening.buffer_unordered(CONNECTING).collect().await;
    clients.into_iter().collect()
}

/// Says something wrong in every session: each must answer that, and go on.
async fn all_answer(clients: Vec<Client>) -> anyhow::Result<usize> {
    let asking: FuturesUnordered<_> = clients
        .into_iter()
        .map(async |mut client| {
            client.send(json!({"type": "is_anybody_there"})).await?;
            loop {
                let (_, heard) = client.next().await?;
                if heard.is("error") {
                    return anyhow::Ok(client);
                }
            }
        })
        .collect();
    let answered: Vec<_> = asking.collect().await;
    let still_open: anyhow::Result<Vec<Client>> = answered.into_iter().collect();
    let still_open = still_open?;
    ensure!(!still_open.is_empty(), "no session was open");
    Ok(still_open.len())
}
