//! Segments whose workers die within the denoise steps: they go on from the latents that the last step has left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::harness::{Client, Heard, Segment, Server, WATCHFUL, until};

const STEPS: u64 = 20;
const STEP: Duration = Duration::from_millis(100);
const SESSIONS: usize = 4;

/// A worker is killed within a step that it would have left a snapshot of.
const PACE: &[&str] = &[
    "--default_request.sampling.num_inference_steps=20",
    "--generator.synthetic.step_ms=100",
    "--streaming.pool.step_snapshot_min_ms=50",
    "--max-attempts=100",
];

/// Every step leaves a snapshot, however quick it was.
const EVERY_STEP: &str = "--streaming.pool.step_snapshot_min_ms=0";

/// What a counter or a gauge says, over all its labels.
pub(crate) async fn metric(server: &Server, name: &str) -> f64 {
    let text = server.request("GET", "/metrics", None).await.into_body();
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        (labels.is_empty() || labels.starts_with('{')).then(|| value.parse::<f64>().unwrap())
    });
    values.sum()
}

fn prompt(segment: usize) -> String {
    format!("a red fox in valley {segment}")
}

/// The segments of a session in which nothing goes wrong.
async fn undisturbed(segments: usize) -> Vec<Segment> {
    let server = Server::start(&["--default_request.sampling.num_inference_steps=20"]);
    let mut client = server.active(json!({})).await;
    let mut made = Vec::new();
    for segment in 0..segments {
        made.push(client.segment(&prompt(segment)).await);
    }
    made
}

/// A session that is told where it runs.
struct Session<'a> {
    server: &'a Server,
    client: Client,
    gpu: u32,
}

impl<'a> Session<'a> {
    async fn open(server: &'a Server) -> Self {
        let mut client = server.open(json!({})).await;
        let gpu = gpu_of(&client.until_type("gpu_assigned").await);
        client.until_type("ltx2_stream_start").await;
        Self {
            server,
            client,
            gpu,
        }
    }

    async fn hear(&mut self) -> Heard {
        let heard = self.client.next().await;
        if let Heard::Text(text) = &heard
            && text["type"] == "gpu_assigned"
        {
            self.gpu = gpu_of(text);
        }
        heard
    }

    /// Asks for a segment and kills its worker some time after a step is done; 0 is the start. Returns the media, and how
    /// long it took from the kill to the next step that was not done before.
    async fn segment_with_kill(
        &mut self,
        segment: usize,
        after: u64,
        delay: Duration,
    ) -> (Vec<Vec<u8>>, Option<Duration>) {
        self.client.prompt(&prompt(segment)).await;
        let (mut media, mut killed, mut recovered) = (Vec::new(), None, None);
        let (mut last_step, mut is_elsewhere) = (0, false);
        loop {
            let text = match self.hear().await {
                Heard::Text(text) => text,
                Heard::Media(bytes) => {
                    media.push(bytes);
                    continue;
                }
                Heard::Closed(code) => panic!("closed with {code:?}"),
            };
            match text["type"].as_str().unwrap() {
                "ltx2_segment_complete" => {
                    assert!(killed.is_some());
                    return (media, recovered);
                }
                "error" => panic!("{text}"),
                "step_complete" => {
                    let step = text["step"].as_u64().unwrap();
                    assert_eq!(step, last_step + 1, "no step is shown twice or left out");
                    last_step = step;
                    // Those before the next worker's were on their way already.
                    if let Some(killed) = killed.filter(|_| is_elsewhere) {
                        recovered.get_or_insert_with(|| Instant::now() - killed);
                    }
                }
                "ltx2_segment_start" => {}
                "gpu_assigned" => {
                    is_elsewhere = killed.is_some();
                    continue;
                }
                _ => continue,
            }
            if last_step == after && killed.is_none() {
                let pid = self.server.worker_pid(self.gpu).await;
                sleep(delay).await;
                kill(pid, Signal::SIGKILL).unwrap();
                killed = Some(Instant::now());
            }
        }
    }
}

fn gpu_of(assigned: &Value) -> u32 {
    u32::try_from(assigned["gpu_id"].as_u64().unwrap()).unwrap()
}

