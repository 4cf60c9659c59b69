//! What a router serves besides sessions: the built-in page, and operators' requests for sessions and servers.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error as WsError;
use ureq::http::Request;

use crate::durable::{Redis, folder};
use crate::harness::{Client, Server, command, until};
use crate::http::{SMALL_BODIES, described_paths, described_refusals};
use crate::page::browser::Browser;
use crate::router::{KEY, Keys, with_room};

/// Two servers with names and a router that knows them, of which both have room.
async fn fleet() -> (Keys, [Server; 2], Server) {
    let keys = Keys::new(KEY);
    let server = |name: &str| keys.server(&["--gpus=1", &format!("--server.name={name}")]);
    let servers = [server("first"), server("second")];
    let router = keys.router(&[&servers[0].address, &servers[1].address], &[]);
    with_room(&router, 2, 1).await;
    (keys, servers, router)
}

#[tokio::test]
async fn a_router_serves_the_page_of_a_server() {
    let keys = Keys::new(KEY);
    let server = keys.server(&[]);
    let router = keys.router(&[&server.address], &[]);
    for path in [
        "/",
        "/watch",
        "/page.css",
        "/page.js",
        "/player/feeder.js",
        "/operator/",
        "/operator/page.js",
    ] {
        let [at_server, at_router] = [&server, &router].map(|it| it.request("GET", path, None));
        let (at_server, at_router) = (at_server.await, at_router.await);
        assert_eq!(at_router.status(), 200, "{path}");
        for header in ["content-type", "content-security-policy", "cache-control"] {
            assert_eq!(at_router.headers()[header], at_server.headers()[header]);
        }
        assert!(at_router.body() == at_server.body(), "{path}");
    }
}

