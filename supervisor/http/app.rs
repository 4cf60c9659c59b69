//! What all requests share.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::session::{Context, Registry, RelayLatency};

/// Where and how clients are let in.
#[derive(Clone, Debug)]
pub struct Config {
    pub host: String,
    /// The TCP port; 0 takes any free one.
    pub port: u16,
    /// The `service` that the health probes name.
    pub service_name: String,
    /// The size of the largest WebSocket message and of the largest request body that are accepted.
    pub max_message_bytes: usize,
    /// A peer that answers nothing for two of these is gone.
    pub ping_interval: Duration,
}

/// What all requests share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App {
    pub(super) service_name: Arc<str>,
    pub(super) max_message_bytes: usize,
    pub(super) ping_interval: Duration,
    pub(super) context: Context,
    pub(super) registry: Registry,
    pub(super) relay_latency: RelayLatency,
    /// Holds one token for each WebSocket connection.
    pub(crate) connections: TaskTracker,
    /// Is notified when an operator asks the server to drain.
    pub(crate) drain_asked: Arc<Notify>,
}

/// The extractor of what all requests share.
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
