//! The attention of a stream to itself, to the text or to the other stream, and the feed-forward layer.
//!
//! Follows `LTX2Attention` in `models/transformers/transformer_ltx2.py` and `FeedForward` in `models/attention.py` of
//! diffusers 0.42.1. No mask is used: text contexts have no padding, and any mask would rule out the fast kernels.

use tch::Tensor;

use crate::activations::{Activations, Form};
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

    /// Returns the form in which the queries, and their gate, take tokens.
    pub fn query_form(&self) -> Form {
        let form = self.to_q.form();
        match &self.to_gate_logits {
            Some(to_gate_logits) => form.and(to_gate_logits.form()),
            None => form,
        }
    }

    /// Returns the form in which the keys and values take tokens.
    pub fn context_form(&self) -> Form {
        self.to_k.form().and(self.to_v.form())
    }

    /// Returns the form in which self-attention takes tokens.
    pub fn self_form(&self) -> Form {
        self.query_form().and(self.context_form())
    }

    /// Computes self-attention of the tokens `x`: `[B, N, D]` to `[B, N, D]`.
    pub fn forward_self(&self, x: &Activations, rotation: &Rotation) -> Tensor {
        let context = self.key_value_of(x, Some(rotation));
        self.attend(x, Some(rotation), &context)
    }

    /// Like [`Self::forward_self`], but each token sees itself alone: its value is the result.
    pub fn forward_perturbed(&self, x: &Activations) -> Tensor {
        self.output(x, self.split_heads(&self.to_v.forward_input(x)))
    }

    /// Computes cross-attention of the tokens `x` to other tokens, `[B, S, context width]`.
    pub fn forward_cross(
        &self,
        x: &Activations,
        context: &Activations,
        rotation: &Rotation,
        context_rotation: &Rotation,
    ) -> Tensor {
        let context = self.key_value_of(context, Some(context_rotation));
        self.attend(x, Some(rotation), &context)
    }

    /// Computes cross-attention of the tokens `x` to keys and values that were computed before.
    pub fn forward_cached(&self, x: &Activations, context: &KeyValue) -> Tensor {
        self.attend(x, None, context)
    }

    /// Computes the keys and values of a text, `[B, S, context width]`, which has no positions.
    pub fn key_value(&self, context: &Tensor) -> KeyValue {
        let context = context.shallow_clone();
        self.key_value_of(&Activations::new(context, self.context_form()), None)
    }

    fn key_value_of(&self, context: &Activations, rotation: Option<&Rotation>) -> KeyValue {
        let key = self.to_k.forward_input(context);
        let value = self.to_v.forward_input(context);
        KeyValue {
            key: self
                .kernels
                .norm_rotate(key, &self.norm_k, self.eps, self.heads, rotation),
            value: self.split_heads(&value),
        }
    }

    fn query(&self, x: &Activations, rotation: Option<&Rotation>) -> Tensor {
        let query = self.to_q.forward_input(x);
        self.kernels
            .norm_rotate(query, &self.norm_q, self.eps, self.heads, rotation)
    }

    /// Attends from the tokens `x` to the context, `[B, N, D]` to `[B, N, D]`.
    fn attend(&self, x: &Activations, rotation: Option<&Rotation>, context: &KeyValue) -> Tensor {
        let query = self.query(x, rotation);
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
    fn output(&self, x: &Activations, attended: Tensor) -> Tensor {
        let attended = attended.transpose(1, 2); // [B, N, heads, head width]
        let gates = self.to_gate_logits.as_ref();
        let gates = gates.map(|to_logits| to_logits.forward_input(x).sigmoid() * 2.0);
        let form = self.to_out.form();
        self.to_out
            .forward_input(&self.kernels.gate(attended, gates.as_ref(), form))
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
    kernels: Kernels,
}

impl FeedForward {
    pub fn new(weights: &Weights, width: i64, kernels: &Kernels) -> Self {
        Self {
            proj_in: Linear::new(&weights.sub("net.0.proj"), width, 4 * width),
            proj_out: Linear::new(&weights.sub("net.2"), 4 * width, width),
            kernels: kernels.clone(),
        }
    }

    /// Creates the layer of the video tokens, whose matrices may be in 8-bit floats.
    pub fn wide(weights: &Weights, width: i64, kernels: &Kernels) -> Self {
        Self {
            proj_in: Linear::wide(&weights.sub("net.0.proj"), width, 4 * width),
            proj_out: Linear::wide(&weights.sub("net.2"), 4 * width, width),
            kernels: kernels.clone(),
        }
    }

    /// Returns the form in which the layer takes tokens.
    pub fn form(&self) -> Form {
        self.proj_in.form()
    }

    /// Applies the layer: `[B, N, D]` to `[B, N, D]`.
    pub fn forward(&self, x: &Activations) -> Tensor {
        let hidden = self.proj_in.forward_input(x);
        let hidden = self.kernels.gelu(hidden, self.proj_out.form());
        self.proj_out.forward_input(&hidden)
    }
}
