//! The summary of a session, or of a job, in JSON, for programs.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use fastvideo_proto::api::videos::Video;
use serde::Serialize;

/// The summary of a session. Times are in milliseconds. Values that are not known are left out.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<PathBuf>,
    /// The size of the finished file.
    pub(super) bytes: u64,
    /// The time from the start of the client to the first worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) assigned_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session_id: Option<String>,
    /// The argument for `--resume`; absent when the session cannot be resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resume: Option<String>,
    /// The number of attempts to reconnect.
    pub(super) reconnects: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) format: Option<Format>,
    /// The finished segments.
    pub(super) segments: Vec<SegmentReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// The format of the video.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Format {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) fps: u32,
    /// The number of frames of a segment.
    pub(super) num_frames: u32,
}

/// A finished segment.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SegmentReport {
    pub(super) segment_idx: u32,
    pub(super) prompt: String,
    /// The number of the attempt that succeeded; above 1 when a worker was lost.
    pub(super) attempt: u32,
    /// The worker that generated the segment.
    pub(super) worker_id: String,
    pub(super) total_steps: u32,
    /// The time from the request to the start of the attempt that succeeded. Requests are sent ahead, so this and the
    /// following times include the wait for the segment before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) start_ms: Option<f64>,
    /// The time from the request to the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_step_ms: Option<f64>,
    /// The time from the request to the first fragment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_fragment_ms: Option<f64>,
    /// The time from the request to the end of the segment.
    pub(super) e2e_ms: f64,
    /// The generation time that the server measured.
    pub(super) server_generation_ms: f64,
    /// The time from the request to the end that the server measured.
    pub(super) server_e2e_ms: f64,
    pub(super) mime: String,
    pub(super) fragments: u32,
    /// The size in bytes, with the init segment.
    pub(super) bytes: u64,
    /// The duration of the video.
    pub(super) duration_ms: f64,
}

/// The summary of a job. Values that are not known are left out.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct JobReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<PathBuf>,
    /// The size of the finished file.
    pub(super) bytes: u64,
    /// The job as the server has last told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) job: Option<Video>,
    /// The argument for `--resume`; absent when there is nothing to wait for or to fetch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resume: Option<String>,
    /// The number of requests that were repeated.
    pub(super) reconnects: u32,
    /// The time in milliseconds from the start of the client to the end of the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) e2e_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// Prints a summary as one line of JSON on stdout.
pub(super) fn print(report: &impl Serialize) {
    let json = serde_json::to_string(report);
    let json = json.expect("numbers and strings can always be written as JSON");
    // An error means that nobody reads stdout.
    let _ = writeln!(std::io::stdout(), "{json}");
}

/// Converts a time into milliseconds, rounded to microseconds.
pub(super) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
