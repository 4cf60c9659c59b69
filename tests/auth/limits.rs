//! What a tenant may have at once and how often it may ask, and the file that says so.

use super::*;

#[tokio::test]
async fn a_tenant_has_so_many_sessions_and_no_more() {
    let keys = Keys::limited("{max_sessions: 1}");
    let server = keys.serve(&[]);
    let (mut first, _) = active_as(&server, "acme").await;
    let bearer = format!("Bearer {}", key("web"));
    let connected = connect(&server, "/v1/stream", &[("authorization", &bearer)]).await;
    let (mut second, _) = connected.unwrap();
    let error = second.error().await;
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("session_rejected"), &json!(true))
    );
    assert_eq!(second.closed().await, Some(1013));
    active_as(&server, "beta").await;
    first.close(None).await;
    server.sessions(0).await;
    active_as(&server, "web").await;
}

#[tokio::test]
async fn so_many_sessions_of_a_tenant_wait_and_no_more() {
    let keys = Keys::limited("{max_waiting: 1}");
    let server = keys.serve(&["--sessions-per-gpu=1"]);
    let (_running, _) = active_as(&server, "beta").await;
    let mut waiting = open_as(&server, "acme", json!({})).await;
    waiting.until_type("queue_status").await;
    let mut refused = open_as(&server, "web", json!({})).await;
    let error = refused.error().await;
    assert_eq!(error["code"], "session_rejected");
    assert!(
        error["message"].as_str().unwrap().contains("wait"),
        "{error}"
    );
    assert_eq!(refused.closed().await, Some(1013));
}

#[tokio::test]
async fn waiting_tenants_take_turns_and_positions_are_true() {
    let keys = Keys::new();
    let server = keys.serve(&["--sessions-per-gpu=1"]);
    let (mut running, _) = active_as(&server, "ops").await;
    let mut waiting = Vec::new();
    for (n, (who, position)) in [("acme", 0), ("web", 1), ("beta", 1)]
        .into_iter()
        .enumerate()
    {
        let mut client = open_as(&server, who, json!({})).await;
        let told = client.until_type("queue_status").await;
        assert_eq!(told["position"], position, "{who}");
        assert_eq!(told["queue_depth"], n + 1, "{who}");
        waiting.push(client);
    }
    // The other tenant came between.
    let moved = waiting[1].until_type("queue_status").await;
    assert_eq!(moved["position"], 2);
    for (served, next) in [(0, Some((2, 0))), (2, Some((1, 0))), (1, None)] {
        running.send(json!({"type": "leave"})).await;
        running.closed().await;
        waiting[served].until_type("gpu_assigned").await;
        if let Some((waits, position)) = next {
            // It was told of each step before.
            while waiting[waits].until_type("queue_status").await["position"] != position {}
        }
        std::mem::swap(&mut running, &mut waiting[served]);
    }
}

#[tokio::test]
async fn requests_beyond_the_rate_are_refused_and_what_was_accepted_is_made() {
    let keys = Keys::limited("{requests_per_minute: 2}");
    let server = keys.serve(&[]);
    let (mut client, _) = active_as(&server, "acme").await;
    for n in 0..3 {
        let prompt = json!({"type": "segment_prompt_source", "prompt": "a fox", "request_id": format!("r{n}")});
        client.send(prompt).await;
    }
    let mut finished = Vec::new();
    let mut refused = None;
    while finished.len() < 2 || refused.is_none() {
        match client.next().await {
            Heard::Text(text) if text["type"] == "error" => refused = Some(text),
            Heard::Text(text) if text["type"] == "ltx2_segment_complete" => {
                finished.push(text["request_id"].clone());
            }
            Heard::Closed(code) => panic!("closed with {code:?}"),
            _ => {}
        }
    }
    assert_eq!(finished, ["r0", "r1"]);
    let refused = refused.unwrap();
    assert_eq!(
        (&refused["code"], &refused["retryable"]),
        (&json!("rate_limited"), &json!(true))
    );
    assert_eq!(refused["request_id"], "r2");
    let wait = refused["retry_after_ms"].as_u64().unwrap();
    assert!((1..=30_001).contains(&wait), "{wait}");
    // Neither its other key nor another session has more; another tenant does.
    let (mut web, _) = active_as(&server, "web").await;
    web.prompt("a fox").await;
    assert_eq!(web.error().await["code"], "rate_limited");
    let (mut beta, _) = active_as(&server, "beta").await;
    for _ in 0..3 {
        beta.segment("a fox").await;
    }
    // A file that says more holds at once.
    fs::write(
        keys.path(),
        fs::read_to_string(keys.path())
            .unwrap()
            .replace("minute: 2", "minute: 50"),
    )
    .unwrap();
    server.signal(Signal::SIGHUP);
    until("the limit is raised", async || {
        web.prompt("a hare").await;
        loop {
            match web.next().await {
                Heard::Text(text) if text["type"] == "error" => return None,
                Heard::Text(text) if text["type"] == "ltx2_segment_complete" => return Some(()),
                Heard::Closed(code) => panic!("closed with {code:?}"),
                _ => {}
            }
        }
    })
    .await;
}

