//! The readers of language models' answers, from the supervisor's own files (`prompt/` is a link to them), without all
//! that the supervisor links for other purposes.

mod answer;
#[allow(dead_code, reason = "what it offers to others")]
mod completion;
mod thinking;

/// Reads the text in the body of an answer.
pub fn read(body: &[u8]) -> Option<String> {
    completion::read(body).ok()
}

/// Reads the body of a refusal.
pub fn refusal(body: &[u8]) {
    let refusal = completion::Refusal::read(body);
    assert!(refusal.code.len() <= 64);
    let _ = (refusal.is_providers(), refusal.is_declined());
}

/// Reads a text as one prompt.
pub fn prompt(text: &str) -> Option<String> {
    answer::prompt(text)
}

/// Reads a text as a list of prompts.
pub fn alternatives(text: &str, count: usize, max_chars: usize) -> Vec<String> {
    answer::alternatives(text, count, max_chars)
}
