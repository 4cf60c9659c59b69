//! The film of a session: its document, its segments and thumbnails, the whole as one file, and an HLS playlist.
//!
//! `request` finds the film of a request whose token gives access to it. `document` and `playlist` describe the film;
//! `growth` waits for more of it, and `parts` are what there is of a segment that is being made. `super::file` sends them and lays out the whole, and `download` names that. Reading a film is no activity of the session.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, AUTHORIZATION, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH,
    CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::film::{DownloadQuery, FilmDocument, FilmQuery, PlaylistQuery};
use fastvideo_proto::job::frames_to_time;
use fastvideo_proto::stored::StoredSegment;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::app::{App, AppState};
use super::file::conditions::EntityTag;
use super::file::content::Content;
use super::file::whole::{self, no_video};
use super::file::{File, IMMUTABLE, not_kept};
use crate::ingress::error::ApiError;
use crate::ingress::extract::ValidQuery;
use growth::Awaited;
use parts::{PartName, no_part, number};
use playlist::Listing;
use request::FilmRequest;

pub(super) mod document;
mod download;
mod growth;
mod parts;
mod playlist;
mod request;
#[cfg(test)]
mod tests;

/// How long the answer with a playlist waits for its first segment. hls.js gives up after 10 s.
const FIRST_SEGMENT_PATIENCE: Duration = Duration::from_secs(8);
/// How long a browser may remember that another site's page may read films.
const PREFLIGHT_AGE: Duration = Duration::from_secs(3600);
/// Names the segments that are not in `film.mp4`.
const MISSING_SEGMENTS: HeaderName = HeaderName::from_static("x-fastvideo-missing-segments");

pub(super) fn routes(app: &App) -> Router<App> {
    Router::new()
        .route("/v1/sessions/{id}/film", get(film))
        .route("/v1/sessions/{id}/film/{file}", get(file))
        .route("/v1/sessions/{id}/film/{file}/{part}", get(part))
        .route("/v1/sessions/{id}/film.mp4", get(whole_film))
        .route("/v1/sessions/{id}/index.m3u8", get(playlist))
        // Without one of its own, the whole router's would take the place of what the layer answers.
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(cross_origin(app))
}

/// Lets the pages of other sites read films that they have a token for: those of the sites that may open sessions.
fn cross_origin(app: &App) -> CorsLayer {
    let (ingress, guard) = (app.ingress.clone(), app.guard());
    let may = move |origin: &HeaderValue, _: &Parts| {
        ingress.rules().any_origin_may_stream || guard.allows(origin)
    };
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(may))
        .allow_methods([Method::GET, Method::HEAD])
        .allow_headers([AUTHORIZATION, IF_NONE_MATCH, IF_RANGE, RANGE])
        .expose_headers([
            ACCEPT_RANGES,
            CONTENT_DISPOSITION,
            CONTENT_LENGTH,
            CONTENT_RANGE,
            ETAG,
            MISSING_SEGMENTS,
        ])
        .max_age(PREFLIGHT_AGE)
}

/// Tells what is known of a session's film.
#[utoipa::path(get, path = "/v1/sessions/{id}/film", params(("id" = String, Path), FilmQuery), responses(
    (status = 200, body = FilmDocument),
    (status = 400, body = ErrorBody, description = "a parameter is wrong"),
    (status = 404, body = ErrorBody, description = "there is no such session, or the token does not belong to it"),
    (status = 500, body = ErrorBody, description = "what the store has is lost or damaged"),
    (status = 503, body = ErrorBody, description = "the store does not answer")
))]
pub(super) async fn film(State(app): AppState, request: FilmRequest) -> impl IntoResponse {
    let format = app.context.config.get().format;
    let ttl = app.context.store.config().film_ttl();
    let broadcast = app.context.broadcasts.get(&request.session);
    let spectators = broadcast.map_or(0, |broadcast| broadcast.spectators());
    let document = document::document(request.session, &request.view, format, ttl, spectators);
    ([(CACHE_CONTROL, "no-store")], Json(document))
}

/// Serves `film/{n}.mp4` and `film/{n}.jpg`.
async fn file(State(app): AppState, request: FilmRequest) -> Result<Response, ApiError> {
    let (n, extension) = request.file.split_once('.').unwrap_or_default();
    let segment = number(n).and_then(|idx| request.view.film.segment(idx));
    let is_picture = match extension {
        "mp4" => false,
        "jpg" => true,
        _ => {
            let message = "there is nothing here; see /openapi.json";
            return Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message));
        }
    };
    let segment = segment.ok_or_else(|| {
        let message = "the film has no such segment";
        ApiError::new(StatusCode::NOT_FOUND, "no_segment", message)
    })?;
    let file = match is_picture {
        true => thumbnail(segment)?,
        false => media(segment)?,
    };
    let store = &app.context.store;
    file.answer(&request.method, &request.headers, store).await
}

