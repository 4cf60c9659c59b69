//! The state that all requests share.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::session::{Context, Registry, RelayLatency};

/// Where the server listens, and its limits on connections.
#[derive(Clone, Debug)]
pub struct Config {
    pub host: String,
    /// The TCP port; 0 takes any free one.
    pub port: u16,
    /// The name of the service in the answers of the health probes.
    pub service_name: String,
    /// The largest WebSocket message and the largest request body that are accepted, in bytes.
    pub max_message_bytes: usize,
    /// The interval between pings. A peer that answers nothing for two intervals is considered gone.
    pub ping_interval: Duration,
}

/// The state that all requests share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App {
    pub(super) service_name: Arc<str>,
    pub(super) max_message_bytes: usize,
    pub(super) ping_interval: Duration,
    pub(super) context: Context,
    pub(super) registry: Registry,
    pub(super) relay_latency: RelayLatency,
    /// Tracks the WebSocket connections, each of which holds one token.
    pub(crate) connections: TaskTracker,
    /// Notified when an operator asks the server to drain.
    pub(crate) drain_asked: Arc<Notify>,
}

/// The extractor of the state that all requests share.
pub(super) type AppState = State<App>;

impl App {
    pub fn new(config: Config, context: Context) -> Self {
        Self {
            service_name: config.service_name.into(),
            max_message_bytes: config.max_message_bytes,
            ping_interval: config.ping_interval,
            context,
            registry: Registry::default(),
            relay_latency: RelayLatency::default(),
            connections: TaskTracker::new(),
            drain_asked: Arc::default(),
        }
    }
}
