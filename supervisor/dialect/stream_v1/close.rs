//! Renders the last messages of a connection and its close code.

use std::time::SystemTime;

use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::stream_v1::{CompleteReason, DroppedRequest, ServerMessage};

use crate::dialect::{CROWDED, Rendered, close_code, close_of};
use crate::ingress::websocket::TransportViolation;
use crate::session::NotAdmitted;
use crate::session::ending::{EndCause, NotOpened};
use crate::session::event::Ended;

/// Renders the refusal of a client that may not open a session.
pub(super) fn not_admitted(why: &NotAdmitted, out: &mut Rendered) {
    let message = why.to_string();
    match why {
        NotAdmitted::Draining => {
            out.json(&ServerMessage::error(
                ErrorCode::SessionRejected,
                message,
                true,
            ));
            out.close(close_code::GOING_AWAY, "session_rejected");
        }
        NotAdmitted::Full(_) => {
            out.json(&ServerMessage::error(
                ErrorCode::SessionRejected,
                message,
                true,
            ));
            out.close(close_code::TRY_AGAIN_LATER, "session_rejected");
        }
        NotAdmitted::Unauthorized(_) => {
            out.json(&ServerMessage::error(
                ErrorCode::Unauthorized,
                message,
                false,
            ));
            out.close(close_code::RULE_BROKEN, "unauthorized");
        }
        NotAdmitted::Limited { retry_after, .. } => {
            out.json(&ServerMessage::rate_limited(None, message, *retry_after));
            out.close(close_code::TRY_AGAIN_LATER, "rate_limited");
        }
    }
}

/// Renders why a session does not begin.
pub(super) fn not_opened(why: NotOpened, out: &mut Rendered) {
    match why {
        NotOpened::Gone | NotOpened::NoPlace => {}
        NotOpened::Violation(violation) => add_violation(violation, out),
        NotOpened::Timeout(limit) => {
            out.json(&ServerMessage::SessionTimeout {
                timeout_seconds: limit.as_secs(),
                resumable_until: None,
                dropped_requests: Vec::new(),
            });
            out.close(close_code::NORMAL, "session_timeout");
        }
        NotOpened::Refused { code, message } => {
            out.json(&ServerMessage::error(code, message, false));
            out.close(close_code::BAD_OPENING, "bad opening message");
        }
        NotOpened::Blocked(message) => {
            let code = ErrorCode::PromptBlocked;
            out.json(&ServerMessage::error(code, message, false));
            out.close(close_code::RULE_BROKEN, "prompt blocked");
        }
        NotOpened::NoSession(message) => {
            let code = ErrorCode::SessionRejected;
            out.json(&ServerMessage::error(code, message, false));
            out.close(close_code::BAD_OPENING, "bad opening message");
        }
        NotOpened::CannotGoOn(message) => {
            let code = ErrorCode::SessionRejected;
            out.json(&ServerMessage::error(code, message, false));
            out.close(close_code::NORMAL, "session_lost");
        }
        NotOpened::Unavailable(message) => {
            out.json(&ServerMessage::error(
                ErrorCode::SessionRejected,
                message,
                true,
            ));
            out.close(close_code::TRY_AGAIN_LATER, "session_rejected");
        }
        NotOpened::Internal(message) => {
            out.json(&ServerMessage::error(
                ErrorCode::InternalError,
                message,
                true,
            ));
            out.close(close_code::INTERNAL, "internal_error");
        }
        NotOpened::NotAdmitted(why) => not_admitted(&why, out),
        NotOpened::Draining => out.close(close_code::GOING_AWAY, "draining"),
    }
}

/// Renders the end of a session. `was_bound` says whether the client was told of a worker.
pub(super) fn ended(ended: Ended, was_bound: bool, out: &mut Rendered) {
    let dropped = ended.dropped.into_iter();
    let dropped_requests = dropped
        .map(|dropped| DroppedRequest {
            request_id: dropped.request,
            prompt: dropped.prompt,
        })
        .collect();
    let until = ended.kept_for.map(|time| {
        let until = SystemTime::now() + time;
        humantime::format_rfc3339_seconds(until).to_string()
    });
    let complete = |reason, dropped_requests| ServerMessage::StreamComplete {
        reason,
        resumable_until: until.clone(),
        dropped_requests,
    };
    match ended.cause {
        EndCause::Gone | EndCause::Closed | EndCause::Released | EndCause::Unlinked => {}
        EndCause::Violation(violation) => add_violation(violation, out),
        EndCause::Left => {
            out.json(&complete(CompleteReason::StopRequested, dropped_requests));
            out.close(close_code::NORMAL, "left");
        }
        EndCause::SegmentCap => {
            out.json(&complete(CompleteReason::SegmentCap, dropped_requests));
            out.close(close_code::NORMAL, "segment_cap");
        }
        EndCause::Idle(limit) | EndCause::TimeLimit(limit) => {
            out.json(&ServerMessage::SessionTimeout {
                timeout_seconds: limit.as_secs(),
                resumable_until: until,
                dropped_requests,
            });
            out.close(close_code::NORMAL, "session_timeout");
        }
        EndCause::SlowClient => out.close(close_code::RULE_BROKEN, "too slow"),
        EndCause::RuleBroken => out.close(close_code::RULE_BROKEN, "binary message"),
        EndCause::StateRefused => {
            out.json(&complete(CompleteReason::Error, dropped_requests));
            out.close(close_code::BAD_OPENING, "state_incompatible");
        }
        EndCause::NoWorker => out.close(close_code::TRY_AGAIN_LATER, "gpu_unavailable"),
        EndCause::Unauthorized => out.close(close_code::RULE_BROKEN, "unauthorized"),
        EndCause::LeaseLost => out.close(close_code::NORMAL, "session_lost"),
        EndCause::Draining => {
            if was_bound {
                out.json(&complete(CompleteReason::StopRequested, dropped_requests));
            }
            out.close(close_code::GOING_AWAY, "draining");
        }
    }
}

