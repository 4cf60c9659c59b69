//! The message that a job has ended, and how it is sent once: signed, as the Standard Webhooks have it.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use fastvideo_proto::ids::VideoId;
use fastvideo_proto::stored_video::{PendingWebhook, VideoStatus};
use hmac::{Hmac, Mac};
use reqwest::{Client, StatusCode};
use serde::Serialize;
use sha2::Sha256;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::spawn_blocking;

pub(super) use self::config::Webhook;
use super::clock::{millis, unix_ms};
use crate::causes::with_causes;
use crate::tls;

pub(super) mod config;
#[cfg(test)]
mod tests;

/// How long after the end of its job a message is still sent.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// How long a receiver may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of messages that are being sent at one moment.
const MAX_SENDING: usize = 16;

/// Sends messages.
#[derive(Debug)]
pub(super) struct Sender {
    /// Made for the first message: it reads the authorities of the system.
    client: OnceCell<Client>,
    sending: Semaphore,
}

/// A message, as its receiver gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// The same for each attempt, so that a receiver knows what it has already.
    pub(super) event: String,
    created_at_ms: u64,
    body: Bytes,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    /// Unix time in seconds.
    created_at: u64,
    r#type: &'static str,
    data: Data,
}

#[derive(Serialize)]
struct Data {
    id: String,
}

/// What a receiver has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Taken,
    /// It wants no such messages any more.
    Unwanted,
    /// It may take the message later.
    Failed(String),
}

impl Message {
    pub(super) fn new(id: VideoId, status: &VideoStatus, pending: &PendingWebhook) -> Self {
        let body = Body {
            id: &pending.event,
            object: "event",
            created_at: pending.created_at_ms / 1000,
            r#type: match status {
                VideoStatus::Completed => "video.completed",
                _ => "video.failed",
            },
            data: Data { id: id.to_string() },
        };
        let body = serde_json::to_vec(&body).expect("strings and numbers are JSON");
        Self {
            event: pending.event.clone(),
            created_at_ms: pending.created_at_ms,
            body: body.into(),
        }
    }

    /// Returns the value of `webhook-signature` for a message that is sent at that time.
    fn signature(&self, secret: &[u8], timestamp: u64) -> String {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
        mac.update(format!("{}.{timestamp}.", self.event).as_bytes());
        mac.update(&self.body);
        let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
        format!("v1,{signature}")
    }

    pub(super) fn is_too_old(&self) -> bool {
        unix_ms().saturating_sub(self.created_at_ms) > millis(PATIENCE)
    }
}

impl Answer {
    const TAKEN: &str = "taken";
    const UNWANTED: &str = "unwanted";
    const FAILED: &str = "failed";
    /// The names of all answers, in metrics.
    pub(super) const NAMES: [&str; 3] = [Self::TAKEN, Self::UNWANTED, Self::FAILED];

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Taken => Self::TAKEN,
            Self::Unwanted => Self::UNWANTED,
            Self::Failed(_) => Self::FAILED,
        }
    }
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            client: OnceCell::new(),
            sending: Semaphore::new(MAX_SENDING),
        }
    }

    /// Sends a message once.
    pub(super) async fn send(&self, webhook: &Webhook, message: &Message) -> Answer {
        let _turn = self.sending.acquire().await;
        let client = match self.client().await {
            Ok(client) => client,
            Err(error) => return Answer::Failed(error),
        };
        let timestamp = unix_ms() / 1000;
        let post = client
            .post(webhook.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &message.event)
            .header("webhook-timestamp", timestamp)
            .header(
                "webhook-signature",
                message.signature(&webhook.secret, timestamp),
            )
            .body(message.body.clone());
        match post.send().await.map(|answer| answer.status()) {
            Ok(status) if status.is_success() => Answer::Taken,
            Ok(StatusCode::GONE) => Answer::Unwanted,
            Ok(status) => Answer::Failed(format!("HTTP status {}", status.as_u16())),
            // The address may have a secret in its path.
            Err(error) => Answer::Failed(with_causes(&error.without_url())),
        }
    }

    async fn client(&self) -> Result<&Client, String> {
        let made = async {
            let client = spawn_blocking(|| {
                tls::http_client()
                    .redirect(reqwest::redirect::Policy::none())
                    .timeout(ANSWER_TIMEOUT)
                    .user_agent(concat!("fastvideo-supervisor/", env!("CARGO_PKG_VERSION")))
                    .build()
            });
            let client = client.await.map_err(|error| with_causes(&error))?;
            client.map_err(|error| with_causes(&error))
        };
        self.client.get_or_try_init(|| made).await
    }
}
