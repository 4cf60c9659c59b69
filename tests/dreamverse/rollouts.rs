//! What a session says while nothing goes wrong.

use super::*;

/// The words of one segment.
const SEGMENT: [&str; 7] = [
    "segment_prompt_source",
    "ltx2_segment_start",
    "media_init",
    "media",
    "media_segment_complete",
    "step_complete",
    "ltx2_segment_complete",
];

#[tokio::test]
async fn seed_prompts_are_played_with_all_fields_in_order() {
    let server = Server::start(ONE_GPU);
    server.ready(1).await;
    let mut client = open(
        &server,
        json!({"curated_prompts": ["a fox", " a hill ", "", 7], "preset_id": "p1", "preset_label": "P one"}),
    )
    .await;
    let next = async |client: &mut Client| match client.next().await {
        Heard::Text(text) => text,
        other => panic!("{}", short(&other)),
    };
    for expected in [
        json!({"type": "queue_status", "position": 0, "total_gpus": 1, "available_gpus": 1}),
        json!({"type": "gpu_assigned", "gpu_id": 0, "session_timeout": 300}),
        json!({"type": "loop_generation_updated", "enabled": false}),
        json!({"type": "generation_paused_updated", "paused": false}),
        json!({"type": "ltx2_stream_start", "total_segments": 2, "preset_id": "p1", "stream_mode": "av_fmp4",
            "live_mode": true, "loop_generation_enabled": false, "loop_iteration": 1, "generation_segment_cap": 6}),
        json!({"type": "seed_prompts_updated", "prompts": ["a fox", "a hill"], "preset_id": "p1",
            "preset_label": "P one", "reason": "init", "seed_prompt_count": 2}),
    ] {
        assert_eq!(next(&mut client).await, expected);
    }
    for (idx, prompt) in [(1, "a fox"), (2, "a hill")] {
        let source = json!({"type": "segment_prompt_source", "segment_idx": idx, "source": "curated", "prompt_id": null,
            "fallback_used": false, "seed_prompt_index": idx - 1, "loop_iteration": 1});
        assert_eq!(next(&mut client).await, source);
        let start = json!({"type": "ltx2_segment_start", "segment_idx": idx, "total_segments": 2, "prompt": prompt,
            "source": "curated", "seed_prompt_index": idx - 1, "loop_iteration": 1});
        assert_eq!(next(&mut client).await, start);
        let init = next(&mut client).await;
        assert_eq!(
            (&init["type"], &init["segment_idx"], &init["mode"]),
            (&json!("media_init"), &json!(idx), &json!("av_fmp4"))
        );
        assert!(
            init["mime"]
                .as_str()
                .unwrap()
                .starts_with("video/mp4; codecs=")
        );
        let mut messages = 0;
        let complete = loop {
            match client.next().await {
                Heard::Media(_) => messages += 1,
                Heard::Text(text) => break text,
                other => panic!("{}", short(&other)),
            }
        };
        let expected = json!({"type": "media_segment_complete", "segment_idx": idx,
            "stream_id": init["stream_id"], "chunks": messages});
        assert_eq!(complete, expected);
        let step = next(&mut client).await;
        let latency = step["latency_ms"].as_object().unwrap();
        let fields: Vec<&str> = latency.keys().map(String::as_str).collect();
        assert_eq!(
            fields,
            ["main_user_step", "overhead", "total", "worker_e2e"]
        );
        assert!(latency.values().all(|ms| ms.as_f64().unwrap() >= 0.0));
        let expected =
            json!({"type": "ltx2_segment_complete", "segment_idx": idx, "total_segments": 2});
        assert_eq!(next(&mut client).await, expected);
    }
    let dry = json!({"type": "prompt_sources_blocked", "segment_idx": 3});
    assert_eq!(next(&mut client).await, dry);
    let sessions = server.get("/v1/sessions").await.1;
    assert_eq!(sessions["sessions"][0]["protocol"], "dreamverse");
    client.send(json!({"type": "leave"})).await;
    assert_eq!(client.next().await, Heard::Closed(Some(1000)));
    server.sessions(0).await;
    let metrics = server.request("GET", "/metrics", None).await.into_body();
    let stored = metrics
        .lines()
        .find(|line| line.starts_with("fastvideo_store_sessions "));
    assert_eq!(
        stored,
        Some("fastvideo_store_sessions 0.0"),
        "nothing is stored"
    );
}

