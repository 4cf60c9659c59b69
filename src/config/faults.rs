//! Faults for tests, as one line of text: `exit@step2,segment=1,max_attempt=1;garbage@boot,gpu=0`.

use fastvideo_proto::link::{FaultKind, FaultPoint, FaultSpec};

#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum FaultError {
    #[error("fault `{0}` is not of the form kind@point,condition=value")]
    Form(String),
    #[error(
        "unknown kind of fault `{0}`, expected exit, abort, stop, spin, slow, leak, garbage, error or panic"
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

/// Faults are separated by `;`, their conditions by `,`; a prompt can therefore hold neither.
pub(super) fn parse(text: &str) -> Result<Vec<FaultSpec>, FaultError> {
    text.split(';')
        .map(str::trim)
        .filter(|fault| !fault.is_empty())
        .map(fault)
        .collect()
}

fn fault(text: &str) -> Result<FaultSpec, FaultError> {
    let form = || FaultError::Form(text.to_owned());
    let mut parts = text.split(',').map(str::trim);
    let (name, place) = parts
        .next()
        .and_then(|head| head.split_once('@'))
        .ok_or_else(form)?;
    let mut fault = FaultSpec {
        kind: kind(name)?,
        at: point(place)?,
        segment_idx: None,
        prompt: None,
        max_attempt: None,
        gpu: None,
        max_incarnation: None,
    };
    for condition in parts {
        let (name, value) = condition.split_once('=').ok_or_else(form)?;
        let number = || {
            value.parse().map(Some).map_err(|_| FaultError::Number {
                name: name.to_owned(),
                given: value.to_owned(),
            })
        };
        match name {
            "segment" => fault.segment_idx = number()?,
            "prompt" => fault.prompt = Some(value.to_owned()),
            "max_attempt" => fault.max_attempt = number()?,
            "gpu" => fault.gpu = number()?,
            "max_incarnation" => fault.max_incarnation = number()?,
            _ => return Err(FaultError::Condition(name.to_owned())),
        }
    }
    Ok(fault)
}

fn kind(name: &str) -> Result<FaultKind, FaultError> {
    Ok(match name {
        "exit" => FaultKind::Exit,
        "abort" => FaultKind::Abort,
        "stop" => FaultKind::Stop,
        "spin" => FaultKind::Spin,
        "slow" => FaultKind::Slow,
        "leak" => FaultKind::Leak,
        "garbage" => FaultKind::Garbage,
        "error" => FaultKind::Error,
        "panic" => FaultKind::Panic,
        _ => return Err(FaultError::Kind(name.to_owned())),
    })
}

fn point(text: &str) -> Result<FaultPoint, FaultError> {
    let unknown = || FaultError::Point(text.to_owned());
    if let Some(step) = text.strip_prefix("step") {
        return match step.parse() {
            Ok(step @ 1..) => Ok(FaultPoint::Step(step)),
            _ => Err(unknown()),
        };
    }
    if let Some(frame) = text.strip_prefix("frame") {
        return frame.parse().map(FaultPoint::Frame).map_err(|_| unknown());
    }
    match text {
        "boot" => Ok(FaultPoint::Boot),
        "load" => Ok(FaultPoint::Load),
        "warmup" => Ok(FaultPoint::Warmup),
        "idle" => Ok(FaultPoint::Idle),
        "end" => Ok(FaultPoint::End),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anywhere(kind: FaultKind, at: FaultPoint) -> FaultSpec {
        FaultSpec {
            kind,
            at,
            segment_idx: None,
            prompt: None,
            max_attempt: None,
            gpu: None,
            max_incarnation: None,
        }
    }

    #[test]
    fn faults_are_read() {
        let check = |text: &str, expected: Vec<FaultSpec>| {
            assert_eq!(parse(text), Ok(expected), "{text}");
        };
        check("", vec![]);
        check(
            "stop@idle",
            vec![anywhere(FaultKind::Stop, FaultPoint::Idle)],
        );
        check(
            "exit@step2,segment=1,max_attempt=1; garbage@boot,gpu=0;",
            vec![
                FaultSpec {
                    segment_idx: Some(1),
                    max_attempt: Some(1),
                    ..anywhere(FaultKind::Exit, FaultPoint::Step(2))
                },
                FaultSpec {
                    gpu: Some(0),
                    ..anywhere(FaultKind::Garbage, FaultPoint::Boot)
                },
            ],
        );
        check(
            "panic@frame0,prompt=red fox,max_incarnation=2",
            vec![FaultSpec {
                prompt: Some("red fox".to_owned()),
                max_incarnation: Some(2),
                ..anywhere(FaultKind::Panic, FaultPoint::Frame(0))
            }],
        );
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
