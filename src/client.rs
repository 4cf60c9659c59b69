//! The `client` subcommand: opens a session on a running server, requests segments and saves their video.
//!
//! [`args`] checks the arguments, [`connection`] is the WebSocket, [`conversation`] the session,
//! [`output`] writes the video, [`progress`] informs people and [`report`] programs.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use fastvideo_supervisor_core::causes::with_causes;

pub(crate) mod args;
pub(crate) mod connection;
mod conversation;
mod output;
mod progress;
mod report;

pub(crate) use args::Args;

use args::ValidArgs;
use conversation::Conversation;
use output::Output;
use progress::Progress;
use report::Report;

/// Runs the subcommand and returns its exit code.
pub(crate) fn run(args: Args) -> ExitCode {
    let progress = Progress::on_stderr();
    let args = match args.check() {
        Ok(args) => args,
        Err(error) => {
            progress.say(&format!("error: {}", with_causes(error.as_ref())));
            return ExitCode::from(crate::USAGE);
        }
    };
    let mut report = Report::default();
    let result = generate(&args, &progress, &mut report);
    progress.end();
    if let Err(error) = &result {
        let error = with_causes(error.as_ref());
        progress.say(&format!("error: {error}"));
        report.error = Some(error);
    }
    if let (Some(id), Some(resume)) = (&report.session_id, &report.resume) {
        progress.say(&format!(
            "the server keeps session {id} for a while; continue it with --resume {resume}"
        ));
    }
    if args.json {
        // An error means that nobody reads stdout.
        let _ = writeln!(std::io::stdout(), "{}", report.to_json());
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs the session and moves the video, or its complete segments, to its place.
fn generate(args: &ValidArgs, progress: &Progress, report: &mut Report) -> anyhow::Result<()> {
    let mut output = args.output.as_deref().map(Output::create).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let result = runtime.block_on(run_session(args, output.as_mut(), progress, report));
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
    let limited = async {
        match args.timeout {
            None => session.await,
            Some(limit) => match tokio::time::timeout(limit, session).await {
                Ok(result) => result,
                Err(_) => {
                    anyhow::bail!("not finished within {} s (--timeout)", limit.as_secs_f64())
                }
            },
        }
    };
    tokio::select! {
        result = limited => result,
        // Dropping the connection is enough: the server notices it.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
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
