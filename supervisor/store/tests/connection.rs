//! A connection to Redis that fails in every way: the next ones are used.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastvideo_proto::ids::SessionId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use url::Url;

use super::backends::Redis;
use crate::store::ids::RecordKey;
use crate::store::records::Records;
use crate::store::records::redis::{RedisAddress, RedisRecords};

/// Time limit on a call.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Time limit on everything that the tests wait for.
const PATIENCE: Duration = Duration::from_secs(20);

/// What happens to connections through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// New ones get the error page of a proxy.
    ErrorPage,
}

/// Stands between a server and its Redis, until it is dropped.
struct Proxy {
    url: Url,
    fault: Arc<Mutex<Fault>>,
    /// The number of connections so far.
    connections: Arc<AtomicUsize>,
    /// Those with a smaller number answer nothing any more, without a word.
    silent: Arc<AtomicUsize>,
    /// Changes when all connections are to be cut.
    cut: watch::Sender<()>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    async fn start(redis: &Redis) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://:sesame@{}", listener.local_addr().unwrap());
        let fault = Arc::new(Mutex::new(Fault::None));
        let (connections, silent): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        let (cut, is_cut) = watch::channel(());
        let socket = redis.socket();
        let mut tasks = JoinSet::new();
        let (faults, counter, quiet) = (fault.clone(), connections.clone(), silent.clone());
        tasks.spawn(async move {
            let mut pumps = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let fault = *faults.lock().unwrap();
                let (socket, quiet, mut is_cut) = (socket.clone(), quiet.clone(), is_cut.clone());
                is_cut.mark_unchanged();
                pumps.spawn(async move {
                    if fault == Fault::ErrorPage {
                        let _ = client.read(&mut [0; 4096]).await;
                        let page = b"HTTP/1.0 503 Service Unavailable\r\n\r\n";
                        let _ = client.write_all(page).await;
                        return;
                    }
                    let server = UnixStream::connect(socket).await.unwrap();
                    tokio::select! {
                        () = pump(client, server, || number < quiet.load(Ordering::SeqCst)) => {}
                        _ = is_cut.changed() => {}
                    }
                });
            }
        });
        Self {
            url: Url::parse(&url).unwrap(),
            fault,
            connections,
            silent,
            cut,
            _tasks: tasks,
        }
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    fn cut(&self) {
        self.cut.send_replace(());
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Copies both ways until one side ends, and drops everything while the connection is silent.
async fn pump(client: TcpStream, server: UnixStream, is_silent: impl Fn() -> bool) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut up, mut down) = ([0; 8192], [0; 8192]);
    loop {
        tokio::select! {
            read = from_client.read(&mut up) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) if is_silent() => {}
                Ok(read) => to_server.write_all(&up[..read]).await.unwrap(),
            },
            read = from_server.read(&mut down) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) if is_silent() => {}
                Ok(read) => to_client.write_all(&down[..read]).await.unwrap(),
            },
        }
    }
}

#[tokio::test]
async fn a_connection_that_has_failed_is_made_anew() {
    let redis = Redis::start();
    redis.order("CONFIG SET requirepass sesame");
    let proxy = Proxy::start(&redis).await;
    let address = RedisAddress::parse(&proxy.url).unwrap();
    let records = RedisRecords::connect(&address, TIMEOUT).await.unwrap();
    let key = RecordKey::from(SessionId::random());
    let is_answered = async || records.read(&key).await.is_ok();
    let until_answered = async || {
        timeout(PATIENCE, async { while !is_answered().await {} })
            .await
            .expect("it is answered again");
    };
    assert!(is_answered().await);

    // The node behind it is gone without a word. Nobody waits as long as a connection has to answer.
    proxy.silent.store(proxy.connections(), Ordering::SeqCst);
    assert!(!is_answered().await);
    until_answered().await;
    proxy.silent.store(proxy.connections(), Ordering::SeqCst);
    let impatient = async || timeout(TIMEOUT / 10, records.read(&key)).await;
    timeout(PATIENCE, async { while impatient().await.is_err() {} })
        .await
        .expect("it is answered again");

    // Something else answers.
    proxy.set(Fault::ErrorPage);
    proxy.cut();
    let before = proxy.connections();
    while proxy.connections() < before + 3 {
        assert!(!is_answered().await);
    }
    proxy.set(Fault::None);
    until_answered().await;

    // The password is another one for a while.
    redis.order_as("sesame", "CONFIG SET requirepass other");
    proxy.cut();
    let before = proxy.connections();
    while proxy.connections() < before + 3 {
        assert!(!is_answered().await);
    }
    redis.order_as("other", "CONFIG SET requirepass sesame");
    until_answered().await;
}
