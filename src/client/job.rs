//! What `--job` does: it has a whole video made by `/v1/videos`, follows the job over restarts of the server, and fetches the
//! video.
//!
//! [`server`] sends the requests, [`retries`] says how long one that fails is repeated, and [`download`] fetches the video.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fastvideo_proto::api::videos::{Video, VideoPhase, VideoRequest, VideoSegments, VideoState};
use reqwest::StatusCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::{JobOrder, ValidJob};
use super::output::Output;
use super::progress::Progress;
use super::report::{self, JobReport, millis};

mod download;
mod retries;
mod server;

use download::Download;
use retries::Retries;
use server::{Failure, Server};

/// How long the server waits for a change before it answers; less than proxies do.
const WAIT: Duration = Duration::from_secs(30);

/// Runs the subcommand with `--job`, and returns its exit code.
pub(super) fn run(args: &ValidJob, progress: &Progress) -> ExitCode {
    let mut report = JobReport::default();
    let result = make(args, progress, &mut report);
    report.error = super::show_end(&result, progress);
    if let (Some(id), None) = (&report.resume, &report.output) {
        progress.say(&format!(
            "the server has the job; follow it and fetch its video with --job --resume {id} -o FILE"
        ));
    }
    if args.json {
        report::print(&report);
    }
    super::exit_code(&result)
}

/// Has the video made, and moves it to its place.
fn make(args: &ValidJob, progress: &Progress, report: &mut JobReport) -> anyhow::Result<()> {
    let mut output = args.output.as_deref().map(Output::create).transpose()?;
    let client = Client {
        args,
        server: Server::new(args)?,
        key: format!("{:032x}", rand::random::<u128>()),
        retries: Retries::new(args.retries_to_create, progress),
        output: output.as_mut(),
        stage: String::new(),
        started: Instant::now(),
        progress,
        report,
    };
    let runtime = super::runtime()?;
    let result = runtime.block_on(client.run());
    // A look-up of a name may take longer than the user wants to wait.
    runtime.shutdown_background();
    result?;
    if let Some(output) = output {
        let path = output.keep()?;
        progress.say(&format!("wrote {}", path.display()));
        report.bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
        report.output = Some(path);
    }
    Ok(())
}

/// The client's side of a job.
struct Client<'a> {
    args: &'a ValidJob,
    server: Server,
    /// It makes one job of all attempts to create it.
    key: String,
    retries: Retries<'a>,
    output: Option<&'a mut Output>,
    /// What was last shown to happen to the job.
    stage: String,
    started: Instant,
    progress: &'a Progress,
    report: &'a mut JobReport,
}

