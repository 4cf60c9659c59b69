//! One address before many servers: sessions go through a router as if it were not there, and to those that are well.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error as WsError;

use crate::cli::run;
use crate::durable::{Redis, folder};
use crate::harness::{Client, Server, command, until};
use crate::resume;

/// Probes that notice soon.
pub(crate) const QUICK: &[&str] = &[
    "--router.health_check.interval_seconds=0.05",
    "--router.health_check.timeout_seconds=2",
    "--router.health_check.failure_threshold=2",
];

/// A server with one worker.
fn server() -> Server {
    Server::start(&["--gpus=1"])
}

/// A router before these servers, of which the first one is primary.
pub(crate) fn router(servers: &[&str]) -> Server {
    router_with(servers, &[])
}

fn router_with(servers: &[&str], args: &[&str]) -> Server {
    let replicas = servers.iter().enumerate().map(|(n, address)| {
        json!({"url": format!("http://{address}"), "primary": n == 0, "name": format!("s{n}")})
    });
    let replicas = Value::Array(replicas.collect()).to_string();
    let args = [&["router", "--replicas", &replicas], QUICK, args].concat();
    Server::spawn(command().args(args))
}

/// The states of a router's replicas.
async fn states(router: &Server) -> Vec<String> {
    let status = router.status().await;
    let replicas = status["replicas"].as_array().unwrap().iter();
    let state = |replica: &Value| replica["status"].as_str().unwrap().to_owned();
    replicas.map(state).collect()
}

pub(crate) async fn states_are(router: &Server, expected: &[&str]) {
    until(&format!("the replicas are {expected:?}"), async || {
        (states(router).await == expected).then_some(())
    })
    .await;
}

/// How many sessions go to each of a router's replicas.
async fn sessions(router: &Server) -> Vec<u64> {
    let status = router.status().await;
    let replicas = status["replicas"].as_array().unwrap().iter();
    replicas
        .map(|replica| replica["sessions"].as_u64().unwrap())
        .collect()
}

#[tokio::test]
async fn a_session_goes_through_a_router_as_if_it_were_not_there() {
    let server = server();
    let router = router(&[&server.address]);
    let mut direct = server.active(json!({})).await;
    let mut expected = Vec::new();
    for prompt in ["a red fox", "a blue hare"] {
        expected.push(direct.segment(prompt).await);
    }
    direct.send(json!({"type": "leave"})).await;
    assert_eq!(direct.closed().await, Some(1000));

    let mut client = router.active(json!({})).await;
    for (prompt, expected) in ["a red fox", "a blue hare"].iter().zip(&expected) {
        let segment = client.segment(prompt).await;
        assert!(segment.media == expected.media, "other messages");
        let types = |segment: &crate::harness::Segment| {
            let texts = segment.texts.iter();
            texts.map(|text| text["type"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(types(&segment), types(expected));
    }
    assert_eq!(sessions(&router).await, [1]);
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;
    assert_eq!(client.closed().await, Some(1000));
    let mut refused = router
        .open(json!({"resume": {"session_id": "x", "token": "y"}}))
        .await;
    assert_eq!(refused.error().await["code"], "invalid_message");
    assert_eq!(refused.closed().await, Some(1003));
    let mut garbage = router.connect().await;
    garbage.send_text("{").await;
    assert_eq!(garbage.error().await["code"], "invalid_message");
}

#[tokio::test]
async fn the_primary_comes_first_and_the_others_when_it_is_gone() {
    let (mut primary, other) = (server(), server());
    let router = router(&[&primary.address, &other.address]);
    let mut client = router.active(json!({})).await;
    client.segment("a red fox").await;
    states_are(&router, &["healthy", "healthy"]).await;
    assert_eq!(sessions(&router).await, [1, 0]);
    primary.kill().await;
    let error = client.error().await;
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("worker_failed"), &json!(true))
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("router bridge failed: "), "{message}");
    assert_eq!(client.closed().await, Some(1011));
    // Also before any probe has noticed.
    let mut next = router.active(json!({})).await;
    next.segment("a blue hare").await;
    assert_eq!(sessions(&router).await, [0, 1]);
    states_are(&router, &["unhealthy", "healthy"]).await;
    let replica = router.status().await["replicas"][0].clone();
    assert!(replica["consecutive_failures"].as_u64().unwrap() >= 2);
    assert!(replica["last_ok_at"].as_f64().unwrap() > 1e9);
    // One that comes back is preferred again.
    let primary = Server::start_at(&primary.address, &["--gpus=1"]);
    states_are(&router, &["healthy", "healthy"]).await;
    let mut back = router.active(json!({})).await;
    back.segment("a wood").await;
    assert_eq!(sessions(&router).await, [1, 1]);
    primary.sessions(1).await;
}

#[tokio::test]
async fn nobody_there_is_told_and_may_change() {
    let mut server = server();
    let router = router(&[&server.address]);
    states_are(&router, &["healthy"]).await;
    assert_eq!(router.get("/readyz").await.0, 200);
    server.kill().await;
    states_are(&router, &["unhealthy"]).await;
    assert_eq!(router.get("/readyz").await.0, 503);
    let mut client = router.connect().await;
    let expected = json!({
        "type": "error", "code": "gpu_unavailable", "message": "router: no healthy replica available",
        "retryable": true,
    });
    let error = client.error().await;
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(error[field], *value, "{error}");
    }
    assert_eq!(client.closed().await, Some(1013));
    let _server = Server::start_at(&server.address, &["--gpus=1"]);
    states_are(&router, &["healthy"]).await;
    router.active(json!({})).await.segment("a red fox").await;
}

