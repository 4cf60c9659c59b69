//! Prints a session's log as text.

use std::fmt::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use fastvideo_proto::job::VideoFormat;
use fastvideo_supervisor_core::session::log::{Llm, LogEvent as Event};
use serde_json::Value;

use super::history::{AttemptOutcome, History, LogEntry, LoggedEvent, SegmentAttempt, attempt_of};
use crate::logging::escape::is_control;

/// The number of characters of a prompt that the table shows.
const PROMPT_CHARS: usize = 48;

/// Prints the log: a line for each event, followed by a table of the attempts at segments.
pub(super) fn print(history: &History) -> String {
    let mut out = String::new();
    write(&mut out, history).expect("a string takes any text");
    out
}

fn write(out: &mut String, history: &History) -> fmt::Result {
    let History {
        session_id, length, ..
    } = history;
    writeln!(
        out,
        "session {}  {}  {length:.1} s\n",
        plain(session_id),
        begun(history)
    )?;
    for LogEntry { at, event } in &history.entries {
        let (name, details) = describe(event);
        writeln!(out, "{at:>10.3}  {name:<17}  {details}")?;
    }
    if !history.attempts.is_empty() {
        writeln!(out)?;
        table(out, &history.attempts)?;
    }
    match history.skipped {
        0 => Ok(()),
        n => writeln!(
            out,
            "\n{n} lines are no events: a server that was killed may leave half a line"
        ),
    }
}

/// Formats the time of the first line in RFC 3339.
pub(super) fn begun(history: &History) -> String {
    let since = Duration::try_from_secs_f64(history.begun_unix).unwrap_or_default();
    // humantime cannot format later times, which no server has logged.
    let time = UNIX_EPOCH
        .checked_add(since.min(Duration::from_secs(253_402_300_799)))
        .unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_millis(time).to_string()
}

/// Replaces control characters, which a terminal would interpret, by blanks.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if is_control(c) { ' ' } else { c })
        .collect()
}

/// Shortens a text to its first `chars` characters, without control characters.
pub(super) fn shortened(text: &str, chars: usize) -> String {
    let text = plain(text);
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Returns the serialised name of a state, a stage or a code.
pub(super) fn wire_name(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        other => other.map_or_else(|_| String::new(), |value| value.to_string()),
    }
}

/// Returns the name of an event and its details.
fn describe(event: &LoggedEvent) -> (String, String) {
    match event {
        LoggedEvent::Unknown { name, payload } => (plain(name), plain(&payload.to_string())),
        LoggedEvent::Known(event) => {
            let name = match attempt_of(event) {
                Some((idx, 1)) => format!("segment {idx}"),
                Some((idx, attempt)) => format!("segment {idx} ({attempt})"),
                None => event_name(event),
            };
            (name, plain(&details(event)))
        }
    }
}

fn event_name(event: &Event) -> String {
    let line = serde_json::to_value(event).unwrap_or_default();
    line["event"].as_str().unwrap_or_default().to_owned()
}

