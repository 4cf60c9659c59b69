//! The `client` subcommand: opens a session on a running server, requests segments and saves their video. With `--job`, it has
//! a whole video made.
//!
//! [`args`] checks the arguments, [`connection`] is the WebSocket, [`conversation`] the session, [`job`] what `--job` does,
//! [`output`] writes the video, [`progress`] informs people and [`report`] programs.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use fastvideo_supervisor_core::causes::with_causes;

pub(crate) mod args;
pub(crate) mod connection;
mod conversation;
mod job;
mod output;
mod progress;
mod report;

pub(crate) use args::Args;

use args::{Valid, ValidArgs};
use conversation::Conversation;
use output::Output;
use progress::Progress;
use report::Report;
use tokio::runtime::Runtime;

/// Runs the subcommand and returns its exit code.
pub(crate) fn run(args: Args) -> ExitCode {
    let progress = Progress::on_stderr();
    match args.check() {
        Ok(Valid::Session(args)) => run_in_session(&args, &progress),
        Ok(Valid::Job(args)) => job::run(&args, &progress),
        Err(error) => {
            progress.say(&format!("error: {}", with_causes(error.as_ref())));
            ExitCode::from(crate::USAGE)
        }
    }
}

fn run_in_session(args: &ValidArgs, progress: &Progress) -> ExitCode {
    let mut report = Report::default();
    let result = generate(args, progress, &mut report);
    report.error = show_end(&result, progress);
    if let (Some(id), Some(resume)) = (&report.session_id, &report.resume) {
        progress.say(&format!(
            "the server keeps session {id} for a while; continue it with --resume {resume}"
        ));
    }
    if args.json {
        report::print(&report);
    }
    exit_code(&result)
}

/// Ends the display, and says why the client has failed. Returns the reason for the summary.
fn show_end(result: &anyhow::Result<()>, progress: &Progress) -> Option<String> {
    progress.end();
    let error = with_causes(result.as_ref().err()?.as_ref());
    progress.say(&format!("error: {error}"));
    Some(error)
}

fn exit_code(result: &anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")
}

/// Runs the session and moves the video, or its complete segments, to its place.
fn generate(args: &ValidArgs, progress: &Progress, report: &mut Report) -> anyhow::Result<()> {
    let mut output = args.output.as_deref().map(Output::create).transpose()?;
    let result = runtime()?.block_on(run_session(args, output.as_mut(), progress, report));
    let Some(output) = output else {
        return result;
    };
    match result {
        Ok(()) => {
            let path = output.keep()?;
            report.bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
            progress.say(&format!("wrote {}", path.display()));
            report.output = Some(path);
            Ok(())
        }
        Err(error) => {
            if let Some(path) = output.keep_partial()? {
                let segments = report.segments.len();
                let path_shown = path.display();
                progress.say(&format!(
                    "segments finished: {segments}, kept in {path_shown}"
                ));
                report.output = Some(path);
            }
            Err(error)
        }
    }
}

/// Runs the session until it ends, its time is over, or the user interrupts it.
async fn run_session(
    args: &ValidArgs,
    output: Option<&mut Output>,
    progress: &Progress,
    report: &mut Report,
) -> anyhow::Result<()> {
    let session = async {
        let mut conversation = Conversation::new(args, output, progress, report);
        conversation.run().await
    };
    tokio::select! {
        result = within(args.timeout, session) => result,
        // Dropping the connection is enough: the server notices it.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    }
}

/// Does the work unless it takes longer than the user wants to wait.
async fn within(
    limit: Option<Duration>,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let Some(limit) = limit else {
        return work.await;
    };
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => anyhow::bail!("not finished within {} s (--timeout)", limit.as_secs_f64()),
    }
}

/// Writes a file atomically: to a temporary file in the same folder, which is then moved to its place.
fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<()> {
        let mut file = output::beside(path)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
