//! A provider: language models behind an OpenAI-compatible chat-completions endpoint, guarded by a circuit breaker.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::{Client, Url};
use tokio::time::{Instant, timeout};

use super::breaker::{self, Breaker, CircuitState, Rejection};
use super::call::{self, CallError, CompletionRequest, RequestForm};
use super::llm_error::LlmError;

/// Where a provider is found and how it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The provider's kind: `cerebras`, `groq` or `openai_compatible`.
    pub name: String,
    /// The base of the API's addresses; `chat/completions` is appended to its path.
    pub base_url: Url,
    pub key: Key,
    pub models: Models,
    /// The time limit of one call.
    pub timeout: Duration,
}

/// The name of the model for each operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Models {
    pub enhance: String,
    pub auto_extend: String,
    pub rewrite: String,
    pub rollout: String,
}

impl Models {
    /// Returns the model of rollouts: the wanted one if it is among these.
    pub(super) fn for_rollout(&self, wanted: Option<&str>) -> &String {
        let all = [
            &self.rollout,
            &self.enhance,
            &self.auto_extend,
            &self.rewrite,
        ];
        let wanted = wanted.and_then(|wanted| all.into_iter().find(|model| *model == wanted));
        wanted.unwrap_or(&self.rollout)
    }
}

/// The API key. It is never shown, not by `Debug` either.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    NotNeeded,
    Given(String),
    /// The environment variable of this name holds no key: every call fails.
    Missing(String),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotNeeded => "NotNeeded",
            Self::Given(_) => "Given(…)",
            Self::Missing(_) => "Missing",
        })
    }
}

/// A provider with the record of its calls.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) config: Config,
    calls: Mutex<CallRecord>,
    /// The form of request that each model was found to accept.
    forms: Mutex<HashMap<String, RequestForm>>,
}

/// How the calls to a provider have gone since the start.
#[derive(Debug, Default)]
struct CallRecord {
    breaker: Breaker,
    calls: u64,
    failed: u64,
    last_failure: Option<(LlmError, SystemTime)>,
}

/// A provider's health, as `/status` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderStatus {
    pub name: String,
    /// The model that enhances prompts.
    pub model: String,
    pub circuit: CircuitState,
    /// Failures since the last success.
    pub failures: u32,
    pub calls: u64,
    pub failed: u64,
    pub last_failure: Option<(LlmError, SystemTime)>,
}

/// The circuit breaker's permission for one call. When it is dropped unused, or its call is cancelled, the breaker is told
/// that the call was abandoned.
#[derive(Debug)]
pub(super) struct CallPermit<'a> {
    provider: &'a Provider,
    is_reported: bool,
}

impl Provider {
    pub(super) fn new(config: Config) -> Self {
        let mut calls = CallRecord::default();
        if let Key::Missing(_) = config.key {
            calls.last_failure = Some((LlmError::NoKey, SystemTime::now()));
        }
        Self {
            config,
            calls: Mutex::new(calls),
            forms: Mutex::default(),
        }
    }

    /// Returns whether the provider can be called at all: its key is there.
    pub(super) fn has_key(&self) -> bool {
        !matches!(self.config.key, Key::Missing(_))
    }

    /// Asks the circuit breaker for permission to make one call.
    pub(super) fn try_acquire(&self) -> Result<CallPermit<'_>, Rejection> {
        self.calls().breaker.try_acquire(Instant::now())?;
        Ok(CallPermit {
            provider: self,
            is_reported: false,
        })
    }

    pub(super) fn status(&self) -> ProviderStatus {
        let calls = self.calls();
        ProviderStatus {
            name: self.config.name.clone(),
            model: self.config.models.enhance.clone(),
            circuit: calls.breaker.state(Instant::now()),
            failures: calls.breaker.failures(),
            calls: calls.calls,
            failed: calls.failed,
            last_failure: calls.last_failure.clone(),
        }
    }

    /// Makes one call, in the form that the model accepts.
    async fn call(
        &self,
        client: &Client,
        request: CompletionRequest<'_>,
    ) -> Result<String, LlmError> {
        let key = match &self.config.key {
            Key::NotNeeded => None,
            Key::Given(key) => Some(key.as_str()),
            Key::Missing(_) => return Err(LlmError::NoKey),
        };
        let known = self.forms().get(request.model).copied();
        let mut form = known.unwrap_or_else(|| RequestForm::of(request.model));
        loop {
            match call::call(client, &self.config.base_url, key, request, form).await {
                Err(CallError::Form(other)) => form = other,
                Err(CallError::Failed(failure)) => return Err(failure),
                Ok(text) => {
                    self.forms().insert(request.model.to_owned(), form);
                    return Ok(text);
                }
            }
        }
    }

    fn forms(&self) -> MutexGuard<'_, HashMap<String, RequestForm>> {
        self.forms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, CallRecord> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallPermit<'_> {
    /// Makes the call and reports its result to the circuit breaker. `accept` takes from the answer what is usable; an
    /// answer that it rejects counts as a failure of the provider.
    pub(super) async fn call<T>(
        mut self,
        client: &Client,
        request: CompletionRequest<'_>,
        time_left: Duration,
        breaker: breaker::Config,
        accept: impl Fn(&str) -> Result<T, LlmError>,
    ) -> Result<T, LlmError> {
        let limit = self.provider.config.timeout.min(time_left);
        let result = match timeout(limit, self.provider.call(client, request)).await {
            Ok(result) => result.and_then(|text| accept(&text)),
            Err(_) => Err(LlmError::Timeout),
        };
        self.report(result.as_ref().err(), breaker);
        result
    }

    fn report(&mut self, failure: Option<&LlmError>, config: breaker::Config) {
        self.is_reported = true;
        let now = Instant::now();
        let mut calls = self.provider.calls();
        calls.calls += 1;
        let Some(failure) = failure else {
            calls.breaker.succeeded();
            return;
        };
        calls.failed += 1;
        calls.last_failure = Some((failure.clone(), SystemTime::now()));
        match failure {
            LlmError::Busy {
                retry_after: Some(wait),
            } => calls.breaker.rate_limited(now + *wait),
            failure if failure.is_providers_fault() => calls.breaker.failed(config, now),
            _ => calls.breaker.abandoned(),
        }
        let rests = calls.breaker.state(now) == CircuitState::Open;
        drop(calls);
        tracing::warn!(
            provider = self.provider.config.name,
            failure = failure.detail(),
            rests,
            "language model did not answer"
        );
    }
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        if !self.is_reported {
            self.provider.calls().breaker.abandoned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        assert_eq!(format!("{:?}", Key::Given("secret".to_owned())), "Given(…)");
    }
}
