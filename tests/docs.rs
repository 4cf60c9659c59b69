//! The reference for client authors says what the types say, and the commands for developers do what they are for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::stream_v1::{ClientMessage, ServerMessage};
use serde_json::{Value, json};
use tempfile::TempDir;

const REFERENCE: &str = include_str!("../docs/protocol.md");
const MAKEFILE: &str = include_str!("../Makefile");

/// One message of each type with every field set.
fn client_messages() -> Vec<Value> {
    vec![
        json!({
            "type": "session_init_v2", "client_id": "c", "preset": "p", "preset_label": "l", "curated_prompts": ["a"],
            "initial_image": {"mime": "image/png"}, "enhancement_enabled": true, "auto_extension_enabled": true,
            "loop_generation_enabled": true, "single_clip_mode": true, "stream_mode": "legacy_jpeg",
            "continuation_state": {"kind": "k", "payload": {}}, "resume": {"session_id": "s", "token": "t", "have": {"segments": 1, "messages": 2}},
            "extend": true, "heartbeat": true, "preview": true, "adapters": [{"name": "toon", "strength": 0.5}],
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        }),
        json!({
            "type": "segment_prompt_source", "prompt": "p", "negative_prompt": "n", "source": "curated", "seed": 1,
            "num_inference_steps": 2, "guidance_scale": 1.5, "adapters": [{"name": "toon"}],
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        }),
        json!({"type": "seed_prompts_updated", "seed_prompts": ["a"]}),
        json!({"type": "enhancement_updated", "enabled": true}),
        json!({"type": "auto_extension_updated", "enabled": true}),
        json!({"type": "loop_generation_updated", "enabled": true}),
        json!({"type": "generation_paused_updated", "paused": true}),
        json!({"type": "snapshot_state"}),
        json!({"type": "cancel_segment"}),
        json!({"type": "withdraw_request"}),
        json!({"type": "edit_request", "prompt": "p", "position": 0}),
        json!({"type": "playback", "position_ms": 1.5, "playing": true}),
        json!({"type": "media_received", "segment_idx": 0, "messages": 3}),
        json!({"type": "renew_watch_token"}),
        json!({"type": "rewrite_seed_prompts", "seed_prompt": "p", "count": 3}),
        json!({"type": "leave"}),
    ]
}

fn server_messages() -> Vec<Value> {
    vec![
        json!({"type": "queue_status", "position": 0, "queue_depth": 1}),
        json!({
            "type": "gpu_assigned", "gpu_id": 0, "session_timeout": 300, "session_id": "s", "resume_token": "t",
            "watch_token": "w", "worker_id": "w", "model_id": "m", "server": "n",
        }),
        json!({
            "type": "ltx2_stream_start", "preset": "p", "width": 64, "height": 64, "fps": 24, "num_frames": 8,
            "generation_segment_cap": 6, "next_segment_idx": 0, "features": {
                "enhancement": false, "auto_extension": false, "rewrite": false, "safety": false, "audio": true,
                "preview": true,
                "adapters": [{"name": "toon", "strength": 1.0}],
            },
            "limits": {
                "max_message_bytes": 50331648, "max_prompt_chars": 4000, "max_waiting_requests": 8,
                "max_inference_steps": 200, "max_guidance_scale": 100.0, "opening_timeout_seconds": 30,
                "slow_client_timeout_seconds": 30, "hold_seconds": 10, "recording": true, "max_cap_extensions": 0,
            },
        }),
        json!({
            "type": "ltx2_segment_start", "segment_idx": 0, "prompt": "p", "total_steps": 8, "source": "user",
            "original_prompt": "o", "attempt": 1, "replayed": true, "request_id": "r",
        }),
        json!({"type": "step_complete", "segment_idx": 0, "step": 1, "total_steps": 8, "stage": "denoise"}),
        json!({
            "type": "ltx2_preview", "segment_idx": 0, "attempt": 1, "frame": 24, "num_frames": 25, "width": 64, "height": 32,
            "jpeg": "YWJjZA==",
        }),
        json!({"type": "media_init", "segment_idx": 0, "mime": "video/mp4", "stream_id": "s", "mode": "av_fmp4"}),
        json!({
            "type": "media_segment_complete", "segment_idx": 0, "stream_id": "s", "chunks": 3, "duration_ms": 1.5,
            "pts_base_ms": 0.5,
        }),
        json!({
            "type": "ltx2_segment_complete", "segment_idx": 0, "generation_time_ms": 1.5, "e2e_latency_ms": 2.5,
            "request_id": "r",
        }),
        json!({
            "type": "ltx2_stream_complete", "reason": "segment_cap", "resumable_until": "2026-11-30T12:00:00Z",
            "dropped_requests": [{"request_id": "r", "prompt": "p"}],
        }),
        json!({
            "type": "session_timeout", "timeout_seconds": 300, "resumable_until": "2026-11-30T12:00:00Z",
            "dropped_requests": [{"request_id": "r", "prompt": "p"}],
        }),
        json!({"type": "continuation_state_snapshot", "state": {"kind": "k", "payload": {}}, "request_id": "r"}),
        json!({
            "type": "error", "code": "worker_failed", "message": "m", "retryable": true, "segment_idx": 0,
            "restarting": true, "request_id": "r", "retry_after_ms": 1500,
        }),
        json!({
            "type": "prompt_enhanced", "original_prompt": "o", "prompt": "p", "provider": "groq", "latency_ms": 1.5,
            "fallback_used": true, "request_id": "r",
        }),
        json!({"type": "prompt_fallback", "original_prompt": "o", "reason": "r", "request_id": "r"}),
        json!({
            "type": "seed_prompts_rewritten", "seed_prompt": "o", "alternatives": ["p"], "provider": "groq",
            "model": "m", "latency_ms": 1.5, "fallback_used": true, "request_id": "r",
        }),
        json!({"type": "segment_cancelled", "segment_idx": 0, "request_id": "r"}),
        json!({"type": "request_withdrawn", "request_id": "r"}),
        json!({"type": "request_edited", "request_id": "r", "position": 0}),
        json!({"type": "idle_warning", "seconds_left": 15}),
        json!({"type": "watch_token", "watch_token": "w", "request_id": "r"}),
        json!({"type": "spectators", "count": 1}),
        json!({"type": "heartbeat"}),
        json!({"type": "server_draining", "deadline_seconds": 30}),
    ]
}

