//! What it costs to be watched and to be changed: traces and scrapes against none of them, in pairs of turns; the metrics of
//! a full machine; and reloads, ten in a second.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::{join_all, try_join_all};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep_until};

use crate::client::{Client, Heard};
use crate::figures::{Figures, milliseconds};
use crate::many::{self, Counted};
use crate::report::{Row, Target};
use crate::server::Server;

const WORKERS: u64 = 8;
const SESSIONS: usize = 32;
/// How often Prometheus asks in the turns that are watched. It is more often than it does by itself.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(5);
/// How long the server reloads its configuration ten times in a second.
const RELOADING: Duration = Duration::from_secs(60);
const RELOAD_INTERVAL: Duration = Duration::from_millis(100);
const STEP_MS: f64 = 50.0;
/// The steps of a segment there, without what follows them.
const SEGMENT: Duration = Duration::from_secs(5);
/// Tenants of the server whose metrics are looked at.
const TENANTS: [&str; 4] = ["acme", "beta", "gamma", "delta"];
const SCRAPES: usize = 50;

pub(crate) async fn measure(pairs: usize) -> anyhow::Result<Vec<Row>> {
    let mut rows = watched(pairs).await?;
    rows.extend(scraped().await?);
    rows.extend(reloaded().await?);
    Ok(rows)
}

/// Compares servers that are traced and scraped with those that are not, in turns: A B, B A, A B …
async fn watched(pairs: usize) -> anyhow::Result<Vec<Row>> {
    let (mut cpu, mut own_cpu, mut rate, mut first) = (vec![], vec![], vec![], vec![]);
    for pair in 0..pairs {
        let (alone, watched) = if pair % 2 == 0 {
            let alone = turn(false).await?;
            (alone, turn(true).await?)
        } else {
            let watched = turn(true).await?;
            (turn(false).await?, watched)
        };
        let more = |of: fn(&Counted) -> f64| (of(&watched) / of(&alone) - 1.0) * 100.0;
        cpu.push(more(|turn| turn.all_ms));
        own_cpu.push(more(|turn| turn.supervisor_ms));
        rate.push(-more(|turn| turn.per_second));
        first.push(watched.first_ms.p99 / alone.first_ms.p99);
    }
    let row = |key, what, unit, most, values: Vec<f64>| -> anyhow::Result<Row> {
        let figures = Figures::of(values)?;
        Ok(Row {
            key,
            what,
            unit,
            python: "-",
            target: Target::AtMost(most),
            measured: figures.p50,
            figures: Some(figures),
            note: format!(
                "median of {pairs} pairs; every session traced, scraped each {} s",
                SCRAPE_INTERVAL.as_secs()
            ),
        })
    };
    let mut own = row(
        "watched_own_cpu",
        "the same, of the supervisor alone",
        "%",
        0.0,
        own_cpu,
    )?;
    own.target = Target::None;
    Ok(vec![
        row(
            "watched_cpu",
            "traces and scrapes: more processor time for a segment, workers included",
            "%",
            2.0,
            cpu,
        )?,
        own,
        row(
            "watched_rate",
            "the same: fewer segments in a second",
            "%",
            2.0,
            rate,
        )?,
        row(
            "watched_first_fragment",
            "the same: p99 of the first fragment",
            "x",
            1.1,
            first,
        )?,
    ])
}

async fn turn(watched: bool) -> anyhow::Result<Counted> {
    if !watched {
        return many::throughput(false, &[], |_| JoinSet::new()).await;
    }
    let (endpoint, _collector) = collector().await?;
    let endpoint = format!("--otlp-endpoint={endpoint}");
    many::throughput(false, &[&endpoint], |server| {
        let mut scraping = JoinSet::new();
        let address = server.address.clone();
        scraping.spawn(async move {
            let mut ticks = interval(SCRAPE_INTERVAL);
            loop {
                ticks.tick().await;
                // It is missed in what is counted when it fails.
                let _ = scrape(&address, None).await;
            }
        });
        scraping
    })
    .await
}

/// A collector that takes everything and keeps nothing.
async fn collector() -> anyhow::Result<(String, JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async { take(stream).await.unwrap_or_default() });
        }
    });
    Ok((endpoint, serving))
}