#[tokio::test]
async fn a_prompt_is_a_rollout_of_six_without_a_language_model() {
    let server = Server::start(ONE_GPU);
    let mut client = open(&server, json!({"initial_rollout_prompt": "a fox"})).await;
    let started = client.until_type("rewrite_seed_prompts_started").await;
    assert_eq!(
        started,
        json!({"type": "rewrite_seed_prompts_started", "model": ""})
    );
    client.expect("generation_paused_updated").await;
    let updated = client.expect("seed_prompts_updated").await;
    assert_eq!(updated["prompts"], json!(["a fox"; 6].to_vec()));
    assert_eq!(
        (
            &updated["reason"],
            &updated["fallback_used"],
            &updated["raw_llm_output"]
        ),
        (&json!("rewrite"), &json!(true), &Value::Null)
    );
    assert!(!updated["error"].as_str().unwrap().is_empty());
    let complete = client.expect("rewrite_seed_prompts_complete").await;
    assert_eq!(complete["fallback_used"], true);
    assert_eq!(
        client.expect("ltx2_stream_start").await["total_segments"],
        6
    );
    let reset = client.expect("seed_prompts_reset_applied").await;
    let expected = json!({"type": "seed_prompts_reset_applied", "reason": "initial_rewrite", "loop_iteration": 1,
        "seed_prompt_count": 6, "dropped_user_raw_queue": 0, "dropped_user_ready_queue": 0});
    assert_eq!(reset, expected);
    for _ in 0..6 {
        assert_eq!(
            kinds_until(&mut client, "ltx2_segment_complete").await,
            SEGMENT
        );
    }
    client.expect("ltx2_stream_complete").await;
    // An edit begins the next rollout.
    client
        .send(
            json!({"type": "rewrite_seed_prompts", "rewrite_instruction": "make it night",
            "prompt_window_prompts": ["a fox", "a hill"]}),
        )
        .await;
    let updated = client.until_type("seed_prompts_updated").await;
    assert_eq!(
        updated["prompts"],
        json!(["a fox. make it night.", "a hill. make it night."])
    );
    client.expect("rewrite_seed_prompts_complete").await;
    assert_eq!(
        client.expect("ltx2_stream_start").await["loop_iteration"],
        2
    );
    let reset = client.expect("seed_prompts_reset_applied").await;
    assert_eq!(reset["reason"], "rewrite_rollout");
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(rollout.prompts.len(), 2);
}

