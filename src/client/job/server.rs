//! The requests about jobs, and what their answers mean.

use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use fastvideo_proto::api::videos::{OpenAiError, OpenAiErrorBody, Video, VideoRequest};
use fastvideo_supervisor_core::causes::with_causes;
use fastvideo_supervisor_core::tls;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, IF_RANGE, RANGE, RETRY_AFTER,
};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode};

use crate::client::args::{CA_FILE, ValidJob};
use crate::client::connection::CONNECT_TIMEOUT;

/// How long the server may take to answer, beyond the time that it is asked to wait.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to receive a request with an image, too.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
/// The longest pause that a server can ask for with `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The jobs of a server.
#[derive(Debug)]
pub(super) struct Server {
    client: Client,
    /// The address of the jobs.
    url: String,
}

/// Why a request is not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("cannot connect to {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("the connection broke: {0}")]
    Broke(String),
    /// The server does not do it now, but may do it later.
    #[error("{refusal}")]
    Busy {
        refusal: Refusal,
        retry_after: Duration,
    },
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The same request would fail again.
    #[error(transparent)]
    Final(#[from] anyhow::Error),
}

/// An answer that is no success.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    url: String,
    /// What the server says; `None` when it is not what jobs are answered with.
    said: Option<OpenAiError>,
}

/// From where on a file is wanted, and the tag of the file whose beginning is there.
pub(super) type Rest<'a> = (u64, &'a HeaderValue);

impl Server {
    /// # Errors
    /// Returns an error when the address is not valid, or TLS cannot be set up.
    pub(super) fn new(args: &ValidJob) -> anyhow::Result<Self> {
        let url = args.url();
        reqwest::Url::parse(&url).with_context(|| format!("--url: `{url}` is no address"))?;
        let mut headers = HeaderMap::new();
        if let Some(authorization) = &args.access.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let client = match &args.access.tls {
            Some(tls) => Client::builder().tls_backend_preconfigured(tls.as_ref().clone()),
            None => tls::http_client(),
        };
        let client = client
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .default_headers(headers)
            .build()
            .context("cannot ask over HTTP")?;
        Ok(Self { client, url })
    }

    /// Creates a job, unless there is one that was created with this key.
    pub(super) async fn create(&self, key: &str, video: &VideoRequest) -> Result<Video, Failure> {
        let body = serde_json::to_vec(video).context("the request cannot be written as JSON")?;
        let request = self
            .client
            .post(&self.url)
            .header("idempotency-key", key)
            .header(CONTENT_TYPE, "application/json")
            .timeout(UPLOAD_TIMEOUT)
            .body(body);
        self.video(request).await
    }

    /// Returns a job when its status or its progress changes, or after that time.
    pub(super) async fn retrieve(&self, id: &str, wait: Duration) -> Result<Video, Failure> {
        let url = format!("{}/{id}?wait_seconds={}", self.url, wait.as_secs());
        let request = self.client.get(url).timeout(wait + PATIENCE);
        self.video(request).await
    }

    /// Asks for the end of a job, and returns it as it is now.
    pub(super) async fn cancel(&self, id: &str) -> Result<Video, Failure> {
        let url = format!("{}/{id}/cancel", self.url);
        self.video(self.client.post(url).timeout(PATIENCE)).await
    }

    /// Begins to fetch the video of a job, or the rest of it.
    pub(super) async fn content(
        &self,
        id: &str,
        rest: Option<Rest<'_>>,
    ) -> Result<Response, Failure> {
        let mut request = self.client.get(format!("{}/{id}/content", self.url));
        if let Some((from, tag)) = rest {
            request = request
                .header(RANGE, format!("bytes={from}-"))
                .header(IF_RANGE, tag);
        }
        in_time(self.answered(request)).await
    }

    /// Returns the next part of an answer's body; `None` at its end.
    pub(super) async fn chunk(&self, answer: &mut Response) -> Result<Option<Bytes>, Failure> {
        in_time(async { answer.chunk().await.map_err(|error| self.lost(error)) }).await
    }

    async fn video(&self, request: RequestBuilder) -> Result<Video, Failure> {
        let answer = self.answered(request).await?;
        let body = answer.bytes().await.map_err(|error| self.lost(error))?;
        let video = serde_json::from_slice(&body);
        Ok(video.with_context(|| format!("{} answered with what is no job", self.url))?)
    }

