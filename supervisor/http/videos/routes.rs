//! The routes of video jobs and models.

use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, FromRequestParts, Path, RawQuery, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use fastvideo_proto::api::videos::{
    DeletedVideo, Model, ModelList, OpenAiErrorBody, Video, VideoList, VideoPhase, VideoRequest,
};
use fastvideo_proto::ids::VideoId;
use fastvideo_proto::link::{SHEET_COLUMNS, tile_size};
use fastvideo_proto::stored_video::{StoredFile, StoredVideo, VideoStatus};

use super::ask::{Kind, RATES};
use super::check::{self, Rules};
use super::error::VideoError;
use super::object;
use super::query::{self, Variant, wait};
use super::request::{self, idempotency_key};
use crate::auth::Caller;
use crate::http::app::{App, AppState};
use crate::http::file::conditions::EntityTag;
use crate::http::file::content::Content;
use crate::http::file::whole::whole;
use crate::http::file::{File, IMMUTABLE};
use crate::ingress::extract::VideoBody;
use crate::init_image::{self, InitImageError};
use crate::store::{SessionStore, StoreError, VideoRecord};
use crate::tenant::Tenant;
use crate::video::{Claim, Created, Live, NotCreated, Phase, Source};

/// How long a client that is turned away because of a full queue should wait.
const FULL_QUEUE_PAUSE: Duration = Duration::from_secs(5);
/// The bounds of the pause that clients are told to make between two looks at a job.
const POLL_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Number of looks at a job in the time that it is expected to take.
const POLLS: u32 = 20;

const POLL_AFTER: HeaderName = HeaderName::from_static("openai-poll-after-ms");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const SPRITESHEET: HeaderName = HeaderName::from_static("x-spritesheet");
const VIDEO_ID: HeaderName = HeaderName::from_static("x-video-id");
const MODEL: HeaderName = HeaderName::from_static("x-model");
const INFERENCE_TIME: HeaderName = HeaderName::from_static("x-inference-time-s");

/// Returns the routes, where the operator has not turned them off.
pub(in crate::http) fn routes(app: &App) -> Router<App> {
    let routes = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model));
    let routes = match app.videos.config().enabled {
        true => routes
            .route("/v1/videos", get(list).post(create))
            .route("/v1/videos/sync", post(create_and_wait))
            .route("/v1/videos/edits", post(edit))
            .route("/v1/videos/extensions", post(extend))
            .route(
                "/v1/videos/{id}",
                get(retrieve).delete(remove).fallback(other_method),
            )
            .route("/v1/videos/{id}/content", get(content))
            .route("/v1/videos/{id}/cancel", post(cancel))
            .route("/v1/videos/{id}/remix", post(remix)),
        false => routes,
    };
    routes
        .method_not_allowed_fallback(async || VideoError::method_not_allowed())
        .layer(app.guard().cross_origin())
}

/// The job that a path names.
pub(in crate::http) struct PathVideo(VideoId);

impl<S: Send + Sync> FromRequestParts<S> for PathVideo {
    type Rejection = VideoError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, VideoError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let id = path.ok().and_then(|Path(id)| VideoId::parse(&id));
        id.map(Self).ok_or_else(VideoError::video_not_found)
    }
}

/// Answers a method that jobs do not take. What is no job, such as the characters of OpenAI's clients, is not there.
async fn other_method(_: PathVideo) -> VideoError {
    VideoError::method_not_allowed()
}

/// Creates a job. It is stored when this is answered.
#[utoipa::path(post, path = "/v1/videos", request_body(content((VideoRequest = "application/json"), (VideoRequest = "multipart/form-data"))), responses(
    (status = 200, body = Video),
    (status = 400, body = OpenAiErrorBody, description = "a field or a parameter is wrong"),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 408, body = OpenAiErrorBody, description = "the body took too long"),
    (status = 413, body = OpenAiErrorBody, description = "the body is larger than 48 MiB"),
    (status = 422, body = OpenAiErrorBody, description = "another request was sent with this `Idempotency-Key`"),
    (status = 429, body = OpenAiErrorBody, description = "as many jobs wait as may wait"),
    (status = 500, body = OpenAiErrorBody, description = "the server failed, or what the store has is lost or damaged"),
    (status = 503, body = OpenAiErrorBody, description = "the server drains, the store does not answer, the videos have no room, or too much is being received")
))]
pub(in crate::http) async fn create(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: VideoBody,
) -> Result<Response, VideoError> {
    let created = take_in(&app, &caller, Kind::Create, "videos", &headers, body).await?;
    Ok(answer(&created))
}

