//! Removes a model's thinking from its text. Servers that do not know a model's format leave it there.

/// The names of tags around thinking, in lower case and without a prefix such as `seed:`.
const TAGS: [&str; 10] = [
    "think",
    "thinking",
    "thought",
    "thoughts",
    "reason",
    "reasoning",
    "reflection",
    "antthinking",
    "scratchpad",
    "inner_monologue",
];
/// Names of tokens that begin and end thinking without a slash.
const BEGINNINGS: [&str; 2] = ["begin_of_thought", "start_thinking"];
const ENDS: [&str; 2] = ["end_of_thought", "end_thinking"];
/// Tags around the answer itself, which are left out.
const WRAPPERS: [&str; 8] = [
    "answer",
    "output",
    "response",
    "final",
    "begin_of_solution",
    "end_of_solution",
    "start_response",
    "end_response",
];
/// The longest tag, its attributes included, in bytes.
const MAX_TAG: usize = 200;
/// How often tags are removed that appear when others were removed; no model writes such a text.
const MAX_PASSES: usize = 4;

/// The channels of gpt-oss ("harmony"): `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final…`.
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const FINAL: &str = "final";
/// What is left of the channels where a server drops the special tokens: `analysis…assistantfinal…`.
const BARE_ANALYSIS: &str = "analysis";
const BARE_FINAL: &str = "assistantfinal";
/// What Ollama's command line puts around thinking.
const SPOKEN_BEGINNING: &str = "Thinking...";
const SPOKEN_END: &str = "...done thinking.";

/// What a tag stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Begin,
    End,
    Wrapper,
    /// A special token such as `<|im_end|>`, which ends the answer.
    Stop,
}

/// Returns the text without thinking; `None` when thinking has begun and not ended, so that there is no answer.
pub(super) fn without_thinking(text: &str) -> Option<String> {
    let text = after_spoken_thinking(final_channel(text)?)?;
    let mut text = text.to_owned();
    for _ in 0..MAX_PASSES {
        let answer = without_tags(&text)?;
        if answer.len() == text.len() {
            return Some(answer);
        }
        // Without a tag, what was around it may be one.
        text = answer;
    }
    None
}

/// Removes the tags that are in the text, and the thinking between them.
fn without_tags(text: &str) -> Option<String> {
    let mut answer = String::new();
    let (mut is_thinking, mut is_stopped) = (false, false);
    let mut rest = text;
    while let Some((before, tag, after)) = next_tag(rest) {
        if !is_thinking && !is_stopped {
            answer.push_str(before);
        }
        match tag {
            Tag::Begin => is_thinking = true,
            Tag::End if is_thinking => is_thinking = false,
            // The beginning was part of the template of the prompt.
            Tag::End => {
                answer.clear();
                is_stopped = false;
            }
            Tag::Wrapper => {}
            Tag::Stop => is_stopped |= !is_thinking && !answer.trim().is_empty(),
        }
        rest = after;
    }
    if is_thinking {
        return None;
    }
    if !is_stopped {
        answer.push_str(rest);
    }
    Some(answer)
}

/// Returns the last text in the final channel, or the whole text where it has no channels; `None` when no channel is
/// final.
fn final_channel(text: &str) -> Option<&str> {
    let mut channels = text.split(CHANNEL).skip(1).peekable();
    if channels.peek().is_some() {
        let messages = channels.filter_map(|channel| {
            let (header, message) = channel.split_once(MESSAGE)?;
            let is_final = header.trim_start().to_ascii_lowercase().starts_with(FINAL);
            is_final.then_some(message)
        });
        return messages.last();
    }
    if text.trim_start().starts_with(BARE_ANALYSIS)
        && let Some((_, answer)) = text.rsplit_once(BARE_FINAL)
    {
        return Some(answer);
    }
    Some(text)
}

fn after_spoken_thinking(text: &str) -> Option<&str> {
    if !text.trim_start().starts_with(SPOKEN_BEGINNING) {
        return Some(text);
    }
    text.rsplit_once(SPOKEN_END).map(|(_, answer)| answer)
}

/// Finds the next tag of thinking. Returns the text before it and the text after it.
fn next_tag(text: &str) -> Option<(&str, Tag, &str)> {
    let mut from = 0;
    loop {
        let start = from + text[from..].find(['<', '[', '◁'])?;
        let opening = text[start..].chars().next()?;
        let inner = start + opening.len_utf8();
        let closing = match opening {
            '<' => '>',
            '[' => ']',
            _ => '▷',
        };
        let near = text[inner..].char_indices();
        let mut near = near.take_while(|(at, _)| *at <= MAX_TAG);
        if let Some((length, _)) = near.find(|(_, c)| *c == closing)
            && let Some(tag) = tag(&text[inner..inner + length], opening)
        {
            let after = inner + length + closing.len_utf8();
            return Some((&text[..start], tag, &text[after..]));
        }
        from = inner;
    }
}

