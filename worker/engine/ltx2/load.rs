//! Loads the parts of a model from a checkpoint onto a device.
//!
//! Every name, shape and type is checked, and every configuration value is read from the files. A part that does not
//! fit is reported before another one is loaded.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::rc::Rc;

use serde_json::Value;
use tch::Device;

use crate::audio_vae::{self, AudioVae};
use crate::checkpoint::{Checkpoint, CheckpointError, Component, Layout, Part};
use crate::config::ConfigError;
use crate::nn::Precision;
use crate::ops::Kernels;
use crate::pipeline::Parts;
use crate::sampling::schedule::Scheduler;
use crate::text::connectors::{self, Connectors};
use crate::text::gemma::{self, Gemma};
use crate::text::tokens::{self, Tokenizer, TokensError};
use crate::text::{TextEncoder, TextError};
use crate::transformer::{self, Transformer};
use crate::upsampler::{self, Upsampler};
use crate::video_vae::{self, VideoVae};
use crate::vocoder::{self, Vocoder};
use crate::weights::{Reading, Watch, Weights, WeightsError};

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
    tch::no_grad(|| {
        let loader = Loader {
            checkpoint,
            options,
            meter: Some(Rc::new(Meter {
                done: Cell::new(0),
                total: checkpoint.stored_bytes(),
                progress: RefCell::new(Box::new(progress)),
            })),
        };
        loader.parts()
    })
}

/// Makes all checks of [`load`] except those of values, and reads no weights. This takes milliseconds.
///
/// # Errors
/// Returns the errors of [`load`].
pub fn check(checkpoint: &Checkpoint) -> Result<(), LoadError> {
    let options = Options {
        device: Device::Cpu,
        precision: Precision::Bfloat16,
        kernels: Kernels::default(),
        check_values: false,
    };
    let loader = Loader {
        checkpoint,
        options: &options,
        meter: None,
    };
    tch::no_grad(|| loader.parts().map(|_| ()))
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a Options,
    /// The progress meter; `None` for a check that reads no weights.
    meter: Option<Rc<Meter>>,
}

impl Loader<'_> {
    /// Loads the parts, the largest first, so that a device that is too small is noticed early.
    fn parts(&self) -> Result<Parts, LoadError> {
        let kernels = &self.options.kernels;
        let (transformer_config, transformer) = self.network(
            Component::Transformer,
            transformer::Config::library,
            transformer::Config::original,
            |config, weights| Transformer::new(config, weights, kernels),
        )?;
        let text = self.text()?;
        let (_, video_vae) = self.network(
            Component::VideoVae,
            video_vae::Config::library,
            video_vae::Config::original,
            |config, weights| VideoVae::new(config, weights, kernels),
        )?;
        let upsampler = match self.checkpoint.part(Component::Upsampler) {
            None => None,
            Some(_) => Some(self.network(
                Component::Upsampler,
                upsampler::Config::library,
                upsampler::Config::original,
                Upsampler::new,
            )?),
        };
        let (_, audio_vae) = self.network(
            Component::AudioVae,
            audio_vae::Config::library,
            audio_vae::Config::original,
            AudioVae::new,
        )?;
        let (_, vocoder) = self.network(
            Component::Vocoder,
            vocoder::Config::library,
            vocoder::Config::original,
            Vocoder::new,
        )?;
        Ok(Parts {
            text,
            transformer_config,
            transformer,
            video_vae,
            upsampler: upsampler.map(|(_, upsampler)| upsampler),
            audio_vae,
            vocoder,
            scheduler: self.scheduler()?,
            device: self.options.device,
        })
    }

    fn text(&self) -> Result<TextEncoder, LoadError> {
        let tokenizer = Tokenizer::open(&self.checkpoint.tokenizer(), self.text_length()?)?;
        let (_, gemma) = self.network(
            Component::TextEncoder,
            gemma::Config::library,
            // The same file in both layouts.
            |json, _| gemma::Config::library(json),
            Gemma::new,
        )?;
        let (_, connectors) = self.network(
            Component::Connectors,
            connectors::Config::library,
            connectors::Config::original,
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
            Layout::Library => Ok(tokens::library_length(self.checkpoint.tokenizer_config())),
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

    /// Reads the scheduler. The original layout has none, because its weights are distilled.
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
        library: impl FnOnce(&Value) -> Result<C, ConfigError>,
        original: impl FnOnce(&Value, &Weights) -> Result<C, ConfigError>,
        build: impl FnOnce(&C, &Weights) -> N,
    ) -> Result<(C, N), LoadError> {
        let part = self.part(component)?;
        let reading = Reading {
            watch: self.meter.as_ref().map(|meter| meter.watch(component)),
            check_values: self.options.check_values,
            dry: self.meter.is_none(),
        };
        let store = part.store(self.options.precision, self.options.device, reading);
        let weights = store.root();
        let config = match self.checkpoint.layout() {
            Layout::Library => library(&part.config),
            Layout::Original => original(&part.config, &weights),
        };
        let config = config.map_err(|problem| self.wrong(part, problem))?;
        let network = build(&config, &weights);
        store.finish().map_err(|problem| LoadError::Weights {
            folder: part.folder.clone(),
            problem,
        })?;
        Ok((config, network))
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
