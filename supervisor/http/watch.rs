//! Shows a session to spectators over a WebSocket: its media as they are made, or its film from any segment on.
//!
//! `show` decides what a spectator is sent; this module carries it. Nothing that a spectator sends has an effect.

use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use fastvideo_proto::ids::SessionId;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::time::{sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tracing::Instrument;

use super::app::{App, AppState};
use crate::ingress::connections::Phase;
use crate::ingress::error::ApiError;
use crate::ingress::extract::{ValidQuery, bearer};
use crate::ingress::liveness::Liveness;
use crate::ingress::websocket::{Handshake, WebSocket};
use crate::tasks::catch_panic;

mod show;

use show::{Ending, Show};

/// The largest message that is read from a spectator.
const MAX_MESSAGE_BYTES: u64 = 4096;
/// How long a spectator may take to answer a close.
const CLOSE_REPLY: Duration = Duration::from_secs(2);

/// What a spectator wants to see.
#[derive(Debug, Deserialize)]
pub(super) struct WatchQuery {
    session: String,
    token: Option<String>,
    /// The first segment; absent for what is on air.
    from: Option<u32>,
}

/// Serves the route `/v1/watch`.
pub(super) async fn upgrade(
    State(app): AppState,
    headers: HeaderMap,
    ValidQuery(query): ValidQuery<WatchQuery>,
    handshake: Handshake,
) -> Result<Response, ApiError> {
    app.ingress.admit_origin(&headers)?;
    if !app.context.config.watch {
        return Err(ApiError::no_session());
    }
    let token = bearer(&headers).or(query.token.as_deref());
    let token = token.unwrap_or_default().to_owned();
    let session = SessionId::parse(&query.session).ok_or_else(ApiError::no_session)?;
    let view = app.context.store.film(&session, &token).await;
    let view = view.map_err(|failed| ApiError::store(&failed))?;
    let view = view.ok_or_else(ApiError::no_session)?;
    let show = Show::new(app.context.clone(), session, token, view, query.from);
    let show = show.map_err(ApiError::too_busy)?;
    let upgrade = handshake.begin(&app.ingress, MAX_MESSAGE_BYTES)?;
    let (answer, connection, opened) = upgrade.split();
    let tracker = app.ingress.connections.clone();
    let span = tracing::info_span!("spectator", session_id = %show.session());
    let carried = async move {
        if let Some((socket, _)) = opened.await {
            // Nothing is expected of a spectator.
            connection.place.enter_phase(Phase::Session);
            carry(socket, show, &connection, &app).await;
        }
    };
    tracker.spawn(catch_panic("spectator", carried.instrument(span)));
    Ok(answer)
}

async fn carry(
    socket: WebSocket,
    show: Show,
    connection: &crate::ingress::connection::Connection,
    app: &App,
) {
    let (sink, mut stream) = socket.split();
    let (mut sink, ending) = {
        let mut playing = Box::pin(show.play(sink, connection, app.ingress.ping_interval));
        let mut liveness = Liveness::new(app.ingress.ping_interval * 2);
        loop {
            tokio::select! {
                played = &mut playing => match played {
                    Some(played) => break played,
                    None => return,
                },
                message = stream.next() => match message {
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => {}
                },
                () = sleep_until(liveness.next_look()) => {
                    if !liveness.look(connection.progress()) {
                        return;
                    }
                }
            }
        }
    };
    let (code, reason) = match ending {
        Ending::Over => (CloseCode::Normal, "watch_end"),
        Ending::Draining => (CloseCode::Away, "draining"),
    };
    let farewell = async {
        let reason = reason.into();
        let close = Message::Close(Some(CloseFrame { code, reason }));
        sink.send(close).await?;
        while let Some(Ok(_)) = stream.next().await {}
        Ok::<_, tokio_tungstenite::tungstenite::Error>(())
    };
    let _ = timeout(CLOSE_REPLY, farewell).await;
}
