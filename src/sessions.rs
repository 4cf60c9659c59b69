//! The `sessions show` subcommand: shows the log of a session to people.
//!
//! [`history`] reads the file and groups the events of each segment, [`text`] prints them, [`trace`] exports them for trace
//! viewers, [`svg`] draws a picture.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};

mod history;
mod svg;
#[cfg(test)]
mod tests;
mod text;
mod trace;

use history::History;

const EXAMPLES: &str = "\
Examples:
  fastvideo-supervisor sessions show /var/log/fastvideo/session-ID.jsonl
      Prints what happened when, and where the time of each segment went.
  fastvideo-supervisor sessions show session-ID.jsonl --trace session.json
      Writes a trace as well. Open it at https://ui.perfetto.dev or in chrome://tracing to zoom and search.
  fastvideo-supervisor sessions show session-ID.jsonl --svg session.svg
      Draws a picture as well.

The files are written where --session-log-dir says so.";

/// The arguments of `sessions show`.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    file: PathBuf,
    trace: Option<PathBuf>,
    svg: Option<PathBuf>,
}

impl Args {
    pub(crate) fn command() -> Command {
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
        Command::new("sessions")
            .about("Shows what happened in sessions")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(show)
    }

    /// Takes the arguments from the matches of [`Self::command`].
    ///
    /// # Panics
    /// Panics when the matches are those of another command.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let Some(("show", matches)) = matches.subcommand() else {
            unreachable!("clap asks for a subcommand");
        };
        Self {
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
    match show(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(args: &Args) -> anyhow::Result<()> {
    let history = read(&args.file)?;
    // An error means that nobody reads the output any more.
    let _ = io::stdout().write_all(text::print(&history).as_bytes());
    if let Some(path) = &args.trace {
        write(path, &trace::export(&history).to_string())?;
    }
    if let Some(path) = &args.svg {
        write(path, &svg::draw(&history).context("cannot draw the log")?)?;
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<History> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let history = History::read(&bytes);
    history.with_context(|| format!("{} has no line of a session's log", path.display()))
}
