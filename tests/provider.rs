//! A language model's server, made to answer as a test wants it. Speaks HTTP/1.1 over real sockets.

use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);

/// One request, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) key: Option<String>,
    pub(crate) body: Value,
}

impl Asked {
    /// The prompt or the prompts.
    pub(crate) fn user(&self) -> &str {
        self.body["messages"][1]["content"].as_str().unwrap()
    }

    pub(crate) fn system(&self) -> &str {
        self.body["messages"][0]["content"].as_str().unwrap()
    }
}

/// What a request gets.
pub(crate) enum Reply {
    /// A completion with this text.
    Say(String),
    Status(u16),
    StatusWith(u16, &'static str, String),
    StatusBody(u16, String),
    /// 200 with this body.
    Body(String),
    /// The connection ends in the middle of the answer.
    Cut,
    After(Duration, Box<Reply>),
    /// Nothing before a test has added a permit.
    Held(Arc<Semaphore>, Box<Reply>),
}

/// Runs until it is dropped.
pub(crate) struct Provider {
    pub(crate) base_url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    count: watch::Receiver<usize>,
    connections: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

type Answer = Arc<dyn Fn(usize, &Asked) -> Reply + Send + Sync>;

impl Provider {
    /// `answer` is told how many requests came before.
    pub(crate) async fn start(
        answer: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let connections: Arc<AtomicUsize> = Arc::default();
        let (counter, count) = watch::channel(0);
        let answer: Answer = Arc::new(answer);
        let (seen, opened) = (asked.clone(), connections.clone());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut clients = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                opened.fetch_add(1, Ordering::SeqCst);
                let (answer, seen, counter) = (answer.clone(), seen.clone(), counter.clone());
                clients.spawn(async move {
                    let mut socket = BufReader::new(socket);
                    while let Some(asked) = read(&mut socket).await {
                        let before = {
                            let mut seen = seen.lock().unwrap();
                            seen.push(asked.clone());
                            seen.len() - 1
                        };
                        counter.send_modify(|count| *count += 1);
                        if !reply(socket.get_mut(), answer(before, &asked)).await {
                            return;
                        }
                    }
                });
            }
        });
        Self {
            base_url,
            asked,
            count,
            connections,
            _server: server,
        }
    }

    /// One that writes the prompt in capitals.
    pub(crate) async fn shouting() -> Self {
        Self::start(|_, asked| Reply::Say(asked.user().to_uppercase())).await
    }

    /// One that always gives this answer.
    pub(crate) async fn always(answer: impl Fn() -> Reply + Send + Sync + 'static) -> Self {
        Self::start(move |_, _| answer()).await
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have come.
    pub(crate) async fn asked_times(&self, times: usize) {
        let mut count = self.count.clone();
        let enough = count.wait_for(|count| *count >= times);
        timeout(PATIENCE, enough).await.expect("in time").unwrap();
    }
}

/// None when the connection ends.
async fn read(socket: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut path = None;
    let (mut key, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if socket.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if path.is_none() {
            path = line.split(' ').nth(1).map(str::to_owned);
        } else if line.is_empty() {
            break;
        } else if let Some((name, value)) = line.split_once(": ") {
            match name.to_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "authorization" => key = value.strip_prefix("Bearer ").map(str::to_owned),
                _ => {}
            }
        }
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await.ok()?;
    Some(Asked {
        path: path?,
        key,
        body: serde_json::from_slice(&body).unwrap(),
    })
}

/// False when the connection is to end.
async fn reply(socket: &mut TcpStream, reply: Reply) -> bool {
    let mut reply = reply;
    loop {
        reply = match reply {
            Reply::After(wait, next) => {
                sleep(wait).await;
                *next
            }
            Reply::Held(permits, next) => {
                permits.acquire().await.unwrap().forget();
                *next
            }
            other => break write(socket, other).await,
        };
    }
}

async fn write(socket: &mut TcpStream, reply: Reply) -> bool {
    let text = match reply {
        Reply::Say(text) => http(200, "", &completion(&text)),
        Reply::Status(status) => http(status, "", "{\"error\": {\"message\": \"no\"}}"),
        Reply::StatusWith(status, name, value) => http(status, &format!("{name}: {value}\r\n"), ""),
        Reply::StatusBody(status, body) => http(status, "", &body),
        Reply::Body(body) => http(200, "", &body),
        _ => {
            let _ = socket
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"cho")
                .await;
            return false;
        }
    };
    socket.write_all(text.as_bytes()).await.is_ok()
}

fn completion(text: &str) -> String {
    json!({"id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})
        .to_string()
}

fn http(status: u16, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )
}

impl Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider")
            .field("base_url", &self.base_url)
            .finish()
    }
}
