//! Video jobs behind a router: those of all servers are at one address, whether the servers share a store or not.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::durable::folder;
use crate::harness::{Server, until};
use crate::moves::Fleet;
use crate::router::{KEY, Keys};
use crate::videos::{Answer, completed, create, ended, fetch, retrieve, video_until};

/// Jobs begin at once, and take no time.
const QUICK: &[&str] = &["--gpus=1", "--streaming.warmup.enabled=false"];

/// No job ever begins.
const STILL: &[&str] = &["--gpus=1", "--generator.synthetic.load_ms=3600000"];

/// Two servers, each with a store of its own, and a router.
struct Pair {
    keys: Keys,
    servers: [Server; 2],
    router: Server,
}

impl Pair {
    /// Starts servers with these arguments, and one each of their own.
    async fn start(args: &[&str], own: [&str; 2]) -> Self {
        let keys = Keys::new(KEY);
        let servers = own.map(|own| keys.server(&[args, &[own]].concat()));
        let router = keys.router(&[&servers[0].address, &servers[1].address], &[]);
        let pair = Self {
            keys,
            servers,
            router,
        };
        pair.linked(2).await;
        pair
    }

    /// Starts servers that keep their videos in a folder each.
    async fn kept_in(folders: &[TempDir; 2], args: &[&str]) -> Self {
        let stores = [0, 1].map(|n| folder("--store", folders[n].path()));
        Self::start(args, [&stores[0], &stores[1]]).await
    }

    /// Waits until so many servers are linked.
    async fn linked(&self, servers: usize) {
        until("the servers are linked", async || {
            let status = self.router.status().await;
            let replicas = status["replicas"].as_array().unwrap().iter();
            let is_there = |it: &&Value| it["link"] == "up" && it["status"] == "healthy";
            (replicas.filter(is_there).count() == servers).then_some(())
        })
        .await;
    }

    /// Which server has a video.
    async fn home(&self, id: &str) -> usize {
        let path = format!("/v1/videos/{id}");
        let has = self.servers.each_ref().map(|server| server.get(&path));
        let [first, second] = has;
        match (first.await.0, second.await.0) {
            (200, 404) => 0,
            (404, 200) => 1,
            others => panic!("{others:?} for {id}"),
        }
    }

    /// Creates a video at each of the servers, of which the router was not told.
    async fn one_each(&self) -> [String; 2] {
        let request = json!({"prompt": "a red fox", "num_frames": 12});
        let [first, second] = &self.servers;
        [
            create(first, request.clone()).await,
            create(second, request).await,
        ]
    }
}

