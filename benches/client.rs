//! A client as small as can be: it says when it heard what.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

/// Thousands of clients live in this process.
const READ_BUFFER_BYTES: usize = 8192;

/// Everything that is waited for must happen within this time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One connection with an open session.
#[derive(Debug)]
pub(crate) struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

#[derive(Debug)]
pub(crate) enum Heard {
    Text(Value),
    /// A binary message.
    Media(Bytes),
}

impl Heard {
    /// True for a text message of this type.
    pub(crate) fn is(&self, kind: &str) -> bool {
        matches!(self, Self::Text(text) if text["type"] == kind)
    }
}

impl Client {
    /// Opens a session and waits until it is active.
    ///
    /// # Errors
    /// When the server does not take it.
    pub(crate) async fn open(address: &str) -> anyhow::Result<Self> {
        Ok(Self::assigned(address, json!({})).await?.0)
    }

    /// Opens a session with these fields, waits until it is active, and returns its `gpu_assigned`.
    ///
    /// # Errors
    /// When the server does not take it.
    pub(crate) async fn assigned(address: &str, opening: Value) -> anyhow::Result<(Self, Value)> {
        let mut client = Self::connect(address, opening).await?;
        let (_, assigned) = client.until("gpu_assigned").await?;
        client.until("ltx2_stream_start").await?;
        Ok((client, assigned))
    }

    /// Asks for a session with these fields, and waits for no answer.
    ///
    /// # Errors
    /// When there is no connection.
    pub(crate) async fn connect(address: &str, opening: Value) -> anyhow::Result<Self> {
        Self::connect_to(address, "/v1/stream", opening).await
    }

    /// The same at another route.
    ///
    /// # Errors
    /// When there is no connection.
    pub(crate) async fn connect_to(
        address: &str,
        route: &str,
        opening: Value,
    ) -> anyhow::Result<Self> {
        let url = format!("ws://{address}{route}");
        Self::connect_by(url.into_client_request()?, opening).await
    }

    /// Opens a session as a caller who shows a key in these subprotocols, and waits until it is active.
    ///
    /// # Errors
    /// When the server does not take it.
    pub(crate) async fn assigned_with(address: &str, protocols: String) -> anyhow::Result<Self> {
        let mut request = format!("ws://{address}/v1/stream").into_client_request()?;
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", protocols.parse()?);
        let mut client = Self::connect_by(request, json!({})).await?;
        client.until("ltx2_stream_start").await?;
        Ok(client)
    }

    async fn connect_by(request: Request, mut opening: Value) -> anyhow::Result<Self> {
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
        let connecting = connect_async_with_config(request, Some(config), true);
        let (socket, _) = timeout(PATIENCE, connecting)
            .await
            .context("no connection in time")??;
        let mut client = Self { socket };
        opening["type"] = json!("session_init_v2");
        client.send(opening).await?;
        Ok(client)
    }

    pub(crate) async fn send(&mut self, message: Value) -> anyhow::Result<()> {
        Ok(self.socket.send(Message::text(message.to_string())).await?)
    }

    /// Asks for a segment.
    pub(crate) async fn prompt(&mut self, prompt: &str) -> anyhow::Result<()> {
        self.send(json!({"type": "segment_prompt_source", "prompt": prompt}))
            .await
    }

    /// Asks for a segment and waits for its end.
    pub(crate) async fn segment(&mut self, prompt: &str) -> anyhow::Result<()> {
        self.prompt(prompt).await?;
        self.until("ltx2_segment_complete").await?;
        Ok(())
    }

    /// Asks for a segment and waits for its end. Returns the time to its first binary message.
    pub(crate) async fn timed_segment(&mut self, prompt: &str) -> anyhow::Result<Duration> {
        let asked = Instant::now();
        self.prompt(prompt).await?;
        let mut first = None;
        loop {
            match self.next().await? {
                (at, Heard::Media(_)) => {
                    first.get_or_insert(at - asked);
                }
                (_, heard) if heard.is("ltx2_segment_complete") => break,
                (_, Heard::Text(text)) if text["type"] == "error" => bail!("{text}"),
                _ => {}
            }
        }
        first.context("a segment has media")
    }

    /// The next message and when it came; pings are answered and skipped. Waits for ever.
    pub(crate) async fn next(&mut self) -> anyhow::Result<(Instant, Heard)> {
        loop {
            let message = self.socket.next().await.context("the connection ended")??;
            let now = Instant::now();
            match message {
                Message::Text(text) => return Ok((now, Heard::Text(serde_json::from_str(&text)?))),
                Message::Binary(bytes) => return Ok((now, Heard::Media(bytes))),
                Message::Close(close) => bail!("the server closed the connection: {close:?}"),
                _ => {}
            }
        }
    }

    /// Skips everything up to a text message of this type, and returns it with its time.
    pub(crate) async fn until(&mut self, kind: &str) -> anyhow::Result<(Instant, Value)> {
        let found = async {
            loop {
                match self.next().await? {
                    (at, Heard::Text(text)) if text["type"] == kind => return Ok((at, text)),
                    (_, Heard::Text(text)) if text["type"] == "error" => bail!("{text}"),
                    _ => {}
                }
            }
        };
        let found = timeout(PATIENCE, found).await;
        found.with_context(|| format!("no {kind} in time"))?
    }
}