#[tokio::test]
async fn sessions_are_opened_so_often_and_no_more() {
    let keys = Keys::limited("{opens_per_minute: 2}");
    let server = keys.serve(&[]);
    for _ in 0..2 {
        let (mut client, _) = active_as(&server, "acme").await;
        client.close(None).await;
    }
    let mut third = open_as(&server, "acme", json!({})).await;
    let error = third.error().await;
    assert_eq!(error["code"], "rate_limited");
    assert!(error["retry_after_ms"].as_u64().unwrap() <= 30_001);
    assert_eq!(third.closed().await, Some(1013));
    active_as(&server, "beta").await;
}

#[test]
fn a_file_of_keys_that_is_wrong_stops_the_start() {
    let keys = Keys::new();
    let text = fs::read_to_string(keys.path()).unwrap();
    let start = |text: &str, mode: u32| {
        keys.write_text(text);
        fs::set_permissions(keys.path(), fs::Permissions::from_mode(mode)).unwrap();
        let output = command().args(["--port=0", &keys.flag()]).output().unwrap();
        assert_eq!(output.stdout, b"", "a port was bound");
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let place = |line: usize| format!("keys.yaml:{line}:");
    for (wrong, line) in [
        (text.replace("role: metrics", "role: root"), 10),
        (text.replace("id: beta", "id: acme"), 7),
        (text.replace("tenant: beta", "tenant: gamma"), 7),
        (text.replace("expires: 2020", "expiry: 2020"), 8),
        (text.replacen("acme: {}", "acme: {max: 1}", 1), 2),
    ] {
        let told = start(&wrong, 0o600);
        assert!(
            told.contains("server.auth.keys_file") && told.contains(&place(line)),
            "{told}"
        );
    }
    let told = start(&text, 0o620);
    assert!(told.contains("keys.yaml may be written"), "{told}");
}

#[tokio::test]
async fn a_file_of_keys_that_is_wrong_changes_nothing_at_sighup() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    keys.write_text("tenants: {acme: {}}\nkeys:\n  - {id: a}\n");
    server.signal(Signal::SIGHUP);
    until("the log says so", async || {
        let log = server.log();
        (log.contains("everything stays as it was") && log.contains("keys.yaml:3:")).then_some(())
    })
    .await;
    assert_eq!(
        ask_as(&server, "beta", "GET", "/v1/sessions")
            .await
            .status(),
        200
    );
    // What is mended holds.
    keys.write();
    server.signal(Signal::SIGHUP);
    until("the keys are reloaded", async || {
        server
            .log()
            .contains("reloaded outcome=\"ok\"")
            .then_some(())
    })
    .await;
}

#[test]
fn keys_new_prints_a_key_and_its_line() {
    let new = |args: &[&str]| command().args(["keys", "new"]).args(args).output().unwrap();
    let made = new(&[
        "--id=k",
        "--tenant=acme",
        "--role=user",
        "--origin",
        SITE,
        "--expires=2999-01-01T00:00:00Z",
    ]);
    assert!(made.status.success(), "{made:?}");
    let text = String::from_utf8(made.stdout).unwrap();
    let key = text.lines().next().unwrap();
    assert_eq!((key.len(), &key[..4]), (47, "fvk_"));
    let line = text.lines().last().unwrap();
    assert!(line.contains(&KeyHash::of(key).to_string()), "{text}");
    // The server takes the line.
    let keys = Keys::new();
    keys.write_text(&format!("tenants: {{acme: {{}}}}\nkeys:\n{line}\n"));
    let checked = command()
        .args(["check", "--offline", &keys.flag()])
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
    for wrong in [
        &["--id=k", "--role=user"][..],
        &["--id=a b", "--role=admin"],
        &["--id=k", "--role=root"],
        &["--id=k", "--role=admin", "--origin=app"],
        &["--id=k", "--role=admin", "--expires=soon"],
        &["--role=admin"],
    ] {
        let refused = new(wrong);
        assert_eq!(
            (refused.status.code(), &*refused.stdout),
            (Some(2), &b""[..]),
            "{wrong:?}"
        );
    }
}
