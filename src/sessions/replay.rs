//! Replays a recorded session: asks a server for the same segments, and says where it does not give the same.
//!
//! [`plan`] reads from the log what to do, [`server`] is a server of its own, [`conversation`] the session, [`facts`] what is
//! compared of both, [`times`] what is shown of both, [`report`] the outcome.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use fastvideo_supervisor_core::causes::with_causes;
use fastvideo_supervisor_core::session::log::signature::{PublicKey, Verdict, verify};
use tokio::signal::unix::{SignalKind, signal};

use super::history::History;
use crate::client::args::{API_KEY, authorization, encryption, stream_url};
use crate::client::connection::Connection;
use crate::config;

mod conversation;
mod facts;
mod plan;
mod report;
mod server;
mod times;

use conversation::{Conversation, Told};
use facts::{Facts, Faults};
use plan::Plan;
use report::{Differences, Report};
use server::OwnServer;
use times::Times;

/// The exit code for a session that is not as it was.
const DIFFERENT: u8 = 1;
/// The exit code for a session that cannot be replayed.
const NOT_REPLAYED: u8 = 2;

/// The keys of a server that matter for a replay. All others are accepted, too.
const SHOWN_KEYS: [&str; 5] = [
    "config",
    "generator.model_path",
    "generator.engine.name",
    "streaming.pool.gpus",
    "streaming.pool.worker_bin",
];

const TEACHING: &str = "\
It starts a server of its own, with the engine, the format and the encoder of the recorded session, asks for
the same segments with the same prompts, seeds and sampling when the session has come as far as it had then,
and compares the order of events and the SHA-256 of each segment. Times are shown side by side and not
compared. Options of a server, as --model, go to the server that it starts, which reads no environment
variables of servers.

Faults that happened are left out of the comparison; with --with-faults the workers are killed that were
lost, in the same attempts, and attempts and handoffs are compared too.

Examples:
  fastvideo-supervisor sessions replay session-ID.jsonl
      Against a server of its own.
  fastvideo-supervisor sessions replay session-ID.jsonl --with-faults --key signing.key
      With its faults; the file must be signed with that key.
  fastvideo-supervisor sessions replay session-ID.jsonl --against ws://127.0.0.1:8000 --json
      Against a running server, for programs.

Exit codes: 0 equal, 1 different, 2 cannot be replayed.";

/// The arguments of `sessions replay`.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    file: PathBuf,
    against: Option<String>,
    ca_file: Option<PathBuf>,
    key: Option<String>,
    with_faults: bool,
    json: bool,
    /// The options of the server that is started.
    options: config::Options,
}

impl Args {
    pub(super) fn command(configuration: impl Iterator<Item = Arg>) -> Command {
        Command::new("replay")
            .about("Asks a server for the segments of a recorded session, and says what differs")
            .after_long_help(TEACHING)
            .args_override_self(true)
            .args([
                Arg::new("file")
                    .value_name("FILE")
                    .required(true)
                    .value_parser(value_parser!(PathBuf))
                    .help("A file of the session log, session-ID.jsonl"),
                Arg::new("against")
                    .long("against")
                    .value_name("URL")
                    .help("A running server, as ws://, wss://, http:// or https:// [default: one is started]"),
                Arg::new("ca-file")
                    .long("ca-file")
                    .value_name("FILE")
                    .requires("against")
                    .value_parser(value_parser!(PathBuf))
                    .help("Certificate authorities (PEM) to trust instead of the system's, for wss://"),
                Arg::new("key")
                    .long("key")
                    .value_name("KEY")
                    .help("The Ed25519 key that must have signed the file: 64 hexadecimal digits, or a file with a public or private key"),
                Arg::new("with-faults")
                    .long("with-faults")
                    .action(ArgAction::SetTrue)
                    .conflicts_with("against")
                    .help("Kill the workers that were lost, and compare attempts and handoffs too"),
                Arg::new("json")
                    .long("json")
                    .action(ArgAction::SetTrue)
                    .help("Print the outcome as JSON"),
            ])
            .args(configuration.map(|arg| {
                let is_shown = SHOWN_KEYS.contains(&arg.get_id().as_str());
                arg.hide(!is_shown)
            }))
    }

    /// Takes the arguments; `options` are those of the server.
    pub(crate) fn from_matches(matches: &ArgMatches, options: config::Options) -> Self {
        Self {
            file: matches
                .get_one("file")
                .cloned()
                .expect("clap asks for a file"),
            against: matches.get_one("against").cloned(),
            ca_file: matches.get_one("ca-file").cloned(),
            key: matches.get_one("key").cloned(),
            with_faults: matches.get_flag("with-faults"),
            json: matches.get_flag("json"),
            options,
        }
    }
}

/// Runs the subcommand and returns its exit code.
pub(super) fn run(args: &Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .context("cannot start")
        .and_then(|runtime| runtime.block_on(interruptible(args)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(DIFFERENT),
        Err(error) => {
            let error = with_causes(error.as_ref());
            if args.json {
                let _ = writeln!(io::stdout(), "{}", serde_json::json!({"error": error}));
            }
            let _ = writeln!(io::stderr(), "error: cannot be replayed: {error}");
            ExitCode::from(NOT_REPLAYED)
        }
    }
}

/// Replays the session unless a signal ends the process, which ends the server too.
async fn interruptible(args: &Args) -> anyhow::Result<bool> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    tokio::select! {
        outcome = replay(args) => outcome,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("interrupted"),
    }
}

