//! The front door.

use std::time::Duration;

/// Where and how clients are let in.
#[derive(Clone, Debug)]
pub struct Config {
    pub host: String,
    /// 0 = any free one.
    pub port: u16,
    /// Largest WebSocket message that is accepted.
    pub max_message_bytes: usize,
    /// A peer that answers nothing for two of these is gone.
    pub ping_interval: Duration,
}
