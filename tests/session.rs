//! What drives generation, and what ends a session.

use serde_json::{Value, json};

use crate::harness::{Client, Heard, Segment, Server};

const ONE_GPU: &[&str] = &["--gpus", "1"];
/// Steps and frames that leave time to say something while they run.
const SLOW: &[&str] = &[
    "--gpus",
    "1",
    "--generator.synthetic.step_ms",
    "15",
    "--generator.synthetic.frame_ms",
    "40",
];
/// More steps than anybody waits for.
const LONG: u32 = 200;

fn request(prompt: &str, fields: Value) -> Value {
    let mut message = json!({"type": "segment_prompt_source", "prompt": prompt});
    crate::harness::merge(&mut message, fields);
    message
}

fn switch(kind: &str, field: &str, on: bool) -> Value {
    json!({"type": kind, field: on})
}

fn pause(paused: bool) -> Value {
    switch("generation_paused_updated", "paused", paused)
}

fn looping(enabled: bool) -> Value {
    switch("loop_generation_updated", "enabled", enabled)
}

/// Prompt and source of the next segment, which is taken whole.
async fn next_segment(client: &mut Client) -> (String, String) {
    let segment = client.collect_until("ltx2_segment_complete").await;
    let start = segment.only("ltx2_segment_start");
    let text = |field: &str| start[field].as_str().unwrap().to_owned();
    (text("prompt"), text("source"))
}

#[track_caller]
fn assert_segment(given: (String, String), prompt: &str, source: &str) {
    assert_eq!((given.0.as_str(), given.1.as_str()), (prompt, source));
}

#[tokio::test]
async fn steps_are_told_while_they_are_made() {
    let server = Server::start(SLOW);
    let mut client = server.active(json!({})).await;
    client
        .send(request("a fox", json!({"num_inference_steps": LONG})))
        .await;
    client.expect("ltx2_segment_start").await;
    for step in 1..=3 {
        let expected = json!({
            "type": "step_complete", "segment_idx": 0, "step": step, "total_steps": LONG, "stage": "denoise",
        });
        assert_eq!(client.next().await, Heard::Text(expected));
    }
    // Step 200 is three seconds away.
    client.send(json!({"type": "cancel_segment"})).await;
    let rest = client.collect_until("segment_cancelled").await;
    assert!(rest.of("step_complete").len() < 150);
}

#[tokio::test]
async fn waiting_requests_run_in_order_and_one_above_the_limit_is_refused() {
    let limit: &[&str] = &["--streaming.limits.max_waiting_requests", "3"];
    let server = Server::start(&[ONE_GPU, limit].concat());
    let mut client = server.active(json!({})).await;
    client.send(pause(true)).await;
    for prompt in ["first", "second", "third", "fourth"] {
        client.prompt(prompt).await;
    }
    let error = client.expect("error").await;
    assert_eq!(error["code"], "invalid_message");
    assert_eq!(error["retryable"], true);
    assert!(error["message"].as_str().unwrap().contains('3'), "{error}");
    assert_eq!(client.so_far().await, [], "nothing runs while paused");

    client.send(pause(false)).await;
    for prompt in ["first", "second", "third"] {
        assert_segment(next_segment(&mut client).await, prompt, "user");
    }
    assert_eq!(client.so_far().await, []);
    client.prompt("fifth").await;
    assert_segment(next_segment(&mut client).await, "fifth", "user");
}

#[tokio::test]
async fn eight_requests_may_wait_by_default() {
    let server = Server::start(ONE_GPU);
    let mut client = server.active(json!({})).await;
    client.send(pause(true)).await;
    for _ in 0..8 {
        client.prompt("a fox").await;
    }
    assert_eq!(client.so_far().await, []);
    client.prompt("a fox").await;
    let error = client.expect("error").await;
    assert!(error["message"].as_str().unwrap().contains('8'), "{error}");
}

#[tokio::test]
async fn a_pause_lets_the_running_segment_finish_and_holds_the_next() {
    let server = Server::start(SLOW);
    let mut client = server.active(json!({})).await;
    client.prompt("first").await;
    client.prompt("second").await;
    client.until_type("step_complete").await;
    client.send(pause(true)).await;
    client.collect_until("ltx2_segment_complete").await;
    client.prompt("third").await;
    assert_eq!(client.so_far().await, []);
    client.send(pause(false)).await;
    assert_segment(next_segment(&mut client).await, "second", "user");
    assert_segment(next_segment(&mut client).await, "third", "user");
}