impl Client<'_> {
    /// Has the video made and fetched, unless the user's time is over or the user interrupts it.
    async fn run(mut self) -> anyhow::Result<()> {
        let mut interrupts = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
        let limit = self.args.timeout;
        let result = tokio::select! {
            result = super::within(limit, self.make()) => result,
            _ = interrupts.recv() => self.interrupted(&mut interrupts).await,
        };
        if result.as_ref().is_err_and(says_gone) {
            self.report.resume = None;
        }
        self.report.reconnects = self.retries.made;
        result
    }

    /// Cancels the job unless the user leaves at once.
    async fn interrupted(&mut self, interrupts: &mut Signal) -> anyhow::Result<()> {
        self.progress
            .say("interrupted: cancelling the job; interrupt again to leave it to the server");
        tokio::select! {
            result = self.cancel() => result?,
            _ = interrupts.recv() => {}
        }
        bail!("interrupted")
    }

    async fn make(&mut self) -> anyhow::Result<()> {
        let mut video = self.open().await?;
        self.progress.say(&format!(
            "job {}: {} s of video, {}, {} frames per second, seed {}",
            video.id, video.seconds, video.size, video.fps, video.seed
        ));
        if !self.args.waits {
            return Ok(());
        }
        while !has_ended(&video) {
            self.show(&video);
            video = self.retrieve(&video.id, WAIT).await?;
        }
        self.report.e2e_ms = Some(millis(self.started.elapsed()));
        if let Some(failure) = &video.error {
            bail!("the job failed: {} ({})", failure.message, failure.code);
        }
        self.progress.say(&format!(
            "completed after {:.2} s, of which workers took {:.2} s",
            self.started.elapsed().as_secs_f64(),
            video.inference_time_s
        ));
        let Some(output) = self.output.as_deref_mut() else {
            return Ok(());
        };
        let download = Download::begin(&video, output)?;
        let fetched = download.run(&self.server, &mut self.retries, self.progress);
        Ok(fetched.await?)
    }

    /// Creates the job, or finds the one that is to be followed.
    async fn open(&mut self) -> anyhow::Result<Video> {
        let args = self.args;
        match &args.order {
            JobOrder::Create(request) => self.create(request).await,
            JobOrder::Follow(id) => self.retrieve(&id.to_string(), Duration::ZERO).await,
        }
    }

    async fn create(&mut self, request: &VideoRequest) -> anyhow::Result<Video> {
        loop {
            match self.server.create(&self.key, request).await {
                Ok(video) => return Ok(self.heard(video)),
                Err(failure) => self.retries.pause(failure).await?,
            }
        }
    }

    /// Returns the job when its status or its progress changes, or after that time.
    async fn retrieve(&mut self, id: &str, wait: Duration) -> anyhow::Result<Video> {
        loop {
            match self.server.retrieve(id, wait).await {
                Ok(video) => return Ok(self.heard(video)),
                Err(failure) => self.retries.pause(failure).await?,
            }
        }
    }

    /// Cancels the job, and waits until it has ended.
    async fn cancel(&mut self) -> anyhow::Result<()> {
        let id = match &self.report.job {
            Some(video) => video.id.clone(),
            // The server may have taken the request before the interruption: then the same key finds the job.
            None => self.open().await?.id,
        };
        loop {
            let asked = match self.server.cancel(&id).await {
                Ok(video) => self.heard(video),
                Err(failure) => {
                    self.retries.pause(failure).await?;
                    continue;
                }
            };
            // A server that is killed before the job has ended goes on with it, and has to be asked again.
            let video = match has_ended(&asked) {
                true => asked,
                false => self.retrieve(&id, WAIT).await?,
            };
            if has_ended(&video) {
                self.progress.say(match video.status {
                    VideoState::Completed => "the job was completed before it could be cancelled",
                    _ => "the job is cancelled",
                });
                return Ok(());
            }
        }
    }

    /// Takes note of what the server says of the job.
    fn heard(&mut self, video: Video) -> Video {
        self.retries.succeeded();
        self.retries.limit = self.args.retries;
        let is_of_use = video.status != VideoState::Failed;
        self.report.resume = is_of_use.then(|| video.id.clone());
        self.report.job = Some(video.clone());
        video
    }

    fn show(&mut self, video: &Video) {
        let stage = stage(video);
        if self.stage != stage {
            self.progress.job(&stage, video.progress);
            self.stage = stage;
        }
        self.progress.percent(video.progress);
    }
}

fn has_ended(video: &Video) -> bool {
    matches!(video.status, VideoState::Completed | VideoState::Failed)
}

/// Says what happens to a job now.
fn stage(video: &Video) -> String {
    match (video.status, video.queue_position) {
        (VideoState::Queued, None) => return "waiting".to_owned(),
        (VideoState::Queued, Some(0)) => return "waiting: next".to_owned(),
        (VideoState::Queued, Some(n)) => return format!("waiting: {n} before this one"),
        _ => {}
    }
    let VideoSegments { done, total } = video.segments;
    let segment = total.min(done + 1);
    match video.phase {
        VideoPhase::Waiting => format!("segment {segment} of {total} waits"),
        VideoPhase::Generating => format!("segment {segment} of {total}"),
        VideoPhase::Storing | VideoPhase::Done => format!("segment {segment} of {total} is stored"),
    }
}

/// Returns whether an error is that the server has no such job, or none any more.
fn says_gone(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(Failure::Refused(refusal)) => refusal.status == StatusCode::NOT_FOUND,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn video(
        status: VideoState,
        phase: VideoPhase,
        queue_position: Option<u64>,
        done: u32,
    ) -> Video {
        let video = json!({
            "id": "video_0123456789ab7fffbfffffffffffffff", "object": "video", "model": "synthetic", "status": status,
            "progress": 0, "phase": phase, "queue_position": queue_position, "segments": {"done": done, "total": 3},
            "created_at": 1, "prompt": "a red fox", "size": "128x96", "seconds": "1.5", "fps": 24, "num_frames": 36,
            "seed": 7, "num_inference_steps": 4, "guidance_scale": 1.0, "media_type": "video/mp4",
            "inference_time_s": 0.0, "metadata": {},
        });
        serde_json::from_value(video).unwrap()
    }

    #[test]
    fn what_happens_to_a_job_is_told_in_words() {
        use VideoPhase::*;
        use VideoState::*;
        let check = |status, phase, position, done, expected: &str| {
            assert_eq!(stage(&video(status, phase, position, done)), expected);
        };
        check(Queued, Waiting, None, 0, "waiting");
        check(Queued, Waiting, Some(0), 0, "waiting: next");
        check(Queued, Waiting, Some(2), 0, "waiting: 2 before this one");
        check(InProgress, Generating, None, 0, "segment 1 of 3");
        check(InProgress, Waiting, None, 2, "segment 3 of 3 waits");
        check(InProgress, Storing, None, 1, "segment 2 of 3 is stored");
        check(InProgress, Storing, None, 3, "segment 3 of 3 is stored");
    }
}
