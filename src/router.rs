//! The `router` subcommand: one address before many servers.

use std::io::{self, Write};
use std::process::ExitCode;

use fastvideo_supervisor_core::LogLines;
use fastvideo_supervisor_core::causes::with_causes;
use fastvideo_supervisor_core::router::health_check::HttpClient;
use fastvideo_supervisor_core::router::{self, Config};
use fastvideo_supervisor_core::service_manager::watchdog_limit;
use fastvideo_supervisor_core::settings::Surroundings;
use fastvideo_supervisor_core::sockets::PassedSockets;
use fastvideo_supervisor_core::turns::Turns;
use futures_util::future::join_all;

use crate::config::{self, LoadedRouter, Options};
use crate::logging;

/// The arguments of `router`.
#[derive(Debug)]
pub(crate) enum Args {
    Serve(Options),
    Check(Options),
}

/// Runs the subcommand and returns its exit code.
pub(crate) fn run(args: &Args) -> ExitCode {
    let (Args::Serve(options) | Args::Check(options)) = args;
    let surroundings = config::surroundings();
    let loaded = match config::load_router(options, &surroundings) {
        Ok(loaded) => loaded,
        Err(errors) => return crate::refuse(&errors),
    };
    match args {
        Args::Serve(_) => serve(options, loaded, &surroundings),
        Args::Check(_) => check(&loaded),
    }
}

fn serve(options: &Options, loaded: LoadedRouter, surroundings: &Surroundings) -> ExitCode {
    let sockets = match PassedSockets::take(surroundings, false) {
        Ok(sockets) => sockets,
        Err(error) => return crate::refuse_sockets(&error),
    };
    let turns = Turns::new(watchdog_limit(surroundings));
    // It writes its last lines when it is dropped.
    let log_lines = LogLines::default();
    let (_log, log_filter) = match logging::start(loaded.logging, log_lines.clone(), &turns) {
        Ok(started) => started,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: cannot start the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    let version = env!("CARGO_PKG_VERSION");
    let replicas = loaded.config.replicas.len();
    tracing::info!(version, replicas, "starting a router");
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let source = config::source(options, surroundings, loaded.settings, log_filter);
    let launch = crate::launch(sockets, source, turns, log_lines);
    let served = crate::runtime(true).map_err(anyhow::Error::from);
    let served = served.and_then(|runtime| {
        let served = runtime.block_on(router::serve(loaded.config, launch, crate::announce));
        runtime.shutdown_timeout(crate::LEFTOVERS);
        Ok(served?)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Prints the configuration as a file, and as comments in it whether each of its servers answers. Fails when none does.
fn check(loaded: &LoadedRouter) -> ExitCode {
    for warning in &loaded.warnings {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    let config = &loaded.config;
    let answers = ask_all(config);
    let answers = match answers {
        Ok(answers) => answers,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", with_causes(error.as_ref()));
            return ExitCode::FAILURE;
        }
    };
    let mut text = loaded.settings.to_string();
    for (replica, answer) in config.replicas.iter().zip(&answers) {
        text += &match answer {
            Ok(Link::NotAsked) => format!("# ok: {}: it answers\n", replica.url),
            Ok(Link::There) => {
                format!(
                    "# ok: {}: it answers, and links with this router\n",
                    replica.url
                )
            }
            Ok(Link::Missing(reason)) => format!(
                "# ok: {}: it answers, but its sessions do not move: {reason}\n",
                replica.url
            ),
            Err(reason) => format!("# failed: {}: {}\n", replica.url, reason.replace('\n', " ")),
        };
    }
    let answering = answers.iter().filter(|answer| answer.is_ok()).count();
    text += &format!("# {answering} of {} servers answer\n", answers.len());
    // An error means that nobody reads the output.
    let _ = io::stdout().write_all(text.as_bytes());
    match answering {
        0 if !answers.is_empty() => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Whether a server that answers links with the router.
enum Link {
    /// The router has no key.
    NotAsked,
    There,
    Missing(String),
}

/// Asks all servers at once.
fn ask_all(config: &Config) -> anyhow::Result<Vec<Result<Link, String>>> {
    let tls = config.tls()?;
    let probe = HttpClient::new(tls.as_deref())?;
    let asked = config.replicas.iter().map(async |replica| {
        config.health_check.ask(&replica.url, &probe).await?;
        let link = config.try_link(&replica.url, tls.clone()).await;
        Ok(match link {
            None => Link::NotAsked,
            Some(Ok(())) => Link::There,
            Some(Err(reason)) => Link::Missing(reason),
        })
    });
    Ok(crate::runtime(false)?.block_on(join_all(asked)))
}
