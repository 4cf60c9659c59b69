//! Finds the prompts of a rollout in a model's answer, in whatever form they are there: JSON with anything around it and
//! other names than were asked for, or numbered lines.

use serde_json::{Deserializer, Map, Value};

use super::cut;
use crate::prompt::answer::{one_line, without_quotes};
use crate::prompt::llm_error::LlmError;

/// Names of objects around the rollout. What was asked for comes before what may be the request again.
const WRAPPERS: [&str; 3] = ["rollout", "rewritten_rollout", "current_rollout"];
/// Names of the list of prompts.
const LISTS: [&str; 4] = [
    "segment_prompts",
    "rewritten_prompts",
    "prompts",
    "segments",
];
/// Names of the text in an object that stands for one prompt.
const TEXTS: [&str; 5] = ["prompt", "text", "segment_prompt", "content", "description"];
/// What is numbered, in names of fields and at the beginning of lines.
const NUMBERED: [&str; 4] = ["segment", "prompt", "scene", "shot"];
/// What may stand between a number and a prompt.
const MARKS: [char; 7] = [':', '.', ')', ']', '-', '–', '—'];
/// How many places are tried at which JSON may begin. It makes the time linear in the length of the answer.
const MAX_TRIES: usize = 64;

/// What an answer has.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::prompt) struct RolloutAnswer {
    pub(in crate::prompt) id: Option<String>,
    pub(in crate::prompt) label: Option<String>,
    pub(in crate::prompt) prompts: Vec<String>,
}

impl RolloutAnswer {
    /// Reads an answer that has `count` prompts. Each text becomes one line of at most `max_chars` characters.
    ///
    /// # Errors
    /// Returns an error when it has no prompts, or another number of them.
    pub(in crate::prompt) fn read(
        text: &str,
        count: usize,
        max_chars: usize,
    ) -> Result<Self, LlmError> {
        let shortened = |text: String| cut(&text, max_chars).to_owned();
        let mut has_others = false;
        // Models write line ends into texts, which JSON does not allow there.
        for value in json_values(&text.replace(char::is_control, " ")) {
            for prompts in lists(&value) {
                if prompts.len() == count {
                    return Ok(Self {
                        id: name(&value, "id").map(shortened),
                        label: name(&value, "label").map(shortened),
                        prompts: prompts.into_iter().map(shortened).collect(),
                    });
                }
                has_others = true;
            }
        }
        let prompts = numbered_lines(text);
        if prompts.is_empty() && !has_others {
            return Err(LlmError::NoRollout("it has no prompts"));
        }
        if prompts.len() != count {
            return Err(LlmError::NoRollout("it has another number of prompts"));
        }
        Ok(Self {
            id: None,
            label: None,
            prompts: prompts.into_iter().map(shortened).collect(),
        })
    }
}

/// Returns the objects and lists that stand in a text, in their order and without those that are part of another one.
fn json_values(text: &str) -> impl Iterator<Item = Value> {
    let mut rest = text;
    let mut tries = 0..MAX_TRIES;
    std::iter::from_fn(move || {
        loop {
            tries.next()?;
            rest = &rest[rest.find(['{', '['])?..];
            let mut values = Deserializer::from_str(rest).into_iter::<Value>();
            match values.next() {
                Some(Ok(value)) => {
                    rest = &rest[values.byte_offset()..];
                    return Some(value);
                }
                _ => rest = &rest[1..],
            }
        }
    })
}

/// Returns all lists of prompts in a value, the likeliest first.
fn lists(value: &Value) -> Vec<Vec<String>> {
    if value.is_array() {
        return prompts(value).into_iter().collect();
    }
    let rollouts = rollouts(value).into_iter();
    let lists = rollouts.flat_map(|fields| {
        let named = LISTS.iter().filter_map(|name| prompts(fields.get(*name)?));
        named.chain(numbered_fields(fields)).collect::<Vec<_>>()
    });
    lists.collect()
}

