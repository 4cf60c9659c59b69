//! A client's session: its state machine and its segment loop.
//!
//! `opening` reads the first message, `run` is the loop, `segment` the one segment in hand, `playlist` what comes next,
//! `draft` a prompt on its way there, `writing` what models write for it, `request` and `init_image` check what clients
//! send, `persistence` what is on its way to the store, `outbox` what waits for the client, `playback` when its viewer runs out of
//! video, `registry` counts sessions, `log` writes down what happens, `latency` measures what the supervisor adds.
//! Nothing here knows WebSockets.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::job::VideoFormat;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::pool::Pool;
use crate::prompt::Prompts;
use crate::store::SessionStore;

pub use latency::{LatencySummary, RelayLatency};
pub use log::Logs;
pub use outbox::{Outbox, Wire};
pub use registry::{Entry, Full, Limits, Registry, Ticket};
pub use run::run;
pub use state::SessionState;

pub mod config;
mod init_image;
mod latency;
pub mod log;
mod opening;
mod outbox;
mod persistence;
mod playback;
mod playlist;
mod prompt_draft;
mod prompt_tasks;
mod registry;
mod request;
mod run;
mod segment;
mod state;

/// What a session may do and what it gets by default.
#[derive(Clone, Debug)]
pub struct Config {
    pub format: VideoFormat,
    pub num_inference_steps: u32,
    pub max_inference_steps: u32,
    pub seed: u64,
    pub guidance_scale: f64,
    pub negative_prompt: Option<String>,
    /// Segments after which a session is complete.
    pub generation_segment_cap: u32,
    /// Without a message from the client and without a running segment.
    pub session_timeout: Duration,
    /// For the opening message.
    pub opening_timeout: Duration,
    /// Requests that may wait in a session.
    pub max_waiting_requests: usize,
    /// Characters of a prompt.
    pub max_prompt_chars: usize,
    /// Pixels of an initial image.
    pub max_image_pixels: u64,
    /// Workers that one segment may cost before it is refused.
    pub max_attempts: u32,
    /// Bytes that may wait for a client that does not read.
    pub max_unsent_bytes: u64,
    /// How long a client may leave `max_unsent_bytes` unread.
    pub slow_client_timeout: Duration,
    /// Sessions at once, waiting ones included; the number of GPUs that can serve plus 64 when absent.
    pub max_sessions: Option<usize>,
    /// Sessions at once from one address.
    pub max_sessions_per_client: usize,
}

/// What all sessions share.
#[derive(Clone, Debug)]
pub struct Context {
    pub config: Arc<Config>,
    pub pool: Pool,
    pub prompts: Prompts,
    pub store: SessionStore,
    pub drain: watch::Receiver<Drain>,
    pub logs: Logs,
    /// Writes to the store that go on when their session has ended.
    pub writes: TaskTracker,
}

/// Whether the server is going away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    No,
    /// Running segments may finish until then.
    Until(Instant),
}

/// What a session hears from its client's connection.
#[derive(Debug)]
pub enum Inbound {
    Text(String),
    Binary,
    /// The client is gone. Nothing follows.
    Gone,
    /// The client broke the WebSocket protocol; the connection ends with this close code. Nothing follows.
    Broken {
        code: u16,
        reason: &'static str,
    },
}

/// Close codes of RFC 6455 as the protocol uses them.
pub mod close {
    pub const NORMAL: u16 = 1000;
    pub const GOING_AWAY: u16 = 1001;
    pub const PROTOCOL: u16 = 1002;
    pub const BAD_OPENING: u16 = 1003;
    pub const INVALID_UTF8: u16 = 1007;
    pub const RULE_BROKEN: u16 = 1008;
    pub const TOO_LARGE: u16 = 1009;
    pub const INTERNAL: u16 = 1011;
    pub const TRY_AGAIN_LATER: u16 = 1013;
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn config() -> Config {
        Config {
            format: VideoFormat {
                width: 64,
                height: 64,
                num_frames: 8,
                fps: 24,
            },
            num_inference_steps: 8,
            max_inference_steps: 200,
            seed: 10,
            guidance_scale: 1.0,
            negative_prompt: None,
            generation_segment_cap: 6,
            session_timeout: Duration::from_secs(300),
            opening_timeout: Duration::from_secs(30),
            max_waiting_requests: 8,
            max_prompt_chars: 4000,
            max_image_pixels: 64 << 20,
            max_attempts: 5,
            max_unsent_bytes: 16 << 20,
            slow_client_timeout: Duration::from_secs(30),
            max_sessions: None,
            max_sessions_per_client: usize::MAX,
        }
    }
}
