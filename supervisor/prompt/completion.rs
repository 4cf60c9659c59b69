//! The chat-completions format: the body of a request, and the text in an answer, in every form that OpenAI-compatible
//! servers send.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answer::one_line;
use super::thinking::without_thinking;

/// Reasons for which a model has stopped before the end of its text, in lower case.
const CUT: [&str; 5] = [
    "length",
    "max_tokens",
    "max_output_tokens",
    "model_length",
    "model_context_window_exceeded",
];
/// Reasons for which a model has not answered the prompt.
const DECLINED: [&str; 8] = [
    "content_filter",
    "content-filter",
    "safety",
    "refusal",
    "recitation",
    "prohibited_content",
    "blocklist",
    "guardrail_intervened",
];
/// Reasons for which a server has given up.
const FAILED: [&str; 5] = [
    "error",
    "abort",
    "aborted",
    "cancelled",
    "insufficient_system_resource",
];

/// The body of a request.
#[derive(Debug, Serialize)]
pub(super) struct RequestBody<'a> {
    pub(super) model: &'a str,
    pub(super) messages: [Message<'a>; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_effort: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response_format: Option<ResponseFormat>,
    pub(super) stream: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Message<'a> {
    pub(super) role: &'static str,
    pub(super) content: &'a str,
}

/// What the answer is to be, apart from text.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ResponseFormat {
    JsonObject,
}

/// Why an answer has no text that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoText {
    /// The answer is of no use; the text says why.
    Unusable(&'static str),
    /// The model or its server has declined the prompt.
    Declined,
}

/// The part of an answer's body that is read.
#[derive(Deserialize)]
struct ResponseBody {
    choices: Option<Vec<Choice>>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<ChoiceMessage>,
    finish_reason: Option<Value>,
}

#[derive(Deserialize)]
struct ChoiceMessage {
    /// A text, a list of parts, or null. Reasoning in fields of its own is not read.
    #[serde(default)]
    content: Value,
    #[serde(default)]
    refusal: Value,
}

/// Reads the text that a model has written, without its thinking. It has more than blanks.
///
/// # Errors
/// Returns an error when the answer is no completion, or its text is cut off, declined, or nothing but thinking.
pub(super) fn read(answer: &[u8]) -> Result<String, NoText> {
    let body: ResponseBody =
        serde_json::from_slice(answer).map_err(|_| NoText::Unusable("it is no completion"))?;
    let choice = body.choices.unwrap_or_default().into_iter().next();
    let choice = choice.ok_or(NoText::Unusable("it offers nothing"))?;
    if let Some(Value::String(reason)) = &choice.finish_reason {
        let reason = reason.to_ascii_lowercase();
        let is_one_of = |reasons: &[&str]| reasons.contains(&reason.as_str());
        if is_one_of(&CUT) {
            return Err(NoText::Unusable("it is cut off at the limit on tokens"));
        }
        if is_one_of(&DECLINED) {
            return Err(NoText::Declined);
        }
        if is_one_of(&FAILED) {
            return Err(NoText::Unusable("it was given up"));
        }
    }
    let message = choice.message;
    let message = message.ok_or(NoText::Unusable("it says nothing"))?;
    if says_something(&message.refusal) {
        return Err(NoText::Declined);
    }
    let text = text(&message.content)?;
    let text = without_thinking(&text).ok_or(NoText::Unusable("it is nothing but thinking"))?;
    match one_line(&text) {
        Some(_) => Ok(text),
        None => Err(NoText::Unusable("it says nothing")),
    }
}

fn says_something(refusal: &Value) -> bool {
    match refusal {
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(parts) => !parts.is_empty(),
        Value::Bool(refused) => *refused,
        _ => false,
    }
}

/// Joins the parts of a content that are text, not thinking.
fn text(content: &Value) -> Result<String, NoText> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts.as_slice(),
        Value::Object(_) => std::slice::from_ref(content),
        _ => &[],
    };
    let mut text = String::new();
    for part in parts {
        match (part, part.get("type").and_then(Value::as_str)) {
            (Value::String(part), _) => text.push_str(part),
            (_, Some("refusal")) => return Err(NoText::Declined),
            (_, None | Some("text" | "output_text")) => {
                text.push_str(part.get("text").and_then(Value::as_str).unwrap_or_default());
            }
            _ => {}
        }
    }
    Ok(text)
}

