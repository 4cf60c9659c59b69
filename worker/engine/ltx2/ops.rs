//! The element-wise hot spots between the matrices, one function each, so that one kernel with one read and one write
//! can replace several libtorch calls.
//!
//! [`Kernels`] selects the implementation; it is chosen once from the configuration and passed to every part. `Plain`
//! is libtorch, and the reference for the others: the same inputs give the same outputs except for rounding.

use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::activations::{Activations, Form};
use crate::device::Compute;
use crate::kernels::CudaKernels;
use crate::nn::{rms_norm, sizes};
use crate::pixels::to_rgb8;

pub use arguments::{GridAxis, Padding, PositionTable, Rotation, Runs};

pub mod arguments;

/// The implementation of this module's functions; each part holds a clone.
#[derive(Clone, Debug, Default)]
pub enum Kernels {
    /// libtorch's operators, on any device. Rounds to the working type where the reference implementation does.
    #[default]
    Plain,
    /// The package's own kernels where one takes the given tensors, else libtorch's. Rounds once, at the end of each
    /// function.
    Cuda(Arc<CudaKernels>),
}

impl Kernels {
    /// Chooses the package's own kernels if the device supports them, else plain operators, with a warning if there is
    /// a GPU.
    pub fn on(compute: &Compute) -> Self {
        let Some(gpu) = &compute.gpu else {
            return Self::Plain;
        };
        match CudaKernels::load(gpu) {
            Ok(kernels) => Self::Cuda(Arc::new(kernels)),
            Err(error) => {
                tracing::warn!(%error, "computing with plain operators, somewhat slower");
                Self::Plain
            }
        }
    }

    /// Computes `rms(x) (1 + scale) + shift`, without gain: `[B, N, D]` to a new `[B, N, D]`.
    pub fn rms_norm_modulate(
        &self,
        x: &Tensor,
        eps: f64,
        scale: &Tensor,
        shift: &Tensor,
        runs: &Runs,
    ) -> Tensor {
        if let Self::Cuda(kernels) = self
            && let Some(modulated) = kernels.rms_norm_modulate(x, eps, scale, shift, runs)
        {
            return modulated;
        }
        let mut normed = rms_norm(x, eps);
        modulate_(&mut normed, scale, shift, runs);
        normed
    }

    /// Computes what [`Self::rms_norm_modulate`] does, as the input of layers that take this form.
    pub fn modulated(
        &self,
        x: &Tensor,
        eps: f64,
        scale: &Tensor,
        shift: &Tensor,
        runs: &Runs,
        form: Form,
    ) -> Activations {
        if let Self::Cuda(kernels) = self
            && let Some(input) = kernels.modulated(x, eps, scale, shift, runs, form)
        {
            return input;
        }
        let modulated = self.rms_norm_modulate(x, eps, scale, shift, runs);
        self.input(modulated, form)
    }

    /// Computes GELU in its tanh form, as the input of layers that take this form.
    pub fn gelu(&self, mut x: Tensor, form: Form) -> Activations {
        if let Self::Cuda(kernels) = self
            && let Some(input) = kernels.gelu(&x, form)
        {
            return input;
        }
        let _ = x.gelu_("tanh");
        self.input(x, form)
    }

    /// Scales each head by its gate, if there are gates: `[B, N, heads, d]` by `[B, N, heads]` to `[B, N, heads · d]`, as
    /// the input of layers that take this form.
    pub fn gate(&self, mut x: Tensor, gates: Option<&Tensor>, form: Form) -> Activations {
        if let Self::Cuda(kernels) = self
            && let Some(input) = kernels.gate(&x, gates, form)
        {
            return input;
        }
        if let Some(gates) = gates {
            let _ = x.g_mul_(&gates.unsqueeze(-1));
        }
        self.input(x.flatten(2, 3), form)
    }

