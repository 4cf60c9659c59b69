//! TLS handshakes of new connections. They run beside the loop that accepts connections, within limits of their own: a
//! connection that says nothing costs its place and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustls::ServerConfig;
use socket2::SockRef;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Socket, Wire};
use super::connections::Phase;
use super::error::last_answer;
use crate::client_address::ClientAddress;
use crate::current::Current;
use crate::tls::server::{Outcome, ServerTls};

/// Time limit on a handshake, from the beginning of the connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit on handshakes at once, of clients that have begun to speak.
const MAX_HANDSHAKES: usize = 256;
/// Limit on the bytes that a connection keeps to be sent, encrypted or to be.
const MAX_BUFFERED_BYTES: usize = 32 << 10;
/// The first byte of a client that speaks TLS: its handshake is a record of this type.
const HANDSHAKE_RECORD: u8 = 22;
/// How much of a request without TLS is read, and for how long, so that its client sees the answer.
const MAX_PLAIN_BYTES: usize = 64 << 10;
const PLAIN_PATIENCE: Duration = Duration::from_secs(1);

/// The listener whose connections are shaken hands with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Everybody's.
    Public,
    /// The operators', which may ask clients for certificates.
    Admin,
}

/// What the handshakes of all connections share. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Encryption {
    pub(crate) tls: ServerTls,
    running: Handshakes,
    /// Time limit on a handshake, from the beginning of the connection.
    limit: Current<Duration>,
    /// Cancelled when the connections have to end.
    stopping: CancellationToken,
}

impl Encryption {
    /// Creates the encryption of connections whose first byte has to come within `head_limit`.
    pub(crate) fn new(tls: ServerTls, head_limit: Duration, stopping: CancellationToken) -> Self {
        Self {
            tls,
            running: Handshakes::default(),
            limit: Current::new(head_limit.min(HANDSHAKE_TIMEOUT)),
            stopping,
        }
    }

    /// Changes the time limit on the first byte of later connections.
    pub(crate) fn set_head_limit(&self, head_limit: Duration) {
        self.limit.replace(head_limit.min(HANDSHAKE_TIMEOUT));
    }
}

/// Shakes hands with a client. Returns `None` when that has failed, which is counted; the connection is then over.
pub(super) async fn shake_hands(
    connection: Arc<Connection>,
    side: Side,
    encryption: &Encryption,
) -> Option<Socket> {
    let tls = &encryption.tls;
    let config = match side {
        Side::Public => tls.public(),
        Side::Admin => tls.admin(),
    };
    let place = &connection.place;
    let negotiating = negotiate(&connection, config, &encryption.running);
    let done = tokio::select! {
        biased;
        () = place.displaced() => Ok(None),
        () = encryption.stopping.cancelled() => Ok(None),
        done = timeout(*encryption.limit.get(), negotiating) => done,
    };
    tls.count(match &done {
        Ok(Some(_)) => Outcome::Ok,
        Ok(None) => Outcome::Failed,
        Err(_) => Outcome::Timeout,
    });
    let socket = done.ok().flatten()?;
    // The time limit on the first request begins now.
    place.enter_phase(Phase::Fresh);
    Some(socket)
}

async fn negotiate(
    connection: &Arc<Connection>,
    config: Arc<ServerConfig>,
    handshakes: &Handshakes,
) -> Option<Socket> {
    let mut first = [0];
    match connection.stream.peek(&mut first).await {
        Ok(1..) if first[0] == HANDSHAKE_RECORD => {}
        Ok(1..) => {
            // A client that does not close has seen it nevertheless.
            let _ = timeout(PLAIN_PATIENCE, refuse_plain(connection)).await;
            return None;
        }
        Ok(0) | Err(_) => return None,
    }
    let slot = handshakes.begin(connection.place.client());
    let wire = Wire::new(connection.clone());
    let accepting = TlsAcceptor::from(config).accept_with(wire, |session| {
        session.set_buffer_limit(Some(MAX_BUFFERED_BYTES));
    });
    tokio::select! {
        biased;
        () = slot.cut.cancelled() => {
            tracing::debug!("a TLS handshake made room for another one");
            None
        }
        done = accepting => match done {
            Ok(stream) => Some(Socket::encrypted(connection.clone(), stream)),
            Err(error) => {
                tracing::debug!(%error, "TLS handshake failed");
                None
            }
        },
    }
}

