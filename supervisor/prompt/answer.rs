//! Turns the text of a model's answer into prompts.

use serde_json::Value;

/// Ways in which a line announces a prompt, in lower case.
const ANNOUNCEMENTS: [&str; 9] = [
    "here is",
    "here's",
    "here\u{2019}s",
    "sure",
    "certainly",
    "of course",
    "okay",
    "enhanced prompt",
    "final prompt",
];
/// Labels before a prompt on the same line, in lower case.
const LABELS: [&str; 8] = [
    "enhanced prompt:",
    "rewritten prompt:",
    "video prompt:",
    "next prompt:",
    "final prompt:",
    "final answer:",
    "answer:",
    "prompt:",
];
/// What may stand around a whole prompt.
const QUOTES: [(&str, &str); 6] = [
    ("\"", "\""),
    ("\u{201c}", "\u{201d}"),
    ("\u{ab}", "\u{bb}"),
    ("'", "'"),
    ("**", "**"),
    ("`", "`"),
];
/// The longest announcement, in bytes.
const MAX_ANNOUNCEMENT: usize = 100;

/// Reads one prompt as one line: without a code fence, quotation marks or an announcement around it. `None` when no word
/// is left.
pub(super) fn prompt(text: &str) -> Option<String> {
    let text = without_fence(text.trim());
    let text = match text.split_once('\n') {
        Some((first, rest)) if is_announcement(first) && one_line(rest).is_some() => rest,
        _ => text,
    };
    let mut line = one_line(text)?;
    // A label may be within quotation marks, and they within a label.
    for _ in 0..3 {
        line = without_quotes(without_label(&line)).to_owned();
    }
    one_line(&line)
}

fn is_announcement(line: &str) -> bool {
    let line = line.trim().trim_matches('*').to_lowercase();
    line.len() <= MAX_ANNOUNCEMENT
        && line.trim_end_matches('*').ends_with(':')
        && (line == "prompt:" || ANNOUNCEMENTS.iter().any(|start| line.starts_with(start)))
}

/// Strips a label such as "Prompt:" or "Here is the prompt:" that something follows.
fn without_label(line: &str) -> &str {
    let bare = line.trim_start_matches(['*', '#', ' ']);
    let Some((label, rest)) = bare.split_once(':') else {
        return line;
    };
    let label = label.trim_end_matches('*').to_lowercase();
    let announces = label.len() <= MAX_ANNOUNCEMENT
        && label.contains("prompt")
        && ANNOUNCEMENTS.iter().any(|start| label.starts_with(start));
    let is_label = announces || LABELS.contains(&format!("{label}:").as_str());
    let rest = rest.trim_start_matches(['*', ' ']);
    if is_label && !rest.is_empty() {
        rest
    } else {
        line
    }
}

/// Strips quotation marks around the whole text, unless there are others of the kind in it.
pub(super) fn without_quotes(text: &str) -> &str {
    for (open, close) in QUOTES {
        let inner = text.strip_prefix(open);
        let inner = inner.and_then(|inner| inner.strip_suffix(close));
        if let Some(inner) = inner
            && !inner.contains(open)
            && !inner.contains(close)
        {
            return inner.trim();
        }
    }
    text
}

/// Strips a code fence around the whole text.
fn without_fence(text: &str) -> &str {
    const FENCE: &str = "```";
    let inner = text.strip_prefix(FENCE);
    let inner = inner.and_then(|inner| inner.strip_suffix(FENCE));
    match inner.and_then(|inner| inner.split_once('\n')) {
        // The first line names a language.
        Some((_, inner)) if !inner.contains(FENCE) => inner.trim(),
        _ => text,
    }
}

/// Joins the words of a text into one line without control characters; `None` when no word is left.
pub(super) fn one_line(text: &str) -> Option<String> {
    let words: Vec<&str> = (text.split(|c: char| c.is_control() || c.is_whitespace()))
        .filter(|word| !word.is_empty())
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// Reads a list of prompts, one on each line, and strips bullets, numbers and quotation marks; or a list in JSON. Returns at most `count` prompts and leaves out
/// those above `max_chars` characters. When no line is usable, the whole text counts as one prompt.
pub(super) fn alternatives(text: &str, count: usize, max_chars: usize) -> Vec<String> {
    let text = without_fence(text.trim());
    let fits = |line: &String| line.chars().count() <= max_chars;
    if let Some(listed) = json_list(text) {
        let listed = listed.iter().filter_map(|prompt| one_line(prompt));
        return listed.filter(fits).take(count).collect();
    }
    let lines: Vec<&str> = (text.lines())
        .filter(|line| !line.trim().is_empty())
        .collect();
    let lines = match lines.as_slice() {
        [lead, rest @ ..] if is_lead_in(lead, rest) => rest,
        all => all,
    };
    let mut found: Vec<String> = (lines.iter())
        .filter_map(|line| one_line(without_quotes(without_marker(line))))
        .filter(fits)
        .take(count)
        .collect();
    if found.is_empty() {
        found.extend(one_line(text).filter(fits));
    }
    found
}

/// Reads a list of texts in JSON, alone or as the only list in an object.
fn json_list(text: &str) -> Option<Vec<String>> {
    if !text.starts_with(['[', '{']) {
        return None;
    }
    let list = match serde_json::from_str(text).ok()? {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(_, value)| value)
            .find(Value::is_array)?,
        list => list,
    };
    let list: Vec<String> = serde_json::from_value(list).ok()?;
    (!list.is_empty()).then_some(list)
}

