//! Asks the worker program whether it has the engine, the model and the encoder.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use fastvideo_proto::check::{CheckSpec, Finding};
use fastvideo_proto::link::LINK_VERSION;
use fastvideo_supervisor_core::Config;
use tokio::process::Command;

/// Time limit on the worker's answer. It reads the headers of all files of a model.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Returns what the worker program finds, or that it cannot be asked.
pub(super) async fn ask(config: &Config) -> Vec<Finding> {
    let what = format!("worker program {}", config.pool.worker_bin.display());
    let mut findings = match tokio::time::timeout(TIMEOUT, run(config)).await {
        Ok(Ok(output)) => match serde_json::from_slice::<Vec<Finding>>(&output.stdout) {
            Ok(findings) if output.status.success() => {
                [vec![Finding::ok(what, "answers")], findings].concat()
            }
            _ => return vec![Finding::failed(what, complaint(&output))],
        },
        Ok(Err(error)) => return vec![Finding::failed(what, error)],
        Err(_) => {
            let limit = TIMEOUT.as_secs();
            return vec![Finding::failed(what, format!("no answer within {limit} s"))];
        }
    };
    findings.push(Finding::not_tried(
        "warm-up",
        "no worker was started, so no model was loaded",
    ));
    findings
}

async fn run(config: &Config) -> io::Result<Output> {
    let pool = &config.pool;
    let spec = CheckSpec {
        version: LINK_VERSION,
        engine: pool.engine.clone(),
        format: pool.format,
        encoder: pool.encoder.clone(),
    };
    let spec = serde_json::to_string(&spec).expect("texts and numbers are JSON");
    #[expect(
        clippy::disallowed_methods,
        reason = "it is asked for a moment and never serves, so that it needs no pool"
    )]
    let mut command = Command::new(&pool.worker_bin);
    command
        .args(["check", &spec])
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(gpu) = pool.gpus.first() {
        command.env("CUDA_VISIBLE_DEVICES", &gpu.visible_device);
    }
    command.output().await
}

/// Says why the worker gave no findings.
fn complaint(output: &Output) -> String {
    let words = String::from_utf8_lossy(&output.stderr);
    match words.trim() {
        "" => format!("{} without a word", output.status),
        words => format!("{}: {words}", output.status),
    }
}
