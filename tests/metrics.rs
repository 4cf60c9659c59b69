//! What a scrape says: both formats, every counter over a script with a kill, the page that describes it all, and a real
//! Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use ureq::http::Request;

use crate::harness::{Server, WATCHFUL, until};
use crate::prompts;
use crate::provider::Provider;
use crate::router::router;

const DESCRIBED: &str = include_str!("../docs/metrics.md");
const OPENMETRICS: &str =
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
/// What `docs/metrics.md` has before its tables.
const HEAD: &str = "<!-- Made from a scrape: UPDATE_DOCS=1 cargo test --test integration metrics::every_metric -->";

/// A scrape in Prometheus' text format 0.0.4.
#[derive(Debug)]
struct Scrape {
    /// The value of each series, by its name and its labels in order.
    series: BTreeMap<String, f64>,
    /// The type and the description of each metric.
    metrics: BTreeMap<String, (String, String)>,
}

impl Scrape {
    fn parse(text: &str) -> Self {
        let mut scrape = Self {
            series: BTreeMap::new(),
            metrics: BTreeMap::new(),
        };
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                let entry = scrape.metrics.entry(name.to_owned()).or_default();
                assert_eq!(entry.1, "", "{name} is there twice");
                help.clone_into(&mut entry.1);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                kind.clone_into(&mut scrape.metrics.entry(name.to_owned()).or_default().0);
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let before = scrape
                    .series
                    .insert(series.to_owned(), value.parse().unwrap());
                assert_eq!(before, None, "{series} is there twice");
            }
        }
        scrape
    }

    /// Returns the sum of all series of a name that have all of these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |series: &str| {
            let (own, rest) = series.split_once('{').unwrap_or((series, ""));
            let is = |(key, value): &(&str, &str)| rest.contains(&format!("{key}=\"{value}\""));
            own == name && labels.iter().all(is)
        };
        let found: Vec<_> = self
            .series
            .iter()
            .filter(|(series, _)| has(series))
            .collect();
        assert!(!found.is_empty(), "there is no {name}{labels:?}");
        found.into_iter().map(|(_, value)| value).sum()
    }

    #[track_caller]
    fn check(&self, name: &str, labels: &[(&str, &str)], expected: f64) {
        assert_eq!(self.sum(name, labels), expected, "{name}{labels:?}");
    }
}

async fn text(server: &Server, accept: &str) -> (String, String) {
    let request = Request::builder().uri("/metrics").header("accept", accept);
    let response = server.send(request.body(String::new()).unwrap()).await;
    assert_eq!(response.status(), 200);
    let kind = response.headers()["content-type"].to_str().unwrap();
    (kind.to_owned(), response.into_body())
}

async fn scrape(server: &Server) -> Scrape {
    Scrape::parse(&text(server, "text/plain").await.1)
}

/// A server with everything that has metrics of its own.
async fn with_everything() -> (Server, Provider) {
    let provider = Provider::shouting().await;
    let args = prompts::with(&provider, &["--generator.synthetic.step_ms=20"]);
    let args = args.iter().map(String::as_str);
    let args: Vec<&str> = args
        .map(|arg| match arg {
            "--gpus=1" => "--gpus=2",
            other => other,
        })
        .collect();
    (Server::start(&args), provider)
}

