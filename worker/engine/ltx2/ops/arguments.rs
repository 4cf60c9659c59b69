//! The arguments that [`super::Kernels`] and the CUDA kernels share.

use tch::Tensor;

/// Consecutive runs of tokens that share a row of modulation, as their lengths. Tensors of rows are `[B or 1, runs, D]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs(Vec<i64>);

/// The cosines and sines for rotating queries or keys, each `[B or 1, heads, tokens, head width / 2]`, contiguous, in
/// float32.
#[derive(Debug)]
pub struct Rotation {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// The padding that turns `[B, C, F, H, W]` into the input of a convolution that does not pad by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// The number of copies of the first frame in front of it.
    pub before: i64,
    /// The number of copies of the last frame behind it.
    pub after: i64,
    /// The number of rows and columns on each side.
    pub border: i64,
    /// Whether the border mirrors the picture, which must be wider than the border; otherwise the border is zero.
    pub reflect: bool,
}

impl Runs {
    /// Creates runs of these lengths. Empty runs are not allowed.
    ///
    /// # Panics
    /// Panics when a length is zero or negative.
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

    /// Returns the first token of each run except the first run.
    pub fn starts(&self) -> Vec<i64> {
        let mut starts = Vec::with_capacity(self.0.len());
        let mut token = 0;
        for length in &self.0[..self.0.len().saturating_sub(1)] {
            token += length;
            starts.push(token);
        }
        starts
    }

    /// Returns whether the rows broadcast over the tokens as they are: one run, or one run for every token.
    pub(super) fn broadcast(&self) -> bool {
        self.0.len() == 1 || self.0.iter().all(|&length| length == 1)
    }

    /// Returns each run's part of `[B, tokens, D]`, in order.
    pub(super) fn slices(&self, tokens: &Tensor) -> Vec<Tensor> {
        let sizes: &[i64] = &self.0;
        tokens.split_with_sizes(sizes, 1)
    }
}