/// What a server says about a request that it refuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// A short name of the reason, such as `model_not_found`; empty when there is none.
    pub(super) code: String,
    /// The parameter that is wrong, if it is named.
    param: String,
    /// Everything that it says, in lower case.
    message: String,
}

impl Refusal {
    /// Reads the body of an answer with an error status, which may be anything.
    pub(super) fn read(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        // Ollama sends a text, vLLM the fields without the object around them, Gemini a list with one object.
        let body = body.get(0).unwrap_or(&body);
        let error = body.get("error").unwrap_or(body);
        let field = |name| match error.get(name) {
            Some(Value::String(text)) => text.to_ascii_lowercase(),
            _ => String::new(),
        };
        let message = match error {
            Value::String(text) => text.to_ascii_lowercase(),
            _ => [field("message"), field("detail")].join(" "),
        };
        let is_short = |code: &String| {
            (1..=64).contains(&code.len())
                && code
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        };
        let codes = [field("code"), field("type"), field("status")];
        Self {
            code: codes.into_iter().find(is_short).unwrap_or_default(),
            param: field("param"),
            message,
        }
    }

    /// Returns whether the reason lies in this parameter of the request.
    pub(super) fn names(&self, parameter: &str) -> bool {
        self.param == parameter || self.message.contains(parameter)
    }

    /// Returns whether the reason is the provider's, although the status says that the request is wrong: another one
    /// may answer it.
    pub(super) fn is_providers(&self) -> bool {
        const CODES: [&str; 22] = [
            "model_decommissioned",
            "model_not_found",
            "model_not_available",
            "model_not_supported",
            "model_deprecated",
            "invalid_model",
            "deployment_not_found",
            "deploymentnotfound",
            "unknown_model",
            "unsupported_model",
            "invalid_api_key",
            "invalid_authentication",
            "authentication_error",
            "permission_denied",
            "permission_error",
            "insufficient_quota",
            "billing_not_active",
            "billing_hard_limit_reached",
            "arrearage",
            "account_deactivated",
            "context_length_exceeded",
            "rate_limit_exceeded",
        ];
        const GONE: [&str; 12] = [
            "not found",
            "not exist",
            "decommissioned",
            "deprecated",
            "no longer",
            "not available",
            "unavailable",
            "not supported",
            "unsupported",
            "unknown",
            "not loaded",
            "invalid model",
        ];
        let says = |words: &[&str]| words.iter().any(|word| self.message.contains(word));
        CODES.contains(&self.code.as_str())
            || self.param == "model"
            || (self.message.contains("model") && says(&GONE))
            || says(&["api key", "api_key", "context length", "quota", "credit"])
    }

