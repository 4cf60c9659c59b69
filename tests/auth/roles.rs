//! Every cell of the table of routes and roles, and how keys are shown.

use fastvideo_supervisor_core::auth::Access;
use fastvideo_supervisor_core::auth::routes::{CHANGED_BY_ADMINS, ROUTES};

use super::*;

/// Routes that only routers have.
const OF_ROUTERS: &[&str] = &[
    "/v1/fleet/demand",
    "/v1/servers/{name}/{*path}",
    "/v1/sessions/{id}/film/{*file}",
];

/// Routes that only servers have.
const OF_SERVERS: &[&str] = &[
    "/v1/router",
    "/v1/router/session",
    "/v1/sessions/{id}/film/{file}",
    "/v1/sessions/{id}/film/{file}/{part}",
    "/v1/drain",
    "/v1/workers/{gpu}/drain",
    "/v1/workers/{gpu}/restart",
    "/v1/workers/loras",
    "/v1/workers/loras/{name}",
    "/v1/prompts/reload",
    "/prompt-system-config",
    "/v1/prompts/rollout",
    "/ws",
    "/curated-presets",
    "/curated-presets/append",
    "/lora",
    "/lora/options",
    "/router/replicas/sessions",
    "/internal/monitor/sessions",
];

/// A path of a route, at which nothing is.
fn example(route: &str) -> String {
    let session = "00000000000000000000000000000000";
    let parts = [
        ("{id}", session),
        ("{gpu}", "99"),
        ("{file}", "0.mp4"),
        ("{part}", "init.mp4"),
        ("{*file}", "0.mp4"),
        ("{name}", "none"),
        ("{*path}", "status"),
        ("{*model}", "none"),
    ];
    let path = parts.iter().fold(route.to_owned(), |path, (name, value)| {
        path.replace(name, value)
    });
    assert!(!path.contains('{'), "{path}");
    path
}

/// The answer that a role gets at a route; `None` where it is let in.
fn refused(access: Access, role: &str) -> Option<(u16, &'static str)> {
    let forbidden = Some((403, "forbidden"));
    match (access, role) {
        (Access::Anyone | Access::Router | Access::Token, _) => None,
        (_, "nobody") => Some((401, "unauthorized")),
        (Access::User, "metrics") | (Access::Metrics, "user") => forbidden,
        (Access::Admin, "user" | "metrics") => forbidden,
        _ => None,
    }
}

