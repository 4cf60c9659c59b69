//! `fastvideo-supervisor`: serves realtime video generation from many GPUs.
//!
//! This package is the command line around the library in `supervisor/`: arguments, configuration, log, exit code.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use fastvideo_supervisor_core::LogLines;
use fastvideo_supervisor_core::causes::with_causes;
use fastvideo_supervisor_core::service_manager::{ServiceManager, watchdog_limit};
use fastvideo_supervisor_core::sockets::{PassedError, PassedSockets};
use fastvideo_supervisor_core::turns::Turns;
use fastvideo_supervisor_core::{Launch, Listening, Source, thread_priority};
use tokio::runtime::Runtime;

mod args;
mod check;
mod client;
mod config;
mod keys;
mod logging;
mod manual;
mod probe;
mod router;
mod sessions;
mod startup;

use args::Invocation;

/// The exit code for a wrong command line or configuration, as clap and systemd use it.
const USAGE: u8 = 2;
/// Number of threads for blocking work.
const MAX_BLOCKING_THREADS: usize = 64;
/// How long such a thread waits for more work: for ever, since the system may have no thread left when there is more.
const BLOCKING_THREAD_LIFE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// How long blocking work may continue after the server has ended.
const LEFTOVERS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match args::parse(std::env::args_os()) {
        Ok(Invocation::Serve(options)) => serve(&options),
        Ok(Invocation::Check(args)) => check::run(&args),
        Ok(Invocation::Client(args)) => client::run(*args),
        Ok(Invocation::Sessions(args)) => sessions::run(&args),
        Ok(Invocation::Router(args)) => router::run(&args),
        Ok(Invocation::Manual(args)) => manual::run(&args, args::documented()),
        Ok(Invocation::Probe(args)) => probe::run(&args),
        Ok(Invocation::NewKey(args)) => keys::run(&args),
        Err(error) => {
            // An error means that nobody reads the output.
            let _ = error.print();
            u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

fn serve(options: &config::Options) -> ExitCode {
    let surroundings = config::surroundings();
    let loaded = match config::load(options, &surroundings) {
        Ok(loaded) => loaded,
        Err(errors) => return refuse(&errors),
    };
    let sockets = match PassedSockets::take(&surroundings, true) {
        Ok(sockets) => sockets,
        Err(error) => return refuse_sockets(&error),
    };
    let turns = Turns::new(watchdog_limit(&surroundings));
    // It writes its last lines when it is dropped.
    let log_lines = LogLines::default();
    let (_log, log_filter) = match logging::start(loaded.logging, log_lines.clone(), &turns) {
        Ok(started) => started,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: cannot start the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    startup::log(&loaded.config, &loaded.settings, options.file.as_deref());
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let source = config::source(options, &surroundings, loaded.settings, log_filter);
    let launch = launch(sockets, source, turns, log_lines);
    match run(loaded.config, launch) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(config: fastvideo_supervisor_core::Config, launch: Launch) -> anyhow::Result<()> {
    let runtime = runtime(config.pool.realtime)?;
    let served = runtime.block_on(fastvideo_supervisor_core::serve(config, launch, announce));
    // The wait is bounded, unlike that of dropping the runtime: a thread may hang in a read that cannot be interrupted.
    runtime.shutdown_timeout(LEFTOVERS);
    Ok(served?)
}

/// Puts together what the program was given by whoever started it.
fn launch(sockets: PassedSockets, source: Source, turns: Turns, log_lines: LogLines) -> Launch {
    Launch {
        sockets,
        service: ServiceManager::find(&source.surroundings),
        turns,
        log_lines,
        source,
    }
}

/// Builds the runtime. With `promptly`, its worker threads ask for real-time scheduling, but those for blocking work do
/// not.
fn runtime(promptly: bool) -> io::Result<Runtime> {
    let threads = thread::available_parallelism()?.get();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all();
    builder
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_THREAD_LIFE);
    if promptly {
        match thread_priority::run_promptly() {
            Ok(grant) => tracing::debug!(?grant, "threads on a fragment's way run promptly"),
            Err(error) => tracing::warn!(%error, "fragments may be late when cores are busy"),
        }
        // The runtime starts its worker threads first, and threads for blocking work later.
        let started = AtomicUsize::new(0);
        builder.on_thread_start(move || {
            if started.fetch_add(1, Ordering::Relaxed) < threads {
                // The error was reported above.
                let _ = thread_priority::run_promptly();
            }
        });
    }
    builder.build()
}

/// Prints the line that scripts and tests wait for; where operators have an address of their own, it is in a second one. A
/// thread of its own does so, since a pipe that nobody reads may let it wait for ever.
fn announce(listening: Listening) {
    let Listening {
        address,
        is_encrypted,
        admin,
    } = listening;
    let scheme = if is_encrypted { "https" } else { "http" };
    tracing::info!(%address, scheme, "listening");
    let mut lines = format!("listening on {scheme}://{address}\n");
    if let Some(admin) = admin {
        tracing::info!(address = %admin, scheme, "listening for operators");
        lines += &format!("listening for operators on {scheme}://{admin}\n");
    }
    let print = move || {
        // Not the library's buffer, which the end of the process would wait for.
        let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        stdout.write_all(lines.as_bytes())
    };
    // An error means that nobody reads stdout, which is no reason to stop serving.
    let _ = thread::Builder::new()
        .name("stdout".to_owned())
        .spawn(print);
}

fn refuse(errors: &config::ConfigErrors) -> ExitCode {
    let _ = write!(std::io::stderr(), "{errors}");
    ExitCode::from(USAGE)
}

fn refuse_sockets(error: &PassedError) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {error}");
    ExitCode::from(USAGE)
}
