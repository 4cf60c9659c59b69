//! Why no language model has given a usable answer.

use std::time::Duration;

use tokio::time::Instant;

/// Why no language model has given a usable answer. The message is safe to show to a client.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LlmError {
    #[error("the language model did not answer in time")]
    Timeout,
    /// The connection failed. The text is the operator's: it is not part of the message.
    #[error("the language model cannot be reached")]
    Transport(String),
    /// HTTP 429, with the pause that `Retry-After` asks for.
    #[error("the language model has too much to do")]
    Busy { retry_after: Option<Duration> },
    /// HTTP 5xx, or another status that is neither success nor a client's error.
    #[error("the language model failed (HTTP {0})")]
    Server(u16),
    #[error("the language model gave no usable answer: {0}")]
    Unusable(&'static str),
    /// The answer has no prompts, or another number of them than were asked for. That may lie in the request, of which a client
    /// may have written most.
    #[error("the language model gave no usable answer: {0}")]
    NoRollout(&'static str),
    /// The model or its provider declined the prompt for its content.
    #[error("the language model declined the prompt")]
    Declined,
    /// HTTP 4xx for a reason that lies with the provider: the key, the account, the model. `code` is the provider's name
    /// for it; it is not part of the message.
    #[error("the language model is not available (HTTP {status})")]
    NotServed { status: u16, code: String },
    /// HTTP 4xx for a reason that lies in the request, so that any provider would refuse it.
    #[error("the language model refused the request (HTTP {0})")]
    Refused(u16),
    #[error("the server has no key for the language model")]
    NoKey,
    /// The circuit breakers of all providers are open.
    #[error("no language model is well at the moment")]
    AllCircuitsOpen,
    #[error("this server has no prompt enhancer")]
    NoProvider,
}

impl LlmError {
    /// Returns whether another provider may succeed with the same request.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout
            | Self::Transport(_)
            | Self::Busy { .. }
            | Self::Server(_)
            | Self::Unusable(_)
            | Self::NoRollout(_)
            | Self::Declined
            | Self::NotServed { .. }
            | Self::NoKey
            | Self::AllCircuitsOpen => true,
            Self::Refused(_) | Self::NoProvider => false,
        }
    }

    /// Returns the time at which the provider accepts calls again, if it has said so.
    pub(super) fn retry_at(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Busy { retry_after } => retry_after.map(|wait| now + wait),
            _ => None,
        }
    }

    /// Returns whether the failure says something about the provider, and not only about the request. Only such
    /// failures count for the circuit breaker.
    pub(super) fn is_providers_fault(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Declined | Self::NoRollout(_))
    }

    /// Returns the failure's name in traces.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Transport(_) => "unreachable",
            Self::Busy { .. } => "busy",
            Self::Server(_) => "server_error",
            Self::Unusable(_) | Self::NoRollout(_) => "unusable",
            Self::Declined => "declined",
            Self::NotServed { .. } => "not_served",
            Self::Refused(_) => "refused",
            Self::NoKey => "no_key",
            Self::AllCircuitsOpen => "resting",
            Self::NoProvider => "no_provider",
        }
    }

    /// Returns the message for the operator's log, with details that clients must not see.
    pub(super) fn detail(&self) -> String {
        match self {
            Self::Transport(detail) => format!("{self}: {detail}"),
            Self::NotServed { code, .. } if !code.is_empty() => format!("{self}: {code}"),
            other => other.to_string(),
        }
    }
}
