//! The `sessions` subcommands: `list` and `show` the log of sessions to people, `replay` one against a server.
//!
//! [`list`] lists the files; [`history`] reads the file and groups the events of each segment, [`text`] prints them, [`trace`] exports them for trace
//! viewers, [`svg`] draws a picture; [`replay`] repeats the session.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Arg, ArgMatches, Command, value_parser};
use fastvideo_supervisor_core::causes::with_causes;
use fastvideo_supervisor_core::session;
use fastvideo_supervisor_core::session::log::signature::verify;

use crate::config::{self, ConfigErrors};

mod history;
mod list;
pub(crate) mod replay;
mod svg;
#[cfg(test)]
mod tests;
mod text;
mod trace;

use history::History;

const EXAMPLES: &str = "\
Examples:
  fastvideo-supervisor sessions list --config serve.yaml
      Lists the sessions whose log is kept, with the files to show.
  fastvideo-supervisor sessions show /var/log/fastvideo-supervisor/session-ID.jsonl
      Prints what happened when, and where the time of each segment went.
  fastvideo-supervisor sessions show session-ID.jsonl --trace session.json
      Writes a trace as well. Open it at https://ui.perfetto.dev or in chrome://tracing to zoom and search.
  fastvideo-supervisor sessions show session-ID.jsonl --svg session.svg
      Draws a picture as well.

The files are written where --session-log-dir says so.";

/// The arguments of `sessions`.
#[derive(Clone, Debug)]
pub(crate) enum Args {
    Show {
        file: PathBuf,
        trace: Option<PathBuf>,
        svg: Option<PathBuf>,
    },
    List {
        folder: Option<PathBuf>,
        /// The server's configuration, which names the folder otherwise.
        options: config::Options,
    },
    Replay(replay::Args),
}

impl Args {
    /// Builds the command; `configuration` has the options of the server, which name the folder of the session log.
    pub(crate) fn command(configuration: impl Iterator<Item = Arg>) -> Command {
        let configuration: Vec<Arg> = configuration.collect();
        let output = |name: &'static str, help: &'static str| {
            Arg::new(name)
                .long(name)
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help(help)
        };
        let show = Command::new("show")
            .about("Prints the log of one session, exports it as a trace, and draws it")
            .after_long_help(EXAMPLES)
            .arg(
                Arg::new("file")
                    .value_name("FILE")
                    .required(true)
                    .value_parser(value_parser!(PathBuf))
                    .help("A file of the session log, session-ID.jsonl"),
            )
            .arg(output(
                "trace",
                "Writes a trace for Perfetto and chrome://tracing here (JSON)",
            ))
            .arg(output("svg", "Writes a picture here (SVG)"));
        let list = Command::new("list")
            .about("Lists the sessions of a session log, the newest last")
            .args_override_self(true)
            .arg(
                Arg::new("folder")
                    .value_name("FOLDER")
                    .value_parser(value_parser!(PathBuf))
                    .help("The folder of the session log [default: as the server's configuration says]"),
            )
            // All are accepted, so that a server's command line can be taken over, but few matter.
            .args(configuration.iter().cloned().map(|arg| {
                let matters = ["config", session::config::LOG_DIR.spec.path];
                let is_hidden = !matters.contains(&arg.get_id().as_str());
                arg.hide(is_hidden)
            }));
        Command::new("sessions")
            .about("Shows what happened in sessions, and replays them")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(list)
            .subcommand(show)
            .subcommand(replay::Args::command(configuration.into_iter()))
    }

    /// Takes the arguments of `sessions show`.
    pub(crate) fn show(matches: &ArgMatches) -> Self {
        Self::Show {
            file: matches
                .get_one("file")
                .cloned()
                .expect("clap asks for a file"),
            trace: matches.get_one("trace").cloned(),
            svg: matches.get_one("svg").cloned(),
        }
    }
}

/// Runs the subcommand and returns its exit code.
pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match args {
        Args::Show { file, trace, svg } => show(file, trace.as_deref(), svg.as_deref()),
        Args::List { folder, options } => {
            let folder = match folder {
                Some(folder) => Ok(Some(folder.clone())),
                None => configured_folder(options),
            };
            match folder {
                Ok(Some(folder)) => print_list(&folder),
                Ok(None) => {
                    let flag = session::config::LOG_DIR.spec.flag();
                    Err(anyhow!(
                        "no session log is configured; name its folder, or give --config or --{flag}"
                    ))
                }
                Err(errors) => return crate::refuse(&errors),
            }
        }
        Args::Replay(args) => return replay::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn configured_folder(options: &config::Options) -> Result<Option<PathBuf>, ConfigErrors> {
    let (settings, _) = config::merge(options, &config::surroundings())?;
    Ok(settings.get(&session::config::LOG_DIR).map(PathBuf::from))
}

fn print_list(folder: &Path) -> anyhow::Result<()> {
    let text = list::print(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    // An error means that nobody reads the output any more.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn show(file: &Path, trace: Option<&Path>, svg: Option<&Path>) -> anyhow::Result<()> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let history = History::read(&bytes);
    let history =
        history.with_context(|| format!("{} has no line of a session's log", file.display()))?;
    let signature = replay::describe(&verify(&bytes));
    let text = format!("{}\nThe file is {signature}.\n", text::print(&history));
    // An error means that nobody reads the output any more.
    let _ = io::stdout().write_all(text.as_bytes());
    if let Some(path) = trace {
        write(path, &trace::export(&history).to_string())?;
    }
    if let Some(path) = svg {
        write(path, &svg::draw(&history).context("cannot draw the log")?)?;
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