    /// Returns whether the prompt was declined for its content.
    pub(super) fn is_declined(&self) -> bool {
        const CODES: [&str; 6] = [
            "content_filter",
            "content_policy_violation",
            "responsibleaipolicyviolation",
            "moderation_blocked",
            "data_inspection_failed",
            "safety",
        ];
        CODES.contains(&self.code.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn completion(choice: &Value) -> Vec<u8> {
        json!({ "choices": [choice] }).to_string().into_bytes()
    }

    #[test]
    fn an_answers_text_is_found_in_every_form_and_cut_or_declined_text_is_none() {
        let check = |choice: Value, expected: Result<&str, NoText>| {
            let text = read(&completion(&choice));
            assert_eq!(
                text.as_deref().map_err(|no_text| *no_text),
                expected,
                "{choice}"
            );
        };
        let says = |content: Value| json!({"message": {"content": content}});
        let nothing = Err(NoText::Unusable("it says nothing"));
        let cut = Err(NoText::Unusable("it is cut off at the limit on tokens"));
        check(says(json!("a fox")), Ok("a fox"));
        check(
            says(json!([{"type": "text", "text": "a "}, {"type": "text", "text": "fox"}])),
            Ok("a fox"),
        );
        check(
            says(
                json!([{"type": "thinking", "thinking": [{"type": "text", "text": "light?"}]}, {"type": "text", "text": "a fox"}]),
            ),
            Ok("a fox"),
        );
        check(says(json!(["a ", "fox"])), Ok("a fox"));
        check(says(json!({"type": "text", "text": "a fox"})), Ok("a fox"));
        check(
            says(json!([{"type": "refusal", "refusal": "no"}])),
            Err(NoText::Declined),
        );
        check(says(json!(null)), nothing);
        check(says(json!(7)), nothing);
        check(json!({}), nothing);
        check(
            json!({"message": {"content": null, "reasoning_content": "light?"}}),
            nothing,
        );
        check(
            json!({"message": {"content": "", "reasoning": "light?"}}),
            nothing,
        );
        check(
            says(json!("<think>light?")),
            Err(NoText::Unusable("it is nothing but thinking")),
        );
        check(
            json!({"message": {"content": "a fox", "refusal": null}}),
            Ok("a fox"),
        );
        check(
            json!({"message": {"content": null, "refusal": "I cannot"}}),
            Err(NoText::Declined),
        );
        for (reason, expected) in [
            (json!("stop"), Ok("a fox")),
            (json!(null), Ok("a fox")),
            (json!("eos"), Ok("a fox")),
            (json!(1), Ok("a fox")),
            (json!("length"), cut),
            (json!("MAX_TOKENS"), cut),
            (json!("content_filter"), Err(NoText::Declined)),
            (json!("SAFETY"), Err(NoText::Declined)),
            (json!("error"), Err(NoText::Unusable("it was given up"))),
        ] {
            check(
                json!({"message": {"content": "a fox"}, "finish_reason": reason}),
                expected,
            );
        }
        for body in ["", "<html>", "[]", "7", r#"{"choices": 7}"#] {
            assert_eq!(
                read(body.as_bytes()),
                Err(NoText::Unusable("it is no completion")),
                "{body}"
            );
        }
        for body in [
            "{}",
            r#"{"choices": null}"#,
            r#"{"choices": []}"#,
            r#"{"error": {}}"#,
        ] {
            assert_eq!(
                read(body.as_bytes()),
                Err(NoText::Unusable("it offers nothing")),
                "{body}"
            );
        }
    }

    #[test]
    fn a_refusal_tells_whether_another_provider_may_answer() {
        let check = |body: &str, expected: bool| {
            assert_eq!(
                Refusal::read(body.as_bytes()).is_providers(),
                expected,
                "{body}"
            );
        };
        check(
            r#"{"error": {"message": "gone", "code": "model_decommissioned"}}"#,
            true,
        );
        check(
            r#"{"error": {"message": "The model `x` does not exist", "type": "invalid_request_error"}}"#,
            true,
        );
        check(r#"{"error": "model 'x' not found"}"#, true);
        check(
            r#"{"object": "error", "message": "The model `x` does not exist.", "code": 404}"#,
            true,
        );
        check(
            r#"[{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}]"#,
            true,
        );
        check(
            r#"{"error": {"message": "messages: too many", "code": "invalid_value"}}"#,
            false,
        );
        check("no", false);
        check("", false);
        let filtered =
            Refusal::read(br#"{"error": {"code": "content_filter", "message": "policy"}}"#);
        assert!(filtered.is_declined());
        let unsupported = Refusal::read(
            br#"{"error": {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens"}}"#,
        );
        assert!(unsupported.names("max_tokens") && unsupported.names("max_completion_tokens"));
    }

    /// Any JSON, with the names that an answer has.
    fn anything() -> impl Strategy<Value = Value> {
        let names = prop::sample::select(vec![
            "choices",
            "message",
            "content",
            "refusal",
            "text",
            "type",
            "finish_reason",
            "error",
            "code",
            "param",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            r"(\PC|<think>|</think>|text|length){0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 48, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((names.clone(), inner), 0..4).prop_map(|fields| fields
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_answer_is_read(content in anything(), body in anything(), bytes: Vec<u8>) {
            let message = json!({"message": {"content": content}});
            for answer in [completion(&message), body.to_string().into_bytes(), bytes] {
                if let Ok(text) = read(&answer) {
                    prop_assert!(one_line(&text).is_some());
                    prop_assert!(!text.contains("</think>"));
                }
                let refusal = Refusal::read(&answer);
                refusal.is_providers();
                prop_assert!(refusal.code.len() <= 64);
            }
        }
    }
}
