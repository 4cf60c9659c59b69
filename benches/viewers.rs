//! More viewers than the workers keep up with: those that are let in never run out of video.

use std::time::{Duration, Instant};

use anyhow::bail;
use futures_util::future::try_join_all;
use serde_json::json;
use tokio::time::{sleep, sleep_until, timeout_at};

use crate::client::{Client, Heard};
use crate::cost::MachineTime;
use crate::figures::milliseconds;
use crate::report::{Row, Target};
use crate::server::Server;

const WORKERS: u64 = 8;
const VIEWERS: u32 = 64;
/// Those that the workers keep up with: six each, as six times [`STEPS_MS`] and what else a segment takes is a tenth below
/// [`PLAYS`].
const FULL: usize = 48;
/// 24 frames at 6 frames per second: so slow that two cores draw and encode for all workers beside their steps.
const PLAYS: Duration = Duration::from_secs(4);
/// Of all denoise steps of a segment.
const STEPS_MS: u32 = 582;
/// Each viewer comes this much after the one before, all of them within the time that a segment plays. If all came in the same
/// moment, all workers would draw and encode in the same moment too, for which two cores need longer than is planned for.
const STAGGER: Duration = Duration::from_millis(61);
/// Until nobody is let in any more.
const SETTLE: Duration = Duration::from_secs(12);
const COUNTED: Duration = Duration::from_secs(60);

const PACED: &[&str] = &[
    "--sessions-per-gpu=8",
    "--max-sessions=200",
    "--default_request.sampling.width=64",
    "--default_request.sampling.height=64",
    "--default_request.sampling.num_frames=24",
    "--default_request.sampling.fps=6",
    "--default_request.sampling.num_inference_steps=6",
    "--generator.synthetic.step_ms=97",
    "--generator.synthetic.audio_latent_frames=4",
    "--streaming.warmup.width=64",
    "--streaming.warmup.height=64",
    "--streaming.warmup.num_frames=24",
    "--streaming.warmup.num_inference_steps=6",
];

pub(crate) async fn measure() -> anyhow::Result<Vec<Row>> {
    let server = Server::start_ready(WORKERS, PACED).await?;
    let settled = Instant::now() + SETTLE;
    let end = settled + COUNTED;
    let watching = (0..VIEWERS).map(async |place| {
        sleep(STAGGER * place).await;
        let mut viewer = Viewer::default();
        // It watches to the end unless it is refused.
        if let Ok(stopped) = timeout_at(end.into(), viewer.watch(&server)).await {
            stopped?;
        }
        viewer.stop(Instant::now());
        anyhow::Ok(viewer)
    });
    let before = MachineTime::look()?;
    let viewers = try_join_all(watching).await?;
    let busy = MachineTime::look()?.busy_since(&before);

    let admitted = || viewers.iter().filter(|viewer| viewer.admitted.is_some());
    let late = admitted().filter(|viewer| viewer.admitted > Some(settled));
    let stalls = || admitted().flat_map(|viewer| &viewer.stalls);
    let in_the_beginning = stalls().filter(|(at, _)| *at < settled).count();
    let longest = stalls().map(|(_, lasted)| *lasted).max();
    let smallest = admitted().filter_map(|viewer| viewer.smallest_lead).min();
    let segments: u32 = admitted().map(|viewer| viewer.segments).sum();
    let refused = viewers.iter().filter(|viewer| viewer.refused).count();
    let admitted_count = admitted().count();
    Ok(vec![
        Row {
            key: "viewers_stalls",
            what: "64 viewers on 8 workers, stalls of those let in",
            unit: "",
            python: "-",
            target: Target::AtMost(0.0),
            measured: stalls().count() as f64,
            figures: None,
            note: format!(
                "{segments} segments of {} s in {} s; stalls in the first {} s {in_the_beginning}, longest {:.0} ms; smallest lead {:.0} ms; cores {:.0} % busy",
                PLAYS.as_secs(),
                (SETTLE + COUNTED).as_secs(),
                SETTLE.as_secs(),
                milliseconds(longest.unwrap_or_default()),
                milliseconds(smallest.unwrap_or_default()),
                busy * 100.0,
            ),
        },
        Row {
            key: "viewers_admitted",
            what: "those let in",
            unit: "",
            python: "-",
            target: Target::AtLeast(FULL as f64),
            measured: admitted_count as f64,
            figures: None,
            note: format!(
                "{} wait in the end, {refused} were refused, {} were let in after {} s; steps {STEPS_MS} ms a segment, time for {FULL}",
                VIEWERS as usize - admitted_count - refused,
                late.count(),
                SETTLE.as_secs(),
            ),
        },
    ])
}

/// Plays in real time from the first media on, and asks for the next segment when at most one is left to play.
#[derive(Debug, Default)]
struct Viewer {
    admitted: Option<Instant>,
    refused: bool,
    segments: u32,
    /// When all that is here has been played.
    runs_out: Option<Instant>,
    /// When there was nothing to play any more, and for how long.
    stalls: Vec<(Instant, Duration)>,
    /// What was left to play when media of the next segment came.
    smallest_lead: Option<Duration>,
}

impl Viewer {
    /// Returns only when it is refused.
    async fn watch(&mut self, server: &Server) -> anyhow::Result<()> {
        let mut client = Client::connect(&server.address, json!({})).await?;
        loop {
            match client.next().await? {
                (at, heard) if heard.is("ltx2_stream_start") => {
                    self.admitted = Some(at);
                    break;
                }
                (_, Heard::Text(text)) if text["type"] == "error" => {
                    self.refused = true;
                    return Ok(());
                }
                _ => {}
            }
        }
        loop {
            if let Some(ask) = self.runs_out.and_then(|all| all.checked_sub(PLAYS)) {
                sleep_until(ask.into()).await;
            }
            client.prompt("fireflies over a meadow at night").await?;
            let mut plays = false;
            loop {
                match client.next().await? {
                    // The init segment plays nothing; the first fragment follows at once.
                    (at, Heard::Media(_)) => {
                        if !plays {
                            self.goes_on(at);
                        }
                        plays = true;
                    }
                    (_, Heard::Text(text)) => match text["type"].as_str() {
                        Some("error") => bail!("{text}"),
                        Some("ltx2_segment_complete") => break,
                        _ => {}
                    },
                }
            }
            self.segments += 1;
        }
    }

    /// Media of the next segment are here.
    fn goes_on(&mut self, at: Instant) {
        let begins = match self.runs_out {
            None => at,
            Some(runs_out) => {
                let lead = runs_out.saturating_duration_since(at);
                self.smallest_lead = Some(self.smallest_lead.map_or(lead, |least| least.min(lead)));
                if at > runs_out {
                    self.stalls.push((runs_out, at - runs_out));
                }
                runs_out.max(at)
            }
        };
        self.runs_out = Some(begins + PLAYS);
    }

    /// It watches no longer; had it nothing to play for a while, that was a stall too.
    fn stop(&mut self, now: Instant) {
        let starved = self.admitted.map(|admitted| admitted + PLAYS);
        if let Some(since) = self.runs_out.or(starved)
            && now > since
        {
            self.stalls.push((since, now - since));
        }
    }
}