/// Creates a job like another one, with other words.
#[utoipa::path(post, path = "/v1/videos/{id}/remix", params(("id" = String, Path)), request_body(content((VideoRequest = "application/json"), (VideoRequest = "multipart/form-data"))), responses(
    (status = 200, body = Video),
    (status = 400, body = OpenAiErrorBody, description = "a field or a parameter is wrong"),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = OpenAiErrorBody, description = "there is no such video"),
    (status = 408, body = OpenAiErrorBody, description = "the body took too long"),
    (status = 413, body = OpenAiErrorBody, description = "the body is larger than 48 MiB"),
    (status = 422, body = OpenAiErrorBody, description = "another request was sent with this `Idempotency-Key`"),
    (status = 429, body = OpenAiErrorBody, description = "as many jobs wait as may wait"),
    (status = 500, body = OpenAiErrorBody, description = "the server failed, or what the store has is lost or damaged"),
    (status = 503, body = OpenAiErrorBody, description = "the server drains, the store does not answer, the videos have no room, or too much is being received")
))]
pub(in crate::http) async fn remix(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    PathVideo(id): PathVideo,
    headers: HeaderMap,
    body: VideoBody,
) -> Result<Response, VideoError> {
    let created = take_in(&app, &caller, Kind::Remix(id), "remix", &headers, body).await?;
    Ok(answer(&created))
}

/// Does what `remix` does, for clients that name the other job in the body.
#[utoipa::path(post, path = "/v1/videos/edits", request_body(content((VideoRequest = "application/json"), (VideoRequest = "multipart/form-data"))), responses(
    (status = 200, body = Video),
    (status = 400, body = OpenAiErrorBody, description = "a field or a parameter is wrong"),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = OpenAiErrorBody, description = "there is no such video"),
    (status = 408, body = OpenAiErrorBody, description = "the body took too long"),
    (status = 413, body = OpenAiErrorBody, description = "the body is larger than 48 MiB"),
    (status = 422, body = OpenAiErrorBody, description = "another request was sent with this `Idempotency-Key`"),
    (status = 429, body = OpenAiErrorBody, description = "as many jobs wait as may wait"),
    (status = 500, body = OpenAiErrorBody, description = "the server failed, or what the store has is lost or damaged"),
    (status = 503, body = OpenAiErrorBody, description = "the server drains, the store does not answer, the videos have no room, or too much is being received")
))]
pub(in crate::http) async fn edit(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: VideoBody,
) -> Result<Response, VideoError> {
    let created = take_in(&app, &caller, Kind::Edit, "edits", &headers, body).await?;
    Ok(answer(&created))
}

/// Creates a job that goes on where another one ends.
#[utoipa::path(post, path = "/v1/videos/extensions", request_body(content((VideoRequest = "application/json"), (VideoRequest = "multipart/form-data"))), responses(
    (status = 200, body = Video),
    (status = 400, body = OpenAiErrorBody, description = "a field or a parameter is wrong"),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = OpenAiErrorBody, description = "there is no such video"),
    (status = 408, body = OpenAiErrorBody, description = "the body took too long"),
    (status = 413, body = OpenAiErrorBody, description = "the body is larger than 48 MiB"),
    (status = 422, body = OpenAiErrorBody, description = "another request was sent with this `Idempotency-Key`"),
    (status = 429, body = OpenAiErrorBody, description = "as many jobs wait as may wait"),
    (status = 500, body = OpenAiErrorBody, description = "the server failed, or what the store has is lost or damaged"),
    (status = 503, body = OpenAiErrorBody, description = "the server drains, the store does not answer, the videos have no room, or too much is being received")
))]
pub(in crate::http) async fn extend(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: VideoBody,
) -> Result<Response, VideoError> {
    let created = take_in(&app, &caller, Kind::Extend, "extensions", &headers, body).await?;
    Ok(answer(&created))
}

