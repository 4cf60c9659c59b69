//! Workers that die, hang or talk nonsense in the middle of their work: what the clients see of it, and what becomes of
//! the worker.

use std::fs;

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::harness::{Client, Heard, Segment, Server, WATCHFUL, exists, short};

/// Faults that end a worker, with the kind of exit that they are.
const KILLING: &[(&str, &str)] = &[
    ("exit", "crashed"),
    ("abort", "crashed"),
    ("panic", "crashed"),
    ("stop", "stuck"),
    ("spin", "stuck"),
    ("garbage", "bad_link"),
];

/// What a client sees when the worker of its segment is lost.
#[derive(Clone, Copy, Debug)]
enum Seen {
    /// Nothing but a pause.
    Pause,
    /// An error, and the segment from its start: the other worker gives other media.
    Restart,
}

#[tokio::test]
async fn worker_lost_at_a_denoise_step_is_a_pause() {
    every_fault_at("step3", 3).await;
}

#[tokio::test]
async fn worker_lost_at_the_first_frame_is_a_pause() {
    every_fault_at("frame0", 3).await;
}

#[tokio::test]
async fn worker_lost_after_media_is_a_pause() {
    every_fault_at("frame9", 3).await;
}

#[tokio::test]
async fn worker_lost_at_the_end_of_a_segment_is_a_pause() {
    every_fault_at("end", 3).await;
}

#[tokio::test]
async fn media_that_differ_after_a_worker_was_lost_start_the_segment_again() {
    let expected = without_faults(&["a red fox".to_owned()]).await;
    let faults = "blank@frame0,max_attempt=1;exit@frame9,max_attempt=1";
    let args = ["--gpus=2", "--generator.synthetic.faults", faults];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let mut client = server.active(json!({})).await;
    client.prompt("a red fox").await;
    let heard = hear_segment(&mut client).await;
    check_replay(&heard, Seen::Restart, &expected[0]);
}

#[tokio::test]
async fn only_worker_lost_at_a_denoise_step_is_waited_for() {
    every_fault_at("step3", 1).await;
}

#[tokio::test]
async fn only_worker_lost_after_media_is_waited_for() {
    every_fault_at("frame9", 1).await;
}

/// One session that meets every fault in turn, beside one that must not notice.
async fn every_fault_at(point: &str, gpus: usize) {
    let faults: String = KILLING
        .iter()
        .map(|(kind, _)| format!("{kind}@{point},prompt=with {kind},max_attempt=1;"))
        .collect();
    let gpus = gpus.to_string();
    let args = ["--gpus", &gpus, "--generator.synthetic.faults", &faults];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let prompts: Vec<_> = KILLING.iter().map(|(kind, _)| with(kind)).collect();
    let mut client = server.open(json!({})).await;
    let mut worker = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let story = async {
        let expected = without_faults(&prompts).await;
        for ((kind, exit), expected) in KILLING.iter().zip(&expected) {
            let gpu = u32::try_from(worker["gpu_id"].as_u64().unwrap()).unwrap();
            let before = server.gpu(gpu).await;
            let pid = server.worker_pid(gpu).await;
            client.prompt(&with(kind)).await;
            worker = check_replay(&hear_segment(&mut client).await, Seen::Pause, expected);
            assert_ne!(worker["worker_id"], before["worker_id"], "{kind}");
            let after = server
                .gpu_until(gpu, "the worker is replaced", |gpu| {
                    gpu["restarts"] == before["restarts"].as_u64().unwrap() + 1
                        && gpu["ready"] == true
                })
                .await;
            assert_eq!(after["last_exit"]["kind"], *exit, "{kind}: {after}");
            assert!(!exists(pid), "{kind}");
        }
    };
    if gpus == "1" {
        story.await;
    } else {
        beside_another_session(&server, story).await;
    }
}

fn with(kind: &str) -> String {
    format!("a red fox with {kind}")
}

/// The same prompts, one session, nothing goes wrong.
async fn without_faults(prompts: &[String]) -> Vec<Segment> {
    let server = Server::start(&["--gpus", "1"]);
    let mut client = server.active(json!({})).await;
    let mut segments = Vec::new();
    for prompt in prompts {
        segments.push(client.segment(prompt).await);
    }
    segments
}

