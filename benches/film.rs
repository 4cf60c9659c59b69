//! A film of ten minutes as one file: how soon it begins, and what it costs the supervisor to send it.

use std::fs;
use std::io::Read;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::client::Client;
use crate::cost::memory;
use crate::figures::{Figures, milliseconds};
use crate::report::{Row, Target};
use crate::server::Server;
use crate::store::Store;

const SEGMENTS: usize = 120;
/// Segments of five seconds that take as little time as can be.
pub(crate) const SEGMENT_ARGS: &[&str] = &[
    "--default_request.sampling.width=640",
    "--default_request.sampling.height=384",
    "--default_request.sampling.num_frames=120",
    "--default_request.sampling.num_inference_steps=1",
    "--generator.synthetic.step_ms=0",
    "--generator.synthetic.frame_ms=0",
];
const RECORDING: &[&str] = &["--streaming.recording.max_mib_per_session=4096"];
/// Of a range in the middle of the film.
const RANGE_BYTES: u64 = 1 << 20;

pub(crate) async fn measure(runs: usize) -> anyhow::Result<Vec<Row>> {
    let store = Store::file()?;
    let server = Server::start_ready(1, &store.with(&[SEGMENT_ARGS, RECORDING].concat())).await?;
    let (mut client, assigned) = Client::assigned(&server.address, json!({})).await?;
    for n in 0..SEGMENTS {
        client.segment(&format!("a lighthouse, {n}")).await?;
    }
    let text = |field: &str| assigned[field].as_str().context("it is a text");
    let (id, token) = (text("session_id")?, text("resume_token")?);
    let url = format!(
        "http://{}/v1/sessions/{id}/film.mp4?token={token}",
        server.address
    );

    // From now on, the peak is that of reading the film.
    fs::write(format!("/proc/{}/clear_refs", server.pid()), "5")?;
    let before = memory(server.pid())?.resident;
    let reading = spawn_blocking(move || read(&url, runs));
    let (size, first_bytes, speed) = reading.await??;
    let peak = memory(server.pid())?.peak;
    Ok(vec![
        Row {
            key: "film_memory",
            what: "film of 600 s, read whole and in ranges: growth of the supervisor",
            unit: "MiB",
            python: "-",
            target: Target::AtMost(8.0),
            measured: (peak - before) / 1024.0,
            figures: None,
            note: format!(
                "{:.1} MB in {SEGMENTS} segments in a folder, sent with {speed:.0} MB/s; {:.1} MiB before",
                size as f64 / 1e6,
                before / 1024.0
            ),
        },
        Row {
            key: "film_first_byte",
            what: "the same, from a request for a range to its first byte",
            unit: "ms",
            python: "-",
            target: Target::AtMost(50.0),
            measured: Figures::of(first_bytes.iter().copied())?.p50,
            figures: Some(Figures::of(first_bytes)?),
            note: "the film is laid out for each request".to_owned(),
        },
    ])
}

/// Reads the film once whole, and then in ranges. Returns its size, the time to the first byte of each range in
/// milliseconds, and how many MB a second came of the whole.
fn read(url: &str, runs: usize) -> anyhow::Result<(u64, Vec<f64>, f64)> {
    let began = Instant::now();
    let mut whole = ureq::get(url).call()?;
    let size = drain(whole.body_mut().as_reader())?;
    let speed = size as f64 / 1e6 / began.elapsed().as_secs_f64();
    let mut first_bytes = Vec::new();
    for run in 0..runs as u64 {
        let first = run * size.saturating_sub(RANGE_BYTES) / runs as u64;
        let range = format!("bytes={first}-{}", first + RANGE_BYTES - 1);
        let asked = Instant::now();
        let mut part = ureq::get(url).header("range", range).call()?;
        let mut body = part.body_mut().as_reader();
        body.read_exact(&mut [0])?;
        first_bytes.push(milliseconds(asked.elapsed()));
        ensure!(drain(body)? == RANGE_BYTES - 1, "a part is missing");
    }
    Ok((size, first_bytes, speed))
}

/// Reads to the end, and returns the number of bytes.
pub(crate) fn drain(mut body: impl Read) -> anyhow::Result<u64> {
    let mut part = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match body.read(&mut part)? {
            0 => return Ok(bytes),
            read => bytes += read as u64,
        }
    }
}
