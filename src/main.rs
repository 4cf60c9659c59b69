//! `fastvideo-supervisor`: serves realtime video generation from many GPUs.
//!
//! This package is the command line around the library in `supervisor/`: arguments, configuration, log, exit code.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use fastvideo_supervisor_core::thread_priority;
use tokio::runtime::Runtime;

mod args;
mod client;
mod config;
mod logging;
mod sessions;

use args::Invocation;

/// A wrong command line or configuration, as clap and systemd know it.
const USAGE: u8 = 2;
/// How long blocking work may go on after the end.
const LEFTOVERS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match args::parse(std::env::args_os()) {
        Ok(Invocation::Serve(options)) => serve(&options),
        Ok(Invocation::Check(options)) => check(&options),
        Ok(Invocation::Client(args)) => client::run(*args),
        Ok(Invocation::Sessions(args)) => sessions::run(&args),
        Err(error) => {
            // Err: nobody reads.
            let _ = error.print();
            u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}

fn serve(options: &config::Options) -> ExitCode {
    let loaded = match config::load(options, &config::surroundings()) {
        Ok(loaded) => loaded,
        Err(errors) => return refuse(&errors),
    };
    logging::start(loaded.logging);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    match run(loaded.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: fastvideo_supervisor_core::Config) -> anyhow::Result<()> {
    let runtime = runtime(config.pool.realtime)?;
    let served = runtime.block_on(fastvideo_supervisor_core::serve(config, announce));
    // Not for ever, as dropping the runtime would: a thread may hang in a read that no one can end.
    runtime.shutdown_timeout(LEFTOVERS);
    Ok(served?)
}

/// `promptly`: its threads ask to be run at once, but not those for blocking work.
fn runtime(promptly: bool) -> io::Result<Runtime> {
    let threads = thread::available_parallelism()?.get();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all();
    if promptly {
        match thread_priority::run_promptly() {
            Ok(grant) => tracing::debug!(?grant, "threads on a fragment's way run promptly"),
            Err(error) => tracing::warn!(%error, "fragments may be late when cores are busy"),
        }
        // The runtime starts its own threads first; blocking work comes later.
        let started = AtomicUsize::new(0);
        builder.on_thread_start(move || {
            if started.fetch_add(1, Ordering::Relaxed) < threads {
                // Err: said above.
                let _ = thread_priority::run_promptly();
            }
        });
    }
    builder.build()
}

/// The line that scripts and tests wait for.
fn announce(address: SocketAddr) {
    // Err: nobody reads, which is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "listening on http://{address}");
}

fn check(options: &config::Options) -> ExitCode {
    let loaded = match config::load(options, &config::surroundings()) {
        Ok(loaded) => loaded,
        Err(errors) => return refuse(&errors),
    };
    for warning in &loaded.warnings {
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
    let gpus: Vec<&str> = loaded
        .config
        .pool
        .gpus
        .iter()
        .map(|gpu| gpu.visible_device.as_str())
        .collect();
    let _ = writeln!(
        std::io::stdout(),
        "{}# ok; workers on GPU {}",
        loaded.settings,
        gpus.join(", ")
    );
    ExitCode::SUCCESS
}

fn refuse(errors: &config::ConfigErrors) -> ExitCode {
    let _ = write!(std::io::stderr(), "{errors}");
    ExitCode::from(USAGE)
}
