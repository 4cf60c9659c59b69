//! The exact JSON of every message, and what is said of text that is none.

use serde_json::json;

use super::*;
use crate::adapter::{Adapter, AdapterChoice};

/// The literal is read as this message, and the message is written as the same literal.
#[track_caller]
fn check_client(literal: Value, message: ClientMessage) {
    assert_eq!(
        ClientMessage::parse(&literal.to_string()).unwrap(),
        message,
        "{literal}"
    );
    assert_eq!(serde_json::to_value(&message).unwrap(), literal);
}

#[track_caller]
fn check_server(literal: Value, message: ServerMessage) {
    assert_eq!(serde_json::to_value(&message).unwrap(), literal);
    let read: ServerMessage = serde_json::from_value(literal).unwrap();
    assert_eq!(read, message);
}

#[track_caller]
fn check_refused(text: &str, expected: &str) {
    let error = ClientMessage::parse(text).unwrap_err().to_string();
    assert_eq!(error, expected, "{text}");
}

fn request_id(text: &str) -> Option<RequestId> {
    Some(RequestId::try_from(text.to_owned()).unwrap())
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

const TRACE_PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn session_init_has_the_names_of_the_contract() {
    check_client(
        json!({
            "type": "session_init_v2",
            "client_id": "viewer",
            "preset": "sunset",
            "preset_label": "Sunset",
            "curated_prompts": ["a hill", "a lake"],
            "initial_image": {"mime": "image/png", "name": "a.png", "data": "AAAA"},
            "enhancement_enabled": true,
            "auto_extension_enabled": true,
            "loop_generation_enabled": true,
            "single_clip_mode": true,
            "stream_mode": "legacy_jpeg",
            "continuation_state": {"kind": "ltx2.v1", "payload": {"segment_index": 3}},
            "resume": {"session_id": "s", "token": "t", "have": {"segments": 3, "messages": 5}},
            "extend": true, "heartbeat": true, "preview": true, "traceparent": TRACE_PARENT,
            "adapters": [{"name": "toon"}],
        }),
        ClientMessage::SessionInit(Box::new(SessionInit {
            client_id: Some("viewer".to_owned()),
            preset: Some("sunset".to_owned()),
            preset_label: Some("Sunset".to_owned()),
            curated_prompts: vec!["a hill".to_owned(), "a lake".to_owned()],
            initial_image: Some(object(
                json!({"mime": "image/png", "name": "a.png", "data": "AAAA"}),
            )),
            enhancement_enabled: true,
            auto_extension_enabled: true,
            loop_generation_enabled: true,
            single_clip_mode: true,
            stream_mode: MediaMode::LegacyJpeg,
            continuation_state: Some(ContinuationState {
                kind: "ltx2.v1".to_owned(),
                payload: object(json!({"segment_index": 3})),
            }),
            resume: Some(Resume {
                session_id: "s".to_owned(),
                token: "t".to_owned(),
                have: Some(Have {
                    segments: 3,
                    messages: 5,
                }),
            }),
            extend: true,
            heartbeat: true,
            preview: true,
            traceparent: Some(TRACE_PARENT.to_owned()),
            adapters: Some(vec![AdapterChoice {
                name: "toon".to_owned(),
                strength: None,
            }]),
        })),
    );
}

#[test]
fn a_bare_session_init_takes_every_default() {
    let defaults = ClientMessage::SessionInit(Box::default());
    let read = |text: &str| ClientMessage::parse(text).unwrap();
    assert_eq!(read(r#"{"type":"session_init_v2"}"#), defaults);
    let nulls = r#"{"client_id":null,"preset":null,"preset_label":null,"initial_image":null,
        "continuation_state":null,"type":"session_init_v2"}"#;
    assert_eq!(read(nulls), defaults);
    let unknown =
        r#"{"type":"session_init_v2","theme":"dark","nested":{"a":[1]},"stream_mode":"av_fmp4"}"#;
    assert_eq!(read(unknown), defaults);
}

#[test]
fn every_later_client_message_has_the_names_of_the_contract() {
    check_client(
        json!({
            "type": "segment_prompt_source",
            "prompt": "a fox",
            "negative_prompt": "snow",
            "source": "auto_extension",
            "seed": u64::MAX,
            "num_inference_steps": 4,
            "guidance_scale": 2.5,
            "adapters": [{"name": "toon", "strength": -0.5}],
            "traceparent": TRACE_PARENT,
        }),
        ClientMessage::SegmentRequest(SegmentRequest {
            prompt: "a fox".to_owned(),
            negative_prompt: Some("snow".to_owned()),
            source: PromptSource::AutoExtension,
            seed: Some(u64::MAX),
            num_inference_steps: Some(4),
            guidance_scale: Some(2.5),
            adapters: Some(vec![AdapterChoice {
                name: "toon".to_owned(),
                strength: Some(-0.5),
            }]),
            traceparent: Some(TRACE_PARENT.to_owned()),
        }),
    );
    check_client(
        json!({"type": "seed_prompts_updated", "seed_prompts": ["a"]}),
        ClientMessage::SeedPromptsUpdated(SeedPromptsUpdated {
            seed_prompts: vec!["a".to_owned()],
        }),
    );
    let toggle = Toggle { enabled: true };
    check_client(
        json!({"type": "enhancement_updated", "enabled": true}),
        ClientMessage::EnhancementUpdated(toggle),
    );
    check_client(
        json!({"type": "auto_extension_updated", "enabled": true}),
        ClientMessage::AutoExtensionUpdated(toggle),
    );
    check_client(
        json!({"type": "loop_generation_updated", "enabled": true}),
        ClientMessage::LoopGenerationUpdated(toggle),
    );
    check_client(
        json!({"type": "generation_paused_updated", "paused": false}),
        ClientMessage::GenerationPausedUpdated(Paused { paused: false }),
    );
    check_client(
        json!({"type": "snapshot_state"}),
        ClientMessage::SnapshotState,
    );
    check_client(
        json!({"type": "cancel_segment"}),
        ClientMessage::CancelSegment,
    );
    check_client(
        json!({"type": "playback", "position_ms": 1500.5, "playing": true}),
        ClientMessage::Playback(Playback {
            position_ms: 1500.5,
            playing: true,
        }),
    );
    check_client(
        json!({"type": "media_received", "segment_idx": 1, "messages": 5}),
        ClientMessage::MediaReceived(MediaReceived {
            segment_idx: 1,
            messages: 5,
        }),
    );
    check_client(
        json!({"type": "renew_watch_token"}),
        ClientMessage::RenewWatchToken,
    );
    check_client(
        json!({"type": "withdraw_request"}),
        ClientMessage::WithdrawRequest,
    );
    check_client(
        json!({"type": "edit_request", "prompt": "a", "position": 2}),
        ClientMessage::EditRequest(EditRequest {
            prompt: Some("a".to_owned()),
            position: Some(2),
        }),
    );
    check_client(
        json!({"type": "rewrite_seed_prompts", "seed_prompt": "a", "count": 5}),
        ClientMessage::RewriteSeedPrompts(RewriteSeedPrompts {
            seed_prompt: "a".to_owned(),
            count: 5,
        }),
    );
    check_client(json!({"type": "leave"}), ClientMessage::Leave);
}

#[test]
fn what_a_later_message_leaves_out_takes_its_default() {
    let read = |text: &str| ClientMessage::parse(text).unwrap();
    let request = ClientMessage::SegmentRequest(SegmentRequest {
        prompt: "a fox".to_owned(),
        ..SegmentRequest::default()
    });
    assert_eq!(
        read(r#"{"type":"segment_prompt_source","prompt":"a fox"}"#),
        request
    );
    let nulls = r#"{"type":"segment_prompt_source","prompt":"a fox","negative_prompt":null,"seed":null,
        "num_inference_steps":null,"guidance_scale":null,"mood":"blue"}"#;
    assert_eq!(read(nulls), request);
    assert_eq!(
        read(r#"{"type":"seed_prompts_updated"}"#),
        ClientMessage::SeedPromptsUpdated(SeedPromptsUpdated::default())
    );
    assert_eq!(
        read(r#"{"type":"rewrite_seed_prompts","seed_prompt":"a"}"#),
        ClientMessage::RewriteSeedPrompts(RewriteSeedPrompts {
            seed_prompt: "a".to_owned(),
            count: 3,
        })
    );
    assert_eq!(
        read(r#" {"why":[1,{"type":"other"}],"type":"leave"} "#),
        ClientMessage::Leave
    );
    for (name, source) in [
        ("user", PromptSource::User),
        ("curated", PromptSource::Curated),
        ("enhanced", PromptSource::Enhanced),
        ("auto_extension", PromptSource::AutoExtension),
    ] {
        let text =
            format!(r#"{{"type":"segment_prompt_source","prompt":"a fox","source":"{name}"}}"#);
        let ClientMessage::SegmentRequest(request) = read(&text) else {
            panic!("{text} is a request");
        };
        assert_eq!(request.source, source);
    }
}

#[test]
fn what_is_no_message_is_refused_by_type_and_field() {
    for text in [
        "",
        "hello",
        "[]",
        "7",
        "null",
        r#""leave""#,
        r#"["leave"]"#,
        r#"["session_init_v2"]"#,
    ] {
        check_refused(text, "message is not a JSON object");
    }
    check_refused(
        "{}",
        "message is not a JSON object with a `type`: missing field `type` at line 1 column 2",
    );
    check_refused(
        r#"{"type":7}"#,
        "message is not a JSON object with a `type`: invalid type: integer `7`, expected a string at line 1 column 9",
    );
    check_refused(
        r#"{"type":"leave""#,
        "message is not a JSON object with a `type`: EOF while parsing an object at line 1 column 15",
    );
    check_refused(
        r#"{"type":"leave"} {}"#,
        "message is not a JSON object with a `type`: trailing characters at line 1 column 18",
    );
    check_refused(r#"{"type":"dance"}"#, "unknown message type `dance`");
    check_refused(
        r#"{"type":"segment_prompt_source"}"#,
        "`segment_prompt_source`: missing field `prompt` at line 1 column 32",
    );
    check_refused(
        r#"{"type":"segment_prompt_source","prompt":"a","seed":-1}"#,
        "`segment_prompt_source`: seed: invalid value: integer `-1`, expected a whole number from 0 to \
         18446744073709551615, or its digits as a string at line 1 column 54",
    );
    check_refused(
        r#"{"type":"segment_prompt_source","prompt":"a","seed":"ten"}"#,
        "`segment_prompt_source`: seed: invalid value: string \"ten\", expected a whole number from 0 to \
         18446744073709551615, or its digits as a string at line 1 column 57",
    );
    check_refused(
        r#"{"type":"segment_prompt_source","prompt":"a","guidance_scale":1e999}"#,
        "`segment_prompt_source`: guidance_scale: number out of range at line 1 column 67",
    );
    check_refused(
        r#"{"type":"segment_prompt_source","prompt":"a","source":"robot"}"#,
        "`segment_prompt_source`: source: unknown variant `robot`, expected one of `user`, `curated`, `enhanced`, \
         `auto_extension` at line 1 column 61",
    );
    check_refused(
        r#"{"type":"seed_prompts_updated","seed_prompts":["a",2]}"#,
        "`seed_prompts_updated`: seed_prompts[1]: invalid type: integer `2`, expected a string at line 1 column 52",
    );
    check_refused(
        r#"{"type":"enhancement_updated","enabled":null}"#,
        "`enhancement_updated`: enabled: invalid type: null, expected a boolean at line 1 column 44",
    );
    check_refused(
        r#"{"type":"session_init_v2","continuation_state":{"kind":"ltx2.v1","payload":7}}"#,
        "`session_init_v2`: continuation_state.payload: invalid type: integer `7`, expected a map at line 1 column 76",
    );
    check_refused(
        r#"{"type":"session_init_v2","initial_image":"cat.png"}"#,
        r#"`session_init_v2`: initial_image: invalid type: string "cat.png", expected a map at line 1 column 51"#,
    );
}

#[test]
fn a_request_has_its_id_whatever_else_is_wrong_with_it() {
    for (text, id, error) in [
        (r#"{"type":"leave","request_id":"a"}"#, Some("a"), None),
        (r#"{"type":"leave","request_id":null}"#, None, None),
        (
            r#"{"request_id":"b","type":"dance"}"#,
            Some("b"),
            Some("unknown message type `dance`"),
        ),
        (
            r#"{"type":"enhancement_updated","request_id":"c"}"#,
            Some("c"),
            Some("`enhancement_updated`: missing field `enabled` at line 1 column 47"),
        ),
    ] {
        let (given, parsed) = ClientMessage::parse_request(text);
        assert_eq!(given, id.and_then(request_id), "{text}");
        let said = parsed.err().map(|error| error.to_string());
        assert_eq!(said.as_deref(), error, "{text}");
    }
    let long = format!("\"{}\"", "é".repeat(65));
    for wrong in [
        "\"\"",
        &long,
        "7",
        "-7",
        "1.5",
        "true",
        "[1, [2]]",
        r#"{"a": {"b": 1}}"#,
    ] {
        let text = format!(r#"{{"request_id":{wrong},"type":"leave"}}"#);
        check_refused(&text, "`request_id` must be a string of 1 to 64 characters");
    }
    let longest = format!(r#"{{"request_id":"{}","type":"leave"}}"#, "é".repeat(64));
    assert_eq!(
        ClientMessage::parse(&longest).unwrap(),
        ClientMessage::Leave
    );
}

#[test]
fn a_seed_may_be_a_string_of_digits() {
    let read = |seed: &str| {
        let text = format!(r#"{{"type":"segment_prompt_source","prompt":"a","seed":{seed}}}"#);
        match ClientMessage::parse(&text).unwrap() {
            ClientMessage::SegmentRequest(request) => request.seed,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(read("\"18446744073709551615\""), Some(u64::MAX));
    assert_eq!(read("\"10\""), read("10"));
    assert_eq!(read("null"), None);
}

#[test]
fn a_refusal_does_not_repeat_a_long_message() {
    let long = "é".repeat(1 << 20);
    for text in [
        format!(r#"{{"type":"{long}"}}"#),
        format!(r#"{{"type":{{"{long}":"{long}"}}}}"#),
        format!(r#"{{"type":"enhancement_updated","enabled":"{long}"}}"#),
        format!(r#"{{"type":"segment_prompt_source","prompt":"a","source":"{long}"}}"#),
    ] {
        let error = ClientMessage::parse(&text).unwrap_err().to_string();
        assert!(error.len() < 1000, "{} bytes: {error:.100}", error.len());
    }
    let wrong = format!(r#"{{"type":"enhancement_updated","enabled":"{long}"}}"#);
    let error = ClientMessage::parse(&wrong).unwrap_err().to_string();
    assert!(error.starts_with("`enhancement_updated`: enabled: invalid type: string \"éé"));
    assert!(error.contains("éé\", expected a boolean at line 1 column"));
}

#[test]
fn the_opening_of_the_session_has_the_names_of_the_contract() {
    check_server(
        json!({"type": "queue_status", "position": 1, "queue_depth": 2}),
        ServerMessage::QueueStatus {
            position: 1,
            queue_depth: 2,
        },
    );
    check_server(
        json!({
            "type": "gpu_assigned", "gpu_id": 3, "session_timeout": 300, "session_id": "s", "resume_token": "t",
            "watch_token": "w", "worker_id": "w", "model_id": "m", "server": "a",
        }),
        ServerMessage::GpuAssigned {
            gpu_id: 3,
            session_timeout: 300,
            session_id: "s".to_owned(),
            resume_token: Some("t".to_owned()),
            watch_token: Some("w".to_owned()),
            worker_id: "w".to_owned(),
            model_id: "m".to_owned(),
            server: Some("a".to_owned()),
        },
    );
    check_server(
        json!({
            "type": "ltx2_stream_start", "width": 768, "height": 512, "fps": 24, "num_frames": 121,
            "generation_segment_cap": 6, "next_segment_idx": 0, "features": {
                "enhancement": false, "auto_extension": false, "rewrite": false, "safety": false, "audio": true,
                "preview": true, "adapters": [{"name": "toon", "strength": 0.8}],
            },
            "limits": {
                "max_message_bytes": 50331648, "max_prompt_chars": 4000, "max_waiting_requests": 8,
                "max_inference_steps": 200, "max_guidance_scale": 100.0, "opening_timeout_seconds": 30,
                "slow_client_timeout_seconds": 30, "hold_seconds": 10, "recording": true, "max_cap_extensions": 2,
            },
        }),
        ServerMessage::StreamStart {
            preset: None,
            width: 768,
            height: 512,
            fps: 24,
            num_frames: 121,
            generation_segment_cap: 6,
            next_segment_idx: 0,
            features: Features {
                audio: true,
                preview: true,
                adapters: vec![Adapter {
                    name: "toon".to_owned(),
                    strength: 0.8,
                }],
                ..Features::default()
            },
            limits: Limits {
                max_message_bytes: 50_331_648,
                max_prompt_chars: 4000,
                max_waiting_requests: 8,
                max_inference_steps: 200,
                max_guidance_scale: 100.0,
                opening_timeout_seconds: 30,
                slow_client_timeout_seconds: 30,
                hold_seconds: 10,
                recording: true,
                max_cap_extensions: 2,
            },
        },
    );
}

#[test]
fn a_segment_has_the_names_of_the_contract() {
    check_server(
        json!({
            "type": "ltx2_segment_start", "segment_idx": 2, "prompt": "a red fox", "total_steps": 8,
            "source": "curated", "original_prompt": "a fox", "attempt": 1, "request_id": "r",
        }),
        ServerMessage::SegmentStart {
            segment_idx: 2,
            prompt: "a red fox".to_owned(),
            total_steps: 8,
            source: PromptSource::Curated,
            original_prompt: Some("a fox".to_owned()),
            attempt: 1,
            replayed: false,
            request_id: request_id("r"),
        },
    );
    for (name, stage) in [
        ("denoise", Stage::Denoise),
        ("refine", Stage::Refine),
        ("decode", Stage::Decode),
    ] {
        check_server(
            json!({"type": "step_complete", "segment_idx": 2, "step": 1, "total_steps": 8, "stage": name}),
            ServerMessage::StepComplete {
                segment_idx: 2,
                step: 1,
                total_steps: 8,
                stage,
            },
        );
    }
    check_server(
        json!({
            "type": "ltx2_preview", "segment_idx": 2, "attempt": 1, "frame": 24, "num_frames": 25, "width": 64,
            "height": 32, "jpeg": "YWJj",
        }),
        ServerMessage::Preview {
            segment_idx: 2,
            attempt: 1,
            frame: 24,
            num_frames: 25,
            width: 64,
            height: 32,
            jpeg: "YWJj".to_owned(),
        },
    );
    for (name, mode) in [
        ("av_fmp4", MediaMode::AvFmp4),
        ("legacy_jpeg", MediaMode::LegacyJpeg),
    ] {
        check_server(
            json!({"type": "media_init", "segment_idx": 2, "mime": "video/mp4", "stream_id": "s", "mode": name}),
            ServerMessage::MediaInit {
                segment_idx: 2,
                mime: "video/mp4".to_owned(),
                stream_id: "s".to_owned(),
                mode,
            },
        );
    }
    check_server(
        json!({
            "type": "media_segment_complete", "segment_idx": 2, "stream_id": "s", "chunks": 21,
            "duration_ms": 5041.5, "pts_base_ms": 10083.25,
        }),
        ServerMessage::MediaSegmentComplete {
            segment_idx: 2,
            stream_id: "s".to_owned(),
            chunks: 21,
            duration_ms: 5041.5,
            pts_base_ms: 10083.25,
        },
    );
    check_server(
        json!({
            "type": "ltx2_segment_complete", "segment_idx": 2, "generation_time_ms": 1.5, "e2e_latency_ms": 2.5,
        }),
        ServerMessage::SegmentComplete {
            segment_idx: 2,
            generation_time_ms: 1.5,
            e2e_latency_ms: 2.5,
            request_id: None,
        },
    );
    check_server(
        json!({"type": "segment_cancelled", "segment_idx": 2}),
        ServerMessage::SegmentCancelled {
            segment_idx: 2,
            request_id: None,
        },
    );
}

#[test]
fn the_end_of_the_session_has_the_names_of_the_contract() {
    for (name, reason) in [
        ("segment_cap", CompleteReason::SegmentCap),
        ("stop_requested", CompleteReason::StopRequested),
        ("error", CompleteReason::Error),
    ] {
        check_server(
            json!({"type": "ltx2_stream_complete", "reason": name}),
            ServerMessage::StreamComplete {
                reason,
                resumable_until: None,
                dropped_requests: Vec::new(),
            },
        );
    }
    let dropped = json!([{"request_id": "r", "prompt": "a"}, {"prompt": "b"}]);
    let dropped_requests = vec![
        DroppedRequest {
            request_id: Some("r".to_owned().try_into().unwrap()),
            prompt: "a".to_owned(),
        },
        DroppedRequest {
            request_id: None,
            prompt: "b".to_owned(),
        },
    ];
    check_server(
        json!({
            "type": "ltx2_stream_complete", "reason": "segment_cap",
            "resumable_until": "2026-11-30T12:00:00Z", "dropped_requests": dropped,
        }),
        ServerMessage::StreamComplete {
            reason: CompleteReason::SegmentCap,
            resumable_until: Some("2026-11-30T12:00:00Z".to_owned()),
            dropped_requests,
        },
    );
    check_server(
        json!({
            "type": "prompt_enhanced", "original_prompt": "a", "prompt": "b", "provider": "groq", "latency_ms": 2.5,
            "fallback_used": false,
        }),
        ServerMessage::PromptEnhanced {
            original_prompt: "a".to_owned(),
            prompt: "b".to_owned(),
            provider: "groq".to_owned(),
            latency_ms: 2.5,
            fallback_used: false,
            request_id: None,
        },
    );
    check_server(
        json!({"type": "prompt_fallback", "original_prompt": "a", "reason": "why"}),
        ServerMessage::PromptFallback {
            original_prompt: "a".to_owned(),
            reason: "why".to_owned(),
            request_id: None,
        },
    );
    check_server(
        json!({
            "type": "seed_prompts_rewritten", "seed_prompt": "a", "alternatives": ["b", "c"], "provider": "groq",
            "model": "m", "latency_ms": 2.5, "fallback_used": true,
        }),
        ServerMessage::SeedPromptsRewritten {
            seed_prompt: "a".to_owned(),
            alternatives: vec!["b".to_owned(), "c".to_owned()],
            provider: "groq".to_owned(),
            model: "m".to_owned(),
            latency_ms: 2.5,
            fallback_used: true,
            request_id: None,
        },
    );
    check_server(
        json!({"type": "session_timeout", "timeout_seconds": 300}),
        ServerMessage::SessionTimeout {
            timeout_seconds: 300,
            resumable_until: None,
            dropped_requests: Vec::new(),
        },
    );
    check_server(
        json!({"type": "server_draining", "deadline_seconds": 30}),
        ServerMessage::ServerDraining {
            deadline_seconds: 30,
        },
    );
    check_server(
        json!({"type": "continuation_state_snapshot", "state": {"kind": "ltx2.v1", "payload": {"a": [1]}}}),
        ServerMessage::ContinuationStateSnapshot {
            state: ContinuationState {
                kind: "ltx2.v1".to_owned(),
                payload: object(json!({"a": [1]})),
            },
            request_id: None,
        },
    );
}

#[test]
fn every_error_has_the_names_of_the_contract() {
    for (name, code) in [
        ("session_rejected", ErrorCode::SessionRejected),
        ("invalid_message", ErrorCode::InvalidMessage),
        ("preset_mismatch", ErrorCode::PresetMismatch),
        ("gpu_unavailable", ErrorCode::GpuUnavailable),
        ("worker_failed", ErrorCode::WorkerFailed),
        ("upstream_timeout", ErrorCode::UpstreamTimeout),
        ("internal_error", ErrorCode::InternalError),
        ("prompt_blocked", ErrorCode::PromptBlocked),
        ("unauthorized", ErrorCode::Unauthorized),
        ("rate_limited", ErrorCode::RateLimited),
        ("state_incompatible", ErrorCode::StateIncompatible),
        ("segment_timeout", ErrorCode::SegmentTimeout),
    ] {
        check_server(
            json!({"type": "error", "code": name, "message": "why", "retryable": true}),
            ServerMessage::error(code, "why", true),
        );
    }
    check_server(
        json!({
            "type": "error", "code": "worker_failed", "message": "why", "retryable": true, "segment_idx": 2,
            "restarting": true,
        }),
        ServerMessage::Error {
            code: ErrorCode::WorkerFailed,
            message: "why".to_owned(),
            retryable: true,
            segment_idx: Some(2),
            restarting: true,
            request_id: None,
            retry_after_ms: None,
        },
    );
}

#[test]
fn a_client_reads_server_messages_with_fields_of_a_later_version() {
    let read: ServerMessage = serde_json::from_value(json!({
        "type": "queue_status", "position": 0, "queue_depth": 0, "expected_wait_seconds": 4,
    }))
    .unwrap();
    let expected = ServerMessage::QueueStatus {
        position: 0,
        queue_depth: 0,
    };
    assert_eq!(read, expected);
}

#[test]
fn what_is_new_about_a_film_has_the_names_of_the_contract() {
    check_server(
        json!({
            "type": "ltx2_segment_start", "segment_idx": 2, "prompt": "a fox", "total_steps": 8, "source": "user",
            "attempt": 1, "replayed": true,
        }),
        ServerMessage::SegmentStart {
            segment_idx: 2,
            prompt: "a fox".to_owned(),
            total_steps: 8,
            source: PromptSource::User,
            original_prompt: None,
            attempt: 1,
            replayed: true,
            request_id: None,
        },
    );
    check_server(
        json!({"type": "watch_token", "watch_token": "w"}),
        ServerMessage::WatchToken {
            watch_token: "w".to_owned(),
            request_id: None,
        },
    );
    check_server(
        json!({"type": "spectators", "count": 3}),
        ServerMessage::Spectators { count: 3 },
    );
}
