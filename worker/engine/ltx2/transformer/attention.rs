//! The attention of a stream to itself, to the text or to the other stream, and the feed-forward layer.
//!
//! Follows `LTX2Attention` in `models/transformers/transformer_ltx2.py` and `FeedForward` in `models/attention.py` of
//! diffusers 0.42.1. No mask is used: text contexts have no padding, and any mask would rule out the fast kernels.

use tch::Tensor;

use crate::nn::{Input, Linear};
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
    /// Whether each head's result is scaled by a gate for each token, as in LTX-2.3.
    pub gated: bool,
    /// Whether the queries come from the video tokens, which are so many that their matrices may be in 8-bit floats.
    pub wide_query: bool,
    /// Whether the keys and values come from the video tokens.
    pub wide_context: bool,
}

#[derive(Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    /// Computes the gate's logits, `[B, N, heads]`, from the queries' input.
    to_gate_logits: Option<Linear>,
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
            gated,
            wide_query,
            wide_context,
        } = shape;
        let width = heads * head_dim;
        let linear = |name: &str, from: i64, to: i64, wide: bool| match wide {
            true => Linear::wide(&weights.sub(name), from, to),
            false => Linear::new(&weights.sub(name), from, to),
        };
        Self {
            to_q: linear("to_q", query_dim, width, wide_query),
            to_k: linear("to_k", context_dim, width, wide_context),
            to_v: linear("to_v", context_dim, width, wide_context),
            to_out: linear("to_out.0", width, query_dim, wide_query),
            to_gate_logits: gated
                .then(|| Linear::new(&weights.sub("to_gate_logits"), query_dim, heads)),
            norm_q: weights.sub("norm_q").tensor("weight", &[width]),
            norm_k: weights.sub("norm_k").tensor("weight", &[width]),
            heads,
            eps,
            kernels: kernels.clone(),
        }
    }

    /// Computes self-attention of the tokens `x`: `[B, N, D]` to `[B, N, D]`.
    pub fn forward_self(&self, x: &Tensor, rotation: &Rotation) -> Tensor {
        let input = self.to_q.input(x);
        let context = self.key_value_of(&input, Some(rotation));
        self.attend(x, &input, Some(rotation), &context)
    }

    /// Like [`Self::forward_self`], but each token sees itself alone: its value is the result.
    pub fn forward_perturbed(&self, x: &Tensor) -> Tensor {
        self.output(x, self.split_heads(&self.to_v.forward(x)))
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
        self.attend(x, &self.to_q.input(x), Some(rotation), &context)
    }

    /// Computes cross-attention of the tokens `x` to keys and values that were computed before.
    pub fn forward_cached(&self, x: &Tensor, context: &KeyValue) -> Tensor {
        self.attend(x, &self.to_q.input(x), None, context)
    }

    /// Computes the keys and values of `[B, S, context width]`.
    pub fn key_value(&self, context: &Tensor, rotation: Option<&Rotation>) -> KeyValue {
        self.key_value_of(&self.to_k.input(context), rotation)
    }

    fn key_value_of(&self, context: &Input<'_>, rotation: Option<&Rotation>) -> KeyValue {
        let key = self.to_k.forward_input(context);
        let value = self.to_v.forward_input(context);
        KeyValue {
            key: self
                .kernels
                .norm_rotate(key, &self.norm_k, self.eps, self.heads, rotation),
            value: self.split_heads(&value),
        }
    }

    fn query(&self, x: &Input<'_>, rotation: Option<&Rotation>) -> Tensor {
        let query = self.to_q.forward_input(x);
        self.kernels
            .norm_rotate(query, &self.norm_q, self.eps, self.heads, rotation)
    }

    /// Attends from the tokens `x` to the context, `[B, N, D]` to `[B, N, D]`. `input` is `x`, prepared for the queries.
    fn attend(
        &self,
        x: &Tensor,
        input: &Input<'_>,
        rotation: Option<&Rotation>,
        context: &KeyValue,
    ) -> Tensor {
        let query = self.query(input, rotation);
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
        self.output(x, attended)
    }

    /// Applies the gate of the queries' input `x`, and the output matrix: `[B, heads, N, head width]` to `[B, N, D]`.
    fn output(&self, x: &Tensor, attended: Tensor) -> Tensor {
        let mut attended = attended.transpose(1, 2); // [B, N, heads, head width]
        if let Some(to_gate_logits) = &self.to_gate_logits {
            let gates = to_gate_logits.forward(x).sigmoid() * 2.0;
            let _ = attended.g_mul_(&gates.unsqueeze(-1));
        }
        self.to_out.forward(&attended.flatten(2, 3))
    }

    /// Splits `[B, N, heads · head width]` into heads, `[B, heads, N, head width]`.
    fn split_heads(&self, x: &Tensor) -> Tensor {
        x.unflatten(2, [self.heads, -1]).transpose(1, 2)
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

    /// Creates the layer of the video tokens, whose matrices may be in 8-bit floats.
    pub fn wide(weights: &Weights, width: i64) -> Self {
        Self {
            proj_in: Linear::wide(&weights.sub("net.0.proj"), width, 4 * width),
            proj_out: Linear::wide(&weights.sub("net.2"), 4 * width, width),
        }
    }

    /// Applies the layer: `[B, N, D]` to `[B, N, D]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.proj_in.forward_gelu(x);
        self.proj_out.forward(&hidden)
    }
}
