//! What the worker does when a person starts it: look at a model, or make a video, without a supervisor.

use clap::{Args, ValueEnum};
use fastvideo_ltx2::device::Wanted;
use fastvideo_proto::link::{DeviceChoice, DrawOrder, Ltx2Spec, Precision, VaeTiling};

pub(crate) mod bench;
pub(crate) mod generate;
pub(crate) mod inspect;

/// A model and how it is run. The configuration keys `generator.ltx2.*` of the supervisor say the same.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// A folder, or the id of a Hugging Face repository.
    #[arg(long)]
    model: String,
    #[arg(long, value_enum, default_value_t = DeviceName::Auto)]
    device: DeviceName,
    /// What the model computes in [default: bfloat16 on a GPU, float32 on the CPU].
    #[arg(long, value_enum)]
    precision: Option<PrecisionName>,
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
    #[arg(long)]
    plain: bool,
    /// Look for weights that are no numbers.
    #[arg(long)]
    check_weights: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DeviceName {
    Auto,
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PrecisionName {
    Bfloat16,
    Float32,
}

impl DeviceName {
    fn wanted(self) -> Wanted {
        match self {
            Self::Auto => Wanted::Auto,
            Self::Cpu => Wanted::Cpu,
            Self::Cuda => Wanted::Cuda(0),
        }
    }
}

impl ModelArgs {
    fn spec(&self) -> Ltx2Spec {
        Ltx2Spec {
            model: self.model.clone(),
            device: match self.device {
                DeviceName::Auto => DeviceChoice::Auto,
                DeviceName::Cpu => DeviceChoice::Cpu,
                DeviceName::Cuda => DeviceChoice::Cuda,
            },
            precision: self.precision.map(|precision| match precision {
                PrecisionName::Bfloat16 => Precision::Bfloat16,
                PrecisionName::Float32 => Precision::Float32,
            }),
            draw_order: DrawOrder::Channels,
            positions: Precision::Float32,
            vae_tiling: VaeTiling::Grouped,
            stages: None,
            refine_steps: self.refine_steps,
            kernels: !self.plain,
            conditioning_num_frames: self.conditioning_num_frames,
            conditioning_end_offset: 0,
            audio_conditioning_num_frames: self.audio_conditioning_num_frames,
            audio_reencode: false,
            check_weights: self.check_weights,
        }
    }
}
