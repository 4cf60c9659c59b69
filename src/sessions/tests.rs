use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use quick_xml::Reader;
use quick_xml::events::Event as Xml;
use serde_json::{Value, json};

use super::history::{AttemptOutcome, History};
use super::{list, svg, text, trace};
use crate::logging::escape::is_control;

const EXAMPLE: &str = include_str!("../../tests/data/session_log/session.jsonl");
const PRINTED: &str = include_str!("../../tests/data/session_log/session.txt");

fn example() -> History {
    History::read(EXAMPLE.as_bytes()).unwrap()
}

/// Returns the texts of an SVG document, which must be well-formed XML.
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
    let texts = texts(&svg::draw(&example()).unwrap());
    for shown in ["#0 ", "lost", "denoise", "media sent"] {
        assert!(
            texts.iter().any(|t| t.contains(shown)),
            "{shown} in {texts:?}"
        );
    }
}

/// Returns the events of a trace after a round trip through JSON. They are ordered by time, and the spans of a track do not
/// overlap.
#[track_caller]
fn trace_events(history: &History) -> Vec<Value> {
    let json = trace::export(history).to_string();
    let trace: Value = serde_json::from_str(&json).unwrap();
    let events = trace["traceEvents"].as_array().unwrap().clone();
    let mut last_ts = 0.0;
    let mut ends = HashMap::new();
    for event in &events {
        assert!(event["args"].is_object(), "{event}");
        let tid = event["tid"].as_u64().unwrap();
        let Some(ts) = event["ts"].as_f64() else {
            assert_eq!(event["ph"], "M", "{event}");
            continue;
        };
        assert!(ts >= last_ts, "{event} comes before {last_ts}");
        last_ts = ts;
        if event["ph"] == "X" {
            let dur = event["dur"].as_f64().unwrap();
            let end = ends.entry(tid).or_insert(0.0);
            // The sum of a start and a duration is rounded.
            let rounding = f64::max(1e-3, *end * f64::EPSILON);
            assert!(
                dur >= 0.0 && ts >= *end - rounding,
                "{event} overlaps {end}"
            );
            *end = ts + dur;
        } else {
            assert_eq!(event["ph"], "i", "{event}");
        }
    }
    events
}

#[test]
fn the_trace_has_a_track_for_each_kind_of_activity_and_marks_faults() {
    let events = trace_events(&example());
    let named = |name: &str| events.iter().find(|event| event["name"] == name);
    let tracks: Vec<_> = (events.iter())
        .filter(|event| event["name"] == "thread_name")
        .map(|event| event["args"]["name"].as_str().unwrap())
        .collect();
    for track in [
        "session",
        "worker",
        "client messages",
        "prompts",
        "segments",
        "queue",
        "steps",
        "client bytes",
    ] {
        assert!(tracks.contains(&track), "{track} in {tracks:?}");
    }
    let fault = named("fault").unwrap();
    assert_eq!((&fault["ph"], &fault["s"]), (&"i".into(), &"p".into()));
    assert_eq!(fault["args"]["worker_id"], "gpu0-1");
    assert_eq!(named("ACTIVE").unwrap()["ph"], "X");
    let step = named("denoise 3").unwrap();
    assert!((step["dur"].as_f64().unwrap() - 60_152.757).abs() < 1000.0);
}

#[test]
fn events_of_a_newer_version_are_shown_with_their_payload() {
    let line = r#"{"session_id":"x","ts":1.0,"event":"rewound","payload":{"to":3},"more":[]}
{"session_id":"x","ts":2.0,"event":"state","payload":"other"}
{"session_id":"x","ts":3.0,"event":"draining","payload":{"deadline_seconds":1.0,"why":"new field"}}
"#;
    let history = History::read(line.as_bytes()).unwrap();
    let events = trace_events(&history);
    let named = |name: &str| events.iter().find(|event| event["name"] == name);
    assert_eq!(named("rewound").unwrap()["args"]["to"], 3);
    assert_eq!(named("state").unwrap()["args"]["payload"], "other");
    assert_eq!(named("draining").unwrap()["args"]["deadline_seconds"], 1.0);
    texts(&svg::draw(&history).unwrap());
    assert!(text::print(&history).contains("rewound"));
}

#[test]
fn a_clock_that_goes_back_and_absurd_times_do_not_break_the_trace() {
    let lines = r#"{"session_id":"x","ts":5.0,"event":"state","payload":{"from":"QUEUED","to":"GPU_BINDING"}}
{"session_id":"x","ts":9.0,"event":"state","payload":{"from":"GPU_BINDING","to":"ACTIVE"}}
{"session_id":"x","ts":2.0,"event":"segment_queued","payload":{"segment_idx":0,"attempt":1,"worker_id":"w","source":"user","prompt":"p","waited_ms":-1e300}}
{"session_id":"x","ts":1.0,"event":"step","payload":{"segment_idx":0,"attempt":1,"stage":"denoise","step":1,"total_steps":1,"ms":-1e9}}
{"session_id":"x","ts":1e300,"event":"state","payload":{"from":"ACTIVE","to":"COMPLETE"}}
"#;
    let history = History::read(lines.as_bytes()).unwrap();
    assert_eq!(history.attempts.len(), 1);
    trace_events(&history);
    texts(&svg::draw(&history).unwrap());
}

