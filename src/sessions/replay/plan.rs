//! What a replay does, read from a session's log.

use std::collections::HashSet;

use fastvideo_proto::adapter::{Adapter, AdapterChoice};
use fastvideo_proto::job::{MediaMode, PromptSource, VideoFormat};
use fastvideo_proto::stream_v1::SegmentRequest;
use fastvideo_supervisor_core::session::log::{Encoder, LogEvent as Event};

use super::facts::Faults;
use crate::sessions::history::History;

/// What has to be done to repeat a session.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) version: String,
    pub(super) engine: String,
    pub(super) model_id: String,
    pub(super) device: String,
    pub(super) format: VideoFormat,
    pub(super) encoder: Encoder,
    pub(super) media_mode: MediaMode,
    pub(super) segment_cap: u32,
    /// In the order in which they are taken.
    pub(super) actions: Vec<(When, Action)>,
    /// When the client leaves; `None` if the server ends the session.
    pub(super) leaves: Option<When>,
    /// The runs whose workers were lost.
    pub(super) losses: Vec<Loss>,
    /// Whether the safety filter has blocked requests.
    pub(super) has_blocked: bool,
}

/// What the session has come to when an action is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct When {
    /// Number of runs that have begun: each is one request's generation over all its attempts.
    pub(super) begun: usize,
    /// Number of runs that have ended.
    pub(super) ended: usize,
    /// Number of steps of the running one.
    pub(super) steps: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Request(SegmentRequest),
    Cancel,
    /// The session is moved to another worker.
    Move,
}

/// A run during which workers were lost.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Loss {
    /// The number of the run.
    pub(super) run: usize,
    pub(super) segment: u32,
    pub(super) prompt: String,
    /// Whether another run had the same segment's index.
    pub(super) shares_segment: bool,
    /// After how many steps the worker of each attempt was lost.
    pub(super) after_steps: Vec<usize>,
}

/// Why a session cannot be replayed.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "the file does not begin where the session does: that part was set aside, or is another server's"
    )]
    NoBeginning,
    #[error("`{event}` has no `{field}`: an older version has written the file")]
    Lacks {
        event: &'static str,
        field: &'static str,
    },
    #[error("the session began from a state that its client brought, which is not in the log")]
    Hydrated,
    #[error("the session began from the image `{0}`, which is not in the log")]
    Image(String),
    #[error("{0} events are missing in the log, as it says itself")]
    Dropped(u64),
    #[error(
        "the text of a prompt that the safety filter blocked is not in the log (`streaming.safety.log_prompts` was off)"
    )]
    PromptNotLogged,
    #[error(
        "the negative prompt of segment {0} is not in the log (`streaming.safety.log_prompts` was off)"
    )]
    NegativePromptNotLogged(u32),
    #[error("the session made rollouts (`/ws`), which are not replayed")]
    Rollouts,
    #[error("no segment was queued in the session, so there is nothing to replay")]
    NothingToReplay,
    #[error(
        "`--with-faults` cannot repeat the faults of a session that was resumed; without it they are left out"
    )]
    FaultsOfResumed,
}

/// One request's generation, over all its attempts.
#[derive(Debug)]
struct Run {
    segment: u32,
    /// Where its first attempt was queued, in the log.
    queued_at: usize,
    /// Where it ended, and whether it was cancelled; `None` if it has not ended.
    ended: Option<(usize, bool)>,
    request: SegmentRequest,
    /// The client's text, from which the request's may have been made.
    asked: String,
    total_steps: usize,
    /// Where each new step was logged.
    steps: Vec<usize>,
    known_steps: HashSet<String>,
    /// Number of steps when each started attempt was lost.
    losses: Vec<usize>,
    attempt_steps: usize,
}