#[tokio::test]
async fn three_projects_follow_each_other_on_one_connection() {
    let server = Server::start(SLOW);
    let mut client = live(&server, &["one", "two"]).await;
    client.until_type("media_init").await;
    client
        .send(json!({"type": "project_init_v1", "curated_prompts": ["no"]}))
        .await;
    client.error().await;
    client
        .send(json!({"type": "end_project_keep_session"}))
        .await;
    // Its media are out, so the segment is finished.
    let rest = kinds_until(&mut client, "project_idle").await;
    assert!(
        rest.ends_with(
            &[
                "ltx2_segment_complete",
                "ltx2_stream_complete",
                "project_idle"
            ]
            .map(str::to_owned)
        ),
        "{rest:?}"
    );
    for kind in [
        "append_prompt",
        "rewrite_seed_prompts",
        "reset_to_seed_prompts",
        "restart_generation",
    ] {
        client.send(json!({"type": kind, "prompt": "x"})).await;
        client.expect("error").await;
    }
    client
        .send(json!({"type": "end_project_keep_session"}))
        .await;
    client.expect("project_idle").await;

    client.send(json!({"type": "project_init_v1", "curated_prompts": ["three"], "preset_label": "Three"})).await;
    client.expect("ltx2_stream_start").await;
    let reset = client.expect("seed_prompts_reset_applied").await;
    assert_eq!(
        (&reset["reason"], &reset["loop_iteration"]),
        (&json!("project_init"), &json!(1))
    );
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(rollout.prompts, ["three"]);
    client
        .send(json!({"type": "end_project_keep_session"}))
        .await;
    assert_eq!(
        kinds_until(&mut client, "project_idle").await,
        ["ltx2_stream_complete", "project_idle"]
    );

    client
        .send(json!({"type": "project_init_v1", "initial_rollout_prompt": "four"}))
        .await;
    client.expect("rewrite_seed_prompts_started").await;
    let rollout = take_until(&mut client, "ltx2_stream_complete").await;
    assert_eq!(rollout.prompts, ["four"; 6]);
}

#[tokio::test]
async fn a_rollout_begins_like_a_session_and_gives_its_media() {
    let server = Server::start(ONE_GPU);
    let mut client = live(&server, &["one", "two"]).await;
    let first = take_until(&mut client, "prompt_sources_blocked").await;
    client.send(json!({"type": "reset_to_seed_prompts"})).await;
    client.expect("seed_prompts_reset_pending").await;
    let again = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(again.prompts, ["one", "two"]);
    assert_eq!(again.media, first.media, "a rollout begins without a state");
    let names = |rollout: &Rollout| -> Vec<Value> {
        let inits = rollout
            .texts
            .iter()
            .filter(|text| text["type"] == "media_init");
        inits.map(|text| text["stream_id"].clone()).collect()
    };
    assert_ne!(names(&first), names(&again));
}

#[tokio::test]
async fn two_seeds_loop_to_the_cap() {
    let server = Server::start(ONE_GPU);
    let mut client = open(
        &server,
        json!({"curated_prompts": ["one", "two"], "loop_generation_enabled": true}),
    )
    .await;
    let rollouts = take_until(&mut client, "ltx2_stream_complete").await;
    assert_eq!(rollouts.prompts, ["one", "two", "one", "two", "one", "two"]);
    let of = |kind: &str| {
        rollouts
            .texts
            .iter()
            .filter(|text| text["type"] == kind)
            .count()
    };
    assert_eq!((of("ltx2_stream_start"), of("loop_restarted")), (3, 2));
    silent(&mut client).await;
}

#[tokio::test]
async fn a_rewrite_during_a_segment_begins_anew_at_its_end_or_before() {
    let server = Server::start(SLOW);
    let mut client = live(&server, &["one", "two", "three"]).await;
    client.until_type("ltx2_segment_start").await;
    client
        .send(json!({"type": "rewrite_seed_prompts", "rewrite_instruction": "at night"}))
        .await;
    let kinds = kinds_until(&mut client, "seed_prompts_reset_applied").await;
    assert!(
        !kinds.contains(&"ltx2_segment_complete".to_owned()),
        "nobody wanted it: {kinds:?}"
    );
    assert!(
        !kinds.contains(&"ltx2_stream_complete".to_owned()),
        "{kinds:?}"
    );
    let rollout = take_until(&mut client, "media_init").await;
    assert_eq!(rollout.prompts, ["one. at night."]);
    // Now its media are out.
    client
        .send(json!({"type": "rewrite_seed_prompts", "rewrite_instruction": "in rain"}))
        .await;
    let kinds = kinds_until(&mut client, "seed_prompts_reset_applied").await;
    let complete = kinds
        .iter()
        .position(|kind| kind == "ltx2_segment_complete");
    let start = kinds.iter().position(|kind| kind == "ltx2_stream_start");
    assert!(complete.is_some() && complete < start, "{kinds:?}");
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(rollout.prompts[0], "one. at night. in rain.");
}

