//! Accepts connections, within the limits on their number.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use super::Ingress;
use super::connection::{self, Connection, Socket};
use super::connections::{Connections, Full, Place};
use super::error::last_answer;
use super::tls::{Side, shake_hands};
use crate::client_address::ClientAddress;
use crate::tasks::catch_panic;

/// How long a new connection waits for one that makes room for it.
const ROOM_WAIT: Duration = Duration::from_secs(1);
/// The pause after the operating system had no resources for another connection.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);
/// The shortest time between two lines in the log about connections that were not accepted.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Accepts and serves connections until the returned future is dropped. The connections themselves end with
/// [`Ingress::stopping`].
pub(crate) async fn run(listener: TcpListener, side: Side, ingress: &Ingress, router: Router) {
    let mut complaints = Complaints::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if concerns_one_connection(&error) => continue,
            Err(error) => {
                complaints.add(|refused| {
                    tracing::warn!(%error, refused, "connections are not accepted");
                });
                // A connection without a request holds what the next one needs.
                ingress.open.displace_any();
                sleep(SHORTAGE_PAUSE).await;
                continue;
            }
        };
        match find_place(&ingress.open, ClientAddress::of(peer.ip())).await {
            Ok(place) => serve(stream, peer, place, side, ingress, router.clone()),
            Err(full) => {
                complaints.add(|refused| {
                    tracing::warn!(%peer, reason = %full, refused, "connection refused");
                });
                refuse(&stream, full, ingress.encryption.is_some());
            }
        }
    }
}

/// Returns whether an error of `accept` is that of the connection that was to be accepted, so that the next one may be
/// accepted at once: `accept(2)` passes on errors of the network.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::Interrupted
            | ErrorKind::NetworkDown
            | ErrorKind::NetworkUnreachable
            | ErrorKind::PermissionDenied
            | ErrorKind::TimedOut
    )
}

/// Gives a new connection a place, if need be that of one on which nobody says anything.
async fn find_place(open: &Connections, client: ClientAddress) -> Result<Place, Full> {
    let deadline = Instant::now() + ROOM_WAIT;
    loop {
        let left = open.left();
        let full = match open.enter(client) {
            Ok(place) => return Ok(place),
            Err(full) => full,
        };
        let time_left = deadline.saturating_duration_since(Instant::now());
        if !open.displace(full, client) || timeout(time_left, left).await.is_err() {
            return Err(full);
        }
    }
}

fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    side: Side,
    ingress: &Ingress,
    router: Router,
) {
    // Fragments are small, and each should be sent at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot disable Nagle's algorithm");
    }
    let connection = Arc::new(Connection::new(stream, place));
    let (limits, stopping) = (ingress.rules().time_limits, ingress.stopping.clone());
    let Some(encryption) = ingress.encryption.clone() else {
        let socket = Socket::plain(connection);
        let served = connection::serve(socket, peer, router, limits, stopping);
        ingress.requests.spawn(catch_panic("request", served));
        return;
    };
    let served = async move {
        if let Some(socket) = shake_hands(connection, side, &encryption).await {
            connection::serve(socket, peer, router, limits, stopping).await;
        }
    };
    ingress.requests.spawn(catch_panic("request", served));
}

/// Answers a connection that has no place, as far as that costs nothing, and closes it. With TLS no answer would be
/// understood.
fn refuse(stream: &TcpStream, full: Full, has_tls: bool) {
    if has_tls {
        return;
    }
    let status = "503 Service Unavailable";
    let message = full.to_string();
    let answer = last_answer(
        status,
        "retry-after: 5\r\n",
        "too_many_connections",
        &message,
    );
    // tokio's `try_write` would not try: it has not been told yet that the socket is writable. An error means that the
    // client is gone.
    let _ = SockRef::from(stream).send(answer.as_bytes());
}

/// Events of which the log tells from time to time.
#[derive(Debug, Default)]
struct Complaints {
    last: Option<Instant>,
    untold: u64,
}

impl Complaints {
    /// Adds an event. Calls `tell` with the number of events since it was called last, unless that was just now.
    fn add(&mut self, tell: impl FnOnce(u64)) {
        self.untold += 1;
        let is_due = (self.last).is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL);
        if is_due {
            tell(self.untold);
            self.untold = 0;
            self.last = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_log_is_told_at_once_and_then_from_time_to_time() {
        let mut told = Vec::new();
        let mut complaints = Complaints::default();
        for _ in 0..25 {
            complaints.add(|count| told.push(count));
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(told, [1, 10, 10]);
    }
}
