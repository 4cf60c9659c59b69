//! The activations of the vocoder's generators.

use tch::{Kind, Tensor};

use super::config::Activation;
use crate::weights::Weights;

/// The factor by which a signal is resampled for an activation, and the number of taps of the filters.
const RATIO: i64 = 2;
const TAPS: i64 = 12;
/// The samples that are repeated at both ends before a signal is resampled up, and those that are cut off afterwards.
const UP_PADDING: i64 = TAPS / RATIO - 1;
const UP_CUT: i64 = UP_PADDING * RATIO + (TAPS - RATIO) / 2;
/// Keeps the amplitude of an activation finite.
const EPS: f64 = 1e-9;

/// An activation of `[B, C, T]`.
#[derive(Debug)]
pub(super) enum Act {
    /// The slope for negative values, as a tensor.
    LeakyRelu(Tensor),
    SnakeBeta(SnakeBeta),
}

impl Act {
    /// Loads the activation of `channels` channels.
    pub(super) fn new(activation: Activation, weights: &Weights, channels: i64) -> Self {
        match activation {
            Activation::LeakyRelu { negative_slope } => Self::leaky_relu(negative_slope, weights),
            Activation::SnakeBeta => Self::SnakeBeta(SnakeBeta::new(weights, channels)),
        }
    }

    pub(super) fn leaky_relu(negative_slope: f64, weights: &Weights) -> Self {
        let slope = Tensor::from_slice(&[negative_slope]).to_kind(Kind::Float);
        Self::LeakyRelu(slope.to_device(weights.device()))
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Self::LeakyRelu(slope) => x.prelu(slope),
            Self::SnakeBeta(snake) => snake.forward(x),
        }
    }
}

/// `x + sin²(αx) / β`, computed at twice the sample rate between two low-pass filters, so that the new frequencies
/// cause no aliasing.
#[derive(Debug)]
pub(super) struct SnakeBeta {
    /// `[1, C, 1]`.
    alpha: Tensor,
    /// `1 / β`, `[1, C, 1]`.
    amplitude: Tensor,
    /// The filters, one copy for each channel, `[C, 1, taps]`.
    up: Tensor,
    down: Tensor,
    channels: i64,
}

impl SnakeBeta {
    fn new(weights: &Weights, channels: i64) -> Self {
        // Both are stored as logarithms.
        let exponential = |name: &str| {
            let stored = weights.sub("act").tensor_as(name, &[channels], Kind::Float);
            stored.exp().unsqueeze(0).unsqueeze(2)
        };
        let filter = |name: &str| {
            let stored = weights
                .sub(name)
                .tensor_as("filter", &[1, 1, TAPS], Kind::Float);
            stored.expand([channels, 1, TAPS], false)
        };
        Self {
            alpha: exponential("alpha"),
            amplitude: (exponential("beta") + EPS).reciprocal(),
            up: filter("upsample"),
            down: filter("downsample"),
            channels,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x.replication_pad1d([UP_PADDING, UP_PADDING]);
        let x = x.conv_transpose1d(
            &self.up,
            None::<&Tensor>,
            [RATIO],
            [0],
            [0],
            self.channels,
            [1],
        ) * RATIO;
        let length = x.size()[2] - 2 * UP_CUT;
        let x = x.narrow(2, UP_CUT, length);
        let waves = (&x * &self.alpha).sin().square();
        let x = x + waves * &self.amplitude;
        x.replication_pad1d([TAPS / 2 - 1, TAPS / 2]).conv1d(
            &self.down,
            None::<&Tensor>,
            [RATIO],
            [0],
            [1],
            self.channels,
        )
    }
}