#[tokio::test]
async fn a_lost_client_is_lost_and_one_that_closes_has_closed() {
    let server = Server::start(&["--gpus=1", "--streaming.hold_seconds=3600"]);
    let router = router(&[&server.address]);
    let (mut client, ticket) = resume::open(&router, json!({})).await;
    client.segment("a red fox").await;
    // Its GPU is kept for a client that comes back, and not given to who waits.
    let mut waiting = router.open(json!({})).await;
    waiting.expect("queue_status").await;
    drop(client);
    server.sessions(1).await;
    let (mut client, _) = resume::open(&router, ticket).await;
    client.segment("a blue hare").await;
    client.close(Some(1000)).await;
    waiting.until_type("ltx2_stream_start").await;
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_its_own_connection_only() {
    let server = server();
    let router = router_with(
        &[&server.address],
        &["--streaming.limits.max_message_bytes=65536"],
    );
    let mut bystander = router.active(json!({})).await;
    let mut client = router.connect().await;
    client.send_text(&"x".repeat(70_000)).await;
    assert_eq!(client.closed().await, Some(1009));
    bystander.segment("a red fox").await;
}

#[tokio::test]
async fn a_router_that_is_asked_to_stop_lets_its_clients_finish() {
    let server = Server::start(&["--gpus=2"]);
    let mut router = router(&[&server.address]);
    let mut client = router.active(json!({})).await;
    router.signal(Signal::SIGTERM);
    until("the router drains", async || {
        (router.get("/readyz").await.0 == 503).then_some(())
    })
    .await;
    client.segment("a red fox").await;
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;
    drop(client);
    assert_eq!(router.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_a_router_at_once() {
    let server = server();
    let mut router = router(&[&server.address]);
    let mut client = router.active(json!({})).await;
    router.signal(Signal::SIGTERM);
    until("the router drains", async || {
        router.log().contains("draining").then_some(())
    })
    .await;
    router.signal(Signal::SIGTERM);
    assert_eq!(client.closed().await, Some(1001));
    assert_eq!(router.exit().await.code(), Some(0));
}

/// Runs the router's check with a file: the exit code, and what is on stdout and stderr.
async fn check(file: &str) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("router.yaml");
    std::fs::write(&path, file).unwrap();
    run(&["router", "check", "--config", path.to_str().unwrap()]).await
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_refused_with_its_key_and_line() {
    let one = "router:\n  replicas:\n    - url: http://a:8000\n";
    for (file, expected) in [
        (
            "router:\n  port: 1\n",
            "`router.replicas` must be at least one replica",
        ),
        ("router:\n  replicas: []\n", "router.yaml:2"),
        (
            "router:\n  replicas:\n    - {url: http://a, primary: true}\n    - {url: http://b, primary: true}\n",
            "`router.replicas[1].primary` must be true for one replica only",
        ),
        (
            "router:\n  replicas:\n    - {url: ftp://a}\n",
            "`router.replicas[0].url` must be an http:// or https:// address",
        ),
        (
            "router:\n  replicas:\n    - {url: http://a, wieght: 2}\n",
            "unknown field `wieght`",
        ),
        (
            "router:\n  replicas:\n    - {url: http://a, weight: 0}\n",
            "`router.replicas[0].weight` must be a number above 0, given 0",
        ),
        (
            "router:\n  replicas:\n    - {url: http://a}\n    - {url: http://a/}\n",
            "`router.replicas[1].url` must be another one",
        ),
        (
            &format!("{one}  health_check:\n    interval_seconds: 0\n"),
            "`router.health_check.interval_seconds` must be",
        ),
        (
            &format!("{one}  failure_threshold: 0\n"),
            "`router.health_check.failure_threshold` must be",
        ),
        (
            &format!("{one}  health_check_timeout_seconds: -1\n"),
            "router.yaml:4",
        ),
        (
            &format!("{one}  failure_threshold: 2\n  health_check:\n    failure_threshold: 3\n"),
            "`router.health_check.failure_threshold` is another name of `router.failure_threshold`",
        ),
        (
            &format!("{one}  health_check:\n    path: health\n"),
            "`router.health_check.path` must be a path that begins with `/`",
        ),
        (
            &format!("{one}  replica: 1\n"),
            "unknown key `router.replica`",
        ),
        (
            "streaming:\n  pool:\n    gpus: 8\n",
            "unknown key `streaming.pool`",
        ),
    ] {
        let (code, _, said) = check(file).await;
        assert_eq!(code, Some(2), "{file}{said}");
        assert!(said.contains(expected), "{file}{said}");
    }
}

#[tokio::test]
async fn both_forms_of_a_configuration_mean_the_same() {
    let server = server();
    let replicas = format!(
        "router:\n  replicas:\n    - url: http://{}\n",
        server.address
    );
    let nested = "  health_check:\n    path: /healthz\n    interval_seconds: 1\n    timeout_seconds: 0.5\n    \
                  failure_threshold: 4\n    recovery_threshold: 5\n";
    let flat = "  health_check_path: /healthz\n  health_check_interval_seconds: 1\n  \
                health_check_timeout_seconds: 0.5\n  failure_threshold: 4\n  recovery_threshold: 5\n";
    let settings = async |form: &str| {
        let (code, said, _) = check(&format!("{replicas}{form}")).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("# 1 of 1 servers answer\n"), "{said}");
        let keys = said.lines().filter(|line| !line.starts_with('#'));
        let value = |line: &str| line.split('#').next().unwrap().trim_end().to_owned();
        keys.map(value).collect::<Vec<_>>()
    };
    let nested = settings(nested).await;
    assert_eq!(nested, settings(flat).await);
    assert!(
        nested.contains(&"    path: \"/healthz\"".to_owned()),
        "{nested:?}"
    );
}

#[tokio::test]
async fn a_check_fails_when_no_server_answers() {
    let (code, said, _) = check("router:\n  replicas:\n    - url: http://127.0.0.1:1\n").await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("# failed: http://127.0.0.1:1/: "), "{said}");
}

#[tokio::test]
async fn a_check_tells_whether_a_server_knows_the_routers_key() {
    let keys = Keys::new(KEY);
    let server = keys.server(&[]);
    let other = Keys::new("another-key-of-a-router-that-is-long-enough");
    for (keys, says) in [
        (&keys, "it answers, and links with this router"),
        (
            &other,
            "it answers, but its sessions do not move: it has no link for this router's key",
        ),
    ] {
        let replicas = json!([{"url": format!("http://{}", server.address)}]).to_string();
        let key = keys.flag("router.key_file");
        let (code, said, _) = run(&["router", "check", "--replicas", &replicas, &key]).await;
        assert_eq!(code, Some(0), "{said}");
        let expected = format!("# ok: http://{}/: {says}\n", server.address);
        assert!(said.contains(&expected), "{said}");
    }
}

#[tokio::test]
async fn the_example_is_a_configuration() {
    let example = include_str!("../deploy/router.yaml");
    let (_, said, errors) = check(example).await;
    assert_eq!(errors, "");
    assert!(
        said.contains("# failed: http://streamer-a:8000/: "),
        "{said}"
    );
}

/// Files with the key of a router, for it and for its servers.
pub(crate) struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    pub(crate) fn new(key: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), format!("{key}\n")).unwrap();
        Self { folder }
    }

    /// The flag with a value of this file.
    pub(crate) fn flag(&self, name: &str) -> String {
        format!("--{name}={}", self.folder.path().join("key").display())
    }

    pub(crate) fn server(&self, args: &[&str]) -> Server {
        let keys = self.flag("server.router_keys_file");
        Server::start(&[&["--gpus=2", keys.as_str()], args].concat())
    }

    /// A router before these servers, of which none is primary.
    pub(crate) fn router(&self, servers: &[&str], args: &[&str]) -> Server {
        let url = |address: &&str| json!({"url": format!("http://{address}")});
        let replicas = Value::Array(servers.iter().map(url).collect()).to_string();
        let key = self.flag("router.key_file");
        let own = ["router", "--replicas", &replicas, &key];
        Server::spawn(command().args([&own, QUICK, args].concat()))
    }
}