/// Creates a job and answers with its video. A client that goes away cancels and deletes it.
#[utoipa::path(post, path = "/v1/videos/sync", request_body(content((VideoRequest = "application/json"), (VideoRequest = "multipart/form-data"))), responses(
    (status = 200, content_type = "video/mp4", description = "the video"),
    (status = 400, body = OpenAiErrorBody, description = "a field or a parameter is wrong"),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = OpenAiErrorBody, description = "there is no such video"),
    (status = 408, body = OpenAiErrorBody, description = "the body took too long"),
    (status = 409, body = OpenAiErrorBody, description = "the job was cancelled"),
    (status = 413, body = OpenAiErrorBody, description = "the body is larger than 48 MiB"),
    (status = 422, body = OpenAiErrorBody, description = "another request was sent with this `Idempotency-Key`"),
    (status = 429, body = OpenAiErrorBody, description = "as many jobs wait as may wait"),
    (status = 500, body = OpenAiErrorBody, description = "the server failed, or what the store has is lost or damaged"),
    (status = 503, body = OpenAiErrorBody, description = "the server drains, the store does not answer, the videos have no room, or too much is being received")
))]
pub(in crate::http) async fn create_and_wait(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    method: Method,
    headers: HeaderMap,
    body: VideoBody,
) -> Result<Response, VideoError> {
    let created = take_in(&app, &caller, Kind::Create, "sync", &headers, body).await?;
    let tenant = caller.own_tenant();
    let mut abandoned = Abandoned {
        app: app.clone(),
        job: (!created.is_replayed).then(|| (tenant.clone(), created.id)),
    };
    let live = loop {
        let live = app
            .videos
            .wait(&tenant, created.id, Duration::from_secs(60));
        let live = live.await.map_err(|failed| unread(&failed))?;
        let live = live.ok_or_else(VideoError::video_not_found)?;
        if live.video.status.is_end() {
            break live;
        }
        if app.videos.have_left() {
            return Err(VideoError::server_draining());
        }
    };
    abandoned.job = None;
    let video = &live.video;
    if let VideoStatus::Failed { code, message } = &video.status {
        return Err(VideoError::job_failed(code, message));
    }
    let file = video_file(video).await?;
    let mut answer = send(file, &method, &HeaderMap::new(), &app.context.store).await?;
    let given = answer.headers_mut();
    let inference = format!("{:.3}", video.inference.as_secs_f64());
    for (name, value) in [
        (VIDEO_ID, created.id.to_string()),
        (MODEL, video.model.clone()),
        (INFERENCE_TIME, inference),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            given.insert(name, value);
        }
    }
    Ok(answer)
}

/// Deletes a job when its client has gone away.
struct Abandoned {
    app: App,
    job: Option<(Tenant, VideoId)>,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some((tenant, id)) = self.job.take() {
            self.app.videos.delete_soon(tenant, id);
        }
    }
}

/// Receives and checks a request, and creates its job.
async fn take_in(
    app: &App,
    caller: &Caller,
    kind: Kind,
    route: &str,
    headers: &HeaderMap,
    VideoBody(body): VideoBody,
) -> Result<Created, VideoError> {
    let (videos, tenant) = (&app.videos, caller.own_tenant());
    let key = idempotency_key(headers)?;
    let ask = request::read(kind, headers, body.bytes, init_image::MAX_BYTES).await?;
    let fingerprint = ask.fingerprint();
    let image = ask.image.as_ref().map(|image| image.param);
    let claim = key.map(|key| Claim::of(&tenant, route, key, fingerprint));
    if let Some(claim) = claim {
        let before = videos.claimed(&tenant, claim).await;
        if let Some(created) = before.map_err(|why| refused(why, None))? {
            return Ok(created);
        }
    }
    let rules = Rules::of(&videos.config());
    let source = match ask.source() {
        Some(id) => Some(source(app, &tenant, id, kind).await?),
        None => None,
    };
    let new = match &source {
        None => check::create(ask, &rules)?,
        Some(record) if kind == Kind::Extend => check::extend(ask, &rules, &record.video)?,
        Some(record) => check::remix(ask, &rules, &record.video)?,
    };
    let source = source.map(|record| match kind {
        Kind::Extend => Source::Extended(record),
        Kind::Create | Kind::Remix(_) | Kind::Edit => Source::Remixed(record),
    });
    if new.enhance_prompt && !videos.can_enhance() {
        let why = "this server has no language model";
        return Err(VideoError::unsupported_parameter("enhance_prompt", why));
    }
    let created = videos.create(tenant, new, source, claim).await;
    drop(body.share);
    created.map_err(|why| refused(why, image))
}

