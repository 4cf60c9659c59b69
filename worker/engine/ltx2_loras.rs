//! The adapters (LoRA) that the operator has named for a model: which are part of the weights, which wait to be chosen, and
//! the words that belong to them in a prompt.

use std::path::PathBuf;

use fastvideo_ltx2::adapters::{AdapterError, AdapterFile, AdapterReport, Adapters, Choice};
use fastvideo_proto::adapter::HeldAdapter;
use fastvideo_proto::state::blob_hash;
use serde::Deserialize;

/// The size of an entry of a file's metadata that the supervisor is told, and the number of these. Trainers write whole
/// protocols into some entries.
const MAX_METADATA: usize = 256;
const MAX_METADATA_ENTRIES: usize = 32;

/// An adapter as the operator names it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lora {
    /// The name that clients choose it by.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The strength where a client names none, and that of an adapter that is part of the weights.
    #[serde(default = "whole")]
    pub(crate) strength: f64,
    /// Words that the adapter was trained with. They are added to a prompt that does not have them.
    #[serde(default)]
    pub(crate) trigger: Option<String>,
    #[serde(default)]
    pub(crate) trigger_position: TriggerPosition,
    /// Whether it is added to the weights for all sessions while these are loaded.
    #[serde(default)]
    pub(crate) fused: bool,
}

/// Where the trigger words stand in a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TriggerPosition {
    #[default]
    Front,
    Back,
}

fn whole() -> f64 {
    1.0
}

/// Returns the adapters that are added to the weights, each with its strength.
pub(super) fn fused(loras: &[Lora]) -> Vec<(PathBuf, f64)> {
    let fused = loras.iter().filter(|lora| lora.fused);
    fused
        .map(|lora| (lora.path.clone(), lora.strength))
        .collect()
}

/// Loads the adapters that clients choose from. Returns what the supervisor is told of them.
///
/// # Errors
/// Returns an error that names the first one that cannot be loaded.
pub(super) fn load_all(
    loras: &[Lora],
    adapters: &mut Adapters,
) -> Result<Vec<HeldAdapter>, AdapterError> {
    let chosen = loras.iter().filter(|lora| !lora.fused);
    chosen.map(|lora| load(lora, adapters)).collect()
}

/// Loads an adapter that clients choose. Its file may be changed at any time: it is copied, and told by its hash.
///
/// # Errors
/// Returns an error when it cannot be loaded.
pub(super) fn load(lora: &Lora, adapters: &mut Adapters) -> Result<HeldAdapter, AdapterError> {
    let file = AdapterFile::copy(&lora.path, adapters.limits().file_bytes)?;
    let report = adapters.load(&lora.name, &file)?;
    Ok(held(report, blob_hash(file.bytes())))
}

fn held(report: AdapterReport, file_hash: [u8; 32]) -> HeldAdapter {
    let is_short = |(key, value): &(String, String)| key.len() + value.len() <= MAX_METADATA;
    HeldAdapter {
        name: report.name,
        bytes: report.bytes,
        layers: u32::try_from(report.layers).unwrap_or(u32::MAX),
        rank: u32::try_from(report.rank).unwrap_or(u32::MAX),
        file_hash,
        metadata: (report.metadata.into_iter().filter(is_short))
            .take(MAX_METADATA_ENTRIES)
            .collect(),
    }
}

/// Returns a prompt with the trigger words of all adapters that act: those in the weights, and those that are chosen.
pub(super) fn with_triggers(prompt: &str, loras: &[Lora], chosen: &[Choice]) -> String {
    let mut prompt = prompt.to_owned();
    for lora in loras {
        let strength = match lora.fused {
            true => lora.strength,
            false => chosen
                .iter()
                .find(|choice| choice.name == lora.name)
                .map_or(0.0, |choice| choice.strength),
        };
        let trigger = lora.trigger.as_deref().unwrap_or_default().trim();
        let is_there = prompt.to_lowercase().contains(&trigger.to_lowercase());
        if strength == 0.0 || trigger.is_empty() || is_there {
            continue;
        }
        prompt = match lora.trigger_position {
            TriggerPosition::Front => format!("{trigger} {prompt}"),
            TriggerPosition::Back => format!("{prompt} {trigger}"),
        };
    }
    prompt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lora(name: &str, trigger: &str, trigger_position: TriggerPosition, fused: bool) -> Lora {
        Lora {
            name: name.to_owned(),
            path: PathBuf::from("x.safetensors"),
            strength: 1.0,
            trigger: Some(trigger.to_owned()),
            trigger_position,
            fused,
        }
    }

    #[test]
    fn trigger_words_are_added_once_and_only_for_what_acts() {
        let loras = [
            lora("toon", "TOONSTYLE", TriggerPosition::Front, false),
            lora("fade", "slow fade", TriggerPosition::Back, false),
            lora("base", "hd", TriggerPosition::Front, true),
        ];
        let choice = |name: &str, strength| Choice {
            name: name.to_owned(),
            strength,
        };
        let with = |prompt: &str, chosen: &[Choice]| with_triggers(prompt, &loras, chosen);
        assert_eq!(with("a fox", &[]), "hd a fox");
        assert_eq!(
            with("a fox", &[choice("toon", 0.5), choice("fade", -1.0)]),
            "hd TOONSTYLE a fox slow fade"
        );
        assert_eq!(
            with("a toonstyle HD fox", &[choice("toon", 1.0)]),
            "a toonstyle HD fox"
        );
        assert_eq!(with("a fox", &[choice("fade", 0.0)]), "hd a fox");
    }
}
