//! The summary of a session, for programs.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

/// Times are in milliseconds. A value that did not come up is absent.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<PathBuf>,
    /// Of the finished file.
    pub(super) bytes: u64,
    /// From the opening message to the first worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) assigned_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session_id: Option<String>,
    /// For `--resume`, as long as the session is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resume: Option<String>,
    /// Connections that were lost on the way.
    pub(super) reconnects: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) format: Option<Format>,
    /// The finished ones.
    pub(super) segments: Vec<SegmentReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Format {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) fps: u32,
    pub(super) num_frames: u32,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SegmentReport {
    pub(super) segment_idx: u32,
    pub(super) prompt: String,
    /// Above 1 when a worker was lost on the way.
    pub(super) attempt: u32,
    /// The last worker.
    pub(super) worker_id: String,
    pub(super) total_steps: u32,
    /// From the request to the first of each; of the attempt that succeeded. A request is sent while the segment before
    /// it runs, so that this includes the wait for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) start_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_step_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_fragment_ms: Option<f64>,
    pub(super) e2e_ms: f64,
    /// As the server measured.
    pub(super) server_generation_ms: f64,
    pub(super) server_e2e_ms: f64,
    pub(super) mime: String,
    pub(super) fragments: u32,
    /// With the init segment.
    pub(super) bytes: u64,
    /// Of the video.
    pub(super) duration_ms: f64,
}

impl Report {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts are JSON")
    }
}

/// Rounded to microseconds.
pub(super) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
