//! Escapes control characters in log lines. Clients choose some of the texts that are logged; without this they could
//! begin lines that look like the server's own, or send commands to the terminal that shows them.
//!
//! [`EscapedFields`] is for the log as text, [`EscapedJson`] for JSON.

use std::fmt::{self, Write};

use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Formats messages and fields as usual, in text in which control characters are escaped.
#[derive(Debug, Default)]
pub(super) struct EscapedFields(DefaultFields);

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut escaped = Escaped::text(writer);
        self.0.format_fields(Writer::new(&mut escaped), fields)
    }
}

/// Formats events in JSON, in which the escapes of JSON cover all control characters, not only those that JSON demands.
#[derive(Debug)]
pub(super) struct EscapedJson<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for EscapedJson<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut escaped = Escaped {
            inner: writer,
            is_json: true,
        };
        (self.0).format_event(context, Writer::new(&mut escaped), event)
    }
}

/// A text with its control characters escaped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain<'a>(pub(crate) &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped::text(f).write_str(self.0)
    }
}

/// A writer that escapes control characters.
struct Escaped<W> {
    inner: W,
    /// Whether the text is JSON. ASCII control characters in it are already escaped, or part of the layout.
    is_json: bool,
}

impl<W: Write> Escaped<W> {
    fn text(inner: W) -> Self {
        let is_json = false;
        Self { inner, is_json }
    }

    fn escape(&mut self, c: char) -> fmt::Result {
        match c {
            _ if self.is_json => write!(self.inner, "\\u{:04x}", u32::from(c)),
            '\n' => self.inner.write_str("\\n"),
            '\r' => self.inner.write_str("\\r"),
            '\t' => self.inner.write_str("\\t"),
            _ if c.is_ascii() => write!(self.inner, "\\x{:02x}", u32::from(c)),
            _ => write!(self.inner, "\\u{{{:x}}}", u32::from(c)),
        }
    }

    fn must_escape(&self, c: char) -> bool {
        match self.is_json {
            true => c >= '\u{7f}' && is_control(c),
            false => is_control(c),
        }
    }
}

impl<W: Write> Write for Escaped<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|c| self.must_escape(c)) {
            let (plain, after) = rest.split_at(at);
            self.inner.write_str(plain)?;
            let mut after = after.chars();
            if let Some(c) = after.next() {
                self.escape(c)?;
            }
            rest = after.as_str();
        }
        self.inner.write_str(rest)
    }
}

/// Returns whether a program that shows or splits the text may take the character for an instruction: control
/// characters, the separators of lines and paragraphs, and those that change the direction of writing.
pub(crate) fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{61c}'
        )
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_nothing_else() {
        let check = |text: &str, expected: &str| {
            assert_eq!(Plain(text).to_string(), expected);
        };
        check(
            "a red fox, ein roter Füchs, 狐 🦊",
            "a red fox, ein roter Füchs, 狐 🦊",
        );
        check("one\ntwo\r\nthree\tfour", "one\\ntwo\\r\\nthree\\tfour");
        check("\x1b[2J\x07\0\x7f", "\\x1b[2J\\x07\\x00\\x7f");
        check("\u{85}\u{9b}31m", "\\u{85}\\u{9b}31m");
        check("\u{2028}\u{2029}\u{202e}", "\\u{2028}\\u{2029}\\u{202e}");
        check("", "");
    }

    #[test]
    fn escaped_json_means_the_same() {
        let value = serde_json::json!({"a": "\n\x1b\u{7f}\u{85}\u{2028}\u{202e}ü"});
        let mut text = String::new();
        let mut escaped = Escaped {
            inner: &mut text,
            is_json: true,
        };
        writeln!(escaped, "{value}").unwrap();
        assert_eq!(
            text,
            "{\"a\":\"\\n\\u001b\\u007f\\u0085\\u2028\\u202eü\"}\n"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }
}
