//! The attention of a stream to itself, to the text or to the other stream, and the feed-forward layer.
//!
//! Follows `LTX2Attention` in `models/transformers/transformer_ltx2.py` and `FeedForward` in `models/attention.py` of
//! diffusers 0.42.1. No mask is used: text contexts have no padding, and any mask would rule out the fast kernels.

use tch::Tensor;

use crate::nn::Linear;
use crate::ops::{Kernels, Rotation};
use crate::weights::Weights;

/// The sizes of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub query_dim: i64,
    pub context_dim: i64,
    pub heads: i64,
    pub head_dim: i64,
    pub eps: f64,
}

#[derive(Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    norm_q: Tensor,
    norm_k: Tensor,
    heads: i64,
    eps: f64,
    kernels: Kernels,
}

/// The keys and values of one attention, each `[B, heads, S, head width]`.
#[derive(Debug)]
pub struct KeyValue {
    key: Tensor,
    value: Tensor,
}

impl Attention {
    pub fn new(weights: &Weights, shape: Shape, kernels: &Kernels) -> Self {
        let Shape {
            query_dim,
            context_dim,
            heads,
            head_dim,
            eps,
        } = shape;
        let width = heads * head_dim;
        Self {
            to_q: Linear::new(&weights.sub("to_q"), query_dim, width),
            to_k: Linear::new(&weights.sub("to_k"), context_dim, width),
            to_v: Linear::new(&weights.sub("to_v"), context_dim, width),
            to_out: Linear::new(&weights.sub("to_out.0"), width, query_dim),
            norm_q: weights.sub("norm_q").tensor("weight", &[width]),
            norm_k: weights.sub("norm_k").tensor("weight", &[width]),
            heads,
            eps,
            kernels: kernels.clone(),
        }
    }

    /// Computes self-attention of the tokens `x`: `[B, N, D]` to `[B, N, D]`.
    pub fn forward_self(&self, x: &Tensor, rotation: &Rotation) -> Tensor {
        let context = self.key_value(x, Some(rotation));
        self.attend(self.query(x, Some(rotation)), &context)
    }

    /// Computes cross-attention of the tokens `x` to other tokens, `[B, S, context width]`.
    pub fn forward_cross(
        &self,
        x: &Tensor,
        context: &Tensor,
        rotation: &Rotation,
        context_rotation: &Rotation,
    ) -> Tensor {
        let context = self.key_value(context, Some(context_rotation));
        self.attend(self.query(x, Some(rotation)), &context)
    }

    /// Computes cross-attention of the tokens `x` to keys and values that were computed before.
    pub fn forward_cached(&self, x: &Tensor, context: &KeyValue) -> Tensor {
        self.attend(self.query(x, None), context)
    }

    /// Computes the keys and values of `[B, S, context width]`.
    pub fn key_value(&self, context: &Tensor, rotation: Option<&Rotation>) -> KeyValue {
        let (batch, tokens, _) = context.size3().expect("a context has three axes");
        let key = self.to_k.forward(context);
        let value = self.to_v.forward(context);
        KeyValue {
            key: self
                .kernels
                .norm_rotate(key, &self.norm_k, self.eps, self.heads, rotation),
            value: value.view([batch, tokens, self.heads, -1]).transpose(1, 2),
        }
    }

    fn query(&self, x: &Tensor, rotation: Option<&Rotation>) -> Tensor {
        let query = self.to_q.forward(x);
        self.kernels
            .norm_rotate(query, &self.norm_q, self.eps, self.heads, rotation)
    }

    fn attend(&self, query: Tensor, context: &KeyValue) -> Tensor {
        let attended = Tensor::scaled_dot_product_attention(
            &query,
            &context.key,
            &context.value,
            None::<&Tensor>,
            0.0,
            false,
            None::<f64>,
            false,
        );
        drop(query);
        let attended = attended.transpose(1, 2).flatten(2, 3); // [B, N, heads · d]
        self.to_out.forward(&attended)
    }
}

#[derive(Debug)]
pub struct FeedForward {
    proj_in: Linear,
    proj_out: Linear,
}

impl FeedForward {
    pub fn new(weights: &Weights, width: i64) -> Self {
        Self {
            proj_in: Linear::new(&weights.sub("net.0.proj"), width, 4 * width),
            proj_out: Linear::new(&weights.sub("net.2"), 4 * width, width),
        }
    }

    /// Applies the layer: `[B, N, D]` to `[B, N, D]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.proj_in.forward_gelu(x);
        self.proj_out.forward(&hidden)
    }
}
