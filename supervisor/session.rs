//! A client's session: commands in, events out.
//!
//! A session does not know the wire protocol: it takes [`SessionCommand`]s, typed and parsed, and emits one
//! [`SessionEvent`] for each thing that happens. A dialect translates both for clients (see `supervisor/dialect.rs`).
//!
//! - How it begins and ends: `admission` (limits, `not_admitted` has what it refuses for), `handshake` (opening, claim of the lease), `ending` (causes and
//!   final states), `registry` (the open sessions), `state` (the states that others see).
//! - How it runs: `actor` is the loop, `live` what an open session holds, `client` obeys commands, `binding` follows
//!   its worker, `generation` its segment, `persistence` stores it,
//!   `redelivery` sends again what the client has missed, `snapshots` exports its state, `moved` is what a session needs
//!   whose client is at a router.
//! - What comes next: `director` is the seam to `request_director`, on top of `playlist`, and `rollout_director`, on top of
//!   `rollout`; `prompt_draft` and `prompt_tasks` prepare prompts for both; `request` checks what clients send, which comes
//!   through `inbox`; `playback` estimates when the viewer runs out of video.
//! - Who is told: `event` has the events, `emitter` delivers them, `outbox` is the client's queue with its
//!   backpressure, `broadcast` has the media for spectators, whom `audience` counts for the client, `log` the session log; `metrics` counts events, `gauges` open sessions, `tracer` makes spans of them,
//!   `latency` measures the latency that the supervisor adds to fragments.

use std::time::Duration;

use fastvideo_proto::job::VideoFormat;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::broadcast::SpectatorLimits;
use crate::current::Current;
use crate::pool::Pool;
use crate::prompt::Prompts;
use crate::store::SessionStore;
use crate::traces::Traces;

pub(crate) use actor::run;
pub use admission::may_open;
pub use broadcast::Broadcasts;
pub use command::{Inbound, SessionCommand};
pub use event::SessionEvent;
pub use latency::{LatencyQuantiles, RelayLatency};
pub use log::Logs;
pub use metrics::{Rejection, SessionMetrics};
pub(crate) use moved::{MovedSession, Origin};
pub use not_admitted::{Full, NotAdmitted};
pub use outbox::Outbox;
pub(crate) use outbox::{LinkItem, Receipt, TurnEnd};
pub use playback::Playback;
pub use registry::{Entry, Limits, Registry, Ticket};
pub use state::SessionState;

mod actor;
mod admission;
mod audience;
mod binding;
pub mod broadcast;
mod client;
pub mod command;
pub mod config;
mod director;
mod emitter;
pub mod ending;
pub mod event;
mod event_readers;
pub(crate) mod gauges;
mod generation;
mod handshake;
mod inbox;
mod latency;
mod live;
pub mod log;
mod metrics;
mod moved;
mod not_admitted;
mod outbox;
mod persistence;
mod playback;
mod playlist;
mod prompt_draft;
mod prompt_tasks;
mod redelivery;
mod registry;
mod request;
mod request_director;
pub mod rollout;
mod rollout_client;
mod rollout_director;
mod snapshots;
mod state;
mod tracer;

