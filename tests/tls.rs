//! A router and servers behind TLS, and the proxy that tests put before a server for that.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::cli::run;
use crate::harness::{Server, command, until};
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