/// Serves the media of a segment: the bytes of its binary messages, init segment and fragments.
#[utoipa::path(get, path = "/v1/sessions/{id}/film/{n}.mp4",
    params(("id" = String, Path), ("n" = u32, Path, description = "the segment, counted from 0"), FilmQuery),
    responses(
        (status = 200, content_type = "video/mp4", description = "the file, which never changes"),
        (status = 206, content_type = "video/mp4", description = "the range that was asked for"),
        (status = 304, description = "the client has the file"),
        (status = 400, body = ErrorBody, description = "a parameter is wrong"),
        (status = 404, body = ErrorBody, description = "there is no such session or segment, the token does not belong \
            to the session, or the media are pictures or not kept"),
        (status = 416, body = ErrorBody, description = "the file has no byte in the range"),
        (status = 500, body = ErrorBody, description = "what the store has is lost or damaged"),
        (status = 503, body = ErrorBody, description = "the store does not answer")
    )
)]
pub(super) fn media(segment: &Arc<StoredSegment>) -> Result<File, ApiError> {
    if segment.is_pictures() {
        return Err(no_video());
    }
    if segment.media.is_none() {
        return Err(not_kept());
    }
    Ok(File {
        content: Content::Segment(segment.clone(), 0..segment.bytes),
        tag: EntityTag::of(segment.sha256),
        mime: "video/mp4",
        caching: IMMUTABLE,
    })
}

/// Serves a picture of a segment.
#[utoipa::path(get, path = "/v1/sessions/{id}/film/{n}.jpg",
    params(("id" = String, Path), ("n" = u32, Path, description = "the segment, counted from 0"), FilmQuery),
    responses(
        (status = 200, content_type = "image/jpeg", description = "the picture, which never changes"),
        (status = 206, content_type = "image/jpeg", description = "the range that was asked for"),
        (status = 304, description = "the client has the picture"),
        (status = 400, body = ErrorBody, description = "a parameter is wrong"),
        (status = 404, body = ErrorBody, description = "there is no such session or segment, the token does not belong \
            to the session, or there is no picture or it is not kept"),
        (status = 416, body = ErrorBody, description = "the file has no byte in the range"),
        (status = 500, body = ErrorBody, description = "what the store has is lost or damaged"),
        (status = 503, body = ErrorBody, description = "the store does not answer")
    )
)]
pub(super) fn thumbnail(segment: &Arc<StoredSegment>) -> Result<File, ApiError> {
    let media = segment.media.as_ref().ok_or_else(not_kept)?;
    if media.thumbnail_bytes == 0 {
        let message = "the segment has no thumbnail";
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "no_thumbnail",
            message,
        ));
    }
    let end = segment.bytes + u64::from(media.thumbnail_bytes);
    Ok(File {
        content: Content::Segment(segment.clone(), segment.bytes..end),
        // The hash of the media and the thumbnail together.
        tag: EntityTag::of(media.blob),
        mime: "image/jpeg",
        caching: IMMUTABLE,
    })
}

/// Serves all segments that are kept as one MP4 file, whose index is in front. The header
/// `x-fastvideo-missing-segments` names those that are left out, as in `0-2,7`.
#[utoipa::path(get, path = "/v1/sessions/{id}/film.mp4", params(("id" = String, Path), FilmQuery, DownloadQuery),
    responses(
        (status = 200, content_type = "video/mp4", description = "the file, which changes when the film does"),
        (status = 206, content_type = "video/mp4", description = "the range that was asked for"),
        (status = 304, description = "the client has the file"),
        (status = 400, body = ErrorBody, description = "a parameter is wrong"),
        (status = 404, body = ErrorBody, description = "there is no such session, the token does not belong to it, the \
            media are pictures, or none is kept"),
        (status = 416, body = ErrorBody, description = "the file has no byte in the range"),
        (status = 500, body = ErrorBody, description = "what the store has is lost or damaged, or the server failed"),
        (status = 503, body = ErrorBody, description = "the store does not answer")
    )
)]
pub(super) async fn whole_film(
    State(app): AppState,
    request: FilmRequest,
    ValidQuery(query): ValidQuery<DownloadQuery>,
) -> Result<Response, ApiError> {
    let segments = request.view.film.segments();
    let file = whole::whole(segments).await?;
    let store = &app.context.store;
    let answer = file.answer(&request.method, &request.headers, store).await;
    let mut answer = answer?;
    if let Some(missing) = whole::missing(segments) {
        answer.headers_mut().insert(MISSING_SEGMENTS, missing);
    }
    if let Some(name) = query.download {
        let disposition = download::disposition(&name);
        answer
            .headers_mut()
            .insert(CONTENT_DISPOSITION, disposition);
    }
    Ok(answer)
}

