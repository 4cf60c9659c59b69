//! A checkpoint on disk: detects its layout, finds its parts, and explains why a folder is not a checkpoint for this
//! engine.
//!
//! Two layouts hold the same tensors, see [`Layout`]. In either layout, a [`Part`]'s tensors are found by the library's
//! names.
//!
//! - `tensors`: the tensors of one part, memory-mapped and read only on request;
//! - `layout`: the layouts and the parts;
//! - `gemma_names`: the names of the text encoder in published files;
//! - `names`: maps the original names to the library's;
//! - `hub`: resolves a repository's id to a folder.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value;
use tch::Device;

use crate::nn::Precision;
use crate::weights::{Reading, Store};
use tensors::{Files, TensorFileError};

pub use layout::{Component, Layout};

pub mod gemma_names;
pub mod hub;
mod layout;
pub mod names;
pub mod tensors;

/// The reason why a folder cannot be loaded. Every message says what the operator can check.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{} is not a folder", .0.display())]
    NoFolder(PathBuf),
    /// The folder has another model, which the text names.
    #[error("{} is not an LTX-2.0 checkpoint: {what}", root.display())]
    OtherModel { root: PathBuf, what: String },
    #[error("{}: part `{part}` is missing, expected in {}", root.display(), folders.join(" or "))]
    MissingPart {
        root: PathBuf,
        part: &'static str,
        folders: Vec<String>,
    },
    #[error("cannot read {}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not JSON: {source}", path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
}

/// A folder whose parts have been found and whose files have been opened; no weight has been read.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    layout: Layout,
    parts: Vec<Part>,
    /// The content of `scheduler_config.json`; `None` in the original layout.
    scheduler: Option<Value>,
    /// The content of `tokenizer_config.json`; null if there is none.
    tokenizer_config: Value,
}

/// One network on disk.
#[derive(Debug)]
pub struct Part {
    pub component: Component,
    pub folder: PathBuf,
    /// The content of `config.json`.
    pub config: Value,
    pub files: Rc<Files>,
}

impl Checkpoint {
    /// Finds all parts and checks that their files are whole.
    ///
    /// # Errors
    /// Returns an error when the folder is not an LTX-2.0 checkpoint, a part is missing, or a file is truncated or not
    /// what its name says.
    pub fn open(root: &Path) -> Result<Self, CheckpointError> {
        if !root.is_dir() {
            return Err(CheckpointError::NoFolder(root.to_owned()));
        }
        let layout = identify(root)?;
        let mut parts = Vec::new();
        for component in Component::ALL {
            match Part::open(root, layout, component)? {
                Some(part) => parts.push(part),
                None if component == Component::Upsampler => {}
                None => return Err(missing(root, layout, component)),
            }
        }
        if !root.join("tokenizer/tokenizer.json").is_file() {
            return Err(CheckpointError::MissingPart {
                root: root.to_owned(),
                part: "tokenizer",
                folders: vec!["tokenizer/tokenizer.json".to_owned()],
            });
        }
        let optional = |file| {
            let path = root.join(file);
            path.is_file().then(|| read_json(&path)).transpose()
        };
        Ok(Self {
            root: root.to_owned(),
            layout,
            parts,
            scheduler: optional("scheduler/scheduler_config.json")?,
            tokenizer_config: optional("tokenizer/tokenizer_config.json")?.unwrap_or_default(),
        })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the parts of the checkpoint in the order of [`Component::ALL`].
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub fn part(&self, component: Component) -> Option<&Part> {
        self.parts.iter().find(|part| part.component == component)
    }

    /// # Errors
    /// Returns an error when the checkpoint has no such part.
    pub fn required(&self, component: Component) -> Result<&Part, CheckpointError> {
        let part = self.part(component);
        part.ok_or_else(|| missing(&self.root, self.layout, component))
    }

    pub fn tokenizer(&self) -> PathBuf {
        self.root.join("tokenizer/tokenizer.json")
    }

    /// Returns the scheduler's configuration; `None` in the original layout, whose weights are distilled.
    pub fn scheduler(&self) -> Option<&Value> {
        self.scheduler.as_ref()
    }

    pub fn tokenizer_config(&self) -> &Value {
        &self.tokenizer_config
    }

    /// Returns the size in bytes of all tensors that will be loaded, as stored.
    pub fn stored_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.files.bytes()).sum()
    }
}

impl Part {
    fn open(
        root: &Path,
        layout: Layout,
        component: Component,
    ) -> Result<Option<Self>, CheckpointError> {
        for folder in component.folders(layout) {
            let folder = root.join(folder);
            let config = folder.join("config.json");
            // The original layout keeps Gemma below the connectors' folder: a folder alone is not yet a part.
            if !config.is_file() && !Files::are_in(&folder) {
                continue;
            }
            let config = read_json(&config)?;
            check_class(root, component, &config)?;
            let files = Files::open(&folder, component, layout)?;
            return Ok(Some(Self {
                component,
                folder,
                config,
                files: Rc::new(files),
            }));
        }
        Ok(None)
    }

    /// Returns the part's tensors by their library names, to be loaded in the given precision on a device.
    pub fn store(&self, precision: Precision, device: Device, reading: Reading) -> Rc<Store> {
        let (name, files) = (self.component.name(), self.files.clone());
        Store::files(name, files, precision.kind(), device, reading)
    }

    /// Returns the number of parameters that will be loaded.
    pub fn parameters(&self) -> u64 {
        self.files.parameters()
    }
}

