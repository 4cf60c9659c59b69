//! Reads an adapter's file: which layers it changes, and by which matrices.
//!
//! Files come from several programs, which differ in what is in front of a layer's name, in whether the name is the
//! original's or the library's, and in what the two matrices are called.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{AdapterError, limit};
use crate::checkpoint::Component;
use crate::checkpoint::names::adapter_layer;
use crate::checkpoint::tensors::{Shard, TensorFileError};

/// The name of a layer: its part, and its library name there.
pub type LayerName = (Component, String);

/// An adapter's file. Its matrices are read on request.
#[derive(Debug)]
pub struct AdapterFile {
    pub path: PathBuf,
    shard: Shard,
    layers: BTreeMap<LayerName, Pair>,
    /// What its author says about it. It is shown, and nothing follows it.
    metadata: BTreeMap<String, String>,
}

/// The matrices of one layer.
#[derive(Debug, Default)]
struct Pair {
    down: Option<Matrix>,
    up: Option<Matrix>,
    alpha: Option<f64>,
}

#[derive(Clone, Debug)]
struct Matrix {
    /// The name in the file.
    stored: String,
    shape: Vec<i64>,
}

/// One layer's change, checked: `factor · up · down` is added to its matrix `[out, in]`.
#[derive(Debug)]
pub(super) struct Change<'a> {
    down: &'a Matrix,
    up: &'a Matrix,
    pub(super) rank: i64,
    pub(super) shape: [i64; 2],
    factor: f64,
}

#[derive(Clone, Copy)]
enum Role {
    Down,
    Up,
    Alpha,
}

impl AdapterFile {
    /// Maps a file into memory and reads which layers it changes. The file must stay as it is while this lives.
    ///
    /// # Errors
    /// Returns an error when the file is no safetensors file, or is of a kind that this engine does not apply, such as
    /// DoRA. The message names the key.
    pub fn open(path: &Path) -> Result<Self, AdapterError> {
        check_kind(path)?;
        Self::of(path, Shard::open(path.to_owned()))
    }

    /// Like [`Self::open`], but copies the file, which may be changed at any time.
    ///
    /// # Errors
    /// Also returns an error when the file has more bytes than `most`.
    pub fn copy(path: &Path, most: u64) -> Result<Self, AdapterError> {
        check_kind(path)?;
        let size = fs::metadata(path).map_or(0, |file| file.len());
        limit("a file in bytes (`loras_max_mib`)", most, size)?;
        Self::of(path, Shard::copy(path.to_owned(), most))
    }

    fn of(path: &Path, shard: Result<Shard, TensorFileError>) -> Result<Self, AdapterError> {
        let error = |problem: String| AdapterError::File {
            path: path.to_owned(),
            problem,
        };
        let read = |shard: Shard| Ok((shard.metadata()?.1, shard));
        let (header, shard) = shard.and_then(read).map_err(|problem| match problem {
            // The path is told already.
            TensorFileError::Damaged { reason, .. } => {
                error(format!("it is truncated or damaged: {reason}"))
            }
            TensorFileError::Io { source, .. } => error(source.to_string()),
            problem => error(problem.to_string()),
        })?;
        let metadata: BTreeMap<String, String> = header
            .metadata()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        if let Some(key) = metadata.keys().find(|key| key.contains("reference")) {
            let problem = "an IC adapter needs reference tokens, which this engine does not have";
            return Err(error(format!("{problem} (metadata `{key}`)")));
        }
        let stated = stated_alpha(&metadata);
        let mut layers: BTreeMap<LayerName, Pair> = BTreeMap::new();
        for (key, info) in header.tensors() {
            let (layer, role) = parse(&key).map_err(&error)?;
            let size = |&size: &usize| i64::try_from(size).unwrap_or(i64::MAX);
            let shape: Vec<i64> = info.shape.iter().map(size).collect();
            let pair = layers.entry(adapter_layer(layer)).or_default();
            let place = match role {
                Role::Down => &mut pair.down,
                Role::Up => &mut pair.up,
                Role::Alpha => {
                    let alpha = shard.load(&key, Kind::Double, Device::Cpu);
                    let alpha = alpha.map_err(|problem| error(format!("`{key}`: {problem}")))?;
                    if alpha.numel() != 1 {
                        return Err(error(format!(
                            "`{key}`: expected one number, given {shape:?}"
                        )));
                    }
                    pair.alpha = Some(alpha.flatten(0, -1).double_value(&[0]));
                    continue;
                }
            };
            if let Some(first) = place {
                let first = &first.stored;
                return Err(error(format!("`{first}` and `{key}` are the same matrix")));
            }
            if shape.len() != 2 {
                return Err(error(format!(
                    "`{key}`: expected a matrix, given {shape:?}; adapters of convolutions are not applied"
                )));
            }
            *place = Some(Matrix { stored: key, shape });
        }
        if layers.is_empty() {
            return Err(error("it changes no layer".to_owned()));
        }
        for pair in layers.values_mut() {
            pair.alpha = pair.alpha.or(stated);
        }
        let file = Self {
            path: path.to_owned(),
            shard,
            layers,
            metadata,
        };
        for name in file.layers.keys() {
            file.change(name)?;
        }
        Ok(file)
    }

