//! The styles (LoRA) of FastVideo's web UI. There are none: its control for them stays hidden.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use fastvideo_proto::api::dreamverse::{DetailErrorBody, LoraOptions};

use super::error::DetailError;
use crate::http::app::App;

/// The style that changes nothing.
const NONE: (&str, &str) = ("none", "None");

pub(super) fn routes() -> Router<App> {
    Router::new().route("/lora/options", get(options))
}

pub(super) fn orders() -> Router<App> {
    Router::new().route("/lora", post(apply))
}

/// Lists the styles that users of FastVideo's web UI can choose: none.
#[utoipa::path(get, path = "/lora/options", responses((status = 200, body = LoraOptions)))]
pub(in crate::http) async fn options() -> Json<LoraOptions> {
    let (style, label) = NONE;
    Json(LoraOptions {
        styles: vec![style.to_owned()],
        labels: BTreeMap::from([(style.to_owned(), label.to_owned())]),
        has_base_lora: false,
    })
}

/// Would apply a style, of which there is none.
#[utoipa::path(post, path = "/lora", responses(
    (status = 400, body = DetailErrorBody, description = "there is nothing to apply"),
    (status = 403, body = DetailErrorBody, description = "CSRF guard: another site's page sent the request")
))]
pub(in crate::http) async fn apply() -> DetailError {
    DetailError::new(StatusCode::BAD_REQUEST, "nothing to apply")
}