/// Reads what is between the brackets of a tag.
fn tag(inner: &str, opening: char) -> Option<Tag> {
    let inner = inner.trim();
    let is_token = inner.len() >= 2 && inner.starts_with('|') && inner.ends_with('|');
    let name = match is_token {
        true => &inner[1..inner.len() - 1],
        false => inner,
    };
    let (name, is_end) = match name.trim_start().strip_prefix('/') {
        Some(name) => (name.trim_start(), true),
        None => (name.trim_start(), false),
    };
    let name = name.split_whitespace().next().unwrap_or_default();
    // Of an empty element, such as `<think/>`, nothing follows.
    let is_empty = name.ends_with('/');
    let name = name.trim_end_matches('/').to_ascii_lowercase();
    let name = name.rsplit(':').next().unwrap_or_default();
    // A prompt may have other words in square brackets.
    let is_thinking = match opening {
        '[' => name == "think" || name == "thinking",
        _ => TAGS.contains(&name),
    };
    if is_thinking {
        return match (is_end, is_empty) {
            (_, true) => Some(Tag::Wrapper),
            (true, _) => Some(Tag::End),
            (false, _) => Some(Tag::Begin),
        };
    }
    if opening == '[' {
        return None;
    }
    if BEGINNINGS.contains(&name) {
        return Some(Tag::Begin);
    }
    if ENDS.contains(&name) {
        return Some(Tag::End);
    }
    if WRAPPERS.contains(&name) {
        return Some(Tag::Wrapper);
    }
    is_token.then_some(Tag::Stop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn thinking_is_removed_in_every_form() {
        let check = |text: &str, expected: Option<&str>| {
            let answer = without_thinking(text);
            let answer = answer.as_deref().map(str::trim);
            assert_eq!(answer, expected, "{text}");
        };
        check("a fox", Some("a fox"));
        check("<think>\nlight?\n</think>\n\na fox", Some("a fox"));
        check("light?\n</think>\n\na fox", Some("a fox"));
        check("<thinking>light?</thinking>a fox", Some("a fox"));
        check("<Think type=\"x\">light?</THINK >a fox", Some("a fox"));
        check("<think>use <think> tags</think> a fox", Some("a fox"));
        check("<think>a<think>b</think>c</think>a fox", Some("a fox"));
        check("<think></think>a fox", Some("a fox"));
        check("<think/>a fox", Some("a fox"));
        check("a fox<think>done</think>", Some("a fox"));
        check("[THINK]light?[/THINK]a fox", Some("a fox"));
        check("◁think▷light?◁/think▷a fox", Some("a fox"));
        check("<seed:think>light?</seed:think>a fox", Some("a fox"));
        check(
            "<reasoning>x</reasoning><answer>a fox</answer>",
            Some("a fox"),
        );
        check(
            "<|begin_of_thought|>x<|end_of_thought|><|begin_of_solution|>a fox<|end_of_solution|>",
            Some("a fox"),
        );
        check(
            "<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|>a fox<|END_RESPONSE|>",
            Some("a fox"),
        );
        check(
            "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>a fox<|return|>",
            Some("a fox"),
        );
        check("<|channel|>analysis<|message|>light?", None);
        check("<|channel|>final", None);
        check("analysisWe need a fox.assistantfinala fox", Some("a fox"));
        check("analysis of a fox", Some("analysis of a fox"));
        check(
            "Thinking...\nlight?\n...done thinking.\n\na fox",
            Some("a fox"),
        );
        check("Thinking...\nlight?", None);
        check("a fox<|im_end|>\n<|im_start|>user", Some("a fox"));
        check("light?<|sep|>more</think>a fox", Some("a fox"));
        check("<<think></think>/think>a fox", Some("a fox"));
        check("<think>\nLet me consider the light.", None);
        check("a fox <think>or a hare", None);
        check(
            "a [wide] shot, 3 < 4 > 2, <b>fox</b>",
            Some("a [wide] shot, 3 < 4 > 2, <b>fox</b>"),
        );
        check("", Some(""));
    }

    /// Answers are made of thinking with this word in it, and of prompts without it.
    const SECRET: &str = "PONDER";

    proptest! {
        #[test]
        fn no_thinking_comes_through(
            name in prop::sample::select(TAGS.to_vec()),
            before in "[a-z .]{0,20}",
            thinking in "[a-zA-Z<>\\[\\]|/\\n .]{0,40}",
            prompt in "[a-z ]{1,20}",
            has_beginning: bool,
            ends: bool,
        ) {
            let beginning = if has_beginning { format!("{before}<{name}>") } else { before };
            let end = if ends { format!("</{name}>{prompt}") } else { String::new() };
            let answer = without_thinking(&format!("{beginning}{SECRET}{thinking}{SECRET}{end}"));
            if has_beginning || ends {
                prop_assert!(!answer.unwrap_or_default().contains(SECRET));
            }
        }

        #[test]
        fn any_text_is_read(text in r"(\PC|<|>|/|\||think|<think>|</think>|<\|channel\|>|<\|message\|>|final|◁|▷){0,40}") {
            if let Some(answer) = without_thinking(&text) {
                prop_assert!(answer.len() <= text.len());
                // A second pass finds no more thinking.
                prop_assert!(!answer.to_ascii_lowercase().contains("</think>"), "{}", answer);
            }
        }
    }
}
