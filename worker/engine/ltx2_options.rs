//! The options of the engine: the model and its settings. The supervisor sends them in JSON, see
//! `supervisor/engines/ltx2.rs`, and `fastvideo-worker generate` has flags for the ones that users need.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use fastvideo_ltx2::adapters::Limits;
use fastvideo_ltx2::checkpoint::Companions;
use fastvideo_ltx2::device::{Compute, Wanted};
use fastvideo_ltx2::load::Matrices;
use fastvideo_ltx2::nn;
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pipeline::{Conditioning, Settings, Stages};
use fastvideo_ltx2::sampling::noise;
use fastvideo_ltx2::sampling::schedule::Scheduler;
use fastvideo_ltx2::transformer;
use fastvideo_ltx2::video_vae::{Tile, Tiling};
use serde::Deserialize;

use super::ltx2_loras::Lora;

/// A model and how it is run.
#[derive(Clone, Debug, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// A folder, a safetensors file, or the id of a Hugging Face repository.
    #[arg(long)]
    pub(super) model: String,
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// What the model computes in [default: bfloat16 on a GPU, float32 on the CPU].
    #[arg(long, value_enum, default_value_t = PrecisionChoice::Auto, hide_default_value = true)]
    precision: PrecisionChoice,
    /// Frames that a segment takes over from the one before.
    #[arg(long, default_value_t = 9)]
    conditioning_num_frames: u32,
    /// Frames' worth of sound that a segment takes over.
    #[arg(long, default_value_t = 49)]
    audio_conditioning_num_frames: u32,
    /// Denoise steps of the second stage.
    #[arg(long, default_value_t = 2)]
    refine_steps: u32,
    /// Without this program's own CUDA kernels.
    #[arg(long = "plain", action = ArgAction::SetFalse)]
    kernels: bool,
    /// Look for weights that are no numbers.
    #[arg(long)]
    pub(super) check_weights: bool,
    /// The folder of Gemma 3, for a model in one file [default: the one beside it].
    #[arg(long)]
    text_encoder: Option<PathBuf>,
    /// The latent upsampler, for a model in one file [default: the one beside it].
    #[arg(long)]
    latent_upsampler: Option<PathBuf>,
    /// What the weights were made for [default: as the model's scheduler says, else distilled].
    #[arg(long, value_enum, default_value_t = ScheduleChoice::Auto, hide_default_value = true)]
    schedule: ScheduleChoice,
    /// How the transformer's wide matrices are kept.
    #[arg(long, value_enum, default_value_t = MatricesChoice::Bfloat16)]
    matrices: MatricesChoice,
    /// Blocks whose matrices stay in the type that the model computes in.
    #[arg(skip)]
    float8_dense_blocks: Option<Vec<usize>>,
    /// The adapters that the operator has named.
    #[arg(skip)]
    loras: Option<Vec<Lora>>,
    /// What the adapters may take that are not part of the weights.
    #[arg(skip = 8192_u32)]
    loras_max_mib: u32,
    #[arg(skip = 128_u32)]
    loras_max_rank: u32,
    /// The decoder of previews; without it there are none.
    #[arg(skip)]
    pub(super) preview_decoder: Option<PathBuf>,
    /// Frames of a segment of which there are previews.
    #[arg(skip = 8_u32)]
    preview_frames: u32,
    #[arg(skip)]
    cross_modal_levels: CrossModalLevels,
    #[arg(skip)]
    stages: StageChoice,
    #[arg(skip)]
    draw_order: DrawOrder,
    #[arg(skip)]
    positions: Positions,
    #[arg(skip)]
    vae_tiling: VaeTiling,
    /// Frames at a segment's end, behind those that are taken over.
    #[arg(skip)]
    conditioning_end_offset: u32,
    /// Whether the sound is taken over as it was played, encoded again, and not as the latents that it was made of.
    #[arg(skip)]
    enable_audio_reencode: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeviceChoice {
    // The GPU that the worker sees, else the CPU. No doc comment, which `--help` would show at each flag.
    Auto,
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PrecisionChoice {
    // What suits the device; a person leaves the flag out.
    #[value(hide = true)]
    Auto,
    Bfloat16,
    Float32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StageChoice {
    /// As many as the checkpoint has parts for.
    #[default]
    Auto,
    One,
    Two,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ScheduleChoice {
    // What the model's scheduler says; a person leaves the flag out.
    #[value(hide = true)]
    Auto,
    Distilled,
    Base,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MatricesChoice {
    /// In the type that the model computes in.
    Bfloat16,
    /// In 8-bit floats, which GPUs multiply at twice the rate.
    Float8,
}

impl MatricesChoice {
    /// Returns how matrices are kept on this device.
    ///
    /// # Errors
    /// Returns an error when the device cannot multiply 8-bit floats.
    pub(crate) fn matrices(self, compute: &Compute) -> Result<Matrices, UnfitDevice> {
        match (self, &compute.gpu) {
            (Self::Bfloat16, _) => Ok(Matrices::Dense),
            (Self::Float8, Some(gpu)) if gpu.compute_capability() >= FLOAT8_CAPABILITY => {
                Ok(Matrices::Float8 {
                    dense_blocks: Vec::new(),
                })
            }
            (Self::Float8, Some(gpu)) => {
                let (major, minor) = gpu.compute_capability();
                Err(UnfitDevice(format!("{} with {major}.{minor}", gpu.name())))
            }
            (Self::Float8, None) => Err(UnfitDevice("the CPU".to_owned())),
        }
    }
}

/// The compute capability that products of 8-bit floats need.
const FLOAT8_CAPABILITY: (i32, i32) = (8, 9);

/// The error for a device that cannot multiply 8-bit floats.
#[derive(Debug, thiserror::Error)]
#[error("matrices: float8 needs a GPU of compute capability 8.9 or later, given {0}")]
pub(crate) struct UnfitDevice(String);

/// The noise levels that the attention between picture and sound is modulated by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CrossModalLevels {
    /// As the authors of the model's generation do.
    #[default]
    Auto,
    Library,
    Lightricks,
    Fastvideo,
}

/// How a seed's random numbers are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DrawOrder {
    #[default]
    Channels,
    Tokens,
}

/// What positions in the picture are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Positions {
    #[default]
    Float32,
    Bfloat16,
}

/// How the picture is decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum VaeTiling {
    Whole,
    /// As the whole, a few frames at a time.
    #[default]
    Grouped,
    /// In overlapping tiles, as diffusers does.
    Library,
    /// In overlapping tiles, as FastVideo does.
    Fastvideo,
}

