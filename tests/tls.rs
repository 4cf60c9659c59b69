//! Servers and routers that speak HTTPS, a router before servers that do, and a proxy that speaks it for a server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::Connector;

use crate::cli::run;
use crate::harness::{Client, PATIENCE, Server, command, until};
use crate::router::{KEY, Keys, QUICK};

/// A TLS server that forwards all connections to a supervisor.
pub(crate) struct TlsProxy {
    pub(crate) port: u16,
    _tasks: JoinSet<()>,
}

impl TlsProxy {
    /// Starts the proxy with a certificate of `tests/data/make-certificates`, which are for 127.0.0.1.
    pub(crate) async fn start(server: &Server, certificate: &str) -> Self {
        let certificate = CertificateDer::from_pem_file(tls_file(certificate)).unwrap();
        let key = PrivateKeyDer::from_pem_file(tls_file("server.key")).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = server.address.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (acceptor, target) = (acceptor.clone(), target.clone());
                connections.spawn(async move {
                    // An error means that the client has rejected the certificate.
                    if let Ok(mut client) = acceptor.accept(client).await {
                        let mut server = TcpStream::connect(target).await.unwrap();
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self {
            port,
            _tasks: tasks,
        }
    }
}

/// Returns the path of a file that `tests/data/make-certificates` makes.
#[expect(
    clippy::disallowed_methods,
    reason = "the script that makes the certificates is no worker"
)]
pub(crate) fn tls_file(name: &str) -> PathBuf {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("certificates");
        std::fs::create_dir_all(&folder).unwrap();
        let make = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/make-certificates");
        let made = Command::new(make).arg(&folder).status().unwrap();
        assert!(made.success(), "openssl makes certificates");
        folder
    });
    FOLDER.join(name)
}

/// The arguments of a router before the server behind this proxy.
fn before(proxy: &TlsProxy) -> [String; 3] {
    let replicas = json!([{"url": format!("https://127.0.0.1:{}", proxy.port)}]);
    ["router".into(), "--replicas".into(), replicas.to_string()]
}

/// Returns the flag that names a file of authorities.
fn ca_file(name: &str) -> String {
    format!("--router.tls.ca_file={}", tls_file(name).display())
}

/// Starts a router before the server behind this proxy, on a system that trusts the authorities in a file.
fn router(proxy: &TlsProxy, system_authorities: &str, args: &[&str]) -> Server {
    let mut command = command();
    command
        .env("SSL_CERT_FILE", tls_file(system_authorities))
        .env_remove("SSL_CERT_DIR")
        .args(before(proxy))
        .args(QUICK)
        .args(args);
    Server::spawn(&mut command)
}

#[tokio::test]
async fn a_router_carries_sessions_to_servers_whose_authority_it_trusts() {
    let keys = Keys::new(KEY);
    let server = keys.server(&[]);
    let signed = TlsProxy::start(&server, "server.pem").await;
    let self_signed = TlsProxy::start(&server, "self-signed.pem").await;
    let key = keys.flag("router.key_file");
    let (ca, own) = (ca_file("ca.pem"), ca_file("self-signed.pem"));
    for (proxy, system, args) in [
        // Over a session link, and over a plain bridge.
        (&signed, "expired.pem", &[&*ca, &*key][..]),
        (&signed, "expired.pem", &[&*ca]),
        (&self_signed, "expired.pem", &[&*own, &*key]),
        // The authorities of the system.
        (&signed, "ca.pem", &[&*key]),
    ] {
        let router = router(proxy, system, args);
        let mut client = router.active(json!({})).await;
        client.segment("a red fox").await;
        let status = router.status().await;
        let replica = &status["replicas"][0];
        assert_eq!(replica["status"], "healthy", "{args:?}");
        let is_linked = args.contains(&&*key);
        assert_eq!(replica["report"].is_object(), is_linked, "{args:?}");
        let (_, list) = router.get("/v1/sessions").await;
        assert_eq!(list["unreachable"], json!([]), "{args:?}");
        assert_eq!(list["sessions"][0]["state"], "ACTIVE", "{args:?}");
        client.close(Some(1000)).await;
        server.sessions(0).await;
    }
}