fn details(event: &Event) -> String {
    match event {
        Event::Opened {
            client_id,
            preset,
            stream_mode,
            resumed,
            hydrated,
            image,
            curated_prompts,
            next_segment_idx,
            format,
            ..
        } => {
            let named = |name: &str, value: &Option<String>| {
                value.as_ref().map(|value| format!("{name} {value}"))
            };
            let parts = [
                Some(wire_name(stream_mode)),
                named("client", client_id),
                named("preset", preset),
                named("image", image),
                hydrated.then(|| "from a state of the client's".to_owned()),
                resumed.then(|| format!("resumed at segment {next_segment_idx}")),
                format.map(|format| {
                    let VideoFormat {
                        width,
                        height,
                        num_frames,
                        fps,
                    } = format;
                    format!("{num_frames} frames of {width}x{height} at {fps} per second")
                }),
                (*curated_prompts > 0).then(|| format!("{curated_prompts} curated prompts")),
            ];
            parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
        Event::State { from, to } => format!("{} → {}", wire_name(from), wire_name(to)),
        Event::Message { r#type, bytes } => format!("{}, {bytes} bytes", r#type),
        Event::Queued {
            position,
            queue_depth,
        } => format!("position {position} of {queue_depth}"),
        Event::Assigned {
            worker_id,
            gpu_id,
            model_id,
            device,
            ..
        } => match device {
            Some(device) => format!("{worker_id} on GPU {gpu_id} ({device}), {model_id}"),
            None => format!("{worker_id} on GPU {gpu_id}, {model_id}"),
        },
        Event::Handoff { from, to } => format!("{from} → {to}"),
        Event::PromptReceived { source, prompt } => {
            let shown = prompt
                .as_deref()
                .unwrap_or("(not shown before it is screened)");
            format!("{}: {shown}", wire_name(source))
        }
        Event::PromptEnhanced {
            original_prompt,
            prompt,
            by,
        } => format!("{}: {original_prompt} → {prompt}", written_by(by)),
        Event::PromptExtended { prompt, by } => format!("{}: {prompt}", written_by(by)),
        Event::PromptRewritten {
            seed_prompt,
            alternatives,
            by,
        } => format!(
            "{}: {seed_prompt} → {}",
            written_by(by),
            alternatives
                .as_ref()
                .map_or_else(|| "(not shown)".to_owned(), |all| all.join(" | "))
        ),
        Event::RolloutStarted {
            loop_iteration,
            seed_prompts,
        } => format!("number {loop_iteration}, {seed_prompts} seed prompts"),
        Event::SeedPromptsRewritten {
            prompts,
            instruction,
            model,
            reason,
        } => format!(
            "{}: {instruction} → {}",
            model
                .as_ref()
                .or(reason.as_ref())
                .map_or("", String::as_str),
            prompts.join(" | ")
        ),
        Event::RolloutCompleted {} | Event::ProjectEnded {} => String::new(),
        Event::PromptFallback {
            original_prompt,
            reason,
        } => format!("{reason}: {original_prompt}"),
        Event::PromptBlocked { prompt } => match prompt {
            Some(prompt) => format!("BLOCKED: {prompt}"),
            None => "BLOCKED".to_owned(),
        },
        Event::SegmentQueued {
            worker_id,
            source,
            prompt,
            waited_ms,
            seed,
            ..
        } => {
            let seed = seed
                .map(|seed| format!(", seed {seed}"))
                .unwrap_or_default();
            match worker_id {
                Some(worker_id) => format!(
                    "queued for {worker_id}, {} after it was asked for, {}{seed}: {prompt}",
                    ms(*waited_ms),
                    wire_name(source)
                ),
                None => format!("waits for a worker{seed}: {prompt}"),
            }
        }
        Event::SegmentStarted {
            worker_id,
            queue_ms,
            after,
            ..
        } => {
            let worker = worker_id.as_ref().map(|id| format!(" on {id}"));
            let after = after.map(|after| {
                let (stage, step) = (wire_name(after.stage), after.step);
                format!("; goes on from the snapshot after {stage} {step}")
            });
            format!(
                "started{} after {}{}",
                worker.unwrap_or_default(),
                ms(*queue_ms),
                after.unwrap_or_default()
            )
        }
        Event::SnapshotDropped { reason, .. } => {
            format!("begins with the first step, since its step snapshot is not used: {reason}")
        }
        Event::Step {
            stage,
            step,
            total_steps,
            ms: took,
            ..
        } => format!("{} {step}/{total_steps}, {}", wire_name(stage), ms(*took)),
        Event::FirstByte { ms: took, .. } => {
            format!("first media sent, {} after it was asked for", ms(*took))
        }
        Event::SegmentFinished {
            frames,
            generation_ms,
            decode_ms,
            encode_ms,
            sha256,
            ..
        } => {
            let hash = sha256.as_deref().map(|hash| format!("; SHA-256 {hash}"));
            format!(
                "finished: {frames} frames in {}, of which decoding {}; encoding {}{}",
                ms(*generation_ms),
                ms(*decode_ms),
                ms(*encode_ms),
                hash.unwrap_or_default()
            )
        }
        Event::LastByte {
            ms: took,
            chunks,
            bytes,
            ..
        } => format!(
            "last media sent, {} after it was asked for: {chunks} chunks, {bytes} bytes",
            ms(*took)
        ),
        Event::SegmentResent { segment_idx, bytes } => {
            format!("segment {segment_idx} sent again to a client that lacked it: {bytes} bytes")
        }
        Event::SegmentCancelled { .. } => "cancelled".to_owned(),
        Event::SegmentFailed { code, message, .. } => {
            format!("failed, {}: {message}", wire_name(code))
        }
        Event::SegmentTakenBack { started, .. } => match started {
            true => "taken back from a worker that has to leave".to_owned(),
            false => "taken back from the queue of a worker that has to leave".to_owned(),
        },
        Event::Fault {
            worker_id, reason, ..
        } => format!("FAULT: {worker_id} was lost: {reason}"),
        Event::MediaVoid { .. } => {
            "the media differ from those of the attempt before, which are void".to_owned()
        }
        Event::Error { code, message, .. } => format!("{}: {message}", wire_name(code)),
        Event::Draining { deadline_seconds } => format!("{deadline_seconds:.1} s are left"),
        Event::Closed {
            cause,
            state,
            segments,
        } => format!("{cause}, {}, {segments} segments", wire_name(state)),
        Event::VideoTaken {
            width,
            height,
            fps,
            num_frames,
            segments,
            segments_done,
            prompt,
            seed,
            ..
        } => format!(
            "{num_frames} frames of {width}x{height} at {fps} per second, {segments_done} of {segments} segments are there, seed {seed}: {prompt}"
        ),
        Event::VideoEnded {
            code,
            message,
            segments_done,
            bytes,
        } => match code {
            None => format!(
                "completed: {segments_done} segments, {} bytes",
                bytes.unwrap_or_default()
            ),
            Some(code) => format!("failed, {code}: {}", message.as_deref().unwrap_or_default()),
        },
        Event::VideoLeft { was_deleted: true } => "deleted, or taken by another server".to_owned(),
        Event::VideoLeft { was_deleted: false } => "waits for the next server".to_owned(),
        Event::Signed(signature) => format!("with {}", signature.key),
        Event::Dropped { events } => format!("{events} events are missing"),
    }
}

fn written_by(by: &Llm) -> String {
    let fallback = if by.fallback_used {
        ", as a fallback"
    } else {
        ""
    };
    format!(
        "{} of {} in {}{fallback}",
        by.model,
        by.provider,
        ms(by.latency_ms)
    )
}

/// Formats a time that is given in milliseconds.
pub(super) fn ms(ms: f64) -> String {
    match ms {
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms => format!("{ms:.1} ms"),
    }
}

/// The columns of the table; times are in milliseconds.
const COLUMNS: [&str; 9] = [
    "segment",
    "LLM",
    "queue",
    "denoise",
    "steps",
    "decode",
    "encode",
    "first byte",
    "last byte",
];

/// Returns the table row of an attempt.
fn cells(attempt: &SegmentAttempt) -> [String; 9] {
    let time = |ms: Option<f64>| ms.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.1}"));
    let (decode, encode) = match attempt.outcome {
        AttemptOutcome::Finished {
            decode_ms,
            encode_ms,
        } => (Some(decode_ms), Some(encode_ms)),
        _ => (None, None),
    };
    [
        match attempt.attempt {
            1 => attempt.segment_idx.to_string(),
            n => format!("{} ({n})", attempt.segment_idx),
        },
        time(attempt.llm_ms),
        time(attempt.queue_ms()),
        time(Some(attempt.denoise_ms()).filter(|_| !attempt.steps.is_empty())),
        attempt.steps.len().to_string(),
        time(decode),
        time(encode),
        time(attempt.since_request_ms(attempt.first_byte)),
        time(attempt.since_request_ms(attempt.last_byte)),
    ]
}

/// Describes how an attempt ended, unless it finished.
pub(super) fn remark(attempt: &SegmentAttempt) -> Option<&'static str> {
    match attempt.outcome {
        AttemptOutcome::Finished { .. } => None,
        AttemptOutcome::Unknown => Some("not ended"),
        AttemptOutcome::Cancelled => Some("cancelled"),
        AttemptOutcome::Failed => Some("failed"),
        AttemptOutcome::WorkerLost => Some("worker lost"),
        AttemptOutcome::TakenBack => Some("taken back"),
    }
}

fn table(out: &mut String, attempts: &[SegmentAttempt]) -> fmt::Result {
    for column in COLUMNS {
        write!(out, "{column:>11}")?;
    }
    writeln!(out, "  (ms)  prompt")?;
    for attempt in attempts {
        for cell in cells(attempt) {
            write!(out, "{cell:>11}")?;
        }
        let prompt = shortened(&attempt.prompt, PROMPT_CHARS);
        match remark(attempt) {
            Some(remark) => writeln!(out, "        {prompt} [{remark}]")?,
            None => writeln!(out, "        {prompt}")?,
        }
    }
    Ok(())
}
