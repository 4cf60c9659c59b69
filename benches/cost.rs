//! What other processes use, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use nix::sys::time::TimeValLike;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// Processor time of a process since its start, all its threads together, those that have ended included.
///
/// # Errors
/// When there is no such process.
pub(crate) fn cpu_time(pid: Pid) -> anyhow::Result<Duration> {
    let time = clock_getcpuclockid(pid)?.now()?;
    Ok(Duration::from_nanos(time.num_nanoseconds().unsigned_abs()))
}

/// A process's memory, in kB of 1024 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    /// The most that was ever resident.
    pub(crate) peak: f64,
}

/// # Errors
/// When there is no such process.
pub(crate) fn memory(pid: Pid) -> anyhow::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> anyhow::Result<f64> {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"));
        let value = value.with_context(|| format!("no {name} of process {pid}"))?;
        Ok(value.trim().parse()?)
    };
    Ok(Memory {
        resident: field("VmRSS:")?,
        peak: field("VmHWM:")?,
    })
}

/// What all cores have done since the machine's start, in clock ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MachineTime {
    idle: f64,
    all: f64,
}

impl MachineTime {
    pub(crate) fn look() -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal; what guests used is in `user` too.
        let ticks: Vec<f64> = (line.split_whitespace().skip(1).take(8))
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let idle: f64 = ticks.iter().skip(3).take(2).sum();
        Ok(Self {
            idle,
            all: ticks.iter().sum(),
        })
    }

    /// Share of the time that was not idle.
    pub(crate) fn busy_since(&self, before: &Self) -> f64 {
        1.0 - (self.idle - before.idle) / (self.all - before.all)
    }
}