#[tokio::test]
async fn counters_tell_the_story_of_a_session_and_its_workers() {
    let args = [WATCHFUL, &["--gpus=2", "--generator.synthetic.step_ms=60"]].concat();
    let server = Server::start(&args);
    server.ready(2).await;
    let fresh = scrape(&server).await;
    // All series of what can happen are there before it happens.
    fresh.check(
        "fastvideo_sessions_opened_total",
        &[("how", "resumed")],
        0.0,
    );
    fresh.check(
        "fastvideo_segments_total",
        &[("outcome", "failed"), ("source", "user")],
        0.0,
    );
    fresh.check(
        "fastvideo_worker_exits_total",
        &[("gpu", "1"), ("kind", "crashed")],
        0.0,
    );
    fresh.check("fastvideo_worker_state", &[("state", "ready")], 2.0);
    fresh.check("fastvideo_capacity_sessions", &[], 2.0);
    fresh.check(
        "fastvideo_worker_start_seconds_count",
        &[("phase", "load")],
        2.0,
    );

    let mut client = server.open(json!({})).await;
    let assigned = client.until_type("gpu_assigned").await;
    client.until_type("ltx2_stream_start").await;
    let gpu = assigned["gpu_id"].to_string();
    scrape(&server).await.check(
        "fastvideo_sessions",
        &[("state", "active"), ("tenant", "none")],
        1.0,
    );
    client.segment("a red fox").await;
    // The worker dies with the next segment, which another one finishes.
    client.prompt("a quiet lake").await;
    client.until_type("step_complete").await;
    kill(
        server.worker_pid(gpu.parse().unwrap()).await,
        Signal::SIGKILL,
    )
    .unwrap();
    client.until_type("ltx2_segment_complete").await;
    // One is cancelled, and one waits when the client goes.
    client.prompt("a storm at sea").await;
    client.until_type("step_complete").await;
    client.send(json!({"type": "cancel_segment"})).await;
    client.until_type("segment_cancelled").await;
    client.prompt("a city at night").await;
    client.until_type("step_complete").await;
    client.prompt("an owl").await;
    client.send(json!({"type": "leave"})).await;
    client.until_type("ltx2_stream_complete").await;
    server.sessions(0).await;
    server.ready(2).await;
    // The last attempt is cancelled at its worker's next step.
    let done = until("no attempt runs", async || {
        let seen = scrape(&server).await;
        let begun = seen.sum("fastvideo_segment_attempts_started_total", &[]);
        (seen.sum("fastvideo_segment_attempts_total", &[]) == begun).then_some(seen)
    })
    .await;

    let outcomes = |outcome| done.sum("fastvideo_segments_total", &[("outcome", outcome)]);
    let seen = ["finished", "cancelled", "failed", "blocked", "abandoned"].map(outcomes);
    assert_eq!(seen, [2.0, 1.0, 0.0, 0.0, 2.0]);
    let ends = |outcome| done.sum("fastvideo_segment_attempts_total", &[("outcome", outcome)]);
    let seen = ["finished", "cancelled", "worker_lost", "taken_back"].map(ends);
    assert_eq!(seen, [2.0, 2.0, 1.0, 0.0]);
    for (name, labels, expected) in [
        ("sessions_opened_total", &[("how", "new")][..], 1.0),
        ("sessions_closed_total", &[("cause", "left")], 1.0),
        ("sessions_closed_total", &[], 1.0),
        ("sessions", &[], 0.0),
        ("session_duration_seconds_count", &[], 1.0),
        ("session_queue_seconds_count", &[], 1.0),
        (
            "segment_time_to_first_fragment_seconds_count",
            &[("segment", "first")],
            1.0,
        ),
        (
            "segment_time_to_first_fragment_seconds_count",
            &[("segment", "next")],
            1.0,
        ),
        ("segment_queue_seconds_count", &[], 5.0),
        ("segment_generation_seconds_count", &[], 2.0),
        ("segment_realtime_factor_count", &[], 2.0),
        (
            "segment_phase_seconds_count",
            &[("phase", "text_encode")],
            2.0,
        ),
        ("segment_phase_seconds_count", &[("phase", "denoise")], 2.0),
        ("segment_phase_seconds_count", &[("phase", "encode")], 2.0),
        ("segment_phase_seconds_count", &[("phase", "refine")], 0.0),
        ("video_seconds_total", &[("tenant", "none")], 1.0),
        ("video_frames_total", &[], 24.0),
        ("worker_exits_total", &[], 1.0),
        (
            "worker_exits_total",
            &[("gpu", &gpu), ("kind", "crashed")],
            1.0,
        ),
        ("recovery_seconds_count", &[], 1.0),
        ("handoffs_total", &[("reason", "worker_lost")], 1.0),
        ("handoffs_total", &[], 1.0),
        (
            "store_operations_total",
            &[("part", "records"), ("op", "write"), ("outcome", "error")],
            0.0,
        ),
        ("store_late_saves_total", &[], 0.0),
        ("queue_depth", &[], 0.0),
        ("free_sessions", &[], 2.0),
        ("unsent_bytes", &[], 0.0),
        ("slow_clients", &[], 0.0),
    ] {
        done.check(&format!("fastvideo_{name}"), labels, expected);
    }
    // Four denoise steps a segment, and those of the attempts that did not finish.
    let steps = done.sum("fastvideo_step_seconds_count", &[("stage", "denoise")]);
    assert!((11.0..=15.0).contains(&steps), "{steps}");
    let messages = done.sum("fastvideo_media_messages_total", &[("mode", "av_fmp4")]);
    assert!(messages >= 6.0, "{messages}");
    done.check("fastvideo_relay_seconds_count", &[], messages);
    let busy = done.sum("fastvideo_worker_busy_seconds_total", &[]);
    let generated = done.sum("fastvideo_segment_generation_seconds_sum", &[]);
    assert!(busy > generated, "{busy} {generated}");
    assert!(
        done.sum(
            "fastvideo_store_operations_total",
            &[("op", "write"), ("outcome", "ok")]
        ) > 0.0
    );
    assert!(done.sum("fastvideo_worker_resident_bytes", &[]) > 0.0);
    assert!(done.sum("fastvideo_log_lines_total", &[("level", "warn")]) > 0.0);
    assert!(done.sum("process_open_fds", &[]) > 0.0);
    let stream = [
        ("http_route", "/v1/stream"),
        ("http_response_status_code", "101"),
    ];
    done.check("http_server_request_duration_seconds_count", &stream, 1.0);
}

