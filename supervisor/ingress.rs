//! What comes in: accepts connections, and limits what a stranger may hold in number, memory and time.
//!
//! `listener` accepts connections, `tls` shakes hands where they are encrypted, `connections` counts them, `connection` limits
//! the time of each of their phases;
//! `websocket` begins WebSockets, `message_io` limits what is received on them by their `frame`s, and `liveness` tells
//! whether a peer is still there. `hosts` and `origins` tell pages of other sites, and `proxies` where a request comes from. `access` is the access log. `extract` reads requests, and `error`
//! answers those that are refused: every refusal has the same JSON body, but for those to OpenAI's clients (`openai`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use hosts::HostNames;
pub use origins::Origins;
pub use proxies::TrustedProxies;

use crate::byte_budget::{self, ByteBudget};
use crate::client_address::ClientAddress;
use crate::current::Current;
use crate::tls::server::ServerTls;
use connection::{BodyLimits, TimeLimits};
use connections::Connections;
use hosts::Hosts;
use message_io::MessageLimits;
use tls::Encryption;

pub(crate) mod access;
pub mod config;
pub(crate) mod connection;
pub(crate) mod connections;
pub(crate) mod error;
pub(crate) mod extract;
pub(crate) mod frame;
pub(crate) mod hosts;
pub(crate) mod listener;
pub(crate) mod liveness;
pub(crate) mod message_io;
pub(crate) mod metrics;
pub(crate) mod openai;
pub(crate) mod origins;
pub(crate) mod proxies;
pub(crate) mod timestamp;
pub(crate) mod tls;
pub(crate) mod websocket;

/// The largest number of connections that are accepted where the configuration does not say.
const DEFAULT_CONNECTIONS: usize = 4096;

/// Whom the server answers, and its limits on connections.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names by which clients may address the server, besides those of a loopback address. When absent, these and no
    /// other ones on a loopback address, and any name elsewhere.
    pub allowed_hosts: Option<HostNames>,
    /// Sites whose pages may send orders and, where it is present, open sessions.
    pub allowed_origins: Option<Origins>,
    /// Proxies whose word is taken for where a request comes from.
    pub trusted_proxies: TrustedProxies,
    /// The largest WebSocket message and the largest request body that are accepted, in bytes.
    pub max_message_bytes: usize,
    /// The interval between pings. A peer that answers nothing for two intervals is considered gone.
    pub ping_interval: Duration,
    pub limits: Limits,
    /// The certificate of the listeners; without it they speak HTTP.
    pub tls: Option<ServerTls>,
}

impl Config {
    /// Lets no page of another site open sessions, unless it is allowed, where callers are asked for a key: the page may
    /// use one that its viewer has.
    pub(crate) fn asking_for_keys(mut self, asks: bool) -> Self {
        if asks {
            self.allowed_origins.get_or_insert_default();
        }
        self
    }
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

/// What all requests and WebSockets of a server need to keep within the limits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ingress {
    rules: Current<Rules>,
    pub(crate) hosts: Hosts,
    /// Number of connections for which there are open files.
    most_connections: usize,
    /// The encryption of connections, where the listeners speak HTTPS. Its `tls` knows how handshakes have ended and when
    /// the certificate expires.
    pub(crate) encryption: Option<Encryption>,
    /// All open connections.
    pub(crate) open: Connections,
    /// The memory of what clients are sending.
    pub(crate) receiving: ByteBudget,
    /// Tracks the WebSocket connections.
    pub(crate) connections: TaskTracker,
    /// Tracks the HTTP connections.
    pub(crate) requests: TaskTracker,
    /// Cancelled when HTTP connections have to end with the request that they carry.
    pub(crate) stopping: CancellationToken,
}

