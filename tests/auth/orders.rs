//! Where orders and pages may come from.

use super::*;

#[tokio::test]
async fn without_keys_orders_are_taken_from_this_machine_alone() {
    let server = Server::start(&[GPU, &["--server.allowed_hosts=*"]].concat());
    let order = async |headers: &[(&str, &str)]| {
        let answer = ask(&server, "POST", "/v1/workers/99/restart", headers).await;
        (answer.status().as_u16(), code(&answer))
    };
    let taken = (404, "not_found".to_owned());
    let local = (403, "local_only".to_owned());
    assert_eq!(order(&[]).await, taken);
    assert_eq!(order(&[("host", "localhost:1")]).await, taken);
    assert_eq!(order(&[("host", "video.example.org")]).await, local);
    for header in [
        "x-forwarded-for",
        "forwarded",
        "via",
        "x-real-ip",
        "x-forwarded-host",
    ] {
        assert_eq!(order(&[(header, "127.0.0.1")]).await, local, "{header}");
    }
    for of_this_machine in ["http://localhost:3000", "http://[::1]:3000"] {
        assert_eq!(order(&[("origin", of_this_machine)]).await, taken);
    }
    let foreign = order(&[("origin", "https://evil.example")]).await;
    assert_eq!(foreign, (403, "other_site".to_owned()));
    // All that is no order is for everybody.
    let forwarded = [
        ("x-forwarded-for", "192.0.2.1"),
        ("host", "video.example.org"),
    ];
    for path in ["/status", "/v1/sessions"] {
        assert_eq!(
            ask(&server, "GET", path, &forwarded).await.status(),
            200,
            "{path}"
        );
    }
    connect(&server, "/v1/stream", &[("x-forwarded-for", "192.0.2.1")])
        .await
        .unwrap();
}

#[tokio::test]
async fn pages_may_do_what_their_site_and_their_key_allow() {
    let keys = Keys::new();
    let server = keys.serve(&["--server.allowed_origins=https://own.example"]);
    let own = format!("http://{}", server.address);
    for (who, origin, is_allowed) in [
        ("acme", &*own, true),
        ("acme", "https://own.example", true),
        ("acme", SITE, false),
        ("web", SITE, true),
        ("web", "https://evil.example", false),
        ("ops", SITE, false),
    ] {
        let bearer = format!("Bearer {}", key(who));
        let headers = [("authorization", &*bearer), ("origin", origin)];
        let answer = ask(&server, "POST", "/v1/tickets", &headers).await;
        let what = format!("{who} {origin}: {}", answer.body());
        match is_allowed {
            true => assert_eq!(answer.status(), 201, "{what}"),
            false => assert_eq!(
                (answer.status().as_u16(), &*code(&answer)),
                (403, "other_site"),
                "{what}"
            ),
        }
        let status = match connect(&server, "/v1/stream", &headers).await {
            Ok(_) => 101,
            Err(answer) => answer.status().as_u16(),
        };
        assert_eq!(status, if is_allowed { 101 } else { 403 }, "{what}");
        // Pages of a site that any key names can read why.
        let names_it = matches!(origin, SITE | "https://own.example");
        let readable = answer.headers().get("access-control-allow-origin");
        assert_eq!(
            readable.map(|it| it.to_str().unwrap()),
            names_it.then_some(origin),
            "{what}"
        );
    }
    let asked = [
        ("origin", SITE),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization"),
    ];
    let preflight = ask(&server, "OPTIONS", "/v1/tickets", &asked).await;
    assert_eq!(preflight.status(), 200);
    assert_eq!(preflight.headers()["access-control-allow-origin"], SITE);
    let allowed = preflight.headers()["access-control-allow-headers"]
        .to_str()
        .unwrap();
    assert!(allowed.contains("authorization"), "{allowed}");
}

#[tokio::test]
async fn a_name_that_points_here_is_no_name_of_the_server() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let bearer = format!("Bearer {}", key("ops"));
    let rebound = [("authorization", &*bearer), ("host", "attacker.example")];
    assert_eq!(ask(&server, "GET", "/status", &rebound).await.status(), 421);
    assert_eq!(ask_as(&server, "ops", "GET", "/status").await.status(), 200);
}

#[tokio::test]
async fn a_trusted_proxy_says_from_where_a_wrong_key_came() {
    let keys = Keys::new();
    let server = keys.serve(&["--server.trusted_proxies=127.0.0.0/8"]);
    let wrong = format!("Bearer {}", key("guess"));
    let guess = async |from| {
        let headers = [("authorization", &*wrong), ("x-forwarded-for", from)];
        ask(&server, "GET", "/v1/sessions", &headers)
            .await
            .status()
            .as_u16()
    };
    for _ in 0..10 {
        assert_eq!(guess("192.0.2.1").await, 401);
    }
    assert_eq!(guess("192.0.2.1").await, 429);
    assert_eq!(guess("192.0.2.2").await, 401);
    assert_eq!(guess("127.0.0.1, 192.0.2.1").await, 429);
}

#[tokio::test]
async fn orders_are_in_the_log_with_who_gave_them() {
    let keys = Keys::new();
    let server = keys.serve(&["--log-level=error"]);
    let path = "/v1/workers/99/restart";
    assert_eq!(ask_as(&server, "ops", "POST", path).await.status(), 404);
    assert_eq!(ask_as(&server, "acme", "POST", path).await.status(), 403);
    until("both are told", async || {
        let log = server.log();
        let has = |words: &[&str]| {
            log.lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
        };
        let route = "POST /v1/workers/{gpu}/restart";
        (has(&["audit", "ops", route, "ok"]) && has(&["audit", "acme", route, "role"]))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_access_log_has_orders_at_info_and_all_else_at_debug_without_tickets() {
    let keys = Keys::new();
    let server = keys.serve(&["--log-level=info,access=debug"]);
    let line = async |route: &str, status: u16| {
        until(&format!("{route} is logged"), async || {
            let log = server.log();
            let is_it = |line: &&str| {
                line.contains("access:")
                    && line.contains(&format!("route=\"{route}\""))
                    && line.contains(&format!("status={status}"))
            };
            log.lines().find(is_it).map(str::to_owned)
        })
        .await
    };
    ask_as(&server, "ops", "DELETE", "/v1/sessions/none").await;
    let order = line("/v1/sessions/{id}", 404).await;
    for part in [
        "INFO",
        "method=\"DELETE\"",
        "key=\"ops\"",
        "address=127.0.0.1",
        " ms=",
    ] {
        assert!(order.contains(part), "{part}: {order}");
    }
    // Strangers give none.
    ask(&server, "POST", "/v1/workers/0/restart", &[]).await;
    let refused = line("/v1/workers/{gpu}/restart", 401).await;
    assert!(refused.contains("DEBUG"), "{refused}");
    ask_as(&server, "acme", "GET", "/v1/sessions?a=secret").await;
    let read = line("/v1/sessions", 200).await;
    assert!(
        read.contains("DEBUG") && read.contains("key=\"acme\""),
        "{read}"
    );
    let log = server.log();
    assert!(!log.contains("secret") && !log.contains("fvk_"), "{log}");
}
