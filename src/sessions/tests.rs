use quick_xml::Reader;
use quick_xml::events::Event as Xml;

use super::history::{History, AttemptOutcome};
use super::{svg, text};

const EXAMPLE: &str = include_str!("../../tests/data/session_log/session.jsonl");
const PRINTED: &str = include_str!("../../tests/data/session_log/session.txt");

fn example() -> History {
    History::read(EXAMPLE.as_bytes()).unwrap()
}

/// The texts of a document, which must be well-formed.
#[track_caller]
fn texts(svg: &str) -> Vec<String> {
    let mut reader = Reader::from_str(svg);
    reader.config_mut().check_end_names = true;
    let mut depth = 0;
    let mut texts = Vec::new();
    loop {
        match reader.read_event().unwrap() {
            Xml::Start(tag) => {
                depth += 1;
                for attribute in tag.attributes() {
                    attribute.unwrap();
                }
            }
            Xml::End(_) => depth -= 1,
            Xml::Text(text) => texts.push(text.decode().unwrap().into_owned()),
            Xml::Eof => break,
            _ => {}
        }
    }
    assert_eq!(depth, 0);
    texts
}

#[test]
fn the_example_is_printed_as_it_was() {
    assert_eq!(text::print(&example()), PRINTED);
}

#[test]
fn segments_are_put_together_from_their_events() {
    let history = example();
    for attempt in &history.attempts {
        let started = attempt.started.unwrap();
        assert!(attempt.requested <= started);
        assert!(
            attempt
                .steps
                .iter()
                .all(|s| s.from >= started - 1e-3 && s.to > s.from)
        );
        assert!(attempt.steps.is_sorted_by(|a, b| a.to <= b.from + 1e-3));
        if let AttemptOutcome::Finished { .. } = attempt.outcome {
            assert!(attempt.first_byte < attempt.last_byte);
            assert!(attempt.bytes > 0);
        }
    }
    let lost = history
        .attempts
        .iter()
        .filter(|a| a.outcome == AttemptOutcome::WorkerLost);
    assert_eq!(lost.count(), 1);
}

#[test]
fn the_drawing_is_well_formed_and_shows_prompts_and_faults() {
    let texts = texts(&svg::draw(&example()));
    for shown in ["#0 ", "lost", "denoise", "media sent"] {
        assert!(
            texts.iter().any(|t| t.contains(shown)),
            "{shown} in {texts:?}"
        );
    }
}

#[test]
fn nothing_that_a_client_says_breaks_the_drawing_or_the_terminal() {
    let evil = r#"</title><script>alert(1)</script>&amp;\u001b[31m\u0000\uffff \" ' ]]>"#;
    let lines = format!(
        r#"{{"session_id":"{evil}","ts":1.0,"event":"prompt_received","payload":{{"source":"user","prompt":"{evil}"}}}}
{{"session_id":"x","ts":2.0,"event":"segment_queued","payload":{{"segment_idx":0,"attempt":1,"worker_id":"{evil}","source":"user","prompt":"{evil}","waited_ms":1e300}}}}
{{"session_id":"x","ts":9.0,"event":"{evil}","payload":{{"a":"{evil}"}}}}
"#
    );
    let history = History::read(lines.as_bytes()).unwrap();
    assert_eq!((history.attempts.len(), history.skipped), (1, 0));
    let svg = svg::draw(&history);
    texts(&svg);
    assert!(!svg.contains("<script"));
    let printed = text::print(&history);
    assert!(
        printed.chars().all(|c| c == '\n' || !c.is_control()),
        "{printed:?}"
    );
}

#[test]
fn what_is_no_event_is_passed_over() {
    assert!(History::read(b"").is_none());
    assert!(History::read(b"not json\n\xff\xfe\n{}\n").is_none());
    let torn = &EXAMPLE[..EXAMPLE.len() - 20];
    let history = History::read(torn.as_bytes()).unwrap();
    assert_eq!(history.skipped, 1);
    assert!(text::print(&history).ends_with("a server that was killed may leave half a line\n"));
    // One event only, at one moment.
    let one = History::read(EXAMPLE.lines().next().unwrap().as_bytes()).unwrap();
    texts(&svg::draw(&one));
}