#[tokio::test]
async fn curated_prompts_run_round_and_round_up_to_the_cap() {
    let cap: &[&str] = &["--streaming.generation_segment_cap", "5"];
    let server = Server::start(&[ONE_GPU, cap].concat());
    let mut client = server
        .open(json!({"curated_prompts": ["a hill", "a lake", "a wood"], "loop_generation_enabled": true}))
        .await;
    client.until_type("ltx2_stream_start").await;
    for prompt in ["a hill", "a lake", "a wood", "a hill", "a lake"] {
        assert_segment(next_segment(&mut client).await, prompt, "curated");
    }
    let complete = json!({"type": "ltx2_stream_complete", "reason": "segment_cap"});
    assert_eq!(client.resumable("ltx2_stream_complete").await, complete);
    assert_eq!(client.next().await, Heard::Closed(Some(1000)));
    server.sessions(0).await;
}

#[tokio::test]
async fn a_request_goes_before_the_loop_and_new_prompts_hold_from_the_next_segment() {
    let steps: &[&str] = &["--default_request.sampling.num_inference_steps", "20"];
    let server = Server::start(&[SLOW, steps].concat());
    let mut client = server
        .active(json!({"curated_prompts": ["a hill", "a lake"], "loop_generation_enabled": true}))
        .await;
    let running = client.expect("ltx2_segment_start").await;
    assert_eq!(running["prompt"], "a hill");
    client.prompt("a ship").await;
    client
        .send(json!({"type": "seed_prompts_updated", "seed_prompts": ["a moor", "a mill"]}))
        .await;
    client.collect_until("ltx2_segment_complete").await;
    assert_segment(next_segment(&mut client).await, "a ship", "user");
    let running = client.expect("ltx2_segment_start").await;
    assert_eq!(running["prompt"], "a moor");
    client.send(looping(false)).await;
    client.collect_until("ltx2_segment_complete").await;
    assert_eq!(client.so_far().await, [], "the loop is off");
    client.send(looping(true)).await;
    client.send(pause(true)).await;
    assert_segment(next_segment(&mut client).await, "a mill", "curated");
}

#[tokio::test]
async fn a_bad_list_of_prompts_is_refused_and_the_old_one_stays() {
    let server = Server::start(ONE_GPU);
    let mut client = server.active(json!({"curated_prompts": ["a hill"]})).await;
    for (prompts, expected) in [
        (json!(["a", ""]), "`seed_prompts` is empty"),
        (json!(vec!["a"; 257]), "257"),
        (json!(["x".repeat(4001)]), "4001"),
    ] {
        client
            .send(json!({"type": "seed_prompts_updated", "seed_prompts": prompts}))
            .await;
        let error = client.expect("error").await;
        assert_eq!(error["code"], "invalid_message");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(expected), "{message}");
    }
    client.send(looping(true)).await;
    assert_segment(next_segment(&mut client).await, "a hill", "curated");
}

#[tokio::test]
async fn a_single_clip_is_one_segment() {
    let server = Server::start(ONE_GPU);
    let mut client = server.active(json!({"single_clip_mode": true})).await;
    client.prompt("a fox").await;
    client.prompt("a hare").await;
    assert_segment(next_segment(&mut client).await, "a fox", "user");
    let complete = json!({
        "type": "ltx2_stream_complete", "reason": "segment_cap", "dropped_requests": [{"prompt": "a hare"}],
    });
    assert_eq!(client.resumable("ltx2_stream_complete").await, complete);
    assert_eq!(client.next().await, Heard::Closed(Some(1000)));
}

#[tokio::test]
async fn an_idle_session_times_out_but_not_while_a_segment_runs() {
    let timeout: &[&str] = &["--streaming.session_timeout_seconds", "1"];
    let server = Server::start(&[SLOW, timeout].concat());
    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    assert_eq!(assigned["session_timeout"], 1);
    client.expect("ltx2_stream_start").await;
    // 1.2 s of steps, then 0.5 s of frames.
    client
        .send(request("a fox", json!({"num_inference_steps": 80})))
        .await;
    client.collect_until("ltx2_segment_complete").await;
    client.expect("idle_warning").await;
    let timeout = json!({"type": "session_timeout", "timeout_seconds": 1});
    assert_eq!(client.resumable("session_timeout").await, timeout);
    assert_eq!(client.next().await, Heard::Closed(Some(1000)));
    server.sessions(0).await;
}

