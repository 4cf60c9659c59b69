//! The choice of an engine: the keys `generator.*` that all engines share.

use super::{Engine, ltx2, synthetic};
use crate::settings::{Key, KeySpec, Origin, Reader};

/// The most GPUs that can be configured: sixteen GPUs split into seven MIG instances each, with room to spare.
pub const MAX_GPUS: u32 = 128;

/// The engine, how many GPUs it gets, and its model.
pub static KEYS: &[&KeySpec] = &[&NAME.spec, &NUM_GPUS.spec, &MODEL_PATH.spec];

static NAME: Key<Option<String>> = Key::choice(
    "generator.engine.name",
    &[synthetic::NAME, ltx2::NAME],
)
.short("engine")
.help("The model's engine; synthetic makes test pictures and sound without a GPU [default: ltx2 with a model, else synthetic]");

/// FastVideo's name for the number of GPUs; the pool reads it.
pub static NUM_GPUS: Key<Option<u32>> = Key::u32("generator.engine.num_gpus", 1, MAX_GPUS)
    .unit("GPUs")
    .help(
        "Number of GPUs where neither --gpus nor streaming.pool.num_workers says so [default: 1]",
    );

pub static MODEL_PATH: Key<Option<String>> = Key::text("generator.model_path")
    .short("model")
    .help("The model: a folder or a Hugging Face id");

#[derive(Debug, thiserror::Error)]
#[error(
    "engine ltx2 needs a model ({origin}): `--model` names a folder or a repository; `--engine synthetic` serves test pictures without one"
)]
struct NoModel {
    origin: Origin,
}

/// Returns the engine that is named, or else the one that can run the model.
pub fn read(reader: &mut Reader<'_>) -> Engine {
    let model = reader.get(&MODEL_PATH);
    match reader.get(&NAME).as_deref() {
        Some(synthetic::NAME) => return synthetic::read(reader),
        None if model.is_none() => return synthetic::read(reader),
        _ => {}
    }
    match &model {
        Some(_) => reader.refuse_blank(&MODEL_PATH, "a folder or the id of a repository"),
        None => {
            let origin = reader.origin(&NAME.spec);
            reader.refuse_because(NoModel { origin });
        }
    }
    ltx2::read(reader, &model.unwrap_or_default())
}

/// Returns whether test pictures are served only because nothing was configured.
pub fn is_synthetic_by_default(reader: &Reader<'_>) -> bool {
    reader.get(&NAME).is_none() && reader.get(&MODEL_PATH).is_none()
}

/// Returns the path of the model's key when a model is named but the chosen engine runs none.
pub fn unused_model(reader: &Reader<'_>) -> Option<&'static str> {
    let is_unused = reader.get(&NAME).as_deref() == Some(synthetic::NAME);
    (is_unused && reader.get(&MODEL_PATH).is_some()).then_some(MODEL_PATH.spec.path)
}
