//! The built-in page: files embedded in the binary, so that it needs neither a build step nor a network.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use super::app::App;

/// The page loads nothing from elsewhere and runs nothing inline.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; \
     connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

pub(super) fn routes() -> Router<App> {
    let script = |text| file("text/javascript; charset=utf-8", text);
    Router::new()
        .route(
            "/",
            file("text/html; charset=utf-8", include_str!("page/index.html")),
        )
        .route(
            "/page.css",
            file("text/css; charset=utf-8", include_str!("page/page.css")),
        )
        .route(
            "/favicon.svg",
            file("image/svg+xml", include_str!("page/favicon.svg")),
        )
        .route("/page.js", script(include_str!("page/page.js")))
        .route("/board.js", script(include_str!("page/board.js")))
        .route("/dom.js", script(include_str!("page/dom.js")))
        .route("/field.js", script(include_str!("page/field.js")))
        .route("/lost.js", script(include_str!("page/lost.js")))
        .route("/opening.js", script(include_str!("page/opening.js")))
        .route("/player.js", script(include_str!("page/player.js")))
        .route("/segments.js", script(include_str!("page/segments.js")))
}

fn file(mime: &'static str, text: &'static str) -> axum::routing::MethodRouter<App> {
    get(async move || {
        let headers = [
            (header::CONTENT_TYPE, mime),
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (headers, text).into_response()
    })
}
