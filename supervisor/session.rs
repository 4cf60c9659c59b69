//! Client sessions.

use std::time::Duration;

use fastvideo_proto::link::VideoFormat;

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
}