#[tokio::test]
async fn a_router_says_why_it_does_not_trust_a_server() {
    let keys = Keys::new(KEY);
    let server = keys.server(&[]);
    let proxy = TlsProxy::start(&server, "server.pem").await;
    let expired = TlsProxy::start(&server, "expired.pem").await;
    let key = keys.flag("router.key_file");
    let (ca, other) = (ca_file("ca.pem"), ca_file("self-signed.pem"));
    let unknown =
        "not from a trusted authority; `router.tls.ca_file` names the file of a private one";
    for (proxy, system, args, reason) in [
        (&proxy, "expired.pem", &[&*key][..], unknown),
        // The file replaces the authorities of the system.
        (&proxy, "ca.pem", &[&*key, &*other], unknown),
        (
            &expired,
            "ca.pem",
            &[&*key, &*ca],
            "certificate is not valid: ",
        ),
    ] {
        let router = router(proxy, system, args);
        for refused in ["replica changed state", "no link with a server"] {
            until(&format!("the log says why: {refused}"), async || {
                let log = router.log();
                let mut lines = log.lines().filter(|line| line.contains(refused));
                lines.any(|line| line.contains(reason)).then_some(())
            })
            .await;
        }
        let mut client = router.connect().await;
        assert_eq!(client.error().await["code"], "gpu_unavailable");
        assert_eq!(client.closed().await, Some(1013));
    }
    assert!(!server.log().contains("session"), "{}", server.log());
}

#[tokio::test]
async fn a_check_of_a_router_asks_servers_over_tls() {
    let server = Server::start(&["--gpus=1"]);
    let proxy = TlsProxy::start(&server, "server.pem").await;
    let [router, replicas, list] = before(&proxy);
    let check = async |ca: &str| run(&[&*router, "check", &replicas, &list, &ca_file(ca)]).await;
    let (code, said, _) = check("ca.pem").await;
    assert_eq!(code, Some(0), "{said}");
    let expected = format!("# ok: https://127.0.0.1:{}/: it answers", proxy.port);
    assert!(said.contains(&expected), "{said}");
    let (code, said, _) = check("self-signed.pem").await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("`router.tls.ca_file` names"), "{said}");
}

#[tokio::test]
async fn a_file_without_certificates_ends_the_start_of_a_router() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let pem = |base64: &str| {
        format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n")
    };
    for (path, reason) in [
        (folder.path().join("nowhere"), "No such file or directory"),
        (folder.path().to_owned(), "Is a directory"),
        (file("empty", ""), "it has no certificate in PEM"),
        (file("text", "a red fox\n"), "it has no certificate in PEM"),
        (tls_file("server.key"), "it has no certificate in PEM"),
        (
            file("cut", "-----BEGIN CERTIFICATE-----\nAAAA\n"),
            "no valid PEM",
        ),
        (file("code", &pem("!!!!")), "no valid PEM"),
        (
            file("other", &pem("AAAA")),
            "it has a certificate that is not valid",
        ),
    ] {
        let path = path.display().to_string();
        let flag = format!("--router.tls.ca_file={path}");
        let replicas = r#"[{"url": "https://127.0.0.1:1"}]"#;
        for command in [&["router"][..], &["router", "check"]] {
            let args = [command, &["--port=0", "--replicas", replicas, &flag]].concat();
            let (code, stdout, said) = run(&args).await;
            assert_eq!((code, &*stdout), (Some(2), ""), "{path}: {said}");
            let expected = "`router.tls.ca_file` must be a PEM file with certificates (";
            for words in [expected, reason, &format!("given {path:?}")] {
                assert!(said.contains(words), "{words} in {said}");
            }
        }
    }
}

/// The flags of a listener with this certificate; `owner` is `server` or `router`.
pub(crate) fn shows(owner: &str, certificate: &Path) -> [String; 2] {
    let key = tls_file("server.key");
    [
        format!("--{owner}.tls.cert_file={}", certificate.display()),
        format!("--{owner}.tls.key_file={}", key.display()),
    ]
}

/// Starts a server that speaks HTTPS with this certificate.
fn encrypted(certificate: &str, args: &[&str]) -> Server {
    let [cert, key] = shows("server", &tls_file(certificate));
    Server::start(&[&["--gpus=1", &*cert, &*key], args].concat())
}