/// Answers each request of a connection.
async fn take(mut stream: TcpStream) -> std::io::Result<()> {
    let mut received = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = received.windows(4).position(|it| it == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        };
        let text = String::from_utf8_lossy(&received[..head]).to_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.and_then(|it| it.trim().parse().ok()).unwrap_or(0);
        while received.len() < head + length {
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        }
        received.drain(..head + length);
        let answer =
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-type: application/x-protobuf\r\n\r\n";
        stream.write_all(answer).await?;
    }
}

async fn scrape(address: &str, key: Option<&'static str>) -> anyhow::Result<String> {
    let url = format!("http://{address}/metrics");
    let asking = tokio::task::spawn_blocking(move || {
        let mut request = ureq::get(&url).header("accept", "application/openmetrics-text");
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut answer = request.call()?;
        answer
            .body_mut()
            .with_config()
            .limit(1 << 24)
            .read_to_string()
    });
    Ok(asking.await??)
}

/// Looks at the metrics of a server with 8 GPUs and 4 tenants while 32 sessions run.
async fn scraped() -> anyhow::Result<Vec<Row>> {
    const OPERATOR: &str = "fvk_the-key-of-the-operator-of-this-benchmark";
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let keys = folder.path().join("keys.yaml");
    write_keys(&keys, OPERATOR)?;
    let keys = format!("--server.auth.keys_file={}", keys.display());
    let server = Server::start(&[&many::SHARED, &["--gpus=8", &keys][..]].concat())?;
    server.ready(WORKERS).await?;
    let clients = try_join_all((0..SESSIONS).map(|n| {
        let key = format!("fastvideo.v1, fastvideo.key.{}", user_key(TENANTS[n % 4]));
        Client::assigned_with(&server.address, key)
    }))
    .await?;
    let mut running = JoinSet::new();
    for mut client in clients {
        running
            .spawn(async move { while client.segment("fireflies over a meadow").await.is_ok() {} });
    }
    let (mut times, mut text) = (Vec::new(), String::new());
    for n in 0..SCRAPES {
        sleep_until((Instant::now() + Duration::from_millis(100)).into()).await;
        let began = Instant::now();
        text = scrape(&server.address, Some(OPERATOR)).await?;
        // The first one has connections and pages of memory to make.
        if n > 0 {
            times.push(milliseconds(began.elapsed()));
        }
    }
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    ensure!(text.contains("tenant=\"delta\""), "all tenants have series");
    let times = Figures::of(times)?;
    let row = |key, what, unit, most, measured, figures| Row {
        key,
        what,
        unit,
        python: "-",
        target: Target::AtMost(most),
        measured,
        figures,
        note: format!("{series} series, {} bytes", text.len()),
    };
    Ok(vec![
        row(
            "scrape_time",
            "scrape of 8 GPUs and 4 tenants, 32 sessions running, p50",
            "ms",
            20.0,
            times.p50,
            Some(times.clone()),
        ),
        row(
            "scrape_series",
            "series of that scrape",
            "",
            2500.0,
            series as f64,
            None,
        ),
        row(
            "scrape_size",
            "size of that scrape",
            "kB",
            300.0,
            text.len() as f64 / 1e3,
            None,
        ),
    ])
}

fn user_key(tenant: &str) -> String {
    format!("fvk_the-key-of-a-user-of-the-tenant-{tenant}")
}

fn write_keys(path: &Path, operator: &str) -> anyhow::Result<()> {
    use fastvideo_supervisor_core::auth::key::KeyHash;
    let tenants: String = TENANTS.map(|tenant| format!("  {tenant}: {{}}\n")).concat();
    let users = TENANTS.map(|tenant| {
        let hash = KeyHash::of(&user_key(tenant));
        format!("  - {{id: {tenant}, tenant: {tenant}, role: user, sha256: {hash}}}\n")
    });
    let operator = KeyHash::of(operator);
    let text = format!(
        "tenants:\n{tenants}keys:\n{}  - {{id: operator, role: admin, sha256: {operator}}}\n",
        users.concat()
    );
    fs::write(path, text)?;
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o600),
    )?)
}