#[tokio::test]
async fn prompts_are_appended_before_between_and_after_seeds() {
    let server = Server::start(SLOW);
    let mut client = live(&server, &["one", "two"]).await;
    client.until_type("ltx2_segment_start").await;
    client
        .send(json!({"type": "append_prompt", "prompt_id": "u", "prompt": " between "}))
        .await;
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(rollout.prompts, ["between", "two"]);
    let source = rollout
        .texts
        .iter()
        .find(|text| text["type"] == "segment_prompt_source")
        .unwrap();
    let expected = json!({"type": "segment_prompt_source", "segment_idx": 2, "source": "user_raw", "prompt_id": "u",
        "fallback_used": false, "seed_prompt_index": null, "loop_iteration": 1});
    assert_eq!(source, &expected);
    client
        .send(json!({"type": "append_prompt", "prompt": "after"}))
        .await;
    let received = client.expect("prompt_received").await;
    assert_eq!(received["queue_depth"], 1);
    let ready = client.expect("prompt_ready").await;
    assert_eq!(
        (&ready["prompt_id"], &ready["source"]),
        (&received["prompt_id"], &json!("user_raw"))
    );
    let resumed = client.expect("prompt_sources_resumed").await;
    assert_eq!(
        (&resumed["segment_idx"], &resumed["source"]),
        (&json!(4), &json!("user_raw"))
    );
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(rollout.prompts, ["after"]);
}

#[tokio::test]
async fn switches_are_answered_and_a_pause_holds() {
    let server = Server::start(SLOW);
    let mut client = live(&server, &["one", "two"]).await;
    client
        .send(json!({"type": "set_generation_paused", "paused": true}))
        .await;
    let kinds = kinds_until(&mut client, "ltx2_segment_complete").await;
    assert!(
        kinds.contains(&"generation_paused_updated".to_owned()),
        "{kinds:?}"
    );
    silent(&mut client).await;
    for (kind, answer) in [
        ("set_enhancement", "enhancement_updated"),
        ("set_auto_extension", "auto_extension_updated"),
        ("set_loop_generation", "loop_generation_updated"),
    ] {
        client.send(json!({"type": kind, "enabled": true})).await;
        assert_eq!(client.expect(answer).await["enabled"], true);
        client.send(json!({"type": kind})).await;
        assert_eq!(client.expect(answer).await["enabled"], true);
    }
    client
        .send(json!({"type": "set_rewrite_temperature", "rewrite_temperature": 9}))
        .await;
    assert_eq!(
        client.expect("rewrite_temperature_updated").await["rewrite_temperature"],
        2.0
    );
    client
        .send(json!({"type": "set_rewrite_model", "rewrite_model": "x"}))
        .await;
    assert_eq!(
        client.expect("rewrite_model_updated").await["rewrite_model"],
        ""
    );
    client.send(json!({"type": "restart_generation"})).await;
    let restarted = client.expect("generation_restarted").await;
    assert_eq!(
        restarted,
        json!({"type": "generation_restarted", "reason": "cap_restart", "segment_cap": 6})
    );
    client.expect("ltx2_stream_start").await;
    assert_eq!(
        client.expect("seed_prompts_reset_applied").await["reason"],
        "cap_restart"
    );
}

#[tokio::test]
async fn a_clip_is_a_rollout_of_its_own() {
    let server = Server::start(ONE_GPU);
    let mut client = open(
        &server,
        json!({"curated_prompts": ["one"], "single_clip_mode": true}),
    )
    .await;
    let start = client.until_type("ltx2_stream_start").await;
    assert_eq!(start["generation_segment_cap"], 0);
    take_until(&mut client, "ltx2_stream_complete").await;
    client
        .send(json!({"type": "simple_generate", "prompt": "two", "prompt_id": "c"}))
        .await;
    client.expect("prompt_received").await;
    let kinds = kinds_until(&mut client, "ltx2_stream_complete").await;
    assert_eq!(
        kinds[..3],
        [
            "ltx2_stream_start",
            "seed_prompts_reset_applied",
            "prompt_ready"
        ]
    );
    silent(&mut client).await;
}