/// Returns the job that a new one is made of.
async fn source(
    app: &App,
    tenant: &Tenant,
    id: VideoId,
    kind: Kind,
) -> Result<VideoRecord, VideoError> {
    let record = app.context.store.read_video(tenant, id).await;
    let record = record.map_err(|failed| unread(&failed))?;
    record.ok_or_else(|| match kind {
        Kind::Remix(_) => VideoError::video_not_found(),
        _ => VideoError::source_not_found("video"),
    })
}

/// Lists the caller's jobs.
#[utoipa::path(get, path = "/v1/videos", params(
    ("limit" = Option<u32>, Query, description = "from 1 to 100; 20 by default"),
    ("order" = Option<String>, Query, description = "`desc`, the latest first, or `asc`"),
    ("after" = Option<String>, Query, description = "the last id of the page before")
), responses(
    (status = 200, body = VideoList),
    (status = 400, body = OpenAiErrorBody, description = "a field or a parameter is wrong"),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 500, body = OpenAiErrorBody, description = "the server failed, or what the store has is lost or damaged"),
    (status = 503, body = OpenAiErrorBody, description = "the server drains, the store does not answer, the videos have no room, or too much is being received")
))]
pub(in crate::http) async fn list(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Result<Json<VideoList>, VideoError> {
    let page = query::page(query.as_deref())?;
    let page = app.videos.list(&caller.own_tenant(), page).await;
    let page = page.map_err(|failed| unread(&failed))?;
    let jobs = page.jobs.iter().map(|(id, live)| object_of(*id, live));
    Ok(Json(VideoList::new(jobs.collect(), page.has_more)))
}

/// Returns a job, at once or when something has changed.
#[utoipa::path(get, path = "/v1/videos/{id}", params(("id" = String, Path), ("wait_seconds" = Option<f64>, Query, description = "from 0 to 60: how long to wait for a change of `status` or `progress`")), responses(
    (status = 200, body = Video, description = "the header `openai-poll-after-ms` says when to ask again"),
    (status = 400, body = OpenAiErrorBody, description = "a field or a parameter is wrong"),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = OpenAiErrorBody, description = "there is no such video"),
    (status = 500, body = OpenAiErrorBody, description = "the server failed, or what the store has is lost or damaged"),
    (status = 503, body = OpenAiErrorBody, description = "the server drains, the store does not answer, the videos have no room, or too much is being received")
))]
pub(in crate::http) async fn retrieve(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    PathVideo(id): PathVideo,
    RawQuery(query): RawQuery,
) -> Result<Response, VideoError> {
    let time = wait(query.as_deref())?;
    let live = app.videos.wait(&caller.own_tenant(), id, time).await;
    let live = live.map_err(|failed| unread(&failed))?;
    let live = live.ok_or_else(VideoError::video_not_found)?;
    Ok(one(id, &live))
}

/// Asks for the end of a job.
#[utoipa::path(post, path = "/v1/videos/{id}/cancel", params(("id" = String, Path)), responses(
    (status = 200, body = Video),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = OpenAiErrorBody, description = "there is no such video"),
    (status = 500, body = OpenAiErrorBody, description = "the server failed, or what the store has is lost or damaged"),
    (status = 503, body = OpenAiErrorBody, description = "the server drains, the store does not answer, the videos have no room, or too much is being received")
))]
pub(in crate::http) async fn cancel(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    PathVideo(id): PathVideo,
) -> Result<Response, VideoError> {
    let live = app.videos.cancel(&caller.own_tenant(), id).await;
    let live = live.map_err(|failed| unread(&failed))?;
    let live = live.ok_or_else(VideoError::video_not_found)?;
    Ok(one(id, &live))
}

/// Removes a job, whatever it does.
#[utoipa::path(delete, path = "/v1/videos/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = DeletedVideo),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = OpenAiErrorBody, description = "there is no such video"),
    (status = 500, body = OpenAiErrorBody, description = "the server failed, or what the store has is lost or damaged"),
    (status = 503, body = OpenAiErrorBody, description = "the server drains, the store does not answer, the videos have no room, or too much is being received")
))]
pub(in crate::http) async fn remove(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    PathVideo(id): PathVideo,
) -> Result<Json<DeletedVideo>, VideoError> {
    let removed = app.videos.delete(&caller.own_tenant(), id).await;
    match removed.map_err(|failed| unread(&failed))? {
        true => Ok(Json(DeletedVideo::new(id.to_string()))),
        false => Err(VideoError::video_not_found()),
    }
}

