//! Reads configuration values from a checkpoint's files.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// The reason why a configuration file does not belong to a model that this engine runs.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{part}: configuration key `{key}`: expected {expected}, given {given}")]
    Value {
        part: &'static str,
        key: String,
        expected: String,
        given: String,
    },
    #[error(
        "{part}: this is a checkpoint of {generation} (`{key}`: {given}); this engine runs LTX-2.0"
    )]
    Generation {
        part: &'static str,
        generation: &'static str,
        key: String,
        given: String,
    },
    #[error("{part}: {source}")]
    Json {
        part: &'static str,
        #[source]
        source: serde_json::Error,
    },
}

/// Reads a configuration whose keys are the fields of `T`; other keys are left to the caller.
///
/// # Errors
/// Returns an error that names the key that is missing or of another type.
pub fn read<T: DeserializeOwned>(part: &'static str, json: &Value) -> Result<T, ConfigError> {
    serde_json::from_value(json.clone()).map_err(|source| ConfigError::Json { part, source })
}

/// Refuses a switch that this engine does not implement. A key that is absent holds by default.
///
/// # Errors
/// Returns an error when the key has another value than `implemented`.
pub fn only(
    part: &'static str,
    json: &Value,
    key: &str,
    implemented: &Value,
) -> Result<(), ConfigError> {
    match json.get(key) {
        None => Ok(()),
        Some(given) if given == implemented => Ok(()),
        Some(given) => Err(ConfigError::Value {
            part,
            key: key.to_owned(),
            expected: implemented.to_string(),
            given: given.to_string(),
        }),
    }
}
