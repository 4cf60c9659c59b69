//! The router's end of the control links: servers tell how they are.
//!
//! A server that is silent, closes the link or breaks it is not linked any more, and counts as one without a link until it
//! is again; its probes go on beside that. A server that knows no links, or not this router's key, is asked again from
//! time to time.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use fastvideo_proto::fleet::{FLEET_VERSION, Hello, RouterMessage, ServerMessage, Waiting};
use futures_util::{SinkExt, StreamExt};
use rustls::ClientConfig;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::{self, Message};
use url::Url;

use super::config::Config;
use super::line::Line;
use super::registry::{Replica, ReplicaRegistry};
use super::server_socket::{self, ConnectError, Headers, ServerSocket};
use crate::backoff::Backoff;

/// The shortest and the longest pause before another try.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The time between two looks whether a server that was dropped still has sessions.
const LAST_SESSION_INTERVAL: Duration = Duration::from_secs(5);
/// The largest message that is taken from a server.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// What the router says of itself, and how it proves that.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) hello: Hello,
    /// `Bearer` and the key.
    pub(super) authorization: HeaderValue,
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// How long a server may be silent.
    pub(super) dead_after: Duration,
    pub(super) line: Line,
    pub(super) registry: ReplicaRegistry,
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("it has no link for this router's key")]
    NotSpoken,
    #[error("{0}")]
    Broken(String),
}

/// Keeps a link with each of the servers, for ever. That with a server which is dropped ends with its last session.
pub(super) async fn keep_all(registry: ReplicaRegistry, identity: Identity) {
    let mut list = registry.list();
    let mut links = JoinSet::new();
    let mut kept: Vec<(Arc<Replica>, AbortHandle)> = Vec::new();
    loop {
        let replicas = list.borrow_and_update().clone();
        for replica in replicas.iter() {
            if !kept.iter().any(|(other, _)| Arc::ptr_eq(other, replica)) {
                let link = links.spawn(keep(replica.clone(), identity.clone()));
                kept.push((replica.clone(), link));
            }
        }
        let mut are_dropped = false;
        kept.retain(|(replica, link)| {
            if replicas.iter().any(|other| Arc::ptr_eq(other, replica)) {
                return true;
            }
            let has_sessions = replica.sessions() > 0;
            are_dropped |= has_sessions;
            if !has_sessions {
                link.abort();
            }
            has_sessions
        });
        tokio::select! {
            Ok(()) = list.changed() => {}
            () = sleep(LAST_SESSION_INTERVAL), if are_dropped => {}
            Some(Err(error)) = links.join_next() => {
                if let Ok(panic) = error.try_into_panic() {
                    resume_unwind(panic);
                }
            }
        }
    }
}

impl Identity {
    /// Returns a server's share of the sessions that wait.
    fn waiting(&self) -> Waiting {
        let replicas = self.registry.all();
        let linked = replicas.iter().filter(|replica| replica.home().is_some());
        Waiting {
            sessions: self.line.len().div_ceil(linked.count().max(1)),
        }
    }
}

/// Keeps a link with a server, for ever.
async fn keep(replica: Arc<Replica>, identity: Identity) {
    let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE).with_jitter();
    let mut is_told = false;
    loop {
        let linked = link(&replica, &identity, &mut backoff).await;
        let is_plain = matches!(linked, Err(LinkError::NotSpoken));
        let was_linked = replica.unlinked(is_plain);
        match linked {
            Err(LinkError::NotSpoken) if is_told => {}
            Err(error) if was_linked || !is_told => {
                tracing::warn!(%replica, reason = %error, "no link with a server");
                is_told = true;
            }
            Err(error) => tracing::debug!(%replica, reason = %error, "no link with a server"),
            Ok(()) => {}
        }
        if was_linked {
            is_told = false;
        }
        sleep(backoff.next_pause()).await;
    }
}

/// Links with a server, and takes its reports until the link ends.
async fn link(
    replica: &Replica,
    identity: &Identity,
    backoff: &mut Backoff,
) -> Result<(), LinkError> {
    let broken = |error: tungstenite::Error| LinkError::Broken(error.to_string());
    let base = &replica.endpoint.url;
    let mut socket = connect(base, &identity.authorization, identity.tls.clone()).await?;
    let hello = RouterMessage::Hello(identity.hello.clone());
    let hello = serde_json::to_string(&hello).expect("strings and numbers are JSON");
    socket
        .send(Message::Text(hello.into()))
        .await
        .map_err(broken)?;
    let mut told = Waiting::default();
    loop {
        let next = timeout(identity.dead_after, socket.next()).await;
        let silent = || {
            let limit = identity.dead_after.as_secs_f64();
            LinkError::Broken(format!("silent for {limit} s"))
        };
        let message = match next.map_err(|_| silent())? {
            None => return Err(LinkError::Broken("it ended without a close".to_owned())),
            Some(Err(error)) => return Err(broken(error)),
            Some(Ok(Message::Close(frame))) => {
                let reason = frame.map(|frame| frame.reason.to_string());
                let reason = reason.unwrap_or_default();
                return Err(LinkError::Broken(format!("closed: {reason}")));
            }
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(_)) => continue,
        };
        match serde_json::from_str(&message) {
            Ok(ServerMessage::Report(report)) if report.fleet.contains(&FLEET_VERSION) => {
                backoff.reset();
                replica.reported(*report);
                let waiting = identity.waiting();
                if waiting != told {
                    told = waiting;
                    let message = RouterMessage::Waiting(waiting);
                    let text = serde_json::to_string(&message).expect("numbers are JSON");
                    (socket.send(Message::Text(text.into())).await).map_err(broken)?;
                }
            }
            Ok(ServerMessage::Report(_)) => {
                let reason = "it speaks no version of the link that this router speaks";
                return Err(LinkError::Broken(reason.to_owned()));
            }
            Err(error) => tracing::debug!(%replica, %error, "a message that is not known"),
        }
    }
}

impl Config {
    /// Opens a link with a server, and closes it. Returns why there is none; `None` where this router has no key.
    pub async fn try_link(
        &self,
        server: &Url,
        tls: Option<Arc<ClientConfig>>,
    ) -> Option<Result<(), String>> {
        let key = self.key.as_ref()?.authorization();
        let linked = connect(server, &key, tls).await;
        Some(linked.map(drop).map_err(|error| error.to_string()))
    }
}

async fn connect(
    base: &Url,
    key: &HeaderValue,
    tls: Option<Arc<ClientConfig>>,
) -> Result<ServerSocket, LinkError> {
    let headers = Headers {
        authorization: Some(key),
        trace: None,
    };
    let connecting = server_socket::connect(base, "/v1/router", headers, tls, MAX_MESSAGE_BYTES);
    connecting.await.map_err(|error| match error {
        ConnectError::Refused(status) if status.is_client_error() => LinkError::NotSpoken,
        error => LinkError::Broken(error.to_string()),
    })
}
