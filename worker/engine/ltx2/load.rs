//! Loads the parts of a model from a checkpoint onto a device.
//!
//! Every name, shape and type is checked, and every configuration value is read from the files. A part that does not
//! fit is reported before another one is loaded.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::rc::Rc;

use serde_json::Value;
use tch::{Device, TchError};

use crate::adapters::{self, AdapterError, AdapterFile, Adapters, Fused};
use crate::audio_vae::{self, AudioVae};
use crate::checkpoint::{Checkpoint, CheckpointError, Component, Layout, Part};
use crate::config::ConfigError;
use crate::float8::Products;
use crate::generation::Generation;
use crate::low_rank::Layers;
use crate::nn::Precision;
use crate::ops::Kernels;
use crate::pipeline::Parts;
use crate::preview::{PreviewDecoder, PreviewError};
use crate::sampling::schedule::Scheduler;
use crate::text::connectors::{self, Connectors};
use crate::text::gemma::{self, Gemma};
use crate::text::tokens::{self, Tokenizer, TokensError};
use crate::text::{TextEncoder, TextError};
use crate::transformer::{self, Transformer};
use crate::upsampler::{self, Upsampler};
use crate::video_vae::{self, VideoVae};
use crate::vocoder::{self, Vocoder};
use crate::weights::{Float8, Fuse, Reading, Watch, Weights, WeightsError};

/// The number of prompts whose contexts are cached: a session repeats its prompt, and sessions share a worker.
const PROMPTS_KEPT: NonZeroUsize = NonZeroUsize::new(8).expect("8 is not 0");

/// How a checkpoint is loaded.
#[derive(Clone, Debug)]
pub struct Options {
    pub device: Device,
    /// The type of all parts except the vocoder, which is float32.
    pub precision: Precision,
    pub kernels: Kernels,
    /// Whether weights are checked for values that are not finite.
    pub check_values: bool,
    /// Adapters that are added to the weights for good, each with its strength.
    pub fused: Vec<(PathBuf, f64)>,
    /// How the matrices are kept that are applied to every video token.
    pub matrices: Matrices,
    /// The file of the preview decoder; `None`: segments have no previews.
    pub preview_decoder: Option<PathBuf>,
    /// What adapters that are loaded later may take.
    pub adapter_limits: adapters::Limits,
}

impl Options {
    /// Creates options without adapters, for a device.
    pub fn new(device: Device, precision: Precision, kernels: Kernels) -> Self {
        Self {
            device,
            precision,
            kernels,
            check_values: false,
            fused: Vec::new(),
            matrices: Matrices::Dense,
            preview_decoder: None,
            adapter_limits: adapters::Limits::default(),
        }
    }
}

/// How the transformer's wide matrices are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matrices {
    /// In the type that the model computes in.
    Dense,
    /// In 8-bit floats, except for those of the given blocks.
    Float8 { dense_blocks: Vec<usize> },
}

