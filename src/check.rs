//! The `check` subcommand: reads the configuration, prints it, and tries what the server would open, without serving.
//!
//! `surroundings` tries the address, the folders and the store, `worker` asks the worker program about the engine and the
//! encoder, `gpus` looks for the GPUs.

use std::io::{self, Write};
use std::process::ExitCode;

use fastvideo_proto::check::{Finding, Outcome};
use fastvideo_supervisor_core::Config;
use fastvideo_supervisor_core::causes::with_causes;

use crate::config::{self, Loaded};

mod gpus;
mod surroundings;
mod worker;

/// The arguments of `check`.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    pub(crate) options: config::Options,
    /// Whether only the configuration itself is checked.
    pub(crate) offline: bool,
}

/// Runs the subcommand and returns its exit code: 2 for a wrong configuration, 1 when the server could not serve with it.
///
/// What it prints on stdout is a configuration file; the findings are comments in it.
pub(crate) fn run(args: &Args) -> ExitCode {
    let loaded = match config::load(&args.options, &config::surroundings()) {
        Ok(loaded) => loaded,
        Err(errors) => return crate::refuse(&errors),
    };
    for warning in &loaded.warnings {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    let findings = match args.offline {
        true => vec![Finding::not_tried("everything else", "--offline was given")],
        false => match try_everything(&loaded) {
            Ok(findings) => findings,
            Err(error) => {
                let _ = writeln!(io::stderr(), "error: {}", with_causes(&error));
                return ExitCode::FAILURE;
            }
        },
    };
    let is_failed = |finding: &&Finding| finding.outcome == Outcome::Failed;
    let failed = findings.iter().filter(is_failed).count();
    let mut text = loaded.settings.to_string();
    for finding in &findings {
        // A comment has one line, whatever an error says.
        text += &format!("# {}\n", one_line(&finding.to_string()));
    }
    text += &match failed {
        0 => format!("# ok; workers on GPU {}\n", gpu_names(&loaded.config)),
        n => format!("# failed: {n} of {}\n", findings.len()),
    };
    // An error means that nobody reads the output.
    let _ = io::stdout().write_all(text.as_bytes());
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Tries all that the server would open, the cheapest first.
fn try_everything(loaded: &Loaded) -> io::Result<Vec<Finding>> {
    let config = &loaded.config;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let findings = runtime.block_on(async {
        // Removed at the end of this block.
        let (finding, _folder) = surroundings::private_folder();
        let mut findings = surroundings::addresses(config);
        findings.push(finding);
        findings.push(surroundings::store(config).await);
        findings.extend(surroundings::session_log(config));
        findings.extend(surroundings::prompts(config).await);
        findings.extend(worker::ask(config).await);
        findings.push(gpus::look(config).await);
        findings
    });
    // A store that does not answer may keep a thread.
    runtime.shutdown_background();
    Ok(findings)
}

fn gpu_names(config: &Config) -> String {
    let gpus = config.pool.gpus.iter().map(|gpu| &*gpu.visible_device);
    gpus.collect::<Vec<_>>().join(", ")
}

fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}
