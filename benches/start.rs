//! From the start of the process to a server that listens, and to eight workers that serve.

use crate::figures::Figures;
use crate::report::{Row, Target};
use crate::server::Server;

const WORKERS: u64 = 8;

pub(crate) async fn measure(runs: usize) -> anyhow::Result<Vec<Row>> {
    let mut listening = Vec::new();
    let mut ready = Vec::new();
    for _ in 0..runs {
        let server = Server::start_ready(WORKERS, &[]).await?;
        ready.push(server.started.elapsed().as_secs_f64() * 1e3);
        listening.push((server.listening - server.started).as_secs_f64() * 1e3);
    }
    let (listening, ready) = (Figures::of(listening)?, Figures::of(ready)?);
    Ok(vec![
        Row {
            key: "start_listening",
            what: "process start to listening",
            unit: "ms",
            python: "-",
            target: Target::AtMost(100.0),
            measured: listening.p50,
            figures: Some(listening),
            note: String::new(),
        },
        Row {
            key: "start_ready",
            what: "process start to 8 workers ready",
            unit: "ms",
            python: "-",
            target: Target::AtMost(1000.0),
            measured: ready.p50,
            figures: Some(ready),
            note: "two warm-up segments in each worker included, asked by HTTP every few ms"
                .to_owned(),
        },
    ])
}