/// What a client of servers with certificates of the test authority has.
pub(crate) fn trusting(authority: &str) -> ClientConfig {
    let roots = fastvideo_supervisor_core::tls::file_authorities(&tls_file(authority)).unwrap();
    fastvideo_supervisor_core::tls::config(roots)
}

/// Connects by TLS to a server at 127.0.0.1.
pub(crate) async fn handshake(
    address: &str,
    config: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await
}

/// Sends a request and reads the answer to its end, whose length its head tells.
pub(crate) async fn ask(
    stream: &mut TlsStream<TcpStream>,
    path: &str,
    headers: &str,
) -> (u16, Vec<u8>) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    timeout(PATIENCE, stream.read_exact(&mut body))
        .await
        .unwrap()
        .unwrap();
    (status, body)
}

/// Connects, and asks one thing.
async fn fetch(address: &str, path: &str, headers: &str) -> (u16, Vec<u8>) {
    let stream = handshake(address, trusting("ca.pem")).await;
    ask(&mut stream.unwrap(), path, headers).await
}

/// Opens a WebSocket for a session.
async fn open(address: &str, config: ClientConfig) -> Client {
    let url = format!("wss://{address}/v1/stream");
    let connector = Connector::Rustls(Arc::new(config));
    let opening =
        tokio_tungstenite::connect_async_tls_with_config(url, None, false, Some(connector));
    let (socket, _) = timeout(PATIENCE, opening).await.unwrap().unwrap();
    let mut client = Client { socket };
    client.send(json!({"type": "session_init_v2"})).await;
    client
}

#[tokio::test]
async fn sessions_films_and_the_page_are_served_over_tls() {
    // Large messages, which are written beside the codec.
    let server = encrypted(
        "server.pem",
        &[
            "--default_request.sampling.width=640",
            "--default_request.sampling.height=352",
            "--streaming.encoder.crf=5",
        ],
    );
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let roots = fastvideo_supervisor_core::tls::file_authorities(&tls_file("ca.pem")).unwrap();
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        let mut client = open(&server.address, config.clone()).await;
        let assigned = client.until_type("gpu_assigned").await;
        let segment = client.segment("a red fox").await;
        assert!(segment.bytes().len() > 100_000, "{}", segment.bytes().len());
        let (session, token) = (&assigned["session_id"], &assigned["resume_token"]);
        let path = format!("/v1/sessions/{}/film/0.mp4", session.as_str().unwrap());
        let bearer = format!("authorization: Bearer {}\r\n", token.as_str().unwrap());
        let (status, film) = fetch(&server.address, &path, &bearer).await;
        assert_eq!(status, 200);
        assert!(film == segment.bytes(), "the film is what the client got");
        client.close(Some(1000)).await;

        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut stream = handshake(&server.address, config).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let origin = format!("origin: https://{}\r\n", server.address);
        for path in ["/", "/healthz", "/status"] {
            let (status, _) = ask(&mut stream, path, &origin).await;
            assert_eq!(status, 200, "{path}");
        }
    }
}

#[tokio::test]
async fn the_client_makes_a_video_over_tls() {
    let server = encrypted("server.pem", &[]);
    let url = format!("wss://{}", server.address);
    let ca = tls_file("ca.pem");
    let args = [
        "client",
        "--url",
        &url,
        "--prompt",
        "a red fox",
        "--ca-file",
    ];
    let (code, _, said) = run(&[&args[..], &[ca.to_str().unwrap()]].concat()).await;
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_so() {
    let server = encrypted("server.pem", &[]);
    let request = "GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";
    // One that sends more than is read.
    let long = format!(
        "POST /v1/drain HTTP/1.1\r\nhost: a\r\n\r\n{}",
        "x".repeat(50_000)
    );
    for request in [request, &long] {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        timeout(PATIENCE, read).await.unwrap().unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{answer}"
        );
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "https_required");
    }
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[tokio::test]
async fn a_router_before_servers_with_tls_shows_a_certificate_of_its_own() {
    let keys = Keys::new(KEY);
    let [cert, key] = shows("server", &tls_file("server.pem"));
    let server = keys.server(&[&cert, &key]);
    let replicas = json!([{"url": format!("https://{}", server.address)}]).to_string();
    let [cert, own_key] = shows("router", &tls_file("self-signed.pem"));
    let (ca, key) = (ca_file("ca.pem"), keys.flag("router.key_file"));
    let args = [
        "router",
        "--replicas",
        &replicas,
        &cert,
        &own_key,
        &ca,
        &key,
    ];
    let router = Server::spawn(command().args([&args, QUICK].concat()));
    let mut client = open(&router.address, trusting("self-signed.pem")).await;
    client.until_type("ltx2_stream_start").await;
    client.segment("a red fox").await;
    client.close(Some(1000)).await;
    let refused = handshake(&router.address, trusting("ca.pem")).await;
    assert!(refused.is_err());
    router.signal(Signal::SIGHUP);
    until("the router has read its certificate again", async || {
        router.log().contains("reloaded").then_some(())
    })
    .await;
}

