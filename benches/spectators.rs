//! A thousand spectators of one session: what each costs in memory, and whether the session's own client notices.

use anyhow::{Context, bail, ensure};
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::connect_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::client::{Client, Heard, PATIENCE};
use crate::cost::{MachineTime, memory};
use crate::report::{Row, Target};
use crate::server::Server;

const SPECTATORS: usize = 1000;
/// Of five seconds each.
const SEGMENTS: usize = 12;
const ARGS: &[&str] = &[
    "--default_request.sampling.width=512",
    "--default_request.sampling.height=320",
    "--default_request.sampling.num_frames=120",
    "--default_request.sampling.fps=24",
    "--generator.synthetic.prerender=true",
    "--generator.synthetic.step_ms=0",
    // As fast as it is watched.
    "--generator.synthetic.frame_ms=41.67",
];
/// Connections that are made at a time.
const AT_ONCE: usize = 50;

/// What was measured with a number of spectators.
struct Watched {
    p50_ms: f64,
    p99_ms: f64,
    /// Memory of the supervisor in KiB, without spectators and with them.
    before: f64,
    after: f64,
    /// Bytes that each spectator has got, which are those of the client.
    bytes: u64,
    /// Share of the cores' time that was used.
    busy: f64,
}

pub(crate) async fn measure() -> anyhow::Result<Vec<Row>> {
    let alone = watch(0).await?;
    let watched = watch(SPECTATORS).await?;
    let each = (watched.after - watched.before) / SPECTATORS as f64;
    Ok(vec![
        Row {
            key: "spectator_memory",
            what: "1000 spectators of one session: memory of each",
            unit: "KiB",
            python: "-",
            target: Target::AtMost(64.0),
            measured: each,
            figures: None,
            note: format!(
                "{:.1} MB in {SEGMENTS} segments, all bytes with all spectators; one encoder; cores {:.0} % busy",
                watched.bytes as f64 / 1e6,
                watched.busy * 100.0,
            ),
        },
        Row {
            key: "spectators_latency",
            what: "the same, fragment to the client's own socket, p99, in times of that without spectators",
            unit: "x",
            python: "-",
            target: Target::AtMost(1.1),
            measured: watched.p99_ms / alone.p99_ms,
            figures: None,
            note: format!(
                "by /status: p50 {:.2}, p99 {:.2} ms with, p50 {:.2}, p99 {:.2} ms without; cores {:.0} % busy without",
                watched.p50_ms,
                watched.p99_ms,
                alone.p50_ms,
                alone.p99_ms,
                alone.busy * 100.0,
            ),
        },
    ])
}

async fn watch(spectators: usize) -> anyhow::Result<Watched> {
    let server = Server::start_ready(1, ARGS).await?;
    let (mut client, assigned) = Client::assigned(&server.address, json!({})).await?;
    let text = |field: &str| assigned[field].as_str().context("it is a text");
    let (id, token) = (text("session_id")?, text("watch_token")?);
    let url = format!(
        "ws://{}/v1/watch?session={id}&token={token}",
        server.address
    );
    let before = memory(server.pid())?.resident;
    let mut watching = JoinSet::new();
    let mut left = spectators;
    while left > 0 {
        let now = left.min(AT_ONCE);
        let shows = try_join_all((0..now).map(|_| Show::open(&url))).await?;
        for show in shows {
            watching.spawn(show.see(SEGMENTS));
        }
        left -= now;
    }
    let started = MachineTime::look()?;
    let mut bytes = 0;
    for n in 0..SEGMENTS {
        client.prompt(&format!("a lighthouse, {n}")).await?;
        loop {
            match client.next().await?.1 {
                Heard::Media(media) => bytes += media.len() as u64,
                text if text.is("ltx2_segment_complete") => break,
                text if text.is("error") => bail!("{text:?}"),
                Heard::Text(_) => {}
            }
        }
    }
    let busy = MachineTime::look()?.busy_since(&started);
    let mut shows = Vec::new();
    while let Some(seen) = watching.join_next().await {
        let (show, seen) = seen??;
        ensure!(seen == bytes, "a spectator has not seen every byte");
        shows.push(show);
    }
    let after = memory(server.pid())?.resident;
    let status: Value = server.get("/status").await?;
    let latency = |field: &str| {
        let figure = status["relay_latency"][field].as_f64();
        figure.with_context(|| format!("/status has no {field}"))
    };
    Ok(Watched {
        p50_ms: latency("p50_ms")?,
        p99_ms: latency("p99_ms")?,
        before,
        after,
        bytes,
        busy,
    })
}

/// One spectator.
struct Show {
    socket: tokio_tungstenite::WebSocketStream<
        tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>,
    >,
}

impl Show {
    async fn open(url: &str) -> anyhow::Result<Self> {
        let config = WebSocketConfig::default().read_buffer_size(8192);
        let connecting = connect_async_with_config(url, Some(config), true);
        let (socket, _) = timeout(PATIENCE, connecting).await??;
        Ok(Self { socket })
    }

    /// Sees that many segments, and returns their bytes. The connection stays.
    async fn see(mut self, segments: usize) -> anyhow::Result<(Self, u64)> {
        let (mut seen, mut bytes) = (0, 0);
        while seen < segments {
            match timeout(PATIENCE, self.socket.next()).await? {
                Some(Ok(Message::Binary(message))) => bytes += message.len() as u64,
                Some(Ok(Message::Text(text))) if text.contains("\"film_segment\"") => seen += 1,
                Some(Ok(Message::Text(text))) if text.contains("watch_skipped") => {
                    bail!("a spectator was skipped: {text}")
                }
                Some(Ok(_)) => {}
                end => bail!("a spectator's connection has ended: {end:?}"),
            }
        }
        Ok((self, bytes))
    }
}
