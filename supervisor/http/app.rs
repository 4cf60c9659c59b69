//! The state that all requests share.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{BodyLimits, TimeLimits};
use super::connections::{self, Connections};
use super::hosts::{HostNames, Hosts};
use super::origins::Origins;
use crate::byte_budget::{self, ByteBudget};
use crate::session::{Context, Registry, RelayLatency};

/// The largest number of connections that are accepted where the configuration does not say.
const DEFAULT_CONNECTIONS: usize = 4096;

/// Where the server listens, whom it answers, and its limits on connections.
#[derive(Clone, Debug)]
pub struct Config {
    pub host: String,
    /// The TCP port; 0 takes any free one.
    pub port: u16,
    /// Names by which clients may address the server, besides those of a loopback address. When absent, these and no
    /// other ones on a loopback address, and any name elsewhere.
    pub allowed_hosts: Option<HostNames>,
    /// Sites whose pages may send orders and, where it is present, open sessions.
    pub allowed_origins: Option<Origins>,
    /// The name of the service in the answers of the health probes.
    pub service_name: String,
    /// The largest WebSocket message and the largest request body that are accepted, in bytes.
    pub max_message_bytes: usize,
    /// The interval between pings. A peer that answers nothing for two intervals is considered gone.
    pub ping_interval: Duration,
    pub limits: Limits,
}

/// Limits on connections and on what is received on them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of connections. It is never more than the limit on open files allows.
    pub connections: Option<usize>,
    /// Number of connections from one address. When absent, half of all.
    pub connections_per_client: Option<usize>,
    /// Number of WebSockets that have not sent their opening message. When absent, a quarter of all connections.
    pub unopened: Option<usize>,
    /// The same from one address. When absent, half of them.
    pub unopened_per_client: Option<usize>,
    /// Bytes of bodies and messages that are being received.
    pub receiving_bytes: u64,
    pub receiving_bytes_per_client: u64,
    /// From the beginning of a connection to its first byte, and from the first byte of a request to the end of its
    /// head.
    pub head_timeout: Duration,
    /// From the end of an answer to the first byte of the next request.
    pub idle_timeout: Duration,
    /// From the beginning of a body to its end.
    pub body_timeout: Duration,
    /// In which at least a byte of a body has to come.
    pub body_idle_timeout: Duration,
    /// From the beginning of an answer to its end, for each 4 MiB of it.
    pub answer_timeout: Duration,
    /// In which the client has to take at least a byte of an answer.
    pub answer_idle_timeout: Duration,
    /// From the first byte of a WebSocket message to its last.
    pub message_timeout: Duration,
}

/// The state that all requests share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App {
    pub(super) service_name: Arc<str>,
    pub(super) max_message_bytes: usize,
    pub(super) ping_interval: Duration,
    pub(super) message_timeout: Duration,
    pub(super) body_limits: BodyLimits,
    pub(super) time_limits: TimeLimits,
    pub(super) hosts: Hosts,
    pub(super) origins: Origins,
    /// Whether pages of sites that are not in `origins` may open sessions.
    pub(super) any_origin_may_stream: bool,
    pub(super) context: Context,
    pub(super) registry: Registry,
    pub(super) relay_latency: RelayLatency,
    /// All open connections.
    pub(super) open: Connections,
    /// The memory of what clients are sending.
    pub(super) receiving: ByteBudget,
    /// Tracks the WebSocket connections.
    pub(crate) connections: TaskTracker,
    /// Tracks the HTTP connections.
    pub(crate) requests: TaskTracker,
    /// Cancelled when HTTP connections have to end with the request that they carry.
    pub(crate) stopping: CancellationToken,
    /// Notified when an operator asks the server to drain.
    pub(crate) drain_asked: Arc<Notify>,
}

/// The extractor of the state that all requests share.
pub(super) type AppState = State<App>;

impl App {
    /// Creates the state of a server that listens on `address` and has open files for `most_connections`.
    pub fn new(config: Config, address: IpAddr, most_connections: usize, context: Context) -> Self {
        let limits = config.limits;
        let connections = limits.connections.unwrap_or(DEFAULT_CONNECTIONS);
        if limits.connections.is_some() && connections > most_connections {
            tracing::warn!(
                given = connections,
                used = most_connections,
                "`server.limits.max_connections` is more than the limit on open files allows"
            );
        }
        let connections = connections.min(most_connections);
        let unopened = limits.unopened.unwrap_or((connections / 4).max(1));
        let half = |of: usize| (of / 2).max(1);
        Self {
            service_name: config.service_name.into(),
            max_message_bytes: config.max_message_bytes,
            ping_interval: config.ping_interval,
            message_timeout: limits.message_timeout,
            body_limits: BodyLimits {
                total: limits.body_timeout,
                idle: limits.body_idle_timeout,
            },
            time_limits: TimeLimits {
                head: limits.head_timeout,
                idle: limits.idle_timeout,
                answer_stall: limits.answer_idle_timeout,
                answer: limits.answer_timeout,
            },
            hosts: Hosts::new(config.allowed_hosts, &config.host, address),
            any_origin_may_stream: config.allowed_origins.is_none(),
            origins: config.allowed_origins.unwrap_or_default(),
            context,
            registry: Registry::default(),
            relay_latency: RelayLatency::default(),
            open: Connections::new(connections::Limits {
                connections,
                connections_per_address: (limits.connections_per_client)
                    .unwrap_or(half(connections)),
                unopened,
                unopened_per_address: limits.unopened_per_client.unwrap_or(half(unopened)),
            }),
            receiving: ByteBudget::new(byte_budget::Limits {
                total: limits.receiving_bytes,
                per_address: limits.receiving_bytes_per_client,
            }),
            connections: TaskTracker::new(),
            requests: TaskTracker::new(),
            stopping: CancellationToken::new(),
            drain_asked: Arc::default(),
        }
    }
}