/// Runs the story while another session generates segment after segment, on a worker of its own.
async fn beside_another_session(server: &Server, story: impl Future<Output = ()>) {
    let mut other = server.active(json!({})).await;
    let mut served = 0;
    let serve = async {
        loop {
            let segment = other.segment("a quiet lake").await;
            let ids: Vec<_> = segment.texts.iter().map(|m| &m["segment_idx"]).collect();
            assert!(ids.iter().all(|&id| id == served), "{:?}", segment.texts);
            assert_eq!(segment.only("ltx2_segment_start")["attempt"], 1);
            served += 1;
        }
    };
    tokio::select! {
        () = story => {}
        () = serve => {}
    }
    assert!(served > 0, "the other session was not served");
}

/// Everything up to the end of the segment.
async fn hear_segment(client: &mut Client) -> Vec<Heard> {
    let mut all = Vec::new();
    loop {
        let heard = client.next().await;
        let last = matches!(&heard, Heard::Text(text) if text["type"] == "ltx2_segment_complete");
        assert!(!matches!(heard, Heard::Closed(_)), "{heard:?}");
        all.push(heard);
        if last {
            return all;
        }
    }
}

/// Checks what a client heard of a segment that lost its first worker; returns the new `gpu_assigned`.
fn check_replay(heard: &[Heard], seen: Seen, expected: &Segment) -> Value {
    let (mut types, mut media) = (Vec::new(), vec![Vec::new()]);
    let mut assigned = Vec::new();
    for heard in heard {
        match heard {
            Heard::Text(text) if text["type"] == "gpu_assigned" => assigned.push(text),
            Heard::Text(text) => {
                match text["type"].as_str().unwrap() {
                    "error" => {
                        assert_eq!(text["code"], "worker_failed");
                        assert_eq!(text["retryable"], true);
                        assert_eq!(text["restarting"], true);
                        media.push(Vec::new());
                    }
                    "ltx2_segment_start" => assert_eq!(text["attempt"], media.len()),
                    "media_segment_complete" => {
                        let same = expected.only("media_segment_complete");
                        assert_eq!(text["chunks"], same["chunks"]);
                        assert_eq!(text["pts_base_ms"], same["pts_base_ms"]);
                    }
                    _ => {}
                }
                let step = text["step"].as_u64().unwrap_or(0);
                types.push((text["type"].as_str().unwrap(), step));
                let idx = &expected.only("ltx2_segment_start")["segment_idx"];
                assert_eq!(&text["segment_idx"], idx, "{text}");
            }
            Heard::Media(bytes) => media.last_mut().unwrap().push(bytes.clone()),
            Heard::Closed(_) => panic!("closed"),
        }
    }
    let generated = [
        ("ltx2_segment_start", 0),
        ("step_complete", 1),
        ("step_complete", 2),
        ("step_complete", 3),
        ("step_complete", 4),
        ("media_init", 0),
    ];
    let completed = [("media_segment_complete", 0), ("ltx2_segment_complete", 0)];
    let heard: Vec<_> = heard.iter().map(short).collect();
    let all = match seen {
        Seen::Pause => [&generated[..], &completed].concat(),
        Seen::Restart => {
            let again = [("error", 0), ("ltx2_segment_start", 0), ("media_init", 0)];
            [&generated[..], &again, &completed].concat()
        }
    };
    assert_eq!(types, all, "{heard:#?}");
    let last = media.pop().unwrap();
    assert!(last == expected.media, "another attempt, other media");
    for voided in media {
        assert!(!voided.is_empty() && !expected.media.starts_with(&voided));
    }
    assert_eq!(assigned.len(), 1, "{heard:#?}");
    assigned[0].clone()
}

/// Where in a segment a signal hits.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Denoise,
    Media,
    /// All but the last fragment are out.
    Late,
}

#[tokio::test]
async fn killed_worker_s_segment_goes_on_elsewhere() {
    signal_in_every_phase(Signal::SIGKILL, "2").await;
}

#[tokio::test]
async fn killed_only_worker_s_segment_waits_for_the_next() {
    signal_in_every_phase(Signal::SIGKILL, "1").await;
}

#[tokio::test]
async fn stopped_worker_s_segment_goes_on_elsewhere() {
    signal_in_every_phase(Signal::SIGSTOP, "2").await;
}

#[tokio::test]
async fn stopped_only_worker_s_segment_waits_for_the_next() {
    signal_in_every_phase(Signal::SIGSTOP, "1").await;
}