/// Returns whether the replay is equal to what was recorded.
async fn replay(args: &Args) -> anyhow::Result<bool> {
    let path = &args.file;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let signature = check_signature(&bytes, args.key.as_deref())?;
    let history = History::read(&bytes);
    let history =
        history.with_context(|| format!("{} has no line of a session's log", path.display()))?;
    let faults = match args.with_faults {
        true => Faults::Repeated,
        false => Faults::LeftOut,
    };
    let plan = Plan::read(&history, faults)?;
    let mut replayed = match &args.against {
        Some(url) => against(url, args, &plan).await?,
        None => on_its_own(args, &plan, faults).await?,
    };
    let mut recorded = Facts::of_log(faults, history.known().map(|(_, event)| event));
    let mut notes = notes(&plan, &replayed, args);
    if let Some(run) = recorded.open_run() {
        notes.push("the last segment had not ended, and is not compared".to_owned());
        recorded.end_before(run);
        replayed.facts.end_before(run);
    }
    if !Plan::repeats_close(&history) {
        recorded.leave_close_out();
        replayed.facts.leave_close_out();
    }
    let differences = Differences::between(recorded.in_order(), replayed.facts.in_order());
    let report = Report {
        session_id: &super::text::plain(&history.session_id),
        signature: &signature,
        differences: &differences,
        events: recorded.in_order().len(),
        recorded: &Times::of_log(&history),
        replayed: &replayed.times,
        notes: &notes,
    };
    let text = match args.json {
        true => report.to_json().to_string() + "\n",
        false => report.print(),
    };
    // An error means that nobody reads the output any more.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(differences.are_none())
}

/// Checks the signatures of a file, and returns what they say.
///
/// # Errors
/// Returns an error when the file was changed, or is not signed with the key that it must be signed with.
fn check_signature(bytes: &[u8], key: Option<&str>) -> anyhow::Result<String> {
    let key = key.map(PublicKey::named).transpose().context("--key")?;
    let verdict = verify(bytes);
    if let Verdict::Changed { .. } = verdict {
        anyhow::bail!("the file was {}", describe(&verdict));
    }
    if let Some(key) = key {
        let is_right = matches!(&verdict, Verdict::Signed { keys } if *keys == [key]);
        anyhow::ensure!(
            is_right,
            "the file must be signed with {key}, and is {}",
            describe(&verdict)
        );
    }
    Ok(describe(&verdict))
}

/// Says what the signatures of a file say.
pub(super) fn describe(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Signed { keys } => {
            let keys: Vec<String> = keys.iter().map(PublicKey::to_string).collect();
            format!("signed with {}", keys.join(" and "))
        }
        Verdict::Changed { lines } => {
            let (first, last) = (lines.start(), lines.end());
            format!("changed after it was signed, in lines {first} to {last}")
        }
        Verdict::Unsigned { lines } => {
            let (first, last) = (lines.start(), lines.end());
            format!("not signed in lines {first} to {last}")
        }
    }
}

async fn against(url: &str, args: &Args, plan: &Plan) -> anyhow::Result<Told> {
    let url = stream_url(url).context("--against")?;
    let tls = match url.starts_with("wss://") {
        true => Some(encryption(args.ca_file.as_deref())?),
        false => None,
    };
    let connection = Connection::open(&url, tls, authorization(API_KEY, false)?).await?;
    let conversation = Conversation::open(plan, connection, None, Faults::LeftOut).await?;
    conversation.run().await
}

/// Replays the session on a server of its own, whose log tells more than a client hears.
async fn on_its_own(args: &Args, plan: &Plan, faults: Faults) -> anyhow::Result<Told> {
    let server = OwnServer::start(plan, faults, &args.options).await?;
    let url = stream_url(server.address())?;
    let connection = Connection::open(&url, None, None).await?;
    let conversation = Conversation::open(plan, connection, Some(&server), faults).await?;
    let told = conversation.run().await?;
    let history = server.whole_log(&told.session_id).await?;
    server.stop().await;
    let events = history.known().map(|(_, event)| event);
    Ok(Told {
        facts: Facts::of_log(faults, events),
        times: Times::of_log(&history),
        ..told
    })
}

fn notes(plan: &Plan, replayed: &Told, args: &Args) -> Vec<String> {
    let mut notes = Vec::new();
    let version = env!("CARGO_PKG_VERSION");
    if plan.version != version && args.against.is_none() {
        notes.push(format!(
            "recorded by version {}, replayed by {version}",
            plan.version
        ));
    }
    if plan.model_id != replayed.model_id {
        notes.push(format!(
            "recorded with the model {}, replayed with {}",
            plan.model_id, replayed.model_id
        ));
    }
    notes.push(format!("recorded on {}", plan.device));
    notes
}
