//! The operators' routes for adapters (LoRA): list, load and unload them while workers serve.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get};
use axum::{Json, Router};
use fastvideo_proto::api::error::ErrorBody;
use fastvideo_proto::api::workers::{
    AdapterEntry, AdapterList, AdapterOnWorker, AdapterState, NewAdapter, UnloadQuery,
};
use serde_json::{Map, Value};

use crate::http::app::{App, AppState};
use crate::ingress::error::ApiError;
use crate::ingress::extract::{Body, PathName, ValidQuery};
use crate::pool::{
    AdapterStatus, LoadRefused, PoolStatus, UnloadRefused, WorkerAdapter, WorkerAdapterState,
};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/workers/loras", get(list).post(load))
        .route("/v1/workers/loras/{name}", delete(unload))
}

/// Lists the adapters that clients can choose, with the memory that they take on each worker.
#[utoipa::path(get, path = "/v1/workers/loras", responses((status = 200, body = AdapterList)))]
pub(in crate::http) async fn list(State(app): AppState) -> Json<AdapterList> {
    let pool = app.context.pool.status();
    let adapters = app.context.pool.adapters().into_iter();
    Json(AdapterList {
        adapters: adapters.map(|adapter| entry(adapter, &pool)).collect(),
    })
}

/// Loads an adapter from `generator.ltx2.loras_folder` into all workers, each at the end of its running segment. It
/// answers when all have it; from then on clients can choose it. It stays until it is unloaded or the server ends.
#[utoipa::path(post, path = "/v1/workers/loras", request_body = NewAdapter, responses(
    (status = 201, body = AdapterEntry),
    (status = 400, body = ErrorBody, description = "the body or a field of it is wrong"),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 408, body = ErrorBody, description = "the body took too long"),
    (status = 409, body = ErrorBody, description = "the name is taken, sessions have chosen another adapter of that name that was unloaded, no folder is configured, or the adapter was unloaded while it was loading"),
    (status = 413, body = ErrorBody, description = "the body is larger than a message may be"),
    (status = 422, body = ErrorBody, description = "a worker cannot load it: the message says why, and none has it"),
    (status = 503, body = ErrorBody, description = "no worker serves, one is too slow, or too much is being received")
))]
pub(in crate::http) async fn load(
    State(app): AppState,
    Body { bytes, share }: Body,
) -> Result<(StatusCode, Json<AdapterEntry>), ApiError> {
    let new = read(&bytes).map_err(ApiError::invalid_body)?;
    drop((bytes, share));
    let (pool, name) = (&app.context.pool, new.name.clone());
    if let Err(why) = pool.load_adapter(new).await {
        return Err(not_loaded(&why));
    }
    tracing::info!(adapter = name, "an operator's order: adapter loaded");
    let loaded = pool.adapters().into_iter();
    let mut loaded = loaded.filter(|adapter| adapter.adapter.name == name);
    let loaded = loaded.next().ok_or(LoadRefused::Unloaded);
    let loaded = loaded.map_err(|why| not_loaded(&why))?;
    let entry = entry(loaded, &pool.status());
    Ok((StatusCode::CREATED, Json(entry)))
}

/// Unloads an adapter that was loaded by order. Each worker drops it at the end of its running segment.
#[utoipa::path(delete, path = "/v1/workers/loras/{name}", params(("name" = String, Path), UnloadQuery), responses(
    (status = 204, description = "clients cannot choose it any more"),
    (status = 400, body = ErrorBody, description = "a parameter is wrong"),
    (status = 403, body = ErrorBody, description = "CSRF guard: another site's page sent the request"),
    (status = 404, body = ErrorBody, description = "there is no such adapter"),
    (status = 409, body = ErrorBody, description = "the configuration names it, or sessions have chosen it")
))]
pub(in crate::http) async fn unload(
    State(app): AppState,
    PathName(name): PathName,
    ValidQuery(query): ValidQuery<UnloadQuery>,
) -> Result<StatusCode, ApiError> {
    let unloaded = app.context.pool.unload_adapter(&name, query.force);
    unloaded.map_err(|why| {
        let (status, code) = match &why {
            UnloadRefused::Unknown(_) => (StatusCode::NOT_FOUND, "not_found"),
            UnloadRefused::Configured(_) => (StatusCode::CONFLICT, "adapter_configured"),
            UnloadRefused::InUse { .. } => (StatusCode::CONFLICT, "adapter_in_use"),
        };
        ApiError::new(status, code, why.to_string())
    })?;
    tracing::info!(
        adapter = name,
        force = query.force,
        "an operator's order: adapter unloaded"
    );
    Ok(StatusCode::NO_CONTENT)
}

/// Reads the body of an order.
///
/// # Errors
/// Returns what is wrong with which field.
fn read(body: &[u8]) -> Result<NewAdapter, String> {
    let wrong = "the body is not a valid adapter in JSON";
    let fields: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| format!("{wrong}: {error}"))?;
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| {
        match error.path().to_string() {
            whole if whole == "." => format!("{wrong}: {}", error.inner()),
            field => format!("`{field}`: {}", error.inner()),
        }
    })
}

fn not_loaded(why: &LoadRefused) -> ApiError {
    let (status, code) = match why {
        LoadRefused::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid_body"),
        LoadRefused::NameTaken(_) => (StatusCode::CONFLICT, "adapter_exists"),
        LoadRefused::StillChosen { .. } => (StatusCode::CONFLICT, "adapter_in_use"),
        LoadRefused::NoFolder => (StatusCode::CONFLICT, "no_adapters_folder"),
        LoadRefused::Unloaded => (StatusCode::CONFLICT, "adapter_unloaded"),
        LoadRefused::Failed { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "adapter_refused"),
        LoadRefused::NoWorker => (StatusCode::SERVICE_UNAVAILABLE, "no_worker"),
        LoadRefused::TooSlow(_) => (StatusCode::SERVICE_UNAVAILABLE, "too_slow"),
    };
    ApiError::new(status, code, why.to_string())
}

fn entry(adapter: AdapterStatus, pool: &PoolStatus) -> AdapterEntry {
    let AdapterStatus {
        adapter,
        configured,
        offered,
        sessions,
    } = adapter;
    let mut metadata = BTreeMap::new();
    let mut workers = BTreeMap::new();
    for slot in &pool.workers {
        let Some(held) = slot.status.adapters.get(&adapter.name) else {
            continue;
        };
        if let WorkerAdapterState::Loaded(loaded) = &held.state {
            metadata.clone_from(&loaded.metadata);
        }
        workers.insert(slot.status.gpu.id, on_worker(held));
    }
    AdapterEntry {
        name: adapter.name,
        strength: adapter.strength,
        configured,
        offered,
        sessions,
        metadata,
        workers,
    }
}

/// Describes an adapter on one worker.
pub(in crate::http) fn on_worker(adapter: &WorkerAdapter) -> AdapterOnWorker {
    let empty = AdapterOnWorker {
        state: AdapterState::Loading,
        bytes: None,
        layers: None,
        rank: None,
        error: None,
    };
    match &adapter.state {
        WorkerAdapterState::Loading => empty,
        WorkerAdapterState::Loaded(loaded) => AdapterOnWorker {
            state: AdapterState::Loaded,
            bytes: Some(loaded.bytes),
            layers: Some(loaded.layers),
            rank: Some(loaded.rank),
            ..empty
        },
        WorkerAdapterState::Failed(message) => AdapterOnWorker {
            state: AdapterState::Failed,
            error: Some(message.clone()),
            ..empty
        },
    }
}
