//! What the most expensive messages that a client may send cost the supervisor, before a segment is asked for.

use std::fs;
use std::io::Cursor;
use std::time::Duration;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{SinkExt, StreamExt};
use image::{DynamicImage, ImageFormat, RgbImage, RgbaImage};
use nix::unistd::Pid;
use tokio::time::timeout;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use crate::client::PATIENCE;
use crate::cost::{cpu_time, memory};
use crate::report::{Row, Target};
use crate::server::Server;

/// The size of a message of many small values, which is within the limit.
const MESSAGE_BYTES: usize = 40 << 20;

/// What one message costs.
struct Cost {
    input: &'static str,
    processor: Duration,
    /// MiB above what was resident before.
    memory: f64,
}

pub(crate) async fn measure() -> anyhow::Result<Vec<Row>> {
    let server = Server::start_ready(1, &["--sessions-per-gpu", "64"]).await?;
    // What all messages share is there before anything is measured.
    send(&server, filled("curated_prompts", "[", r#""a","#, "]")).await?;
    let mut costs = Vec::new();
    for (input, message) in inputs()? {
        costs.push(cost(&server, input, message).await?);
    }
    let slowest = costs.iter().max_by_key(|cost| cost.processor);
    let largest = costs.iter().max_by(|a, b| a.memory.total_cmp(&b.memory));
    let (slowest, largest) = slowest.zip(largest).context("there are inputs")?;
    Ok(vec![
        Row {
            key: "input_processor_time",
            what: "most expensive opening message, processor time",
            unit: "s",
            python: "-",
            target: Target::AtMost(2.0),
            measured: slowest.processor.as_secs_f64(),
            figures: None,
            note: costs
                .iter()
                .map(|c| format!("{} {:.2} s", c.input, c.processor.as_secs_f64()))
                .collect::<Vec<_>>()
                .join(", "),
        },
        Row {
            key: "input_memory",
            what: "most expensive opening message, memory",
            unit: "MiB",
            python: "-",
            target: Target::AtMost(256.0),
            measured: largest.memory,
            figures: None,
            note: costs
                .iter()
                .map(|c| format!("{} {:.0} MiB", c.input, c.memory))
                .collect::<Vec<_>>()
                .join(", "),
        },
    ])
}

fn inputs() -> anyhow::Result<Vec<(&'static str, String)>> {
    let rgb = DynamicImage::ImageRgb8(RgbImage::new(8000, 8000));
    let lossless = DynamicImage::ImageRgba8(RgbaImage::new(5000, 5000));
    Ok(vec![
        ("fields nobody knows", filled("x", "[", r#"{"":0},"#, "]")),
        (
            "fields of an image",
            filled("initial_image", r#"{"x":["#, r#"{"":0},"#, "]}"),
        ),
        (
            "fields of a state",
            filled(
                "continuation_state",
                r#"{"kind":"ltx2.v1","payload":{"x":["#,
                r#"{"":0},"#,
                "]}}",
            ),
        ),
        ("prompts", filled("curated_prompts", "[", r#""","#, "]")),
        (
            "PNG of 64 megapixels",
            with_image("image/png", encoded(&rgb, ImageFormat::Png)?),
        ),
        (
            "JPEG of 64 megapixels",
            with_image("image/jpeg", encoded(&rgb, ImageFormat::Jpeg)?),
        ),
        (
            "WebP of 25 megapixels",
            with_image("image/webp", encoded(&lossless, ImageFormat::WebP)?),
        ),
    ])
}

/// An opening message with a field of many equal items.
fn filled(field: &str, before: &str, item: &str, after: &str) -> String {
    let items = item.repeat(MESSAGE_BYTES / item.len());
    let items = items.trim_end_matches(',');
    format!(r#"{{"type":"session_init_v2","{field}":{before}{items}{after}}}"#)
}

fn with_image(mime: &str, bytes: Vec<u8>) -> String {
    let data = BASE64.encode(bytes);
    format!(
        r#"{{"type":"session_init_v2","initial_image":{{"mime":"{mime}","name":"a","data":"{data}"}}}}"#
    )
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format)?;
    Ok(bytes.into_inner())
}

async fn cost(server: &Server, input: &'static str, message: String) -> anyhow::Result<Cost> {
    let pid = server.pid();
    forget_peak(pid)?;
    let before = (cpu_time(pid)?, memory(pid)?.resident);
    send(server, message).await?;
    let after = (cpu_time(pid)?, memory(pid)?.peak);
    Ok(Cost {
        input,
        processor: after.0 - before.0,
        memory: (after.1 - before.1) / 1024.0,
    })
}

/// Makes the kernel measure the peak of a process's resident memory from now on.
fn forget_peak(pid: Pid) -> anyhow::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("the peak cannot be reset")
}

/// Opens a connection with this message, and waits until the server has accepted or refused it.
async fn send(server: &Server, message: String) -> anyhow::Result<()> {
    let url = format!("ws://{}/v1/stream", server.address);
    let (mut socket, _) = connect_async(url).await?;
    socket.send(Message::text(message)).await?;
    let answered = async {
        while let Some(Ok(message)) = socket.next().await {
            if matches!(message, Message::Text(_) | Message::Close(_)) {
                return;
            }
        }
    };
    timeout(PATIENCE, answered)
        .await
        .context("no answer in time")?;
    Ok(())
}