    /// Returns the layers that the adapter changes.
    pub fn layers(&self) -> impl Iterator<Item = &LayerName> {
        self.layers.keys()
    }

    pub(super) fn has(&self, layer: &LayerName) -> bool {
        self.layers.contains_key(layer)
    }

    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Returns the contents of the file.
    pub fn bytes(&self) -> &[u8] {
        self.shard.bytes()
    }

    /// Returns the change of a layer of [`Self::layers`].
    ///
    /// # Errors
    /// Returns an error when a matrix is missing, or when the two do not fit together.
    pub(super) fn change(&self, name: &LayerName) -> Result<Change<'_>, AdapterError> {
        let error = |problem: String| AdapterError::File {
            path: self.path.clone(),
            problem,
        };
        let pair = &self.layers[name];
        let (Some(down), Some(up)) = (&pair.down, &pair.up) else {
            let there = pair.down.as_ref().or(pair.up.as_ref());
            let there = there.map_or(name.1.as_str(), |matrix| matrix.stored.as_str());
            return Err(error(format!("`{there}` has no partner")));
        };
        let (&[rank, inputs], &[outputs, other]) = (&down.shape[..], &up.shape[..]) else {
            unreachable!("both were checked to be matrices");
        };
        if rank != other || rank < 1 {
            return Err(error(format!(
                "`{}` and `{}` have no common rank: {:?} and {:?}",
                down.stored, up.stored, down.shape, up.shape
            )));
        }
        let factor = pair.alpha.map_or(1.0, |alpha| alpha / rank as f64);
        if !factor.is_finite() {
            return Err(error(format!(
                "`{}`: its alpha is no finite number",
                down.stored
            )));
        }
        Ok(Change {
            down,
            up,
            rank,
            shape: [outputs, inputs],
            factor,
        })
    }

    /// Reads the matrices of a change, `down` and `factor · up`.
    ///
    /// # Errors
    /// Returns an error when a value is not a finite number.
    pub(super) fn matrices(
        &self,
        change: &Change<'_>,
        kind: Kind,
        device: Device,
    ) -> Result<[Tensor; 2], AdapterError> {
        let load = |matrix: &Matrix, factor: f64| {
            let loaded = self.shard.load(&matrix.stored, Kind::Float, device);
            let error = |problem: String| AdapterError::File {
                path: self.path.clone(),
                problem: format!("`{}`: {problem}", matrix.stored),
            };
            let loaded = (loaded.map_err(error)? * factor).to_kind(kind);
            if loaded.isfinite().all().int64_value(&[]) == 0 {
                return Err(error("has values that are no finite numbers".to_owned()));
            }
            Ok(loaded)
        };
        Ok([load(change.down, 1.0)?, load(change.up, change.factor)?])
    }
}

