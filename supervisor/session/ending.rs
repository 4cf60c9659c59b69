//! Why a session does not begin, or is over, and the state that it ends in.

use std::time::Duration;

use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::stored::Expectation;

use super::not_admitted::NotAdmitted;
use super::state::SessionState;
use crate::ingress::websocket::TransportViolation;

/// Why a session does not begin.
#[derive(Debug)]
pub enum NotOpened {
    /// The client went away.
    Gone,
    Violation(TransportViolation),
    /// The client sent nothing for this long.
    Timeout(Duration),
    /// The client asked for something that is not possible and will be refused again. The message is safe to show.
    Refused {
        code: ErrorCode,
        message: String,
    },
    /// The safety filter has rejected a prompt. The message is safe to show.
    Blocked(String),
    /// The store does not answer or is full. The text is safe to show.
    Unavailable(&'static str),
    /// The server failed. The text is safe to show.
    Internal(&'static str),
    /// There is no such session to resume. The message is safe to show.
    NoSession(String),
    /// The session cannot go on from where another server has left it. The message is safe to show.
    CannotGoOn(String),
    /// A session of a router finds no worker, or cannot be had from the store now: the router tries again.
    NoPlace,
    /// A limit on the number of sessions is reached, or the server is going away.
    NotAdmitted(NotAdmitted),
    /// The server is going away.
    Draining,
}

impl From<NotAdmitted> for NotOpened {
    fn from(why: NotAdmitted) -> Self {
        Self::NotAdmitted(why)
    }
}

impl NotOpened {
    /// Returns the last state of a session that does not begin for this reason.
    pub(super) fn state(&self) -> SessionState {
        match self {
            Self::Gone => SessionState::Error,
            Self::Timeout(_) => SessionState::Timeout,
            Self::Violation(_)
            | Self::Refused { .. }
            | Self::Blocked(_)
            | Self::Unavailable(_)
            | Self::Internal(_)
            | Self::NoSession(_)
            | Self::CannotGoOn(_)
            | Self::NoPlace
            | Self::NotAdmitted(_)
            | Self::Draining => SessionState::Rejected,
        }
    }
}

/// Why an open session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// The connection was lost.
    Gone,
    /// The client has closed its connection properly.
    Closed,
    /// The session goes on elsewhere: there is no worker for it any more, the server is going away, or the router wants
    /// it to.
    Released,
    /// The link with the client's router is lost.
    Unlinked,
    Violation(TransportViolation),
    /// The client has ended the session for good.
    Left,
    /// The last segment that the session may have is finished.
    SegmentCap,
    /// The client sent nothing for this long, and nothing ran.
    Idle(Duration),
    /// The session has lasted this long, which is its limit.
    TimeLimit(Duration),
    /// The client reads too slowly.
    SlowClient,
    /// The client broke a rule of its dialect.
    RuleBroken,
    /// The model does not accept the session's state.
    StateRefused,
    /// No worker is left, and the session never had one.
    NoWorker,
    /// The server is going away.
    Draining,
    /// The session goes on over another connection, or an operator has ended it.
    LeaseLost,
    /// The key that let the client in is not valid any more.
    Unauthorized,
}

impl EndCause {
    /// Returns the cause's name in the session log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Closed => "closed",
            Self::Released => "released",
            Self::Unlinked => "unlinked",
            Self::Violation(_) => "broken",
            Self::Left => "left",
            Self::SegmentCap => "cap",
            Self::Idle(_) => "idle",
            Self::TimeLimit(_) => "time_limit",
            Self::SlowClient => "slow",
            Self::RuleBroken => "sent_binary",
            Self::StateRefused => "bad_state",
            Self::NoWorker => "no_gpu",
            Self::Draining => "draining",
            Self::LeaseLost => "lost",
            Self::Unauthorized => "unauthorized",
        }
    }

    /// Returns whether the client wants nothing more of the session.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Left | Self::SegmentCap)
    }

    /// Returns whether the session can go on later, on this server or another one.
    pub(super) fn may_go_on(self) -> bool {
        matches!(
            self,
            Self::Left | Self::SegmentCap | Self::Idle(_) | Self::TimeLimit(_)
        )
    }

    /// Returns what is expected of the session after an end for this cause.
    pub(super) fn expected(self) -> Expectation {
        match self {
            Self::Released | Self::Unlinked | Self::Draining | Self::LeaseLost => {
                Expectation::GoesOn
            }
            Self::Left | Self::SegmentCap | Self::Idle(_) | Self::TimeLimit(_) => Expectation::Over,
            Self::Gone
            | Self::Closed
            | Self::Violation(_)
            | Self::SlowClient
            | Self::RuleBroken
            | Self::StateRefused
            | Self::NoWorker
            | Self::Unauthorized => Expectation::ClientGone,
        }
    }

    /// Returns whether the events that the client has not taken yet are dropped.
    pub(super) fn drops_unsent(self) -> bool {
        matches!(
            self,
            Self::Violation(_) | Self::SlowClient | Self::LeaseLost | Self::Unlinked
        )
    }

    /// Returns the error that the client is told, for the causes that need an explanation: its code, a message that is
    /// safe to show, and whether the client may try again.
    pub(super) fn error(self) -> Option<(ErrorCode, &'static str, bool)> {
        match self {
            Self::NoWorker => Some((
                ErrorCode::GpuUnavailable,
                "no GPU worker can serve at the moment; try again in a minute",
                true,
            )),
            Self::LeaseLost => Some((
                ErrorCode::SessionRejected,
                "the session goes on over another connection, or was ended by the operator",
                false,
            )),
            Self::Unauthorized => Some((
                ErrorCode::Unauthorized,
                "the key that opened the session is not valid any more",
                false,
            )),
            _ => None,
        }
    }

    /// Returns the last state of a session that was in state `from`. Only an active session completes: a client that
    /// leaves earlier has not been served.
    pub(super) fn state(self, from: SessionState) -> SessionState {
        let state = match self {
            Self::Gone
            | Self::Closed
            | Self::Released
            | Self::Unlinked
            | Self::Left
            | Self::SegmentCap
            | Self::Draining => SessionState::Complete,
            Self::Idle(_) | Self::TimeLimit(_) => SessionState::Timeout,
            Self::NoWorker => SessionState::Rejected,
            Self::Violation(_)
            | Self::SlowClient
            | Self::RuleBroken
            | Self::StateRefused
            | Self::LeaseLost
            | Self::Unauthorized => SessionState::Error,
        };
        match (from, state) {
            (SessionState::Active, state) => state,
            (_, SessionState::Complete) => SessionState::Error,
            (SessionState::GpuBinding, SessionState::Rejected) => SessionState::Error,
            (_, state) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_active_session_completes_and_every_last_state_can_be_reached() {
        use SessionState::{Active, Complete, Error, GpuBinding, Queued, Rejected, Timeout};
        let idle = EndCause::Idle(Duration::from_secs(1));
        for (cause, from, expected) in [
            (EndCause::Left, Active, Complete),
            (EndCause::Left, GpuBinding, Error),
            (EndCause::Gone, Queued, Error),
            (EndCause::Closed, Active, Complete),
            (EndCause::NoWorker, Queued, Rejected),
            (EndCause::NoWorker, GpuBinding, Error),
            (idle, Active, Timeout),
            (EndCause::SlowClient, Active, Error),
            (EndCause::LeaseLost, Queued, Error),
        ] {
            assert_eq!(cause.state(from), expected, "{cause:?} from {from:?}");
            assert_eq!(from.transition(expected), Ok(expected), "{cause:?}");
        }
    }
}