/// Renders why a session does not begin, for a router.
pub(crate) fn refused(why: NotOpened) -> Rendered {
    let mut out = Rendered::default();
    not_opened(why, &mut out);
    out
}

/// Renders the end of a connection whose client broke the protocol below its dialect.
pub(crate) fn violated(violation: TransportViolation) -> Rendered {
    let mut out = Rendered::default();
    add_violation(violation, &mut out);
    out
}

fn add_violation(violation: TransportViolation, out: &mut Rendered) {
    if violation == TransportViolation::Crowded {
        out.json(&ServerMessage::error(
            ErrorCode::SessionRejected,
            CROWDED,
            true,
        ));
    }
    let (code, reason) = close_of(violation);
    out.close(code, reason);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dialect::Wire;
    use crate::session::{Full, SessionState};

    /// The types of the last messages, and the close code.
    fn last(rendered: Rendered) -> (Vec<String>, Option<u16>) {
        let (mut types, mut code) = (Vec::new(), None);
        for wire in rendered {
            match wire {
                Wire::Text(text) => {
                    let message: serde_json::Value = serde_json::from_str(&text).unwrap();
                    let retryable = match message["retryable"].as_bool() {
                        Some(true) => " retryable",
                        _ => "",
                    };
                    let kind = message["type"].as_str().unwrap();
                    types.push(format!("{kind}{retryable}"));
                }
                Wire::Close { code: given, .. } => code = Some(given),
                other => panic!("{other:?}"),
            }
        }
        (types, code)
    }

    #[track_caller]
    fn check_ended(cause: EndCause, was_bound: bool, types: &[&str], code: Option<u16>) {
        let mut out = Rendered::default();
        let end = Ended {
            cause,
            state: SessionState::Complete,
            segments: 0,
            kept_for: None,
            dropped: Vec::new(),
            abandoned: Vec::new(),
        };
        ended(end, was_bound, &mut out);
        let expected = types.iter().map(|&kind| kind.to_owned()).collect();
        assert_eq!(last(out), (expected, code), "{cause:?}");
    }

    #[track_caller]
    fn check_not_opened(why: NotOpened, types: &[&str], code: Option<u16>) {
        let name = format!("{why:?}");
        let mut out = Rendered::default();
        not_opened(why, &mut out);
        let expected = types.iter().map(|&kind| kind.to_owned()).collect();
        assert_eq!(last(out), (expected, code), "{name}");
    }

    #[test]
    fn every_end_has_its_last_messages_and_its_close_code() {
        let complete: &[&str] = &["ltx2_stream_complete"];
        let violation = EndCause::Violation;
        check_ended(EndCause::Gone, true, &[], None);
        check_ended(EndCause::Closed, true, &[], None);
        check_ended(
            violation(TransportViolation::TooLarge),
            true,
            &[],
            Some(1009),
        );
        check_ended(
            violation(TransportViolation::NotUtf8),
            true,
            &[],
            Some(1007),
        );
        check_ended(
            violation(TransportViolation::Protocol),
            true,
            &[],
            Some(1002),
        );
        check_ended(
            violation(TransportViolation::TooSlow),
            true,
            &[],
            Some(1008),
        );
        check_ended(
            violation(TransportViolation::Crowded),
            true,
            &["error retryable"],
            Some(1013),
        );
        check_ended(EndCause::Left, true, complete, Some(1000));
        check_ended(EndCause::SegmentCap, true, complete, Some(1000));
        let idle = EndCause::Idle(Duration::from_secs(1));
        check_ended(idle, true, &["session_timeout"], Some(1000));
        check_ended(EndCause::SlowClient, true, &[], Some(1008));
        check_ended(EndCause::RuleBroken, true, &[], Some(1008));
        check_ended(EndCause::StateRefused, true, complete, Some(1003));
        check_ended(EndCause::NoWorker, false, &[], Some(1013));
        check_ended(EndCause::LeaseLost, true, &[], Some(1000));
        check_ended(EndCause::Draining, true, complete, Some(1001));
        check_ended(EndCause::Draining, false, &[], Some(1001));
    }

    #[test]
    fn every_refusal_of_an_opening_says_whether_trying_again_may_help() {
        let refused = NotOpened::Refused {
            code: ErrorCode::SessionRejected,
            message: "no".to_owned(),
        };
        check_not_opened(NotOpened::Gone, &[], None);
        check_not_opened(refused, &["error"], Some(1003));
        check_not_opened(
            NotOpened::Unavailable("later"),
            &["error retryable"],
            Some(1013),
        );
        check_not_opened(
            NotOpened::Internal("ours"),
            &["error retryable"],
            Some(1011),
        );
        let timeout = NotOpened::Timeout(Duration::from_secs(30));
        check_not_opened(timeout, &["session_timeout"], Some(1000));
        check_not_opened(NotOpened::Draining, &[], Some(1001));
        let full = NotAdmitted::Full(Full::Server(1));
        check_not_opened(full.into(), &["error retryable"], Some(1013));
    }
}