impl Plan {
    /// Reads what to do from a log.
    ///
    /// # Errors
    /// Returns why the session cannot be replayed.
    pub(super) fn read(history: &History, faults: Faults) -> Result<Self, Refusal> {
        let events: Vec<&Event> = history.known().map(|(_, event)| event).collect();
        let Some(Event::Opened {
            stream_mode,
            resumed: false,
            version,
            format,
            segment_cap,
            next_segment_idx: 0,
            ..
        }) = events.first()
        else {
            return match events.first() {
                Some(Event::Opened { hydrated: true, .. }) => Err(Refusal::Hydrated),
                _ => Err(Refusal::NoBeginning),
            };
        };
        if events
            .iter()
            .any(|event| matches!(event, Event::RolloutStarted { .. }))
        {
            return Err(Refusal::Rollouts);
        }
        let opened = |field| Refusal::Lacks {
            event: "opened",
            field,
        };
        let mut plan = Self {
            version: version.clone().ok_or(opened("version"))?,
            format: format.ok_or(opened("format"))?,
            segment_cap: segment_cap.ok_or(opened("segment_cap"))?,
            media_mode: *stream_mode,
            engine: String::new(),
            model_id: String::new(),
            device: String::new(),
            encoder: Encoder {
                video_codec: String::new(),
                crf: 0,
                fragment_ms: 0.0,
                audio_bit_rate: 0,
                jpeg_quality: 0,
            },
            actions: Vec::new(),
            leaves: None,
            losses: Vec::new(),
            has_blocked: false,
        };
        plan.check(&events, faults)?;
        let runs = runs(&events)?;
        if runs.is_empty() {
            return Err(Refusal::NothingToReplay);
        }
        plan.add_actions(&events, &runs, faults);
        plan.losses = losses(&runs);
        Ok(plan)
    }