impl DeviceChoice {
    /// Returns the device to open.
    pub(crate) fn wanted(self) -> Wanted {
        match self {
            Self::Auto => Wanted::Auto,
            Self::Cpu => Wanted::Cpu,
            // The supervisor shows each worker only its own GPU.
            Self::Cuda => Wanted::Cuda(0),
        }
    }
}

impl PrecisionChoice {
    /// Returns the precision on this device.
    pub(crate) fn on(self, compute: &Compute) -> nn::Precision {
        match self {
            Self::Auto => compute.default_precision(),
            Self::Bfloat16 => nn::Precision::Bfloat16,
            Self::Float32 => nn::Precision::Float32,
        }
    }
}

impl Options {
    pub(super) fn wanted(&self) -> Wanted {
        self.device.wanted()
    }

    pub(super) fn precision(&self, compute: &Compute) -> nn::Precision {
        self.precision.on(compute)
    }

    pub(super) fn kernels(&self, compute: &Compute) -> Kernels {
        match self.kernels {
            true => Kernels::on(compute),
            false => Kernels::Plain,
        }
    }

    /// Returns what belongs to a model in one file and is not in it.
    pub(super) fn companions(&self) -> Companions {
        Companions {
            text_encoder: self.text_encoder.clone(),
            upsampler: self.latent_upsampler.clone(),
        }
    }

    /// Returns the adapters that the operator has named.
    pub(super) fn loras(&self) -> &[Lora] {
        self.loras.as_deref().unwrap_or_default()
    }