pub(crate) const KEY: &str = "a-key-of-a-router-that-is-long-enough";

/// Waits until a router sees so many healthy servers with so many free places each.
pub(crate) async fn with_room(router: &Server, servers: usize, free: u64) {
    until(&format!("{servers} servers have {free} free"), async || {
        let status = router.status().await;
        let replicas = status["replicas"].as_array().unwrap().iter();
        let has_room = |it: &&Value| it["status"] == "healthy" && it["report"]["free"] == free;
        (replicas.filter(has_room).count() == servers).then_some(())
    })
    .await;
}

/// What the servers of a router report, when it fits.
async fn reports(router: &Server, what: &str, fits: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    until(what, async || {
        let status = router.status().await;
        let replicas = status["replicas"].as_array().unwrap().iter();
        let reports: Vec<Value> = replicas.map(|replica| replica["report"].clone()).collect();
        fits(&reports).then_some(reports)
    })
    .await
}

#[tokio::test]
async fn servers_tell_a_router_how_they_are_and_get_what_they_have_room_for() {
    let keys = Keys::new(KEY);
    let servers = [keys.server(&["--server.name=first"]), keys.server(&[])];
    let addresses = [&*servers[0].address, &*servers[1].address];
    let router = keys.router(&addresses, &[]);
    let are_ready = |reports: &[Value]| reports.iter().all(|report| report["free"] == 2);
    let before = reports(&router, "both servers report two places", are_ready).await;
    assert_eq!(before[0]["name"], "first");
    assert_eq!(before[0]["places"], 2);
    assert_eq!(
        before[0]["gpus"],
        json!({"total": 2, "ready": 2, "starting": 0})
    );
    assert_ne!(before[0]["server_id"], before[1]["server_id"]);

    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(router.active(json!({})).await);
    }
    assert_eq!(sessions(&router).await, [2, 2]);
    let are_full = |reports: &[Value]| reports.iter().all(|report| report["free"] == 0);
    reports(&router, "both servers report no room", are_full).await;
    // The next ones wait at the router, in one line for all servers.
    let mut waiting = Vec::new();
    for place in 0..2 {
        let mut client = router.open(json!({})).await;
        let told = client.expect("queue_status").await;
        assert_eq!(
            (&told["position"], &told["queue_depth"]),
            (&json!(place), &json!(place + 1))
        );
        waiting.push(client);
    }
    assert_eq!(router.status().await["waiting"], 2);
    for client in &mut clients {
        client.segment("a red fox").await;
    }
    clients[1].send(json!({"type": "leave"})).await;
    waiting[0].until_type("gpu_assigned").await;
    let told = waiting[1].expect("queue_status").await;
    assert_eq!(
        (&told["position"], &told["queue_depth"]),
        (&json!(0), &json!(1))
    );
    // A client that waits may say what it wants, and may go.
    waiting[1].prompt("a blue hare").await;
    waiting[1].send(json!({"type": "leave"})).await;
    waiting[1].until_type("ltx2_stream_complete").await;
    assert_eq!(waiting[1].closed().await, Some(1000));
    until("nobody waits", async || {
        (router.status().await["waiting"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn only_who_has_a_key_is_told_how_a_server_is() {
    let keys = Keys::new(KEY);
    let server = keys.server(&[]);
    let link = async |server: &Server, key: Option<&str>| {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest;
        let url = format!("ws://{}/v1/router", server.address);
        let mut request = url.into_client_request().unwrap();
        if let Some(key) = key {
            let bearer = format!("Bearer {key}").parse().unwrap();
            request.headers_mut().insert("authorization", bearer);
        }
        match tokio_tungstenite::connect_async(request).await {
            Ok((socket, _)) => Ok(Client { socket }),
            Err(WsError::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    };
    let without = Server::start(&["--gpus=1"]);
    assert_eq!(link(&without, Some(KEY)).await.err(), Some(404));
    for wrong in [None, Some(""), Some("another-key-that-is-long-enough-too")] {
        assert_eq!(link(&server, wrong).await.err(), Some(404), "{wrong:?}");
    }
    let mut linked = link(&server, Some(KEY)).await.ok().unwrap();
    let hello = json!({"hello": {"fleet": 1, "router_id": "r", "name": null, "zone": null}});
    linked.send_text(&hello.to_string()).await;
    let crate::harness::Heard::Text(report) = linked.next().await else {
        panic!("a report");
    };
    assert_eq!(report["report"]["fleet"], json!([1]));
    // Who says no hello is left.
    let mut silent = link(&server, Some(KEY)).await.ok().unwrap();
    silent.send_text("{}").await;
    silent.closed().await;
    // Keys are read again.
    let other = "another-key-that-is-long-enough-too";
    std::fs::write(keys.folder.path().join("key"), other).unwrap();
    server.signal(Signal::SIGHUP);
    until("the new key is known", async || {
        link(&server, Some(other)).await.ok().map(drop)
    })
    .await;
    assert_eq!(link(&server, Some(KEY)).await.err(), Some(404));
}

#[tokio::test]
async fn a_server_that_stands_still_gets_no_session_and_then_some_again() {
    let keys = Keys::new(KEY);
    let servers = [keys.server(&[]), keys.server(&[])];
    let addresses = [&*servers[0].address, &*servers[1].address];
    // Its probes alone would not tell so soon.
    let router = keys.router(
        &addresses,
        &[
            "--router.dead_after_seconds=1.5",
            "--router.health_check.failure_threshold=1000",
        ],
    );
    let are_ready = |reports: &[Value]| reports.iter().all(|report| report["free"] == 2);
    reports(&router, "both servers report", are_ready).await;
    servers[0].signal(Signal::SIGSTOP);
    reports(&router, "the first server is silent", |reports| {
        reports[0].is_null() && !reports[1].is_null()
    })
    .await;
    for _ in 0..2 {
        let mut client = router.active(json!({})).await;
        client.segment("a red fox").await;
        client.send(json!({"type": "leave"})).await;
        client.closed().await;
    }
    assert_eq!(sessions(&router).await[0], 0);
    servers[0].signal(Signal::SIGCONT);
    reports(&router, "it reports again", are_ready).await;
    let mut client = router.active(json!({})).await;
    client.segment("a blue hare").await;
    assert_eq!(sessions(&router).await, [1, 0]);
}

#[tokio::test]
async fn a_router_may_stand_before_another_one() {
    let keys = Keys::new(KEY);
    let mut server = keys.server(&[]);
    let expected = server.active(json!({})).await.segment("a red fox").await;
    let inner = keys.router(&[&server.address], &[]);
    with_room(&inner, 1, 2).await;
    let outer = keys.router(&[&inner.address], &[]);
    let mut client = outer.active(json!({})).await;
    assert!(client.segment("a red fox").await.media == expected.media);
    // What was in the server's memory is lost with it.
    server.kill().await;
    assert_eq!(client.error().await["code"], "worker_failed");
    assert_eq!(client.closed().await, Some(1011));
    states_are(&inner, &["unhealthy"]).await;
    states_are(&outer, &["healthy"]).await;
    let mut late = outer.open(json!({})).await;
    let error = late.error().await;
    assert_eq!(error["message"], "router: no healthy replica available");
    assert_eq!(late.closed().await, Some(1013));
}

#[tokio::test]
async fn keys_that_are_none_end_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, "short\n").unwrap();
    let file = format!("--server.router_keys_file={}", path.display());
    let (code, _, said) = run(&["--gpus=1", &file]).await;
    assert_eq!(code, Some(2));
    let expected = "keys:1: a key has at least 32 printable characters";
    assert!(said.contains(expected), "{said}");
    std::fs::write(&path, "\n").unwrap();
    let file = format!("--router.key_file={}", path.display());
    let (code, _, said) = run(&["router", "--replicas", r#"[{"url": "http://a"}]"#, &file]).await;
    assert_eq!(code, Some(2));
    assert!(
        said.contains("`router.key_file` must be a file whose first line"),
        "{said}"
    );
}

#[tokio::test]
async fn a_router_warns_of_a_key_that_goes_over_the_network_in_the_clear() {
    let keys = Keys::new(KEY);
    let key = keys.flag("router.key_file");
    let replicas = |urls: &[&str]| {
        let urls = urls.iter().map(|url| json!({"url": url}));
        Value::Array(urls.collect()).to_string()
    };
    let warning = "the key of `router.key_file` goes over the network in the clear, to ";
    // Nobody listens there.
    let own = ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"];
    let encrypted = "https://203.0.113.1:1";
    let plain = ["http://203.0.113.1:1", "http://203.0.113.2:1"];
    let quick = "--router.health_check.timeout_seconds=0.01";
    for (servers, key, expected) in [
        ([&own[..], &[encrypted]].concat(), Some(&key), None),
        ([&own[..], &plain[..1]].concat(), None, None),
        (
            [&own[..], &plain[..1]].concat(),
            Some(&key),
            Some("http://203.0.113.1:1/: "),
        ),
        (
            plain.to_vec(),
            Some(&key),
            Some("http://203.0.113.1:1/ and 1 other: "),
        ),
    ] {
        let replicas = replicas(&servers);
        let args = ["--replicas", &replicas, quick].into_iter();
        let args = Vec::from_iter(args.chain(key.map(String::as_str)));
        let (code, _, said) = run(&[&["router", "check"], &args[..]].concat()).await;
        assert_eq!(code, Some(1), "{said}");
        let mut router = Server::spawn(command().arg("router").args(&args));
        router.signal(Signal::SIGTERM);
        router.exit().await;
        // The last line.
        let log = until("the router has stopped", async || {
            Some(router.log()).filter(|log| log.contains("stopped"))
        });
        for said in [said, log.await] {
            let told = said.split_once(warning).map(|(_, told)| told);
            match (told, expected) {
                (Some(told), Some(expected)) => assert!(told.starts_with(expected), "{said}"),
                (told, expected) => assert_eq!(told, expected, "{said}"),
            }
        }
    }
}

#[tokio::test]
async fn a_film_is_had_through_a_router_from_the_server_that_has_it() {
    let servers = [server(), server()];
    let router = router(&[&servers[0].address, &servers[1].address]);
    states_are(&router, &["healthy", "healthy"]).await;
    // At the server that is not asked first.
    let mut client = servers[1].open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let segment = client.segment("a red fox").await;
    let id = assigned["session_id"].as_str().unwrap();
    let token = assigned["watch_token"].as_str().unwrap();
    let ask = async |server: &Server, what: &str, range: Option<&str>| {
        let url = format!("http://{}/v1/sessions/{id}/{what}", server.address);
        let mut request = ureq::get(&url).header("authorization", format!("Bearer {token}"));
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let request = request.config().http_status_as_error(false).build();
        tokio::task::spawn_blocking(move || {
            let mut answer = request.call().unwrap();
            let headers = ["etag", "content-type", "content-range", "cache-control"];
            let headers = headers.map(|name| answer.headers().get(name).cloned());
            let body = answer.body_mut().read_to_vec().unwrap();
            (answer.status().as_u16(), headers, body)
        })
        .await
        .unwrap()
    };
    for what in [
        "film",
        "film/0.mp4",
        "film/0.jpg",
        "film/0/1-1.m4s",
        "film.mp4",
    ] {
        let direct = ask(&servers[1], what, None).await;
        assert_eq!(direct.0, 200, "{what}");
        assert!(ask(&router, what, None).await == direct, "{what}");
    }
    let part = ask(&router, "film/0.mp4", Some("bytes=4-7")).await;
    assert_eq!((part.0, &part.2[..]), (206, &segment.bytes()[4..8]));
    let list = ask(&router, "index.m3u8?_HLS_msn=0", None).await;
    assert!(String::from_utf8(list.2).unwrap().contains("#EXT-X-PART:"));
    let unknown = ask(&router, "film/9.mp4", None).await;
    assert_eq!(unknown.0, 404);
    let body: Value = serde_json::from_slice(&unknown.2).unwrap();
    assert_eq!(body["error"]["code"], "no_segment");
    // What a client asks for while no server is there.
    let mut servers = servers;
    for server in &mut servers {
        server.kill().await;
    }
    states_are(&router, &["unhealthy", "unhealthy"]).await;
    assert_eq!(ask(&router, "film", None).await.0, 502);
}

#[tokio::test]
async fn spectators_watch_through_a_router() {
    let servers = [server(), server()];
    let router = router(&[&servers[0].address, &servers[1].address]);
    states_are(&router, &["healthy", "healthy"]).await;
    let mut client = servers[1].open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let id = assigned["session_id"].as_str().unwrap();
    let token = assigned["watch_token"].as_str().unwrap();
    let watch = async |token: &str| {
        let url = format!(
            "ws://{}/v1/watch?session={id}&token={token}",
            router.address
        );
        tokio_tungstenite::connect_async(url).await
    };
    let (socket, _) = watch(token).await.unwrap();
    let mut spectator = Client { socket };
    spectator.expect("watch_start").await;
    let made = client.segment("a red fox").await;
    let seen = spectator.collect_until("film_segment").await;
    assert!(seen.bytes() == made.bytes());
    client.send(json!({"type": "leave"})).await;
    let refused = watch("another").await.unwrap_err();
    let WsError::Http(answer) = refused else {
        panic!("{refused}");
    };
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn the_client_goes_on_at_another_server_when_its_own_one_is_killed() {
    let (redis, blobs) = (Redis::start().await, tempfile::tempdir().unwrap());
    let store = [
        format!("--store={}", redis.url),
        folder("--blobs", blobs.path()),
        "--streaming.store.lease_seconds=1".to_owned(),
        "--generator.synthetic.frame_ms=60".to_owned(),
        "--gpus=1".to_owned(),
    ];
    let store: Vec<&str> = store.iter().map(String::as_str).collect();
    let (mut first, second) = (Server::start(&store), Server::start(&store));
    let router = router(&[&first.address, &second.address]);
    states_are(&router, &["healthy", "healthy"]).await;
    let films = tempfile::tempdir().unwrap();
    let film = async |address: &str, name: &str| {
        let output = films.path().join(name);
        let url = format!("ws://{address}");
        let mut args = vec!["client", "--url", &url, "--retries", "50", "--output"];
        args.push(output.to_str().unwrap());
        for prompt in ["a red fox", "a blue hare", "a wood", "a lake"] {
            args.extend(["--prompt", prompt]);
        }
        let (code, _, said) = run(&args).await;
        assert_eq!(code, Some(0), "{said}");
        (std::fs::read(output).unwrap(), said)
    };
    let (expected, _) = film(&second.address, "undisturbed.mp4").await;
    let killed = async {
        until("the second segment is under way", async || {
            let list = first.get("/v1/sessions").await.1;
            let done = list["sessions"][0]["segment_idx"].as_u64();
            done.is_some_and(|done| done >= 1).then_some(())
        })
        .await;
        first.kill().await;
    };
    let ((film, said), ()) = tokio::join!(film(&router.address, "disturbed.mp4"), killed);
    assert!(said.contains("router bridge failed: "), "{said}");
    assert!(film == expected, "other bytes");
}
