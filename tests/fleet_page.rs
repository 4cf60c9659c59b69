//! What a router serves besides sessions: the built-in page.

use serde_json::{Value, json};

use crate::harness::{Server, until};
use crate::page::browser::Browser;
use crate::router::{KEY, Keys};

/// Two servers with names and a router that knows them, of which both have room.
async fn fleet() -> (Keys, [Server; 2], Server) {
    let keys = Keys::new(KEY);
    let server = |name: &str| keys.server(&["--gpus=1", &format!("--server.name={name}")]);
    let servers = [server("first"), server("second")];
    let router = keys.router(&[&servers[0].address, &servers[1].address], &[]);
    until("both servers have room", async || {
        let status = router.status().await;
        let mut replicas = status["replicas"].as_array().unwrap().iter();
        let has_room = |it: &Value| it["status"] == "healthy" && it["report"]["free"] == 1;
        replicas.all(has_room).then_some(())
    })
    .await;
    (keys, servers, router)
}

#[tokio::test]
async fn a_router_serves_the_page_of_a_server() {
    let keys = Keys::new(KEY);
    let server = keys.server(&[]);
    let router = keys.router(&[&server.address], &[]);
    for path in ["/", "/watch", "/page.css", "/page.js", "/player/feeder.js"] {
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