#[tokio::test]
async fn both_formats_say_the_same() {
    let (server, _provider) = with_everything().await;
    server.ready(2).await;
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;
    let (kind, plain) = text(&server, "text/plain").await;
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let (kind, open) = text(&server, OPENMETRICS).await;
    assert_eq!(
        kind,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert!(open.ends_with("# EOF\n"));
    let series = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            // A request for the metrics is measured itself; bounds are written as `1` in one format and as `1.0` in the other.
            .filter(|series| !series.contains("/metrics") && !series.contains("_bucket{"))
            .collect()
    };
    assert_eq!(series(&plain), series(&open));
}

#[tokio::test]
async fn a_client_that_is_turned_away_is_counted_by_why() {
    let server = Server::start(&["--streaming.limits.max_sessions=1"]);
    let _first = server.active(json!({})).await;
    let mut second = server.open(json!({})).await;
    second.until_type("error").await;
    assert_eq!(second.closed().await, Some(1013));
    let mut third = server.connect().await;
    drop(third.try_send(json!({"type": "nonsense"})).await);
    let seen = scrape(&server).await;
    seen.check(
        "fastvideo_sessions_rejected_total",
        &[("reason", "full")],
        2.0,
    );
    seen.check(
        "fastvideo_sessions_rejected_total",
        &[("reason", "bad_opening")],
        0.0,
    );
    drop(third);
}

/// Describes a scrape: a table of all metrics that begin like this.
fn table(scrape: &Scrape, wanted: impl Fn(&str) -> bool) -> String {
    let mut lines = String::from("| name | type | labels | what |\n| --- | --- | --- | --- |\n");
    for (name, (kind, help)) in &scrape.metrics {
        if !wanted(name) {
            continue;
        }
        let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut bounds = Vec::new();
        for series in scrape.series.keys() {
            let (own, rest) = series.split_once('{').unwrap_or((series, ""));
            let is_its = match kind.as_str() {
                "histogram" => own
                    .strip_prefix(name.as_str())
                    .is_some_and(|end| ["_bucket", "_count", "_sum"].contains(&end)),
                _ => own == name,
            };
            if !is_its {
                continue;
            }
            for (key, value) in pairs(rest) {
                match key {
                    "le" if !bounds.contains(&value) => bounds.push(value),
                    "le" => {}
                    key => {
                        labels.entry(key).or_default().insert(value);
                    }
                }
            }
        }
        let labels: Vec<_> = labels
            .into_iter()
            .map(|(key, values)| label(key, &values))
            .collect();
        let mut kind = kind.clone();
        if kind == "histogram" {
            bounds.retain(|bound| *bound != "+Inf");
            bounds.sort_by(|a, b| a.parse::<f64>().unwrap().total_cmp(&b.parse().unwrap()));
            write!(kind, ": {}", bounds.join(" ")).unwrap();
        }
        let help = help.trim_end_matches('.');
        writeln!(
            lines,
            "| `{name}` | {kind} | {} | {help} |",
            labels.join("; ")
        )
        .unwrap();
    }
    lines
}

