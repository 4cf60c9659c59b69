//! Estimates the memory that a model needs on a GPU, from its weights and the size of its segments.

use std::fmt::{self, Display};

use crate::checkpoint::{Checkpoint, Component};
use crate::load::{Matrices, Options};
use crate::nn::Precision;
use crate::video_vae::Tiling;

const GIB: f64 = (1_u64 << 30) as f64;
/// The memory besides the weights at [`MEASURED`], in GiB: a pass of the second stage with room for the decoder's groups,
/// and a decoder that decodes all frames at once.
const WORKING_GROUPED: f64 = 8.0;
const WORKING_WHOLE: f64 = 24.0;
/// The size that these are known for.
const MEASURED: Size = Size {
    width: 1920,
    height: 1088,
    num_frames: 121,
};
/// The share of the transformer's parameters in matrices that are applied to every video token.
const WIDE_SHARE: f64 = 0.68;

/// The size of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub width: u32,
    pub height: u32,
    pub num_frames: u32,
}

/// An estimate in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub weights: f64,
    /// What a segment needs besides.
    pub working: f64,
    size: Size,
}

impl Estimate {
    /// Estimates the memory of a checkpoint that is loaded with these options and makes segments of this size.
    pub fn new(checkpoint: &Checkpoint, options: &Options, tiling: &Tiling, size: Size) -> Self {
        let bytes = match options.precision {
            Precision::Bfloat16 => 2.0,
            Precision::Float32 => 4.0,
        };
        let parameters = |part: &crate::checkpoint::Part| {
            let all = part.parameters() as f64 * bytes;
            match (part.component, &options.matrices) {
                // One byte instead of two.
                (Component::Transformer, Matrices::Float8 { .. }) => {
                    all - part.parameters() as f64 * WIDE_SHARE * (bytes - 1.0)
                }
                (Component::Vocoder, _) => part.parameters() as f64 * 4.0,
                _ => all,
            }
        };
        let pixels = |size: Size| {
            f64::from(size.width) * f64::from(size.height) * f64::from(size.num_frames)
        };
        let working = match tiling {
            Tiling::Whole => WORKING_WHOLE,
            _ => WORKING_GROUPED,
        };
        Self {
            weights: checkpoint.parts().iter().map(parameters).sum(),
            working: working * GIB * pixels(size) / pixels(MEASURED),
            size,
        }
    }

    pub fn total(&self) -> f64 {
        self.weights + self.working
    }

    /// Checks that a GPU with so many bytes has room.
    ///
    /// # Errors
    /// Returns an error with the arithmetic.
    pub fn fits(&self, gpu_bytes: u64) -> Result<(), DoesNotFit> {
        if self.total() <= gpu_bytes as f64 {
            return Ok(());
        }
        Err(DoesNotFit {
            needed: *self,
            gpu: gpu_bytes as f64 / GIB,
        })
    }
}

/// The error for a model, or a size, that a GPU has no room for.
#[derive(Debug, thiserror::Error)]
#[error(
    "the model does not fit: it needs {needed}, and the GPU has {gpu:.1} GiB; use a smaller size, `vae_tiling: grouped` (if it is `whole`) or `matrices: float8`"
)]
pub struct DoesNotFit {
    needed: Estimate,
    /// In GiB.
    gpu: f64,
}

/// The sum, for messages.
impl Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size {
            width,
            height,
            num_frames,
        } = self.size;
        write!(
            f,
            "{:.1} GiB of weights and about {:.1} GiB for {num_frames} frames of {width}x{height}, together {:.1} GiB",
            self.weights / GIB,
            self.working / GIB,
            self.total() / GIB
        )
    }
}
