//! A language model's answer: a whole body, and a text in a body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::json;

mod prompt;

const MAX_CHARS: usize = 200;

fuzz_target!(|data: &[u8]| {
    prompt::refusal(data);
    read(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let body = json!({ "choices": [{ "message": { "content": text } }] });
        read(body.to_string().as_bytes());
    }
});

/// Whatever is taken has no thinking in it, and becomes prompts of one line.
fn read(body: &[u8]) {
    let Some(text) = prompt::read(body) else {
        return;
    };
    let lower = text.to_ascii_lowercase();
    assert!(
        !lower.contains("<think>") && !lower.contains("</think>"),
        "{text}"
    );
    let mut prompts = prompt::alternatives(&text, 3, MAX_CHARS);
    assert!(prompts.len() <= 3);
    assert!(
        prompts
            .iter()
            .all(|prompt| prompt.chars().count() <= MAX_CHARS)
    );
    prompts.extend(prompt::prompt(&text));
    for prompt in prompts {
        assert!(!prompt.trim().is_empty());
        assert!(!prompt.contains(char::is_control), "{prompt:?}");
    }
}