/// A certificate that is exchanged: a link in a folder, as Kubernetes and certbot have it.
struct Linked {
    folder: tempfile::TempDir,
}

impl Linked {
    fn to(certificate: &str) -> Self {
        let linked = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        linked.exchange(certificate);
        linked
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("certificate")
    }

    fn exchange(&self, certificate: &str) {
        self.exchange_for(&tls_file(certificate));
    }

    fn exchange_for(&self, target: &Path) {
        let next = self.folder.path().join("next");
        std::os::unix::fs::symlink(target, &next).unwrap();
        std::fs::rename(next, self.path()).unwrap();
    }
}

#[tokio::test]
async fn a_certificate_is_exchanged_while_connections_are_open() {
    let linked = Linked::to("server.pem");
    let [cert, key] = shows("server", &linked.path());
    let server = Server::start(&["--gpus=1", &cert, &key]);
    let address = &server.address;
    let mut session = open(address, trusting("ca.pem")).await;
    session.until_type("ltx2_stream_start").await;
    let mut open_ones = Vec::new();
    for _ in 0..200 {
        let mut stream = handshake(address, trusting("ca.pem")).await.unwrap();
        assert_eq!(ask(&mut stream, "/healthz", "").await.0, 200);
        open_ones.push(stream);
    }

    let garbage = linked.folder.path().join("garbage");
    std::fs::write(&garbage, "a red fox\n").unwrap();
    linked.exchange_for(&garbage);
    server.signal(Signal::SIGHUP);
    until("the server keeps its certificate", async || {
        let log = server.log();
        let mut lines = log.lines();
        lines
            .any(|line| {
                line.contains("everything stays as it was")
                    && line.contains("it has no certificate in PEM")
            })
            .then_some(())
    })
    .await;
    assert!(handshake(address, trusting("ca.pem")).await.is_ok());

    linked.exchange("self-signed.pem");
    server.signal(Signal::SIGHUP);
    until("the server shows the other certificate", async || {
        let shown = handshake(address, trusting("self-signed.pem")).await;
        shown.is_ok().then_some(())
    })
    .await;
    assert!(handshake(address, trusting("ca.pem")).await.is_err());
    for stream in &mut open_ones {
        assert_eq!(ask(stream, "/healthz", "").await.0, 200);
    }
    session.segment("a red fox").await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_ends_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    std::fs::write(&text, "a red fox\n").unwrap();
    let (pem, key, ca) = (
        tls_file("server.pem"),
        tls_file("server.key"),
        tls_file("ca.pem"),
    );
    let nowhere = folder.path().join("nowhere");
    for owner in ["server", "router"] {
        for (certificate, key, name, reason) in [
            (&nowhere, &key, "cert_file", "No such file or directory"),
            (&text, &key, "cert_file", "it has no certificate in PEM"),
            (&pem, &nowhere, "key_file", "No such file or directory"),
            (&pem, &pem, "key_file", "it has no private key in PEM"),
            (
                &ca,
                &key,
                "key_file",
                "it is not the key of the certificate",
            ),
        ] {
            let cert_flag = format!("--{owner}.tls.cert_file={}", certificate.display());
            let key_flag = format!("--{owner}.tls.key_file={}", key.display());
            let replicas = r#"[{"url": "http://127.0.0.1:1"}]"#;
            let start: &[&str] = match owner {
                "server" => &[],
                _ => &["router", "--replicas", replicas],
            };
            let args = [start, &["--port=0", &*cert_flag, &*key_flag]].concat();
            let (code, stdout, said) = run(&args).await;
            assert_eq!((code, &*stdout), (Some(2), ""), "{reason}: {said}");
            let wrong = if name == "cert_file" {
                certificate
            } else {
                key
            };
            let named = [format!("`{owner}.tls.{name}`"), wrong.display().to_string()];
            for words in [reason, &named[0], &named[1]] {
                assert!(said.contains(words), "{words} in {said}");
            }
        }
    }
    let cert_flag = format!("--server.tls.cert_file={}", pem.display());
    let key_flag = format!("--server.tls.key_file={}", key.display());
    let ca_flag = format!("--server.tls.client_ca_file={}", ca.display());
    let text_flag = format!("--server.tls.client_ca_file={}", text.display());
    for (args, words) in [
        (&[&*cert_flag][..], "given with `server.tls.key_file`"),
        (&[&*key_flag], "given with `server.tls.cert_file`"),
        (&[&*cert_flag, &key_flag, &ca_flag], "`server.admin_port`"),
        (
            &["--server.admin_port=0", &ca_flag],
            "`server.tls.cert_file` is not given",
        ),
        (
            &["--server.admin_port=0", &cert_flag, &key_flag, &text_flag],
            "it has no certificate in PEM",
        ),
    ] {
        let (code, stdout, said) = run(&[&["--port=0"], args].concat()).await;
        assert_eq!((code, &*stdout), (Some(2), ""), "{said}");
        assert!(said.contains(words), "{words} in {said}");
    }
}

