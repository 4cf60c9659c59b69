//! A checkpoint on disk: detects its layout, finds its parts, and explains why a folder is not a checkpoint for this
//! engine.
//!
//! Three layouts hold the same tensors, see [`Layout`]. In all of them, a [`Part`]'s tensors are found by the library's
//! names.
//!
//! - `tensors`: the tensors of one part, memory-mapped and read only on request;
//! - `layout`: the layouts and the parts;
//! - `single_file`: the authors' own file, and what lies beside it;
//! - `gemma_names`: the names of the text encoder in published files;
//! - `names`: maps the original names to the library's;
//! - `hub`: resolves a repository's id to a folder.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value;
use tch::Device;

use crate::generation::{Generation, LATER};
use crate::nn::Precision;
use crate::weights::{Reading, Store};
use tensors::{Files, TensorFileError};

pub use layout::{Component, Layout};
pub use single_file::Companions;
use single_file::SingleFile;

pub mod gemma_names;
pub mod hub;
mod layout;
pub mod names;
mod single_file;
pub mod tensors;

/// The reason why a folder cannot be loaded. Every message says what the operator can check.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{} is not a folder", .0.display())]
    NoFolder(PathBuf),
    /// The folder has another model, which the text names.
    #[error("{} is not a checkpoint of LTX-2.0 or LTX-2.3: {what}", root.display())]
    OtherModel { root: PathBuf, what: String },
    #[error("{}: part `{part}` is missing, expected in {}", root.display(), folders.join(" or "))]
    MissingPart {
        root: PathBuf,
        part: &'static str,
        folders: Vec<String>,
    },
    #[error("{} holds several {what}, name one: {}", root.display(), listed(found))]
    Several {
        root: PathBuf,
        what: &'static str,
        found: Vec<PathBuf>,
    },
    /// The parts beside a single file were named for a model in folders, which has its own.
    #[error(
        "{}: `{part}` was named, but this model has its parts in folders", root.display()
    )]
    NoCompanion { root: PathBuf, part: &'static str },
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

fn listed(paths: &[PathBuf]) -> String {
    let names = paths.iter().map(|path| path.display().to_string());
    names.collect::<Vec<_>>().join(", ")
}

/// A model whose parts have been found and whose files have been opened; no weight has been read.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    layout: Layout,
    parts: Vec<Part>,
    /// The content of `scheduler_config.json`; `None` under the original names.
    scheduler: Option<Value>,
    tokenizer: PathBuf,
    /// The content of `tokenizer_config.json`; null if there is none.
    tokenizer_config: Value,
    /// The version of the model in a single file's metadata.
    version: Option<String>,
}

/// One network on disk.
#[derive(Debug)]
pub struct Part {
    pub component: Component,
    /// The part's folder, or the file that it is in.
    pub folder: PathBuf,
    /// The names of the tensors and of the configuration's keys.
    pub layout: Layout,
    /// The content of `config.json`, or of a file's metadata.
    pub config: Value,
    pub files: Rc<Files>,
}

impl Checkpoint {
    /// Finds all parts of a model, which is a folder or a single file, and checks that their files are whole.
    ///
    /// # Errors
    /// Returns an error when this is no checkpoint of LTX-2.0 or LTX-2.3, a part is missing, or a file is truncated or
    /// not what its name says.
    pub fn open(root: &Path) -> Result<Self, CheckpointError> {
        Self::open_with(root, &Companions::default())
    }

    /// Opens a model as [`Self::open`] does; `companions` are parts that a single file does not have.
    ///
    /// # Errors
    /// Returns the errors of [`Self::open`], and one when companions are given for a model in folders.
    pub fn open_with(root: &Path, companions: &Companions) -> Result<Self, CheckpointError> {
        if root.is_file() {
            return match SingleFile::open(root)? {
                Some(file) => Self::of_file(root, file, companions),
                None => Err(no_model(root)),
            };
        }
        if !root.is_dir() {
            return Err(CheckpointError::NoFolder(root.to_owned()));
        }
        let layout = match identify(root)? {
            Identified::Folders(layout) => layout,
            Identified::File(file) => return Self::of_file(root, *file, companions),
        };
        for (part, given) in [
            (Component::TextEncoder, &companions.text_encoder),
            (Component::Upsampler, &companions.upsampler),
        ] {
            if given.is_some() {
                return Err(CheckpointError::NoCompanion {
                    root: root.to_owned(),
                    part: part.name(),
                });
            }
        }
        let mut parts = Vec::new();
        for component in Component::ALL {
            match Part::open(root, layout, component)? {
                Some(part) => parts.push(part),
                None if component == Component::Upsampler => {}
                None => return Err(missing(root, layout, component)),
            }
        }
        Ok(Self {
            root: root.to_owned(),
            layout,
            parts,
            scheduler: optional(&root.join("scheduler/scheduler_config.json"))?,
            tokenizer: tokenizer(root, &[root.join("tokenizer")])?,
            tokenizer_config: optional(&root.join("tokenizer/tokenizer_config.json"))?
                .unwrap_or_default(),
            version: None,
        })
    }

