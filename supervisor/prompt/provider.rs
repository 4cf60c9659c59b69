//! One model behind an OpenAI-compatible chat-completions endpoint.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::answer::one_line;
use super::breaker::{self, Breaker, Verdict};

/// Of an answer, headers not counted.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// A provider is not left alone for longer than this, whatever it asks for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// For a connection; part of the time that a call may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a model is found and how it is asked.
#[derive(Clone, Debug)]
pub struct Config {
    /// `cerebras`, `groq` or `openai_compatible`.
    pub name: String,
    /// `chat/completions` comes behind it.
    pub base_url: Url,
    pub key: Key,
    pub models: Models,
    /// For one call.
    pub timeout: Duration,
}

/// The model for each operation.
#[derive(Clone, Debug)]
pub struct Models {
    pub enhance: String,
    pub auto_extend: String,
    pub rewrite: String,
}

/// What a provider knows its customer by. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    NotNeeded,
    Given(String),
    /// Every call fails. The variable that holds none.
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

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    pub(super) model: &'a str,
    pub(super) system: &'a str,
    pub(super) user: &'a str,
    pub(super) temperature: f64,
    pub(super) max_tokens: u32,
}

/// Why there is no answer. The text is safe to show to a client.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    #[error("the language model did not answer in time")]
    Timeout,
    #[error("the language model cannot be reached")]
    Transport(String),
    #[error("the language model has too much to do")]
    Busy { retry_after: Option<Duration> },
    #[error("the language model failed (HTTP {0})")]
    Server(u16),
    #[error("the language model gave no usable answer: {0}")]
    Unusable(&'static str),
    #[error("the language model refused the request (HTTP {0})")]
    Refused(u16),
    #[error("the server has no key for the language model")]
    NoKey,
    #[error("no language model is well at the moment")]
    AllRest,
    #[error("this server has no prompt enhancer")]
    NoProvider,
}

impl Failure {
    /// Another provider may do better.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout
            | Self::Transport(_)
            | Self::Busy { .. }
            | Self::Server(_)
            | Self::Unusable(_)
            | Self::AllRest => true,
            Self::Refused(_) | Self::NoKey | Self::NoProvider => false,
        }
    }

    /// When the provider has time, as it says itself.
    pub(super) fn come_back(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Busy { retry_after } => retry_after.map(|wait| now + wait),
            _ => None,
        }
    }

    /// It says something about the provider, and not about what was asked.
    fn counts(&self) -> bool {
        !matches!(self, Self::Refused(400 | 413 | 422))
    }

    /// What only the operator should know.
    fn detail(&self) -> String {
        match self {
            Self::Transport(detail) => format!("{self}: {detail}"),
            other => other.to_string(),
        }
    }
}

/// A provider, with what is known of its health.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) config: Config,
    breaker: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    breaker: Breaker,
    calls: u64,
    failed: u64,
    last_failure: Option<(Failure, SystemTime)>,
}

/// As `/status` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderStatus {
    pub name: String,
    pub model: String,
    pub standing: breaker::Standing,
    /// In a row.
    pub failures: u32,
    pub calls: u64,
    pub failed: u64,
    pub last_failure: Option<(Failure, SystemTime)>,
}

/// Leave to ask a provider once.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    provider: &'a Provider,
    settled: bool,
}

