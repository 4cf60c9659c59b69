//! Videos and models of all servers at one address.
//!
//! `search` asks one server after the other for a video, or to make one, in the order of [`makers`] and with who had it last
//! before all others; `pages` makes one list of the servers' lists.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, to_bytes};
use axum::extract::{Extension, FromRequest, FromRequestParts, Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use fastvideo_proto::api::videos::{OpenAiErrorBody, VideoList};
use futures_util::future::join_all;
use serde::Deserialize;
use tokio::time::timeout;

use self::pages::{MergedModels, MergedPage, Page, Wanted};
use self::search::{Found, Purpose, Wish, away, lost, search};
use super::app::App;
use super::makers::{self, Maker};
use super::proxy::{Asked, IDEMPOTENCY_KEY, judged, refusal, target, whole};
use super::registry::Replica;
use crate::auth::Caller;
use crate::ingress::error::ApiError;
use crate::ingress::extract::{Body, VideoBody};
use crate::ingress::openai::VideoError;

mod pages;
mod search;

/// The most that is read of a server's list.
const MAX_LIST_BYTES: usize = 16 << 20;
/// The most that is read of a job.
const MAX_JOB_BYTES: usize = 1 << 20;
/// How long a server may take to list its videos.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// By this header the answer with a video names its job.
const VIDEO_ID: HeaderName = HeaderName::from_static("x-video-id");

pub(super) fn routes(app: &App) -> Router<App> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/v1/videos", get(list).post(create))
        .route("/v1/videos/sync", post(create))
        .route("/v1/videos/edits", post(create_from))
        .route("/v1/videos/extensions", post(create_from))
        .route("/v1/videos/{id}", any(of_video))
        .route("/v1/videos/{id}/content", get(of_video))
        .route("/v1/videos/{id}/cancel", post(of_video))
        .route("/v1/videos/{id}/remix", post(remix))
        // Without one of its own, the whole router's would take the place of what the layer answers.
        .method_not_allowed_fallback(async || VideoError::method_not_allowed())
        .layer(app.guard().cross_origin())
}

/// What all servers have answered to the same request.
enum Gathered {
    Pages {
        pages: Vec<Page>,
        /// The servers of which nothing is known, nor of their stores.
        unreachable: Vec<String>,
    },
    /// One of them refuses it, or none of them has such a list.
    Refused(Response),
}

/// What one server has answered.
enum Heard {
    Page(Page),
    Refused(Response),
    /// There is no such list.
    Unserved(Response),
    Nothing,
}

/// A request that has a video made.
struct Making {
    uri: Uri,
    headers: HeaderMap,
    body: Body,
}

impl FromRequest<App> for Making {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (uri, headers) = (request.uri().clone(), request.headers().clone());
        let VideoBody(body) = VideoBody::from_request(request, app).await?;
        let headers = judged(headers);
        Ok(Self { uri, headers, body })
    }
}

/// Has a video made by the server with the least to do. Under an idempotency key it is always one with the same store.
async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    making: Making,
) -> Result<Response, VideoError> {
    app.registry.first_probes().await;
    let (servers, purpose) = match making.headers.get(IDEMPOTENCY_KEY) {
        Some(key) => {
            let tenant = caller.own_tenant();
            let by_key = |makers: &[Maker]| makers::by_key(makers, &tenant, key.as_bytes());
            (in_order(&app, by_key), Purpose::MakeInOneStore)
        }
        None => (in_order(&app, makers::by_load), Purpose::Make),
    };
    make(&app, servers, purpose, making).await
}

/// Has a video made of another one, which the body names.
async fn create_from(State(app): State<App>, making: Making) -> Result<Response, VideoError> {
    app.registry.first_probes().await;
    let servers = in_order(&app, makers::by_load);
    make(&app, servers, Purpose::Make, making).await
}

/// Has a video made of another one, which the path names.
async fn remix(
    State(app): State<App>,
    PathVideo(id): PathVideo,
    making: Making,
) -> Result<Response, VideoError> {
    app.registry.first_probes().await;
    let mut servers = in_order(&app, makers::by_load);
    app.videos.put_first(&id, &mut servers);
    make(&app, servers, Purpose::Make, making).await
}

async fn make(
    app: &App,
    servers: Vec<Arc<Replica>>,
    purpose: Purpose,
    making: Making,
) -> Result<Response, VideoError> {
    let wish = Wish {
        method: &Method::POST,
        target: plain(&making.uri)?,
        headers: &making.headers,
        purpose,
    };
    let Found { server, answer } = search(app, servers, wish, Some(making.body)).await?;
    match server {
        Some(server) if answer.status().is_success() => {
            let noted = note(app, &server, answer).await;
            noted.ok_or_else(|| lost(&making.headers))
        }
        _ => Ok(answer),
    }
}

/// Takes note of the server that makes a video; `None` when it is lost before it has said which one that is.
async fn note(app: &App, server: &Replica, answer: Response) -> Option<Response> {
    #[derive(Deserialize)]
    struct Made {
        id: String,
    }
    let id = answer.headers().get(VIDEO_ID);
    if let Some(id) = id.and_then(|id| id.to_str().ok()) {
        app.videos.remember(id, server);
    }
    let mime = answer.headers().get(CONTENT_TYPE);
    if mime.is_none_or(|mime| mime != "application/json") {
        return Some(answer);
    }
    let (head, body) = answer.into_parts();
    let body = to_bytes(body, MAX_JOB_BYTES).await.ok()?;
    if let Ok(made) = serde_json::from_slice::<Made>(&body) {
        app.videos.remember(&made.id, server);
    }
    Some(Response::from_parts(head, body.into()))
}

