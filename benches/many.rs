//! Many sessions that share workers: each asks for a segment, waits for its end, and asks for the next.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::time::timeout_at;

use crate::client::Client;
use crate::cost::cpu_time;
use crate::report::{Row, Target};
use crate::server::Server;

const WORKERS: u64 = 8;
const SESSIONS: usize = 32;
/// Before anything is counted.
const WARM_UP: Duration = Duration::from_secs(2);
const COUNTED: Duration = Duration::from_secs(12);

pub(crate) async fn measure() -> anyhow::Result<Vec<Row>> {
    let drawn = throughput(false).await?;
    let prerendered = throughput(true).await?;
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

#[derive(Clone, Copy, Debug)]
struct Counted {
    per_second: f64,
    /// Segments of the session that got the fewest.
    fewest: u32,
    most: u32,
    /// Processor time of the supervisor for one segment.
    supervisor_ms: f64,
}

async fn throughput(prerender: bool) -> anyhow::Result<Counted> {
    let prerender = format!("--generator.synthetic.prerender={prerender}");
    let server = Server::start_ready(
        WORKERS,
        &[
            "--sessions-per-gpu=4",
            "--streaming.pool.keep_up=false",
            "--default_request.sampling.width=256",
            "--default_request.sampling.height=256",
            "--default_request.sampling.num_frames=24",
            "--generator.synthetic.step_ms=0",
            "--generator.synthetic.frame_ms=0",
            &prerender,
        ],
    )
    .await?;
    let clients = try_join_all((0..SESSIONS).map(|_| server.session())).await?;
    let begin = Instant::now() + WARM_UP;
    let end = begin + COUNTED;
    let cpu_before = Rc::new(Cell::new(None));
    let looping = clients.into_iter().map(|client| {
        let cpu_before = cpu_before.clone();
        let pid = server.pid();
        let at_begin = move || -> anyhow::Result<()> {
            if cpu_before.get().is_none() {
                cpu_before.set(Some(cpu_time(pid)?));
            }
            Ok(())
        };
        segments_between(client, begin, end, at_begin)
    });
    let counts = try_join_all(looping).await?;
    let cpu = cpu_time(server.pid())?.saturating_sub(cpu_before.get().unwrap_or_default());
    let all: u32 = counts.iter().sum();
    Ok(Counted {
        per_second: f64::from(all) / COUNTED.as_secs_f64(),
        fewest: counts.iter().copied().min().unwrap_or_default(),
        most: counts.iter().copied().max().unwrap_or_default(),
        supervisor_ms: cpu.as_secs_f64() * 1e3 / f64::from(all.max(1)),
    })
}

/// Segments that ended in that time.
async fn segments_between(
    mut client: Client,
    begin: Instant,
    end: Instant,
    at_begin: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<u32> {
    let mut count = 0;
    loop {
        let segment = client.segment("fireflies over a meadow at night");
        match timeout_at(end.into(), segment).await {
            Err(_) => return Ok(count),
            Ok(ended) => ended?,
        }
        if Instant::now() >= begin {
            at_begin()?;
            count += 1;
        }
    }
}
