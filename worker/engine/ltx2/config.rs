//! Reads configuration values from a checkpoint's files.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::generation::Generation;
use crate::weights::Weights;

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
        "{part}: this is a checkpoint of {generation} (`{key}`: {given}); this engine runs LTX-2.0 and LTX-2.3"
    )]
    Generation {
        part: &'static str,
        generation: &'static str,
        key: String,
        given: String,
    },
    /// The switches are not those of one generation.
    #[error(
        "{part}: its switches are of two generations: {older} as in LTX-2.0; {newer} as in LTX-2.3"
    )]
    Mixed {
        part: &'static str,
        older: String,
        newer: String,
    },
    /// The tensors are not of the generation that the configuration says.
    #[error("{part}: its configuration is one of {generation}, but tensor `{tensor}` is {found}")]
    Contradiction {
        part: &'static str,
        generation: Generation,
        tensor: String,
        found: &'static str,
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

/// A switch of a configuration, for [`generation`].
pub(crate) struct Switch {
    pub(crate) key: &'static str,
    /// The value in LTX-2.0, which an absent key has too. LTX-2.3 has the other one.
    pub(crate) in_v2_0: bool,
}

/// Reads the generation from switches, which must all be those of one generation. Returns `None` where all are absent.
///
/// # Errors
/// Returns an error that names the switches when they contradict each other, or when one is no boolean.
pub(crate) fn generation(
    part: &'static str,
    json: &Value,
    switches: &[Switch],
) -> Result<Option<Generation>, ConfigError> {
    let mut older = Vec::new();
    let mut newer = Vec::new();
    let mut any = false;
    for Switch { key, in_v2_0 } in switches {
        match json.get(*key) {
            None => older.push(format!("no `{key}`")),
            Some(Value::Bool(given)) => {
                any = true;
                let side = if given == in_v2_0 {
                    &mut older
                } else {
                    &mut newer
                };
                side.push(format!("`{key}`: {given}"));
            }
            Some(given) => {
                return Err(ConfigError::Value {
                    part,
                    key: (*key).to_owned(),
                    expected: "true or false".to_owned(),
                    given: given.to_string(),
                });
            }
        }
    }
    match (older.is_empty(), newer.is_empty()) {
        (_, true) if !any => Ok(None),
        (_, true) => Ok(Some(Generation::V2_0)),
        (true, _) => Ok(Some(Generation::V2_3)),
        (false, false) => Err(ConfigError::Mixed {
            part,
            older: older.join(", "),
            newer: newer.join(", "),
        }),
    }
}

/// Checks that a tensor which only LTX-2.3 has, or only LTX-2.0, is there or is not.
///
/// # Errors
/// Returns an error that names the tensor.
pub(crate) fn check_tensor(
    part: &'static str,
    generation: Generation,
    weights: &Weights,
    tensor: &str,
    only: Generation,
) -> Result<(), ConfigError> {
    let is_there = weights.shape(tensor).is_some();
    if !weights.is_known() || is_there == (generation == only) {
        return Ok(());
    }
    Err(ConfigError::Contradiction {
        part,
        generation,
        tensor: tensor.to_owned(),
        found: if is_there { "there" } else { "missing" },
    })
}