/// Type to names of fields.
type Fields = BTreeMap<String, BTreeSet<String>>;

fn fields(messages: &[Value]) -> Fields {
    let fields = |message: &Value| {
        let object = message.as_object().unwrap();
        let names = object.keys().filter(|k| *k != "type").cloned().collect();
        (object["type"].as_str().unwrap().to_owned(), names)
    };
    messages.iter().map(fields).collect()
}

/// What a section of the reference names: types in its third-level headings, fields in the first column below.
fn documented(section: &str) -> Fields {
    let text = REFERENCE
        .split_once(&format!("\n## {section}\n"))
        .expect("the section is there")
        .1;
    let text = text.split("\n## ").next().unwrap();
    let mut found = Fields::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("### `") {
            let name = heading.trim_end_matches('`').to_owned();
            found.insert(name.clone(), BTreeSet::new());
            current = Some(name);
        } else if let (Some(name), Some(row)) = (&current, line.strip_prefix("| `")) {
            let field = row.split('`').next().unwrap().to_owned();
            found.get_mut(name).unwrap().insert(field);
        }
    }
    found
}

#[test]
fn the_reference_names_every_message_and_field_and_no_other() {
    let client = client_messages();
    for message in &client {
        let parsed = ClientMessage::parse(&message.to_string()).unwrap();
        assert_eq!(&serde_json::to_value(&parsed).unwrap(), message);
    }
    assert_eq!(documented("Client to server"), fields(&client));
    let server = server_messages();
    for message in &server {
        let parsed: ServerMessage = serde_json::from_value(message.clone()).unwrap();
        assert_eq!(&serde_json::to_value(&parsed).unwrap(), message);
    }
    assert_eq!(documented("Server to client"), fields(&server));
}

/// Adding a message to `proto` without adding it above does not compile.
#[test]
fn the_messages_above_are_all_there_are() {
    for message in client_messages() {
        match ClientMessage::parse(&message.to_string()).unwrap() {
            ClientMessage::SessionInit(_)
            | ClientMessage::SegmentRequest(_)
            | ClientMessage::SeedPromptsUpdated(_)
            | ClientMessage::EnhancementUpdated(_)
            | ClientMessage::AutoExtensionUpdated(_)
            | ClientMessage::LoopGenerationUpdated(_)
            | ClientMessage::GenerationPausedUpdated(_)
            | ClientMessage::SnapshotState
            | ClientMessage::CancelSegment
            | ClientMessage::WithdrawRequest
            | ClientMessage::EditRequest(_)
            | ClientMessage::Playback(_)
            | ClientMessage::MediaReceived(_)
            | ClientMessage::RenewWatchToken
            | ClientMessage::RewriteSeedPrompts(_)
            | ClientMessage::Leave => {}
        }
    }
    for message in server_messages() {
        match serde_json::from_value(message).unwrap() {
            ServerMessage::QueueStatus { .. }
            | ServerMessage::GpuAssigned { .. }
            | ServerMessage::StreamStart { .. }
            | ServerMessage::SegmentStart { .. }
            | ServerMessage::StepComplete { .. }
            | ServerMessage::Preview { .. }
            | ServerMessage::MediaInit { .. }
            | ServerMessage::MediaSegmentComplete { .. }
            | ServerMessage::SegmentComplete { .. }
            | ServerMessage::StreamComplete { .. }
            | ServerMessage::SessionTimeout { .. }
            | ServerMessage::ContinuationStateSnapshot { .. }
            | ServerMessage::Error { .. }
            | ServerMessage::PromptEnhanced { .. }
            | ServerMessage::PromptFallback { .. }
            | ServerMessage::SeedPromptsRewritten { .. }
            | ServerMessage::SegmentCancelled { .. }
            | ServerMessage::RequestWithdrawn { .. }
            | ServerMessage::RequestEdited { .. }
            | ServerMessage::IdleWarning { .. }
            | ServerMessage::WatchToken { .. }
            | ServerMessage::Spectators { .. }
            | ServerMessage::Heartbeat
            | ServerMessage::ServerDraining { .. } => {}
        }
    }
}

