//! Many sessions that share workers: each asks for a segment, waits for its end, and asks for the next.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::client::Client;
use crate::cost::cpu_time;
use crate::figures::{Figures, milliseconds};
use crate::report::{Row, Target};
use crate::server::Server;

const WORKERS: u64 = 8;
const SESSIONS: usize = 32;
/// Before anything is counted.
const WARM_UP: Duration = Duration::from_secs(2);
const COUNTED: Duration = Duration::from_secs(12);

pub(crate) async fn measure() -> anyhow::Result<Vec<Row>> {
    let drawn = throughput(false, &[], |_| JoinSet::new()).await?;
    let prerendered = throughput(true, &[], |_| JoinSet::new()).await?;
    let row = |key, what, target, counted: Counted| Row {
        key,
        what,
        unit: "/s",
        python: "hangs (12.5)",
        target,
        measured: counted.per_second,
        figures: None,
        note: format!(
            "segments of each session in {} s: {} to {}; supervisor {:.2} ms of processor time a segment",
            COUNTED.as_secs(),
            counted.fewest,
            counted.most,
            counted.supervisor_ms,
        ),
    };
    let measured = match drawn.fewest {
        // A session that starves is a miss, however many segments the others got.
        0 => Counted {
            per_second: 0.0,
            ..drawn
        },
        _ => drawn,
    };
    Ok(vec![
        row(
            "many_sessions",
            "32 sessions on 8 workers, 256x256x24, segments",
            Target::AtLeast(40.0),
            measured,
        ),
        row(
            "many_sessions_prerendered",
            "the same, frames rendered beforehand",
            Target::None,
            prerendered,
        ),
    ])
}

/// What a turn has come to.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    pub(crate) per_second: f64,
    /// Segments of the session that got the fewest.
    fewest: u32,
    most: u32,
    /// Processor time of the supervisor for one segment.
    pub(crate) supervisor_ms: f64,
    /// The same with its workers.
    pub(crate) all_ms: f64,
    /// From a request to its first binary message.
    pub(crate) first_ms: Figures,
}

/// Flags of a server whose GPUs are shared by small sessions.
pub(crate) const SHARED: [&str; 7] = [
    "--sessions-per-gpu=4",
    "--streaming.pool.keep_up=false",
    "--default_request.sampling.width=256",
    "--default_request.sampling.height=256",
    "--default_request.sampling.num_frames=24",
    "--generator.synthetic.step_ms=0",
    "--generator.synthetic.frame_ms=0",
];

/// Measures one turn; `beside` starts what runs at the same time.
pub(crate) async fn throughput(
    prerender: bool,
    args: &[&str],
    beside: impl FnOnce(&Server) -> JoinSet<()>,
) -> anyhow::Result<Counted> {
    let prerender = format!("--generator.synthetic.prerender={prerender}");
    let server =
        Server::start_ready(WORKERS, &[&SHARED, &[&*prerender][..], args].concat()).await?;
    let _beside = beside(&server);
    let clients = try_join_all((0..SESSIONS).map(|_| server.session())).await?;
    let begin = Instant::now() + WARM_UP;
    let end = begin + COUNTED;
    let workers = server.worker_pids().await?;
    let cpu = || -> anyhow::Result<[Duration; 2]> {
        let own = cpu_time(server.pid())?;
        let workers: anyhow::Result<Duration> = workers.iter().map(|pid| cpu_time(*pid)).sum();
        Ok([own, own + workers?])
    };
    let (cpu, cpu_before) = (&cpu, Cell::new(None));
    let at_begin = || -> anyhow::Result<()> {
        if cpu_before.get().is_none() {
            cpu_before.set(Some(cpu()?));
        }
        Ok(())
    };
    let looping = clients
        .into_iter()
        .map(|client| segments_between(client, begin, end, &at_begin));
    let firsts = try_join_all(looping).await?;
    let counts = firsts.iter().map(|firsts| u32::try_from(firsts.len()));
    let counts: Vec<u32> = counts.collect::<Result<_, _>>()?;
    let [own_before, all_before] = cpu_before.get().unwrap_or_default();
    let [own, with_workers] = cpu()?;
    let all: u32 = counts.iter().sum();
    let of_one = |time: Duration| milliseconds(time) / f64::from(all.max(1));
    Ok(Counted {
        per_second: f64::from(all) / COUNTED.as_secs_f64(),
        fewest: counts.iter().copied().min().unwrap_or_default(),
        most: counts.iter().copied().max().unwrap_or_default(),
        supervisor_ms: of_one(own.saturating_sub(own_before)),
        all_ms: of_one(with_workers.saturating_sub(all_before)),
        first_ms: Figures::of(firsts.into_iter().flatten())?,
    })
}

/// Segments that ended in that time: for each, how long its first fragment took.
async fn segments_between(
    mut client: Client,
    begin: Instant,
    end: Instant,
    at_begin: &impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let mut firsts = Vec::new();
    loop {
        let segment = client.timed_segment("fireflies over a meadow at night");
        let first = match timeout_at(end.into(), segment).await {
            Err(_) => return Ok(firsts),
            Ok(ended) => ended?,
        };
        if Instant::now() >= begin {
            at_begin()?;
            firsts.push(milliseconds(first));
        }
    }
}
