//! The states of a session that others can see.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SessionState {
    /// The client is connected; its opening message has not been accepted yet.
    Initializing,
    /// The session waits for a worker.
    Queued,
    /// A worker is being bound, for the first time or after a fault.
    GpuBinding,
    Active,
    Complete,
    Error,
    Timeout,
    Rejected,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a session that is {from:?} cannot become {to:?}")]
pub struct InvalidTransition {
    pub from: SessionState,
    pub to: SessionState,
}

impl SessionState {
    /// Moves along an allowed edge.
    ///
    /// # Errors
    /// Returns an error for any other edge, which is a programming error.
    pub fn transition(self, to: Self) -> Result<Self, InvalidTransition> {
        use SessionState as S;
        let allowed = match self {
            S::Initializing => matches!(
                to,
                S::Queued | S::GpuBinding | S::Rejected | S::Error | S::Timeout
            ),
            S::Queued => matches!(to, S::GpuBinding | S::Error | S::Timeout | S::Rejected),
            S::GpuBinding => matches!(to, S::Active | S::Error | S::Timeout),
            S::Active => matches!(
                to,
                S::Active | S::Complete | S::Error | S::Timeout | S::GpuBinding
            ),
            S::Complete | S::Error | S::Timeout | S::Rejected => false,
        };
        if allowed {
            Ok(to)
        } else {
            Err(InvalidTransition { from: self, to })
        }
    }

    /// Returns whether no other state follows this one.
    pub fn is_sink(self) -> bool {
        matches!(
            self,
            Self::Complete | Self::Error | Self::Timeout | Self::Rejected
        )
    }
}

#[cfg(test)]
mod tests {
    use super::SessionState::{self, *};

    const ALL: [SessionState; 8] = [
        Initializing,
        Queued,
        GpuBinding,
        Active,
        Complete,
        Error,
        Timeout,
        Rejected,
    ];

    #[test]
    fn only_the_edges_of_the_protocol_are_allowed() {
        let edges: &[(SessionState, &[SessionState])] = &[
            (
                Initializing,
                &[Queued, GpuBinding, Error, Timeout, Rejected],
            ),
            (Queued, &[GpuBinding, Error, Timeout, Rejected]),
            (GpuBinding, &[Active, Error, Timeout]),
            (Active, &[GpuBinding, Active, Complete, Error, Timeout]),
            (Complete, &[]),
            (Error, &[]),
            (Timeout, &[]),
            (Rejected, &[]),
        ];
        for (from, expected) in edges {
            let reached: Vec<_> = ALL
                .into_iter()
                .filter(|to| from.transition(*to).is_ok())
                .collect();
            assert_eq!(&reached, expected, "from {from:?}");
            assert_eq!(from.is_sink(), expected.is_empty());
        }
    }
}
