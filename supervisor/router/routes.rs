//! The router over HTTP: sessions, status, and probes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{FromRef, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use axum::routing::{any, get};
use axum::{Extension, Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::router::{FleetDemand, ReplicaState, RouterHealth, RouterStatus};
use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::stream_v1::ServerMessage;
use fastvideo_proto::trace::TraceContext;
use futures_util::{SinkExt, StreamExt};
use rustls::ClientConfig;
use serde::Serialize;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use url::Url;

use super::CLOSE_REPLY;
use super::bridge::{self, Ended};
use super::carried::Carried;
use super::demand;
use super::line::Line;
use super::metrics::MoveMetrics;
use super::proxy::{self, Proxy};
use super::registry::{CountedSession, Replica, ReplicaRegistry, seconds};
use super::server_socket::{self, ConnectError, Headers, MAX_MESSAGE_BYTES, ServerSocket};
use super::session::{self, Finish};
use super::tracer::{SessionSpan, TracedClient};
use super::{openapi, servers, sessions, watch};
use crate::auth::credential::shown_key;
use crate::auth::guard::{self, Admission, Guard};
use crate::auth::{Auth, Caller, issue};
use crate::client_address::ClientAddress;
use crate::dialect::{Rendered, Wire, close_code, stream_v1};
use crate::ingress::connection::Connection;
use crate::ingress::error::ApiError;
use crate::ingress::message_io::CompleteShare;
use crate::ingress::metrics::{HttpMetrics, Scrapes, measure};
use crate::ingress::websocket::{Handshake, WebSocket};
use crate::ingress::{Ingress, hosts};
use crate::page;
use crate::session::ending::NotOpened;
use crate::tasks::catch_panic;
use crate::traces::{self, Period, Traces};

/// What probes are told.
const OK: &str = "ok";
const UNAVAILABLE: &str = "unavailable";
/// Why the router leaves its clients.
const DRAINING: &str = "draining";

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
    /// The sessions that can be moved.
    pub(super) carried: Carried,
    /// Cancelled when the router leaves its clients.
    pub(super) leaving: CancellationToken,
    pub(super) moves: MoveMetrics,
    pub(super) traces: Traces,
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
}

impl App {
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

pub(super) fn router(app: App) -> Router {
    Router::new()
        .route("/v1/stream", get(stream))
        .route("/v1/watch", get(watch::upgrade))
        .route("/v1/sessions/{id}/film", any(proxy::film))
        .route("/v1/sessions/{id}/film/{*file}", any(proxy::film))
        .route("/v1/sessions/{id}/film.mp4", any(proxy::film))
        .route("/v1/sessions/{id}/index.m3u8", any(proxy::film))
        .route("/status", get(status))
        .route("/metrics", get(scrape))
        .route("/v1/fleet/demand", get(fleet_demand))
        .route("/health", get(health))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .merge(openapi::routes())
        .merge(servers::routes(&app))
        .merge(sessions::routes(&app))
        .merge(issue::routes(&app.guard()))
        .merge(page::routes())
        .fallback(async || ApiError::not_found("there is nothing here; see /openapi.json"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(from_fn_with_state(app.guard(), guard::guard))
        .layer(from_fn_with_state(app.ingress.hosts.clone(), hosts::guard))
        .layer(from_fn_with_state(app.http_metrics.clone(), measure))
        .with_state(app)
}

/// Returns the state of all replicas.
#[utoipa::path(get, path = "/status", responses((status = 200, body = RouterStatus)))]
pub(super) async fn status(State(app): State<App>) -> Json<RouterStatus> {
    let replicas = app.registry.all();
    let replicas = replicas.iter().map(|replica| {
        let health = replica.health();
        let endpoint = &replica.endpoint;
        ReplicaState {
            url: endpoint.url.as_str().trim_end_matches('/').to_owned(),
            name: replica.name(),
            primary: endpoint.primary,
            status: health.status().to_string(),
            last_ok_at: health.last_ok().map(seconds),
            last_latency_ms: health.last_latency().map(|took| took.as_secs_f64() * 1e3),
            consecutive_failures: health.consecutive_failures(),
            sessions: replica.sessions(),
            link: replica.link().to_owned(),
            report: replica.report(),
        }
    });
    Json(RouterStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ts: seconds(SystemTime::now()),
        draining: app.leaving.is_cancelled() || app.ingress.connections.is_closed(),
        waiting: app.line.len(),
        line_is_common: app.line.is_common(),
        replicas: replicas.collect(),
    })
}

/// Returns all metrics, as OpenMetrics where the request accepts that, else in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, content_type = "text/plain", body = String),
    (status = 503, body = ErrorBody, description = "4 scrapes run already")
))]
pub(super) async fn scrape(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.scrapes.answer(&headers).await
}

/// Returns what the servers have, and what their sessions need.
#[utoipa::path(get, path = "/v1/fleet/demand", responses((status = 200, body = FleetDemand)))]
pub(super) async fn fleet_demand(State(app): State<App>) -> Json<FleetDemand> {
    let replicas = app.registry.all();
    let reports: Vec<_> = replicas.iter().filter_map(|r| r.report()).collect();
    Json(demand::demand(&reports, app.line.len(), app.headroom_gpus))
}