impl Provider {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            breaker: Mutex::default(),
        }
    }

    /// A turn, unless the provider is left alone at the moment.
    pub(super) fn turn(&self) -> Result<Turn<'_>, Verdict> {
        match self.record().breaker.ask(Instant::now()) {
            Verdict::Ask => Ok(Turn {
                provider: self,
                settled: false,
            }),
            other => Err(other),
        }
    }

    pub(super) fn status(&self) -> ProviderStatus {
        let record = self.record();
        ProviderStatus {
            name: self.config.name.clone(),
            model: self.config.models.enhance.clone(),
            standing: record.breaker.standing(Instant::now()),
            failures: record.breaker.failures(),
            calls: record.calls,
            failed: record.failed,
            last_failure: record.last_failure.clone(),
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Asks, and keeps in mind how it went. `accept` takes what is usable of an answer.
    pub(super) async fn ask<T>(
        mut self,
        client: &Client,
        question: Question<'_>,
        patience: Duration,
        breaker: breaker::Config,
        accept: impl Fn(&str) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let config = &self.provider.config;
        let limit = config.timeout.min(patience);
        let result = match timeout(limit, call(client, config, question)).await {
            Ok(result) => result.and_then(|text| accept(&text)),
            Err(_) => Err(Failure::Timeout),
        };
        self.settle(result.as_ref().err(), breaker);
        result
    }

    fn settle(&mut self, failure: Option<&Failure>, config: breaker::Config) {
        self.settled = true;
        let now = Instant::now();
        let mut record = self.provider.record();
        record.calls += 1;
        let Some(failure) = failure else {
            record.breaker.succeeded();
            return;
        };
        record.failed += 1;
        record.last_failure = Some((failure.clone(), SystemTime::now()));
        match failure {
            Failure::Busy {
                retry_after: Some(wait),
            } => record.breaker.told_to_wait(now + *wait),
            failure if failure.counts() => record.breaker.failed(config, now),
            _ => record.breaker.left(),
        }
        let rests = record.breaker.standing(now) == breaker::Standing::Resting;
        drop(record);
        tracing::warn!(
            provider = self.provider.config.name,
            failure = failure.detail(),
            rests,
            "language model did not answer"
        );
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.provider.record().breaker.left();
        }
    }
}

/// For calls to all providers; keeps connections open between them.
pub(super) fn client() -> Client {
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("fastvideo-supervisor/", env!("CARGO_PKG_VERSION")))
        .build()
        .expect("the TLS library is part of this program")
}

/// A chat completion as it is asked for.
#[derive(Serialize)]
struct Body<'a> {
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

/// What is read of an answer.
#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Said>,
}

#[derive(Deserialize)]
struct Said {
    content: Option<String>,
}

async fn call(client: &Client, config: &Config, question: Question<'_>) -> Result<String, Failure> {
    let body = Body {
        model: question.model,
        messages: [
            Message {
                role: "system",
                content: question.system,
            },
            Message {
                role: "user",
                content: question.user,
            },
        ],
        temperature: question.temperature,
        max_tokens: question.max_tokens,
        stream: false,
    };
    let body = serde_json::to_vec(&body).map_err(|_| Failure::Unusable("it cannot be asked"))?;
    let request = client
        .post(endpoint(&config.base_url))
        .header("content-type", "application/json")
        .body(body);
    let request = match &config.key {
        Key::NotNeeded => request,
        Key::Given(key) => request.bearer_auth(key),
        Key::Missing(_) => return Err(Failure::NoKey),
    };
    let mut response = request.send().await.map_err(transport)?;
    if let Some(failure) = refusal(response.status(), response.headers()) {
        return Err(failure);
    }
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if answer.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(Failure::Unusable("it is too long"));
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

fn transport(error: reqwest::Error) -> Failure {
    if error.is_timeout() {
        return Failure::Timeout;
    }
    // The address may hold what belongs to nobody's log.
    let error = error.without_url();
    let mut detail = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        detail = format!("{detail}: {inner}");
        cause = inner.source();
    }
    Failure::Transport(detail)
}

fn refusal(status: StatusCode, headers: &HeaderMap) -> Option<Failure> {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Some(Failure::Busy {
            retry_after: retry_after(headers),
        }),
        status if status.is_success() => None,
        status if status.is_client_error() => Some(Failure::Refused(status.as_u16())),
        status => Some(Failure::Server(status.as_u16())),
    }
}

/// Seconds from now, or a date.
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

fn read(answer: &[u8]) -> Result<String, Failure> {
    let completion: Completion =
        serde_json::from_slice(answer).map_err(|_| Failure::Unusable("it is no completion"))?;
    let choice = completion.choices.into_iter().next();
    let content = choice
        .ok_or(Failure::Unusable("it offers nothing"))?
        .message
        .and_then(|message| message.content)
        .unwrap_or_default();
    match one_line(&content) {
        Some(_) => Ok(content),
        None => Err(Failure::Unusable("it says nothing")),
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
