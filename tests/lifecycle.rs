//! The lifecycle of worker processes: started, watched, restarted, quarantined, and never left behind.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{SMALL, Server, WATCHFUL, command, exists, until};
use crate::initial_image;

/// One worker for each way to fail while it starts, and one that does not.
async fn every_fault_while_starting_at(point: &str) {
    // What hangs before the worker is ready is seen by the time that it may take for that; the heart beats on.
    let ways = [
        ("exit", "crashed"),
        ("abort", "crashed"),
        ("panic", "crashed"),
        ("garbage", "bad_link"),
        ("stop", "stuck"),
        ("spin", "stuck"),
        ("error", "boot"),
    ];
    let faults: String = ways
        .iter()
        .enumerate()
        .map(|(gpu, (kind, _))| format!("{kind}@{point},gpu={gpu},max_incarnation=1;"))
        .collect();
    let healthy = u32::try_from(ways.len()).unwrap();
    let gpus = (healthy + 1).to_string();
    let args = [
        "--streaming.warmup.timeout_seconds=4",
        "--gpus",
        &gpus,
        "--generator.synthetic.faults",
        &faults,
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;
    for (gpu, (kind, exit)) in ways.iter().enumerate() {
        let gpu = u32::try_from(gpu).unwrap();
        let replaced = |gpu: &Value| gpu["ready"] == true && gpu["restarts"] == 1;
        let gpu = server
            .gpu_until(gpu, "the worker is replaced", replaced)
            .await;
        assert_eq!(gpu["last_exit"]["kind"], *exit, "{kind}: {gpu}");
        assert_eq!(gpu["warmup_success"], true, "{kind}");
        assert_eq!(gpu["warmup_error"], Value::Null, "{kind}");
    }
    client.segment("a red fox").await;
    assert_eq!(server.gpu(healthy).await["restarts"], 0);
    assert_eq!(children(server.pid()).len(), ways.len() + 1);
}

#[tokio::test]
async fn worker_that_fails_before_it_loads_is_replaced() {
    every_fault_while_starting_at("boot").await;
}

#[tokio::test]
async fn worker_that_fails_while_it_loads_is_replaced() {
    every_fault_while_starting_at("load").await;
}

#[tokio::test]
async fn worker_that_fails_while_it_warms_up_is_replaced() {
    every_fault_while_starting_at("warmup").await;
}

#[tokio::test]
async fn idle_worker_that_fails_is_replaced() {
    let ways = [
        ("exit", "crashed"),
        ("abort", "crashed"),
        ("panic", "crashed"),
        ("garbage", "bad_link"),
        ("stop", "stuck"),
    ];
    let faults: String = ways
        .iter()
        .enumerate()
        .map(|(gpu, (kind, _))| format!("{kind}@idle,gpu={gpu},max_incarnation=1;"))
        .collect();
    let args = ["--gpus=5", "--generator.synthetic.faults", &faults];
    let server = Server::start(&[WATCHFUL, &args].concat());
    for (gpu, (kind, exit)) in (0..).zip(ways) {
        let replaced = |gpu: &Value| gpu["ready"] == true && gpu["restarts"] == 1;
        let gpu = server
            .gpu_until(gpu, "the worker is replaced", replaced)
            .await;
        assert_eq!(gpu["last_exit"]["kind"], exit, "{kind}: {gpu}");
    }
    assert_eq!(children(server.pid()).len(), 5);
}

#[tokio::test]
async fn worker_that_hangs_while_idle_is_found_out_by_the_next_job() {
    let args = ["--generator.synthetic.faults=spin@idle,max_incarnation=1"];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let mut client = server.active(json!({})).await;
    let segment = client.segment("a red fox").await;
    assert_eq!(segment.of("error"), Vec::<&Value>::new());
    assert_eq!(segment.of("ltx2_segment_start").len(), 1);
    assert_eq!(server.gpu(0).await["last_exit"]["kind"], "stuck");
}

#[tokio::test]
async fn worker_killed_in_any_phase_of_its_start_is_replaced() {
    let slowly = [
        "--generator.synthetic.load_ms=300",
        "--generator.synthetic.step_ms=50",
        "--streaming.warmup.num_inference_steps=5",
    ];
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let server = Server::start(&[WATCHFUL, &slowly].concat());
        for (restarts, state) in (0..).zip(["loading", "warming_up", "ready"]) {
            let reached = |gpu: &Value| gpu["state"] == state && gpu["restarts"] == restarts;
            server
                .gpu_until(0, "the worker has got so far", reached)
                .await;
            let pid = server.worker_pid(0).await;
            kill(pid, signal).unwrap();
            let replaced = |gpu: &Value| gpu["restarts"] == restarts + 1;
            server.gpu_until(0, "the exit is counted", replaced).await;
            assert!(!exists(pid), "{signal} while {state}");
        }
        server.active(json!({})).await.segment("a red fox").await;
    }
}

