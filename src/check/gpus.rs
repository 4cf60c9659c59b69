//! Looks for the GPUs that workers would get, with NVIDIA's tool.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use fastvideo_proto::check::Finding;
use fastvideo_supervisor_core::Config;
use fastvideo_supervisor_core::pool::Gpu;
use serde_json::Value;
use tokio::process::Command;

const TOOL: &str = "nvidia-smi";
/// Time limit on the tool's answer: drivers take several seconds to wake GPUs up.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The GPUs of this machine.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    gpus: Vec<String>,
    /// The ids of MIG instances.
    instances: Vec<String>,
}

pub(super) async fn look(config: &Config) -> Finding {
    let what = "GPUs";
    if !needs_gpus(config) {
        return Finding::ok(what, "workers compute on the CPU");
    }
    let output = match tokio::time::timeout(TIMEOUT, run()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Finding::not_tried(what, format!("cannot run {TOOL}: {error}")),
        Err(_) => {
            let limit = TIMEOUT.as_secs();
            return Finding::not_tried(what, format!("no answer from {TOOL} within {limit} s"));
        }
    };
    if !output.status.success() {
        let words = [output.stdout, output.stderr].concat();
        let words = String::from_utf8_lossy(&words);
        return Finding::failed(what, format!("{TOOL}: {}", words.trim()));
    }
    let found = Found::parse(&String::from_utf8_lossy(&output.stdout));
    match found.missing(&config.pool.gpus) {
        missing if missing.is_empty() => Finding::ok(what, "all are there"),
        missing => {
            let count = found.gpus.len();
            let missing = missing.join(", ");
            Finding::failed(
                what,
                format!("{missing} not found; this machine has {count} GPUs"),
            )
        }
    }
}

/// Returns whether the engine computes on GPUs where there are some.
fn needs_gpus(config: &Config) -> bool {
    let engine = &config.pool.engine;
    let options: Value = serde_json::from_str(&engine.options).unwrap_or_default();
    engine.name != fastvideo_supervisor_core::engines::synthetic::NAME && options["device"] != "cpu"
}

async fn run() -> io::Result<Output> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a tool of the system, which is no worker"
    )]
    let mut command = Command::new(TOOL);
    command.arg("-L").stdin(Stdio::null()).kill_on_drop(true);
    command.output().await
}

impl Found {
    /// Parses lines such as `GPU 0: NVIDIA H100 (UUID: GPU-…)` and `  MIG 1g.10gb Device 0: (UUID: MIG-…)`.
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let Some((_, id)) = line.rsplit_once("(UUID: ") else {
                continue;
            };
            let id = id.trim().trim_end_matches(')').to_owned();
            match id.starts_with("MIG-") {
                true => found.instances.push(id),
                false => found.gpus.push(id),
            }
        }
        found
    }

    /// Returns those of `wanted` that are not on this machine. An id may be the beginning of one, as for the driver.
    fn missing<'a>(&self, wanted: &'a [Gpu]) -> Vec<&'a str> {
        let is_there = |device: &str| match device.parse::<usize>() {
            Ok(ordinal) => ordinal < self.gpus.len(),
            Err(_) => {
                let mut ids = self.gpus.iter().chain(&self.instances);
                // Instances are also named by the GPU that they are on and two numbers, `MIG-GPU-…/1/0`.
                let gpu = device
                    .strip_prefix("MIG-GPU-")
                    .and_then(|rest| rest.split('/').next());
                let begins = |id: &String| match gpu {
                    Some(gpu) => id.strip_prefix("GPU-") == Some(gpu),
                    None => id.to_lowercase().starts_with(&device.to_lowercase()),
                };
                ids.any(begins)
            }
        };
        let devices = wanted.iter().map(|gpu| gpu.visible_device.as_str());
        devices.filter(|device| !is_there(device)).collect()
    }
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::ids::GpuId;

    use super::*;

    #[test]
    fn gpus_are_found_by_number_and_by_id() {
        let found = Found::parse(
            "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5c89e9f0-2a1b)\n\
             \x20 MIG 1g.10gb     Device  0: (UUID: MIG-11c2-ff)\n\
             GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-77aa-1)\n",
        );
        assert_eq!(found.gpus, ["GPU-5c89e9f0-2a1b", "GPU-77aa-1"]);
        let check = |device: &str, is_there: bool| {
            let gpu = Gpu {
                id: GpuId(0),
                visible_device: device.to_owned(),
            };
            assert_eq!(found.missing(&[gpu]).is_empty(), is_there, "{device}");
        };
        check("0", true);
        check("1", true);
        check("2", false);
        check("GPU-5c89", true);
        check("GPU-5C89", true);
        check("GPU-99", false);
        check("MIG-11c2-ff", true);
        check("MIG-GPU-77aa-1/1/0", true);
        check("MIG-GPU-78/1/0", false);
    }
}