/// Returns the fields of an object, and of those in it that may be the rollout.
fn rollouts(value: &Value) -> Vec<&Map<String, Value>> {
    let Value::Object(whole) = value else {
        return Vec::new();
    };
    let inner = WRAPPERS
        .iter()
        .filter_map(|name| whole.get(*name)?.as_object());
    std::iter::once(whole).chain(inner).collect()
}

/// Returns a text that names the rollout, such as its label.
fn name(value: &Value, field: &str) -> Option<String> {
    let rollouts = rollouts(value).into_iter();
    let mut texts = rollouts.filter_map(|fields| one_line(fields.get(field)?.as_str()?));
    texts.next()
}

/// Reads a list of prompts, or an object with a numbered field for each. `None` unless each has a text.
fn prompts(value: &Value) -> Option<Vec<String>> {
    let prompts: Vec<String> = match value {
        Value::Array(items) => items.iter().map(prompt).collect::<Option<_>>()?,
        Value::Object(fields) => numbered_fields(fields)?,
        _ => return None,
    };
    (!prompts.is_empty()).then_some(prompts)
}

/// Reads one prompt: a text, or an object that has it.
fn prompt(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => one_line(text),
        Value::Object(fields) => {
            let texts = TEXTS.iter().filter_map(|name| fields.get(*name)?.as_str());
            texts.filter_map(one_line).next()
        }
        _ => None,
    }
}

/// Reads fields such as `segment_1` or `2`, which must be numbered from 0 or 1 on without a gap.
fn numbered_fields(fields: &Map<String, Value>) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for (name, value) in fields {
        if let Some((number, "")) = numbered(name.trim()) {
            found.push((number, prompt(value)?));
        }
    }
    found.sort_by_key(|(number, _)| *number);
    let first = found.first()?.0;
    let is_whole = first <= 1 && (first..).zip(&found).all(|(n, (number, _))| n == *number);
    is_whole.then(|| found.into_iter().map(|(_, prompt)| prompt).collect())
}

/// Splits a text that begins with a number, or with what is numbered and its number: `1`, `Shot 1`, `segment_1`.
fn numbered(text: &str) -> Option<(usize, &str)> {
    let (word, rest) = text.split_at(text.find(|c: char| c.is_ascii_digit())?);
    let word = word.trim_end_matches(['_', '-', '#', ' ']);
    if !word.is_empty() && !NUMBERED.iter().any(|it| it.eq_ignore_ascii_case(word)) {
        return None;
    }
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let (digits, rest) = rest.split_at(end.unwrap_or(rest.len()));
    Some((digits.parse().ok()?, rest))
}

/// Reads lines that are numbered from 1 on. Further lines belong to a prompt until an empty one, which may also stand
/// between the number and the prompt.
fn numbered_lines(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut is_open = false;
    for line in text.lines() {
        if let Some((number, rest)) = numbered_line(line)
            && number == found.len() + 1
        {
            found.push(rest.to_owned());
            is_open = true;
        } else if let Some(last) = found.last_mut() {
            if line.trim().is_empty() {
                is_open &= last.is_empty();
            } else if is_open {
                last.push(' ');
                last.push_str(line);
            }
        }
    }
    let tidy = |text: &String| one_line(without_quotes(&one_line(text)?));
    found.iter().filter_map(tidy).collect()
}

/// Reads a line such as `1. A fox`, `- Shot 2: A fox` or `**Segment 3** A fox`, also without a text after the number.
fn numbered_line(line: &str) -> Option<(usize, &str)> {
    let line = line.trim_start_matches(|c: char| c.is_whitespace() || "-*#>([".contains(c));
    let (number, rest) = numbered(line)?;
    let rest = rest.trim();
    let bold = rest.strip_prefix("**").map(str::trim_start);
    let text = match bold.unwrap_or(rest).strip_prefix(MARKS) {
        // A time or a measure, such as 1.5 m.
        Some(text) if text.starts_with(|c: char| c.is_ascii_digit()) => return None,
        Some(text) => text,
        None if rest.is_empty() => rest,
        None => bold?,
    };
    Some((number, text.trim_start_matches('*').trim_start()))
}