#[tokio::test]
async fn exit_of_an_idle_worker_is_in_the_status_at_once() {
    let server = Server::start(&["--streaming.pool.min_backoff_ms=60000"]);
    server.ready(1).await;
    let pid = server.worker_pid(0).await;
    kill(pid, Signal::SIGKILL).unwrap();
    let dead = |gpu: &Value| gpu["process_alive"] == false;
    let gpu = server.gpu_until(0, "the exit is seen", dead).await;
    assert!(!exists(pid));
    assert_eq!(gpu["ready"], false);
    assert_eq!(gpu["available"], false);
    assert_eq!(gpu["pid"], Value::Null);
    assert_eq!(gpu["state"], "backing_off");
    assert_eq!(gpu["restarts"], 1);
    assert_eq!(gpu["last_exit"]["reason"], "signal SIGKILL");
    let (code, readyz) = server.get("/readyz").await;
    assert_eq!((code, &readyz["ready_gpu_workers"]), (503, &json!(0)));
}

#[tokio::test]
async fn program_that_is_no_worker_is_tried_and_left_alone() {
    let args = [
        "--worker-bin=/bin/false",
        "--streaming.pool.quarantine_after=3",
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let left = |gpu: &Value| gpu["state"] == "quarantined";
    let gpu = server.gpu_until(0, "the GPU is left alone", left).await;
    assert_eq!(gpu["restarts"], 3);
    assert_eq!(gpu["last_exit"]["kind"], "crashed");
    assert_eq!(gpu["last_exit"]["reason"], "exit status 1");
    assert_eq!(gpu["warmup_error"], "exit status 1");
    assert_eq!(server.status().await["warmup_failed_gpus"], 1);
    assert_eq!(children(server.pid()), []);
}

#[tokio::test]
async fn worker_s_own_words_explain_why_it_cannot_start() {
    let script = Script::new("echo no such device >&2; exit 7");
    let args = [
        "--worker-bin",
        script.path(),
        "--streaming.pool.min_backoff_ms=10",
    ];
    let server = Server::start(&args);
    let said = |gpu: &Value| gpu["warmup_error"] == "exit status 7: no such device";
    server.gpu_until(0, "the reason is known", said).await;
}

/// Starts a worker that never connects, and expects it to be given up for a reason.
async fn check_silent_worker(limit: &str, reason: &str) {
    let script = Script::new("exec sleep 1000");
    let args = [
        "--worker-bin",
        script.path(),
        limit,
        "--streaming.pool.max_backoff_ms=60000",
        "--streaming.pool.min_backoff_ms=60000",
    ];
    let server = Server::start(&args);
    let given_up = |gpu: &Value| gpu["last_exit"]["reason"] == reason;
    let gpu = server.gpu_until(0, "the wait is over", given_up).await;
    assert_eq!(gpu["last_exit"]["kind"], "stuck");
    assert_eq!(children(server.pid()), []);
}

#[tokio::test]
async fn worker_that_never_connects_is_killed() {
    let limit = "--streaming.warmup.timeout_seconds=0.3";
    check_silent_worker(limit, "not ready within 300ms").await;
}

#[tokio::test]
async fn worker_that_connects_too_late_is_killed_before_it_may_load_for_long() {
    let limit = "--streaming.pool.connect_timeout_ms=300";
    check_silent_worker(limit, "not connected within 300ms").await;
}

#[tokio::test]
async fn workers_start_whatever_the_temporary_folder_is() {
    let folder = TempDir::new().unwrap();
    let long = folder.path().join("0".repeat(100)).join("1".repeat(100));
    fs::create_dir_all(&long).unwrap();
    let read_only = folder.path().join("read-only");
    fs::create_dir(&read_only).unwrap();
    fs::set_permissions(&read_only, fs::Permissions::from_mode(0o500)).unwrap();
    for temporary in [
        long.as_os_str(),
        read_only.as_os_str(),
        folder.path().join("missing").as_os_str(),
        OsStr::new("relative/and/missing"),
        OsStr::from_bytes(b"/tmp/\xff\xfe"),
        OsStr::new(""),
        // Nobody can write there.
        OsStr::new("/proc"),
    ] {
        let mut command = command();
        command
            .env_remove("RUNTIME_DIRECTORY")
            .env_remove("XDG_RUNTIME_DIR")
            .env("TMPDIR", temporary)
            .args(SMALL)
            .arg("--gpus=2");
        let server = Server::spawn(&mut command);
        server.ready(2).await;
        // An image is a temporary file, too.
        let image = initial_image::small();
        let mut client = server.active(json!({"initial_image": image})).await;
        client.segment("a red fox").await;
        assert_eq!(fs::read_dir(&long).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn sockets_lie_in_the_runtime_directory() {
    let [folder, other, temporary] = [(); 3].map(|()| TempDir::new().unwrap());
    let path = |folder: &TempDir| folder.path().display().to_string();
    let names = |folder: &TempDir| -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    };
    let mut command = command();
    command
        .env(
            "RUNTIME_DIRECTORY",
            format!("{}:{}", path(&folder), path(&other)),
        )
        .env("XDG_RUNTIME_DIR", other.path())
        .env("TMPDIR", temporary.path());
    let mut server = Server::spawn(command.args(SMALL));
    server.ready(1).await;
    let made = names(&folder);
    assert!(
        made.len() == 1 && made[0].starts_with("fastvideo-link-"),
        "{made:?}"
    );
    server.signal(Signal::SIGTERM);
    assert!(server.exit().await.success());
    for folder in [&folder, &other, &temporary] {
        assert_eq!(names(folder), Vec::<String>::new());
    }
}

#[tokio::test]
async fn supervisor_that_stood_still_keeps_its_workers() {
    let args = [
        "--gpus=2",
        "--streaming.pool.heartbeat_interval_ms=100",
        "--streaming.pool.heartbeat_timeout_ms=1000",
        "--streaming.pool.min_step_timeout_ms=1000",
        "--generator.synthetic.step_ms=100",
    ];
    let server = Server::start(&args);
    server.ready(2).await;
    let mut client = server.active(json!({})).await;
    let before = [server.worker_pid(0).await, server.worker_pid(1).await];
    for _ in 0..2 {
        client.prompt("a red fox").await;
        client.until_type("step_complete").await;
        server.signal(Signal::SIGSTOP);
        let begun = std::time::Instant::now();
        until("every limit has passed", async || {
            (begun.elapsed().as_secs() >= 3).then_some(())
        })
        .await;
        server.signal(Signal::SIGCONT);
        client.until_type("ltx2_segment_complete").await;
        // A worker that was given up would be gone by now, and one that hangs is still found.
        let resumed = std::time::Instant::now();
        until("every limit has passed again", async || {
            (resumed.elapsed().as_millis() >= 1500).then_some(())
        })
        .await;
    }
    let after = [server.worker_pid(0).await, server.worker_pid(1).await];
    assert_eq!(before, after);
    kill(after[1], Signal::SIGSTOP).unwrap();
    let stuck = |gpu: &Value| gpu["last_exit"]["reason"] == "no heartbeat for 1s";
    server.gpu_until(1, "a hang is still noticed", stuck).await;
}

#[tokio::test]
async fn workers_that_come_and_go_leave_no_descriptor_behind() {
    let server = Server::start(WATCHFUL);
    server.ready(1).await;
    let open = || {
        let folder = format!("/proc/{}/fd", server.pid());
        fs::read_dir(folder).unwrap().count()
    };
    let changed = async |before: Pid| {
        let other = |gpu: &Value| gpu["ready"] == true && gpu["pid"] != json!(before.as_raw());
        server.gpu_until(0, "the worker has changed", other).await;
    };
    let before = open();
    for round in 0..12 {
        let pid = server.worker_pid(0).await;
        if round % 3 == 0 {
            server.post("/v1/workers/0/restart").await;
        } else {
            kill(pid, Signal::SIGKILL).unwrap();
        }
        changed(pid).await;
    }
    // A connection of this test may be open.
    until("all that the workers used is closed", async || {
        (open() <= before + 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn shortage_of_the_host_counts_against_no_worker() {
    let args = [
        SMALL,
        &[
            "--streaming.pool.min_backoff_ms=10",
            "--streaming.pool.max_backoff_ms=50",
            "--streaming.pool.quarantine_after=2",
        ],
    ];
    let server = Server::spawn(command().args(args.concat()));
    server.ready(1).await;
    let limit = |descriptors: u64| {
        let pid = server.pid().to_string();
        let limit = format!("--nofile={descriptors}:");
        #[expect(
            clippy::disallowed_methods,
            reason = "the test changes the server's limits"
        )]
        let changed = std::process::Command::new("prlimit")
            .args(["--pid", &pid, &limit])
            .status();
        assert!(changed.unwrap().success());
    };
    // So few that no other can be opened: the server answers nothing either.
    limit(3);
    let pid = children(server.pid())[0];
    kill(pid, Signal::SIGKILL).unwrap();
    until("the shortage is told", async || {
        (server.log().contains("the host has no room for a worker")).then_some(())
    })
    .await;
    let begun = std::time::Instant::now();
    until("it was tried again some times", async || {
        (begun.elapsed().as_millis() >= 500).then_some(())
    })
    .await;
    limit(1024);
    let again = |gpu: &Value| gpu["ready"] == true && gpu["restarts"] == 1;
    server.gpu_until(0, "the worker is back", again).await;
    let told = server.log();
    let told = told
        .lines()
        .filter(|line| line.contains("no room for a worker"));
    assert_eq!(told.count(), 1);
}

#[tokio::test]
async fn worker_that_prints_without_end_does_not_fill_the_log() {
    let script =
        Script::new("yes 'a line of words' | head -c 20000000 >&2; echo the last words >&2");
    let args = [
        "--worker-bin",
        script.path(),
        "--streaming.pool.min_backoff_ms=60000",
        "--streaming.pool.max_backoff_ms=60000",
    ];
    let server = Server::start(&args);
    let exited = |gpu: &Value| gpu["restarts"] == 1;
    server.gpu_until(0, "it has exited", exited).await;
    let log = until("its last words are there", async || {
        Some(server.log()).filter(|log| log.contains("the last words"))
    })
    .await;
    assert!(log.len() < 2_000_000, "{} bytes", log.len());
    let gap = log.lines().find(|line| line.contains("were left out"));
    assert!(gap.is_some_and(|line| line.contains("gpu0-1")), "{gap:?}");
}

#[tokio::test]
async fn worker_that_cannot_start_is_told_in_one_line() {
    let args = [
        "--streaming.pool.quarantine_after=1",
        "--generator.synthetic.faults=error@load",
    ];
    let mut command = command();
    let server = Server::spawn(command.env("RUST_BACKTRACE", "1").args(SMALL).args(args));
    let left = |gpu: &Value| gpu["state"] == "quarantined";
    server.gpu_until(0, "the GPU is left alone", left).await;
    until("no worker is expected any more", async || {
        let (code, readyz) = server.get("/readyz").await;
        assert_eq!(code, 503);
        (readyz["status"] == "unavailable").then_some(())
    })
    .await;
    let log = until("the reason is told", async || {
        Some(server.log()).filter(|log| log.contains("quarantined"))
    })
    .await;
    let told: Vec<_> = log
        .lines()
        .filter(|l| l.contains("injected error"))
        .collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains("ERROR"), "{log}");
    assert!(
        !log.contains("backtrace") && !log.contains("Caused by"),
        "{log}"
    );
}

#[tokio::test]
async fn what_a_worker_leaves_running_holds_nothing_up() {
    let script = Script::new("sleep 20 & exit 7");
    let args = ["--worker-bin", script.path()];
    let mut server = Server::start(&[WATCHFUL, &args].concat());
    let tried = |gpu: &Value| gpu["restarts"].as_u64() > Some(1);
    server.gpu_until(0, "it was tried", tried).await;
    let before = std::time::Instant::now();
    server.signal(Signal::SIGTERM);
    assert!(server.exit().await.success());
    assert!(before.elapsed().as_secs() < 10);
}

#[tokio::test]
async fn process_that_connects_in_place_of_the_worker_is_refused() {
    let supervisor = PathBuf::from(command().get_program());
    let worker = supervisor.with_file_name("fastvideo-worker");
    let script = Script::new(&format!("{} \"$@\"\nexit 7", worker.display()));
    let args = [
        "--worker-bin",
        script.path(),
        "--streaming.pool.min_backoff_ms=60000",
        "--streaming.pool.max_backoff_ms=60000",
    ];
    let server = Server::start(&args);
    let refused = |gpu: &Value| gpu["last_exit"]["kind"] == "bad_link";
    let gpu = server.gpu_until(0, "it is refused", refused).await;
    let reason = gpu["last_exit"]["reason"].as_str().unwrap();
    assert!(reason.contains("has connected in place of"), "{reason}");
}

#[tokio::test]
async fn quarantine_lifts_itself_when_no_worker_is_left() {
    let args = [
        "--gpus=2",
        "--streaming.pool.quarantine_after=1",
        "--streaming.pool.quarantine_lift_seconds=4",
        "--generator.synthetic.faults=exit@step1,prompt=poison,max_attempt=1",
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    server.ready(2).await;
    let mut client = server.active(json!({})).await;
    client.segment("poison").await;
    client.prompt("poison").await;
    let error = client.error().await;
    assert_eq!(error["code"], "gpu_unavailable");
    assert_eq!(error["retryable"], true);
    client.prompt("nobody can take this").await;
    assert_eq!(client.expect("error").await["code"], "gpu_unavailable");

    assert_eq!(server.gpu(0).await["state"], "quarantined");
    assert_eq!(server.gpu(1).await["state"], "quarantined");
    assert_eq!(server.get("/readyz").await.0, 503);
    let mut late = server.open(json!({})).await;
    let error = late.error().await;
    assert_eq!(error["code"], "gpu_unavailable");
    assert_eq!(error["retryable"], true);
    assert_eq!(late.closed().await, Some(1013));

    server.ready(2).await;
    client.until_type("gpu_assigned").await;
    let segment = client.segment("a red fox").await;
    assert_eq!(segment.only("ltx2_segment_start")["segment_idx"], 1);
}

#[tokio::test]
async fn quarantine_holds_while_another_worker_serves() {
    let args = [
        "--gpus=2",
        "--streaming.pool.quarantine_after=2",
        "--streaming.pool.quarantine_lift_seconds=0.05",
        "--generator.synthetic.step_ms=20",
        "--generator.synthetic.faults=exit@idle,gpu=0",
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let left = |gpu: &Value| gpu["state"] == "quarantined";
    server.gpu_until(0, "the GPU is left alone", left).await;
    let mut client = server.active(json!({})).await;
    for _ in 0..5 {
        client.segment("a red fox").await;
    }
    let gpu = server.gpu(0).await;
    assert_eq!(
        (&gpu["state"], &gpu["restarts"]),
        (&json!("quarantined"), &json!(2))
    );
}

#[tokio::test]
async fn job_that_kills_every_worker_takes_no_gpu_away() {
    let args = [
        "--gpus=3",
        "--max-attempts=3",
        "--streaming.pool.quarantine_after=2",
        "--streaming.pool.min_backoff_ms=20",
        "--streaming.pool.max_backoff_ms=40",
        "--generator.synthetic.faults=exit@step1,prompt=poison",
    ];
    let server = Server::start(&args);
    server.ready(3).await;
    let mut client = server.active(json!({})).await;
    for _ in 0..8 {
        client.prompt("poison").await;
        assert_eq!(client.error().await["retryable"], false);
    }
    server.ready(3).await;
    client.segment("a red fox").await;
    assert!(!server.log().contains("quarantine"), "{}", server.log());
}

#[tokio::test]
async fn worker_that_exits_during_jobs_is_tried_again_while_another_serves() {
    let args = [
        "--gpus=2",
        "--streaming.pool.quarantine_after=2",
        "--streaming.pool.quarantine_trial_seconds=4",
        "--streaming.pool.min_backoff_ms=20",
        "--streaming.pool.max_backoff_ms=40",
        "--generator.synthetic.faults=exit@step1,gpu=0,max_incarnation=2",
    ];
    let server = Server::start(&args);
    for _ in 0..2 {
        server.ready(2).await;
        // The first GPU is asked first, and the other one finishes what it drops.
        let segment = server.active(json!({})).await.segment("a red fox").await;
        assert_eq!(segment.of("error"), Vec::<&Value>::new());
        server.sessions(0).await;
    }
    let left = |gpu: &Value| gpu["state"] == "quarantined";
    server.gpu_until(0, "the GPU is left alone", left).await;
    server.ready(2).await;
    server.active(json!({})).await.segment("a red fox").await;
    assert_eq!(server.gpu(0).await["segments_finished"], 1);
    assert_eq!(server.gpu(0).await["restarts"], 2);
}

#[tokio::test]
async fn restart_by_order_forgives_earlier_exits() {
    let args = [
        "--streaming.pool.quarantine_after=2",
        "--streaming.pool.min_backoff_ms=20",
        "--streaming.pool.max_backoff_ms=40",
    ];
    let server = Server::start(&args);
    for round in 0..3 {
        server.ready(1).await;
        let pid = server.worker_pid(0).await;
        kill(pid, Signal::SIGKILL).unwrap();
        let back = |gpu: &Value| gpu["ready"] == true && gpu["restarts"] == round + 1;
        let gpu = server.gpu_until(0, "the worker is back", back).await;
        server.post("/v1/workers/0/restart").await;
        let fresh = |now: &Value| now["ready"] == true && now["pid"] != gpu["pid"];
        server.gpu_until(0, "it was started again", fresh).await;
    }
}

#[tokio::test]
async fn finished_job_forgives_earlier_exits() {
    let args = [
        "--streaming.pool.quarantine_after=2",
        "--generator.synthetic.faults=exit@step1,max_attempt=1",
    ];
    let server = Server::start(&[WATCHFUL, &args].concat());
    let mut client = server.active(json!({})).await;
    for restarts in 1..4 {
        client.segment("a red fox").await;
        assert_eq!(server.gpu(0).await["restarts"], restarts);
    }
}

#[tokio::test]
async fn no_worker_outlives_a_killed_supervisor() {
    let args = [
        "--gpus=4",
        "--generator.synthetic.step_ms=60000",
        "--streaming.warmup.enabled=false",
        "--generator.synthetic.faults=spin@step1,prompt=spin",
    ];
    let mut server = Server::start(&args);
    server.ready(4).await;
    let mut busy = server.active(json!({})).await;
    busy.prompt("a red fox").await;
    busy.until_type("ltx2_segment_start").await;
    let mut spinning = server.active(json!({})).await;
    spinning.prompt("spin").await;
    spinning.until_type("ltx2_segment_start").await;
    until("the worker spins", async || {
        server.log().contains("injecting a fault").then_some(())
    })
    .await;
    kill(server.worker_pid(3).await, Signal::SIGSTOP).unwrap();
    let workers = children(server.pid());
    assert_eq!(workers.len(), 4);
    server.signal(Signal::SIGKILL);
    server.exit().await;
    for worker in workers {
        until("the worker is gone", async || {
            (!is_running(worker)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn words_of_a_worker_are_in_the_log_with_its_name() {
    let faults = "panic@step1,max_attempt=1";
    let server = Server::start(&[WATCHFUL, &["--generator.synthetic.faults", faults]].concat());
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;
    let log = server.log();
    let line = |text: &str| {
        let found = log.lines().find(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("{text} in {log}"))
    };
    let panic = line("injected panic");
    assert!(
        panic.contains("gpu0-1") && panic.contains("WARN"),
        "{panic}"
    );
    // The levels of a worker's own lines are kept.
    let leaving = line("injecting a fault");
    assert!(
        leaving.contains("gpu0-1") && leaving.contains("WARN"),
        "{leaving}"
    );
    assert!(!leaving.contains("WARN injecting"), "{leaving}");
    assert!(!log.contains("DEBUG"));
}

#[tokio::test]
async fn workers_log_as_much_as_the_supervisor_does() {
    let log_of = async |filter: &str| {
        let args = ["--generator.synthetic.faults=leak@step1"];
        let mut server = Server::spawn(command().env("RUST_LOG", filter).args(SMALL).args(args));
        server.active(json!({})).await.segment("a red fox").await;
        server.signal(Signal::SIGTERM);
        server.exit().await;
        server.log()
    };
    let log = log_of("error").await;
    assert_eq!(log, "");
    let log = log_of("debug").await;
    let word = log.lines().find(|line| line.contains("leaving"));
    let word = word.unwrap_or_else(|| panic!("{log}"));
    assert!(word.contains("gpu0-1") && word.contains("DEBUG"), "{word}");
}

#[tokio::test]
async fn workers_see_one_gpu_and_no_secrets() {
    let start = |gpus: &str| {
        Server::spawn(
            command()
                .env("FASTVIDEO_TEST_SECRET", "hunter2")
                .env("AWS_SECRET_ACCESS_KEY", "hunter2")
                .env("TZ", "Europe/Berlin")
                .env("CUDA_VISIBLE_DEVICES", "7")
                .env_remove("FASTVIDEO_SERVER__PORT")
                .args(SMALL)
                .args(["--gpus", gpus]),
        )
    };
    let check = async |server: Server, gpus: &[(u32, &str)]| {
        for (gpu, device) in gpus {
            let up = |gpu: &Value| gpu["ready"] == true;
            let status = server.gpu_until(*gpu, "the worker is ready", up).await;
            assert_eq!(status["visible_device"], *device);
            let pid = server.worker_pid(*gpu).await;
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
            let environment = String::from_utf8(environment).unwrap();
            let of = |name: &str| {
                environment
                    .split('\0')
                    .find(|v| v.starts_with(name))
                    .map(str::to_owned)
            };
            let visible = format!("CUDA_VISIBLE_DEVICES={device}");
            assert_eq!(of("CUDA_VISIBLE_DEVICES="), Some(visible));
            assert_eq!(of("TZ=").as_deref(), Some("TZ=Europe/Berlin"));
            assert!(!environment.contains("hunter2"), "{environment}");
        }
        let status = server.status().await;
        let ids: Vec<_> = status["gpu_status"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        let expected: Vec<_> = gpus.iter().map(|(gpu, _)| gpu.to_string()).collect();
        assert_eq!(ids, expected);
    };
    check(start("0,2"), &[(0, "0"), (2, "2")]).await;
    check(
        start("GPU-8f1d,MIG-77aa"),
        &[(0, "GPU-8f1d"), (1, "MIG-77aa")],
    )
    .await;
    check(start("2"), &[(0, "0"), (1, "1")]).await;
}

/// An executable shell script.
pub(crate) struct Script {
    _dir: TempDir,
    path: PathBuf,
}

impl Script {
    pub(crate) fn new(text: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("worker");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { _dir: dir, path }
    }

    pub(crate) fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// The processes that this one has started and not waited for.
pub(crate) fn children(parent: Pid) -> Vec<Pid> {
    let stat = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let parent_of = |stat: &str| {
        stat.rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| stat(pid).as_deref().and_then(parent_of) == Some(parent.as_raw()))
        .map(Pid::from_raw)
        .collect()
}

/// False for one that has exited and whose new parent has not waited for it yet.
pub(crate) fn is_running(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}
