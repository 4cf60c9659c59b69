//! Checks the adapters (LoRA) that the configuration names, as far as that needs no model. `worker/engine/ltx2_loras.rs` reads
//! them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use fastvideo_proto::adapter::{Adapter, MAX_ADAPTER_NAME, MAX_STRENGTH};
use fastvideo_proto::api::workers::{NewAdapter, TriggerPosition};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::settings::{Key, Reader};

/// The most characters of what was given that a message repeats.
const MAX_SHOWN: usize = 100;
/// The longest trigger, in characters.
const MAX_TRIGGER: usize = 1000;

/// An adapter in the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lora {
    name: String,
    path: String,
    #[serde(default)]
    strength: Option<f64>,
    #[serde(default)]
    trigger: Option<String>,
    #[serde(default, rename = "trigger_position")]
    _trigger_position: Option<TriggerPosition>,
    #[serde(default)]
    fused: bool,
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

/// Returns the folder whose adapters an operator may load.
pub(super) fn folder(
    reader: &mut Reader<'_>,
    key: &'static Key<Option<String>>,
) -> Option<PathBuf> {
    let folder = PathBuf::from(reader.get(key)?);
    if !folder.is_dir() {
        reader.refuse(&key.spec, "an existing folder");
    }
    Some(folder)
}

/// The reason why an operator's order is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOrder {
    #[error(
        "`name` must be 1 to {MAX_ADAPTER_NAME} characters, ASCII letters, digits, `-`, `_` or `.`, and must not start with `.`, got `{0}`"
    )]
    Name(String),
    #[error("`trigger` must have at most {MAX_TRIGGER} characters, got {0}")]
    Trigger(usize),
    #[error("`strength` must be from -{MAX_STRENGTH} to {MAX_STRENGTH}, got {0}")]
    Strength(String),
    #[error("`file` must be a file's path within `generator.ltx2.loras_folder`, got `{0}`")]
    Path(String),
    #[error("`file`: there is no file `{0}` in `generator.ltx2.loras_folder`")]
    NoFile(String),
}

/// Checks an operator's order for an adapter of a folder. Returns it with the options that the worker reads.
///
/// # Errors
/// Returns an error that names the field.
pub(crate) fn order(folder: &Path, new: NewAdapter) -> Result<(Adapter, String), BadOrder> {
    let NewAdapter {
        name,
        file,
        strength,
        trigger,
        trigger_position,
    } = new;
    if !is_name(&name) {
        return Err(BadOrder::Name(shown(&name)));
    }
    let strength = strength.unwrap_or(1.0);
    if !(-MAX_STRENGTH..=MAX_STRENGTH).contains(&strength) {
        return Err(BadOrder::Strength(format!("{strength:?}")));
    }
    if let Some(given) = too_long(trigger.as_deref()) {
        return Err(BadOrder::Trigger(given));
    }
    let inside = Path::new(&file);
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if file.is_empty() || !inside.components().all(is_plain) {
        return Err(BadOrder::Path(shown(&file)));
    }
    let path = folder.join(inside);
    if !fs::metadata(&path).is_ok_and(|found| found.is_file()) {
        return Err(BadOrder::NoFile(shown(&file)));
    }
    let options = json!({
        "name": &name,
        "path": path,
        "strength": strength,
        "trigger": trigger,
        "trigger_position": trigger_position,
    });
    Ok((Adapter { name, strength }, options.to_string()))
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
            trigger,
            ..
        } = lora;
        if !is_name(&name) {
            return Err(format!(
                "entry {} to have a name of 1 to {MAX_ADAPTER_NAME} ASCII letters, digits, `-`, `_` or `.`, not starting with `.`",
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
        if too_long(trigger.as_deref()).is_some() {
            return Err(format!(
                "adapter `{name}` to have a trigger of at most {MAX_TRIGGER} characters"
            ));
        }
        if !names.insert(name.clone()) {
            return Err(format!("adapter `{name}` once"));
        }
    }
    Ok(())
}

/// Returns the length of a trigger that is too long, in characters.
fn too_long(trigger: Option<&str>) -> Option<usize> {
    let length = trigger.unwrap_or_default().chars().count();
    (length > MAX_TRIGGER).then_some(length)
}

/// Returns a text as it is repeated in a message.
fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Returns whether a text can name an adapter: it is no path and no address.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MAX_ADAPTER_NAME).contains(&text.len())
        && text.chars().all(allowed)
        && !text.starts_with('.')
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

    #[test]
    fn an_order_names_a_file_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("styles")).unwrap();
        fs::write(folder.path().join("styles/toon.safetensors"), "").unwrap();
        let new = |name: &str, file: &str, strength| NewAdapter {
            name: name.to_owned(),
            file: file.to_owned(),
            strength,
            trigger: Some("TOON".to_owned()),
            trigger_position: TriggerPosition::Back,
        };
        let ordered = |name: &str, file: &str, strength| {
            order(folder.path(), new(name, file, strength)).map_err(|error| error.to_string())
        };
        let (adapter, options) = ordered("toon", "styles/toon.safetensors", None).unwrap();
        assert_eq!((adapter.name.as_str(), adapter.strength), ("toon", 1.0));
        let options: Value = serde_json::from_str(&options).unwrap();
        assert_eq!(options["trigger_position"], "back");
        let path = folder.path().join("styles/toon.safetensors");
        assert_eq!(options["path"], path.to_str().unwrap());
        for (name, file, strength, told) in [
            ("../a", "styles/toon.safetensors", None, "`name` must be"),
            ("a", "styles/toon.safetensors", Some(2.5), "got 2.5"),
            ("a", "styles/toon.safetensors", Some(f64::NAN), "got NaN"),
            ("a", "../x.safetensors", None, "got `../x.safetensors`"),
            ("a", "/etc/passwd", None, "got `/etc/passwd`"),
            ("a", "", None, "got ``"),
            ("a", "styles", None, "no file `styles`"),
            (
                "a",
                "other.safetensors",
                None,
                "no file `other.safetensors`",
            ),
        ] {
            let error = ordered(name, file, strength).unwrap_err();
            assert!(error.contains(told), "{name} {file}: {error}");
        }
    }
}