#[tokio::test]
async fn the_page_at_a_router_plays_a_segment_and_shows_the_servers() {
    let (_keys, mut servers, router) = fleet().await;
    let page = Browser::open(&router).await;
    page.until_says("#board-title", "Servers").await;
    page.until_says("#board-brief", "2 of 2 servers healthy, nobody waiting")
        .await;
    page.prompt("a red fox").await;
    page.until_state("segment-0", "done").await;
    let of = page.until_says("#f-gpu", "0 of ").await;
    let name = of.as_str().unwrap().trim_start_matches("0 of ").to_owned();
    assert!(["first", "second"].contains(&&*name), "{name}");
    let card = format!("[data-testid=server-{name}]");
    page.until_says(&card, "sessions 1 of 1GPUs ready 1 of 1")
        .await;
    assert_eq!(
        page.get("document.querySelectorAll('#gpus .orders').length")
            .await,
        0
    );
    page.screenshot("fleet").await;
    page.reload().await;
    page.click("#kept-go").await;
    page.until("the session goes on", "fastvideo.phase === 'active'")
        .await;
    page.prompt("a blue hare").await;
    page.until_state("segment-1", "done").await;
    page.play_out().await;
    let other = usize::from(name == "first");
    servers[other].kill().await;
    page.until_says("#board-brief", "1 of 2 servers healthy")
        .await;
    page.until_says("#board", "Does not answer").await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn clients_hear_the_name_of_a_server_that_has_one() {
    let (_keys, _servers, router) = fleet().await;
    let mut client = router.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    let name = assigned["server"].as_str().unwrap();
    assert!(["first", "second"].contains(&name), "{name}");
    let nameless = Server::start(&["--gpus=1"]);
    let mut client = nameless.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    assert!(assigned.get("server").is_none(), "{assigned}");
}

#[tokio::test]
async fn sessions_of_all_servers_are_in_one_list_and_take_orders() {
    let (_keys, mut servers, router) = fleet().await;
    let mut clients = [
        router.active(json!({})).await,
        router.active(json!({})).await,
    ];
    for client in &mut clients {
        client.segment("a red fox").await;
    }
    let (code, list) = router.get("/v1/sessions").await;
    assert_eq!((code, &list["unreachable"]), (200, &json!([])));
    let sessions = list["sessions"].as_array().unwrap();
    let of: Vec<_> = sessions
        .iter()
        .map(|it| it["server"].as_str().unwrap())
        .collect();
    assert_eq!(of, ["first", "second"]);
    for (server, session) in servers.iter().zip(sessions) {
        let own = server.get("/v1/sessions").await.1;
        assert_eq!(own["sessions"][0]["session_id"], session["session_id"]);
        assert_eq!(session["state"], "ACTIVE");
    }

    let path = |n: usize| {
        format!(
            "/v1/sessions/{}",
            sessions[n]["session_id"].as_str().unwrap()
        )
    };
    let state = router.get(&format!("{}/state?inline=true", path(1))).await;
    assert_eq!((state.0, &state.1["kind"]), (200, &json!("ltx2.v1")));
    let (code, refused) = router.post(&format!("{}/move", path(1))).await;
    assert_eq!((code, &refused["error"]["code"]), (409, &json!("no_room")));
    let nowhere = json!({"gpu_id": 7});
    let (code, refused) = router
        .call("POST", &format!("{}/move", path(1)), Some(nowhere))
        .await;
    assert_eq!((code, &refused["error"]["code"]), (400, &json!("no_gpu")));
    let (code, refused) = router.call("DELETE", "/v1/sessions/x", None).await;
    assert_eq!(
        (code, &refused["error"]["code"]),
        (404, &json!("no_session"))
    );

    // The page of another site gives no orders, the router's own does.
    let delete = |n: usize, origin: &str| {
        let request = Request::delete(path(n)).header("origin", origin);
        router.send(request.body(String::new()).unwrap())
    };
    assert_eq!(delete(1, "http://other.example").await.status(), 403);
    let own = format!("http://{}", router.address);
    assert_eq!(delete(1, &own).await.status(), 204);
    servers[1].sessions(0).await;
    servers[0].sessions(1).await;

    servers[1].kill().await;
    let (_, list) = router.get("/v1/sessions").await;
    // It keeps the name that it told on its link, which is gone.
    assert_eq!(list["unreachable"], json!(["second"]));
    assert_eq!(list["sessions"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_session_moves_to_another_server_where_its_own_has_no_other_gpu() {
    let (redis, blobs, keys) = (
        Redis::start().await,
        tempfile::tempdir().unwrap(),
        Keys::new(KEY),
    );
    let store = format!("--store={}", redis.url);
    let blobs = folder("--blobs", blobs.path());
    let servers = [(); 2].map(|()| keys.server(&["--gpus=1", &store, &blobs]));
    let router = keys.router(&[&servers[0].address, &servers[1].address], &[]);
    with_room(&router, 2, 1).await;
    let mut direct = servers[1].active(json!({})).await;
    let mut expected = Vec::new();
    for prompt in ["a red fox", "snow"] {
        expected.push(direct.segment(prompt).await.media);
    }
    direct.close(None).await;
    with_room(&router, 2, 1).await;

    let mut client = router.active(json!({})).await;
    assert!(client.segment("a red fox").await.media == expected[0]);
    let list = router.get("/v1/sessions").await.1;
    let id = list["sessions"][0]["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}/move");
    let (from, to) = match servers[0].get("/health").await.1["sessions"] == 1 {
        true => (&servers[0], &servers[1]),
        false => (&servers[1], &servers[0]),
    };
    // A GPU is one of its own server.
    let (code, _) = router.call("POST", &path, Some(json!({"gpu_id": 0}))).await;
    assert_eq!(code, 202);
    let (code, _) = router.call("POST", &path, None).await;
    assert_eq!(code, 202);
    to.sessions(1).await;
    from.sessions(0).await;
    assert!(client.segment("snow").await.media == expected[1]);
    // There is no place any more.
    let _other = from.active(json!({})).await;
    with_room(&router, 2, 0).await;
    let (code, answer) = router.call("POST", &path, None).await;
    assert_eq!((code, &answer["error"]["code"]), (409, &json!("no_room")));
}

#[tokio::test]
async fn orders_for_one_server_go_to_the_one_with_that_name_or_address() {
    let (_keys, mut servers, router) = fleet().await;
    let mut client = servers[1].active(json!({})).await;
    client.segment("a red fox").await;
    for (server, name) in servers.iter().zip(["first", "second"]) {
        let own = server.gpu(0).await["pid"].clone();
        for name in [name, &server.address] {
            let status = router.get(&format!("/v1/servers/{name}/status")).await.1;
            assert_eq!(status["gpu_status"]["0"]["pid"], own, "{name}");
        }
    }
    // With its query, its body, and whatever its status is.
    let list = router.get("/v1/servers/second/v1/sessions").await.1;
    let id = list["sessions"][0]["session_id"].as_str().unwrap();
    let state = format!("/v1/servers/second/v1/sessions/{id}/state");
    for query in ["inline=true", "inline=false"] {
        let answer = router.get(&format!("{state}?{query}")).await;
        let direct = format!("/v1/sessions/{id}/state?{query}");
        assert!(answer.1["kind"] == "ltx2.v1" && answer == servers[1].get(&direct).await);
    }
    assert_eq!(router.get(&format!("{state}?inline=x")).await.0, 400);
    let relocate = format!("/v1/servers/second/v1/sessions/{id}/move");
    let refused = router.call("POST", &relocate, Some(json!({"gpu_id": 7})));
    let (code, refused) = refused.await;
    assert_eq!((code, &refused["error"]["code"]), (400, &json!("no_gpu")));

    let refused = async |method, path: &str| {
        let (code, body) = router.call(method, path, None).await;
        (code, body["error"]["code"].as_str().unwrap().to_owned())
    };
    for (path, expected) in [
        ("/v1/servers/third/status", (404, "no_server")),
        ("/v1/servers/third", (404, "not_found")),
        ("/v1/servers/second/nowhere", (404, "not_found")),
        ("/v1/servers/second/v1/stream", (404, "not_found")),
        ("/v1/servers/second/v1/router/session", (404, "not_found")),
        ("/v1/servers/second/v1%2Fr%6futer", (404, "not_found")),
        (
            "/v1/servers/second/x/../v1/router",
            (400, "invalid_request"),
        ),
        (
            "/v1/servers/second/x/%2e%2E/v1/router",
            (400, "invalid_request"),
        ),
        ("/v1/servers/second//v1/router", (400, "invalid_request")),
        ("/v1/servers/second/%ff", (400, "invalid_request")),
    ] {
        let (code, name) = refused("GET", path).await;
        assert_eq!((code, &*name), expected, "{path}");
    }
    for path in ["v1/stream", "v1/watch", "v1/router"] {
        let url = format!("ws://{}/v1/servers/second/{path}", router.address);
        match tokio_tungstenite::connect_async(url).await {
            Err(WsError::Http(answer)) => assert_eq!(answer.status(), 404, "{path}"),
            other => panic!("{path}: {other:?}"),
        }
    }

    // The page of another site gives no orders, the router's own does.
    let drain = |origin: &str| {
        let request = Request::post("/v1/servers/second/v1/drain").header("origin", origin);
        router.send(request.body(String::new()).unwrap())
    };
    assert_eq!(drain("http://other.example").await.status(), 403);
    let own = format!("http://{}", router.address);
    assert_eq!(drain(&own).await.status(), 202);
    servers[1].exit().await;
    assert_eq!(servers[0].get("/readyz").await.0, 200);
    let path = format!("/v1/servers/{}/status", servers[1].address);
    let expected = (502, "server_unreachable".to_owned());
    assert_eq!(refused("GET", &path).await, expected);
}

/// Two servers without links, and a router that calls both of them so. Its probes do not notice when one is gone.
async fn unlinked(name: Option<&str>) -> ([Server; 2], Server) {
    let servers = [Server::start(&["--gpus=1"]), Server::start(&["--gpus=1"])];
    let replicas = servers
        .each_ref()
        .map(|server| json!({"name": name, "url": format!("http://{}", server.address)}));
    let replicas = Value::from_iter(replicas).to_string();
    let patient = "--router.health_check.failure_threshold=1000";
    let router = Server::spawn(command().args(["router", "--replicas", &replicas, patient]));
    until("both servers are healthy", async || {
        (router.get("/health").await.1["healthy_replicas"] == 2).then_some(())
    })
    .await;
    (servers, router)
}

#[tokio::test]
async fn orders_for_a_name_that_two_servers_have_go_to_neither() {
    let (servers, router) = unlinked(Some("twin")).await;
    let (code, refused) = router.post("/v1/servers/twin/v1/drain").await;
    assert_eq!(
        (code, &refused["error"]["code"]),
        (409, &json!("ambiguous_name"))
    );
    let message = refused["error"]["message"].as_str().unwrap();
    for server in &servers {
        assert!(message.contains(&server.address), "{message}");
        let path = format!("/v1/servers/{}/healthz", server.address);
        assert_eq!(router.get(&path).await.0, 200);
    }
}

#[tokio::test]
async fn the_openapi_document_of_a_router_describes_its_routes() {
    let keys = Keys::new(KEY);
    let server = keys.server(&["--gpus=1"]);
    let router = keys.router(&[&server.address], &[SMALL_BODIES]);
    let expected = [
        "/health",
        "/healthz",
        "/metrics",
        "/openapi.json",
        "/readyz",
        "/status",
        "/v1/fleet/demand",
        "/v1/log-level",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/reload",
        "/v1/servers/{name}/{path}",
        "/v1/sessions",
        "/v1/sessions/{id}",
        "/v1/sessions/{id}/film",
        "/v1/sessions/{id}/film.mp4",
        "/v1/sessions/{id}/film/{n}.jpg",
        "/v1/sessions/{id}/film/{n}.mp4",
        "/v1/sessions/{id}/film/{n}/{attempt}-{message}.m4s",
        "/v1/sessions/{id}/index.m3u8",
        "/v1/sessions/{id}/move",
        "/v1/sessions/{id}/state",
        "/v1/stream",
        "/v1/tickets",
        "/v1/videos",
        "/v1/videos/edits",
        "/v1/videos/extensions",
        "/v1/videos/sync",
        "/v1/videos/{id}",
        "/v1/videos/{id}/cancel",
        "/v1/videos/{id}/content",
        "/v1/videos/{id}/remix",
        "/v1/watch",
    ];
    assert_eq!(described_paths(&router).await, expected);
    // Until then /readyz answers 503, which is no refusal.
    until("the server is ready", async || {
        (router.get("/readyz").await.0 == 200).then_some(())
    })
    .await;
    let refused = described_refusals(&router).await;
    for expected in [
        (400, "invalid_request"),
        (400, "invalid_body"),
        (403, "other_site"),
        (404, "no_session"),
        (404, "no_server"),
        (405, "method_not_allowed"),
        (413, "invalid_body"),
        (426, "upgrade_required"),
    ] {
        let expected = (expected.0, expected.1.to_owned());
        assert!(refused.contains(&expected), "{expected:?} in {refused:?}");
    }
}

/// Opens a session at a server and makes a segment. Returns the client, and the session's state.
async fn with_state(server: &Server) -> (Client, Value) {
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;
    let list = server.get("/v1/sessions").await.1;
    let id = list["sessions"][0]["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}/state?inline=true");
    (client, server.get(&path).await.1)
}

/// Waits until a router's servers report so many sessions; `None` is one that does not report.
async fn report(router: &Server, expected: [Option<u64>; 2]) {
    until(
        &format!("the servers report {expected:?} sessions"),
        async || {
            let status = router.status().await;
            let replicas = status["replicas"].as_array().unwrap().iter();
            let sessions = replicas.map(|it| it["report"]["sessions"].as_u64());
            (sessions.collect::<Vec<_>>() == expected).then_some(())
        },
    )
    .await;
}

/// Says which of the servers know a session that was brought in.
async fn known(servers: &[Server; 2], hydrated: &Value) -> [bool; 2] {
    let id = hydrated["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}/state");
    let [first, second] = servers.each_ref().map(|server| server.get(&path));
    [first.await.0 == 200, second.await.0 == 200]
}

#[tokio::test]
async fn a_state_that_is_brought_in_at_a_router_goes_to_a_server_with_room() {
    let (_keys, mut servers, router) = fleet().await;
    let (_client, state) = with_state(&servers[0]).await;
    report(&router, [Some(1), Some(0)]).await;
    let bring = async || {
        router
            .call("POST", "/v1/sessions", Some(state.clone()))
            .await
    };
    let (code, hydrated) = bring().await;
    assert_eq!(code, 201);
    assert_eq!(known(&servers, &hydrated).await, [false, true]);
    let resume = json!({"session_id": hydrated["session_id"], "token": hydrated["resume_token"]});
    let mut resumed = router.open(json!({"resume": resume})).await;
    assert_eq!(resumed.until_type("gpu_assigned").await["server"], "second");
    resumed.segment("a blue hare").await;
    resumed.send(json!({"type": "leave"})).await;

    // The page of another site brings nothing in.
    let request = Request::post("/v1/sessions").header("origin", "http://other.example");
    let refused = router.send(request.body(state.to_string()).unwrap()).await;
    assert_eq!(refused.status(), 403);
    let (code, refused) = router.call("POST", "/v1/sessions", Some(json!({}))).await;
    assert_eq!(
        (code, &refused["error"]["code"]),
        (400, &json!("invalid_body"))
    );
    // Where all places are taken, a state is still stored.
    servers[1].kill().await;
    report(&router, [Some(1), None]).await;
    let (code, hydrated) = bring().await;
    assert_eq!(code, 201);
    let id = hydrated["session_id"].as_str().unwrap();
    let path = format!("/v1/servers/first/v1/sessions/{id}/state");
    assert_eq!(router.get(&path).await.0, 200);
    servers[0].kill().await;
    report(&router, [None, None]).await;
    let (code, refused) = bring().await;
    assert_eq!(
        (code, &refused["error"]["code"]),
        (502, &json!("no_healthy_replica"))
    );
}

#[tokio::test]
async fn a_state_that_one_server_does_not_take_goes_to_the_next_one() {
    let keys = Keys::new(KEY);
    let other = keys.server(&["--default_request.sampling.width=192"]);
    let mut servers = [other, keys.server(&[])];
    let router = keys.router(&[&servers[0].address, &servers[1].address], &[]);
    with_room(&router, 2, 2).await;
    let (_client, state) = with_state(&servers[1]).await;
    report(&router, [Some(0), Some(1)]).await;
    let bring = async || {
        router
            .call("POST", "/v1/sessions", Some(state.clone()))
            .await
    };
    let direct = servers[0].call("POST", "/v1/sessions", Some(state.clone()));
    assert_eq!(direct.await.0, 422);
    let (code, hydrated) = bring().await;
    assert_eq!(code, 201);
    assert_eq!(known(&servers, &hydrated).await, [false, true]);
    servers[1].kill().await;
    report(&router, [Some(0), None]).await;
    let (code, refused) = bring().await;
    assert_eq!(
        (code, &refused["error"]["code"]),
        (422, &json!("state_incompatible"))
    );
}

#[tokio::test]
async fn a_state_goes_to_the_next_server_when_one_is_gone() {
    let (mut servers, router) = unlinked(None).await;
    let (_client, state) = with_state(&servers[1]).await;
    servers[0].kill().await;
    let (code, hydrated) = router.call("POST", "/v1/sessions", Some(state)).await;
    assert_eq!(code, 201);
    let id = hydrated["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}/state");
    assert_eq!(servers[1].get(&path).await.0, 200);
}