/// Returns whether the first line only announces the list, such as "Here are three alternatives:".
fn is_lead_in(line: &str, rest: &[&str]) -> bool {
    let is_marked = |line: &str| without_marker(line).len() < line.trim().len();
    line.trim_end().ends_with(':')
        && !is_marked(line)
        && !rest.is_empty()
        && rest.iter().all(|line| is_marked(line))
}

/// Strips the bullet or the number that the line begins with.
fn without_marker(line: &str) -> &str {
    let line = line.trim();
    let bullet = ['-', '*', '•', '–', '—', '·', '+'];
    let number = line.trim_start_matches('(');
    let digits = number.len()
        - number
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .len();
    let marked = match line.strip_prefix(bullet) {
        Some(rest) => Some(rest),
        None if (1..=3).contains(&digits) => number[digits..].strip_prefix(['.', ')']),
        None => None,
    };
    match marked {
        Some(rest) if rest.is_empty() || rest.starts_with(char::is_whitespace) => rest.trim_start(),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_line_ends_become_blanks() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(one_line(text).as_deref(), expected);
        check(
            " A fox\u{0} in\u{1b}[31m snow\r\n\tat dawn ",
            Some("A fox in [31m snow at dawn"),
        );
        check("plain", Some("plain"));
        check("\u{7}\n \u{85}", None);
        check("", None);
    }

    #[test]
    fn a_prompt_is_freed_from_what_stands_around_it() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(prompt(text).as_deref(), expected, "{text}");
        };
        check("A fox.", Some("A fox."));
        check("\"A fox.\"", Some("A fox."));
        check("\u{201c}A fox.\u{201d}", Some("A fox."));
        check("\"A fox\" says \"hello\"", Some("\"A fox\" says \"hello\""));
        check("A fox says \"hello\"", Some("A fox says \"hello\""));
        check("```text\nA fox.\n```", Some("A fox."));
        check("Here is the prompt:\n\nA fox.", Some("A fox."));
        check("Here's the enhanced prompt: \"A fox.\"", Some("A fox."));
        check("**Enhanced prompt:** A fox.", Some("A fox."));
        check("\"Prompt: A fox.\"", Some("A fox."));
        check("Prompt:", Some("Prompt:"));
        check("Here is a fox: it runs.", Some("Here is a fox: it runs."));
        check("Night:\na fox", Some("Night: a fox"));
        check("Close-up: a fox", Some("Close-up: a fox"));
        check("\"\"", None);
        check(" \n", None);
    }

    #[test]
    fn alternatives_lose_bullets_and_numbers_and_are_never_more_than_asked_for() {
        let check = |text: &str, count, expected: &[&str]| {
            assert_eq!(alternatives(text, count, 40), expected)
        };
        check(
            "1. a fox\n2) a hare\n(3) a wolf\n",
            3,
            &["a fox", "a hare", "a wolf"],
        );
        check("- a fox\n* a hare\n\n• a wolf", 2, &["a fox", "a hare"]);
        check(
            "Here are two:\n1. a fox\n2. a hare",
            3,
            &["a fox", "a hare"],
        );
        check("Night:\na fox", 3, &["Night:", "a fox"]);
        check("3D render of a fox", 3, &["3D render of a fox"]);
        check(
            "1.5 m of snow\n2024. a year",
            3,
            &["1.5 m of snow", "2024. a year"],
        );
        check("-\n1.\n", 3, &["- 1."]);
        check("*bold* fox", 3, &["*bold* fox"]);
        check("1. \"a fox\"\n2. “a hare”", 3, &["a fox", "a hare"]);
        check(r#"["a fox", "a hare"]"#, 1, &["a fox"]);
        check(
            "```json\n{\"prompts\": [\"a fox\", \"a hare\"]}\n```",
            3,
            &["a fox", "a hare"],
        );
        check("", 3, &[]);
        check(&"x".repeat(41), 3, &[]);
        check(&format!("a fox\n{}", "x".repeat(41)), 3, &["a fox"]);
    }
}