/// The progress of loading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The part that is being loaded.
    pub part: &'static str,
    /// The bytes of all parts that have been loaded, as stored.
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// The reason why a checkpoint was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{}: {problem}", folder.display())]
    Config {
        folder: PathBuf,
        problem: ConfigError,
    },
    #[error("{}: {problem}", folder.display())]
    Weights {
        folder: PathBuf,
        problem: WeightsError,
    },
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Preview(#[from] PreviewError),
    #[error("the GPU computes no products of 8-bit floats, which `matrices: float8` needs: {0}")]
    Float8(#[source] TchError),
}

/// Loads all parts. `progress` is called for every tensor.
///
/// # Errors
/// Returns an error when the checkpoint is incomplete, or is not that of a model that this engine runs.
///
/// # Panics
/// Panics where libtorch does, for example when the device has too little memory.
pub fn load(
    checkpoint: &Checkpoint,
    options: &Options,
    progress: impl FnMut(Progress) + 'static,
) -> Result<Parts, LoadError> {
    let fused = fused(options)?;
    tch::no_grad(|| {
        let loader = Loader {
            checkpoint,
            options,
            fused,
            layers: RefCell::default(),
            meter: Some(Rc::new(Meter {
                done: Cell::new(0),
                total: checkpoint.stored_bytes(),
                progress: RefCell::new(Box::new(progress)),
            })),
        };
        loader.parts()
    })
}

/// Makes all checks of [`load`] except those of values, and reads no weights. This takes milliseconds. Returns the
/// model's generation.
///
/// # Errors
/// Returns the errors of [`load`].
pub fn check(checkpoint: &Checkpoint) -> Result<Generation, LoadError> {
    let options = Options::new(Device::Cpu, Precision::Bfloat16, Kernels::default());
    check_with(checkpoint, &options)
}

/// Makes the checks of [`check`], and whether the adapters fit that the options name.
///
/// # Errors
/// Returns the errors of [`load`].
pub fn check_with(checkpoint: &Checkpoint, options: &Options) -> Result<Generation, LoadError> {
    let options = Options {
        device: Device::Cpu,
        kernels: Kernels::default(),
        ..options.clone()
    };
    let loader = Loader {
        checkpoint,
        options: &options,
        fused: fused(&options)?,
        layers: RefCell::default(),
        meter: None,
    };
    tch::no_grad(|| {
        loader
            .parts()
            .map(|parts| parts.transformer_config.generation)
    })
}

fn fused(options: &Options) -> Result<Rc<Vec<(AdapterFile, f64)>>, LoadError> {
    let open = |(path, strength): &(PathBuf, f64)| {
        Ok::<_, AdapterError>((AdapterFile::open(path)?, *strength))
    };
    let files: Result<Vec<_>, _> = options.fused.iter().map(open).collect();
    Ok(Rc::new(files?))
}

/// Returns how the transformer's wide matrices are kept in 8-bit floats, where the options ask for that.
///
/// # Errors
/// Returns an error when the device computes no products of such matrices.
pub(crate) fn float8(options: &Options) -> Result<Option<Float8>, LoadError> {
    let Matrices::Float8 { dense_blocks } = &options.matrices else {
        return Ok(None);
    };
    let products = Products::probe(options.device).map_err(LoadError::Float8)?;
    Ok(Some(Float8 {
        products,
        dense_blocks: dense_blocks.clone(),
    }))
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a Options,
    /// Adapters that are added to the weights.
    fused: Rc<Vec<(AdapterFile, f64)>>,
    /// The layers that adapters may change, of the parts that were built.
    layers: RefCell<Vec<(Component, Layers)>>,
    /// The progress meter; `None` for a check that reads no weights.
    meter: Option<Rc<Meter>>,
}

impl Loader<'_> {
    /// Loads the parts, the largest first, so that a device that is too small is noticed early.
    fn parts(&self) -> Result<Parts, LoadError> {
        let kernels = &self.options.kernels;
        let (transformer_config, transformer) = self.network(
            Component::Transformer,
            |json, weights| transformer::Config::library(json)?.fits(weights),
            |json, weights| transformer::Config::original(json, weights)?.fits(weights),
            |config, weights| Transformer::new(config, weights, kernels),
        )?;
        if let Some(stated) = self.checkpoint.stated_generation()
            && stated != transformer_config.generation
        {
            let part = self.part(Component::Transformer)?;
            return Err(self.wrong(
                part,
                ConfigError::Value {
                    part: "transformer",
                    key: "model_version".to_owned(),
                    expected: format!("that of {}", transformer_config.generation),
                    given: format!("that of {stated}"),
                },
            ));
        }
        let text = self.text()?;
        let (_, video_vae) = self.network(
            Component::VideoVae,
            |json, _| video_vae::Config::library(json),
            video_vae::Config::original,
            |config, weights| VideoVae::new(config, weights, kernels),
        )?;
        let upsampler = match self.checkpoint.part(Component::Upsampler) {
            None => None,
            Some(_) => Some(self.network(
                Component::Upsampler,
                |json, _| upsampler::Config::library(json),
                upsampler::Config::original,
                Upsampler::new,
            )?),
        };
        let (_, audio_vae) = self.network(
            Component::AudioVae,
            |json, _| audio_vae::Config::library(json),
            audio_vae::Config::original,
            AudioVae::new,
        )?;
        let (_, vocoder) = self.network(
            Component::Vocoder,
            |json, weights| vocoder::Config::library(json)?.fits(weights),
            |json, weights| vocoder::Config::original(json, weights)?.fits(weights),
            Vocoder::new,
        )?;
        let adapters = Adapters::new(
            self.layers.take(),
            self.options.adapter_limits,
            self.options.precision.kind(),
            self.options.device,
        );
        Fused(&self.fused).check(&adapters)?;
        let preview_decoder = self.preview_decoder(&transformer_config)?;
        Ok(Parts {
            adapters,
            text,
            transformer_config,
            transformer,
            video_vae,
            upsampler: upsampler.map(|(_, upsampler)| upsampler),
            preview_decoder,
            audio_vae,
            vocoder,
            scheduler: self.scheduler()?,
            device: self.options.device,
        })
    }

    /// Loads the preview decoder, if there is one.
    fn preview_decoder(
        &self,
        transformer: &transformer::Config,
    ) -> Result<Option<PreviewDecoder>, LoadError> {
        let Some(path) = &self.options.preview_decoder else {
            return Ok(None);
        };
        Ok(Some(PreviewDecoder::load(
            path,
            transformer.in_channels,
            self.options.precision.kind(),
            self.options.device,
            self.meter.is_none(),
        )?))
    }

    fn text(&self) -> Result<TextEncoder, LoadError> {
        let tokenizer = Tokenizer::open(self.checkpoint.tokenizer(), self.text_length()?)?;
        let (_, gemma) = self.network(
            Component::TextEncoder,
            |json, _| gemma::Config::library(json),
            // The same file in all layouts.
            |json, _| gemma::Config::library(json),
            Gemma::new,
        )?;
        let (_, connectors) = self.network(
            Component::Connectors,
            |json, weights| connectors::Config::library(json)?.fits(weights),
            |json, weights| connectors::Config::original(json, weights)?.fits(weights),
            Connectors::new,
        )?;
        Ok(TextEncoder::new(
            tokenizer,
            gemma,
            connectors,
            PROMPTS_KEPT,
        )?)
    }

    fn text_length(&self) -> Result<i64, LoadError> {
        match self.checkpoint.layout() {
            Layout::Library | Layout::SingleFile => {
                Ok(tokens::library_length(self.checkpoint.tokenizer_config()))
            }
            Layout::Original => {
                let part = self.part(Component::Connectors)?;
                match part.config["text_len"].as_i64() {
                    Some(length @ 1..=tokens::MAX_LENGTH) => Ok(length),
                    _ => Err(self.wrong(
                        part,
                        ConfigError::Value {
                            part: "text encoder",
                            key: "text_len".to_owned(),
                            expected: format!("1 to {}", tokens::MAX_LENGTH),
                            given: part.config["text_len"].to_string(),
                        },
                    )),
                }
            }
        }
    }

    /// Reads the scheduler. The other layouts have none: weights in them are taken for distilled ones.
    fn scheduler(&self) -> Result<Scheduler, LoadError> {
        let Some(config) = self.checkpoint.scheduler() else {
            return Ok(Scheduler::Distilled);
        };
        Scheduler::library(config).map_err(|problem| LoadError::Config {
            folder: self.checkpoint.root().join("scheduler"),
            problem,
        })
    }

    /// Reads a part's configuration in either layout, builds the network from its tensors, and checks that no tensor is
    /// left over.
    fn network<C, N>(
        &self,
        component: Component,
        library: impl FnOnce(&Value, &Weights) -> Result<C, ConfigError>,
        original: impl FnOnce(&Value, &Weights) -> Result<C, ConfigError>,
        build: impl FnOnce(&C, &Weights) -> N,
    ) -> Result<(C, N), LoadError> {
        let part = self.part(component)?;
        let reading = Reading {
            watch: self.meter.as_ref().map(|meter| meter.watch(component)),
            check_values: self.options.check_values,
            dry: self.meter.is_none(),
            fuse: self.fuse(component),
            float8: match component {
                Component::Transformer => float8(self.options)?,
                _ => None,
            },
        };
        let store = part.store(self.options.precision, self.options.device, reading);
        let weights = store.root();
        let config = match part.layout {
            Layout::Library => library(&part.config, &weights),
            Layout::Original | Layout::SingleFile => original(&part.config, &weights),
        };
        let config = config.map_err(|problem| self.wrong(part, problem))?;
        let network = build(&config, &weights);
        store.finish().map_err(|problem| LoadError::Weights {
            folder: part.folder.clone(),
            problem,
        })?;
        if matches!(component, Component::Transformer | Component::Connectors) {
            self.layers.borrow_mut().push((component, store.layers()));
        }
        Ok((config, network))
    }

    /// Returns what adds the adapters to a part's matrices, where there are any.
    fn fuse(&self, component: Component) -> Option<Fuse> {
        let fused = self.fused.clone();
        (!fused.is_empty()).then(|| -> Fuse {
            Rc::new(move |layer, weight| {
                let added = Fused(&fused).apply(component, layer, weight);
                added.map_err(|error| error.to_string())
            })
        })
    }

    fn part(&self, component: Component) -> Result<&Part, LoadError> {
        Ok(self.checkpoint.required(component)?)
    }

    fn wrong(&self, part: &Part, problem: ConfigError) -> LoadError {
        LoadError::Config {
            folder: part.folder.clone(),
            problem,
        }
    }
}

/// Counts the bytes that were loaded.
struct Meter {
    done: Cell<u64>,
    total: u64,
    progress: RefCell<Box<dyn FnMut(Progress)>>,
}

impl Meter {
    fn watch(self: &Rc<Self>, component: Component) -> Watch {
        let meter = self.clone();
        Rc::new(move |bytes| {
            meter.done.set(meter.done.get() + bytes);
            (meter.progress.borrow_mut())(Progress {
                part: component.name(),
                bytes_done: meter.done.get(),
                bytes_total: meter.total,
            });
        })
    }
}
