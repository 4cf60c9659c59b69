//! The first lines of the log: what this server is, and what it was told to do.

use std::path::Path;

use fastvideo_supervisor_core::Config;
use fastvideo_supervisor_core::engines::config::MODEL_PATH;
use fastvideo_supervisor_core::settings::Settings;

/// Logs the version, the configuration file, the engine with its model, the GPUs, and where sessions are kept. No line has a
/// password.
pub(crate) fn log(config: &Config, settings: &Settings, file: Option<&Path>) {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
    match file {
        Some(file) => tracing::info!(file = %file.display(), "configuration"),
        None => tracing::info!("configuration without a file"),
    }
    let model = settings.get(&MODEL_PATH);
    tracing::info!(name = config.pool.engine.name, model, "engine");
    let gpus = config.pool.gpus.iter().map(|gpu| &*gpu.visible_device);
    let gpus: Vec<&str> = gpus.collect();
    tracing::info!(gpus = gpus.join(","), "workers");
    tracing::info!(location = %config.store.location, "store");
}
