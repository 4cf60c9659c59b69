//! One call of a language model over HTTP.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};

use super::completion::{self, Message, NoText, Refusal, RequestBody, ResponseFormat};
use super::llm_error::LlmError;
use crate::causes::with_causes;
use crate::tls;

/// The largest body of an answer that is read; thinking may be much longer than the prompt after it.
const MAX_ANSWER_BYTES: usize = 256 << 10;
/// The longest pause that a provider can ask for with `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// The time limit for opening a connection. It is part of the time limit of the call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept that is not used, and how many to one provider. One whose peer has silently gone is
/// found by the call that it fails.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_IDLE: usize = 4;
/// How long a peer may leave what was sent unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// A request for one completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct CompletionRequest<'a> {
    pub(super) model: &'a str,
    pub(super) system: &'a str,
    pub(super) user: &'a str,
    pub(super) temperature: f64,
    pub(super) max_tokens: u32,
    /// Whether the answer is to be one JSON object.
    pub(super) wants_json: bool,
}

/// Which of the parameters a request has that some servers refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestForm {
    limit: TokenLimit,
    has_temperature: bool,
    /// Whether the model is asked to think little.
    has_effort: bool,
    /// Whether the format of the answer is asked for, where it is to be JSON.
    has_format: bool,
}

/// How the limit on tokens is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenLimit {
    MaxTokens,
    MaxCompletionTokens,
    None,
}

/// Why a call has no text.
#[derive(Debug)]
pub(super) enum CallError {
    /// The server refuses a parameter; the request is to be sent again in this form.
    Form(RequestForm),
    Failed(LlmError),
}

impl From<LlmError> for CallError {
    fn from(failure: LlmError) -> Self {
        Self::Failed(failure)
    }
}

impl RequestForm {
    /// Returns the form to begin with. Only gpt-oss is known to accept `reasoning_effort` wherever it is served.
    pub(super) fn of(model: &str) -> Self {
        Self {
            limit: TokenLimit::MaxTokens,
            has_temperature: true,
            has_effort: model.to_ascii_lowercase().contains("gpt-oss"),
            has_format: true,
        }
    }

    /// Returns the form without the parameter that was refused; `None` when it was none of these.
    fn without(mut self, refusal: &Refusal, wants_json: bool) -> Option<Self> {
        let names = |parameter| refusal.names(parameter);
        let names_limit = names("max_tokens") || names("max_completion_tokens");
        match self.limit {
            _ if self.has_effort && names("reasoning_effort") => self.has_effort = false,
            _ if wants_json && self.has_format && names("response_format") => {
                self.has_format = false;
            }
            _ if self.has_temperature && names("temperature") => self.has_temperature = false,
            TokenLimit::MaxTokens if names_limit => self.limit = TokenLimit::MaxCompletionTokens,
            TokenLimit::MaxCompletionTokens if names_limit => self.limit = TokenLimit::None,
            _ => return None,
        }
        Some(self)
    }
}

/// Creates the HTTP client for calls to all providers. It keeps connections open between calls.
pub(super) fn client() -> Client {
    tls::http_client()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE)
        .tcp_user_timeout(UNACKNOWLEDGED)
        .http2_keep_alive_interval(UNACKNOWLEDGED)
        .http2_keep_alive_timeout(UNACKNOWLEDGED)
        .user_agent(concat!("fastvideo-supervisor/", env!("CARGO_PKG_VERSION")))
        .build()
        .expect("the TLS library is part of this program")
}

/// Makes one call and returns the text that the model has written, without its thinking.
pub(super) async fn call(
    client: &Client,
    base_url: &Url,
    key: Option<&str>,
    request: CompletionRequest<'_>,
    form: RequestForm,
) -> Result<String, CallError> {
    let limit = |named| (form.limit == named).then_some(request.max_tokens);
    let message = |role, content| Message { role, content };
    let body = RequestBody {
        model: request.model,
        messages: [
            message("system", request.system),
            message("user", request.user),
        ],
        temperature: form.has_temperature.then_some(request.temperature),
        max_tokens: limit(TokenLimit::MaxTokens),
        max_completion_tokens: limit(TokenLimit::MaxCompletionTokens),
        reasoning_effort: form.has_effort.then_some("low"),
        response_format: (request.wants_json && form.has_format)
            .then_some(ResponseFormat::JsonObject),
        stream: false,
    };
    let body = serde_json::to_vec(&body).map_err(|_| LlmError::Unusable("it cannot be asked"))?;
    let post = client
        .post(endpoint(base_url))
        .header("content-type", "application/json")
        .body(body);
    let post = match key {
        Some(key) => post.bearer_auth(key),
        None => post,
    };
    let response = post.send().await.map_err(transport)?;
    let status = response.status();
    if status.is_success() {
        let answer = body_of(response).await?;
        return Ok(completion::read(&answer).map_err(LlmError::from)?);
    }
    if status == StatusCode::TOO_MANY_REQUESTS {
        let retry_after = retry_after(response.headers());
        return Err(LlmError::Busy { retry_after }.into());
    }
    if !status.is_client_error() {
        return Err(LlmError::Server(status.as_u16()).into());
    }
    // Without a body, the status says enough.
    let body = body_of(response).await.unwrap_or_default();
    let refusal = Refusal::read(&body);
    Err(refused(status.as_u16(), &refusal, request.wants_json, form))
}

/// Tells what an HTTP 4xx other than 429 means.
fn refused(status: u16, refusal: &Refusal, wants_json: bool, form: RequestForm) -> CallError {
    let is_about_request = matches!(status, 400 | 422);
    if is_about_request && let Some(other) = form.without(refusal, wants_json) {
        return CallError::Form(other);
    }
    CallError::Failed(if refusal.is_declined() {
        LlmError::Declined
    } else if is_about_request && !refusal.is_providers() {
        // Not every server knows the format, and one that does not may refuse it without naming it.
        if wants_json && form.has_format {
            let has_format = false;
            return CallError::Form(RequestForm { has_format, ..form });
        }
        LlmError::Refused(status)
    } else {
        let code = refusal.code.clone();
        LlmError::NotServed { status, code }
    })
}

impl From<NoText> for LlmError {
    fn from(no_text: NoText) -> Self {
        match no_text {
            NoText::Unusable(why) => Self::Unusable(why),
            NoText::Declined => Self::Declined,
        }
    }
}

async fn body_of(mut response: Response) -> Result<Vec<u8>, LlmError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(LlmError::Unusable("it is too long"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
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
}
