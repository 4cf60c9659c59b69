//! `GET /metrics`, and the metrics of HTTP requests themselves, for servers and routers.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::access::{self, Sender};
use super::error::ApiError;
use crate::metrics::{Bounds, Format, Histograms, Metrics, seconds};

/// The number of scrapes at once. Each holds its text in memory.
const MAX_SCRAPES: usize = 4;
/// The upper bounds that OpenTelemetry recommends for the duration of HTTP requests, in seconds.
const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// The route of a request for something that is not there.
const NO_ROUTE: &str = "other";

/// Measures HTTP requests. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct HttpMetrics(Histograms<RequestLabels>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    http_request_method: &'static str,
    http_route: String,
    http_response_status_code: u16,
}

/// Everything that can be scraped. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Scrapes {
    metrics: Arc<Metrics>,
    running: Arc<Semaphore>,
}

impl HttpMetrics {
    /// Creates the metrics and registers them.
    pub(crate) fn register(metrics: &mut Metrics) -> Self {
        let durations = Family::new_with_constructor(Bounds(&BOUNDS));
        metrics.without_prefix().register(
            "http_server_request_duration_seconds",
            "Time from a request's head to the head of its answer, by OpenTelemetry's conventions; the route is that of the API's description",
            Histograms::clone(&durations),
        );
        Self(durations)
    }
}

impl Scrapes {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            metrics: Arc::new(metrics),
            running: Arc::new(Semaphore::new(MAX_SCRAPES)),
        }
    }

    /// Renders all metrics in the format that the request accepts. The text is made in memory, outside of all locks.
    pub(crate) async fn answer(&self, headers: &HeaderMap) -> Result<Response, ApiError> {
        let Ok(permit) = self.running.clone().try_acquire_owned() else {
            let message = format!("{MAX_SCRAPES} scrapes run already, which is the limit");
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_scrapes",
                message,
            ));
        };
        let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
        let format = Format::accepted(accept);
        let metrics = self.metrics.clone();
        let rendered = spawn_blocking(move || metrics.render(format)).await;
        drop(permit);
        match rendered {
            Ok(Ok(text)) => Ok(([(CONTENT_TYPE, format.content_type())], text).into_response()),
            Ok(Err(_)) | Err(_) => Err(ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal_error",
                "the metrics cannot be written".to_owned(),
            )),
        }
    }
}

/// Measures a request, and writes its line of the access log.
pub(crate) async fn measure(
    State(HttpMetrics(durations)): State<HttpMetrics>,
    request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let http_request_method = method_name(request.method());
    let path = request.extensions().get::<MatchedPath>();
    let http_route = path.map_or(NO_ROUTE, MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let took = began.elapsed();
    let status = response.status().as_u16();
    let sender = response.extensions().get::<Sender>();
    let id = response.headers().get(access::REQUEST_ID);
    let id = id.and_then(|id| id.to_str().ok());
    let asked = (http_request_method, http_route.as_str());
    access::log(asked, status, took, sender, id);
    let labels = RequestLabels {
        http_request_method,
        http_route,
        http_response_status_code: status,
    };
    let duration = durations.get_or_create(&labels);
    duration.observe(seconds(took));
    drop(duration);
    response
}

/// Returns a method's name; clients can invent others, which are one.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}
