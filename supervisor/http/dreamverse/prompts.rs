//! The system prompts, as the UI's tools for developers show and change them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::prompts::{NewPromptSystemConfig, PromptSystemConfig};
use serde_json::{Map, Value};

use crate::causes::with_causes;
use crate::http::app::{App, AppState};
use crate::ingress::error::ApiError;
use crate::ingress::extract::Body;
use crate::prompt::{NewSystemPrompts, SystemPrompt, SystemPromptError, SystemPrompts};

pub(super) fn routes() -> Router<App> {
    Router::new().route("/prompt-system-config", get(show))
}

pub(super) fn orders() -> Router<App> {
    Router::new().route("/prompt-system-config", post(change))
}

/// Returns the system prompts in use, and the model and the temperature of rollouts.
#[utoipa::path(get, path = "/prompt-system-config", responses((status = 200, body = PromptSystemConfig)))]
pub(in crate::http) async fn show(State(app): AppState) -> Json<PromptSystemConfig> {
    Json(app.context.prompts.system_prompts().into())
}

/// Writes system prompts to `streaming.prompt.system_prompt_dir` and reads all of them again. A model and a temperature of
/// rollouts hold until the server ends. What is absent or null stays as it is.
#[utoipa::path(post, path = "/prompt-system-config", request_body = NewPromptSystemConfig, responses(
    (status = 200, body = PromptSystemConfig, description = "as it is now"),
    (status = 400, body = ErrorBody, description = "the body is wrong, a system prompt is blank or too large, or the model is unknown: nothing has changed"),
    (status = 403, body = ErrorBody, description = "there is no folder for system prompts; or CSRF guard: another site's page sent the request"),
    (status = 408, body = ErrorBody, description = "the body took too long"),
    (status = 413, body = ErrorBody, description = "the body is larger than a message may be"),
    (status = 422, body = ErrorBody, description = "a system prompt in the folder cannot be read: what was written has no effect yet"),
    (status = 500, body = ErrorBody, description = "the folder cannot be written"),
    (status = 503, body = ErrorBody, description = "too much is being received")
))]
pub(in crate::http) async fn change(
    State(app): AppState,
    Body { bytes, share }: Body,
) -> Result<Json<PromptSystemConfig>, ApiError> {
    let new = read(&bytes).map_err(ApiError::invalid_body)?;
    drop((bytes, share));
    let prompts = app.context.prompts.clone();
    let changed = app.reloads.alone(move |_| {
        prompts.set_system_prompts(new.into())?;
        Ok(prompts.system_prompts())
    });
    let changed = changed.await.map_err(|panic| ApiError::internal(&panic))?;
    let now = changed.map_err(|why| refusal(&why))?;
    tracing::info!("an operator's order: system prompts changed");
    Ok(Json(now.into()))
}

/// Reads the body of an order.
///
/// # Errors
/// Returns what is wrong with which field.
fn read(body: &[u8]) -> Result<NewPromptSystemConfig, String> {
    let wrong = |error: &dyn std::fmt::Display| {
        format!("the body is not a change of system prompts in JSON: {error}")
    };
    let fields: Map<String, Value> = serde_json::from_slice(body).map_err(|error| wrong(&error))?;
    let new = serde_path_to_error::deserialize(Value::Object(fields));
    new.map_err(|error| wrong(&error))
}

fn refusal(why: &SystemPromptError) -> ApiError {
    let reason = with_causes(why);
    let (status, code) = match why {
        SystemPromptError::Blank(_)
        | SystemPromptError::TooLarge { .. }
        | SystemPromptError::UnknownModel(_) => return ApiError::invalid_body(reason),
        SystemPromptError::NoFolder => (StatusCode::FORBIDDEN, "no_system_prompt_dir"),
        SystemPromptError::NotWritten { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "not_written"),
        SystemPromptError::NotReloaded(_) => (StatusCode::UNPROCESSABLE_ENTITY, "not_reloaded"),
    };
    tracing::warn!(error = reason, "system prompts not changed");
    ApiError::new(status, code, reason)
}

impl From<SystemPrompts> for PromptSystemConfig {
    fn from(prompts: SystemPrompts) -> Self {
        let split =
            |SystemPrompt { text, path }| (text, path.map(|path| path.display().to_string()));
        let (enhance, enhance_path) = split(prompts.enhance);
        let (auto_extend, auto_extend_path) = split(prompts.auto_extend);
        let (rollout_edit, rollout_edit_path) = split(prompts.rollout_edit);
        let (rollout_new, rollout_new_path) = split(prompts.rollout_new);
        Self {
            next_segment_system_prompt: enhance,
            next_segment_system_prompt_path: enhance_path,
            auto_extension_system_prompt: auto_extend,
            auto_extension_system_prompt_path: auto_extend_path,
            rewrite_window_system_prompt: rollout_edit,
            rewrite_window_system_prompt_path: rollout_edit_path,
            rewrite_user_system_prompt: rollout_new,
            rewrite_user_system_prompt_path: rollout_new_path,
            rewrite_model: prompts.rollout_model,
            rewrite_model_options: Vec::new(),
            rewrite_temperature: prompts.rollout_temperature,
        }
    }
}

impl From<NewPromptSystemConfig> for NewSystemPrompts {
    fn from(new: NewPromptSystemConfig) -> Self {
        Self {
            enhance: new.next_segment_system_prompt,
            auto_extend: new.auto_extension_system_prompt,
            rollout_new: new.rewrite_user_system_prompt,
            rollout_edit: new.rewrite_window_system_prompt,
            rollout_model: new.rewrite_model,
            rollout_temperature: new.rewrite_temperature,
        }
    }
}
