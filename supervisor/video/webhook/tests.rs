//! Against a real HTTP server that plays the receiver.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

/// The bytes 0 to 23.
const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

fn message() -> Message {
    let id = VideoId::parse("video_0123456789ab7fffbfffffffffffffff").unwrap();
    let pending = PendingWebhook {
        event: "evt_1".to_owned(),
        created_at_ms: 1_800_000_009_500,
    };
    Message::new(id, &VideoStatus::Completed, &pending)
}

/// Plays a receiver, which answers every request with one status and keeps what it was sent.
struct Receiver {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<(HeaderMap, String)>>>,
    _serving: JoinSet<()>,
}

impl Receiver {
    async fn answering(status: StatusCode) -> Self {
        let requests: Arc<Mutex<Vec<(HeaderMap, String)>>> = Arc::default();
        let app = Router::new()
            .route(
                "/{*path}",
                any(
                    async move |State(requests): State<Arc<Mutex<Vec<_>>>>,
                                headers: HeaderMap,
                                body: String|
                                -> Response {
                        requests.lock().unwrap().push((headers, body));
                        (status, [(header::LOCATION, "/elsewhere")]).into_response()
                    },
                ),
            )
            .with_state(requests.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            address,
            requests,
            _serving: serving,
        }
    }

    fn webhook(&self) -> Webhook {
        Webhook {
            url: format!("http://{}/jobs", self.address).parse().unwrap(),
            secret: (0..24).collect(),
        }
    }

    async fn answer(&self) -> Answer {
        Sender::new().send(&self.webhook(), &message()).await
    }
}

#[test]
fn a_message_is_signed_as_standard_webhooks_are() {
    // Made by Python's `hmac`: base64(HMAC-SHA256(secret, "evt_1.1800000010." + body)).
    let expected = "v1,jS3onVR2DLcqfulMk7px4twjgahU65JGato6Rh8bcpw=";
    let secret: Vec<u8> = (0..24).collect();
    assert_eq!(message().signature(&secret, 1_800_000_010), expected);
    assert_eq!(config::decode(SECRET), Some(secret));
    assert_eq!(config::decode("AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"), None);
}

#[tokio::test]
async fn a_receiver_gets_the_event_with_its_signature() {
    let receiver = Receiver::answering(StatusCode::ACCEPTED).await;
    assert_eq!(receiver.answer().await, Answer::Taken);
    let requests = receiver.requests.lock().unwrap();
    let [(headers, body)] = &requests[..] else {
        panic!("{requests:?}");
    };
    let expected = r#"{"id":"evt_1","object":"event","created_at":1800000009,"type":"video.completed","data":{"id":"video_0123456789ab7fffbfffffffffffffff"}}"#;
    assert_eq!(body, expected);
    let header = |name: &str| headers[name].to_str().unwrap();
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("webhook-id"), "evt_1");
    let timestamp = header("webhook-timestamp").parse().unwrap();
    assert!(timestamp > 1_700_000_000, "{timestamp}");
    let secret: Vec<u8> = (0..24).collect();
    let signature = message().signature(&secret, timestamp);
    assert_eq!(header("webhook-signature"), signature);
}

#[tokio::test]
async fn only_gone_ends_the_attempts_and_no_redirect_is_followed() {
    let gone = Receiver::answering(StatusCode::GONE).await;
    assert_eq!(gone.answer().await, Answer::Unwanted);
    for status in [
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::NOT_FOUND,
        StatusCode::TEMPORARY_REDIRECT,
    ] {
        let receiver = Receiver::answering(status).await;
        let failed = Answer::Failed(format!("HTTP status {}", status.as_u16()));
        assert_eq!(receiver.answer().await, failed);
        assert_eq!(receiver.requests.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_receiver_that_is_away_is_told_of_without_its_address() {
    let webhook = Receiver::answering(StatusCode::OK).await.webhook();
    let Answer::Failed(reason) = Sender::new().send(&webhook, &message()).await else {
        panic!("nobody is there");
    };
    assert!(!reason.contains("/jobs"), "{reason}");
}
