//! The hidden `manual` subcommand: writes manual pages and completions for shells, for packages.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

const PROGRAM: &str = "fastvideo-supervisor";

/// The folder to write to, which exists.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) folder: PathBuf,
}

/// Runs the subcommand for a command line and returns its exit code.
pub(crate) fn run(args: &Args, command: Command) -> ExitCode {
    match write(&args.folder, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let folder = args.folder.display();
            let _ = writeln!(io::stderr(), "error: cannot write to {folder}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path, mut command: Command) -> io::Result<()> {
    // Completions add the subcommand `help` to the command, which needs no page.
    clap_mangen::generate_to(command.clone(), folder)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command, PROGRAM, folder)?;
    }
    Ok(())
}
