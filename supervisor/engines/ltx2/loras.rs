//! Checks the adapters (LoRA) that the configuration names, as far as that needs no model. `worker/engine/ltx2_loras.rs` reads
//! them.

use std::collections::BTreeSet;

use fastvideo_proto::adapter::{Adapter, MAX_STRENGTH};
use serde::Deserialize;
use serde_json::Value;

use crate::settings::{Key, Reader};

/// The longest name of an adapter, in characters.
const MAX_NAME: usize = 64;

/// An adapter in the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lora {
    name: String,
    path: String,
    #[serde(default)]
    strength: Option<f64>,
    #[serde(default, rename = "trigger")]
    _trigger: Option<String>,
    #[serde(default, rename = "trigger_position")]
    _trigger_position: Option<TriggerPosition>,
    #[serde(default)]
    fused: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TriggerPosition {
    Front,
    Back,
}

/// Reports what is wrong with the list.
pub(super) fn check(reader: &mut Reader<'_>, key: &'static Key<Option<Vec<Value>>>) {
    let Some(list) = reader.get(key) else {
        return;
    };
    if let Err(expected) = checked(&list) {
        reader.refuse(&key.spec, expected);
    }
}

/// Returns the adapters that clients can choose from.
pub(super) fn offered(reader: &Reader<'_>, key: &'static Key<Option<Vec<Value>>>) -> Vec<Adapter> {
    let list = reader.get(key).unwrap_or_default();
    let loras = list
        .into_iter()
        .filter_map(|value| serde_json::from_value(value).ok());
    loras
        .filter(|lora: &Lora| !lora.fused)
        .map(|lora| Adapter {
            name: lora.name,
            strength: lora.strength.unwrap_or(1.0),
        })
        .collect()
}

/// # Errors
/// Returns what was expected.
fn checked(list: &[Value]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for (i, value) in list.iter().enumerate() {
        let lora: Lora = serde_json::from_value(value.clone())
            .map_err(|error| format!("entry {} to be an adapter: {error}", i + 1))?;
        let Lora {
            name,
            path,
            strength,
            ..
        } = lora;
        if !is_name(&name) {
            return Err(format!(
                "entry {} to have a name of 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`",
                i + 1
            ));
        }
        if path.trim().is_empty() {
            return Err(format!("adapter `{name}` to have a path"));
        }
        if strength.is_some_and(|s| !(-MAX_STRENGTH..=MAX_STRENGTH).contains(&s)) {
            return Err(format!(
                "adapter `{name}` to have a strength of -{MAX_STRENGTH} to {MAX_STRENGTH}"
            ));
        }
        if !names.insert(name.clone()) {
            return Err(format!("adapter `{name}` once"));
        }
    }
    Ok(())
}

/// Returns whether a text can name an adapter: it is no path and no address.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MAX_NAME).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_with_an_adapter_is_told() {
        let told = |list: &Value| checked(list.as_array().unwrap()).unwrap_err();
        checked(&[
            json!({"name": "toon", "path": "/m/toon.safetensors", "strength": -2, "trigger": "TOON",
                "trigger_position": "back"}),
            json!({"name": "base-2.3", "path": "b", "fused": true}),
        ])
        .unwrap();
        for (list, expected) in [
            (json!([{"name": "a"}]), "missing field `path`"),
            (
                json!([{"name": "../a", "path": "b"}]),
                "entry 1 to have a name",
            ),
            (json!([{"name": "", "path": "b"}]), "entry 1 to have a name"),
            (
                json!([{"name": "a", "path": " "}]),
                "adapter `a` to have a path",
            ),
            (
                json!([{"name": "a", "path": "b", "strength": 3}]),
                "adapter `a` to have a strength of -2 to 2",
            ),
            (
                json!([{"name": "a", "path": "b"}, {"name": "a", "path": "c"}]),
                "adapter `a` once",
            ),
            (
                json!([{"name": "a", "path": "b", "scale": 1}]),
                "unknown field `scale`",
            ),
            (
                json!([{"name": "a", "path": "b", "trigger_position": "middle"}]),
                "unknown variant `middle`",
            ),
        ] {
            assert!(told(&list).contains(expected), "{list}: {}", told(&list));
        }
    }
}
