//! Faults for tests, written as one line of text: `exit@step2,segment=1,max_attempt=1;garbage@boot,gpu=0`.
//!
//! The text is checked here and becomes JSON, which `worker/faults.rs` reads.

use serde_json::{Map, Value, json};

const KINDS: [&str; 12] = [
    "exit", "abort", "stop", "spin", "slow", "leak", "garbage", "error", "oom", "panic", "blank",
    "spoil",
];
const POINTS: [&str; 5] = ["boot", "load", "warmup", "idle", "end"];

#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum FaultError {
    #[error("fault `{0}` is not of the form kind@point,condition=value")]
    Form(String),
    #[error(
        "unknown kind of fault `{0}`, expected exit, abort, stop, spin, slow, leak, garbage, error, oom, panic, blank or spoil"
    )]
    Kind(String),
    #[error(
        "unknown point `{0}`, expected boot, load, warmup, idle, stepN (from 1), frameN (from 0) or end"
    )]
    Point(String),
    #[error(
        "unknown condition `{0}`, expected segment, prompt, max_attempt, gpu or max_incarnation"
    )]
    Condition(String),
    #[error("condition `{name}` must be a whole number, given `{given}`")]
    Number { name: String, given: String },
}

/// Parses the text. Faults are separated by `;`, their conditions by `,`; a prompt can therefore hold neither.
pub(super) fn parse(text: &str) -> Result<Vec<Value>, FaultError> {
    text.split(';')
        .map(str::trim)
        .filter(|fault| !fault.is_empty())
        .map(fault)
        .collect()
}

fn fault(text: &str) -> Result<Value, FaultError> {
    let form = || FaultError::Form(text.to_owned());
    let mut parts = text.split(',').map(str::trim);
    let (kind, at) = parts
        .next()
        .and_then(|head| head.split_once('@'))
        .ok_or_else(form)?;
    if !KINDS.contains(&kind) {
        return Err(FaultError::Kind(kind.to_owned()));
    }
    let mut fault = Map::new();
    fault.insert("kind".to_owned(), kind.into());
    fault.insert("at".to_owned(), point(at)?);
    for condition in parts {
        let (name, value) = condition.split_once('=').ok_or_else(form)?;
        let value = match name {
            "prompt" => value.into(),
            "segment" | "max_attempt" | "gpu" | "max_incarnation" => {
                let number = value.parse::<u32>().map_err(|_| FaultError::Number {
                    name: name.to_owned(),
                    given: value.to_owned(),
                })?;
                number.into()
            }
            _ => return Err(FaultError::Condition(name.to_owned())),
        };
        fault.insert(name.to_owned(), value);
    }
    Ok(fault.into())
}

fn point(text: &str) -> Result<Value, FaultError> {
    let numbered = |prefix: &str| text.strip_prefix(prefix)?.parse::<u32>().ok();
    match (numbered("step"), numbered("frame")) {
        (Some(step @ 1..), _) => Ok(json!({ "step": step })),
        (_, Some(frame)) => Ok(json!({ "frame": frame })),
        _ if POINTS.contains(&text) => Ok(text.into()),
        _ => Err(FaultError::Point(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        let check = |text: &str, expected: Value| {
            assert_eq!(parse(text).map(Value::from), Ok(expected), "{text}");
        };
        check("", json!([]));
        check("stop@idle", json!([{"kind": "stop", "at": "idle"}]));
        check(
            "exit@step2,segment=1,max_attempt=1; garbage@boot,gpu=0;",
            json!([
                {"kind": "exit", "at": {"step": 2}, "segment": 1, "max_attempt": 1},
                {"kind": "garbage", "at": "boot", "gpu": 0},
            ]),
        );
        check(
            "panic@frame0,prompt=red fox,max_incarnation=2",
            json!([
                {"kind": "panic", "at": {"frame": 0}, "prompt": "red fox", "max_incarnation": 2},
            ]),
        );
        check("oom@step2", json!([{"kind": "oom", "at": {"step": 2}}]));
    }

    #[test]
    fn bad_faults_are_refused() {
        let check = |text: &str, expected: FaultError| {
            assert_eq!(parse(text), Err(expected), "{text}");
        };
        check("exit", FaultError::Form("exit".to_owned()));
        check("exit@end,gpu", FaultError::Form("exit@end,gpu".to_owned()));
        check("exlt@end", FaultError::Kind("exlt".to_owned()));
        check("exit@step", FaultError::Point("step".to_owned()));
        check("exit@step0", FaultError::Point("step0".to_owned()));
        check("exit@begin", FaultError::Point("begin".to_owned()));
        check("exit@end,job=1", FaultError::Condition("job".to_owned()));
        check(
            "exit@end,gpu=x",
            FaultError::Number {
                name: "gpu".to_owned(),
                given: "x".to_owned(),
            },
        );
    }
}