fn check_kind(path: &Path) -> Result<(), AdapterError> {
    match path.extension().is_some_and(|end| end == "safetensors") {
        true => Ok(()),
        false => Err(AdapterError::File {
            path: path.to_owned(),
            problem: "expected a safetensors file".to_owned(),
        }),
    }
}

/// Splits a key into the layer's name and the role of the tensor.
///
/// # Errors
/// Returns an error that names the key when it is not one of an adapter that this engine applies.
fn parse(key: &str) -> Result<(&str, Role), String> {
    for (sign, what) in [
        ("dora_scale", "a DoRA adapter"),
        ("lora_magnitude_vector", "a DoRA adapter"),
        ("lokr_", "a LoKr adapter"),
        ("hada_", "a LoHa adapter"),
        ("loha_", "a LoHa adapter"),
    ] {
        if key.contains(sign) {
            return Err(format!("`{key}`: {what}, which this engine does not apply"));
        }
    }
    if key.ends_with(".diff") || key.ends_with(".diff_b") {
        return Err(format!(
            "`{key}`: a difference of whole tensors, which this engine does not apply"
        ));
    }
    for suffix in [".alpha", ".lora_alpha"] {
        if let Some(layer) = key.strip_suffix(suffix) {
            return Ok((layer, Role::Alpha));
        }
    }
    let matrix = key.strip_suffix(".weight").unwrap_or(key);
    let matrix = matrix.strip_suffix(".default").unwrap_or(matrix);
    for (suffix, role) in [
        (".lora_A", Role::Down),
        (".lora_down", Role::Down),
        (".lora_B", Role::Up),
        (".lora_up", Role::Up),
    ] {
        if let Some(layer) = matrix.strip_suffix(suffix) {
            return Ok((layer, role));
        }
    }
    Err(format!(
        "`{key}`: expected `.lora_A.weight`, `.lora_B.weight` or `.alpha` behind a layer's name"
    ))
}

/// Returns the alpha that the library writes into the metadata, for all layers.
fn stated_alpha(metadata: &BTreeMap<String, String>) -> Option<f64> {
    let settings: Value = serde_json::from_str(metadata.get("lora_adapter_metadata")?).ok()?;
    let alpha = settings
        .get("transformer.lora_alpha")
        .or_else(|| settings.get("lora_alpha"));
    alpha?.as_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_found_behind_every_spelling() {
        let layer = |key: &str| {
            let (layer, _) = parse(key).unwrap();
            adapter_layer(layer)
        };
        let to_q = (
            Component::Transformer,
            "transformer_blocks.0.attn1.to_q".to_owned(),
        );
        for key in [
            "diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight",
            "model.diffusion_model.transformer_blocks.0.attn1.to_q.lora_down.weight",
            "transformer.transformer_blocks.0.attn1.to_q.lora_B.default.weight",
            "base_model.model.transformer_blocks.0.attn1.to_q.lora_up.weight",
            "transformer_blocks.0.attn1.to_q.alpha",
            "diffusion_model.transformer_blocks.0.attn1.to_q.lora_alpha",
        ] {
            assert_eq!(layer(key), to_q, "{key}");
        }
        for (key, component, name) in [
            (
                "diffusion_model.prompt_adaln_single.linear.lora_A.weight",
                Component::Transformer,
                "prompt_adaln.linear",
            ),
            (
                "diffusion_model.patchify_proj.lora_A.weight",
                Component::Transformer,
                "proj_in",
            ),
            (
                "connectors.video_connector.transformer_blocks.1.ff.net.2.lora_A.weight",
                Component::Connectors,
                "video_connector.transformer_blocks.1.ff.net.2",
            ),
            (
                "diffusion_model.video_embeddings_connector.transformer_1d_blocks.1.attn1.to_k.lora_B.weight",
                Component::Connectors,
                "video_connector.transformer_blocks.1.attn1.to_k",
            ),
            (
                "text_embedding_projection.audio_aggregate_embed.lora_B.weight",
                Component::Connectors,
                "audio_text_proj_in",
            ),
        ] {
            assert_eq!(layer(key), (component, name.to_owned()), "{key}");
        }
    }
}