#[tokio::test]
async fn a_session_with_a_message_now_and_then_does_not_time_out() {
    use futures_util::StreamExt;
    use tokio_tungstenite::tungstenite::Message;

    let timeout: &[&str] = &[
        "--streaming.session_timeout_seconds=1.2",
        "--streaming.limits.ping_interval_seconds=0.5",
    ];
    let server = Server::start(&[ONE_GPU, timeout].concat());
    let mut client = server.active(json!({})).await;
    // The server's pings are the clock.
    for _ in 0..4 {
        let heard = client.socket.next().await.unwrap().unwrap();
        assert!(matches!(heard, Message::Ping(_)), "{heard:?}");
        client.send(looping(false)).await;
    }
    assert_eq!(client.so_far().await, []);
    client.segment("a fox").await;
}

/// Asks for a segment that runs for seconds, and waits for its first step.
async fn start_long_segment(client: &mut Client) {
    client
        .send(request("a storm", json!({"num_inference_steps": LONG})))
        .await;
    client.until_type("step_complete").await;
}

#[tokio::test]
async fn a_cancelled_segment_leaves_no_trace_but_its_index() {
    let server = Server::start(SLOW);
    let quick = json!({"num_inference_steps": 1});
    let mut client = server.active(json!({})).await;
    client.send(request("a hill", quick.clone())).await;
    client.collect_until("ltx2_segment_complete").await;

    // At a step, with a request waiting.
    start_long_segment(&mut client).await;
    client.send(request("a lake", quick.clone())).await;
    client.send(json!({"type": "cancel_segment"})).await;
    let cancelled = client.until_type("segment_cancelled").await;
    assert_eq!(cancelled["segment_idx"], 1);
    let start = client.expect("ltx2_segment_start").await;
    assert_eq!(
        (&start["segment_idx"], &start["prompt"], &start["attempt"]),
        (&json!(1), &json!("a lake"), &json!(1))
    );

    // At a frame.
    loop {
        if let Heard::Media(_) = client.next().await {
            break;
        }
    }
    client.send(json!({"type": "cancel_segment"})).await;
    let rest = client.collect_until("segment_cancelled").await;
    assert_eq!(rest.only("segment_cancelled")["segment_idx"], 1);
    assert_eq!(rest.texts.len(), 1, "{:?}", rest.texts);

    // The next segment continues from the last one that was finished.
    client.send(request("a wood", quick.clone())).await;
    let after_cancel = client.collect_until("ltx2_segment_complete").await;
    client.send(json!({"type": "leave"})).await;
    let mut other = server.active(json!({})).await;
    other.send(request("a hill", quick.clone())).await;
    other.collect_until("ltx2_segment_complete").await;
    other.send(request("a wood", quick)).await;
    let undisturbed = other.collect_until("ltx2_segment_complete").await;
    assert!(after_cancel.media == undisturbed.media);
    let place = |segment: &Segment| {
        let complete = segment.only("media_segment_complete");
        (
            complete["segment_idx"].clone(),
            complete["pts_base_ms"].clone(),
        )
    };
    assert_eq!(place(&after_cancel), (json!(1), json!(500.0)));
    assert_eq!(place(&after_cancel), place(&undisturbed));
}