/// Passes on what is asked of a video.
async fn of_video(
    State(app): State<App>,
    PathVideo(id): PathVideo,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, VideoError> {
    app.registry.first_probes().await;
    let mut servers = in_order(&app, makers::by_load);
    app.videos.put_first(&id, &mut servers);
    let Found { server, answer } = find(&app, servers, (method, uri, headers)).await?;
    let status = answer.status();
    if let Some(server) = server
        && (status.is_success() || status.is_redirection())
    {
        app.videos.remember(&id, &server);
    }
    Ok(answer)
}

/// Passes on what is asked of a model.
async fn model(
    State(app): State<App>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, VideoError> {
    app.registry.first_probes().await;
    let servers = in_order(&app, makers::by_load);
    let found = find(&app, servers, (method, uri, headers)).await?;
    Ok(found.answer)
}

async fn find(
    app: &App,
    servers: Vec<Arc<Replica>>,
    (method, uri, headers): (Method, Uri, HeaderMap),
) -> Result<Found, VideoError> {
    let wish = Wish {
        method: &method,
        target: plain(&uri)?,
        headers: &judged(headers),
        purpose: Purpose::Find,
    };
    search(app, servers, wish, None).await
}

/// Lists the videos of all servers. Those that do not answer are named, too, unless another one with the same store does.
#[utoipa::path(get, path = "/v1/videos", params(
    ("limit" = Option<u32>, Query, description = "from 1 to 100; 20 by default"),
    ("order" = Option<String>, Query, description = "`desc`, the latest first, or `asc`"),
    ("after" = Option<String>, Query, description = "the last id of the page before")
), responses(
    (status = 200, body = VideoList),
    (status = 400, body = OpenAiErrorBody, description = "a field or a parameter is wrong"),
    (status = 403, body = OpenAiErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 503, body = OpenAiErrorBody, description = "no server answers")
))]
pub(super) async fn list(
    State(app): State<App>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, VideoError> {
    let gathered = gather(&app, &uri, headers).await?;
    Ok(match gathered {
        Gathered::Pages { pages, unreachable } => {
            let wanted = Wanted::read(uri.query());
            Json(MergedPage::of(pages, wanted, unreachable)).into_response()
        }
        Gathered::Refused(answer) => answer,
    })
}

/// Lists the models of all servers that answer.
async fn models(
    State(app): State<App>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, VideoError> {
    Ok(match gather(&app, &uri, headers).await? {
        Gathered::Pages { pages, .. } => Json(MergedModels::of(pages)).into_response(),
        Gathered::Refused(answer) => answer,
    })
}

/// Asks all servers at once for a list.
async fn gather(app: &App, uri: &Uri, headers: HeaderMap) -> Result<Gathered, VideoError> {
    app.registry.first_probes().await;
    let asked = Asked {
        method: &Method::GET,
        target: plain(uri)?,
        headers: &judged(headers),
        body: Bytes::new(),
    };
    let replicas = app.registry.all();
    let heard = replicas.iter().map(async |replica| {
        let heard = timeout(LIST_TIMEOUT, hear(app, replica, &asked)).await;
        (replica, heard.unwrap_or(Heard::Nothing))
    });
    let (mut pages, mut known, mut silent, mut unserved) = (vec![], vec![], vec![], None);
    for (replica, heard) in join_all(heard).await {
        match heard {
            Heard::Page(page) => {
                pages.push(page);
                known.push(replica.store());
            }
            Heard::Refused(answer) => return Ok(Gathered::Refused(answer)),
            Heard::Unserved(answer) => unserved = Some(answer),
            Heard::Nothing => silent.push(replica),
        }
    }
    silent.retain(|replica| !known.contains(&replica.store()));
    match unserved {
        _ if !pages.is_empty() => Ok(Gathered::Pages {
            pages,
            unreachable: silent.iter().map(|replica| replica.label()).collect(),
        }),
        Some(answer) if silent.is_empty() => Ok(Gathered::Refused(answer)),
        _ => Err(away()),
    }
}

async fn hear(app: &App, replica: &Replica, asked: &Asked<'_>) -> Heard {
    if !replica.is_healthy() {
        return Heard::Nothing;
    }
    let Ok(answer) = app.proxy.ask(replica, asked.clone()).await else {
        return Heard::Nothing;
    };
    match answer.status() {
        status if status.is_success() => {
            let list = whole(answer, MAX_LIST_BYTES).await;
            let page = list.and_then(|list| serde_json::from_slice(&list).ok());
            page.map_or(Heard::Nothing, Heard::Page)
        }
        StatusCode::NOT_FOUND => Heard::Unserved(refusal(answer).await.1),
        status if status.is_client_error() => Heard::Refused(refusal(answer).await.1),
        _ => Heard::Nothing,
    }
}

/// Returns all servers in an order.
fn in_order(app: &App, order: impl Fn(&[Maker]) -> Vec<usize>) -> Vec<Arc<Replica>> {
    let replicas = app.registry.all();
    let makers: Vec<_> = replicas.iter().map(|replica| replica.maker()).collect();
    let order = order(&makers).into_iter();
    order.map(|place| replicas[place].clone()).collect()
}

/// Returns the path and the query for a server.
fn plain(uri: &Uri) -> Result<&str, VideoError> {
    target(uri).map_err(|_| VideoError::not_found())
}

/// The id of a video that a path names. Servers know what is one.
struct PathVideo(String);

impl<S: Send + Sync> FromRequestParts<S> for PathVideo {
    type Rejection = VideoError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, VideoError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(id) = path.map_err(|_| VideoError::video_not_found())?;
        Ok(Self(id))
    }
}