#[tokio::test]
async fn who_says_nothing_has_an_open_rollout_after_ten_seconds() {
    let server = Server::start(ONE_GPU);
    let mut client = server.connect_to("/ws").await;
    client.expect("queue_status").await;
    let start = client.until_type("ltx2_stream_start").await;
    assert_eq!(start["total_segments"], 0);
    assert_eq!(
        client.until_type("prompt_sources_blocked").await["segment_idx"],
        1
    );
    client
        .send(json!({"type": "append_prompt", "prompt": "a fox"}))
        .await;
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(rollout.prompts, ["a fox"]);
}

#[tokio::test]
async fn garbage_is_an_error_and_ends_nothing() {
    let server = Server::start(SLOW);
    for first in [
        "[]",
        "x",
        "{}",
        r#"{"type":"session_init_v2","curated_prompts":"x"}"#,
    ] {
        let mut client = server.connect_to("/ws").await;
        client.expect("queue_status").await;
        client.send_text(first).await;
        client.expect("error").await;
        assert_eq!(client.next().await, Heard::Closed(Some(1003)), "{first}");
    }
    let mut client = server.connect_to("/ws").await;
    client
        .send(json!({"type": "session_init_v2", "initial_image": {"data_url": "fox"}}))
        .await;
    client.until_type("error").await;
    assert_eq!(client.next().await, Heard::Closed(Some(1003)));

    let mut client = live(&server, &["one"]).await;
    for garbage in [
        "x",
        "[1]",
        r#"{"type":7}"#,
        r#"{"type":"append_prompt","prompt":{}}"#,
    ] {
        client.send_text(garbage).await;
        client.until_type("error").await;
    }
    client
        .send(json!({"type": "append_prompt", "prompt": " "}))
        .await;
    client.until_type("error").await;
    client.send_text(r#"{"type":"dance"}"#).await;
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(
        rollout.media.len(),
        usize::from(!rollout.prompts.is_empty())
    );
    client.send_binary(b"x").await;
    client.until_type("error").await;
    assert_eq!(client.next().await, Heard::Closed(Some(1008)));
}

#[tokio::test]
async fn a_rollout_that_replaces_another_one_has_all_its_segments() {
    let server = Server::start(SLOW);
    let mut client = live(&server, &["one"; 6]).await;
    client.until_type("media_init").await;
    client
        .send(json!({"type": "rewrite_seed_prompts", "prompt_window_prompts": vec!["two"; 6]}))
        .await;
    client.until_type("seed_prompts_reset_applied").await;
    let rollout = take_until(&mut client, "ltx2_stream_complete").await;
    assert_eq!(rollout.prompts, ["two"; 6]);
}

#[tokio::test]
async fn texts_that_are_too_long_are_refused_by_name() {
    let server = Server::start(ONE_GPU);
    for (field, length) in [
        ("preset_id", 201),
        ("preset_label", 201),
        ("rewrite_user_system_prompt", 65537),
    ] {
        let text = "x".repeat(length);
        let mut client = open(&server, json!({field: text, "curated_prompts": ["one"]})).await;
        let error = client.until_type("error").await;
        assert!(
            error["message"].as_str().unwrap().contains(field),
            "{error}"
        );
        assert_eq!(client.next().await, Heard::Closed(Some(1003)));
    }
    let mut client = live(&server, &["one"]).await;
    let text = "x".repeat(65537);
    client
        .send(json!({"type": "rewrite_seed_prompts", "rewrite_window_system_prompt": text}))
        .await;
    let error = client.until_type("error").await;
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("rewrite_window_system_prompt"), "{error}");
}