    /// Converts `x` to the input of layers that take this form.
    pub fn input(&self, x: Tensor, form: Form) -> Activations {
        match self {
            Self::Cuda(kernels) => kernels.input(&x, form),
            Self::Plain => None,
        }
        .unwrap_or_else(|| Activations::new(x, form))
    }

    /// Computes `layer_norm(x) (1 + scale) + shift`, without gain: `[B, N, D]` to a new `[B, N, D]`.
    pub fn layer_norm_modulate(
        &self,
        x: &Tensor,
        eps: f64,
        scale: &Tensor,
        shift: &Tensor,
        runs: &Runs,
    ) -> Tensor {
        let width = scale.size()[2];
        let mut normed = x.layer_norm([width], None::<&Tensor>, None::<&Tensor>, eps, false);
        modulate_(&mut normed, scale, shift, runs);
        normed
    }

    /// Computes the RMS norm with gain over the whole width, then the rotation of each head's two halves, in float32:
    /// `[B, N, heads · d]` to `[B, heads, N, d]`, in memory still `[B, N, heads, d]`. Consumes `x`.
    pub fn norm_rotate(
        &self,
        x: Tensor,
        gain: &Tensor,
        eps: f64,
        heads: i64,
        rotation: Option<&Rotation>,
    ) -> Tensor {
        let (batch, tokens, width) = x.size3().expect("queries and keys have three axes");
        let fused = match (self, rotation) {
            (Self::Cuda(kernels), Some(Rotation::OfPositions(table))) => {
                kernels.norm_rotate(&x, gain, eps, heads, table)
            }
            _ => None,
        };
        let normed = match (fused, rotation) {
            (Some(normed), _) => normed,
            (None, None) => x.rms_norm([width], Some(gain), eps),
            (None, Some(rotation)) => {
                let normed = x.rms_norm([width], Some(gain), eps);
                drop(x);
                rotate(normed, heads, rotation)
            }
        };
        normed
            .view([batch, tokens, heads, width / heads])
            .transpose(1, 2)
    }

    /// Computes `x += gate · y`, both `[B, N, D]`; consumes `y`.
    pub fn add_gated(&self, x: &mut Tensor, mut y: Tensor, gate: &Tensor, runs: &Runs) {
        if let Self::Cuda(kernels) = self
            && kernels.add_gated(x, &y, gate, runs).is_some()
        {
            return;
        }
        if runs.broadcast() {
            let _ = y.g_mul_(gate);
        } else {
            for (mut y, gate) in runs.slices(&y).into_iter().zip(gate.split(1, 1)) {
                let _ = y.g_mul_(&gate);
            }
        }
        let _ = x.g_add_(&y);
    }

    /// Computes `silu(x / √(mean over channels of x² + eps))` with padding: `[B, C, F, H, W]` to
    /// `[B, C, before + F + after, H + 2 border, W + 2 border]`.
    pub fn pixel_norm_silu_pad(&self, x: &Tensor, eps: f64, padding: Padding) -> Tensor {
        if let Self::Cuda(kernels) = self
            && let Some(padded) = kernels.pixel_norm_silu_pad(x, eps, padding)
        {
            return padded;
        }
        let mut rms = x.square().mean_dim([1i64].as_slice(), true, None::<Kind>);
        let _ = rms.g_add_scalar_(eps).sqrt_();
        let (padded, mut inner) = room(x, padding);
        let _ = x.div_out(&inner, &rms);
        let _ = inner.silu_();
        fill_around(&padded, padding);
        padded
    }

    /// Pads `x` without the norm and the activation.
    pub fn pad(&self, x: &Tensor, padding: Padding) -> Tensor {
        match self {
            Self::Cuda(kernels) => kernels.pad(x, padding),
            Self::Plain => None,
        }
        .unwrap_or_else(|| pad(x, padding))
    }

    /// Converts pictures in −1…1 and slightly beyond to bytes: `[1, 3, F, H, W]` to `[F, H, W, 3]`.
    pub fn rgb8(&self, sample: &Tensor) -> Tensor {
        match self {
            Self::Cuda(kernels) => kernels.rgb8(sample),
            Self::Plain => None,
        }
        .unwrap_or_else(|| to_rgb8(sample))
    }
}