/// Tells a client that speaks no TLS that it should, and waits until it has heard that.
async fn refuse_plain(connection: &Connection) {
    let message = "this port speaks HTTPS and no HTTP: use https:// or wss://";
    let answer = last_answer("400 Bad Request", "", "https_required", message);
    let socket = SockRef::from(&connection.stream);
    // An error means that the client is gone. What is not read would make the system withdraw the answer.
    if socket.send(answer.as_bytes()).is_err() || socket.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut read = 0;
    let mut buffer = [0; 1024];
    while read < MAX_PLAIN_BYTES && connection.stream.readable().await.is_ok() {
        match connection.stream.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(bytes) => read += bytes,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// The handshakes that run. Where there are too many, the oldest one of the address that has most of them ends: so those of
/// one address cannot keep out the others. Cheap to clone.
#[derive(Clone, Debug, Default)]
struct Handshakes(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
struct Running {
    next: u64,
    /// In the order in which they have begun.
    slots: BTreeMap<u64, (ClientAddress, CancellationToken)>,
}

/// A handshake among those that run, until it is dropped.
struct Slot {
    number: u64,
    /// Cancelled when it has to end for another one.
    cut: CancellationToken,
    handshakes: Handshakes,
}

impl Handshakes {
    fn begin(&self, client: ClientAddress) -> Slot {
        let mut running = self.lock();
        if running.slots.len() >= MAX_HANDSHAKES {
            running.cut_one();
        }
        let number = running.next;
        running.next += 1;
        let cut = CancellationToken::new();
        running.slots.insert(number, (client, cut.clone()));
        drop(running);
        Slot {
            number,
            cut,
            handshakes: self.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Running {
    fn cut_one(&mut self) {
        let mut of_client: HashMap<ClientAddress, usize> = HashMap::new();
        for (client, _) in self.slots.values() {
            *of_client.entry(*client).or_default() += 1;
        }
        let most = of_client.values().copied().max().unwrap_or_default();
        let oldest = (self.slots.iter()).find(|(_, (client, _))| of_client[client] == most);
        if let Some((&number, _)) = oldest
            && let Some((_, cut)) = self.slots.remove(&number)
        {
            cut.cancel();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.handshakes.lock().slots.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;
    use crate::ingress::connections::{Connections, Limits};
    use crate::tls::server::HandshakeCounts as Counted;
    use crate::tls::testing::{certificates, files};

    const SECOND: Duration = Duration::from_secs(1);

    fn connections() -> Connections {
        Connections::new(Limits {
            connections: 8,
            connections_per_address: 8,
            unopened: 8,
            unopened_per_address: 8,
        })
    }

    fn encryption() -> Encryption {
        let folder = certificates();
        let tls = ServerTls::open(files(folder.path())).unwrap();
        Encryption::new(tls, 20 * SECOND, CancellationToken::new())
    }

    /// A connection, and its client's end.
    async fn connected(connections: &Connections) -> (Arc<Connection>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let place = connections.enter(client(1)).unwrap();
        (Arc::new(Connection::new(accepted, place)), stream)
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_has_ten_seconds() {
        let (connections, encryption) = (connections(), encryption());
        // Nothing, and a part of the first message.
        for (said, timeout) in [(&b""[..], 1), (&[22, 3, 1, 2, 0, 1], 2)] {
            let (connection, mut stream) = connected(&connections).await;
            stream.write_all(said).await.unwrap();
            let begun = Instant::now();
            let done = shake_hands(connection, Side::Public, &encryption).await;
            assert!(done.is_none());
            let took = begun.elapsed();
            assert!((10 * SECOND..11 * SECOND).contains(&took), "{took:?}");
            let counted = Counted {
                timeout,
                ..Counted::default()
            };
            assert_eq!(encryption.tls.handshakes(), counted);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_tls_is_left_when_it_was_told() {
        let (connections, encryption) = (connections(), encryption());
        let (connection, mut stream) = connected(&connections).await;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let begun = Instant::now();
        let done = shake_hands(connection, Side::Public, &encryption).await;
        assert!(done.is_none());
        assert!(
            begun.elapsed() <= 2 * PLAIN_PATIENCE,
            "{:?}",
            begun.elapsed()
        );
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"));
        let counted = Counted {
            failed: 1,
            ..Counted::default()
        };
        assert_eq!(encryption.tls.handshakes(), counted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_or_makes_room_has_failed_at_once() {
        let (connections, encryption) = (connections(), encryption());
        let begun = Instant::now();
        let (connection, stream) = connected(&connections).await;
        drop(stream);
        assert!(
            shake_hands(connection, Side::Public, &encryption)
                .await
                .is_none()
        );
        let (connection, mut stream) = connected(&connections).await;
        assert!(connections.displace_any());
        assert!(
            shake_hands(connection, Side::Admin, &encryption)
                .await
                .is_none()
        );
        // Its place is free with its socket.
        assert_eq!(stream.read(&mut [0]).await.unwrap_or_default(), 0);
        let counted = Counted {
            failed: 2,
            ..Counted::default()
        };
        assert_eq!(encryption.tls.handshakes(), counted);
        assert!(begun.elapsed() < SECOND);
    }

    fn client(n: u8) -> ClientAddress {
        ClientAddress::of(Ipv4Addr::new(192, 0, 2, n).into())
    }

    #[test]
    fn the_oldest_handshake_of_the_address_with_most_of_them_makes_room() {
        let handshakes = Handshakes::default();
        let others: Vec<Slot> = (2..12).map(|n| handshakes.begin(client(n))).collect();
        let mut flood: Vec<Slot> = Vec::new();
        for _ in 0..MAX_HANDSHAKES {
            flood.push(handshakes.begin(client(1)));
        }
        assert_eq!(handshakes.lock().slots.len(), MAX_HANDSHAKES);
        let newcomer = handshakes.begin(client(12));
        assert!(!newcomer.cut.is_cancelled());
        assert!(others.iter().all(|slot| !slot.cut.is_cancelled()));
        let cut: Vec<bool> = flood.iter().map(|slot| slot.cut.is_cancelled()).collect();
        let expected: Vec<bool> = (0..MAX_HANDSHAKES).map(|n| n < 11).collect();
        assert_eq!(cut, expected);
        drop((others, flood, newcomer));
        assert!(handshakes.lock().slots.is_empty());
    }
}