    /// Finds the parts of a model in one file. `root` is what the operator has named.
    fn of_file(
        root: &Path,
        file: SingleFile,
        companions: &Companions,
    ) -> Result<Self, CheckpointError> {
        let transformer = &file.config["transformer"];
        if file.names_its_text_encoder {
            return Err(CheckpointError::OtherModel {
                root: root.to_owned(),
                what: format!("it is {LATER} (`gemma_source_checkpoint`)"),
            });
        }
        if let Some(version) = &file.version
            && Generation::of_version(version).is_none()
        {
            return Err(CheckpointError::OtherModel {
                root: root.to_owned(),
                what: format!("its `model_version` is {version}"),
            });
        }
        check_class(root, Component::Transformer, transformer)?;
        single_file::check_tensors(&file)?;
        let folder = file.path.parent().unwrap_or(Path::new(".")).to_owned();
        let text_encoder = match &companions.text_encoder {
            Some(folder) => folder.clone(),
            None => single_file::text_encoder_beside(&folder)?,
        };
        let text_encoder = Part::in_folder(
            root,
            Layout::Library,
            Component::TextEncoder,
            text_encoder.clone(),
        )?
        .ok_or(CheckpointError::MissingPart {
            root: root.to_owned(),
            part: Component::TextEncoder.name(),
            folders: vec![text_encoder.display().to_string()],
        })?;
        // Gemma's width is not in the file.
        let mut connectors = transformer.clone();
        let gemma = &text_encoder.config;
        let gemma = gemma.get("text_config").unwrap_or(gemma);
        connectors["hidden_size"] = gemma["hidden_size"].clone();
        let mut parts = Vec::new();
        let gemma_folder = text_encoder.folder.clone();
        for (component, config) in [
            (Component::Transformer, transformer),
            (Component::Connectors, &connectors),
            (Component::VideoVae, &file.config),
            (Component::AudioVae, &file.config),
            (Component::Vocoder, &file.config),
        ] {
            let files = Files::open_file(&file.path, component, Layout::SingleFile)?;
            parts.push(Part {
                component,
                folder: file.path.clone(),
                layout: Layout::SingleFile,
                config: config.clone(),
                files: Rc::new(files),
            });
        }
        parts.push(text_encoder);
        parts.extend(Part::upsampler_beside(root, &folder, companions)?);
        let order = |part: &Part| Component::ALL.iter().position(|c| *c == part.component);
        parts.sort_by_key(order);
        let tokenizer = tokenizer(root, &[gemma_folder, folder.join("tokenizer")])?;
        Ok(Self {
            root: root.to_owned(),
            layout: Layout::SingleFile,
            parts,
            scheduler: None,
            tokenizer_config: optional(&tokenizer.with_file_name("tokenizer_config.json"))?
                .unwrap_or_default(),
            tokenizer,
            version: file.version,
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

    pub fn tokenizer(&self) -> &Path {
        &self.tokenizer
    }

    /// Returns the generation that a single file's metadata say; `None` where they do not say it.
    pub fn stated_generation(&self) -> Option<Generation> {
        Generation::of_version(self.version.as_deref()?)
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
            let part = Self::in_folder(root, layout, component, root.join(folder))?;
            if part.is_some() {
                return Ok(part);
            }
        }
        Ok(None)
    }

    /// Returns the part in a folder; `None` if there is none in it.
    fn in_folder(
        root: &Path,
        layout: Layout,
        component: Component,
        folder: PathBuf,
    ) -> Result<Option<Self>, CheckpointError> {
        let config = folder.join("config.json");
        // The original layout keeps Gemma below the connectors' folder: a folder alone is not yet a part.
        if !config.is_file() && !Files::are_in(&folder) {
            return Ok(None);
        }
        let config = read_json(&config)?;
        check_class(root, component, &config)?;
        let files = Files::open(&folder, component, layout)?;
        Ok(Some(Self {
            component,
            folder,
            layout,
            config,
            files: Rc::new(files),
        }))
    }

    /// Returns the upsampler of a model in one file, in whatever form it is.
    fn upsampler_beside(
        root: &Path,
        folder: &Path,
        companions: &Companions,
    ) -> Result<Option<Self>, CheckpointError> {
        let component = Component::Upsampler;
        let path = match &companions.upsampler {
            Some(path) => Some(path.clone()),
            None => single_file::upsampler_beside(folder)?,
        };
        let Some(path) = path else {
            return Self::open(folder, Layout::Library, component);
        };
        if path.is_dir() {
            let part = Self::in_folder(root, Layout::Library, component, path.clone())?;
            return match part {
                None => Err(CheckpointError::MissingPart {
                    root: root.to_owned(),
                    part: component.name(),
                    folders: vec![path.display().to_string()],
                }),
                part => Ok(part),
            };
        }
        let Some(file) = SingleFile::open(&path)? else {
            return Err(CheckpointError::OtherModel {
                root: path,
                what: "its metadata have no configuration of an upsampler".to_owned(),
            });
        };
        check_class(root, component, &file.config)?;
        Ok(Some(Self {
            component,
            layout: Layout::Original,
            files: Rc::new(Files::open_file(&path, component, Layout::Original)?),
            config: file.config,
            folder: path,
        }))
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

/// Returns the tokenizer in the first of these folders that has one.
fn tokenizer(root: &Path, folders: &[PathBuf]) -> Result<PathBuf, CheckpointError> {
    let paths: Vec<PathBuf> = folders.iter().map(|f| f.join("tokenizer.json")).collect();
    match paths.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(CheckpointError::MissingPart {
            root: root.to_owned(),
            part: "tokenizer",
            folders: paths
                .iter()
                .map(|path| {
                    path.strip_prefix(root)
                        .unwrap_or(path)
                        .display()
                        .to_string()
                })
                .collect(),
        }),
    }
}

fn optional(path: &Path) -> Result<Option<Value>, CheckpointError> {
    path.is_file().then(|| read_json(path)).transpose()
}

/// What a folder holds.
enum Identified {
    /// Parts in folders.
    Folders(Layout),
    File(Box<SingleFile>),
}

/// Returns what a folder holds, or an error that says what it is instead of a checkpoint.
fn identify(root: &Path) -> Result<Identified, CheckpointError> {
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
        return Ok(Identified::Folders(Layout::Library));
    }
    if root.join("text_encoder/gemma").is_dir() || root.join("text_embedding_projection").is_dir() {
        return Ok(Identified::Folders(Layout::Original));
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
    if let Some(file) = single_file::in_folder(root)? {
        return Ok(Identified::File(Box::new(file)));
    }
    Err(match one_file_model(root) {
        Some(file) => no_model(&file),
        None => other("it has neither model_index.json nor transformer/config.json".to_owned()),
    })
}

/// The error for a file that is no model that this engine reads.
fn no_model(file: &Path) -> CheckpointError {
    let what = match file.extension().is_some_and(|end| end == "safetensors") {
        true => "its metadata have no configuration of a model".to_owned(),
        false => format!(
            "it is {}, which this engine does not read: {READ_FORM}",
            form_of(file)
        ),
    };
    CheckpointError::OtherModel {
        root: file.to_owned(),
        what,
    }
}

/// Refuses a part of another family or generation.
fn check_class(root: &Path, component: Component, config: &Value) -> Result<(), CheckpointError> {
    let other = |what: String| {
        Err(CheckpointError::OtherModel {
            root: root.to_owned(),
            what,
        })
    };
    let expected: &[&str] = match component {
        Component::Transformer => &[
            "LTX2VideoTransformer3DModel",
            "LTX2Transformer3DModel",
            "AVTransformer3DModel",
        ],
        Component::VideoVae => &["AutoencoderKLLTX2Video", "CausalVideoAutoencoder"],
        Component::AudioVae => &["AutoencoderKLLTX2Audio", "LTX2AudioDecoder", "LTX2AudioVAE"],
        Component::Vocoder => &["LTX2Vocoder", "LTX2VocoderWithBWE"],
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

/// What the engine reads instead of a form that it does not, for messages.
const READ_FORM: &str = "it reads a folder with a part in each subfolder (transformer/, vae/, text_encoder/ …), as repositories in the layout of diffusers are, and the authors' own safetensors file; name one of these instead";

/// Returns the form of a file, for messages.
fn form_of(path: &Path) -> &'static str {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    match extension.to_str() {
        Some("gguf") => "a quantized model in one file (GGUF)",
        Some("ckpt" | "pt" | "pth" | "bin") => "a model in one file as Python's pickle",
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
        let forms = [".safetensors", ".gguf", ".ckpt"];
        !is_hidden(&name) && forms.iter().any(|end| name.ends_with(end))
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
