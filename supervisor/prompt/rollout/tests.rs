use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::prompt::llm_error::LlmError;

fn request(current: Option<&[&str]>, instruction: &str, count: usize) -> RolloutRequest {
    let current = current.map(|prompts| RolloutPrompts {
        id: "fox".to_owned(),
        label: " ".to_owned(),
        prompts: prompts.iter().map(|&prompt| prompt.to_owned()).collect(),
    });
    RolloutRequest {
        current,
        instruction: instruction.to_owned(),
        count,
        model: None,
        temperature: None,
        system_prompt: None,
        id_hint: Some("hint".to_owned()),
        label_hint: None,
    }
}

/// The message without what is asked for in words.
fn message(request: &RolloutRequest) -> Value {
    let mut message: Value = serde_json::from_str(&request.message()).unwrap();
    let words = message.as_object_mut().unwrap().remove("request");
    assert!(words.unwrap().is_string());
    message
}

#[test]
fn the_message_has_the_shape_that_system_prompts_for_dreamverse_expect() {
    let expected = json!({
        "mode": "new_rollout", "user_instruction": "a fox", "desired_segment_count": 6, "rollout_id_hint": "hint",
        "rollout_label_hint": "Current rollout",
    });
    assert_eq!(message(&request(None, " a fox\n", 6)), expected);
    let expected = json!({
        "mode": "edit_existing_rollout", "user_instruction": "at night",
        "current_rollout": {"id": "fox", "label": "Current rollout", "segment_prompts": ["a fox", "a hole"]},
    });
    let edit = request(Some(&["a fox", "a hole"]), "at night", 2);
    assert_eq!(message(&edit), expected);
}

#[test]
fn without_a_model_the_user_gets_a_video_all_the_same() {
    let check = |current: Option<&[&str]>, instruction, expected: &[&str]| {
        let prompts = request(current, instruction, 2).without_model(20);
        assert_eq!(prompts, expected, "{instruction}");
    };
    check(None, " a fox ", &["a fox", "a fox"]);
    check(
        None,
        "a fox in the snow at dawn",
        &["a fox in the snow at"; 2],
    );
    check(None, " ", &[]);
    check(
        Some(&["a fox", "A hole!"]),
        "night",
        &["a fox. night.", "A hole! night."],
    );
    check(Some(&["“Go.”"]), "At night?", &["“Go.” At night?"]);
    check(Some(&["a fox", "a hole "]), " ", &["a fox", "a hole "]);
    check(
        Some(&["a fox in the snow", "ü"]),
        "night",
        &["a fox in the snow. n", "ü. night."],
    );
}

fn read(text: &str) -> Result<RolloutAnswer, LlmError> {
    RolloutAnswer::read(text, 2, 30)
}

#[test]
fn prompts_are_found_in_every_form_of_answer() {
    let check = |text: &str| {
        let answer = read(text).unwrap_or_else(|error| panic!("{error} in {text}"));
        assert_eq!(answer.prompts, ["A fox.", "A hole."], "{text}");
    };
    for json in [
        r#"{"segment_prompts": ["A fox.", "A hole."]}"#,
        r#"{"id": "x", "prompts": [" A\n fox.", "A hole."]}"#,
        "{\"segments\": [\"A\nfox.\", \"A\thole.\"]}",
        r#"{"rewritten_prompts": [{"prompt": "A fox."}, {"n": 2, "text": "A hole."}]}"#,
        r#"{"rollout": {"segment_prompts": ["A fox.", "A hole."]}}"#,
        r#"{"rewritten_rollout": {"segments": [{"description": "A fox."}, {"content": "A hole."}]}}"#,
        r#"{"current_rollout": {"prompts": ["x", "y"]}, "segment_prompts": ["A fox.", "A hole."]}"#,
        r#"{"current_rollout": {"prompts": ["x", "y"]}, "rewritten_rollout": {"prompts": ["A fox.", "A hole."]}}"#,
        r#"{"segment_2": "A hole.", "segment_1": "A fox.", "label": "x"}"#,
        r#"{"rollout": {"Shot 1": {"text": "A fox."}, "Shot 2": "A hole."}}"#,
        r#"{"segment_prompts": {"0": "A fox.", "1": "A hole."}}"#,
        r#"{"prompts": ["one alone"], "segments": ["A fox.", "A hole."]}"#,
        r#"["A fox.", "A hole."]"#,
    ] {
        check(json);
        check(&format!("```json\n{json}\n```"));
        check(&format!(
            "Here {{it}} is, [as you asked]:\n\n{json}\nEnjoy {{}}!"
        ));
    }
    for lines in [
        "1. A fox.\n2. A hole.",
        "Sure:\n\n1) \"A fox.\"\n\n2) A\nhole.\n\nEnjoy!",
        "**Segment 1:** A fox.\n**Segment 2:** A hole.",
        "## Shot 1\n\nA fox.\n\n## Shot 2\n\nA\n hole.",
        "- Scene 1 – A fox.\n- Scene 2 – A hole.",
        "**prompt_1** A fox.\n**prompt_2** A hole.",
        "[Shot 1] A fox.\n[Shot 2] A hole.",
        "3 prompts:\n(1) A fox.\n(2) A hole.",
    ] {
        check(lines);
        check(&lines.replace('\n', "\r\n"));
    }
}