/// Asks at all routes of a server or router but these, as each role.
async fn holds_to_the_table(server: &Server, without: &[&str]) {
    let roles = [
        ("nobody", None),
        ("user", Some(key("acme"))),
        ("metrics", Some(key("eyes"))),
        ("admin", Some(key("ops"))),
    ];
    for (route, access) in ROUTES.iter().filter(|(route, _)| !without.contains(route)) {
        for (role, key) in &roles {
            // No route has this method, so that nothing is done.
            for method in ["GET", "PATCH"] {
                let bearer = key.as_ref().map(|key| format!("Bearer {key}"));
                let headers = bearer.as_ref().map(|it| ("authorization", it.as_str()));
                let answer = ask(server, method, &example(route), headers.as_slice()).await;
                let status = answer.status().as_u16();
                let what = format!("{method} {route} as {role}: {status} {}", answer.body());
                // A viewer has a token and no key.
                let access = match (access, *role) {
                    (Access::Token, "metrics") => Access::User,
                    _ if method != "GET" && CHANGED_BY_ADMINS.contains(route) => Access::Admin,
                    (access, _) => *access,
                };
                // OpenAI's clients know another name.
                let is_openai = ["/v1/videos", "/v1/models"]
                    .iter()
                    .any(|it| route.starts_with(it));
                match refused(access, role) {
                    Some((expected, name)) => {
                        let name = match (is_openai, name) {
                            (true, "unauthorized") => "invalid_api_key",
                            (_, name) => name,
                        };
                        assert_eq!((status, &*code(&answer)), (expected, name), "{what}");
                        let challenge = answer.headers().get("www-authenticate");
                        assert_eq!(challenge.is_some(), expected == 401, "{what}");
                    }
                    None => assert!(!matches!(status, 401 | 403), "{what}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn every_role_may_do_what_the_table_says_and_no_more() {
    let keys = Keys::new();
    holds_to_the_table(&keys.serve(&[]), OF_ROUTERS).await;
}

#[tokio::test]
async fn keys_that_are_wrong_let_nobody_in() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let basic = format!("Basic {}", key("acme"));
    let in_query = format!("/v1/sessions?key={0}&token={0}&ticket={0}", key("acme"));
    for (what, authorization, path) in [
        ("no key", "", "/v1/sessions"),
        ("another scheme", &*basic, "/v1/sessions"),
        (
            "a hash",
            &*format!("Bearer {}", KeyHash::of(&key("acme"))),
            "/v1/sessions",
        ),
        (
            "a part",
            &*format!("Bearer {}", &key("acme")[..40]),
            "/v1/sessions",
        ),
        (
            "an expired one",
            &*format!("Bearer {}", key("old")),
            "/v1/sessions",
        ),
        ("in the address", "", &*in_query),
    ] {
        let headers = [("authorization", authorization)];
        let headers = &headers[usize::from(authorization.is_empty())..];
        let answer = ask(&server, "GET", path, headers).await;
        assert_eq!(
            (answer.status().as_u16(), &*code(&answer)),
            (401, "unauthorized"),
            "{what}"
        );
        assert_eq!(answer.headers()["www-authenticate"], "Bearer", "{what}");
    }
    assert_eq!(
        ask_as(&server, "later", "GET", "/v1/sessions")
            .await
            .status(),
        200
    );
    // Nothing of a key is in the log.
    let log = server.log();
    assert!(
        !log.contains("fvk_") && !log.contains(&key("acme")[4..]),
        "{log}"
    );
}

#[tokio::test]
async fn who_guesses_is_slowed_and_right_keys_still_work() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let guess = async || ask_as(&server, "guess", "GET", "/v1/sessions").await;
    for n in 0..10 {
        assert_eq!(guess().await.status(), 401, "{n}");
    }
    for _ in 0..3 {
        let slowed = guess().await;
        assert_eq!(
            (slowed.status().as_u16(), &*code(&slowed)),
            (429, "rate_limited")
        );
        let wait: u64 = slowed.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
        assert_eq!(
            ask_as(&server, "acme", "GET", "/v1/sessions")
                .await
                .status(),
            200
        );
    }
    // No key is no wrong one.
    assert_eq!(ask(&server, "GET", "/v1/sessions", &[]).await.status(), 401);
    until("the log tells of it, once", async || {
        let lines = server.log().matches("many wrong keys").count();
        assert!(lines <= 1, "{}", server.log());
        (lines == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_page_shows_its_key_as_a_subprotocol() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let offered = format!("fastvideo.v1, fastvideo.key.{}", key("acme"));
    let shown = [("sec-websocket-protocol", &*offered)];
    let (mut client, answer) = connect(&server, "/v1/stream", &shown).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "fastvideo.v1");
    client.send(json!({"type": "session_init_v2"})).await;
    client.until_type("gpu_assigned").await;
}

#[tokio::test]
async fn programs_are_told_by_a_status_and_browsers_over_the_socket() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let refused = connect(&server, "/v1/stream", &[]).await.unwrap_err();
    assert_eq!(refused.status(), 401);
    let own = format!("http://{}", server.address);
    let offered = format!("fastvideo.v1, fastvideo.key.{}", key("nobody"));
    for headers in [
        vec![("origin", &*own)],
        vec![("origin", &*own), ("sec-websocket-protocol", &*offered)],
    ] {
        let (mut page, answer) = connect(&server, "/v1/stream", &headers).await.unwrap();
        assert_eq!(answer.status(), 101);
        let error = page.error().await;
        assert_eq!(
            (&error["code"], &error["retryable"]),
            (&json!("unauthorized"), &json!(false))
        );
        assert_eq!(page.next().await, Heard::Closed(Some(1008)));
    }
    let metrics = format!("Bearer {}", key("eyes"));
    let refused = connect(&server, "/v1/stream", &[("authorization", &metrics)]).await;
    assert_eq!(refused.unwrap_err().status(), 403);
}

#[tokio::test]
async fn routers_ask_for_keys_by_the_same_table() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let replicas = format!("--replicas=[{{\"url\": \"http://{}\"}}]", server.address);
    let router = Server::spawn(command().args(["router", &keys.flag(), &replicas]));
    for (path, role, status) in [
        ("/health", None, 200),
        ("/status", None, 401),
        ("/status", Some("acme"), 403),
        ("/status", Some("eyes"), 200),
        ("/v1/fleet/demand", None, 401),
        ("/v1/fleet/demand", Some("eyes"), 200),
        ("/v1/sessions", Some("acme"), 200),
        ("/v1/servers/a/status", Some("acme"), 403),
        ("/v1/servers/a/status", Some("ops"), 404),
    ] {
        let answer = match role {
            Some(role) => ask_as(&router, role, "GET", path).await,
            None => ask(&router, "GET", path, &[]).await,
        };
        assert_eq!(
            answer.status(),
            status,
            "{path} as {role:?}: {}",
            answer.body()
        );
    }
    holds_to_the_table(&router, OF_SERVERS).await;
    // Without links, the server checks the key that the router passes on.
    let (mut client, assigned) = active_as(&router, "acme").await;
    client.segment("a fox").await;
    let state = format!(
        "/v1/sessions/{}/state",
        assigned["session_id"].as_str().unwrap()
    );
    assert_eq!(ask_as(&router, "beta", "GET", &state).await.status(), 404);
    assert_eq!(ask_as(&router, "acme", "GET", &state).await.status(), 200);
}

#[tokio::test]
async fn behind_a_router_with_a_key_the_router_says_whose_a_session_is() {
    let keys = Keys::new();
    let router_key = keys.folder.path().join("router.key");
    let secret = "r".repeat(40);
    fs::write(&router_key, format!("sha256:{}\n", KeyHash::of(&secret))).unwrap();
    let known = format!("--server.router_keys_file={}", router_key.display());
    let server = keys.serve(&[&known]);
    let shown = keys.folder.path().join("shown.key");
    fs::write(&shown, &secret).unwrap();
    let replicas = format!("--replicas=[{{\"url\": \"http://{}\"}}]", server.address);
    let key_file = format!("--router.key_file={}", shown.display());
    let router = Server::spawn(command().args(["router", &keys.flag(), &replicas, &key_file]));
    until("the router has a link", async || {
        let status = ask_as(&router, "ops", "GET", "/status").await;
        status.body().contains("\"link\":\"up\"").then_some(())
    })
    .await;
    let ticket = ask_as(&router, "acme", "POST", "/v1/tickets").await;
    let ticket: Value = serde_json::from_str(ticket.body()).unwrap();
    let path = format!("/v1/stream?ticket={}", ticket["ticket"].as_str().unwrap());
    let (mut client, _) = connect(&router, &path, &[]).await.unwrap();
    client.send(json!({"type": "session_init_v2"})).await;
    let assigned = client.until_type("gpu_assigned").await;
    let listed = async |id| {
        let list = ask_as(&server, id, "GET", "/v1/sessions").await;
        list.body()
            .contains(assigned["session_id"].as_str().unwrap())
    };
    assert!(listed("acme").await && listed("ops").await);
    assert!(!listed("beta").await);
}

#[tokio::test]
async fn the_client_shows_the_key_that_its_environment_has() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let run = async |variables: &[(&str, &str)], args: &[&str]| {
        let mut client = tokio::process::Command::from(command());
        client.args(["client", "--json", "--retries=0", "--url", &server.address]);
        client.args(args).args(["--prompt", "a red fox"]);
        client.envs(variables.iter().copied()).kill_on_drop(true);
        let output = client.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let acme = key("acme");
    let (code, said) = run(&[("FASTVIDEO_API_KEY", &acme)], &[]).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&[("MY_KEY", &acme)], &["--api-key-env=MY_KEY"]).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&[], &[]).await;
    assert_ne!(code, Some(0));
    assert!(said.contains("--api-key-env"), "{said}");
    let (code, said) = run(&[], &["--api-key-env=MISSING"]).await;
    assert_ne!(code, Some(0));
    assert!(
        said.contains("the environment variable MISSING is not set"),
        "{said}"
    );
}