fn missing(root: &Path, layout: Layout, component: Component) -> CheckpointError {
    let folders = component.folders(layout).iter();
    CheckpointError::MissingPart {
        root: root.to_owned(),
        part: component.name(),
        folders: folders.map(|folder| format!("{folder}/")).collect(),
    }
}

/// Returns the layout of a folder, or an error that says what the folder is instead.
fn identify(root: &Path) -> Result<Layout, CheckpointError> {
    let other = |what: String| CheckpointError::OtherModel {
        root: root.to_owned(),
        what,
    };
    let index = root.join("model_index.json");
    if index.is_file() {
        let index = read_json(&index)?;
        let class = index["_class_name"].as_str().unwrap_or("nothing");
        if !class.starts_with("LTX2") {
            return Err(other(format!("its model_index.json names a `{class}`")));
        }
    }
    if root.join("connectors").is_dir() {
        return Ok(Layout::Library);
    }
    if root.join("text_encoder/gemma").is_dir() || root.join("text_embedding_projection").is_dir() {
        return Ok(Layout::Original);
    }
    let transformer = root.join("transformer/config.json");
    if transformer.is_file() {
        // This returns a more specific error when the transformer is another model's.
        check_class(root, Component::Transformer, &read_json(&transformer)?)?;
        return Err(other(
            "part `connectors` is missing, expected in connectors/ or beside text_encoder/gemma/"
                .to_owned(),
        ));
    }
    Err(other(match one_file_model(root) {
        Some(file) => format!(
            "it holds {}, {}, which this engine does not read: {READ_FORM}",
            file.file_name().unwrap_or_default().display(),
            form_of(&file)
        ),
        None => "it has neither model_index.json nor transformer/config.json".to_owned(),
    }))
}

/// Refuses a part of another family or generation.
fn check_class(root: &Path, component: Component, config: &Value) -> Result<(), CheckpointError> {
    let other = |what: String| {
        Err(CheckpointError::OtherModel {
            root: root.to_owned(),
            what,
        })
    };
    if let Some(why) = newer_generation(component, config) {
        return other(format!(
            "it is LTX-2.3 or newer ({why}), which this engine does not run"
        ));
    }
    let expected: &[&str] = match component {
        Component::Transformer => &["LTX2VideoTransformer3DModel", "LTX2Transformer3DModel"],
        Component::VideoVae => &["AutoencoderKLLTX2Video", "CausalVideoAutoencoder"],
        Component::AudioVae => &["AutoencoderKLLTX2Audio", "LTX2AudioDecoder", "LTX2AudioVAE"],
        Component::Vocoder => &["LTX2Vocoder"],
        Component::Connectors => &["LTX2TextConnectors"],
        Component::Upsampler => &[
            "LTX2LatentUpsamplerModel",
            "LTX2LatentUpsampler",
            "LatentUpsampler",
        ],
        Component::TextEncoder => {
            return match config["model_type"].as_str() {
                Some("gemma3" | "gemma3_text") => Ok(()),
                given => other(format!(
                    "its text encoder must be `gemma3`, given `{}`",
                    given.unwrap_or("none")
                )),
            };
        }
    };
    match config["_class_name"].as_str() {
        Some(class) if !expected.contains(&class) => other(format!(
            "part `{}` must be a {}, given a `{class}`",
            component.name(),
            expected.join(" or a "),
        )),
        _ => Ok(()),
    }
}

/// Returns the key that shows that a configuration is of a later generation than 2.0, if there is one.
fn newer_generation(component: Component, config: &Value) -> Option<String> {
    let switches: &[&str] = match component {
        Component::Transformer => &[
            "gated_attn",
            "cross_attn_mod",
            "audio_gated_attn",
            "audio_cross_attn_mod",
            "apply_gated_attention",
            "cross_attention_adaln",
        ],
        Component::Connectors => &[
            "video_gated_attn",
            "audio_gated_attn",
            "per_modality_projections",
            "connector_apply_gated_attention",
        ],
        Component::Vocoder => &["antialias"],
        _ => &[],
    };
    let set = switches.iter().find(|&&switch| config[switch] == true)?;
    Some(format!("part `{}` has `{set}`", component.name()))
}

/// What the engine reads instead of a form that it does not, for messages.
const READ_FORM: &str = "it reads a folder with a part in each subfolder (transformer/, vae/, text_encoder/ …), as repositories in the layout of diffusers are; name such a folder or repository instead";

/// Returns the form of a file, for messages.
fn form_of(path: &Path) -> &'static str {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    match extension.to_str() {
        Some("gguf") => "a quantized model in one file (GGUF)",
        Some("safetensors" | "ckpt" | "pt" | "pth" | "bin") => "a model in one file",
        _ => "a file",
    }
}

/// Returns whether a file of this name is none of the model: systems leave such files beside others, for example
/// `._model.safetensors`.
fn is_hidden(name: &str) -> bool {
    name.starts_with('.')
}

/// Returns the first file in a folder that is a whole model in one file.
fn one_file_model(folder: &Path) -> Option<PathBuf> {
    let is_model = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        !is_hidden(&name) && (name.ends_with(".safetensors") || name.ends_with(".gguf"))
    };
    let entries = std::fs::read_dir(folder).ok()?;
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(is_model).min()
}

fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let bytes = std::fs::read(path).map_err(|source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| CheckpointError::Json {
        path: path.to_owned(),
        source,
    })
}
