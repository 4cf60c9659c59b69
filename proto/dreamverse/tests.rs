use serde_json::json;

use super::*;

#[track_caller]
fn parsed(text: &str) -> ClientMessage {
    ClientMessage::parse(text).unwrap().unwrap()
}

#[test]
fn what_does_not_fit_is_named_and_what_is_unknown_is_ignored() {
    for (text, expected) in [
        ("[]", "message is not a JSON object"),
        ("{}", "missing field `type`"),
        (
            r#"{"type":1}"#,
            "invalid type: integer `1`, expected a string",
        ),
        (
            r#"{"type":"append_prompt","prompt":7}"#,
            "`append_prompt`: prompt: invalid type: integer `7`, expected a string",
        ),
        (
            r#"{"type":"set_loop_generation","enabled":"yes"}"#,
            "`set_loop_generation`: enabled",
        ),
        (
            r#"{"type":"rewrite_seed_prompts","prompt_window_prompts":"all"}"#,
            "`rewrite_seed_prompts`: prompt_window_prompts",
        ),
    ] {
        let error = ClientMessage::parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert_eq!(
        ClientMessage::parse(r#"{"type":"dance","x":[1]}"#).unwrap(),
        None
    );
    let given = parsed(r#"{"type":"set_loop_generation","enabled":null}"#);
    assert_eq!(given, ClientMessage::SetLoopGeneration(Toggle::default()));
    assert_eq!(given.kind(), "set_loop_generation");
}

#[test]
fn any_first_message_opens_and_lists_are_read_leniently() {
    let opening = Opening::parse(
        r#"{"type":"session_init_v2","curated_prompts":[" a fox ","",null,7,{"b":[1]},"a hill"],
            "segment_prompts":["no"],"preset_id":null,"enhancement_enabled":false}"#,
    );
    let opening = opening.unwrap();
    assert_eq!(opening.curated_prompts, ["a fox", "a hill"]);
    assert_eq!(
        (opening.preset_id, opening.enhancement_enabled),
        (None, Some(false))
    );
    for kind in ["select_model", "hello"] {
        let text = json!({"type": kind, "segment_prompts": ["a fox"], "curated_prompts": ["no"]});
        let opening = Opening::parse(&text.to_string()).unwrap();
        assert_eq!(opening.curated_prompts, ["a fox"], "{kind}");
    }
    let many = json!({"type": "session_init_v2", "curated_prompts": vec!["x"; MAX_TEXTS + 1]});
    let error = Opening::parse(&many.to_string()).unwrap_err();
    assert!(
        error.to_string().contains("more than 4096 texts"),
        "{error}"
    );
}

#[test]
fn nulls_are_sent() {
    let source = ServerMessage::SegmentPromptSource {
        segment_idx: 1,
        source: "curated",
        prompt_id: None,
        fallback_used: false,
        seed_prompt_index: Some(0),
        loop_iteration: 1,
    };
    assert_eq!(
        serde_json::to_value(source).unwrap(),
        json!({
            "type": "segment_prompt_source", "segment_idx": 1, "source": "curated",
            "prompt_id": null, "fallback_used": false, "seed_prompt_index": 0, "loop_iteration": 1,
        })
    );
    let assigned = ServerMessage::GpuAssigned {
        gpu_id: 3,
        session_timeout: None,
    };
    assert_eq!(
        serde_json::to_value(assigned).unwrap(),
        json!({"type": "gpu_assigned", "gpu_id": 3, "session_timeout": null})
    );
    let error = ServerMessage::Error {
        message: "no".to_owned(),
        error_code: None,
    };
    assert_eq!(
        serde_json::to_value(error).unwrap(),
        json!({"type": "error", "message": "no"})
    );
}
