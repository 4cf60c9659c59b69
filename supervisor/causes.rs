//! An error together with its causes, for log lines and for messages to operators.

use std::error::Error;

/// What separates a message from that of its cause.
const SEPARATOR: &str = ": ";

/// The error's message, followed by those of its sources. Libraries repeat the messages of sources in their own: each
/// part between colons is told once, and a source whose message is in the text already is left out.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        if !text.contains(message.trim()) {
            for part in message.split(SEPARATOR) {
                add(&mut text, part.trim());
            }
        }
        next = error.source();
    }
    text
}

/// Adds a part to the text, unless the text has it.
fn add(text: &mut String, part: &str) {
    if text.split(SEPARATOR).any(|known| known == part) {
        return;
    }
    if !text.is_empty() {
        text.push_str(SEPARATOR);
    }
    text.push_str(part);
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot open the store")]
        Silent(#[source] io::Error),
        #[error("cannot open the store: {0}")]
        Telling(#[source] io::Error),
        #[error("cannot send: {0}: disk full")]
        Repeating(#[source] Inner),
    }

    #[derive(Debug, thiserror::Error)]
    #[error("request failed")]
    struct Inner(#[source] Innermost);

    #[derive(Debug, thiserror::Error)]
    #[error("request failed: disk full: disk full")]
    struct Innermost;

    #[test]
    fn every_cause_is_told_once() {
        let expected = "cannot open the store: disk full";
        let full = || io::Error::other("disk full");
        assert_eq!(with_causes(&Outer::Silent(full())), expected);
        assert_eq!(with_causes(&Outer::Telling(full())), expected);
        let repeating = Outer::Repeating(Inner(Innermost));
        let expected = "cannot send: request failed: disk full";
        assert_eq!(with_causes(&repeating), expected);
    }
}