/// Reloads a configuration that changes each time, ten times a second, while 32 sessions get a step each 50 ms and a
/// fragment in between. Says by how much the latest message came late, and by how much without reloads.
async fn reloaded() -> anyhow::Result<Vec<Row>> {
    let quiet = lateness(None).await?;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let file = folder.path().join("serve.yaml");
    let reloading = lateness(Some(&file)).await?;
    Ok(vec![Row {
        key: "reload_lateness",
        what: "32 sessions, 10 reloads in a second for a minute: a message late by, at most",
        unit: "ms",
        python: "-",
        target: Target::AtMost(50.0),
        measured: reloading.max,
        note: format!(
            "p99 {:.2} ms of {} messages; without reloads p99 {:.2} ms, at most {:.2} ms",
            reloading.p99, reloading.n, quiet.p99, quiet.max
        ),
        figures: Some(reloading),
    }])
}

/// How late steps came: the time between two of them, beyond what a step takes.
async fn lateness(reloaded: Option<&Path>) -> anyhow::Result<Figures> {
    let config = |n: u32| {
        format!(
            "streaming:\n  limits: {{max_prompt_chars: {}}}\n  resume_ttl_seconds: {}\n",
            1000 + n % 100,
            300 + n % 100
        )
    };
    let file = reloaded.map(|file| fs::write(file, config(0)).map(|()| file));
    let file = file.transpose()?;
    let named = file
        .map(|file| file.display().to_string())
        .unwrap_or_default();
    let args = [
        "--gpus=32",
        "--default_request.sampling.width=64",
        "--default_request.sampling.height=64",
        "--default_request.sampling.num_frames=24",
        "--default_request.sampling.num_inference_steps=100",
        "--generator.synthetic.step_ms=50",
        "--generator.synthetic.prerender=true",
        "--streaming.warmup.enabled=false",
        // Without a file it is the same server with an empty path.
        "--config",
        &named,
    ];
    let args = match file {
        Some(_) => &args[..],
        None => &args[..args.len() - 2],
    };
    let server = Server::start(args)?;
    server.ready(SESSIONS as u64).await?;
    let clients = try_join_all((0..SESSIONS).map(|_| server.session())).await?;
    let end = Instant::now() + RELOADING;
    // One after the other, so that their workers, which share the cores here, do not encode at the same time.
    let begin = Instant::now();
    let apart = SEGMENT / u32::try_from(SESSIONS)?;
    let listening = (0..).zip(clients);
    let listening = join_all(listening.map(|(n, client)| steps(client, begin + apart * n, end)));
    let reloads = async {
        let mut count = 0_u32;
        let mut ticks = interval(RELOAD_INTERVAL);
        while let Some(file) = file.filter(|_| Instant::now() < end) {
            ticks.tick().await;
            count += 1;
            fs::write(file, config(count))?;
            let status = server.post("/v1/reload").await?;
            ensure!(status == 200, "reload {count} was answered with {status}");
        }
        Ok(count)
    };
    let (late, count) = tokio::join!(listening, reloads);
    let count = count?;
    if file.is_some() {
        let most = RELOADING.as_millis() / RELOAD_INTERVAL.as_millis();
        ensure!(
            u128::from(count) >= most * 9 / 10,
            "only {count} reloads were made"
        );
    }
    let late: Vec<Vec<f64>> = late.into_iter().collect::<anyhow::Result<_>>()?;
    Figures::of(late.into_iter().flatten())
}

async fn steps(mut client: Client, begin: Instant, end: Instant) -> anyhow::Result<Vec<f64>> {
    sleep_until(begin.into()).await;
    let mut late = Vec::new();
    while Instant::now() < end {
        client.prompt("fireflies over a meadow at night").await?;
        let mut last: Option<Instant> = None;
        loop {
            let (at, heard) = client.next().await?;
            match heard {
                Heard::Text(text)
                    if text["type"] == "step_complete" && text["stage"] == "denoise" =>
                {
                    if let Some(last) = last.replace(at) {
                        late.push((milliseconds(at - last) - STEP_MS).max(0.0));
                    }
                }
                Heard::Text(text) if text["type"] == "ltx2_segment_complete" => break,
                Heard::Text(text) if text["type"] == "error" => anyhow::bail!("{text}"),
                _ => {}
            }
        }
    }
    (!late.is_empty())
        .then_some(late)
        .context("there were steps")
}