/// Serves the video of a job, or one of its pictures.
#[utoipa::path(get, path = "/v1/videos/{id}/content", params(("id" = String, Path), ("variant" = Option<String>, Query, description = "`video`, `thumbnail` or `spritesheet`")), responses(
    (status = 200, content_type = "video/mp4", description = "the file, which never changes"),
    (status = 206, content_type = "video/mp4", description = "the range that was asked for"),
    (status = 304, description = "the client has the file"),
    (status = 400, body = OpenAiErrorBody, description = "a field or a parameter is wrong"),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = OpenAiErrorBody, description = "there is no such video"),
    (status = 416, body = OpenAiErrorBody, description = "the file has no byte in the range"),
    (status = 500, body = OpenAiErrorBody, description = "the server failed, or what the store has is lost or damaged"),
    (status = 503, body = OpenAiErrorBody, description = "the server drains, the store does not answer, the videos have no room, or too much is being received")
))]
pub(in crate::http) async fn content(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    PathVideo(id): PathVideo,
    RawQuery(query): RawQuery,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, VideoError> {
    let variant = Variant::read(query.as_deref())?;
    let live = app.videos.get(&caller.own_tenant(), id).await;
    let live = live.map_err(|failed| unread(&failed))?;
    let video = live.ok_or_else(VideoError::video_not_found)?.video;
    match video.status {
        VideoStatus::Completed => {}
        VideoStatus::Failed { .. } => return Err(VideoError::content_failed()),
        VideoStatus::Queued | VideoStatus::InProgress => {
            return Err(VideoError::content_not_ready());
        }
    }
    let (file, name) = match variant {
        Variant::Video => (video_file(&video).await?, format!("{id}.mp4")),
        Variant::Thumbnail => (picture(video.thumbnail)?, format!("{id}.jpg")),
        Variant::Spritesheet => (picture(video.spritesheet)?, format!("{id}-sheet.jpg")),
    };
    let mut answer = send(file, &method, &headers, &app.context.store).await?;
    if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        return Ok(answer);
    }
    let disposition = format!("inline; filename=\"{name}\"");
    let disposition = HeaderValue::try_from(disposition).expect("an id is plain ASCII");
    let given = answer.headers_mut();
    given.insert(CONTENT_DISPOSITION, disposition);
    if variant == Variant::Spritesheet {
        given.insert(SPRITESHEET, sheet_of(&video));
    }
    Ok(answer)
}

/// Lists the model that is served.
#[utoipa::path(get, path = "/v1/models", responses(
    (status = 200, body = ModelList),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request")
))]
pub(in crate::http) async fn models(State(app): AppState) -> Json<ModelList> {
    Json(ModelList::new(vec![served(&app)]))
}

