//! The front door: WebSocket sessions, health, status, and the built-in page.
//!
//! `stream` carries a session over a WebSocket, `status` answers probes, `sessions`, `workers` and `prompts` take operators'
//! orders, `page` is what a browser gets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRef, Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::session::{Context, Registry, RelayLatency};

pub mod config;
mod page;
mod prompts;
mod sessions;
mod status;
mod stream;
mod workers;

/// Where and how clients are let in.
#[derive(Clone, Debug)]
pub struct Config {
    pub host: String,
    /// 0 = any free one.
    pub port: u16,
    /// The `service` that the health probes name.
    pub service_name: String,
    /// Largest WebSocket message that is accepted.
    pub max_message_bytes: usize,
    /// A peer that answers nothing for two of these is gone.
    pub ping_interval: Duration,
}

/// What all requests share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App {
    service_name: Arc<str>,
    max_message_bytes: usize,
    ping_interval: Duration,
    context: Context,
    registry: Registry,
    relay_latency: RelayLatency,
    /// Holds one token for each WebSocket connection.
    pub(crate) connections: TaskTracker,
    /// Rings when an operator wants the server to go away.
    pub(crate) drain_asked: Arc<Notify>,
}

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

impl FromRef<App> for Context {
    fn from_ref(app: &App) -> Self {
        app.context.clone()
    }
}

/// Answers requests until it is dropped.
///
/// # Errors
/// When the listener breaks for good.
pub async fn serve(listener: TcpListener, app: App) -> io::Result<()> {
    // Fragments are small and each is wanted at once.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot disable Nagle's algorithm");
        }
    });
    let service = router(app).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

fn router(app: App) -> Router {
    let orders = sessions::routes(app.max_message_bytes)
        .merge(workers::routes())
        .merge(prompts::routes())
        .layer(from_fn(from_no_other_site));
    Router::new()
        .route("/v1/stream", get(stream::upgrade))
        .merge(status::routes())
        .merge(orders)
        .merge(page::routes())
        .fallback(async || {
            error(
                StatusCode::NOT_FOUND,
                "not_found",
                "there is nothing here; see /openapi.json",
            )
        })
        .method_not_allowed_fallback(async || {
            error(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this route does not answer that method",
            )
        })
        .with_state(app)
}

/// Refuses orders that the page of another site gives through an operator's browser.
async fn from_no_other_site(request: Request, next: Next) -> Response {
    if let Some(origin) = other_site(&request) {
        let message = format!("orders from {origin} are not taken");
        return error(StatusCode::FORBIDDEN, "other_site", message);
    }
    next.run(request).await
}

/// The site whose page gives an order, when that is not this server's.
fn other_site(request: &Request) -> Option<String> {
    let header = |name| {
        let value = request.headers().get(name)?;
        value.to_str().ok()
    };
    let origin = header(ORIGIN)?;
    let is_order = !matches!(*request.method(), Method::GET | Method::HEAD);
    let site = origin.split_once("://").map(|(_, site)| site);
    let is_own = site.is_some() && site == header(HOST);
    (is_order && !is_own).then(|| origin.to_owned())
}

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ErrorDetail {
    /// Stable, for programs.
    code: &'static str,
    message: String,
}

fn error(status: StatusCode, code: &'static str, message: impl Into<String>) -> Response {
    let message = message.into();
    let body = ErrorBody {
        error: ErrorDetail { code, message },
    };
    (status, axum::Json(body)).into_response()
}

type AppState = State<App>;