/// Says that the process answers, and how many sessions it has.
#[utoipa::path(get, path = "/health", responses((status = 200, body = RouterHealth)))]
pub(super) async fn health(State(app): State<App>) -> Json<RouterHealth> {
    Json(health_of(&app))
}

/// Liveness probe: the process answers.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = RouterHealth)))]
pub(super) async fn healthz(State(app): State<App>) -> Json<RouterHealth> {
    Json(health_of(&app))
}

/// Readiness probe: a new session would find a server.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, body = RouterHealth, description = "a server is healthy"),
    (status = 503, body = RouterHealth, description = "no server is healthy, or the router drains")
))]
pub(super) async fn readyz(State(app): State<App>) -> (StatusCode, Json<RouterHealth>) {
    let mut health = health_of(&app);
    readiness(&app).clone_into(&mut health.status);
    let code = match health.status.as_str() {
        UNAVAILABLE => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    (code, Json(health))
}

/// Returns what the readiness probe answers now.
pub(super) fn readiness(app: &App) -> &'static str {
    match app.registry.select().is_some() && !app.ingress.connections.is_closed() {
        true => OK,
        false => UNAVAILABLE,
    }
}

fn health_of(app: &App) -> RouterHealth {
    let replicas = app.registry.all();
    RouterHealth {
        status: OK.to_owned(),
        healthy_replicas: replicas
            .iter()
            .filter(|replica| replica.is_healthy() && !replica.is_cut_off())
            .count(),
        replicas: replicas.len(),
        sessions: replicas.iter().map(|replica| replica.sessions()).sum(),
    }
}

/// Serves the route `/v1/stream`.
async fn stream(
    State(app): State<App>,
    Admission { caller, checked }: Admission,
    Extension(client): Extension<ClientAddress>,
    headers: HeaderMap,
    handshake: Handshake,
) -> Result<Response, ApiError> {
    let visitor = caller.map(|caller| Visitor {
        caller,
        client,
        authorization: shown_key(&headers),
        trace: traces::named_by(&headers),
        accepted: Instant::now(),
        auth: checked,
    });
    let upgrade = handshake.begin(&app.ingress, app.ingress.rules().max_message_bytes as u64)?;
    let (answer, connection, opened) = upgrade.split();
    let tracker = app.ingress.connections.clone();
    let span = tracing::info_span!("session", client = %connection.place.client());
    let carried = async move {
        if let Some((socket, shares)) = opened.await {
            let visitor = match visitor {
                Ok(visitor) => visitor,
                Err(refused) => {
                    let why = NotOpened::NotAdmitted(refused.into());
                    return farewell(socket, messages(stream_v1::refused(why))).await;
                }
            };
            match app.authorization {
                Some(_) => linked_session(socket, &shares, &connection, &app, &visitor).await,
                None => Box::pin(session(socket, &shares, &connection, &app, &visitor)).await,
            }
        }
    };
    tracker.spawn(catch_panic("session", carried.instrument(span)));
    Ok(answer)
}

/// A client that was let in.
pub(super) struct Visitor {
    pub(super) caller: Caller,
    pub(super) client: ClientAddress,
    /// The key that the client has shown, for a server that knows nothing of this router.
    pub(super) authorization: Option<HeaderValue>,
    /// The span that the handshake names.
    pub(super) trace: Option<TraceContext>,
    /// When the handshake was accepted.
    pub(super) accepted: Instant,
    /// The time in which the client's key was checked.
    pub(super) auth: Option<Period>,
}

impl Visitor {
    /// Begins the span of the client's session. `named` is the span that the opening message names, which wins over the
    /// handshake's.
    pub(super) fn span(&self, traces: &Traces, named: Option<TraceContext>) -> SessionSpan {
        let tenant = self.caller.own_tenant();
        let client = TracedClient {
            tenant: tenant.as_str(),
            parent: named.or(self.trace),
            link: self.trace.filter(|_| named.is_some()),
            accepted: self.accepted,
            auth: self.auth,
        };
        SessionSpan::begin(traces, &client)
    }

    /// Returns what a server without links is shown of the client.
    pub(super) fn headers(&self, span: &SessionSpan) -> Headers<'_> {
        Headers {
            authorization: self.authorization.as_ref(),
            trace: span.told().map(|trace| trace.parent),
        }
    }
}