#[tokio::test]
async fn there_is_nothing_to_cancel_without_a_segment() {
    let server = Server::start(ONE_GPU);
    let mut client = server.active(json!({})).await;
    client.send(json!({"type": "cancel_segment"})).await;
    let error = client.expect("error").await;
    assert_eq!(
        error,
        json!({"type": "error", "code": "invalid_message", "message": "no segment is running", "retryable": true})
    );
    client.segment("a fox").await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_segment_and_its_session() {
    let server = Server::start(SLOW);
    let mut client = server.active(json!({})).await;
    start_long_segment(&mut client).await;
    client.send(json!({"type": "leave"})).await;
    let rest = client.collect_until("ltx2_stream_complete").await;
    assert_eq!(
        rest.only("ltx2_stream_complete")["reason"],
        "stop_requested"
    );
    assert!(rest.of("step_complete").len() < 150);
    assert_eq!(client.next().await, Heard::Closed(Some(1000)));
    server
        .gpu_until(0, "the job has stopped", |gpu| gpu["state"] == "ready")
        .await;
    server.sessions(0).await;
}

#[tokio::test]
async fn a_request_says_how_its_segment_is_made() {
    let server = Server::start(ONE_GPU);
    let mut media = Vec::new();
    for fields in [
        json!({}),
        // The operator's defaults, spelled out.
        json!({"seed": 10, "num_inference_steps": 4, "guidance_scale": 1.0, "negative_prompt": null}),
        json!({"seed": 11}),
        json!({"negative_prompt": "snow"}),
        json!({"guidance_scale": 7.5, "negative_prompt": "snow"}),
        json!({"num_inference_steps": 7, "source": "enhanced"}),
    ] {
        let mut client = server.active(json!({})).await;
        client
            .send(request("a fox in the snow", fields.clone()))
            .await;
        let segment = client.collect_until("ltx2_segment_complete").await;
        let steps = fields["num_inference_steps"].as_u64().unwrap_or(4);
        let start = segment.only("ltx2_segment_start");
        assert_eq!(start["total_steps"], steps);
        assert_eq!(start["source"], fields["source"].as_str().unwrap_or("user"));
        let told = segment.of("step_complete");
        let told: Vec<_> = told.iter().map(|m| m["step"].as_u64().unwrap()).collect();
        assert_eq!(told, Vec::from_iter(1..=steps));
        media.push(segment.bytes());
        client.send(json!({"type": "leave"})).await;
        client.closed().await;
    }
    assert!(media[0] == media[1], "defaults are defaults");
    assert!(media[0] != media[2], "the seed counts");
    assert!(media[0] != media[3], "the negative prompt counts");
    assert!(media[3] != media[4], "the guidance counts");
}

#[tokio::test]
async fn what_is_out_of_range_is_named_with_its_limit_and_the_session_goes_on() {
    let limit: &[&str] = &["--streaming.limits.max_inference_steps", "50"];
    let server = Server::start(&[ONE_GPU, limit].concat());
    let mut client = server.active(json!({})).await;
    let long = "é".repeat(4001);
    for (prompt, fields, expected) in [
        ("", json!({}), "`prompt` is empty"),
        (" \n\t", json!({}), "`prompt` is empty"),
        (
            long.as_str(),
            json!({}),
            "`prompt` has 4001 characters, at most 4000",
        ),
        (
            "a",
            json!({"negative_prompt": long}),
            "`negative_prompt` has 4001 characters",
        ),
        (
            "a",
            json!({"num_inference_steps": 0}),
            "`num_inference_steps` must be from 1 to 50, got 0",
        ),
        (
            "a",
            json!({"num_inference_steps": 51}),
            "`num_inference_steps` must be from 1 to 50, got 51",
        ),
        (
            "a",
            json!({"num_inference_steps": 2.5}),
            "num_inference_steps: invalid type",
        ),
        ("a", json!({"seed": -1}), "seed: invalid value"),
        ("a", json!({"seed": "ten"}), "seed: invalid value"),
        (
            "a",
            json!({"guidance_scale": "high"}),
            "guidance_scale: invalid type",
        ),
        ("a", json!({"source": "robot"}), "source: unknown variant"),
    ] {
        client.send(request(prompt, fields)).await;
        let error = client.expect("error").await;
        assert_eq!(
            (&error["code"], &error["retryable"]),
            (&json!("invalid_message"), &json!(false))
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(expected), "{message}");
    }
    client
        .send_text(r#"{"type":"segment_prompt_source","prompt":"a","guidance_scale":1e999}"#)
        .await;
    let error = client.expect("error").await;
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("guidance_scale"), "{message}");
    client.segment("a fox").await;
}

#[tokio::test]
async fn the_same_request_gives_the_same_bytes_on_another_worker() {
    let gpus: &[&str] = &["--gpus", "2"];
    let server = Server::start(&[ONE_GPU, gpus].concat());
    server.ready(2).await;
    let mut seen = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = server.open(json!({})).await;
        let gpu = client.until_type("gpu_assigned").await["gpu_id"].clone();
        let mut media = Vec::new();
        for prompt in ["a red fox", "a red fox at night"] {
            let message = request(prompt, json!({"seed": 77}));
            client.send(message).await;
            media.push(client.collect_until("ltx2_segment_complete").await.media);
        }
        seen.push((gpu, media));
        clients.push(client);
    }
    assert_ne!(seen[0].0, seen[1].0, "two workers");
    assert!(seen[0].1 == seen[1].1);
}

