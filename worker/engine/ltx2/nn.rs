//! The few layers that every part uses.

use tch::{Kind, Tensor};

use crate::activations::{Activations, Form};
use crate::low_rank::Slot;
use crate::weights::{LayerMatrix, Weights};

/// A linear layer, `x W^T + b`, with weights as `[out, in]`, and what adapters add to it.
#[derive(Debug)]
pub struct Linear {
    matrix: LayerMatrix,
    bias: Option<Tensor>,
    slot: Slot,
}

impl Linear {
    /// Reads a layer with a bias.
    pub fn new(weights: &Weights, in_features: i64, out_features: i64) -> Self {
        Self {
            bias: Some(weights.tensor("bias", &[out_features])),
            ..Self::without_bias(weights, in_features, out_features)
        }
    }

    /// Reads a layer with a bias whose matrix may be in 8-bit floats: one that is applied to every video token.
    pub fn wide(weights: &Weights, in_features: i64, out_features: i64) -> Self {
        let (matrix, slot) = weights.wide_matrix([out_features, in_features]);
        Self {
            matrix,
            bias: Some(weights.tensor("bias", &[out_features])),
            slot,
        }
    }

    pub fn without_bias(weights: &Weights, in_features: i64, out_features: i64) -> Self {
        let (weight, slot) = weights.matrix([out_features, in_features]);
        Self {
            matrix: LayerMatrix::Dense(weight),
            bias: None,
            slot,
        }
    }

    /// Returns the form in which the layer takes its input.
    pub fn form(&self) -> Form {
        match &self.matrix {
            LayerMatrix::Dense(_) => Form::DENSE,
            LayerMatrix::Float8(matrix) => Form {
                dense: !self.slot.is_empty(),
                float8: Some(matrix.products()),
            },
        }
    }

    /// Applies the layer: `[…, in]` to `[…, out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.forward_input(&Activations::new(x.shallow_clone(), Form::DENSE))
    }

    /// Applies the layer to an input that has the layer's form.
    pub fn forward_input(&self, input: &Activations) -> Tensor {
        let bias = self.bias.as_ref();
        let mut y = match &self.matrix {
            LayerMatrix::Dense(weight) => input.dense().linear(weight, bias),
            LayerMatrix::Float8(matrix) => {
                let rows = input.rows(matrix.products());
                input.unflat(&matrix.forward(&rows, bias, input.kind()))
            }
        };
        self.slot.add_to(&mut y, input);
        y
    }
}

/// The mean and the standard deviation of each latent value, by which an autoencoder's latents are normalized.
#[derive(Debug)]
pub struct LatentStatistics {
    mean: Tensor,
    std: Tensor,
}

impl LatentStatistics {
    /// Reads `latents_mean` and `latents_std` with `values` values each, in a `shape` that broadcasts over the latents.
    pub fn new(weights: &Weights, values: i64, shape: &[i64]) -> Self {
        let read = |name| {
            let tensor = weights.tensor_as(name, &[values], Kind::Float);
            // A missing tensor is empty. Nothing is computed with it, because loading fails.
            if tensor.numel() == 0 {
                tensor
            } else {
                tensor.view(shape)
            }
        };
        Self {
            mean: read("latents_mean"),
            std: read("latents_std"),
        }
    }

    /// Converts latents from the encoder's scale to the normalized scale of the transformer, in float32.
    pub fn normalize(&self, latents: &Tensor) -> Tensor {
        (latents.to_kind(Kind::Float) - &self.mean) / &self.std
    }

    /// Converts latents from the normalized scale of the transformer to the decoder's scale, in float32.
    pub fn unnormalize(&self, latents: &Tensor) -> Tensor {
        latents.to_kind(Kind::Float) * &self.std + &self.mean
    }
}

/// Computes the RMS norm over the last axis without gain, in float32; the result has the input's type.
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

/// Returns the sizes of a tensor's axes.
///
/// # Panics
/// Panics when the tensor has another number of axes, which is a mistake in the model's code.
pub fn sizes<const AXES: usize>(x: &Tensor) -> [i64; AXES] {
    let sizes = x.size();
    match sizes.as_slice().try_into() {
        Ok(sizes) => sizes,
        Err(_) => panic!("expected {AXES} axes, given {sizes:?}"),
    }
}