/// Limits and defaults of sessions.
#[derive(Clone, Debug)]
pub struct Config {
    /// The operator's name for the server.
    pub server_name: Option<String>,
    pub format: VideoFormat,
    /// How long a fragment is; the last one of a segment may be shorter, and the first one is.
    pub fragment: Duration,
    pub num_inference_steps: u32,
    pub seed: u64,
    pub guidance_scale: f64,
    pub negative_prompt: Option<String>,
    /// Whether the engine makes previews.
    pub previews: bool,
    /// Number of segments after which a session is complete.
    pub generation_segment_cap: u32,
    /// How often a session may be continued for as many segments again.
    pub cap_extensions: u32,
    /// Time without a message from the client and without a running segment after which a session ends.
    pub session_timeout: Duration,
    /// The same time for a session that is paused with requests waiting.
    pub paused_timeout: Duration,
    /// The same time while other sessions wait for a worker.
    pub idle_while_others_wait: Duration,
    /// How long the worker of a session whose connection was lost is kept for it; zero keeps it not at all.
    pub hold: Duration,
    /// How far the viewer may be behind what is finished when a segment begins that nobody has asked for; zero is no
    /// limit.
    pub max_lead: Duration,
    /// The largest message in either direction, in bytes.
    pub max_message_bytes: usize,
    /// Whether a session's client is given a token for spectators.
    pub watch: bool,
    /// Number of workers that may die with one segment before it is given up.
    pub max_attempts: u32,
    /// The client's window (flow control): when this many bytes are unsent, nothing more is generated for the client.
    pub max_unsent_bytes: u64,
    pub limits: ClientLimits,
}

/// Limits on clients. They hold for open sessions too when a reload changes them.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    pub max_inference_steps: u32,
    pub spectators: SpectatorLimits,
    /// How long a client may take to send its opening message.
    pub opening_timeout: Duration,
    /// Number of requests that may wait in a session at once.
    pub max_waiting_requests: usize,
    /// Number of characters that a prompt may have.
    pub max_prompt_chars: usize,
    /// Number of pixels that an initial image may have.
    pub max_image_pixels: u64,
    /// How long a client may leave its window full.
    pub slow_client_timeout: Duration,
    /// Number of sessions that may be open at once, waiting ones included. When absent, as many as the workers can
    /// serve plus 64.
    pub max_sessions: Option<usize>,
    /// Number of sessions that may be open at once from one address (IPv6: one /64 network).
    pub max_sessions_per_client: usize,
}

impl Config {
    /// Returns how many segments a session may have that was continued so often.
    pub(crate) fn segment_cap(&self, extensions: u32) -> u32 {
        let times = extensions.saturating_add(1);
        self.generation_segment_cap.saturating_mul(times)
    }
}

/// The configuration and the handles that all sessions share.
#[derive(Clone, Debug)]
pub struct Context {
    /// A session keeps the one that it was opened with, except for its limits.
    pub config: Current<Config>,
    pub pool: Pool,
    pub prompts: Prompts,
    pub store: SessionStore,
    pub drain: watch::Receiver<Drain>,
    pub logs: Logs,
    pub metrics: SessionMetrics,
    pub traces: Traces,
    pub broadcasts: Broadcasts,
    /// Tracks writes to the store, which may outlive their session.
    pub writes: TaskTracker,
}

/// Whether the server is going away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    No,
    /// Running segments may finish until this deadline.
    Until(Instant),
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn config() -> Config {
        Config {
            server_name: None,
            format: VideoFormat {
                width: 64,
                height: 64,
                num_frames: 8,
                fps: 24,
            },
            fragment: Duration::from_millis(250),
            num_inference_steps: 8,
            seed: 10,
            guidance_scale: 1.0,
            previews: false,
            negative_prompt: None,
            generation_segment_cap: 6,
            cap_extensions: 0,
            watch: true,
            session_timeout: Duration::from_secs(300),
            paused_timeout: Duration::from_secs(900),
            idle_while_others_wait: Duration::from_secs(60),
            hold: Duration::from_secs(10),
            max_lead: Duration::from_secs(60),
            max_message_bytes: 48 << 20,
            max_attempts: 5,
            max_unsent_bytes: 16 << 20,
            limits: ClientLimits {
                max_inference_steps: 200,
                spectators: SpectatorLimits {
                    per_session: 10,
                    total: 10,
                },
                opening_timeout: Duration::from_secs(30),
                max_waiting_requests: 8,
                max_prompt_chars: 4000,
                max_image_pixels: 64 << 20,
                slow_client_timeout: Duration::from_secs(30),
                max_sessions: None,
                max_sessions_per_client: usize::MAX,
            },
        }
    }
}