/// Returns the model that is served, by any of its names.
#[utoipa::path(get, path = "/v1/models/{model}", params(("model" = String, Path)), responses(
    (status = 200, body = Model),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = OpenAiErrorBody, description = "there is no such video")
))]
pub(in crate::http) async fn model(
    State(app): AppState,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, VideoError> {
    let Path(name) = name.map_err(|_| VideoError::model_not_found())?;
    let config = app.videos.config();
    let is_known = name == config.model || config.model_aliases.contains(&name);
    match is_known {
        true => Ok(Json(served(&app))),
        false => Err(VideoError::model_not_found()),
    }
}

fn served(app: &App) -> Model {
    Model::new(app.videos.config().model.clone(), app.videos.since())
}

/// Answers with a job that was created.
fn answer(created: &Created) -> Response {
    let mut answer = one(created.id, &created.live);
    if created.is_replayed {
        let replayed = HeaderValue::from_static("true");
        answer.headers_mut().insert(REPLAYED, replayed);
    }
    answer
}

/// Answers with a job.
fn one(id: VideoId, live: &Live) -> Response {
    let mut answer = Json(object_of(id, live)).into_response();
    let given = answer.headers_mut();
    given.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !live.video.status.is_end() {
        let pause = poll_pause(live).as_millis();
        let pause = HeaderValue::try_from(pause.to_string()).expect("a number is a header's value");
        given.insert(POLL_AFTER, pause);
    }
    answer
}

/// Returns how long a client should wait until it looks again.
fn poll_pause(live: &Live) -> Duration {
    let (least, most) = POLL_PAUSES;
    let rest = live.expected_rest();
    rest.map_or(most, |rest| (rest / POLLS).clamp(least, most))
}

fn object_of(id: VideoId, live: &Live) -> Video {
    let facts = object::Live {
        phase: match live.phase {
            Phase::Waiting => VideoPhase::Waiting,
            Phase::Generating => VideoPhase::Generating,
            Phase::Storing => VideoPhase::Storing,
            Phase::Done => VideoPhase::Done,
        },
        progress: live.progress(),
        queue_position: live.position.map(|position| position as u64),
    };
    object::video(id, &live.video, facts, live.video.bytes)
}

async fn video_file(video: &StoredVideo) -> Result<File, VideoError> {
    let file = whole(&video.film).await.map_err(VideoError::of_file)?;
    Ok(file.never_changing())
}

fn picture(file: Option<StoredFile>) -> Result<File, VideoError> {
    let file = file.ok_or_else(VideoError::not_found)?;
    Ok(File {
        tag: EntityTag::of(file.blob),
        content: Content::Stored(file),
        mime: "image/jpeg",
        caching: IMMUTABLE,
    })
}

/// Says where the tiles of a video's sheet are.
fn sheet_of(video: &StoredVideo) -> HeaderValue {
    let (width, height) = tile_size(video.plan.shown.0, video.plan.shown.1);
    let count = video
        .plan
        .frames()
        .min(u64::from(fastvideo_proto::link::MAX_TILES));
    let rows = count.div_ceil(u64::from(SHEET_COLUMNS));
    let text =
        format!("columns={SHEET_COLUMNS};rows={rows};width={width};height={height};count={count}");
    HeaderValue::try_from(text).expect("numbers are a header's value")
}

async fn send(
    file: File,
    method: &Method,
    headers: &HeaderMap,
    store: &SessionStore,
) -> Result<Response, VideoError> {
    let answer = file.answer(method, headers, store).await;
    answer.map_err(VideoError::of_file)
}

/// Answers that the store cannot serve a request.
fn unread(failed: &StoreError) -> VideoError {
    match failed {
        StoreError::Lost(_) => VideoError::internal(failed),
        _ => VideoError::store_unavailable(failed),
    }
}

/// Answers that a job was not created. `image` is the field that the image came from.
fn refused(why: NotCreated, image: Option<&'static str>) -> VideoError {
    let param = image.unwrap_or("input_reference");
    match why {
        NotCreated::Draining => VideoError::server_draining(),
        NotCreated::QueueFull { limit } => {
            VideoError::queue_full("the server", limit, FULL_QUEUE_PAUSE)
        }
        NotCreated::TenantQueueFull { limit } => {
            VideoError::queue_full("your key", limit, FULL_QUEUE_PAUSE)
        }
        NotCreated::StorageFull { .. } => VideoError::storage_full(),
        NotCreated::Store(StoreError::Full { .. } | StoreError::MediaFull { .. }) => {
            VideoError::storage_full()
        }
        NotCreated::Blocked { field, blocked } => {
            VideoError::moderation_blocked(field, blocked.to_string())
        }
        NotCreated::Image(InitImageError::Refused {
            expected, given, ..
        }) => VideoError::invalid_image(param, expected, given),
        NotCreated::Image(InitImageError::Busy) => VideoError::too_busy(),
        NotCreated::Image(failed) => VideoError::internal(&failed),
        NotCreated::KeyReused => VideoError::idempotency_key_reused(),
        NotCreated::SourceGone => VideoError::source_not_found("video"),
        NotCreated::Store(failed) => unread(&failed),
        NotCreated::Panicked(failed) => VideoError::internal(&failed),
    }
}

impl Rules {
    /// Returns the operator's limits and defaults.
    fn of(config: &crate::video::Config) -> Self {
        let format = config.format;
        let size = (format.width, format.height);
        let is_allowed = config.sizes.is_empty() || config.sizes.contains(&size);
        Self {
            model: config.model.clone(),
            model_aliases: config.model_aliases.clone(),
            size: match config.sizes.first() {
                Some(first) if !is_allowed => *first,
                _ => size,
            },
            fps: format.fps.min(*RATES.end()),
            num_inference_steps: config.num_inference_steps,
            guidance_scale: config.guidance_scale,
            negative_prompt: config.negative_prompt.clone(),
            max_length: Duration::from_secs_f64(config.max_seconds),
            max_total_length: Duration::from_secs_f64(config.max_total_seconds),
            max_pixels: config.max_pixels,
            sizes: config.sizes.clone(),
            max_prompt_chars: config.max_prompt_chars,
            max_inference_steps: config.max_inference_steps,
        }
    }
}