#[tokio::test]
async fn an_expired_certificate_is_shown_and_told_of() {
    let server = encrypted("expired.pem", &[]);
    let refused = handshake(&server.address, trusting("ca.pem")).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("certificate expired"), "{refused}");
    let line = until("the log tells of it", async || {
        let log = server.log();
        let mut lines = log.lines();
        let told = "the certificate has expired: clients may refuse it";
        lines.find(|line| line.contains(told)).map(str::to_owned)
    })
    .await;
    assert!(
        line.contains("WARN") && line.contains("2020-01-02"),
        "{line}"
    );
}

#[tokio::test]
async fn handshakes_that_hang_are_ended_and_keep_nobody_out() {
    let server = encrypted(
        "server.pem",
        &[
            "--server.limits.head_timeout_seconds=4",
            "--server.limits.max_connections=1000",
            "--server.limits.max_connections_per_client=1000",
        ],
    );
    // The beginning of a ClientHello.
    let half = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let mut hanging = Vec::new();
    for place in 0..400 {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        if place > 0 {
            // One that was cut off for another one may be gone already.
            let _ = stream.write_all(&half).await;
        }
        hanging.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(fetch(&server.address, "/healthz", "").await.0, 200);
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    for mut stream in hanging {
        let mut rest = Vec::new();
        // A reset ends a connection, too.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
            .await
            .unwrap();
    }
    assert_eq!(fetch(&server.address, "/healthz", "").await.0, 200);
}

/// Starts a forwarder whose client takes so many bytes in each 10 ms, on the way from this address.
async fn slow_line(address: &str, bytes: usize) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().to_string();
    let address: SocketAddr = address.parse().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        // What is on its way is little, so that it waits at the server.
        socket.set_recv_buffer_size(4096).unwrap();
        let server = socket.connect(address).await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let down = async {
            let mut buffer = vec![0; bytes];
            while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                if to_client.write_all(&buffer[..read]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = down => {}
            _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        }
    });
    (own, tasks)
}

#[tokio::test]
async fn a_client_on_a_slow_line_is_not_taken_for_one_that_is_gone() {
    let server = encrypted(
        "server.pem",
        &[
            "--default_request.sampling.width=640",
            "--default_request.sampling.height=352",
            "--streaming.encoder.crf=5",
            "--streaming.limits.ping_interval_seconds=0.3",
        ],
    );
    let (address, _line) = slow_line(&server.address, 1000).await;
    let mut client = open(&address, trusting("ca.pem")).await;
    client.until_type("ltx2_stream_start").await;
    let begun = Instant::now();
    let segment = client.segment("a red fox").await;
    assert!(segment.bytes().len() > 100_000, "{}", segment.bytes().len());
    // Many times as long as a client may neither say nor take anything.
    assert!(
        begun.elapsed() > Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    client.segment("a red fox").await;
    client.close(Some(1000)).await;
}