/// Serves a part of a segment for HLS: one binary message, of which `0` is the init segment. The next part of a segment
/// that is being made is waited for.
#[utoipa::path(get, path = "/v1/sessions/{id}/film/{n}/{attempt}-{message}.m4s",
    params(
        ("id" = String, Path),
        ("n" = u32, Path, description = "the segment, counted from 0"),
        ("attempt" = u32, Path, description = "the attempt at the segment, counted from 1"),
        ("message" = u32, Path, description = "the binary message, counted from 0"),
        FilmQuery
    ),
    responses(
        (status = 200, content_type = "video/mp4", description = "the part"),
        (status = 206, content_type = "video/mp4", description = "the range that was asked for"),
        (status = 304, description = "the client has the part"),
        (status = 400, body = ErrorBody, description = "a parameter is wrong"),
        (status = 404, body = ErrorBody, description = "there is no such session or part, or the token does not belong \
            to the session"),
        (status = 416, body = ErrorBody, description = "the part has no byte in the range"),
        (status = 500, body = ErrorBody, description = "what the store has is lost or damaged"),
        (status = 503, body = ErrorBody, description = "the store does not answer")
    )
)]
pub(super) async fn part(
    State(app): AppState,
    mut request: FilmRequest,
) -> Result<Response, ApiError> {
    let name = PartName::parse(&request.file, &request.part).ok_or_else(no_part)?;
    let patience = listing(&app, &request).patience();
    let file = growth::part(&app, &mut request, name, patience).await?;
    let store = &app.context.store;
    file.answer(&request.method, &request.headers, store).await
}

/// Serves the film as an HLS playlist of fragmented MP4. A token in the query is carried into the addresses in it. While
/// the session runs, the segment that is being made is listed in parts, and the answer waits where the query wants it.
#[utoipa::path(get, path = "/v1/sessions/{id}/index.m3u8",
    params(("id" = String, Path), FilmQuery, PlaylistQuery),
    responses(
        (status = 200, content_type = "application/vnd.apple.mpegurl", description = "the playlist, which grows while \
            the session is live"),
        (status = 400, body = ErrorBody, description = "a parameter is wrong, or names a segment too far away"),
        (status = 404, body = ErrorBody, description = "there is no such session, the token does not belong to it, the \
            media are pictures, or the session has ended and none is kept"),
        (status = 500, body = ErrorBody, description = "what the store has is lost or damaged"),
        (status = 503, body = ErrorBody, description = "the store does not answer")
    )
)]
pub(super) async fn playlist(
    State(app): AppState,
    ValidQuery(query): ValidQuery<PlaylistQuery>,
    mut request: FilmRequest,
) -> Result<Response, ApiError> {
    let segments = request.view.film.segments();
    if segments.last().is_some_and(|last| last.is_pictures()) {
        return Err(no_video());
    }
    let is_empty = segments.is_empty();
    let (awaited, patience) = match Awaited::read(query)? {
        // Players give up on a list without a segment.
        None if is_empty => (Some(Awaited::first()), FIRST_SEGMENT_PATIENCE),
        awaited => (awaited, listing(&app, &request).patience()),
    };
    let live_end = growth::follow(&app, &mut request, awaited, patience).await?;
    let listing = Listing {
        live_end: live_end.as_ref(),
        ..listing(&app, &request)
    };
    let text = listing.playlist().ok_or_else(not_kept)?;
    let headers = [(CONTENT_TYPE, playlist::MIME), (CACHE_CONTROL, "no-store")];
    Ok((headers, text).into_response())
}

/// What a playlist of the film has, without its growing end.
fn listing<'a>(app: &App, request: &'a FilmRequest) -> Listing<'a> {
    let config = app.context.config.get();
    let format = config.format;
    let usual = frames_to_time(u64::from(format.num_frames), format.fps);
    Listing {
        known: request.view.film.segments(),
        is_over: request.view.is_over(),
        usual,
        part: config.fragment.min(usual),
        live_end: None,
        token: request.query_token.as_deref(),
    }
}
