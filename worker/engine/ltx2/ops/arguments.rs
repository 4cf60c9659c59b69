//! The arguments that [`super::Kernels`] and the CUDA kernels share.

use tch::Tensor;

/// Consecutive runs of tokens that share a row of modulation, as their lengths. Tensors of rows are `[B or 1, runs, D]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs(Vec<i64>);

/// Cosines and sines for rotating queries or keys, each `[B or 1, heads, tokens, head width / 2]`, contiguous, in float32.
#[derive(Debug)]
pub struct Rotation {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// How `[B, C, F, H, W]` becomes the input of a convolution that does not pad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// Copies of the first frame in front of it.
    pub before: i64,
    /// Copies of the last frame behind it.
    pub after: i64,
    /// Rows and columns on each side.
    pub border: i64,
    /// Whether the border mirrors the picture, which must be wider than it; else it is zero.
    pub reflect: bool,
}

impl Runs {
    /// Runs of these lengths; empty ones are not runs.
    ///
    /// # Panics
    /// When one is empty or negative.
    pub fn new(lengths: Vec<i64>) -> Self {
        assert!(
            lengths.iter().all(|&length| length > 0),
            "runs of tokens: expected lengths above 0, given {lengths:?}"
        );
        Self(lengths)
    }

    pub fn lengths(&self) -> &[i64] {
        &self.0
    }

    pub fn tokens(&self) -> i64 {
        self.0.iter().sum()
    }

    /// The first token of each run but the first.
    pub fn starts(&self) -> Vec<i64> {
        let mut starts = Vec::with_capacity(self.0.len());
        let mut token = 0;
        for length in &self.0[..self.0.len().saturating_sub(1)] {
            token += length;
            starts.push(token);
        }
        starts
    }

    /// Whether the rows broadcast over the tokens as they are: one run, or every token its own.
    pub(super) fn broadcast(&self) -> bool {
        self.0.len() == 1 || self.0.iter().all(|&length| length == 1)
    }

    /// Each run's part of `[B, tokens, D]` with its part of the rows, by number in order.
    pub(super) fn slices(&self, tokens: &Tensor) -> Vec<Tensor> {
        let sizes: &[i64] = &self.0;
        tokens.split_with_sizes(sizes, 1)
    }
}
