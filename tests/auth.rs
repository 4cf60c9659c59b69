//! Who may do what: keys, roles, tenants and limits, as callers of the real server meet them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use fastvideo_supervisor_core::auth::key::KeyHash;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Response as WsResponse};
use ureq::http::{Request, Response};

use crate::harness::{Client, Heard, Server, command, until};

mod limits;
mod orders;
mod roles;
mod tenants;
mod tickets;
mod tokens;

const GPU: &[&str] = &[
    "--gpus=1",
    "--sessions-per-gpu=4",
    "--generator.synthetic.step_ms=0",
    "--generator.synthetic.frame_ms=0",
];

const SITE: &str = "https://app.acme.example";

/// A file of keys. The keys are made of their ids, so that tests need not remember them.
pub(crate) struct Keys {
    folder: TempDir,
    /// The limits of `acme`, in YAML.
    limits: &'static str,
    /// Ids, tenants, roles, and further fields in YAML.
    lines: Vec<(&'static str, &'static str, &'static str, &'static str)>,
}

const ALL: &[(&str, &str, &str, &str)] = &[
    ("acme", "acme", "user", ""),
    (
        "web",
        "acme",
        "user",
        ", origins: [\"https://app.acme.example\"]",
    ),
    ("beta", "beta", "user", ""),
    ("old", "acme", "user", ", expires: 2020-01-01T00:00:00Z"),
    ("later", "acme", "user", ", expires: 2999-01-01T00:00:00Z"),
    ("eyes", "", "metrics", ""),
    ("ops", "", "admin", ""),
];

/// The key with that id.
pub(crate) fn key(id: &str) -> String {
    let bits: Vec<u8> = id.bytes().cycle().take(32).collect();
    format!("fvk_{}", BASE64_URL_SAFE_NO_PAD.encode(bits))
}

impl Keys {
    pub(crate) fn new() -> Self {
        Self::limited("{}")
    }

    fn limited(limits: &'static str) -> Self {
        let keys = Self {
            folder: tempfile::tempdir().unwrap(),
            limits,
            lines: ALL.to_vec(),
        };
        keys.write();
        keys
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("keys.yaml")
    }

    fn write(&self) {
        let mut text = format!("tenants:\n  acme: {}\n  beta: {{}}\nkeys:\n", self.limits);
        for (id, tenant, role, more) in &self.lines {
            let tenant = match *tenant {
                "" => String::new(),
                tenant => format!(", tenant: {tenant}"),
            };
            let hash = KeyHash::of(&key(id));
            text += &format!("  - {{id: {id}{tenant}, role: {role}, sha256: \"{hash}\"{more}}}\n");
        }
        self.write_text(&text);
    }

    fn write_text(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
        fs::set_permissions(self.path(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn flag(&self) -> String {
        format!("--server.auth.keys_file={}", self.path().display())
    }

    pub(crate) fn serve(&self, args: &[&str]) -> Server {
        Server::start(&[GPU, &[&self.flag()], args].concat())
    }
}

/// A request with headers.
async fn ask(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Response<String> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server.send(request.body(String::new()).unwrap()).await
}

/// The same with a key.
async fn ask_as(server: &Server, id: &str, method: &str, path: &str) -> Response<String> {
    let bearer = format!("Bearer {}", key(id));
    ask(server, method, path, &[("authorization", &bearer)]).await
}

/// The stable name of a refusal.
fn code(answer: &Response<String>) -> String {
    let body: Value = serde_json::from_str(answer.body()).unwrap_or_default();
    body["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Begins a WebSocket; a refusal is the answer.
pub(crate) async fn connect(
    server: &Server,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<(Client, WsResponse<Option<Vec<u8>>>), WsResponse<Option<Vec<u8>>>> {
    let url = format!("ws://{}{path}", server.address);
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).unwrap();
        request.headers_mut().append(*name, value);
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, answer)) => Ok((Client { socket }, answer)),
        Err(WsError::Http(answer)) => Err(*answer),
        Err(other) => panic!("{other}"),
    }
}

/// Opens a session with a key, and waits for the first message.
pub(crate) async fn open_as(server: &Server, id: &str, init: Value) -> Client {
    let bearer = format!("Bearer {}", key(id));
    let connected = connect(server, "/v1/stream", &[("authorization", &bearer)]).await;
    let (mut client, _) = connected.unwrap_or_else(|answer| panic!("{id}: {answer:?}"));
    let mut message = json!({"type": "session_init_v2"});
    crate::harness::merge(&mut message, init);
    client.send(message).await;
    client
}

/// Opens a session that is active, and returns what `gpu_assigned` says of it.
async fn active_as(server: &Server, id: &str) -> (Client, Value) {
    let mut client = open_as(server, id, json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    (client, assigned)
}

/// The session that `gpu_assigned` names, as a client resumes it.
fn resume(assigned: &Value) -> Value {
    json!({"resume": {"session_id": assigned["session_id"], "token": assigned["resume_token"]}})
}