#[test]
fn a_rollouts_name_is_read_where_it_has_one() {
    let check = |text: &str, id: Option<&str>, label: Option<&str>| {
        let answer = read(text).unwrap();
        assert_eq!(
            (answer.id.as_deref(), answer.label.as_deref()),
            (id, label),
            "{text}"
        );
    };
    check(
        r#"{"id": "fox_1", "label": "The\n Fox", "prompts": ["a", "b"]}"#,
        Some("fox_1"),
        Some("The Fox"),
    );
    check(
        r#"{"id": " ", "rollout": {"id": "fox", "label": 7, "prompts": ["a", "b"]}}"#,
        Some("fox"),
        None,
    );
    check(
        r#"{"label": "0123456789 123456789 123456789 x", "prompts": ["a", "b"]}"#,
        None,
        Some("0123456789 123456789 123456789"),
    );
    check("1. a\n2. b", None, None);
}

#[test]
fn prompts_are_cut_at_the_limit() {
    let answer = read(r#"["0123456789 123456789 12345678 üx", "x"]"#).unwrap();
    assert_eq!(answer.prompts, ["0123456789 123456789 12345678", "x"]);
    let answer = read("1. 0123456789 123456789 1234567 üx\n2. x").unwrap();
    assert_eq!(answer.prompts, ["0123456789 123456789 1234567 ü", "x"]);
}

#[test]
fn an_answer_without_as_many_prompts_as_were_asked_for_is_none() {
    let (no_prompts, other_number) = ("it has no prompts", "it has another number of prompts");
    for (text, why) in [
        ("", no_prompts),
        ("I cannot help with that.", no_prompts),
        ("{}", no_prompts),
        (r#"{"segment_prompts": []}"#, no_prompts),
        (r#"{"segment_prompts": ["a", 7]}"#, no_prompts),
        (r#"{"segment_prompts": ["a", " "]}"#, no_prompts),
        (r#"{"segment_prompts": ["a", "b""#, no_prompts),
        (r#"{"segment_prompts": "a"}"#, no_prompts),
        (r#"{"segment_prompts": ["a"]}"#, other_number),
        (r#"{"segment_prompts": ["a", "b", "c"]}"#, other_number),
        (r#"{"segment_1": "a", "segment_3": "b"}"#, no_prompts),
        (r#"{"segment_2": "a", "segment_3": "b"}"#, no_prompts),
        ("1. a", other_number),
        ("1. a\n2. b\n3. c", other_number),
        ("1. a\n2.\n", other_number),
        ("1. a\n3. b", other_number),
        ("1 fox\n2 hares", no_prompts),
        ("1.5 m of snow\n2.5 m of snow", no_prompts),
    ] {
        assert_eq!(read(text), Err(LlmError::NoRollout(why)), "{text}");
    }
}

#[test]
fn no_answer_takes_long() {
    let length = 256 << 10;
    for piece in [
        "{",
        "[",
        "{\"a\":",
        "{\"a\":[",
        "[\"",
        "{\"",
        "{\"a\":\"{\\\"",
        "1. ",
        "1.\n",
        "Shot 1: ",
        "**",
        "\n",
        "[{},",
        "{\"segment_1\":\"",
        "\"",
    ] {
        let text = piece.repeat(length / piece.len());
        let began = Instant::now();
        let _ = read(&text);
        let _ = read(&format!("[{text}"));
        assert!(began.elapsed() < Duration::from_secs(10), "{piece}");
    }
}

proptest! {
    #[test]
    fn any_answer_is_read(
        text in r#"(\PC|\n|[{}\[\]":,\\]|"segment_prompts"|"prompts":|"rollout":|"shot 1":|"a"|1\.|Shot 2:|\*\*| ){0,60}"#,
        count in 0_usize..4,
    ) {
        if let Ok(answer) = RolloutAnswer::read(&text, count, 10) {
            prop_assert_eq!(answer.prompts.len(), count);
            for prompt in &answer.prompts {
                prop_assert!(!prompt.trim().is_empty() && prompt.chars().count() <= 10);
                prop_assert!(!prompt.contains(char::is_control));
            }
        }
    }
}
