//! A provider: language models behind an OpenAI-compatible chat-completions endpoint, guarded by a circuit breaker.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::answer::one_line;
use super::breaker::{self, Breaker, CircuitState, Rejection};
use crate::causes::with_causes;

/// The largest body of an answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// The longest pause that a provider can ask for with `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// The time limit for opening a connection. It is part of the time limit of the call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a provider is found and how it is called.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
pub struct Models {
    pub enhance: String,
    pub auto_extend: String,
    pub rewrite: String,
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

/// A request for one completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct CompletionRequest<'a> {
    pub(super) model: &'a str,
    pub(super) system: &'a str,
    pub(super) user: &'a str,
    pub(super) temperature: f64,
    pub(super) max_tokens: u32,
}

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
    /// HTTP 4xx except 429.
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
            | Self::AllCircuitsOpen => true,
            Self::Refused(_) | Self::NoKey | Self::NoProvider => false,
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
    fn is_providers_fault(&self) -> bool {
        !matches!(self, Self::Refused(400 | 413 | 422))
    }

    /// Returns the message for the operator's log, with details that clients must not see.
    fn detail(&self) -> String {
        match self {
            Self::Transport(detail) => format!("{self}: {detail}"),
            other => other.to_string(),
        }
    }
}

/// A provider with the record of its calls.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) config: Config,
    calls: Mutex<CallRecord>,
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
        Self {
            config,
            calls: Mutex::default(),
        }
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
        let config = &self.provider.config;
        let limit = config.timeout.min(time_left);
        let result = match timeout(limit, call(client, config, request)).await {
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

/// Creates the HTTP client for calls to all providers. It keeps connections open between calls.
pub(super) fn client() -> Client {
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("fastvideo-supervisor/", env!("CARGO_PKG_VERSION")))
        .build()
        .expect("the TLS library is part of this program")
}

/// The body of a request to the endpoint.
#[derive(Serialize)]
struct RequestBody<'a> {
    model: &'a str,
    messages: [Message<'a>; 2],
    temperature: f64,
    max_tokens: u32,
    stream: bool,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

/// The part of the answer's body that is read.
#[derive(Deserialize)]
struct ResponseBody {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<ChoiceMessage>,
}

#[derive(Deserialize)]
struct ChoiceMessage {
    content: Option<String>,
}

/// Makes one call and returns the text that the model has written.
async fn call(
    client: &Client,
    config: &Config,
    request: CompletionRequest<'_>,
) -> Result<String, LlmError> {
    let body = RequestBody {
        model: request.model,
        messages: [
            Message {
                role: "system",
                content: request.system,
            },
            Message {
                role: "user",
                content: request.user,
            },
        ],
        temperature: request.temperature,
        max_tokens: request.max_tokens,
        stream: false,
    };
    let body = serde_json::to_vec(&body).map_err(|_| LlmError::Unusable("it cannot be asked"))?;
    let post = client
        .post(endpoint(&config.base_url))
        .header("content-type", "application/json")
        .body(body);
    let post = match &config.key {
        Key::NotNeeded => post,
        Key::Given(key) => post.bearer_auth(key),
        Key::Missing(_) => return Err(LlmError::NoKey),
    };
    let mut response = post.send().await.map_err(transport)?;
    if let Some(failure) = status_error(response.status(), response.headers()) {
        return Err(failure);
    }
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if answer.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(LlmError::Unusable("it is too long"));
        }
        answer.extend_from_slice(&chunk);
    }
    read(&answer)
}

fn endpoint(base_url: &Url) -> Url {
    let mut url = base_url.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["chat", "completions"]);
    }
    url
}

fn transport(error: reqwest::Error) -> LlmError {
    if error.is_timeout() {
        return LlmError::Timeout;
    }
    // The URL may contain secrets, which must not get into a log.
    LlmError::Transport(with_causes(&error.without_url()))
}

/// Returns the failure that a status code stands for, if any.
fn status_error(status: StatusCode, headers: &HeaderMap) -> Option<LlmError> {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Some(LlmError::Busy {
            retry_after: retry_after(headers),
        }),
        status if status.is_success() => None,
        status if status.is_client_error() => Some(LlmError::Refused(status.as_u16())),
        status => Some(LlmError::Server(status.as_u16())),
    }
}

/// Reads `Retry-After`: a number of seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => (httpdate::parse_http_date(value).ok()?)
            .duration_since(SystemTime::now())
            .unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// Reads the first choice's text, which must contain more than blanks.
fn read(answer: &[u8]) -> Result<String, LlmError> {
    let body: ResponseBody =
        serde_json::from_slice(answer).map_err(|_| LlmError::Unusable("it is no completion"))?;
    let choice = body.choices.into_iter().next();
    let content = choice
        .ok_or(LlmError::Unusable("it offers nothing"))?
        .message
        .and_then(|message| message.content)
        .unwrap_or_default();
    match one_line(&content) {
        Some(_) => Ok(content),
        None => Err(LlmError::Unusable("it says nothing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_lies_below_the_base_url() {
        let check = |base: &str, expected| {
            assert_eq!(endpoint(&Url::parse(base).unwrap()).as_str(), expected);
        };
        let expected = "https://api.groq.com/openai/v1/chat/completions";
        check("https://api.groq.com/openai/v1", expected);
        check("https://api.groq.com/openai/v1/", expected);
        check(
            "http://localhost:8080",
            "http://localhost:8080/chat/completions",
        );
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_has_a_limit() {
        let check = |value: &str, expected: Option<f64>| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            let given = retry_after(&headers).map(|wait| wait.as_secs_f64());
            assert_eq!(given, expected, "{value}");
        };
        check("2", Some(2.0));
        check("0.25", Some(0.25));
        check("86400", Some(600.0));
        check("Wed, 21 Oct 2015 07:28:00 GMT", Some(0.0));
        check("Wed, 21 Oct 2415 07:28:00 GMT", Some(600.0));
        check("-1", None);
        check("soon", None);
        check("inf", None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn a_key_is_never_shown() {
        assert_eq!(format!("{:?}", Key::Given("secret".to_owned())), "Given(…)");
    }
}
