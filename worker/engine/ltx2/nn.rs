//! The few layers that every part uses.

use tch::{Kind, Tensor};

use crate::weights::Weights;

/// `x W^T + b`, weights as `[out, in]`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// With a bias.
    pub fn new(weights: &Weights, in_features: i64, out_features: i64) -> Self {
        Self {
            weight: weights.tensor("weight", &[out_features, in_features]),
            bias: Some(weights.tensor("bias", &[out_features])),
        }
    }

    pub fn without_bias(weights: &Weights, in_features: i64, out_features: i64) -> Self {
        Self {
            weight: weights.tensor("weight", &[out_features, in_features]),
            bias: None,
        }
    }

    /// `[…, in]` to `[…, out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }

    /// The same, then GELU in its tanh form.
    pub fn forward_gelu(&self, x: &Tensor) -> Tensor {
        let mut y = self.forward(x);
        let _ = y.gelu_("tanh");
        y
    }
}

/// RMS norm over the last axis without gain: float32 inside, the input's type outside.
pub fn rms_norm(x: &Tensor, eps: f64) -> Tensor {
    let width = x.size().last().copied().unwrap_or(1);
    x.rms_norm([width], None::<&Tensor>, eps)
}

/// The type that a model computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Bfloat16,
    Float32,
}

impl Precision {
    pub fn kind(self) -> Kind {
        match self {
            Self::Bfloat16 => Kind::BFloat16,
            Self::Float32 => Kind::Float,
        }
    }
}

/// The sizes of a tensor's axes.
///
/// # Panics
/// When it has another number of axes: a mistake in the model's code, as the pieces fit whatever was asked for.
pub fn sizes<const AXES: usize>(x: &Tensor) -> [i64; AXES] {
    let sizes = x.size();
    match sizes.as_slice().try_into() {
        Ok(sizes) => sizes,
        Err(_) => panic!("expected {AXES} axes, given {sizes:?}"),
    }
}
