//! Latents as grids and as tokens, and the latents that a stage starts from.

use tch::Tensor;

/// The sizes of video latents, `[1, channels, frames, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VideoGrid {
    pub channels: i64,
    pub frames: i64,
    pub height: i64,
    pub width: i64,
}

impl VideoGrid {
    pub fn shape(&self) -> [i64; 5] {
        [1, self.channels, self.frames, self.height, self.width]
    }

    pub fn packed_shape(&self) -> [i64; 3] {
        [1, self.tokens(), self.channels]
    }

    pub fn tokens(&self) -> i64 {
        self.frames * self.height * self.width
    }
}

/// The sizes of audio latents, `[1, channels, frames, bins]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AudioGrid {
    pub channels: i64,
    pub frames: i64,
    pub bins: i64,
}

impl AudioGrid {
    pub fn shape(&self) -> [i64; 4] {
        [1, self.channels, self.frames, self.bins]
    }

    pub fn packed_shape(&self) -> [i64; 3] {
        [1, self.frames, self.channels * self.bins]
    }
}

/// Packs `[B, C, F, H, W]` to tokens `[B, F * H * W, C]`.
pub fn pack_video(latents: &Tensor) -> Tensor {
    latents.flatten(2, 4).transpose(1, 2).contiguous()
}

/// The inverse of [`pack_video`].
pub fn unpack_video(tokens: &Tensor, grid: &VideoGrid) -> Tensor {
    let sizes = [grid.frames, grid.height, grid.width];
    tokens.transpose(1, 2).unflatten(2, sizes).contiguous()
}

/// Packs `[B, C, L, M]` to tokens `[B, L, C * M]`.
pub fn pack_audio(latents: &Tensor) -> Tensor {
    latents.transpose(1, 2).flatten(2, 3)
}

/// The inverse of [`pack_audio`].
pub fn unpack_audio(tokens: &Tensor, grid: &AudioGrid) -> Tensor {
    let sizes = [grid.channels, grid.bins];
    tokens.unflatten(2, sizes).transpose(1, 2).contiguous()
}

/// Returns `x`, `[1, N, C]`, with its first tokens replaced by the given ones, `clean`, `[1, kept, C]`.
pub fn lay_over(x: Tensor, clean: Option<&Tensor>) -> Tensor {
    let Some(clean) = clean else {
        return x;
    };
    let kept = clean.size()[1];
    let rest = x.narrow(1, kept, x.size()[1] - kept);
    Tensor::cat(&[clean, &rest], 1)
}

/// Returns the latents that a stage starts from: `noise` at level `sigma`, added to `start` if there is one.
pub fn noised(noise: &Tensor, sigma: f32, start: Option<&Tensor>) -> Tensor {
    let sigma = f64::from(sigma);
    match start {
        Some(start) => noise * sigma + start * (1.0 - sigma),
        None => noise * sigma,
    }
}