/// Pads as described, into a new tensor.
pub fn pad(x: &Tensor, padding: Padding) -> Tensor {
    let (padded, mut inner) = room(x, padding);
    inner.copy_(x);
    fill_around(&padded, padding);
    padded
}

/// Allocates a tensor of the padded size of `x` without values, and returns it with its part for `x`. Writing there
/// directly saves a second copy in memory.
fn room(x: &Tensor, padding: Padding) -> (Tensor, Tensor) {
    let Padding {
        before,
        after,
        border,
        ..
    } = padding;
    let [b, c, f, h, w] = sizes(x);
    let size = [b, c, before + f + after, h + 2 * border, w + 2 * border];
    let padded = Tensor::empty(size, (x.kind(), x.device()));
    let inner = padded.narrow(2, before, f);
    let inner = inner.narrow(3, border, h).narrow(4, border, w);
    (padded, inner)
}

/// Fills the border around the part that [`room`] returned.
fn fill_around(padded: &Tensor, padding: Padding) {
    let Padding {
        before,
        after,
        border,
        reflect,
    } = padding;
    let [_, _, frames, ..] = sizes::<5>(padded);
    let own = padded.narrow(2, before, frames - before - after);
    let [_, _, own_frames, rows, columns] = sizes(&own);
    // The columns are filled within the rows first, then whole rows with their corners.
    let inner_rows = own.narrow(3, border, rows - 2 * border);
    for (axis, length, own) in [(4, columns, &inner_rows), (3, rows, &own)] {
        for i in 0..border {
            for (to, from) in [
                (i, 2 * border - i),
                (length - 1 - i, length - 1 - 2 * border + i),
            ] {
                let mut to = own.narrow(axis, to, 1);
                if reflect {
                    to.copy_(&own.narrow(axis, from, 1));
                } else {
                    let _ = to.zero_();
                }
            }
        }
    }
    let copy = |from: i64, at: i64, count: i64| {
        let copies = own
            .narrow(2, from, 1)
            .expand([-1, -1, count, -1, -1], false);
        padded.narrow(2, at, count).copy_(&copies);
    };
    copy(0, 0, before);
    copy(own_frames - 1, frames - after, after);
}

/// Computes `x (1 + scale) + shift` in place.
fn modulate_(x: &mut Tensor, scale: &Tensor, shift: &Tensor, runs: &Runs) {
    let factor = scale + 1.0;
    if runs.broadcast() {
        let _ = x.g_mul_(&factor).g_add_(shift);
        return;
    }
    let rows = factor.split(1, 1).into_iter().zip(shift.split(1, 1));
    for (mut x, (factor, shift)) in runs.slices(x).into_iter().zip(rows) {
        let _ = x.g_mul_(&factor).g_add_(&shift);
    }
}

/// Rotates the two halves a, b of each head: a cos − b sin, b cos + a sin.
fn rotate(x: Tensor, heads: i64, rotation: &Rotation) -> Tensor {
    let (batch, tokens, width) = x.size3().expect("queries and keys have three axes");
    let kind = x.kind();
    let half = width / heads / 2;
    let halves = x.view([batch, tokens, heads, 2, half]).to_kind(Kind::Float);
    drop(x);
    let tables = rotation.of_tokens(heads);
    let [cos, sin] = tables.map(|table| table.transpose(1, 2).unsqueeze(3)); // [1, N, heads, 1, half]
    let rotated = &halves * cos;
    let (a, b) = (halves.narrow(3, 0, 1), halves.narrow(3, 1, 1));
    let _ = rotated.narrow(3, 0, 1).addcmul_(&sin.neg(), &b);
    let _ = rotated.narrow(3, 1, 1).addcmul_(&sin, &a);
    drop((halves, a, b));
    rotated.view([batch, tokens, width]).to_kind(kind)
}