#[test]
fn the_reference_lists_every_error_code() {
    let text = REFERENCE.split_once("\n## Error codes\n").unwrap().1;
    let text = text.split("\n## ").next().unwrap();
    let listed: Vec<ErrorCode> = (text.lines())
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .map(|code| serde_json::from_value(code.into()).unwrap())
        .collect();
    for code in &listed {
        match code {
            ErrorCode::SessionRejected
            | ErrorCode::InvalidMessage
            | ErrorCode::PresetMismatch
            | ErrorCode::GpuUnavailable
            | ErrorCode::WorkerFailed
            | ErrorCode::UpstreamTimeout
            | ErrorCode::InternalError
            | ErrorCode::PromptBlocked
            | ErrorCode::Unauthorized
            | ErrorCode::RateLimited
            | ErrorCode::StateIncompatible
            | ErrorCode::SegmentTimeout => {}
        }
    }
    assert_eq!(listed.len(), 12);
}

#[test]
fn whatever_runs_tests_has_the_packages_that_they_need() {
    let mut runs_tests = Vec::new();
    let (mut target, mut prerequisites) = ("", "");
    for line in MAKEFILE.lines() {
        if line.starts_with('\t') {
            if line.contains("CARGO) test ") || line.contains("cargo bench ") {
                let needed = prerequisites
                    .split_whitespace()
                    .any(|p| p == "test-packages");
                assert!(needed, "{target}: {prerequisites}");
                runs_tests.push(target);
            }
        } else if let Some(rule) = line.split_once(": ") {
            (target, prerequisites) = rule;
        }
    }
    runs_tests.dedup();
    assert_eq!(
        runs_tests,
        ["test", "test-ltx2", "test-ltx2-memory", "bench"]
    );
}

/// Checks the dependencies with a cargo that fails when its arguments fit a pattern. Returns whether the check passed, what
/// it said, and what it asked cargo for.
#[expect(
    clippy::disallowed_methods,
    reason = "the test starts the script under test"
)]
fn check_dependencies(fails: &str) -> (bool, String, String) {
    let folder = TempDir::new().unwrap();
    let (cargo, asked) = (folder.path().join("cargo"), folder.path().join("asked"));
    let script = "#!/bin/sh\necho \"$*\" >> \"$ASKED\"\ncase \"$*\" in $FAILS) exit 1;; esac\n";
    fs::write(&cargo, script).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/check-dependencies");
    let output = Command::new(script)
        .env("PATH", folder.path())
        .env("ASKED", &asked)
        .env("FAILS", fails)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    (
        output.status.success(),
        said,
        fs::read_to_string(asked).unwrap(),
    )
}

#[test]
fn dependencies_are_checked_as_far_as_they_can_be() {
    const RULES: &str = "check bans licenses sources";
    const ADVISORIES: &str = "check advisories";
    let (passed, said, asked) = check_dependencies("nothing");
    assert!(passed && said.is_empty(), "{said}");
    assert!(
        asked.contains(RULES) && asked.contains(ADVISORIES),
        "{asked}"
    );
    for finding in [RULES, ADVISORIES] {
        let (passed, said, _) = check_dependencies(&format!("*{finding}*"));
        assert!(!passed, "{finding}: {said}");
    }
    // Where something cannot be checked, that is said.
    let (passed, said, asked) = check_dependencies("*fetch*");
    assert!(passed && said.contains("advisories of dependencies were not checked"));
    assert!(
        asked.contains(RULES) && !asked.contains(ADVISORIES),
        "{asked}"
    );
    let (passed, said, asked) = check_dependencies("*--version*");
    assert!(passed && said.contains("cargo-deny is not installed"));
    assert!(!asked.contains("check"), "{asked}");
}
