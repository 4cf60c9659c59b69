//! A session that extends itself with the help of a slow language model: the GPU must not wait for it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::time::timeout;

use crate::client::{Client, Heard, PATIENCE};
use crate::figures::{Figures, milliseconds};
use crate::provider::{Provider, Reply};
use crate::report::{Row, Target};
use crate::server::Server;

/// Of each answer.
const LATENCY: Duration = Duration::from_secs(1);
/// Two seconds: the steps of a segment, then its frames.
const PACED: &[&str] = &[
    "--default_request.sampling.width=256",
    "--default_request.sampling.height=256",
    "--default_request.sampling.num_frames=24",
    "--default_request.sampling.num_inference_steps=8",
    "--generator.synthetic.step_ms=190",
    "--generator.synthetic.frame_ms=20",
    "--streaming.prompt.enabled=true",
    "--streaming.prompt.provider=openai_compatible",
    "--streaming.prompt.model=played",
];

pub(crate) async fn measure(segments: usize) -> anyhow::Result<Vec<Row>> {
    let provider = Provider::start(|before, _| {
        let answer = Reply::Say(format!("the lantern drifts on, part {before}"));
        Reply::After(LATENCY, Box::new(answer))
    })
    .await;
    let base_url = format!("--streaming.prompt.base_url={}", provider.base_url);
    let server = Server::start_ready(1, &[PACED, &[base_url.as_str()]].concat()).await?;
    let opening = json!({"auto_extension_enabled": true});
    let (mut client, _) = Client::assigned(&server.address, opening).await?;
    client.prompt("a paper lantern on a lake at dusk").await?;
    let watched = timeout(PATIENCE, watch(&mut client, segments)).await;
    let Watched { gaps, lengths } = watched.context("the session stopped")??;
    let gaps = Figures::of(gaps.into_iter().map(milliseconds))?;
    let length = Figures::of(lengths.into_iter().map(milliseconds))?.p50;
    Ok(vec![Row {
        key: "extension_gap",
        what: "auto-extension by a model of 1 s latency, gap between segments",
        unit: "ms",
        python: "-",
        target: Target::AtMost(20.0),
        measured: gaps.max,
        figures: Some(gaps),
        note: format!(
            "the longest; from a segment's last media to the next one's ltx2_segment_start; segments of {length:.0} ms, {} answers",
            provider.asked().len()
        ),
    }])
}

struct Watched {
    gaps: Vec<Duration>,
    lengths: Vec<Duration>,
}

/// Listens to so many segments that the session makes by itself.
async fn watch(client: &mut Client, segments: usize) -> anyhow::Result<Watched> {
    let (mut gaps, mut lengths) = (Vec::new(), Vec::new());
    let mut last_media = None;
    let mut started: Option<Instant> = None;
    while gaps.len() < segments {
        match client.next().await? {
            (at, Heard::Media(_)) => last_media = Some(at),
            (at, Heard::Text(text)) if text["type"] == "ltx2_segment_start" => {
                if let (Some(media), Some(before)) = (last_media.take(), started) {
                    ensure!(text["source"] == "auto_extension", "{text}");
                    gaps.push(at - media);
                    lengths.push(at - before);
                }
                started = Some(at);
            }
            (_, heard) => ensure!(
                !heard.is("error") && !heard.is("prompt_fallback"),
                "{heard:?}"
            ),
        }
    }
    Ok(Watched { gaps, lengths })
}
