//! The address of operators, where they have one of their own.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::harness::Server;
use crate::tls::{ask, handshake, shows, tls_file, trusting};

/// Asks at an address of a server without TLS.
async fn status(address: &str, method: &'static str, path: &str) -> u16 {
    let url = format!("http://{address}{path}");
    let asked = tokio::task::spawn_blocking(move || {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .build()
            .new_agent();
        let request = ureq::http::Request::builder().method(method).uri(url);
        let answer = agent.run(request.body(()).unwrap()).unwrap();
        answer.status().as_u16()
    });
    asked.await.unwrap()
}

#[tokio::test]
async fn orders_are_taken_at_the_address_of_operators_alone() {
    let mut server = Server::start(&["--gpus=1", "--server.admin_port=0"]);
    let admin = server.admin().await;
    assert!(admin.starts_with("127.0.0.1:") && admin != server.address);
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;
    for (method, path) in [
        ("GET", "/status"),
        ("GET", "/v1/sessions"),
        ("POST", "/v1/prompts/reload"),
        ("POST", "/curated-presets/append"),
        ("POST", "/lora"),
        ("POST", "/v1/workers/0/drain"),
        ("POST", "/v1/drain"),
    ] {
        let refused = status(&server.address, method, path).await;
        assert_eq!(refused, 404, "{path}");
        if path != "/v1/drain" {
            let answer = status(&admin, method, path).await;
            assert_ne!(answer, 404, "{path}");
        }
    }
    for path in [
        "/v1/stream",
        "/v1/watch",
        "/curated-presets",
        "/",
        "/page.js",
        "/operator/",
    ] {
        assert_eq!(status(&admin, "GET", path).await, 404, "{path}");
        let answer = status(&server.address, "GET", path).await;
        assert_ne!(answer, 404, "{path}");
    }
    for path in ["/health", "/healthz", "/readyz", "/openapi.json"] {
        for address in [&admin, &server.address] {
            let answer = status(address, "GET", path).await;
            assert!(answer == 200 || path == "/readyz", "{path}: {answer}");
        }
    }
    assert_eq!(status(&admin, "POST", "/v1/drain").await, 202);
    assert!(server.exit().await.success());
}

#[tokio::test]
async fn operators_show_certificates_where_authorities_for_them_are_given() {
    let [cert, key] = shows("server", &tls_file("server.pem"));
    let ca = format!(
        "--server.tls.client_ca_file={}",
        tls_file("ca.pem").display()
    );
    let server = Server::start(&["--gpus=1", "--server.admin_port=0", &cert, &key, &ca]);
    let admin = server.admin().await;
    let without = trusting("ca.pem");
    let with = |certificate: &str| {
        let roots = fastvideo_supervisor_core::tls::file_authorities(&tls_file("ca.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(tls_file(certificate)).unwrap()],
                PrivateKeyDer::from_pem_file(tls_file("server.key")).unwrap(),
            )
            .unwrap()
    };
    let mut open = handshake(&server.address, without.clone()).await.unwrap();
    assert_eq!(ask(&mut open, "/healthz", "").await.0, 200);
    let mut operator = handshake(&admin, with("operator.pem")).await.unwrap();
    let (code, body) = ask(&mut operator, "/status", "").await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((code, &body["total_gpus"]), (200, &json!(1)));
    for refused in [without, with("self-signed.pem")] {
        // With TLS 1.3 a client learns of it when it reads.
        let Ok(mut stream) = handshake(&admin, refused).await else {
            continue;
        };
        let request = b"GET /status HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n";
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, request).await;
        let mut answer = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
        assert!(read.is_err() && answer.is_empty(), "{answer:?}");
    }
}
