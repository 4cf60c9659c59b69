//! The state that all requests share.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRef;
use axum::http::HeaderValue;
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::carried::Carried;
use super::known_videos::KnownVideos;
use super::line::Line;
use super::metrics::MoveMetrics;
use super::proxy::Proxy;
use super::registry::ReplicaRegistry;
use super::server_socket::{self, ConnectError, Headers, MAX_MESSAGE_BYTES, ServerSocket};
use crate::auth::Auth;
use crate::auth::guard::Guard;
use crate::ingress::Ingress;
use crate::ingress::metrics::{HttpMetrics, Scrapes};
use crate::reload::Reloads;
use crate::traces::Traces;

/// The state that all requests share. Cheap to clone.
#[derive(Clone)]
pub(super) struct App {
    pub(super) ingress: Ingress,
    pub(super) auth: Auth,
    pub(super) registry: ReplicaRegistry,
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// What this router is known by at servers; `None` where there are no links.
    pub(super) authorization: Option<HeaderValue>,
    pub(super) line: Line,
    /// How long a client waits for a healthy server.
    pub(super) wait_for_replica: Duration,
    /// Number of sessions that may wait.
    pub(super) max_waiting: usize,
    /// Number of GPUs to be had beyond what the sessions need.
    pub(super) headroom_gpus: usize,
    /// How long a session that was begun waits for another server.
    pub(super) failover_timeout: Duration,
    pub(super) proxy: Proxy,
    /// The servers of videos.
    pub(super) videos: KnownVideos,
    /// The sessions that can be moved.
    pub(super) carried: Carried,
    /// Cancelled when the router leaves its clients.
    pub(super) leaving: CancellationToken,
    pub(super) moves: MoveMetrics,
    pub(super) traces: Traces,
    pub(super) reloads: Reloads,
    pub(super) http_metrics: HttpMetrics,
    pub(super) scrapes: Scrapes,
}

impl App {
    /// Opens a WebSocket with a server, below whose address the path lies. The headers are passed on.
    ///
    /// # Errors
    /// Returns why there is none.
    pub(super) async fn connect(
        &self,
        base: &Url,
        path: &str,
        headers: Headers<'_>,
    ) -> Result<ServerSocket, ConnectError> {
        let tls = self.tls.clone();
        server_socket::connect(base, path, headers, tls, MAX_MESSAGE_BYTES).await
    }

    /// Returns the guard before all routes. No router passes requests on to another one.
    pub(super) fn guard(&self) -> Guard {
        Guard {
            auth: self.auth.clone(),
            ingress: self.ingress.clone(),
            is_router_key: Arc::new(|_| false),
        }
    }
}

impl FromRef<App> for Auth {
    fn from_ref(app: &App) -> Self {
        app.auth.clone()
    }
}

impl FromRef<App> for Ingress {
    fn from_ref(app: &App) -> Self {
        app.ingress.clone()
    }
}

impl FromRef<App> for ReplicaRegistry {
    fn from_ref(app: &App) -> Self {
        app.registry.clone()
    }
}

impl FromRef<App> for Proxy {
    fn from_ref(app: &App) -> Self {
        app.proxy.clone()
    }
}

impl FromRef<App> for Reloads {
    fn from_ref(app: &App) -> Self {
        app.reloads.clone()
    }
}