/// Carries a client's session over all the servers that it has.
async fn linked_session(
    mut socket: WebSocket,
    shares: &CompleteShare,
    connection: &Connection,
    app: &App,
    visitor: &Visitor,
) {
    app.registry.first_probes().await;
    if !app.registry.any(app.wait_for_replica).await {
        return farewell(socket, no_healthy_replica()).await;
    }
    // It ends when everything is said.
    let mut span = SessionSpan::default();
    let carried = session::carry(&mut socket, shares, connection, app, visitor, &mut span);
    let finish = tokio::select! {
        finish = carried => finish,
        () = app.leaving.cancelled() => {
            span.ended(DRAINING);
            return farewell(socket, [close(close_code::GOING_AWAY, DRAINING)]).await;
        }
    };
    match finish {
        Finish::Gone => span.ended("gone"),
        Finish::Closed => {
            span.ended("closed");
            farewell(socket, []).await;
        }
        Finish::Say(messages) => {
            span.last_words(&messages);
            farewell(socket, messages).await;
        }
        Finish::Plain {
            replica,
            mut server,
            counted,
            opening,
        } => {
            for message in opening {
                if let Err(error) = server.send(message).await {
                    let last = broken(&replica, &error.to_string());
                    span.last_words(&last);
                    return farewell(socket, last).await;
                }
            }
            let at = (replica, counted);
            let carried = over_bridge(socket, shares, connection, *server, at, app, span);
            Box::pin(carried).await;
        }
    }
}

/// Carries a client's session over a plain bridge.
async fn over_bridge(
    mut socket: WebSocket,
    shares: &CompleteShare,
    connection: &Connection,
    server: ServerSocket,
    (replica, counted): (Arc<Replica>, CountedSession),
    app: &App,
    mut span: SessionSpan,
) {
    tracing::info!(%replica, "session begins");
    span.taken(None);
    let interval = app.ingress.rules().ping_interval;
    let carried = bridge::carry(&mut socket, shares, connection, server, interval);
    let ended = tokio::select! {
        ended = carried => ended,
        () = app.leaving.cancelled() => {
            span.ended(DRAINING);
            return farewell(socket, [close(close_code::GOING_AWAY, DRAINING)]).await;
        }
    };
    drop(counted);
    tracing::info!(%replica, ?ended, "session ended");
    match ended {
        Ended::Closed => span.ended("closed"),
        Ended::Gone => span.ended("gone"),
        Ended::Violation(violation) => {
            let last: Vec<_> = messages(stream_v1::violated(violation)).collect();
            span.last_words(&last);
            farewell(socket, last).await;
        }
        Ended::Broken(reason) => {
            let last = broken(&replica, &reason);
            span.last_words(&last);
            farewell(socket, last).await;
        }
    }
}

/// Carries a client's session to the first server that takes it.
async fn session(
    socket: WebSocket,
    shares: &CompleteShare,
    connection: &Connection,
    app: &App,
    visitor: &Visitor,
) {
    app.registry.first_probes().await;
    app.registry.any(app.wait_for_replica).await;
    let mut span = visitor.span(&app.traces, None);
    let mut refusal = None;
    for replica in app.registry.preferred() {
        let base = &replica.endpoint.url;
        let headers = visitor.headers(&span);
        let server = match app.connect(base, "/v1/stream", headers).await {
            Ok(server) => server,
            Err(error) => {
                let reason = error.to_string();
                tracing::warn!(%replica, reason, "replica not reached; the next one is tried");
                refusal = Some(reason);
                continue;
            }
        };
        let counted = replica.begin_session();
        let at = (replica, counted);
        return over_bridge(socket, shares, connection, server, at, app, span).await;
    }
    let messages = match refusal {
        Some(reason) => bridge_failed(&reason),
        None => no_healthy_replica(),
    };
    span.last_words(&messages);
    farewell(socket, messages).await;
}

/// Tells a client that nobody can serve it.
pub(super) fn no_healthy_replica() -> [Message; 2] {
    let message = "router: no healthy replica available";
    let error = ServerMessage::error(ErrorCode::GpuUnavailable, message, true);
    [
        text(&error),
        close(close_code::TRY_AGAIN_LATER, "no_healthy_replica"),
    ]
}

fn broken(replica: &Replica, reason: &str) -> [Message; 2] {
    tracing::warn!(%replica, reason, "replica lost with a session");
    bridge_failed(reason)
}

/// Tells a client that the server with its session cannot be reached.
pub(super) fn bridge_failed(reason: &str) -> [Message; 2] {
    let message = format!("router bridge failed: {reason}");
    let error = ServerMessage::error(ErrorCode::WorkerFailed, message, true);
    [text(&error), close(close_code::INTERNAL, "bridge_failed")]
}

pub(super) fn text(message: &impl Serialize) -> Message {
    let text = serde_json::to_string(message).expect("strings and numbers are JSON");
    Message::Text(text.into())
}

pub(super) fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame {
        code: code.into(),
        reason: reason.into(),
    }))
}

pub(super) fn messages(rendered: Rendered) -> impl Iterator<Item = Message> {
    rendered.into_iter().map(|wire| match wire {
        Wire::Text(text) => Message::Text(text.into()),
        Wire::Media(media) => Message::Binary(media.bytes),
        Wire::Close { code, reason } => close(code, reason),
    })
}

/// Sends a client's last messages, and waits for its answer to the close.
pub(super) async fn farewell(mut socket: WebSocket, messages: impl IntoIterator<Item = Message>) {
    let said = async {
        for message in messages {
            socket.send(message).await?;
        }
        while let Some(Ok(_)) = socket.next().await {}
        Ok::<_, tokio_tungstenite::tungstenite::Error>(())
    };
    let _ = timeout(CLOSE_REPLY, said).await;
}
