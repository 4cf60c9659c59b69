//! The prompt enhancer and the safety filter in `/status`.

use fastvideo_proto::api::prompts::{
    LastFailure, Origin, Origins, PromptStatus, ProviderEntry, ProviderState, SafetyState,
    SafetyStatus,
};

use crate::ingress::timestamp::rfc3339;
use crate::prompt::enhancer::{CircuitState, ProviderStatus, Status};
use crate::prompt::{self, Enhancer, SafetyFilter, safety};

pub(super) fn enhancer_status(enhancer: &Enhancer) -> PromptStatus {
    let Status {
        providers,
        system_prompts,
        cached,
        cache_hits,
    } = enhancer.status();
    PromptStatus {
        providers: providers.into_iter().map(provider).collect(),
        system_prompts: system_prompts.into(),
        cached,
        cache_hits,
    }
}

/// Returns the entry of the safety filter. `filter` is `None` when prompts are not screened.
pub(super) fn safety_status(filter: Option<&SafetyFilter>) -> SafetyStatus {
    let safety::SafetyStatus {
        state,
        reason,
        screened,
        blocked,
    } = filter.map_or_else(safety::SafetyStatus::off, SafetyFilter::status);
    SafetyStatus {
        state: state.into(),
        reason,
        screened,
        blocked,
    }
}

fn provider(status: ProviderStatus) -> ProviderEntry {
    ProviderEntry {
        provider: status.name,
        model: status.model,
        state: status.circuit.into(),
        failures_in_a_row: status.failures,
        calls: status.calls,
        failed_calls: status.failed,
        last_failure: status.last_failure.map(|(failure, at)| LastFailure {
            reason: failure.to_string(),
            ts: rfc3339(at),
        }),
    }
}

impl From<CircuitState> for ProviderState {
    fn from(circuit: CircuitState) -> Self {
        match circuit {
            CircuitState::Closed => Self::Ok,
            CircuitState::Open => Self::Resting,
            CircuitState::HalfOpen => Self::Trying,
            CircuitState::RateLimited => Self::Waiting,
        }
    }
}

impl From<safety::SafetyState> for SafetyState {
    fn from(state: safety::SafetyState) -> Self {
        match state {
            safety::SafetyState::Off => Self::Off,
            safety::SafetyState::NotLoaded => Self::NotLoaded,
            safety::SafetyState::Ready => Self::Ready,
            safety::SafetyState::Unavailable => Self::Unavailable,
        }
    }
}

impl From<prompt::Origins> for Origins {
    fn from(origins: prompt::Origins) -> Self {
        Self {
            enhance: origins.enhance.into(),
            auto_extend: origins.auto_extend.into(),
            rewrite: origins.rewrite.into(),
            rollout_new: origins.rollout_new.into(),
            rollout_edit: origins.rollout_edit.into(),
        }
    }
}

impl From<prompt::Origin> for Origin {
    fn from(origin: prompt::Origin) -> Self {
        match origin {
            prompt::Origin::Default => Self::Default,
            prompt::Origin::File => Self::File,
        }
    }
}
