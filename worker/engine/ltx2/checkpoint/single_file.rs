//! The authors' single file: all parts but the text encoder and the upsampler in one safetensors file, whose metadata are
//! their configurations.
//!
//! The text encoder is a folder beside the file, and the upsampler another file there, unless the caller names others.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::layout::Component;
use super::tensors::{Shard, TensorFileError};
use super::{CheckpointError, is_hidden, read_json};

/// What belongs to a model in one file and is not in it. What is `None` is looked for beside the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Companions {
    /// The folder of Gemma 3, with its tokenizer.
    pub text_encoder: Option<PathBuf>,
    /// The file or the folder of the latent upsampler.
    pub upsampler: Option<PathBuf>,
}

/// A safetensors file with a model's configuration in its metadata.
#[derive(Debug)]
pub(super) struct SingleFile {
    pub(super) path: PathBuf,
    pub(super) shard: Shard,
    /// The configurations of all parts.
    pub(super) config: Value,
    /// The model's version, for example `2.3.0`.
    pub(super) version: Option<String>,
    /// Whether the metadata have what only later generations have.
    pub(super) names_its_text_encoder: bool,
}

impl SingleFile {
    /// Reads a file's metadata. Returns `None` for a file without a configuration.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let shard = Shard::open(path.to_owned())?;
        let (_, metadata) = shard.metadata()?;
        let Some(entries) = metadata.metadata() else {
            return Ok(None);
        };
        let Some(config) = entries.get("config") else {
            return Ok(None);
        };
        let config = serde_json::from_str(config).map_err(|source| CheckpointError::Json {
            path: path.to_owned(),
            source,
        })?;
        Ok(Some(Self {
            path: path.to_owned(),
            config,
            version: entries.get("model_version").cloned(),
            names_its_text_encoder: entries.contains_key("gemma_source_checkpoint"),
            shard,
        }))
    }

    /// Returns whether the file has a model, and not only one of its parts.
    fn is_model(&self) -> bool {
        self.config.get("transformer").is_some()
    }

    /// Returns whether the file has an upsampler that doubles rows and columns, or one of another kind.
    fn is_upsampler(&self) -> Option<bool> {
        let class = self.config.get("_class_name").and_then(Value::as_str)?;
        let doubles = self.config["spatial_upsample"] == true
            && self.config["temporal_upsample"] == false
            && self
                .config
                .get("spatial_scale")
                .and_then(Value::as_f64)
                .unwrap_or(2.0)
                == 2.0;
        (class == "LatentUpsampler").then_some(doubles)
    }
}

/// Returns the part that a tensor of the single file belongs to, and its name within that part.
pub(super) fn part_of(stored: &str) -> Option<(Component, &str)> {
    const CONNECTORS: [&str; 3] = [
        "video_embeddings_connector.",
        "audio_embeddings_connector.",
        "embeddings_connector.",
    ];
    if let Some(name) = stored.strip_prefix("model.diffusion_model.") {
        let is_connector = CONNECTORS.iter().any(|prefix| name.starts_with(prefix));
        return Some(match is_connector {
            true => (Component::Connectors, name),
            false => (Component::Transformer, name),
        });
    }
    [
        ("text_embedding_projection.", Component::Connectors),
        ("vae.", Component::VideoVae),
        ("audio_vae.", Component::AudioVae),
        ("vocoder.", Component::Vocoder),
    ]
    .into_iter()
    .find_map(|(prefix, component)| Some((component, stored.strip_prefix(prefix)?)))
}

/// Returns the only model in one file of a folder; `None` if there is none.
///
/// # Errors
/// Returns an error when there are several.
pub(super) fn in_folder(folder: &Path) -> Result<Option<SingleFile>, CheckpointError> {
    let mut models = Vec::new();
    for path in safetensors_in(folder) {
        if let Some(file) = SingleFile::open(&path)?
            && file.is_model()
        {
            models.push(file);
        }
    }
    if models.len() > 1 {
        return Err(CheckpointError::Several {
            root: folder.to_owned(),
            what: "models in one file",
            found: models.iter().map(|file| file.path.clone()).collect(),
        });
    }
    Ok(models.pop())
}

/// Returns the folder of the text encoder beside a single file: the only one whose configuration is Gemma's.
///
/// # Errors
/// Returns an error when there is none, or several.
pub(super) fn text_encoder_beside(folder: &Path) -> Result<PathBuf, CheckpointError> {
    let is_gemma = |folder: &PathBuf| {
        let config = folder.join("config.json");
        let Ok(config) = read_json(&config) else {
            return false;
        };
        matches!(
            config["model_type"].as_str(),
            Some("gemma3" | "gemma3_text")
        )
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    let mut found: Vec<PathBuf> = folders.filter(is_gemma).collect();
    found.sort();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(CheckpointError::MissingPart {
            root: folder.to_owned(),
            part: Component::TextEncoder.name(),
            folders: vec!["a folder of Gemma 3 beside the model's file".to_owned()],
        }),
        _ => Err(CheckpointError::Several {
            root: folder.to_owned(),
            what: "text encoders",
            found,
        }),
    }
}

/// Returns the only file beside a single file that is an upsampler of twice the size; `None` if there is none.
///
/// # Errors
/// Returns an error when there are several.
pub(super) fn upsampler_beside(folder: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    let mut found = Vec::new();
    for path in safetensors_in(folder) {
        if let Some(file) = SingleFile::open(&path)?
            && file.is_upsampler() == Some(true)
        {
            found.push(path);
        }
    }
    if found.len() > 1 {
        return Err(CheckpointError::Several {
            root: folder.to_owned(),
            what: "latent upsamplers",
            found,
        });
    }
    Ok(found.pop())
}

/// Returns a folder's safetensors files, in order.
fn safetensors_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".safetensors") && !is_hidden(&name) && File::open(path).is_ok()
    });
    paths.sort();
    paths
}

/// Checks that every tensor of the file belongs to a part.
///
/// # Errors
/// Returns an error that names the first one that does not.
pub(super) fn check_tensors(file: &SingleFile) -> Result<(), TensorFileError> {
    let (_, metadata) = file.shard.metadata()?;
    let mut names: Vec<String> = metadata.tensors().into_keys().collect();
    names.sort();
    match names.into_iter().find(|name| part_of(name).is_none()) {
        None => Ok(()),
        Some(name) => Err(TensorFileError::NoPart {
            path: file.path.clone(),
            name,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tensor_belongs_to_one_part() {
        for (stored, component, name) in [
            (
                "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight",
                Component::Transformer,
                "transformer_blocks.0.attn1.to_q.weight",
            ),
            (
                "model.diffusion_model.audio_embeddings_connector.learnable_registers",
                Component::Connectors,
                "audio_embeddings_connector.learnable_registers",
            ),
            (
                "text_embedding_projection.video_aggregate_embed.bias",
                Component::Connectors,
                "video_aggregate_embed.bias",
            ),
            (
                "vae.encoder.conv_in.conv.bias",
                Component::VideoVae,
                "encoder.conv_in.conv.bias",
            ),
            (
                "vocoder.vocoder.conv_pre.bias",
                Component::Vocoder,
                "vocoder.conv_pre.bias",
            ),
        ] {
            assert_eq!(part_of(stored), Some((component, name)));
        }
        assert_eq!(part_of("optimizer.state"), None);
    }
}