/// What holds for connections and for requests on them, until a reload changes it.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) max_message_bytes: usize,
    pub(crate) ping_interval: Duration,
    pub(crate) message_timeout: Duration,
    pub(crate) body_limits: BodyLimits,
    pub(crate) time_limits: TimeLimits,
    pub(crate) origins: Origins,
    /// Whether pages of sites that are not in `origins` may open sessions.
    pub(crate) any_origin_may_stream: bool,
    pub(crate) proxies: TrustedProxies,
}

impl Rules {
    fn new(config: Config) -> Self {
        let limits = config.limits;
        Self {
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
            any_origin_may_stream: config.allowed_origins.is_none(),
            origins: config.allowed_origins.unwrap_or_default(),
            proxies: config.trusted_proxies,
        }
    }
}

impl Limits {
    /// Returns the limits on connections of a server that has open files for `most_connections`.
    fn of_connections(&self, most_connections: usize) -> connections::Limits {
        let connections = self.connections.unwrap_or(DEFAULT_CONNECTIONS);
        if self.connections.is_some() && connections > most_connections {
            tracing::warn!(
                given = connections,
                used = most_connections,
                "`server.limits.max_connections` is more than the limit on open files allows"
            );
        }
        let connections = connections.min(most_connections);
        let unopened = self.unopened.unwrap_or((connections / 4).max(1));
        let half = |of: usize| (of / 2).max(1);
        connections::Limits {
            connections,
            connections_per_address: self.connections_per_client.unwrap_or(half(connections)),
            unopened,
            unopened_per_address: self.unopened_per_client.unwrap_or(half(unopened)),
        }
    }

    fn of_memory(&self) -> byte_budget::Limits {
        byte_budget::Limits {
            total: self.receiving_bytes,
            per_address: self.receiving_bytes_per_client,
        }
    }
}

impl Ingress {
    /// Creates the ingress of a server that was told to listen on `host`, does so on `address`, and has open files for
    /// `most_connections`.
    pub(crate) fn new(
        config: Config,
        host: &str,
        address: IpAddr,
        most_connections: usize,
    ) -> Self {
        let limits = config.limits;
        let stopping = CancellationToken::new();
        let tls = config.tls.clone();
        let encryption = tls.map(|tls| Encryption::new(tls, limits.head_timeout, stopping.clone()));
        Self {
            hosts: Hosts::new(config.allowed_hosts.clone(), host, address),
            rules: Current::new(Rules::new(config)),
            most_connections,
            encryption,
            open: Connections::new(limits.of_connections(most_connections)),
            receiving: ByteBudget::new(limits.of_memory()),
            connections: TaskTracker::new(),
            requests: TaskTracker::new(),
            stopping,
        }
    }

    /// Takes over another configuration; `asks` tells whether callers are asked for keys now. Open connections keep their
    /// certificate, their time limits and the largest size of a message. Returns whether the certificate has changed.
    pub(crate) fn reconfigure(&self, config: Config, asks: bool) -> bool {
        let config = config.asking_for_keys(asks);
        let limits = config.limits;
        self.open
            .set_limits(limits.of_connections(self.most_connections));
        self.receiving.set_limits(limits.of_memory());
        let mut is_renewed = false;
        if let Some(encryption) = &self.encryption {
            encryption.set_head_limit(limits.head_timeout);
            is_renewed = config
                .tls
                .as_ref()
                .is_some_and(|new| encryption.tls.adopt(new));
        }
        self.hosts.allow(config.allowed_hosts.clone());
        self.rules.replace(Rules::new(config));
        is_renewed
    }

    /// Returns what holds now.
    pub(crate) fn rules(&self) -> Arc<Rules> {
        self.rules.get()
    }

    /// Returns the limits on what is received from a client over a WebSocket, of messages up to `max_bytes`.
    pub(crate) fn message_limits(&self, client: ClientAddress, max_bytes: u64) -> MessageLimits {
        MessageLimits {
            max_bytes,
            timeout: self.rules().message_timeout,
            client,
            budget: self.receiving.clone(),
        }
    }
}
