//! Tenants see nothing of each other.

use super::*;

#[tokio::test]
async fn what_is_another_tenants_is_as_if_it_were_not_there() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let (mut client, assigned) = active_as(&server, "acme").await;
    client.segment("a fox").await;
    let id = assigned["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}");
    let listed = async |who| {
        let list = ask_as(&server, who, "GET", "/v1/sessions").await;
        let list: Value = serde_json::from_str(list.body()).unwrap();
        list["sessions"].as_array().unwrap().len()
    };
    assert_eq!((listed("acme").await, listed("web").await), (1, 1));
    assert_eq!((listed("beta").await, listed("ops").await), (0, 1));
    let unknown = "/v1/sessions/00000000000000000000000000000000";
    for (method, more) in [("GET", "/state"), ("DELETE", "")] {
        let others = ask_as(&server, "beta", method, &format!("{path}{more}")).await;
        let nobodys = ask_as(&server, "beta", method, &format!("{unknown}{more}")).await;
        assert_eq!(others.status(), 404, "{method}");
        assert_eq!(others.body(), nobodys.body(), "{method}");
    }
    for who in ["acme", "ops"] {
        let state = ask_as(&server, who, "GET", &format!("{path}/state")).await;
        assert_eq!(state.status(), 200, "{who}");
    }
    // The session goes on, and its tenant may end it.
    client.segment("a hare").await;
    assert_eq!(ask_as(&server, "acme", "DELETE", &path).await.status(), 204);
    assert_eq!(client.closed().await, Some(1000));
}

#[tokio::test]
async fn another_tenants_resume_token_is_no_token() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let (mut client, assigned) = active_as(&server, "acme").await;
    client.segment("a fox").await;
    // While it runs, and once its client is gone.
    for is_open in [true, false] {
        let mut thief = open_as(&server, "beta", resume(&assigned)).await;
        let error = thief.error().await;
        assert_eq!(error["code"], "session_rejected");
        assert_eq!(thief.closed().await, Some(1003));
        if is_open {
            client.segment("a hare").await;
            client.close(None).await;
            server.sessions(0).await;
        }
    }
    let mut back = open_as(&server, "web", resume(&assigned)).await;
    let start = back.until_type("ltx2_stream_start").await;
    assert_eq!(start["next_segment_idx"], 2);
    back.close(None).await;
    server.sessions(0).await;
    // An operator resumes it, and it stays its tenant's.
    let mut ops = open_as(&server, "ops", resume(&assigned)).await;
    ops.until_type("ltx2_stream_start").await;
    let list = ask_as(&server, "acme", "GET", "/v1/sessions").await;
    assert!(
        list.body()
            .contains(assigned["session_id"].as_str().unwrap())
    );
}

#[tokio::test]
async fn tokens_let_viewers_in_and_a_key_beside_them_holds_its_caller_to_its_tenant() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let (mut client, assigned) = active_as(&server, "acme").await;
    client.segment("a fox").await;
    let id = assigned["session_id"].as_str().unwrap();
    let token = assigned["watch_token"].as_str().unwrap();
    let film = format!("/v1/sessions/{id}/film?token={token}");
    let watch = format!("/v1/watch?session={id}&token={token}");
    assert_eq!(ask(&server, "GET", &film, &[]).await.status(), 200);
    connect(&server, &watch, &[]).await.unwrap();
    for (who, status) in [
        ("acme", 200),
        ("ops", 200),
        ("beta", 404),
        ("eyes", 403),
        ("nobody", 401),
    ] {
        let answer = ask_as(&server, who, "GET", &film).await;
        assert_eq!(answer.status(), status, "{who}");
        let bearer = format!("Bearer {}", key(who));
        let watched = connect(&server, &watch, &[("authorization", &bearer)]).await;
        let status = if status == 200 { 101 } else { status };
        let answered = watched.map_or_else(|no| no.status(), |(_, yes)| yes.status());
        assert_eq!(answered, status, "{who}");
    }
}

#[tokio::test]
async fn a_state_is_lent_to_one_tenant() {
    let keys = Keys::new();
    // Frames of noise are large enough to be lent.
    let server = keys.serve(&[
        "--default_request.sampling.width=1280",
        "--default_request.sampling.height=704",
    ]);
    let (mut client, assigned) = active_as(&server, "acme").await;
    client.segment("confetti and noise, a crowded market").await;
    let id = assigned["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{id}/state");
    let state = ask_as(&server, "acme", "GET", &path).await;
    let state: Value = serde_json::from_str(state.body()).unwrap();
    let hydrate = async |who: &str, state: &Value| {
        let request = Request::builder().method("POST").uri("/v1/sessions");
        let request = request.header("authorization", format!("Bearer {}", key(who)));
        server.send(request.body(state.to_string()).unwrap()).await
    };
    let reference = state["payload"]["video"]["blob_id"].clone();
    assert!(reference.is_string(), "the frames are in the state");
    assert_eq!(hydrate("acme", &state).await.status(), 201);
    let refused = hydrate("beta", &state).await;
    assert_eq!(
        (refused.status().as_u16(), &*code(&refused)),
        (422, "state_incompatible")
    );
    assert!(
        refused.body().contains("not in the store"),
        "{}",
        refused.body()
    );
}

#[tokio::test]
async fn sessions_are_logged_in_a_folder_per_tenant() {
    let keys = Keys::new();
    let logs = tempfile::tempdir().unwrap();
    let folder = format!("--session-log-dir={}", logs.path().display());
    let mut server = keys.serve(&[&folder]);
    for who in ["acme", "beta", "ops"] {
        let (mut client, _) = active_as(&server, who).await;
        client.send(json!({"type": "leave"})).await;
        client.closed().await;
    }
    server.signal(Signal::SIGTERM);
    server.exit().await;
    let files = |folder: PathBuf| {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .filter(|it| {
                let path = it.as_ref().unwrap().path();
                path.extension().is_some_and(|it| it == "jsonl")
            })
            .count()
    };
    let own = logs.path().to_owned();
    assert_eq!(
        (
            files(own.join("acme")),
            files(own.join("beta")),
            files(own.clone())
        ),
        (1, 1, 1)
    );
    let listed = command()
        .args(["sessions", "list"])
        .arg(&own)
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().count(), 3, "{listed}");
}

#[tokio::test]
async fn a_key_that_leaves_the_file_ends_its_sessions_at_their_boundary() {
    let mut keys = Keys::new();
    let server = keys.serve(&["--generator.synthetic.step_ms=100"]);
    let (mut leaving, assigned) = active_as(&server, "acme").await;
    let (mut staying, _) = active_as(&server, "web").await;
    leaving.prompt("a fox").await;
    leaving.until_type("ltx2_segment_start").await;
    keys.lines.retain(|(id, ..)| *id != "acme");
    keys.write();
    server.signal(Signal::SIGHUP);
    // What runs is made and stored.
    leaving.until_type("ltx2_segment_complete").await;
    let error = leaving.error().await;
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("unauthorized"), &json!(false))
    );
    assert_eq!(leaving.next().await, Heard::Closed(Some(1008)));
    staying.segment("a hare").await;
    assert_eq!(
        ask_as(&server, "acme", "GET", "/v1/sessions")
            .await
            .status(),
        401
    );
    // Its state is there for another key of the tenant.
    let mut back = open_as(&server, "web", resume(&assigned)).await;
    let start = back.until_type("ltx2_stream_start").await;
    assert_eq!(start["next_segment_idx"], 1);
}
