//! What the supervisor must reach, measured: real processes, real sockets, over loopback.
//!
//! `make bench` measures everything, `make bench ARGS="segment_1080p --runs 3"` a part. Each file here measures one
//! thing and returns rows; `report` prints them and writes `target/bench.json`. `server` starts the release binaries,
//! `client` speaks to them, `cost` reads what they used, `figures` does the arithmetic. This process's own time and
//! memory count nowhere, but it runs on the same cores.

use std::io::{self, Write};

use anyhow::Context;
use clap::{Arg, ArgAction, Command, value_parser};

mod churn;
mod client;
mod cost;
mod dreamverse;
mod export;
mod extension;
mod faults;
mod figures;
mod film;
mod fleet;
mod handoff;
mod idle;
mod inputs;
mod many;
mod operations;
#[path = "../tests/provider.rs"]
#[expect(
    clippy::unwrap_used,
    dead_code,
    reason = "it belongs to the tests, which use all of it"
)]
mod provider;
mod recovery;
mod relay;
mod report;
mod router;
mod safety;
mod segment;
mod server;
mod session_log;
mod spectators;
mod start;
mod step_snapshots;
mod store;
mod videos;
mod viewers;

use report::{Machine, Report, Row};

#[derive(Clone, Copy, Debug)]
enum Scenario {
    Start,
    Segment1080p,
    ManySessions,
    IdleSessions,
    RelayLatency,
    Recovery,
    StepSnapshots,
    Faults,
    Handoff,
    Export,
    Film,
    Spectators,
    Churn,
    Viewers,
    Videos,
    Dreamverse,
    SessionLog,
    Extension,
    Safety,
    Inputs,
    Router,
    Fleet,
    Operations,
}

/// By the names that the command line takes, in the order in which they are measured.
const SCENARIOS: [(&str, Scenario); 23] = [
    ("start", Scenario::Start),
    ("segment_1080p", Scenario::Segment1080p),
    ("many_sessions", Scenario::ManySessions),
    ("idle_sessions", Scenario::IdleSessions),
    ("relay_latency", Scenario::RelayLatency),
    ("recovery", Scenario::Recovery),
    ("step_snapshots", Scenario::StepSnapshots),
    ("faults", Scenario::Faults),
    ("handoff", Scenario::Handoff),
    ("export", Scenario::Export),
    ("film", Scenario::Film),
    ("spectators", Scenario::Spectators),
    ("churn", Scenario::Churn),
    ("viewers", Scenario::Viewers),
    ("videos", Scenario::Videos),
    ("dreamverse", Scenario::Dreamverse),
    ("session_log", Scenario::SessionLog),
    ("extension", Scenario::Extension),
    ("safety", Scenario::Safety),
    ("inputs", Scenario::Inputs),
    ("router", Scenario::Router),
    ("fleet", Scenario::Fleet),
    ("operations", Scenario::Operations),
];

fn arguments() -> Command {
    Command::new("bench")
        .about("Measures what the supervisor must reach")
        .args([
            Arg::new("scenario")
                .help("What to measure; everything when none is named")
                .num_args(0..)
                .value_parser(SCENARIOS.map(|(name, _)| name)),
            Arg::new("runs")
                .long("runs")
                .help("Times that each thing is measured, where it is measured several times")
                .value_parser(value_parser!(u16).range(1..)),
            // cargo adds it to every benchmark's arguments.
            Arg::new("bench")
                .long("bench")
                .hide(true)
                .action(ArgAction::SetTrue),
        ])
}

impl Scenario {
    async fn measure(self, runs: Option<usize>) -> anyhow::Result<Vec<Row>> {
        match self {
            Self::Start => start::measure(runs.unwrap_or(7)).await,
            Self::Segment1080p => segment::measure(runs.unwrap_or(5)).await,
            Self::ManySessions => many::measure().await,
            Self::IdleSessions => idle::measure().await,
            Self::RelayLatency => relay::measure().await,
            Self::Recovery => recovery::measure(runs.unwrap_or(24)).await,
            Self::StepSnapshots => {
                step_snapshots::measure(runs.unwrap_or(200), runs.unwrap_or(12)).await
            }
            Self::Faults => faults::measure().await,
            Self::Export => export::measure(runs.unwrap_or(7)).await,
            Self::Film => film::measure(runs.unwrap_or(40)).await,
            Self::Spectators => spectators::measure().await,
            Self::Churn => churn::measure().await,
            Self::Viewers => viewers::measure().await,
            Self::Videos => videos::measure(runs.unwrap_or(10)).await,
            Self::Dreamverse => dreamverse::measure(runs.unwrap_or(60)).await,
            Self::SessionLog => session_log::measure().await,
            Self::Extension => extension::measure(runs.unwrap_or(12)).await,
            Self::Safety => safety::measure(runs.unwrap_or(5)).await,
            Self::Inputs => inputs::measure().await,
            Self::Router => router::measure(runs.unwrap_or(3)).await,
            Self::Fleet => fleet::measure(runs.unwrap_or(30)).await,
            Self::Operations => operations::measure(runs.unwrap_or(6)).await,
            Self::Handoff => handoff::measure(runs.unwrap_or(12)).await,
        }
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = arguments().get_matches();
    let named: Vec<&String> = arguments
        .get_many("scenario")
        .into_iter()
        .flatten()
        .collect();
    let runs = arguments.get_one::<u16>("runs").copied().map(usize::from);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut report = Report::new(Machine::look()?);
    for (name, scenario) in SCENARIOS {
        if !named.is_empty() && !named.iter().any(|n| *n == name) {
            continue;
        }
        let load = report::load_average()?;
        writeln!(io::stderr(), "measuring {name} (load average {load:.2})")?;
        let rows = runtime
            .block_on(scenario.measure(runs))
            .with_context(|| format!("{name} was not measured; see {}", server::LOG))?;
        report.add(load, rows);
    }
    report.print(&mut io::stdout())?;
    report.write()
}
