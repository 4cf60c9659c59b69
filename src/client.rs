//! The `client` subcommand: opens one session on a running server, asks for segments and keeps their video.
//!
//! [`args`] reads and checks what was asked for, [`connection`] speaks WebSocket, [`conversation`] knows what follows
//! what in a session, [`output`] writes the video, [`progress`] and [`report`] tell people and programs about it.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

mod args;
mod connection;
mod conversation;
mod output;
mod progress;
mod report;

pub(crate) use args::Args;

use args::Order;
use conversation::Conversation;
use output::Output;
use progress::Progress;
use report::Report;

/// Runs one session from beginning to end.
pub(crate) fn run(args: Args) -> ExitCode {
    let progress = Progress::on_stderr();
    let order = match args.check() {
        Ok(order) => order,
        Err(error) => {
            progress.say(&format!("error: {error:#}"));
            return ExitCode::from(crate::USAGE);
        }
    };
    let mut report = Report::default();
    let result = generate(&order, &progress, &mut report);
    progress.end();
    if let Err(error) = &result {
        report.error = Some(format!("{error:#}"));
        progress.say(&format!("error: {error:#}"));
    }
    if let (Some(id), Some(resume)) = (&report.session_id, &report.resume) {
        progress.say(&format!(
            "session {id} is kept by the server for a while; go on with --resume {resume}"
        ));
    }
    if order.json {
        // Err: nobody reads.
        let _ = writeln!(std::io::stdout(), "{}", report.to_json());
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn generate(order: &Order, progress: &Progress, report: &mut Report) -> anyhow::Result<()> {
    let mut output = order.output.as_deref().map(Output::create).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let talked = runtime.block_on(talk(order, output.as_mut(), progress, report));
    let Some(output) = output else {
        return talked;
    };
    match talked {
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

async fn talk(
    order: &Order,
    output: Option<&mut Output>,
    progress: &Progress,
    report: &mut Report,
) -> anyhow::Result<()> {
    let session = async {
        let mut conversation = Conversation::new(order, output, progress, report);
        conversation.run().await
    };
    let limited = async {
        match order.timeout {
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
        // Closing the socket is all that the server needs to know.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    }
}

/// Writes a whole file next to its place and then moves it there.
fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<()> {
        let mut file = output::beside(path)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
