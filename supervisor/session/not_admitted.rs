//! The reasons why a client may not open a session.

use std::time::Duration;

use crate::auth::guard::NotLetIn;

/// Why a client may not open a session. The text is safe to show.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    #[error("the server is going away")]
    Draining,
    #[error(transparent)]
    Full(#[from] Full),
    /// The client has shown no key that lets it in.
    #[error("{0}")]
    Unauthorized(String),
    /// The client, or its tenant, asks for too much.
    #[error("{message}")]
    Limited {
        message: String,
        retry_after: Duration,
    },
}

impl From<NotLetIn> for NotAdmitted {
    fn from(
        NotLetIn {
            message,
            retry_after,
            ..
        }: NotLetIn,
    ) -> Self {
        match retry_after {
            Some(retry_after) => Self::Limited {
                message,
                retry_after,
            },
            None => Self::Unauthorized(message),
        }
    }
}

/// There is no room for another session.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("the server is full: it has {0} sessions, which is its limit")]
    Server(usize),
    #[error("your address has {0} sessions open, which is the limit for one address")]
    Client(usize),
    #[error("your tenant has {0} sessions open, which is its limit")]
    Tenant(usize),
    #[error("{0} sessions of your tenant wait for a GPU, which is its limit")]
    Waiting(usize),
}
