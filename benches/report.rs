//! The table and the JSON.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::figures::Figures;

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// Stable, for programs.
    pub(crate) key: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    /// The Python server's figure on the same kind of machine.
    pub(crate) python: &'static str,
    pub(crate) target: Target,
    /// What is held against the target.
    pub(crate) measured: f64,
    /// What `measured` was made from; none when it was measured once.
    pub(crate) figures: Option<Figures>,
    /// How it came about.
    pub(crate) note: String,
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Said beside the others, not asked for.
    None,
}

impl Target {
    fn verdict(self, measured: f64) -> &'static str {
        let reached = match self {
            Self::AtMost(limit) => measured <= limit,
            Self::AtLeast(limit) => measured >= limit,
            Self::None => return "",
        };
        if reached { "pass" } else { "MISS" }
    }
}

/// Where it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cores: usize,
    processor: String,
    memory_mib: u64,
}

impl Machine {
    pub(crate) fn look() -> anyhow::Result<Self> {
        let field = |file: &str, name: &str| -> anyhow::Result<String> {
            let text = fs::read_to_string(file)?;
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            let (_, value) = value.with_context(|| format!("{file} has no {name}"))?;
            Ok(value.trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal")?;
        let kib: u64 = memory.trim_end_matches(" kB").parse()?;
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            processor: field("/proc/cpuinfo", "model name").unwrap_or_default(),
            memory_mib: kib / 1024,
        })
    }
}

/// Of the last minute.
pub(crate) fn load_average() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().context("/proc/loadavg begins with a number")
}

/// All rows, each with how busy the machine was before it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rows: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Measured {
    #[serde(flatten)]
    row: Row,
    verdict: &'static str,
    load_average_before: f64,
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            rows: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, load_average_before: f64, rows: Vec<Row>) {
        self.rows.extend(rows.into_iter().map(|row| Measured {
            verdict: row.target.verdict(row.measured),
            row,
            load_average_before,
        }));
    }

    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let Machine {
            cores,
            processor,
            memory_mib,
        } = &self.machine;
        writeln!(out, "\n{cores} cores ({processor}), {memory_mib} MiB\n")?;
        let head = [
            "what",
            "Python",
            "to reach",
            "measured",
            "p50 / p99 of n",
            "",
            "load",
        ];
        print_line(out, head.map(str::to_owned))?;
        for Measured {
            row,
            verdict,
            load_average_before,
        } in &self.rows
        {
            let unit = row.unit;
            let figures = match &row.figures {
                Some(f) => format!("{} / {} of {}", short(f.p50), short(f.p99), f.n),
                None => String::new(),
            };
            let target = match row.target {
                Target::AtMost(limit) => format!("<= {limit} {unit}"),
                Target::AtLeast(limit) => format!(">= {limit} {unit}"),
                Target::None => String::new(),
            };
            let cells = [
                row.what.to_owned(),
                row.python.to_owned(),
                target,
                format!("{} {unit}", short(row.measured)),
                figures,
                (*verdict).to_owned(),
                format!("{load_average_before:.1}"),
            ];
            print_line(out, cells)?;
            if !row.note.is_empty() {
                writeln!(out, "    {}", row.note)?;
            }
        }
        Ok(())
    }

    /// Writes the JSON under `target/`.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = folder.parent().unwrap_or(folder).join("bench.json");
        let json = serde_json::to_string_pretty(self)?;
        fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn print_line(out: &mut impl Write, cells: [String; 7]) -> io::Result<()> {
    let [what, python, target, measured, figures, verdict, load] = cells;
    writeln!(
        out,
        "{what:<58} {python:>18} {target:>12} {measured:>12} {figures:>24} {verdict:>5} {load:>5}"
    )
}

/// Three digits that say something.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