    async fn answered(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let answer = request.send().await.map_err(|error| self.lost(error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.map_err(|error| self.lost(error))?;
        let refusal = Refusal {
            status,
            url: self.url.clone(),
            said: read(&body),
        };
        Err(match may_succeed_later(status, &headers) {
            true => Failure::Busy {
                refusal,
                retry_after: retry_after(&headers),
            },
            false => Failure::Refused(refusal),
        })
    }

    fn lost(&self, error: reqwest::Error) -> Failure {
        let error = error.without_url();
        let url = self.url.clone();
        if let Some(reason) = tls::handshake_failure(&error, CA_FILE) {
            return Failure::Final(anyhow!("cannot connect to {url}: {reason}"));
        }
        let reason = with_causes(&error);
        match error.is_connect() {
            true => Failure::Unreachable { url, reason },
            false => Failure::Broke(reason),
        }
    }
}

impl Failure {
    /// Returns how long the server wants to be left alone.
    pub(super) fn retry_after(&self) -> Duration {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => Duration::ZERO,
        }
    }
}

impl Refusal {
    fn text(&self) -> String {
        let Self { status, url, said } = self;
        let Some(error) = said else {
            return format!("{url} answered {status}");
        };
        let code = match &error.param {
            Some(param) => format!("{}, param `{param}`", error.code),
            None => error.code.to_string(),
        };
        let hint = match *status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; see --api-key-env",
            _ => "",
        };
        format!("{} ({code}){hint}", error.message)
    }
}

/// Reads why a request was refused.
fn read(body: &[u8]) -> Option<OpenAiError> {
    let body: OpenAiErrorBody = serde_json::from_slice(body).ok()?;
    Some(body.error)
}

/// Returns whether a request that was refused may be repeated: as OpenAI's clients do, unless the server says otherwise.
fn may_succeed_later(status: StatusCode, headers: &HeaderMap) -> bool {
    let told = headers.get("x-should-retry");
    match told.map(HeaderValue::as_bytes) {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => matches!(status.as_u16(), 408 | 409 | 429) || status.is_server_error(),
    }
}

/// Reads `Retry-After` in seconds.
fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(RETRY_AFTER);
    let seconds = seconds.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or_default()).min(MAX_RETRY_AFTER)
}

/// Waits for the next sign of a server that is in the middle of an answer.
async fn in_time<T>(sign: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, sign).await {
        Ok(result) => result,
        Err(_) => {
            let limit = PATIENCE.as_secs();
            Err(Failure::Broke(format!("nothing came within {limit} s")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(given: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = given.iter().map(|&(name, value)| {
            let name = name.parse::<reqwest::header::HeaderName>().unwrap();
            (name, HeaderValue::from_static(value))
        });
        pairs.collect()
    }

    #[test]
    fn a_request_is_repeated_where_that_may_help() {
        let check = |status: u16, told: &[(&'static str, &'static str)], expected: bool| {
            let status = StatusCode::from_u16(status).unwrap();
            let given = may_succeed_later(status, &headers(told));
            assert_eq!(given, expected, "{status} {told:?}");
        };
        for status in [408, 409, 429, 500, 502, 503] {
            check(status, &[], true);
            check(status, &[("x-should-retry", "false")], false);
        }
        for status in [301, 400, 401, 403, 404, 413, 422] {
            check(status, &[], false);
            check(status, &[("x-should-retry", "true")], true);
        }
    }

    #[test]
    fn a_server_may_ask_for_a_pause() {
        let check = |value: &'static str, expected: u64| {
            let wait = retry_after(&headers(&[("retry-after", value)]));
            assert_eq!(wait.as_secs(), expected, "{value}");
        };
        check("5", 5);
        check("86400", 60);
        check("soon", 0);
        check("-1", 0);
        assert_eq!(retry_after(&HeaderMap::new()), Duration::ZERO);
    }

    #[test]
    fn a_refusal_names_the_field_and_the_reason() {
        let check = |status: u16, body: &str, expected: &str| {
            let refusal = Refusal {
                status: StatusCode::from_u16(status).unwrap(),
                url: "http://host/v1/videos".to_owned(),
                said: read(body.as_bytes()),
            };
            assert_eq!(refusal.to_string(), expected);
        };
        check(
            400,
            r#"{"error": {"message": "`fps`: expected from 1 to 60, got 61", "type": "invalid_request_error", "param": "fps", "code": "invalid_value"}}"#,
            "`fps`: expected from 1 to 60, got 61 (invalid_value, param `fps`)",
        );
        check(
            401,
            r#"{"error": {"message": "a key is needed", "type": "invalid_request_error", "param": null, "code": "invalid_api_key"}}"#,
            "a key is needed (invalid_api_key); see --api-key-env",
        );
        check(
            404,
            "<html>",
            "http://host/v1/videos answered 404 Not Found",
        );
    }
}
