//! What the session log costs: events of 32 sessions, 100 a second each, in this process and on a real disk.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use fastvideo_proto::ids::SessionId;
use fastvideo_proto::job::{Stage, VideoFormat};
use fastvideo_proto::link::EncoderSpec;
use fastvideo_supervisor_core::session::Logs;
use fastvideo_supervisor_core::session::log::{Config, LogEvent as Event, SessionLog, Setup};
use fastvideo_supervisor_core::tenant::Tenant;
use nix::unistd::Pid;
use tokio::time::{MissedTickBehavior, interval};

use crate::cost::cpu_time;
use crate::report::{Row, Target};

const SESSIONS: usize = 32;
/// Every session says something at each.
const TICK: Duration = Duration::from_millis(10);
const TICKS: u32 = 1000;

pub(crate) async fn measure() -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let config = Config {
        dir: folder.path().to_owned(),
        max_file_bytes: 16 << 20,
        max_total_bytes: 1 << 30,
        max_age: Duration::from_secs(3600),
        signing_key: None,
        setup: Setup {
            engine: "synthetic".to_owned(),
            format: VideoFormat {
                width: 64,
                height: 64,
                num_frames: 8,
                fps: 24,
            },
            encoder: (&EncoderSpec::default()).into(),
        },
    };
    // The same loop without a log: what remains is the log's own work, in the sessions and in its thread.
    let without = run(&Logs::open(None)).await?;
    let logs = Logs::open(Some(config));
    let with = run(&logs).await?;
    logs.close(Duration::from_secs(10)).await;
    let events = TICKS as usize * SESSIONS;
    let written = lines(folder.path().to_owned())?;
    ensure!(
        written == events,
        "{written} lines of {events} were written"
    );
    let spent = with.saturating_sub(without);
    let took = TICK * TICKS;
    Ok(vec![Row {
        key: "session_log",
        what: "session log of 32 sessions, 100 events/s each, of one core",
        unit: "%",
        python: "-",
        target: Target::AtMost(1.0),
        measured: spent.as_secs_f64() / took.as_secs_f64() * 100.0,
        figures: None,
        note: format!(
            "{:.2} us for an event, {events} of them in {} s, all of them written",
            spent.as_secs_f64() * 1e6 / events as f64,
            took.as_secs()
        ),
    }])
}

/// Processor time of all threads.
async fn run(logs: &Logs) -> anyhow::Result<Duration> {
    let sessions: Vec<SessionLog> = (0..SESSIONS)
        .map(|_| logs.session(&SessionId::random(), &Tenant::default()))
        .collect();
    let before = cpu_time(Pid::this())?;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for step in 1..=TICKS {
        ticks.tick().await;
        for log in &sessions {
            log.record(|| Event::Step {
                segment_idx: 12,
                attempt: 1,
                stage: Stage::Denoise,
                step,
                total_steps: TICKS,
                ms: 9.876,
            });
        }
    }
    Ok(cpu_time(Pid::this())?.saturating_sub(before))
}

fn lines(folder: PathBuf) -> anyhow::Result<usize> {
    let mut lines = 0;
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_none_or(|it| it != "jsonl") {
            continue;
        }
        let text = std::fs::read_to_string(path).context("whole files are text")?;
        // Besides these a file has what it is and its signature.
        lines += text
            .lines()
            .filter(|line| line.contains("\"step\""))
            .count();
    }
    Ok(lines)
}
