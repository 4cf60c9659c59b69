//! `probe`, as the health check of a container runs it.

use serde_json::json;
use tokio::net::TcpListener;

use crate::cli::run;
use crate::harness::{Server, command};
use crate::tls::{shows, tls_file};

#[tokio::test]
async fn a_server_is_alive_before_it_is_ready() {
    let boot = "--generator.synthetic.faults=stop@load";
    let server = Server::start(&["--gpus=1", boot]);
    let url = format!("http://{}", server.address);
    assert_eq!(
        run(&["probe", &url]).await,
        (Some(0), String::new(), String::new())
    );
    let (code, _, said) = run(&["probe", "--ready", &url]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("/readyz answers 503: warming"), "{said}");

    let ready = Server::start(&["--gpus=1"]);
    ready.ready(1).await;
    let url = format!("http://{}", ready.address);
    assert_eq!(run(&["probe", "--ready", &url]).await.0, Some(0));

    let replicas = json!([{"url": url}]).to_string();
    let router = Server::spawn(command().args(["router", "--replicas", &replicas]));
    crate::router::states_are(&router, &["healthy"]).await;
    let url = format!("http://{}", router.address);
    for question in [&["probe", &*url][..], &["probe", "--ready", &url]] {
        assert_eq!(run(question).await.0, Some(0));
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_in_time_is_not_alive() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let (code, _, said) = run(&["probe", "--timeout=0.2", &url]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("does not answer within 0.2 s"), "{said}");
    drop(silent);
    let (code, _, said) = run(&["probe", &url]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("does not answer: "), "{said}");
}

#[tokio::test]
async fn a_server_is_asked_over_tls() {
    let [cert, key] = shows("server", &tls_file("server.pem"));
    let server = Server::start(&["--gpus=1", &cert, &key]);
    let url = format!("https://{}", server.address);
    for (ca, expected, words) in [
        ("ca.pem", 0, ""),
        (
            "self-signed.pem",
            1,
            "not from a trusted authority; --ca-file names",
        ),
    ] {
        let ca = tls_file(ca).display().to_string();
        let (code, _, said) = run(&["probe", "--ca-file", &ca, &url]).await;
        assert_eq!(code, Some(expected), "{said}");
        assert!(said.contains(words), "{said}");
    }
    let (code, _, said) = run(&["probe", &url.replace("https", "http")]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("answers 400"), "{said}");
}

#[tokio::test]
async fn wrong_arguments_are_no_answer() {
    for (args, words) in [
        (&["probe"][..], "<URL>"),
        (&["probe", "--timeout=0", "http://a"], "above 0"),
        (
            &["--gpus=1", "probe", "http://a"],
            "has no effect on 'probe'",
        ),
    ] {
        let (code, _, said) = run(args).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(words), "{words} in {said}");
    }
    let (code, said, _) = run(&["probe", "--help"]).await;
    assert_eq!(code, Some(0));
    assert!(
        said.contains("HEALTHCHECK") && said.contains("Exit codes: 0 yes, 1 no"),
        "{said}"
    );
    let (code, _, said) = run(&["probe", "127.0.0.1:8000"]).await;
    assert_eq!(code, Some(1));
    assert!(
        said.contains("must be an http:// or https:// address"),
        "{said}"
    );
}
