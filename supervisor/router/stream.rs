//! The route `/v1/stream`: takes a client, and carries its session over links or over a plain bridge.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::SinkExt;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tracing::Instrument;

use super::app::App;
use super::bridge::{self, Ended};
use super::messages::{bridge_failed, close, farewell, messages, no_healthy_replica};
use super::registry::{CountedSession, Replica};
use super::server_socket::ServerSocket;
use super::session::{self, Finish};
use super::tracer::SessionSpan;
use super::visitor::Visitor;
use crate::auth::credential::shown_key;
use crate::auth::guard::Admission;
use crate::client_address::ClientAddress;
use crate::dialect::{close_code, stream_v1};
use crate::ingress::connection::Connection;
use crate::ingress::error::ApiError;
use crate::ingress::message_io::CompleteShare;
use crate::ingress::websocket::{Handshake, WebSocket};
use crate::session::ending::NotOpened;
use crate::tasks::catch_panic;
use crate::traces;

/// Why the router leaves its clients.
const DRAINING: &str = "draining";

/// Serves the route `/v1/stream`.
pub(super) async fn upgrade(
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

/// Tells the log, and then the client, that the server with its session is lost.
fn broken(replica: &Replica, reason: &str) -> [Message; 2] {
    tracing::warn!(%replica, reason, "replica lost with a session");
    bridge_failed(reason)
}
