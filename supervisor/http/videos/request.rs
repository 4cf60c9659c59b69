//! A request that creates a video, as it comes in over HTTP: its body, which may have an image within, and its idempotency key.

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::ask::{Ask, Kind};
use super::error::VideoError;
use super::form;

/// Bodies above this size are read on a thread for blocking work.
const LARGE_BODY_BYTES: usize = 64 << 10;
/// The longest idempotency key.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// Reads the body of a request, in either form. `max_image_bytes` is the limit on the image's file. The image takes as much memory
/// as the body again: hold the body's share until the image is gone.
///
/// # Errors
/// Returns a refusal when the body cannot be read, or a field is missing, is none that there is, or is out of its limits.
pub(in crate::http) async fn read(
    kind: Kind,
    headers: &HeaderMap,
    body: Bytes,
    max_image_bytes: usize,
) -> Result<Ask, VideoError> {
    let content_type = headers.get(CONTENT_TYPE);
    let content_type = content_type.map(|it| String::from_utf8_lossy(it.as_bytes()).into_owned());
    let is_large = body.len() > LARGE_BODY_BYTES;
    let read = move || {
        let fields = form::read(content_type.as_deref(), &body)?;
        Ask::of_fields(kind, fields, max_image_bytes)
    };
    match is_large {
        false => read(),
        true => {
            let done = spawn_blocking(read).await;
            done.unwrap_or_else(|panic| Err(VideoError::internal(&panic)))
        }
    }
}

/// Returns the idempotency key of a request, if it has one.
///
/// # Errors
/// Returns a refusal when it is not from 1 to 255 visible ASCII characters.
pub(in crate::http) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, VideoError> {
    const NAME: &str = "Idempotency-Key";
    let mut given = headers.get_all(NAME).iter();
    let Some(key) = given.next() else {
        return Ok(None);
    };
    let refused = |given: &str| {
        let expected = format!("from 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters");
        VideoError::invalid_value(NAME, expected, given)
    };
    if given.next().is_some() {
        return Err(refused("several headers"));
    }
    let is_visible = key.as_bytes().iter().all(u8::is_ascii_graphic);
    if !is_visible || key.is_empty() || key.len() > MAX_IDEMPOTENCY_KEY {
        return Err(refused(&format!("{} bytes", key.len())));
    }
    Ok(key.to_str().ok())
}