    pub(super) fn adapter_limits(&self) -> Limits {
        let bytes = u64::from(self.loras_max_mib) << 20;
        Limits {
            loaded_bytes: bytes,
            file_bytes: bytes,
            rank: self.loras_max_rank.into(),
        }
    }

    /// Adds an adapter that was loaded while the model serves.
    pub(super) fn add_lora(&mut self, lora: Lora) {
        self.loras.get_or_insert_default().push(lora);
    }

    /// Removes an adapter that is not part of the weights.
    pub(super) fn remove_lora(&mut self, name: &str) {
        self.loras
            .get_or_insert_default()
            .retain(|lora| lora.fused || lora.name != name);
    }

    /// Returns how the transformer's wide matrices are kept.
    ///
    /// # Errors
    /// Returns an error when the device cannot multiply them.
    pub(super) fn matrices(&self, compute: &Compute) -> Result<Matrices, UnfitDevice> {
        Ok(match self.matrices.matrices(compute)? {
            Matrices::Dense => Matrices::Dense,
            Matrices::Float8 { .. } => Matrices::Float8 {
                dense_blocks: self.float8_dense_blocks.clone().unwrap_or_default(),
            },
        })
    }

    /// Returns the schedule that the operator has chosen; `None` leaves it to the model.
    pub(super) fn schedule(&self) -> Option<Scheduler> {
        match self.schedule {
            ScheduleChoice::Auto => None,
            ScheduleChoice::Distilled => Some(Scheduler::Distilled),
            ScheduleChoice::Base => Some(Scheduler::base()),
        }
    }

    /// Returns the settings that are the same for all requests.
    pub(super) fn settings(&self) -> Settings {
        Settings {
            draw_order: match self.draw_order {
                DrawOrder::Channels => noise::DrawOrder::Channels,
                DrawOrder::Tokens => noise::DrawOrder::Tokens,
            },
            positions: match self.positions {
                Positions::Float32 => transformer::Positions::Float32,
                Positions::Bfloat16 => transformer::Positions::Bfloat16,
            },
            tiling: self.vae_tiling.tiling(),
            stages: match self.stages {
                StageChoice::Auto => Stages::Automatic,
                StageChoice::One => Stages::One,
                StageChoice::Two => Stages::Two,
            },
            refine_steps: self.refine_steps as usize,
            conditioning: Conditioning {
                num_frames: self.conditioning_num_frames.into(),
                audio_num_frames: self.audio_conditioning_num_frames.into(),
                end_offset: self.conditioning_end_offset.into(),
            },
            audio_reencode: self.enable_audio_reencode,
            cross_modal_levels: match self.cross_modal_levels {
                CrossModalLevels::Auto => None,
                CrossModalLevels::Library => Some(transformer::CrossModalLevels::Library),
                CrossModalLevels::Lightricks => Some(transformer::CrossModalLevels::Lightricks),
                CrossModalLevels::Fastvideo => Some(transformer::CrossModalLevels::FastVideo),
            },
            preview_frames: self.preview_frames.into(),
            ..Settings::default()
        }
    }
}

impl VaeTiling {
    /// Returns the tiling, with the default tile sizes of the program that it comes from.
    fn tiling(self) -> Tiling {
        let tile = |size, overlap| Tile { size, overlap };
        match self {
            Self::Whole => Tiling::Whole,
            Self::Grouped => Settings::default().tiling,
            Self::Library => Tiling::Library {
                space: Some([tile(512, 64); 2]),
                time: Some(tile(16, 8)),
            },
            Self::Fastvideo => Tiling::Weighted {
                space: Some([tile(512, 64); 2]),
                time: Some(tile(64, 24)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        options: Options,
    }

    /// What the supervisor makes in its own test of its keys' defaults, which are those of the flags.
    #[test]
    fn options_of_the_supervisor_are_read() {
        let options = include_str!("../../tests/data/engine_options/ltx2.json");
        let options: Options = serde_json::from_str(options).unwrap();
        let flags = Flags::parse_from(["worker", "--model", "some/model"]);
        assert_eq!(options, flags.options);
        let plain = Flags::parse_from(["worker", "--model", "some/model", "--plain"]);
        assert!(options.kernels && !plain.options.kernels);
    }
}