#[tokio::test]
async fn legacy_jpeg_sends_one_picture_per_frame() {
    let server = Server::start(ONE_GPU);
    let mut client = server.active(json!({"stream_mode": "legacy_jpeg"})).await;
    for _ in 0..2 {
        let segment = client.segment("a fox").await;
        let init = segment.only("media_init");
        assert_eq!(
            (&init["mime"], &init["mode"]),
            (&json!("image/jpeg"), &json!("legacy_jpeg"))
        );
        assert_eq!(segment.media.len(), 12);
        assert_eq!(segment.only("media_segment_complete")["chunks"], 12);
        for picture in &segment.media {
            let picture = image::load_from_memory_with_format(picture, image::ImageFormat::Jpeg);
            let picture = picture.unwrap();
            assert_eq!((picture.width(), picture.height()), (128, 96));
        }
    }
}

#[tokio::test]
async fn switches_without_effect_are_accepted_in_silence_and_a_rewriting_is_refused() {
    let server = Server::start(ONE_GPU);
    let mut client = server
        .active(json!({"enhancement_enabled": true, "auto_extension_enabled": true}))
        .await;
    for kind in ["enhancement_updated", "auto_extension_updated"] {
        for enabled in [false, true] {
            client.send(switch(kind, "enabled", enabled)).await;
        }
    }
    assert_eq!(client.so_far().await, [], "`features` has said it");
    client
        .send(json!({"type": "rewrite_seed_prompts", "seed_prompt": "a fox"}))
        .await;
    let error = client.expect("error").await;
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("invalid_message"), &json!(false))
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("no prompt enhancer"), "{message}");
    client.segment("a fox").await;
}

/// Each phase in which a client may go away with the only worker bound to it, or before.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Connected,
    Queued,
    Bound,
    Denoising,
    Media,
    Paused,
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place_in_every_phase() {
    let server = Server::start(SLOW);
    server.ready(1).await;
    for phase in [
        Phase::Connected,
        Phase::Queued,
        Phase::Bound,
        Phase::Denoising,
        Phase::Media,
        Phase::Paused,
    ] {
        let mut holder = match phase {
            Phase::Queued => Some(server.active(json!({})).await),
            _ => None,
        };
        let mut client = server.connect().await;
        if !matches!(phase, Phase::Connected) {
            client.send(json!({"type": "session_init_v2"})).await;
            client.expect("queue_status").await;
        }
        match phase {
            Phase::Connected | Phase::Queued => {}
            Phase::Bound => drop(client.until_type("ltx2_stream_start").await),
            Phase::Denoising => start_long_segment(&mut client).await,
            Phase::Media => {
                client
                    .send(request("a storm", json!({"num_inference_steps": 1})))
                    .await;
                while !matches!(client.next().await, Heard::Media(_)) {}
            }
            Phase::Paused => {
                client.until_type("ltx2_stream_start").await;
                client.send(pause(true)).await;
                client.prompt("a storm").await;
                client.so_far().await;
            }
        }
        drop(client);
        if let Some(holder) = &mut holder {
            server.sessions(1).await;
            holder.send(json!({"type": "leave"})).await;
        }
        let mut next = server.active(json!({})).await;
        next.send(request("a calm", json!({"num_inference_steps": 1})))
            .await;
        let start = next.until_type("ltx2_segment_start").await;
        assert_eq!(start["segment_idx"], 0, "{phase:?}");
        next.until_type("ltx2_segment_complete").await;
        drop(next);
        server.sessions(0).await;
        let gpu = server
            .gpu_until(0, "the place is free", |gpu| gpu["client_count"] == 0)
            .await;
        assert_eq!(gpu["restarts"], 0, "{phase:?}");
    }
    // None of the storms was finished for nobody.
    assert_eq!(server.gpu(0).await["segments_finished"], 6);
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}
