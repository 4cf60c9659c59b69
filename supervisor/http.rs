//! The HTTP server: WebSocket sessions, health, status, operators' requests, and the built-in page.
//!
//! `app` is the state that all requests share. `stream` carries a session over a WebSocket, `status` answers probes,
//! `operator` serves operators' requests, `page` serves the built-in page, and `openapi` describes all routes.
//! `extract` reads requests, and `error` answers those that are refused: every refusal has the same JSON body.
//!
//! The bodies of requests and answers are the types of [`fastvideo_proto::api`]; the modules here build them from the
//! state of the pool, the store and the prompts.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;

pub use app::{App, Config};

use error::ApiError;

mod app;
pub mod config;
mod error;
mod extract;
mod openapi;
mod operator;
mod page;
mod status;
mod stream;
mod timestamp;

/// Serves requests until the returned future is dropped.
///
/// # Errors
/// Returns an error when the listener breaks for good.
pub async fn serve(listener: TcpListener, app: App) -> io::Result<()> {
    // Fragments are small, and each should be sent at once.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot disable Nagle's algorithm");
        }
    });
    let service = router(app).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

fn router(app: App) -> Router {
    Router::new()
        .route("/v1/stream", get(stream::upgrade))
        .merge(status::routes())
        .merge(openapi::routes())
        .merge(operator::routes(app.max_message_bytes))
        .merge(page::routes())
        .fallback(async || {
            let message = "there is nothing here; see /openapi.json";
            ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
        })
        .method_not_allowed_fallback(async || {
            let message = "this route does not answer that method";
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                message,
            )
        })
        .with_state(app)
}