/// The lines of all sessions' logs, once each of so many sessions has closed.
async fn lines(folder: &Path, sessions: usize) -> Vec<Vec<Value>> {
    until("all sessions are logged", async || {
        let files = fs::read_dir(folder).ok()?.map(|file| file.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|it| it == "jsonl"));
        let lines = files.map(|path| -> Vec<Value> {
            let text = fs::read_to_string(path).unwrap();
            let lines = text.lines().map(serde_json::from_str);
            lines.map_while(Result::ok).collect()
        });
        let closed = |lines: &Vec<Value>| lines.iter().any(|line| line["event"] == "closed");
        let lines: Vec<_> = lines.filter(closed).collect();
        (lines.len() == sessions).then_some(lines)
    })
    .await
}

/// How many steps of each segment were done more than once.
fn repeated_steps(lines: &[Value]) -> Vec<usize> {
    let mut done: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for line in lines {
        let payload = &line["payload"];
        let segment = || payload["segment_idx"].as_u64().unwrap();
        match line["event"].as_str().unwrap() {
            "segment_queued" => {
                done.entry(segment()).or_default();
            }
            "step" => {
                let steps = done.entry(segment()).or_default();
                steps.push(payload["step"].as_u64().unwrap());
            }
            _ => {}
        }
    }
    let repeated = done.values().map(|steps| {
        let different: BTreeSet<u64> = steps.iter().copied().collect();
        steps.len() - different.len()
    });
    repeated.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_at_any_step_costs_one_step_at_most_and_no_byte() {
    let kills = match std::env::var("FASTVIDEO_TEST_FLEET").is_ok() {
        true => 50,
        false => 5,
    };
    let folder = TempDir::new().unwrap();
    let log = format!("--session-log-dir={}", folder.path().display());
    let server = Server::start(&[WATCHFUL, PACE, &["--gpus=6", &log]].concat());
    server.ready(6).await;
    let expected = undisturbed(kills).await;
    let sessions = join_all((0..SESSIONS).map(|_| async {
        let mut session = Session::open(&server).await;
        let mut took = Vec::new();
        for (segment, expected) in expected.iter().enumerate() {
            let after = rand::random_range(0..STEPS);
            let delay = STEP.mul_f64(rand::random());
            let (media, recovered) = session.segment_with_kill(segment, after, delay).await;
            assert!(media == expected.media, "segment {segment}, step {after}");
            took.extend(recovered);
        }
        session.client.send(json!({"type": "leave"})).await;
        session.client.closed().await;
        took
    }))
    .await;

    for lines in lines(folder.path(), SESSIONS).await {
        let repeated = repeated_steps(&lines);
        assert_eq!(repeated.len(), kills);
        assert!(repeated.iter().all(|steps| *steps <= 1), "{repeated:?}");
    }
    let mut took: Vec<Duration> = sessions.concat();
    took.sort();
    println!(
        "{} kills: from the kill to the next new step {:?} (median), {:?} (p99), {:?} (most)",
        SESSIONS * kills,
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        took[took.len() - 1],
    );
    assert_eq!(
        metric(&server, "fastvideo_step_snapshots_refused_total").await,
        0.0
    );
    assert!(metric(&server, "fastvideo_segment_attempts_resumed_total").await > 0.0);
    let none_held = async || {
        let held = metric(&server, "fastvideo_step_snapshot_bytes").await;
        (held == 0.0).then_some(())
    };
    until("no snapshot is held any more", none_held).await;
}

/// A segment of a session whose worker has this fault, and the metrics of its server: snapshots that were refused, attempts
/// that went on from one, and steps that were saved.
async fn with_faults(faults: &str, args: &[&str]) -> (Segment, [f64; 3], Vec<Value>) {
    let folder = TempDir::new().unwrap();
    let log = format!("--session-log-dir={}", folder.path().display());
    let faults = ["--gpus=2", "--generator.synthetic.faults", faults, &log];
    let server = Server::start(&[WATCHFUL, &faults, args].concat());
    let mut client = server.active(json!({})).await;
    let segment = client.segment(&prompt(0)).await;
    let counters = [
        "fastvideo_step_snapshots_refused_total",
        "fastvideo_segment_attempts_resumed_total",
        "fastvideo_denoise_steps_saved_total",
    ];
    let mut counted = [0.0; 3];
    for (counted, name) in counted.iter_mut().zip(counters) {
        *counted = metric(&server, name).await;
    }
    client.send(json!({"type": "leave"})).await;
    client.closed().await;
    let mut lines = lines(folder.path(), 1).await;
    (segment, counted, lines.remove(0))
}

#[tokio::test]
async fn an_attempt_goes_on_after_the_last_step_that_left_a_snapshot() {
    let faults = "exit@step3,max_attempt=1";
    let (segment, counted, lines) = with_faults(faults, &[EVERY_STEP]).await;
    assert!(segment.media == undisturbed(1).await[0].media);
    assert_eq!(counted, [0.0, 1.0, 2.0]);
    let started: Vec<&Value> = (lines.iter())
        .filter(|line| line["event"] == "segment_started")
        .map(|line| &line["payload"]["after"])
        .collect();
    assert_eq!(
        started,
        [&Value::Null, &json!({"stage": "denoise", "step": 2})]
    );
    assert_eq!(repeated_steps(&lines), [0]);

    // Large latents travel as small ones do.
    let large = ["--generator.synthetic.latent_bytes=8388608", EVERY_STEP];
    let (segment, counted, _) = with_faults(faults, &large).await;
    assert!(segment.media == undisturbed(1).await[0].media);
    assert_eq!(counted, [0.0, 1.0, 2.0]);
}

#[tokio::test]
async fn quick_steps_leave_no_snapshot_and_none_does_where_that_is_turned_off() {
    let off = ["--streaming.pool.step_snapshots=false", EVERY_STEP];
    for args in [&[][..], &off] {
        let (segment, counted, lines) = with_faults("exit@step3,max_attempt=1", args).await;
        assert!(segment.media == undisturbed(1).await[0].media);
        assert_eq!(counted, [0.0; 3]);
        assert_eq!(repeated_steps(&lines), [2]);
    }
}

#[tokio::test]
async fn a_damaged_snapshot_costs_the_steps_and_nothing_else() {
    // The snapshot after the second step is damaged, and the worker dies before the third.
    let faults = "spoil@step2,max_attempt=1;exit@step3,max_attempt=1";
    let (segment, counted, lines) = with_faults(faults, &[EVERY_STEP]).await;
    assert!(segment.media == undisturbed(1).await[0].media);
    assert_eq!(counted, [1.0, 0.0, 0.0]);
    assert_eq!(repeated_steps(&lines), [2]);
    let dropped = lines
        .iter()
        .find(|line| line["event"] == "snapshot_dropped");
    let dropped = &dropped.expect("it is logged")["payload"];
    assert_eq!(dropped["attempt_over"], false);
    let reason = dropped["reason"].as_str().unwrap();
    assert!(reason.contains("damaged"), "{reason}");
}

#[tokio::test]
async fn an_attempt_that_fails_after_its_snapshot_is_repeated_from_the_first_step() {
    let faults = "exit@step3,max_attempt=1;error@frame0,max_attempt=2";
    let (segment, counted, lines) = with_faults(faults, &[EVERY_STEP]).await;
    assert!(segment.media == undisturbed(1).await[0].media);
    assert!(segment.of("error").is_empty());
    assert_eq!(counted, [0.0, 1.0, 2.0]);
    let dropped = lines
        .iter()
        .find(|line| line["event"] == "snapshot_dropped");
    assert_eq!(
        dropped.expect("it is logged")["payload"]["attempt_over"],
        true
    );
}

#[tokio::test]
async fn a_segment_that_is_taken_back_goes_on_from_its_snapshot() {
    let args = ["--gpus=2", "--generator.synthetic.step_ms=100", EVERY_STEP];
    let server = Server::start(&[WATCHFUL, &args].concat());
    server.ready(2).await;
    let mut session = Session::open(&server).await;
    session.client.prompt(&prompt(0)).await;
    while session.client.until_type("step_complete").await["step"] != 3 {}
    let drain = format!("/v1/workers/{}/drain?deadline_seconds=0.01", session.gpu);
    let (status, answer) = server.post(&drain).await;
    assert!(status < 300, "{answer}");
    let rest = session.client.collect_until("ltx2_segment_complete").await;
    assert!(rest.media == undisturbed(1).await[0].media);
    let saved = metric(&server, "fastvideo_denoise_steps_saved_total").await;
    assert!((2.0..=3.0).contains(&saved), "{saved}");
}