    /// Takes what the log says of the worker, and refuses what it does not have.
    fn check(&mut self, events: &[&Event], faults: Faults) -> Result<(), Refusal> {
        for event in events {
            match event {
                Event::Opened { hydrated: true, .. } => return Err(Refusal::Hydrated),
                Event::Opened {
                    image: Some(image), ..
                } => return Err(Refusal::Image(image.clone())),
                Event::Opened { resumed: true, .. } if faults == Faults::Repeated => {
                    return Err(Refusal::FaultsOfResumed);
                }
                Event::Dropped { events } => return Err(Refusal::Dropped(*events)),
                Event::PromptBlocked { prompt: None } => return Err(Refusal::PromptNotLogged),
                Event::Assigned {
                    model_id,
                    engine,
                    device,
                    encoder,
                    ..
                } => {
                    let lacks = |field| Refusal::Lacks {
                        event: "assigned",
                        field,
                    };
                    let engine = engine.clone().ok_or(lacks("engine"))?;
                    let device = device.clone().ok_or(lacks("device"))?;
                    let encoder = encoder.clone().ok_or(lacks("encoder"))?;
                    if self.engine.is_empty() {
                        self.model_id.clone_from(model_id);
                        (self.engine, self.device, self.encoder) = (engine, device, encoder);
                    }
                }
                Event::SegmentFinished { sha256: None, .. } => {
                    return Err(Refusal::Lacks {
                        event: "segment_finished",
                        field: "sha256",
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add_actions(&mut self, events: &[&Event], runs: &[Run], faults: Faults) {
        let mut placed: Vec<(usize, Action)> = Vec::new();
        // The client's texts, with their places, until their requests have become segments or were blocked.
        let mut received: Vec<(usize, Option<&str>)> = Vec::new();
        let mut requested: Vec<usize> = Vec::new();
        let mut next_run = 0;
        // A handoff follows from a loss, or was ordered.
        let (mut has_worker, mut was_lost) = (false, false);
        for (at, event) in events.iter().enumerate() {
            let running = runs.iter().find(|run| run.is_running(at));
            match event {
                Event::PromptReceived { prompt, .. } => received.push((at, prompt.as_deref())),
                Event::PromptBlocked {
                    prompt: Some(prompt),
                } => {
                    // Other prompts than requests are blocked too.
                    if let Some(place) = take(&mut received, prompt) {
                        self.has_blocked = true;
                        let request = SegmentRequest {
                            prompt: prompt.clone(),
                            ..SegmentRequest::default()
                        };
                        placed.push((place, Action::Request(request)));
                    }
                }
                Event::SegmentQueued { .. }
                    if runs.get(next_run).is_some_and(|run| run.queued_at == at) =>
                {
                    // What the server has asked of itself is asked for when it began.
                    let place = take(&mut received, &runs[next_run].asked).unwrap_or(at);
                    requested.push(place);
                    next_run += 1;
                }
                Event::Message { r#type, .. }
                    if r#type == "cancel_segment" && running.is_some_and(Run::is_cancelled) =>
                {
                    placed.push((at, Action::Cancel));
                }
                Event::Fault { .. } | Event::SegmentTakenBack { .. } => was_lost = true,
                Event::Handoff { .. } => {
                    let is_ordered = !std::mem::take(&mut was_lost) && running.is_none();
                    if faults == Faults::Repeated && has_worker && is_ordered {
                        placed.push((at, Action::Move));
                    }
                }
                Event::Assigned { .. } => has_worker = true,
                _ => {}
            }
        }
        // Requests come in the order of their runs, and behind a move that came before their run.
        let moves: Vec<usize> = (placed.iter())
            .filter(|(_, action)| *action == Action::Move)
            .map(|(at, _)| *at)
            .collect();
        let mut earliest = 0;
        for (run, place) in runs.iter().zip(requested) {
            let moved = moves.iter().rfind(|moved| **moved < run.queued_at);
            earliest = place.max(earliest).max(moved.copied().unwrap_or(0));
            placed.push((earliest, Action::Request(run.request.clone())));
        }
        placed.sort_by_key(|(at, _)| *at);
        let progress = |at| progress(runs, at);
        self.actions = placed
            .into_iter()
            .map(|(at, action)| (progress(at), action))
            .collect();
        let closed = events
            .iter()
            .rposition(|event| matches!(event, Event::Closed { .. }));
        self.leaves = match closed.map(|at| events[at]) {
            Some(Event::Closed { cause, .. }) if cause == "cap" => None,
            _ => Some(progress(closed.unwrap_or(events.len()))),
        };
    }

    /// Returns how the log says that the session ended, if a replay can repeat that.
    pub(super) fn repeats_close(history: &History) -> bool {
        let last = history.known().filter_map(|(_, event)| match event {
            Event::Closed { cause, .. } => Some(cause.as_ref()),
            _ => None,
        });
        matches!(last.last(), Some("left" | "cap"))
    }
}

impl When {
    /// Returns whether the session has come so far.
    pub(super) fn is_reached(self, now: Self) -> bool {
        match self.begun > self.ended {
            true => {
                now.ended >= self.begun
                    || now.begun > self.begun
                    || (now.begun == self.begun && now.steps >= self.steps)
            }
            false => now.ended >= self.ended,
        }
    }
}

impl Run {
    fn is_running(&self, at: usize) -> bool {
        self.queued_at < at && self.ended.is_none_or(|(end, _)| at < end)
    }

    fn is_cancelled(&self) -> bool {
        self.ended.is_some_and(|(_, cancelled)| cancelled)
    }
}

/// Takes the first of the client's texts that is this one, or that is not logged.
fn take(received: &mut Vec<(usize, Option<&str>)>, prompt: &str) -> Option<usize> {
    let place = received
        .iter()
        .position(|(_, text)| text.is_none_or(|text| text == prompt))?;
    Some(received.remove(place).0)
}

/// Returns what the session had come to at this place in the log. Of the running segment, at most half of the steps count:
/// what is done behind its last step may come too late.
fn progress(runs: &[Run], at: usize) -> When {
    let steps = |run: &Run| {
        let seen = run.steps.iter().filter(|step| **step < at).count();
        seen.min(run.total_steps / 2)
    };
    let ended = |run: &&Run| run.ended.is_some_and(|(end, _)| end < at);
    When {
        begun: runs.iter().filter(|run| run.queued_at < at).count(),
        ended: runs.iter().filter(ended).count(),
        steps: runs.iter().find(|run| run.is_running(at)).map_or(0, steps),
    }
}

fn losses(runs: &[Run]) -> Vec<Loss> {
    let with_losses = runs.iter().enumerate();
    with_losses
        .filter(|(_, run)| !run.losses.is_empty() && run.ended.is_some())
        .map(|(n, run)| Loss {
            run: n,
            segment: run.segment,
            prompt: run.request.prompt.clone(),
            shares_segment: runs.iter().filter(|r| r.segment == run.segment).count() > 1,
            after_steps: run.losses.clone(),
        })
        .collect()
}

/// Reads the runs. One that its client's lost connection has ended is left out, unless it is the last.
fn runs(events: &[&Event]) -> Result<Vec<Run>, Refusal> {
    let mut runs: Vec<Run> = Vec::new();
    for (at, event) in events.iter().enumerate() {
        if let Event::Opened { resumed: true, .. } = event {
            runs.retain(|run| run.ended.is_some());
        }
        if let Event::SegmentQueued { segment_idx, .. } = event {
            match runs.last_mut().filter(|run| run.ended.is_none()) {
                Some(run) if run.segment == *segment_idx => {
                    run.attempt_steps = 0;
                }
                _ => runs.push(Run::begin(at, event)?),
            }
            continue;
        }
        let Some(run) = runs.last_mut().filter(|run| run.ended.is_none()) else {
            continue;
        };
        match event {
            Event::Step { stage, step, .. } => {
                run.attempt_steps += 1;
                if run.known_steps.insert(format!("{stage:?} {step}")) {
                    run.steps.push(at);
                }
            }
            Event::Fault { started: true, .. } => run.losses.push(run.attempt_steps),
            Event::SegmentFinished { .. } | Event::SegmentFailed { .. } => {
                run.ended = Some((at, false));
            }
            Event::SegmentCancelled { .. } => run.ended = Some((at, true)),
            _ => {}
        }
    }
    Ok(runs)
}

/// Asks for an adapter as it acted.
fn chosen(adapter: &Adapter) -> AdapterChoice {
    AdapterChoice {
        name: adapter.name.clone(),
        strength: Some(adapter.strength),
    }
}

impl Run {
    fn begin(at: usize, event: &Event) -> Result<Self, Refusal> {
        let Event::SegmentQueued {
            segment_idx,
            source,
            prompt,
            original_prompt,
            seed,
            num_inference_steps,
            guidance_scale,
            adapters,
            negative_prompt,
            negative_prompt_hidden,
            ..
        } = event
        else {
            unreachable!("the caller has looked");
        };
        if *negative_prompt_hidden {
            return Err(Refusal::NegativePromptNotLogged(*segment_idx));
        }
        let lacks = |field| Refusal::Lacks {
            event: "segment_queued",
            field,
        };
        let steps = num_inference_steps.ok_or(lacks("num_inference_steps"))?;
        Ok(Self {
            segment: *segment_idx,
            queued_at: at,
            ended: None,
            request: SegmentRequest {
                prompt: prompt.clone(),
                negative_prompt: negative_prompt.clone(),
                // No language model is asked to write it out again.
                source: match original_prompt {
                    Some(_) => PromptSource::Enhanced,
                    None => *source,
                },
                seed: Some(seed.ok_or(lacks("seed"))?),
                num_inference_steps: Some(steps),
                guidance_scale: Some(guidance_scale.ok_or(lacks("guidance_scale"))?),
                adapters: Some(adapters.iter().map(chosen).collect()),
                traceparent: None,
            },
            asked: original_prompt.as_ref().unwrap_or(prompt).clone(),
            total_steps: steps as usize,
            steps: Vec::new(),
            known_steps: HashSet::new(),
            losses: Vec::new(),
            attempt_steps: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A log of these events, each after the one before.
    fn history(events: &[(&str, Value)]) -> History {
        let lines = events.iter().zip(1_u32..).map(|((event, payload), ts)| {
            json!({"session_id": "s", "ts": ts, "event": event, "payload": payload}).to_string()
        });
        let lines: Vec<String> = lines.collect();
        History::read(lines.join("\n").as_bytes()).unwrap()
    }

    fn beginning() -> Vec<(&'static str, Value)> {
        let format = json!({"width": 64, "height": 64, "num_frames": 8, "fps": 24});
        let encoder = json!({
            "video_codec": "libx264", "crf": 23, "fragment_ms": 250.0, "audio_bit_rate": 128_000, "jpeg_quality": 85,
        });
        vec![
            (
                "opened",
                json!({
                    "client_id": null, "preset": null, "stream_mode": "av_fmp4", "resumed": false, "hydrated": false,
                    "image": null, "curated_prompts": 0, "next_segment_idx": 0, "version": "0.1.0", "format": format,
                    "segment_cap": 6,
                }),
            ),
            (
                "assigned",
                json!({
                    "worker_id": "gpu0-1", "gpu_id": 0, "model_id": "m", "engine": "synthetic", "device": "CPU",
                    "encoder": encoder,
                }),
            ),
        ]
    }

    fn received(prompt: Option<&str>) -> (&'static str, Value) {
        let payload = json!({"source": "user", "prompt": prompt});
        ("prompt_received", payload)
    }

    fn queued(segment: u32, prompt: &str, original: Option<&str>) -> (&'static str, Value) {
        let payload = json!({
            "segment_idx": segment, "attempt": 1, "worker_id": "gpu0-1", "source": "user", "prompt": prompt,
            "original_prompt": original, "waited_ms": 1.0, "seed": 7, "num_inference_steps": 4, "guidance_scale": 1.0,
        });
        ("segment_queued", payload)
    }

    fn step(segment: u32, step: u32) -> (&'static str, Value) {
        let payload = json!({
            "segment_idx": segment, "attempt": 1, "stage": "denoise", "step": step, "total_steps": 4, "ms": 1.0,
        });
        ("step", payload)
    }

    fn finished(segment: u32) -> (&'static str, Value) {
        let payload = json!({
            "segment_idx": segment, "attempt": 1, "frames": 8, "generation_ms": 1.0, "decode_ms": 1.0, "encode_ms": 1.0,
            "sha256": "ab",
        });
        ("segment_finished", payload)
    }

    fn fault(segment: u32) -> (&'static str, Value) {
        let payload = json!({
            "segment_idx": segment, "attempt": 1, "worker_id": "gpu0-1", "started": true, "reason": "killed",
        });
        ("fault", payload)
    }

    fn handoff() -> (&'static str, Value) {
        ("handoff", json!({"from": "gpu0-1", "to": "gpu1-1"}))
    }

    fn closed(cause: &str) -> (&'static str, Value) {
        let payload = json!({"cause": cause, "state": "COMPLETE", "segments": 1});
        ("closed", payload)
    }

    fn plan(events: &[(&'static str, Value)]) -> Result<Plan, Refusal> {
        let events = [&beginning(), events].concat();
        Plan::read(&history(&events), Faults::Repeated)
    }

    fn when(begun: usize, ended: usize, steps: usize) -> When {
        When {
            begun,
            ended,
            steps,
        }
    }

    /// The actions: prompts, and other actions by their names.
    fn actions(plan: &Plan) -> Vec<(When, String)> {
        let told = plan.actions.iter().map(|(when, action)| {
            let name = match action {
                Action::Request(request) => request.prompt.clone(),
                other => format!("{other:?}"),
            };
            (*when, name)
        });
        told.collect()
    }

    #[test]
    fn requests_come_when_the_session_had_come_as_far() {
        let plan = plan(&[
            received(Some("a")),
            queued(0, "a", None),
            step(0, 1),
            received(Some("b")),
            step(0, 2),
            step(0, 3),
            ("message", json!({"type": "cancel_segment", "bytes": 9})),
            finished(0),
            queued(1, "B", Some("b")),
            step(1, 1),
            step(1, 2),
            step(1, 3),
            ("message", json!({"type": "cancel_segment", "bytes": 9})),
            ("segment_cancelled", json!({"segment_idx": 1, "attempt": 1})),
            // Nobody has asked for it.
            queued(1, "c", None),
            finished(1),
            closed("cap"),
        ])
        .unwrap();
        let expected = [
            (when(0, 0, 0), "a"),
            (when(1, 0, 1), "B"),
            // The first one came too late. Of four steps, two may be waited for.
            (when(2, 1, 2), "Cancel"),
            (when(2, 2, 0), "c"),
        ];
        let expected = expected.map(|(when, name)| (when, name.to_owned()));
        assert_eq!(actions(&plan), expected);
        assert_eq!(plan.leaves, None, "the server ends it");
        let Action::Request(request) = &plan.actions[1].1 else {
            panic!("a request");
        };
        assert_eq!(request.source, PromptSource::Enhanced);
        assert_eq!(
            (request.seed, request.num_inference_steps),
            (Some(7), Some(4))
        );
    }

    #[test]
    fn a_session_is_moved_where_it_was_moved_and_requests_wait_for_that() {
        let plan = plan(&[
            received(Some("a")),
            received(Some("b")),
            queued(0, "a", None),
            step(0, 1),
            fault(0),
            handoff(),
            queued(0, "a", None),
            finished(0),
            handoff(),
            queued(1, "b", None),
            finished(1),
            closed("gone"),
        ])
        .unwrap();
        let expected = [
            (when(0, 0, 0), "a"),
            (when(1, 1, 0), "Move"),
            (when(1, 1, 0), "b"),
        ];
        let expected = expected.map(|(when, name)| (when, name.to_owned()));
        assert_eq!(actions(&plan), expected);
        assert_eq!(plan.leaves, Some(when(2, 2, 0)));
        let loss = Loss {
            run: 0,
            segment: 0,
            prompt: "a".to_owned(),
            shares_segment: false,
            after_steps: vec![1],
        };
        assert_eq!(plan.losses, [loss]);
    }

    #[test]
    fn what_is_not_in_the_log_is_refused_unless_it_is_not_needed() {
        let check = |events: &[(&'static str, Value)], expected: Refusal| {
            assert_eq!(plan(events).unwrap_err(), expected);
        };
        let blocked = ("prompt_blocked", json!({"prompt": null}));
        check(&[received(None), blocked], Refusal::PromptNotLogged);
        check(&[("dropped", json!({"events": 3}))], Refusal::Dropped(3));
        check(&[], Refusal::NothingToReplay);
        // What was screened is in the log as the segment's prompt.
        let screened = [received(None), queued(0, "a", None), finished(0)];
        assert_eq!(
            actions(&plan(&screened).unwrap()),
            [(when(0, 0, 0), "a".to_owned())]
        );
    }

    #[test]
    fn a_condition_that_was_passed_over_is_reached() {
        let running = when(2, 1, 2);
        for (now, reached) in [
            (when(1, 1, 0), false),
            (when(2, 1, 1), false),
            (when(2, 1, 2), true),
            (when(2, 2, 0), true),
            (when(3, 2, 0), true),
        ] {
            assert_eq!(running.is_reached(now), reached, "{now:?}");
        }
        assert!(!when(2, 2, 0).is_reached(when(2, 1, 4)));
        assert!(when(2, 2, 0).is_reached(when(3, 2, 0)));
    }
}
