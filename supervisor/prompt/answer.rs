//! Turns the text of a model's answer into prompts.

/// Joins the words of a text into one line without control characters; `None` when no word is left.
pub(super) fn one_line(text: &str) -> Option<String> {
    let words: Vec<&str> = (text.split(|c: char| c.is_control() || c.is_whitespace()))
        .filter(|word| !word.is_empty())
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// Reads a list of prompts, one on each line, and strips bullets and numbers. Returns at most `count` prompts and leaves out
/// those above `max_chars` characters. When no line is usable, the whole text counts as one prompt.
pub(super) fn alternatives(text: &str, count: usize, max_chars: usize) -> Vec<String> {
    let lines: Vec<&str> = (text.lines())
        .filter(|line| !line.trim().is_empty())
        .collect();
    let lines = match lines.as_slice() {
        [lead, rest @ ..] if is_lead_in(lead, rest) => rest,
        all => all,
    };
    let fits = |line: &String| line.chars().count() <= max_chars;
    let mut found: Vec<String> = (lines.iter())
        .filter_map(|line| one_line(without_marker(line)))
        .filter(fits)
        .take(count)
        .collect();
    if found.is_empty() {
        found.extend(one_line(text).filter(fits));
    }
    found
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
        check("", 3, &[]);
        check(&"x".repeat(41), 3, &[]);
        check(&format!("a fox\n{}", "x".repeat(41)), 3, &["a fox"]);
    }
}