async fn signal_in_every_phase(signal: Signal, gpus: &str) {
    let expected = without_faults(&["a red fox".to_owned()]).await;
    tokio::join!(
        signal_at(Phase::Denoise, signal, gpus, &expected[0]),
        signal_at(Phase::Media, signal, gpus, &expected[0]),
        signal_at(Phase::Late, signal, gpus, &expected[0]),
    );
}

async fn signal_at(phase: Phase, signal: Signal, gpus: &str, expected: &Segment) {
    let pace = [
        "--generator.synthetic.step_ms=80",
        "--generator.synthetic.frame_ms=80",
        "--gpus",
        gpus,
    ];
    let server = Server::start(&[WATCHFUL, &pace].concat());
    let mut client = server.open(json!({})).await;
    let first = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let gpu = u32::try_from(first["gpu_id"].as_u64().unwrap()).unwrap();
    let pid = server.worker_pid(gpu).await;
    client.prompt("a red fox").await;
    let mut heard = Vec::new();
    let mut media = 0;
    loop {
        heard.push(client.next().await);
        let last = heard.last().unwrap();
        media += usize::from(matches!(last, Heard::Media(_)));
        let now = match phase {
            Phase::Denoise => matches!(last, Heard::Text(text) if text["step"] == 2),
            Phase::Media => media == 2,
            Phase::Late => media == expected.media.len() - 1,
        };
        if now {
            break;
        }
    }
    kill(pid, signal).unwrap();
    heard.extend(hear_segment(&mut client).await);
    let second = check_replay(&heard, Seen::Pause, expected);
    assert_eq!(first["gpu_id"] != second["gpu_id"], gpus == "2", "{second}");
    // Nothing is left of the old one that could wake up and speak.
    assert!(!exists(pid));
    let kind = match signal {
        Signal::SIGSTOP => "stuck",
        _ => "crashed",
    };
    let gpu = server.gpu_until(gpu, "the worker is replaced", |gpu| gpu["ready"] == true);
    let gpu = gpu.await;
    assert_eq!(gpu["last_exit"]["kind"], kind);
    assert_eq!(gpu["restarts"], 1);
}

#[tokio::test]
async fn worker_that_is_stopped_for_a_moment_goes_on() {
    let server = Server::start(&[WATCHFUL, &["--generator.synthetic.step_ms=20"]].concat());
    let mut client = server.active(json!({})).await;
    let pid = server.worker_pid(0).await;
    client.prompt("a red fox").await;
    client.until_type("step_complete").await;
    kill(pid, Signal::SIGSTOP).unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    client.until_type("ltx2_segment_complete").await;
    assert_eq!(server.gpu(0).await["restarts"], 0);
    assert_eq!(server.worker_pid(0).await, pid);
}

#[tokio::test]
async fn failed_segment_leaves_its_worker_and_its_session_as_they_are() {
    for point in ["step1", "step3", "frame0", "frame9", "end"] {
        let faults = format!("error@{point},segment=1");
        let server = Server::start(&["--generator.synthetic.faults", &faults]);
        let mut client = server.active(json!({})).await;
        let pid = server.worker_pid(0).await;
        client.segment("a red fox").await;
        client.prompt("a red fox").await;
        client.until_type("ltx2_segment_start").await;
        let error = client.error().await;
        assert_eq!(error["code"], "worker_failed", "{point}");
        assert_eq!(error["retryable"], true);
        assert_eq!(error["restarting"], Value::Null);
        assert_eq!(error["segment_idx"], 1);
        let segment = client.segment("a red fox").await;
        let start = segment.only("ltx2_segment_start");
        assert_eq!(
            (&start["segment_idx"], &start["attempt"]),
            (&json!(1), &json!(1))
        );
        let prompts = ["a red fox".to_owned(), "a red fox".to_owned()];
        assert!(segment.media == without_faults(&prompts).await[1].media);
        assert_eq!(server.worker_pid(0).await, pid);
        assert_eq!(server.gpu(0).await["restarts"], 0);
    }
}

#[tokio::test]
async fn worker_whose_step_takes_too_long_is_stuck() {
    let args = ["--generator.synthetic.faults", "slow@step2,max_attempt=1"];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let mut client = server.active(json!({})).await;
    let segment = client.segment("a red fox").await;
    assert_eq!(segment.of("error"), Vec::<&Value>::new());
    let exit = &server.gpu(0).await["last_exit"];
    assert_eq!(exit["kind"], "stuck");
    let reason = exit["reason"].as_str().unwrap();
    assert!(reason.contains("no denoise step"), "{reason}");
}

