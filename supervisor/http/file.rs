//! Files that are served: whole, in part, or not at all when the client has them. Those of sessions and videos are in the store.
//!
//! `conditions` decides what a client wants of a file, `content` reads its bytes piece by piece while the client takes them, and
//! `whole` lays several segments out as one video.

use std::ops::Range;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};

use self::conditions::{EntityTag, Wanted, wanted};
use self::content::Content;
use crate::ingress::error::ApiError;
use crate::store::{DataLoss, SessionStore, StoreError};

pub(in crate::http) mod conditions;
pub(in crate::http) mod content;
pub(in crate::http) mod whole;

/// A file that never changes.
pub(in crate::http) const IMMUTABLE: &str = "private, max-age=31536000, immutable";
/// A file that changes when the film does.
pub(in crate::http) const REVALIDATE: &str = "private, no-cache";

/// A file, as HTTP sees it.
#[derive(Debug)]
pub(in crate::http) struct File {
    pub(in crate::http) content: Content,
    pub(in crate::http) tag: EntityTag,
    pub(in crate::http) mime: &'static str,
    pub(in crate::http) caching: &'static str,
}

/// What is said of a file beside its bytes, wherever these are.
#[derive(Debug)]
pub(in crate::http) struct Head<'a> {
    pub(in crate::http) size: u64,
    pub(in crate::http) tag: &'a EntityTag,
    pub(in crate::http) mime: &'static str,
    pub(in crate::http) caching: &'static str,
}

impl File {
    /// Lets clients keep the file: it does not change any more.
    pub(in crate::http) fn never_changing(self) -> Self {
        Self {
            caching: IMMUTABLE,
            ..self
        }
    }

    /// Answers a request with what it wants of the file.
    ///
    /// # Errors
    /// Returns a refusal when the first bytes cannot be read.
    pub(in crate::http) async fn answer(
        self,
        method: &Method,
        headers: &HeaderMap,
        store: &SessionStore,
    ) -> Result<Response, ApiError> {
        let head = Head {
            size: self.content.size(),
            tag: &self.tag,
            mime: self.mime,
            caching: self.caching,
        };
        let (mut answer, range) = head.answer(method, headers);
        if let Some(range) = range {
            let body = self.content.body(range, store).await;
            *answer.body_mut() = body.map_err(|failed| unread(&failed))?;
        }
        Ok(answer)
    }
}

impl Head<'_> {
    /// Answers a request with all but the bytes that it wants, and returns their range; `None` where it wants none.
    pub(in crate::http) fn answer(
        &self,
        method: &Method,
        headers: &HeaderMap,
    ) -> (Response, Option<Range<u64>>) {
        let size = self.size;
        let mut answer = Response::new(Body::empty());
        let given = answer.headers_mut();
        given.insert(ETAG, self.tag.header());
        given.insert(CACHE_CONTROL, HeaderValue::from_static(self.caching));
        given.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        given.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let range = match wanted(method, headers, self.tag, size) {
            Wanted::Nothing => {
                *answer.status_mut() = StatusCode::NOT_MODIFIED;
                return (answer, None);
            }
            Wanted::OutOfRange => {
                let refused = ApiError::new(
                    StatusCode::RANGE_NOT_SATISFIABLE,
                    "range_not_satisfiable",
                    format!("the file has {size} bytes, and none in this range"),
                );
                let range = [(CONTENT_RANGE, format!("bytes */{size}"))];
                return ((range, refused).into_response(), None);
            }
            Wanted::Whole => 0..size,
            Wanted::Part(range) => {
                let (first, last) = (range.start, range.end - 1);
                let text = format!("bytes {first}-{last}/{size}");
                let text = HeaderValue::try_from(text).expect("numbers are a header's value");
                given.insert(CONTENT_RANGE, text);
                range
            }
        };
        given.insert(CONTENT_TYPE, HeaderValue::from_static(self.mime));
        given.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
        if given.contains_key(CONTENT_RANGE) {
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        (answer, (*method != Method::HEAD).then_some(range))
    }
}

/// Answers that the media of a segment were there once.
pub(in crate::http) fn not_kept() -> ApiError {
    let message = "these media are not kept any more";
    ApiError::new(StatusCode::NOT_FOUND, "not_kept", message)
}

/// Answers that media cannot be read.
fn unread(failed: &StoreError) -> ApiError {
    match failed {
        StoreError::Lost(DataLoss::MediaNotKept | DataLoss::MissingBlob(_)) => not_kept(),
        _ => ApiError::store(failed),
    }
}
