//! Renders the last messages of a connection and its close code.
//!
//! Where a client may not open a session, it is told so, and its connection is then held until the client closes it: the web
//! UI goes back to its lobby and keeps what was typed, and does neither when the server closes.

use std::fmt::Display;

use fastvideo_proto::dreamverse::ServerMessage;

use crate::dialect::{CROWDED, Rendered, close_code, close_of};
use crate::ingress::websocket::TransportViolation;
use crate::session::ending::{EndCause, NotOpened};
use crate::session::event::Ended;
use crate::session::{Full, NotAdmitted};

/// Renders the refusal of a client that may not open a session.
pub(super) fn not_admitted(why: &NotAdmitted, out: &mut Rendered) {
    match why {
        NotAdmitted::Unauthorized(message) => {
            error(message, out);
            out.close(close_code::RULE_BROKEN, "unauthorized");
        }
        NotAdmitted::Full(Full::Client(_)) => {
            out.json(&ServerMessage::Error {
                message: unavailable(why),
                error_code: Some("ip_session_limit"),
            });
            out.hold();
        }
        NotAdmitted::Draining | NotAdmitted::Full(_) | NotAdmitted::Limited { .. } => {
            hold(why, out);
        }
    }
}

/// Renders why a session does not begin.
pub(super) fn not_opened(why: NotOpened, out: &mut Rendered) {
    match why {
        NotOpened::Gone => {}
        NotOpened::Violation(violation) => add_violation(violation, out),
        NotOpened::Timeout(_) => {
            timeout("The session was not opened in time.", out);
            out.close(close_code::NORMAL, "session_timeout");
        }
        NotOpened::Refused { message, .. } => {
            error(message, out);
            out.close(close_code::BAD_OPENING, "bad opening message");
        }
        NotOpened::Blocked(message) => {
            error(message, out);
            out.close(close_code::RULE_BROKEN, "prompt blocked");
        }
        NotOpened::Unavailable(message) => hold(message, out),
        NotOpened::Internal(message) => {
            error(message, out);
            out.close(close_code::INTERNAL, "internal_error");
        }
        NotOpened::NoSession(message) | NotOpened::CannotGoOn(message) => {
            error(message, out);
            out.close(close_code::BAD_OPENING, "session_lost");
        }
        NotOpened::NoPlace => hold("no GPU can serve", out),
        NotOpened::NotAdmitted(why) => not_admitted(&why, out),
        NotOpened::Draining => not_admitted(&NotAdmitted::Draining, out),
    }
}

/// Renders the end of a session. `was_bound` says whether the client was told of a GPU.
pub(super) fn ended(ended: &Ended, was_bound: bool, out: &mut Rendered) {
    match ended.cause {
        EndCause::Gone | EndCause::Closed | EndCause::Released | EndCause::Unlinked => {}
        EndCause::Violation(violation) => add_violation(violation, out),
        EndCause::Left | EndCause::SegmentCap => out.close(close_code::NORMAL, "left"),
        EndCause::Idle(limit) => {
            let message = format!("Nothing was asked for in {} seconds.", limit.as_secs());
            timeout(&message, out);
            out.close(close_code::NORMAL, "session_timeout");
        }
        EndCause::TimeLimit(limit) => {
            let message = format!("The session is over after {} seconds.", limit.as_secs());
            timeout(&message, out);
            out.close(close_code::NORMAL, "session_timeout");
        }
        EndCause::Draining if was_bound => {
            timeout("The server is going away; begin another session.", out);
            out.close(close_code::GOING_AWAY, "draining");
        }
        EndCause::Draining => not_admitted(&NotAdmitted::Draining, out),
        EndCause::NoWorker => hold("no GPU can serve at the moment", out),
        EndCause::SlowClient => out.close(close_code::RULE_BROKEN, "too slow"),
        EndCause::RuleBroken => out.close(close_code::RULE_BROKEN, "binary message"),
        EndCause::StateRefused => out.close(close_code::INTERNAL, "state_incompatible"),
        EndCause::Unauthorized => {
            error("the key that opened the session is not valid any more", out);
            out.close(close_code::RULE_BROKEN, "unauthorized");
        }
        EndCause::LeaseLost => {
            timeout("The session was ended by the operator.", out);
            out.close(close_code::NORMAL, "session_lost");
        }
    }
}

/// Returns a message that the web UI takes as one of a server without room.
fn unavailable(why: impl Display) -> String {
    format!("replica unavailable: {why}")
}

fn hold(why: impl Display, out: &mut Rendered) {
    error(unavailable(why), out);
    out.hold();
}

pub(super) fn error(message: impl Into<String>, out: &mut Rendered) {
    out.json(&ServerMessage::Error {
        message: message.into(),
        error_code: None,
    });
}

fn timeout(message: &str, out: &mut Rendered) {
    out.json(&ServerMessage::SessionTimeout {
        message: message.to_owned(),
    });
}

fn add_violation(violation: TransportViolation, out: &mut Rendered) {
    if violation == TransportViolation::Crowded {
        error(CROWDED, out);
    }
    let (code, reason) = close_of(violation);
    out.close(code, reason);
}