#[test]
fn times_between_which_there_is_no_number_of_seconds_are_drawn() {
    let lines = r#"{"session_id":"x","ts":-1.7e308,"event":"state","payload":{"from":"QUEUED","to":"GPU_BINDING"}}
{"session_id":"x","ts":1.7e308,"event":"segment_queued","payload":{"segment_idx":0,"attempt":1,"worker_id":"w","source":"user","prompt":"p","waited_ms":1}}
"#;
    let history = History::read(lines.as_bytes()).unwrap();
    assert!(history.length.is_finite());
    texts(&svg::draw(&history).unwrap());
    trace_events(&history);
    assert!(text::print(&history).contains("queued for w"));
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
    let svg = svg::draw(&history).unwrap();
    texts(&svg);
    assert!(!svg.contains("<script"));
    trace_events(&history);
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
    texts(&svg::draw(&one).unwrap());
}

/// One damage to a log.
#[derive(Clone, Debug)]
enum Damage {
    /// Bytes are overwritten, lost, or come from elsewhere.
    Bytes {
        at: Index,
        lost: usize,
        new: Vec<u8>,
    },
    /// A line is written again, at another place.
    Line { from: Index, to: Index },
    /// A value of a line is another one.
    Value {
        line: Index,
        value: Index,
        new: Value,
    },
    /// A line's time is another one.
    Time { line: Index, ts: f64 },
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = (any::<Index>(), 0..60_usize, vec(any::<u8>(), 0..10));
    let line = (any::<Index>(), any::<Index>());
    let value = (any::<Index>(), any::<Index>(), odd_value());
    let time = (any::<Index>(), odd_number());
    prop_oneof![
        1 => bytes.prop_map(|(at, lost, new)| Damage::Bytes { at, lost, new }),
        1 => line.prop_map(|(from, to)| Damage::Line { from, to }),
        4 => value.prop_map(|(line, value, new)| Damage::Value { line, value, new }),
        2 => time.prop_map(|(line, ts)| Damage::Time { line, ts }),
    ]
}

fn odd_number() -> impl Strategy<Value = f64> {
    let extremes = select(vec![
        0.0,
        -0.0,
        -1.0,
        1e15,
        1e300,
        -1e300,
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE,
    ]);
    prop_oneof![extremes, any::<f64>(), -1e4..1e4_f64, 1.795e9..1.796e9_f64]
        .prop_map(|number| if number.is_finite() { number } else { 1e308 })
}

fn odd_value() -> impl Strategy<Value = Value> {
    let words = select(vec![
        "",
        "user",
        "ACTIVE",
        "COMPLETE",
        "GPU_BINDING",
        "denoise",
        "decode",
        "segment_queued",
        "step",
        "state",
        "closed",
        "\u{1b}[31m",
        "\u{9b}2J",
        "\u{202e}",
        "\r\n",
        "\0",
        "\u{ffff}",
        "]]></svg>",
    ]);
    prop_oneof![
        odd_number().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0..4_u32).prop_map(Value::from),
        words.prop_map(Value::from),
        vec(any::<char>(), 0..12).prop_map(|text| String::from_iter(text).into()),
        select(vec![
            Value::Null,
            json!(true),
            json!([]),
            json!({}),
            json!([[{}]])
        ]),
    ]
}

/// The places of all values within a value, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                places(value, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (n, value) in items.iter().enumerate() {
                places(value, &format!("{at}/{n}"), found);
            }
        }
        _ => {}
    }
}

fn apply(damage: &Damage, log: &mut Vec<u8>) {
    let mut lines: Vec<Vec<u8>> = log
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    match damage {
        Damage::Bytes { at, lost, new } => {
            let at = at.index(log.len() + 1);
            let end = log.len().min(at + lost);
            log.splice(at..end, new.iter().copied());
            return;
        }
        Damage::Line { from, to } => {
            let line = lines[from.index(lines.len())].clone();
            lines.insert(to.index(lines.len() + 1), line);
        }
        Damage::Value { line, value, new } => {
            let line = line.index(lines.len());
            let Ok(mut read) = serde_json::from_slice::<Value>(&lines[line]) else {
                return;
            };
            let mut all = Vec::new();
            places(&read, "", &mut all);
            if let Some(value) = read.pointer_mut(&all[value.index(all.len())]) {
                *value = new.clone();
            }
            lines[line] = read.to_string().into_bytes();
        }
        Damage::Time { line, ts } => {
            let line = line.index(lines.len());
            let Ok(mut read) = serde_json::from_slice::<Value>(&lines[line]) else {
                return;
            };
            if let Some(value) = read.get_mut("ts") {
                *value = json!(ts);
            }
            lines[line] = read.to_string().into_bytes();
        }
    }
    *log = lines.join(&b'\n');
}

/// Fails if a terminal would interpret a part of the text.
#[track_caller]
fn is_plain(text: &str) {
    let control = text.chars().find(|&c| c != '\n' && is_control(c));
    assert_eq!(control, None, "{text:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn any_damaged_log_is_read_listed_printed_drawn_and_traced(damages in vec(damage(), 1..12)) {
        let mut log = EXAMPLE.as_bytes().to_vec();
        for damage in &damages {
            apply(damage, &mut log);
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("session-x.jsonl"), &log).unwrap();
        is_plain(&list::print(folder.path()).unwrap());
        if let Some(history) = History::read(&log) {
            is_plain(&text::print(&history));
            let drawn = svg::draw(&history).unwrap();
            is_plain(&drawn);
            texts(&drawn);
            trace_events(&history);
        }
    }

    #[test]
    fn bytes_that_are_no_log_are_passed_over(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(History::read(&bytes).is_none());
    }
}
