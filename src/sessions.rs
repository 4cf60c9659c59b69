//! The `sessions show` subcommand: what a session's log says, for people.
//!
//! [`history`] reads the file and puts together what belongs to one segment, [`text`] prints it, [`svg`] draws it.

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

use history::History;

const EXAMPLES: &str = "\
Examples:
  fastvideo-supervisor sessions show /var/log/fastvideo/session-ID.jsonl
      What happened when, and where each segment's time went.
  fastvideo-supervisor sessions show session-ID.jsonl --svg session.svg
      The same as a drawing.

The files are written where --session-log-dir says so.";

/// As it was typed.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    file: PathBuf,
    svg: Option<PathBuf>,
}

impl Args {
    pub(crate) fn command() -> Command {
        let show = Command::new("show")
            .about("Prints the log of one session, and draws it")
            .after_long_help(EXAMPLES)
            .arg(
                Arg::new("file")
                    .value_name("FILE")
                    .required(true)
                    .value_parser(value_parser!(PathBuf))
                    .help("A file of the session log, session-ID.jsonl"),
            )
            .arg(
                Arg::new("svg")
                    .long("svg")
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help("Writes a drawing here"),
            );
        Command::new("sessions")
            .about("Shows what happened in sessions")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(show)
    }

    /// # Panics
    /// Of other matches than those of [`Self::command`].
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let Some(("show", matches)) = matches.subcommand() else {
            unreachable!("clap asks for a subcommand");
        };
        Self {
            file: matches
                .get_one("file")
                .cloned()
                .expect("clap asks for a file"),
            svg: matches.get_one("svg").cloned(),
        }
    }
}

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
    // Err: nobody reads on.
    let _ = io::stdout().write_all(text::print(&history).as_bytes());
    if let Some(path) = &args.svg {
        fs::write(path, svg::draw(&history))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<History> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let history = History::read(&bytes);
    history.with_context(|| format!("{} has no line of a session's log", path.display()))
}
