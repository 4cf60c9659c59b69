//! Shows a session to spectators over a WebSocket: its media as they are made, or its film from any segment on.
//!
//! `show` decides what a spectator is sent; this module carries it. Nothing that a spectator sends has an effect.

use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use fastvideo_proto::ids::SessionId;
use fastvideo_proto::watch::{RouterAsks, WatchQuery};
use futures_util::{SinkExt, StreamExt};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tracing::Instrument;

use super::app::{App, AppState};
use crate::auth::Caller;
use crate::auth::key::is_key;
use crate::ingress::connections::Phase;
use crate::ingress::error::ApiError;
use crate::ingress::extract::{ValidQuery, bearer};
use crate::ingress::liveness::until_gone;
use crate::ingress::websocket::{Handshake, WebSocket};
use crate::tasks::catch_panic;

mod show;

use show::{Ending, Show};

/// The largest message that is read from a spectator.
const MAX_MESSAGE_BYTES: u64 = 4096;
/// How long a spectator may take to answer a close.
const CLOSE_REPLY: Duration = Duration::from_secs(2);

/// Serves the route `/v1/watch`.
pub(super) async fn upgrade(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    ValidQuery(query): ValidQuery<WatchQuery>,
    handshake: Handshake,
) -> Result<Response, ApiError> {
    if !app.context.config.get().watch {
        return Err(ApiError::no_session());
    }
    // A caller that shows a key is held to its tenant, and shows its token in the address.
    let store = app.store_of(&caller);
    let token = bearer(&headers).filter(|given| !is_key(given));
    let token = token.or(query.token.as_deref());
    let token = token.unwrap_or_default().to_owned();
    let session = SessionId::parse(&query.session).ok_or_else(ApiError::no_session)?;
    let view = store.film(&session, &token).await;
    let view = view.map_err(|failed| ApiError::store(&failed))?;
    let view = view.ok_or_else(ApiError::no_session)?;
    let mut context = app.context.clone();
    context.store = store;
    let show = Show::new(context, session, token, view, query.from, query.router);
    let show = show.map_err(ApiError::too_busy)?;
    if query.router == Some(RouterAsks::OnAir) && !show.is_on_air() {
        let message = "the session does not run on this server";
        return Err(ApiError::new(StatusCode::CONFLICT, "not_on_air", message));
    }
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
        let interval = app.ingress.rules().ping_interval;
        let playing = Box::pin(show.play(sink, connection, interval));
        let played = tokio::select! {
            played = playing => played,
            _ = until_gone(&mut stream, || connection.progress(), interval * 2) => None,
        };
        let Some(played) = played else {
            return;
        };
        played
    };
    let (code, reason) = match ending {
        Ending::Over => (CloseCode::Normal, "watch_end"),
        Ending::Draining => (CloseCode::Away, "draining"),
        Ending::Moved => (CloseCode::Away, "moved"),
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
