//! The route by which a page has the prompts of a whole video written, shot by shot.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::prompts::{RolloutAsk, WrittenPrompts};

use super::app::{App, AppState};
use crate::auth::{Caller, Grant};
use crate::ingress::error::ApiError;
use crate::ingress::extract::Body;
use crate::prompt::{RolloutPrompts, RolloutRequest, WrittenRollout};

/// Number of prompts that a rollout may have.
const MAX_PROMPTS: usize = 24;

pub(super) fn routes(app: &App) -> Router<App> {
    Router::new()
        .route("/v1/prompts/rollout", post(write))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(app.guard().cross_origin())
}

/// Has a language model write the prompts of a video from one prompt, or change those of one. Without a model the caller's own
/// words are used. Every prompt is screened.
#[utoipa::path(post, path = "/v1/prompts/rollout", request_body = RolloutAsk, responses(
    (status = 200, body = WrittenPrompts),
    (status = 400, body = ErrorBody, description = "the body is wrong, a prompt is too long or empty, or there are too many"),
    (status = 403, body = ErrorBody, description = "a prompt is blocked; or CSRF guard: another site's page sent the request"),
    (status = 408, body = ErrorBody, description = "the body took too long"),
    (status = 413, body = ErrorBody, description = "the body is larger than a message may be"),
    (status = 429, body = ErrorBody, description = "the tenant asks too often"),
    (status = 503, body = ErrorBody, description = "too much is being received")
))]
pub(super) async fn write(
    State(app): AppState,
    Extension(caller): Extension<Caller>,
    Body { bytes, share }: Body,
) -> Result<Json<WrittenPrompts>, ApiError> {
    let ask = serde_json::from_slice(&bytes).map_err(|wrong| {
        let message = format!("the body is not {{prompt, count, current}} in JSON: {wrong}");
        ApiError::invalid_body(message)
    })?;
    drop((bytes, share));
    let max_chars = app.context.config.get().limits.max_prompt_chars;
    let request = checked(ask, max_chars).map_err(ApiError::invalid_body)?;
    let tenant = caller.own_tenant();
    let grant = Grant::new(app.auth.clone(), caller);
    if let Err(retry_after) = grant.count_request() {
        let seconds = retry_after.as_secs_f64().ceil();
        let message = format!("your tenant asks too often; try again in {seconds} s");
        let status = StatusCode::TOO_MANY_REQUESTS;
        return Err(ApiError::new(status, "rate_limited", message));
    }
    let prompts = app.context.prompts.clone().of_tenant(tenant);
    let written = prompts.write_rollout(request, max_chars).await;
    let written = written.map_err(|blocked| {
        ApiError::new(StatusCode::FORBIDDEN, "prompt_blocked", blocked.to_string())
    })?;
    Ok(Json(match written {
        WrittenRollout::ByModel(written) => WrittenPrompts {
            prompts: written.prompts,
            label: written.label,
            model: Some(written.model),
            fallback_used: false,
            reason: None,
        },
        WrittenRollout::InOwnWords {
            prompts, reason, ..
        } => WrittenPrompts {
            prompts,
            label: None,
            model: None,
            fallback_used: true,
            reason: Some(reason),
        },
    }))
}

/// Checks what is asked for.
///
/// # Errors
/// Returns what is wrong, with the field, the limit and the value given.
fn checked(ask: RolloutAsk, max_chars: usize) -> Result<RolloutRequest, String> {
    let RolloutAsk {
        prompt,
        count,
        current,
    } = ask;
    let current = current.filter(|prompts| !prompts.is_empty());
    let count = match &current {
        Some(prompts) => prompts.len(),
        None => count.unwrap_or(6),
    };
    if !(1..=MAX_PROMPTS).contains(&count) {
        let field = if current.is_some() {
            "current"
        } else {
            "count"
        };
        return Err(format!(
            "`{field}` must be from 1 to {MAX_PROMPTS}, got {count}"
        ));
    }
    let of_current = current.iter().flatten().map(|prompt| ("current", prompt));
    for (field, prompt) in [("prompt", &prompt)].into_iter().chain(of_current) {
        if prompt.trim().is_empty() {
            return Err(format!("`{field}` is empty"));
        }
        let given = prompt.chars().count();
        if given > max_chars {
            return Err(format!(
                "`{field}` has {given} characters, at most {max_chars} are allowed"
            ));
        }
    }
    Ok(RolloutRequest {
        current: current.map(|prompts| RolloutPrompts {
            id: "story".to_owned(),
            label: "Story".to_owned(),
            prompts,
        }),
        instruction: prompt,
        count,
        model: None,
        temperature: None,
        system_prompt: None,
        id_hint: None,
        label_hint: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ask: &str, expected: Result<usize, &str>) {
        let ask = serde_json::from_str(ask).unwrap();
        let given = checked(ask, 20).map(|request| request.count);
        assert_eq!(given, expected.map_err(str::to_owned));
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        check(r#"{"prompt":"a fox"}"#, Ok(6));
        check(r#"{"prompt":"a fox","count":2,"current":null}"#, Ok(2));
        check(r#"{"prompt":"at night","current":["a","b","c"]}"#, Ok(3));
        check(r#"{"prompt":" "}"#, Err("`prompt` is empty"));
        check(
            r#"{"prompt":"a","count":0}"#,
            Err("`count` must be from 1 to 24, got 0"),
        );
        check(
            r#"{"prompt":"a","current":["b",""]}"#,
            Err("`current` is empty"),
        );
        let long = "x".repeat(21);
        let ask = format!(r#"{{"prompt":"{long}"}}"#);
        check(
            &ask,
            Err("`prompt` has 21 characters, at most 20 are allowed"),
        );
    }
}
