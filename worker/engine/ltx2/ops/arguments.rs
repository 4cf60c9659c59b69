//! The arguments that [`super::Kernels`] and the CUDA kernels share.

use tch::{Kind, Tensor};

/// Consecutive runs of tokens that share a row of modulation, as their lengths. Tensors of rows are `[B or 1, runs, D]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs(Vec<i64>);

/// The cosines and sines for rotating queries or keys.
#[derive(Debug)]
pub enum Rotation {
    /// A row for each token: each `[B or 1, heads, tokens, head width / 2]`, in float32.
    OfTokens { cos: Tensor, sin: Tensor },
    /// A row for each position on each axis of the tokens' grid, which is far less.
    OfPositions(PositionTable),
}

/// The rotations of tokens on a grid. The pairs of a token's values, over all heads, belong to the axes in turn.
#[derive(Debug)]
pub struct PositionTable {
    /// The cosine and the sine at each position and frequency, one axis after the other: `[positions, frequencies, 2]`, in float32.
    pub values: Tensor,
    /// One to three axes.
    pub axes: Vec<GridAxis>,
    pub tokens: i64,
    /// The number of pairs in front of the others that are not rotated.
    pub still: i64,
}

/// An axis of a grid of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridAxis {
    /// The number of positions.
    pub size: i64,
    /// The number of tokens from a position to the next.
    pub stride: i64,
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

impl Rotation {
    /// Returns the cosines and the sines of tokens, each `[B or 1, heads, tokens, head width / 2]`.
    pub fn of_tokens(&self, heads: i64) -> [Tensor; 2] {
        match self {
            Self::OfTokens { cos, sin } => [cos.shallow_clone(), sin.shallow_clone()],
            Self::OfPositions(table) => table.of_tokens(heads),
        }
    }
}

impl PositionTable {
    /// Returns the number of pairs of a token's values.
    pub fn pairs(&self) -> i64 {
        let frequencies = self.values.size().get(1).copied().unwrap_or_default();
        self.still + frequencies * self.axes.len() as i64
    }

    fn of_tokens(&self, heads: i64) -> [Tensor; 2] {
        let options = (Kind::Float, self.values.device());
        let token = Tensor::arange(self.tokens, (Kind::Int64, options.1));
        let sizes: Vec<i64> = self.axes.iter().map(|axis| axis.size).collect();
        let along: Vec<Tensor> = self
            .values
            .split_with_sizes(sizes.as_slice(), 0)
            .iter()
            .zip(&self.axes)
            .map(|(rows, axis)| {
                let position = token.floor_divide_scalar(axis.stride).remainder(axis.size);
                rows.index_select(0, &position)
            })
            .collect();
        let turned = Tensor::stack(&along, 2).flatten(1, 2); // [tokens, frequencies · axes, 2]
        let still = [self.tokens, self.still];
        [Tensor::ones(still, options), Tensor::zeros(still, options)]
            .into_iter()
            .zip(turned.unbind(-1))
            .map(|(still, turned)| {
                let row = Tensor::cat(&[still, turned], 1);
                row.unflatten(1, [heads, -1]).transpose(0, 1).unsqueeze(0)
            })
            .collect::<Vec<_>>()
            .try_into()
            .expect("cosines and sines")
    }
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