#[tokio::test]
async fn worker_that_is_as_slow_as_its_warm_up_is_not_stuck() {
    let args = [
        "--streaming.pool.min_step_timeout_ms=500",
        "--generator.synthetic.step_ms=1000",
        "--default_request.sampling.num_inference_steps=2",
        "--streaming.warmup.num_inference_steps=1",
    ];
    let server = Server::start(&args);
    let mut client = server.active(json!({})).await;
    let segment = client.segment("a red fox").await;
    assert_eq!(segment.of("error"), Vec::<&Value>::new());
    assert_eq!(server.gpu(0).await["restarts"], 0);
}

#[tokio::test]
async fn worker_that_leaks_is_shown_as_large_and_goes_on() {
    let server = Server::start(&["--generator.synthetic.faults", "leak@step1"]);
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;
    let leaked = |gpu: &Value| gpu["resident_bytes"].as_u64() > Some(256 << 20);
    server.gpu_until(0, "the leak is seen", leaked).await;
    client.segment("a red fox").await;
    assert_eq!(server.gpu(0).await["restarts"], 0);
}

#[tokio::test]
async fn segment_that_kills_every_worker_is_refused_and_nothing_else() {
    let faults = "exit@step1,prompt=poison";
    let args = [
        "--gpus=3",
        "--max-attempts=3",
        "--generator.synthetic.faults",
        faults,
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let mut client = server.active(json!({})).await;
    beside_another_session(&server, async {
        client.prompt("poison").await;
        let heard = client.collect_until("error").await;
        assert_eq!(heard.of("ltx2_segment_start").len(), 1);
        let error = heard.only("error");
        assert_eq!(error["code"], "worker_failed");
        assert_eq!(error["retryable"], false);
        assert_eq!(error["restarting"], Value::Null);
        let segment = client.segment("a red fox").await;
        assert_eq!(segment.only("ltx2_segment_start")["segment_idx"], 0);
        assert_eq!(segment.only("ltx2_segment_start")["attempt"], 1);
    })
    .await;
    let status = server.status().await;
    let gpus = status["gpu_status"].as_object().unwrap().values();
    assert_eq!(
        gpus.map(|gpu| gpu["restarts"].as_u64().unwrap())
            .sum::<u64>(),
        3
    );
}

#[tokio::test]
async fn poison_with_media_is_refused_after_its_attempts() {
    let faults = "exit@frame9,prompt=poison";
    let args = ["--max-attempts=2", "--generator.synthetic.faults", faults];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let mut client = server.active(json!({})).await;
    client.prompt("poison").await;
    let error = client.error().await;
    assert_eq!(
        (&error["retryable"], &error["restarting"]),
        (&json!(false), &Value::Null)
    );
    client.segment("a red fox").await;
}

#[tokio::test]
async fn cancelled_segment_whose_worker_dies_is_cancelled() {
    let args = ["--generator.synthetic.faults", "stop@step2,max_attempt=1"];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let mut client = server.active(json!({})).await;
    client.prompt("a red fox").await;
    client.until_type("step_complete").await;
    client.send(json!({"type": "cancel_segment"})).await;
    let cancelled = client.until_type("segment_cancelled").await;
    assert_eq!(cancelled["segment_idx"], 0);
}

#[tokio::test]
async fn worker_cannot_take_back_a_state_that_it_has_handed_over() {
    let server = Server::start(&[]);
    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.segment("a red fox").await;
    let pid = server.worker_pid(0).await;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let states: Vec<_> = descriptors
        .map(|fd| fd.unwrap().path())
        .filter(|fd| fs::read_link(fd).is_ok_and(|to| to.to_string_lossy().contains("memfd")))
        .collect();
    assert!(!states.is_empty(), "the worker holds the state");
    for state in states {
        let state = fs::OpenOptions::new().write(true).open(state);
        assert!(state.is_err() || state.unwrap().set_len(0).is_err());
    }
    let session = assigned["session_id"].as_str().unwrap();
    let path = format!("/v1/sessions/{session}/state?inline=true");
    assert_eq!(server.get(&path).await.0, 200);
    client.segment("a red fox").await;
    assert_eq!(server.worker_pid(0).await, pid);
}