fn ids(list: &Value) -> Vec<String> {
    let data = list["data"].as_array().unwrap().iter();
    data.map(|it| it["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Sends a request that creates a job, with an idempotency key if there is one.
async fn post(server: &Server, path: &str, key: Option<&str>, request: Value) -> Answer {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    fetch(server, "POST", path, &headers, request.to_string().into()).await
}

#[tokio::test]
async fn jobs_of_all_servers_are_in_one_list_with_pages() {
    let pair = Pair::start(STILL, ["--server.name=a", "--server.name=b"]).await;
    let router = &pair.router;
    let mut created = Vec::new();
    for n in 0..4 {
        created.push(create(router, json!({"prompt": format!("fox {n}")})).await);
    }
    for server in &pair.servers {
        let own = ids(&server.get("/v1/videos").await.1).len();
        assert!((1..=3).contains(&own), "{own} jobs at one server");
    }
    let page = async |query: &str| {
        let (status, list) = router.get(&format!("/v1/videos?{query}")).await;
        assert_eq!((status, &list["object"]), (200, &json!("list")), "{list}");
        assert!(list.get("unreachable").is_none(), "{list}");
        let ids = ids(&list);
        assert_eq!(list["last_id"].as_str(), ids.last().map(String::as_str));
        (ids, list["has_more"].as_bool().unwrap())
    };
    let latest: Vec<String> = created.iter().rev().cloned().collect();
    assert_eq!(page("").await, (latest.clone(), false));
    assert_eq!(page("limit=3").await, (latest[..3].to_vec(), true));
    let rest = format!("limit=3&after={}", latest[2]);
    assert_eq!(page(&rest).await, (latest[3..].to_vec(), false));
    let ascending = format!("limit=1&order=asc&after={}", created[1]);
    assert_eq!(page(&ascending).await, (created[2..3].to_vec(), true));
    // What is deleted can still be the end of a page.
    let deleted = router
        .call("DELETE", &format!("/v1/videos/{}", latest[2]), None)
        .await;
    assert_eq!((deleted.0, &deleted.1["deleted"]), (200, &json!(true)));
    assert_eq!(page(&rest).await, (latest[3..].to_vec(), false));
    let (status, _) = router
        .post(&format!("/v1/videos/{}/cancel", latest[3]))
        .await;
    assert_eq!(status, 200);
    // It may run, and then ends at its next step.
    let cancelled = ended(router, &latest[3]).await;
    assert_eq!(cancelled["error"]["code"], "cancelled");
    let (status, refused) = router.get("/v1/videos?limit=0").await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("limit")));
}

#[tokio::test]
async fn a_video_is_fetched_as_if_the_router_were_not_there() {
    let pair = Pair::start(QUICK, ["--server.name=a", "--server.name=b"]).await;
    let router = &pair.router;
    let created = pair.one_each().await;
    for (server, id) in pair.servers.iter().zip(&created) {
        let (video, content) = completed(router, id).await;
        assert_eq!(retrieve(server, id).await, video);
        let path = format!("/v1/videos/{id}/content");
        let get = async |method, path: &str, headers: &[(&str, &str)]| {
            let direct = fetch(server, method, path, headers, vec![]).await;
            let answer = fetch(router, method, path, headers, vec![]).await;
            assert_eq!(answer.status, direct.status);
            assert_eq!(answer.body, direct.body);
            for name in [
                "content-type",
                "content-length",
                "content-range",
                "content-disposition",
                "etag",
                "x-spritesheet",
            ] {
                assert_eq!(answer.header(name), direct.header(name), "{name}");
            }
            assert!(!answer.header("x-request-id").is_empty());
            answer
        };
        let whole = get("GET", &path, &[]).await;
        assert_eq!((whole.status, &whole.body), (200, &content));
        let part = get("GET", &path, &[("range", "bytes=10-19")]).await;
        assert_eq!((part.status, &part.body[..]), (206, &content[10..20]));
        let etag = whole.header("etag");
        let known = get("GET", &path, &[("if-none-match", etag)]).await;
        assert_eq!(known.status, 304);
        let changed = [("range", "bytes=10-19"), ("if-range", "\"other\"")];
        assert_eq!(get("GET", &path, &changed).await.body, content);
        let past = get("GET", &path, &[("range", "bytes=100000000-")]).await;
        assert_eq!(past.status, 416);
        assert_eq!(get("HEAD", &path, &[]).await.status, 200);
        let sheet = format!("{path}?variant=spritesheet");
        assert!(
            !get("GET", &sheet, &[])
                .await
                .header("x-spritesheet")
                .is_empty()
        );
    }
    let path = format!("/v1/videos/{}", created[1]);
    assert_eq!(router.call("DELETE", &path, None).await.0, 200);
    for method in ["GET", "DELETE"] {
        let answer = fetch(router, method, &path, &[], vec![]).await;
        let expected = (404, "video_not_found".to_owned());
        assert_eq!((answer.status, answer.code()), expected);
    }
    let gone = format!("{path}/content");
    assert_eq!(fetch(router, "HEAD", &gone, &[], vec![]).await.status, 404);
}

#[tokio::test]
async fn a_new_video_is_made_where_its_source_is() {
    let pair = Pair::start(QUICK, ["--server.name=a", "--server.name=b"]).await;
    let router = &pair.router;
    for (n, server) in pair.servers.iter().enumerate() {
        // The router has never seen it.
        let source = create(server, json!({"prompt": "a red fox", "num_frames": 12})).await;
        completed(server, &source).await;
        let of = json!({"prompt": "a blue hare", "video": {"id": source}});
        let remix = format!("/v1/videos/{source}/remix");
        for (path, request) in [
            (&*remix, json!({"prompt": "a blue hare"})),
            ("/v1/videos/edits", of.clone()),
            ("/v1/videos/extensions", of.clone()),
        ] {
            let key = format!("{n}{path}");
            let made = post(router, path, Some(&key), request.clone()).await;
            assert_eq!(made.status, 200, "{path}: {}", made.json());
            let id = made.json()["id"].as_str().unwrap().to_owned();
            assert_eq!(pair.home(&id).await, n, "{path}");
            let again = post(router, path, Some(&key), request).await;
            assert_eq!(again.json()["id"], id);
            assert_eq!(again.header("idempotent-replayed"), "true");
        }
    }
    let nowhere = json!({"prompt": "x", "video": {"id": format!("video_{}", "0".repeat(32))}});
    let refused = post(router, "/v1/videos/extensions", None, nowhere).await;
    assert_eq!(
        (refused.status, refused.code()),
        (404, "video_not_found".to_owned())
    );
    assert_eq!(refused.json()["error"]["param"], "video");
}

#[tokio::test]
async fn a_request_under_the_same_key_reaches_the_same_server() {
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let mut pair = Pair::kept_in(&folders, STILL).await;
    let request = json!({"prompt": "a red fox"});
    let mut of = [Vec::new(), Vec::new()];
    for n in 0..20 {
        let key = format!("key-{n}");
        let post = async || {
            let answer = post(&pair.router, "/v1/videos", Some(&key), request.clone()).await;
            assert_eq!(answer.status, 200);
            answer
        };
        let (first, second) = (post().await, post().await);
        let id = first.json()["id"].as_str().unwrap().to_owned();
        assert_eq!(second.json()["id"], id);
        assert_eq!(second.header("idempotent-replayed"), "true");
        of[pair.home(&id).await].push((key, id));
    }
    let [kept, lost] = of.map(|mut of| of.pop().expect("keys are spread over both"));
    // One that does not answer may have the job.
    let address = pair.servers[1].address.clone();
    pair.servers[1].kill().await;
    let refused = post(&pair.router, "/v1/videos", Some(&lost.0), request.clone()).await;
    let expected = (503, "server_unreachable".to_owned());
    assert_eq!((refused.status, refused.code()), expected);
    assert!(!refused.header("retry-after").is_empty());
    for (key, expected) in [(Some(&*kept.0), Some(kept.1)), (None, None)] {
        let answer = post(&pair.router, "/v1/videos", key, request.clone()).await;
        assert_eq!(answer.status, 200, "{key:?}");
        assert!(expected.is_none_or(|id| answer.json()["id"] == id));
    }
    // The key stays with the server that comes back.
    let store = folder("--store", folders[1].path());
    let keys = pair.keys.flag("server.router_keys_file");
    let args = [STILL, &[&*store, &*keys]].concat();
    let _server = Server::start_at(&address, &args);
    pair.linked(2).await;
    let answer = post(&pair.router, "/v1/videos", Some(&lost.0), request).await;
    assert_eq!(answer.json()["id"], lost.1);
}

#[tokio::test]
async fn a_video_whose_server_is_away_is_not_missing() {
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let mut pair = Pair::kept_in(&folders, STILL).await;
    let [here, away] = pair.one_each().await;
    pair.servers[1].kill().await;
    let router = &pair.router;
    retrieve(router, &here).await;
    for id in [&*away, "video_00000000000070008000000000000000"] {
        for (method, below) in [("GET", ""), ("HEAD", "/content"), ("DELETE", "")] {
            let path = format!("/v1/videos/{id}{below}");
            let answer = fetch(router, method, &path, &[], vec![]).await;
            assert_eq!(answer.status, 503, "{method} {path}");
            assert!(!answer.header("retry-after").is_empty());
            if method != "HEAD" {
                assert_eq!(answer.code(), "server_unreachable");
                assert_eq!(answer.json()["error"]["type"], "server_error");
            }
        }
    }
    let (status, list) = router.get("/v1/videos").await;
    assert_eq!((status, ids(&list)), (200, vec![here]));
    let gone = format!("http://{}", pair.servers[1].address);
    assert_eq!(list["unreachable"], json!([gone]));
    assert_eq!(router.get("/v1/models").await.0, 200);
    let store = folder("--store", folders[1].path());
    let args = [STILL, &[&*store]].concat();
    let _server = Server::start_at(&pair.servers[1].address, &args);
    until("the video is there again", async || {
        (router.get(&format!("/v1/videos/{away}")).await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn servers_with_one_store_speak_for_each_other() {
    let mut fleet = Fleet::start(2, QUICK).await;
    let mut created = BTreeSet::new();
    for n in 0..4 {
        let key = format!("key-{n}");
        let request = json!({"prompt": "a red fox"});
        let made = post(&fleet.router, "/v1/videos", Some(&key), request).await;
        created.insert(made.json()["id"].as_str().unwrap().to_owned());
    }
    let (_, list) = fleet.router.get("/v1/videos?order=asc").await;
    assert_eq!(ids(&list), Vec::from_iter(created.clone()));
    fleet.servers[0].kill().await;
    let router = &fleet.router;
    for id in &created {
        retrieve(router, id).await;
    }
    for n in 0..4 {
        let key = format!("key-{n}");
        let request = json!({"prompt": "a red fox"});
        let again = post(router, "/v1/videos", Some(&key), request).await;
        assert!(created.contains(again.json()["id"].as_str().unwrap()));
    }
    let unknown = router.get("/v1/videos/video_00000000000070008000000000000000");
    assert_eq!(unknown.await.0, 404);
    let (_, list) = router.get("/v1/videos?order=asc").await;
    assert_eq!(ids(&list), Vec::from_iter(created));
    assert!(list.get("unreachable").is_none(), "{list}");
}

#[tokio::test]
async fn a_video_is_made_by_a_server_that_makes_such_videos() {
    let names = [
        "--server.served_model_name=fox",
        "--server.served_model_name=hare",
    ];
    let pair = Pair::start(QUICK, names).await;
    let router = &pair.router;
    let (_, models) = router.get("/v1/models").await;
    assert_eq!(
        BTreeSet::from_iter(ids(&models)),
        ["fox", "hare"].map(str::to_owned).into()
    );
    for (n, name) in ["fox", "hare"].into_iter().enumerate() {
        let (status, model) = router.get(&format!("/v1/models/{name}")).await;
        assert_eq!((status, &model["id"]), (200, &json!(name)));
        for key in [None, Some("a"), Some("b"), Some("c")] {
            let request = json!({"prompt": "x", "num_frames": 12, "model": name});
            let key = key.map(|key| format!("{key}-{name}"));
            let made = post(router, "/v1/videos", key.as_deref(), request).await;
            assert_eq!(made.status, 200, "{}", made.json());
            assert_eq!(pair.home(made.json()["id"].as_str().unwrap()).await, n);
        }
    }
    let other = json!({"prompt": "x", "model": "whale"});
    let refused = post(router, "/v1/videos", None, other).await;
    assert_eq!(
        (refused.status, refused.code()),
        (400, "model_not_found".to_owned())
    );
    let (status, refused) = router.get("/v1/models/whale").await;
    assert_eq!(
        (status, &refused["error"]["code"]),
        (404, &json!("model_not_found"))
    );
}

#[tokio::test]
async fn servers_that_make_no_videos_are_passed_over() {
    let disabled = "--streaming.videos.enabled=false";
    let pair = Pair::start(QUICK, [disabled, "--server.name=b"]).await;
    let router = &pair.router;
    let mut created = BTreeSet::new();
    for key in [None, None, Some("a"), Some("b"), Some("c")] {
        let request = json!({"prompt": "a red fox", "num_frames": 12});
        let made = post(router, "/v1/videos", key, request).await;
        assert_eq!(made.status, 200, "{}", made.json());
        created.insert(made.json()["id"].as_str().unwrap().to_owned());
    }
    let (_, list) = router.get("/v1/videos?order=asc").await;
    assert_eq!(ids(&list), Vec::from_iter(created.clone()));
    completed(router, created.first().unwrap()).await;
    let (status, _) = router
        .get(&format!("/v1/videos/video_{}", "0".repeat(32)))
        .await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_server_that_drains_gets_no_further_job() {
    let pair = Pair::start(QUICK, ["--server.name=a", "--server.name=b"]).await;
    let router = &pair.router;
    let [_, there] = pair.one_each().await;
    completed(router, &there).await;
    // Its jobs can be fetched until it ends, which the open session defers.
    let mut viewer = pair.servers[1].active(json!({})).await;
    viewer.segment("a red fox").await;
    pair.servers[1].signal(Signal::SIGTERM);
    for _ in 0..4 {
        let id = create(router, json!({"prompt": "x", "num_frames": 12})).await;
        let path = format!("/v1/videos/{id}");
        assert_eq!(pair.servers[0].get(&path).await.0, 200);
    }
}

#[tokio::test]
async fn sync_answers_with_the_video_and_ends_with_its_client() {
    let slow = [
        "--gpus=1",
        "--streaming.warmup.enabled=false",
        "--default_request.sampling.num_inference_steps=20",
        "--generator.synthetic.step_ms=50",
    ];
    let pair = Pair::start(&slow, ["--server.name=a", "--server.name=b"]).await;
    let router = &pair.router;
    let request = json!({"prompt": "a red fox", "num_frames": 12});
    let answer = post(router, "/v1/videos/sync", None, request.clone()).await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, "video/mp4")
    );
    let id = answer.header("x-video-id").to_owned();
    assert_eq!(completed(router, &id).await.1, answer.body);
    let path = format!("/v1/videos/{id}");
    assert_eq!(router.call("DELETE", &path, None).await.0, 200);

    let mut client = TcpStream::connect(&router.address).await.unwrap();
    let long = json!({"prompt": "a red fox", "num_frames": 120}).to_string();
    let head = format!(
        "POST /v1/videos/sync HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n",
        router.address,
        long.len()
    );
    client.write_all((head + &long).as_bytes()).await.unwrap();
    let id = until("the job is there", async || {
        ids(&router.get("/v1/videos").await.1).pop()
    })
    .await;
    // A look that waits for the next change is answered through the router, too.
    video_until(router, &id, "the job runs", |it| {
        it["progress"].as_u64() > Some(5)
    })
    .await;
    drop(client);
    until("the job is gone", async || {
        ids(&router.get("/v1/videos").await.1)
            .is_empty()
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_router_without_servers_says_so_in_the_clients_form() {
    let mut pair = Pair::start(QUICK, ["--server.name=a", "--server.name=b"]).await;
    for server in &mut pair.servers {
        server.kill().await;
    }
    let router = &pair.router;
    let id = "video_00000000000070008000000000000000";
    for (method, path, status, code) in [
        ("POST", "/v1/videos".to_owned(), 503, "server_unreachable"),
        ("GET", "/v1/videos".to_owned(), 503, "server_unreachable"),
        ("GET", "/v1/models".to_owned(), 503, "server_unreachable"),
        ("GET", format!("/v1/videos/{id}"), 503, "server_unreachable"),
        ("PUT", "/v1/videos".to_owned(), 405, "method_not_allowed"),
        ("GET", "/v1/videos/a/b".to_owned(), 404, "not_found"),
    ] {
        let answer = fetch(router, method, &path, &[], vec![]).await;
        let given = (answer.status, answer.code());
        assert_eq!(given, (status, code.to_owned()), "{method} {path}");
        assert!(answer.json()["error"]["type"].is_string());
        assert!(answer.header("x-request-id").starts_with("req_"));
    }
}

#[tokio::test]
async fn no_path_leads_up_at_a_server() {
    let pair = Pair::start(QUICK, ["--server.name=a", "--server.name=b"]).await;
    for line in [
        "POST /v1/sessions/x/film/../../../drain",
        "POST /v1/sessions/x/film/%2e%2E/.%2e/../drain",
        "GET /v1/videos/../content",
        "GET /v1/videos/%2e%2e/content",
        "GET /v1/models/../../status",
    ] {
        let mut client = TcpStream::connect(&pair.router.address).await.unwrap();
        let request = format!(
            "{line} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            pair.router.address
        );
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{line}: {answer}");
    }
    for server in &pair.servers {
        assert_eq!(server.status().await["draining"], false);
    }
}