fn pairs(labels: &str) -> impl Iterator<Item = (&str, &str)> {
    let labels = labels.trim_end_matches('}');
    labels.split("\",").filter_map(|pair| {
        let (key, value) = pair.split_once("=\"")?;
        Some((key, value.trim_end_matches('"')))
    })
}

/// Describes a label: all its values where they are always the same.
fn label(key: &str, values: &BTreeSet<&str>) -> String {
    const OPEN: [&str; 12] = [
        "gpu",
        "tenant",
        "provider",
        "http_route",
        "http_request_method",
        "http_response_status_code",
        "version",
        "revision",
        "link_version",
        "uuid",
        "device",
        "model",
    ];
    match OPEN.contains(&key) || key == "engine" {
        true => format!("`{key}`"),
        false => {
            let values: Vec<_> = values.iter().copied().collect();
            format!("`{key}` ({})", values.join(", "))
        }
    }
}

#[tokio::test]
async fn every_metric_is_described_in_the_documentation() {
    let (server, _provider) = with_everything().await;
    server.ready(2).await;
    let router = router(&[&server.address]);
    let of_router = scrape(&router).await;
    // The second scrape has seen a request.
    scrape(&server).await;
    let of_server = scrape(&server).await;
    let own = |name: &str| name.starts_with("fastvideo_") && !name.starts_with("fastvideo_router_");
    let tables = format!(
        "{HEAD}\n\n## Of a server\n\n{}\n## Of a router\n\nBeside these a router has those of the process and of HTTP, and \
         `fastvideo_build_info`, `fastvideo_log_lines_total` and `fastvideo_runtime_lag_seconds`.\n\n{}\n## Of the process and of HTTP\n\n{}",
        table(&of_server, own),
        table(&of_router, |name| name.starts_with("fastvideo_router_")),
        table(&of_server, |name| !name.starts_with("fastvideo_")),
    );
    let (text, described) = DESCRIBED.split_once(HEAD).expect("the page has its head");
    let described = format!("{HEAD}{described}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        fs::write(path, format!("{text}{tables}")).unwrap();
        return;
    }
    assert!(
        described == tables,
        "docs/metrics.md is not what a scrape says; see its comment:\n{tables}"
    );
}

/// A program that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "the tests start Prometheus")]
fn tool(name: &str) -> Command {
    Command::new(name)
}

#[tokio::test]
async fn prometheus_takes_a_scrape_and_finds_no_fault_in_it() {
    let (server, _provider) = with_everything().await;
    server.ready(2).await;
    let mut client = server.active(json!({})).await;
    client.segment("a red fox").await;

    let (_, plain) = text(&server, "text/plain").await;
    let mut lint = tool("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed: `make test-packages`");
    lint.stdin
        .take()
        .unwrap()
        .write_all(plain.as_bytes())
        .unwrap();
    let said = lint.wait_with_output().unwrap();
    assert!(
        said.status.success(),
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("prometheus.yml");
    let address = &server.address;
    fs::write(&config, format!("global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: fastvideo\n  static_configs: [{{targets: [\"{address}\"]}}]\n")).unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let _prometheus = Running(
        tool("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--enable-feature=exemplar-storage")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus is installed: `make test-packages`"),
    );
    let query = format!("http://127.0.0.1:{port}/api/v1/query?query=");
    let ask = |expression: &'static str| {
        let url = format!("{query}{expression}");
        tokio::task::spawn_blocking(move || {
            let answer = ureq::get(&url)
                .call()
                .ok()?
                .into_body()
                .read_to_string()
                .ok()?;
            let answer: Value = serde_json::from_str(&answer).ok()?;
            let value = answer["data"]["result"][0]["value"][1].as_str()?;
            value.parse::<f64>().ok()
        })
    };
    let finished = "sum(fastvideo_segments_total%7Boutcome=%22finished%22%7D)";
    until("Prometheus has the finished segment", async || {
        ask(finished).await.unwrap().filter(|value| *value == 1.0)
    })
    .await;
    assert_eq!(ask("up").await.unwrap(), Some(1.0));
    assert_eq!(
        ask("count(fastvideo_worker_state==1)").await.unwrap(),
        Some(2.0)
    );
}
