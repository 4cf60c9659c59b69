//! Resamples sound, as torchaudio 2.11 does with its default filter (`functional.resample`).

use std::f64::consts::PI;

use tch::{Kind, Tensor};

use crate::nn::sizes;

/// The number of zero crossings of the filter on each side.
const CROSSINGS: f64 = 6.0;
/// The share of the smaller band that passes the filter.
const ROLL_OFF: f64 = 0.99;

/// What the filter meets before the first sample and behind the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edges {
    Silent,
    /// The first sample, and the last one.
    Repeated,
}

/// Resamples `[B, C, N]` at the rate `from` to `[B, C, ⌈N · to / from⌉]` at the rate `to`, by a sinc filter with a Hann
/// window.
pub fn resampled(waveform: &Tensor, from: i64, to: i64, edges: Edges) -> Tensor {
    if from == to {
        return waveform.shallow_clone();
    }
    let [b, c, samples] = sizes(waveform);
    let divisor = greatest_common_divisor(from, to);
    let (from, to) = (from / divisor, to / divisor);
    let (kernels, reach) = resampling_kernels(from, to);
    let kernels = Tensor::from_slice(&kernels)
        .to_kind(Kind::Float)
        .to_device(waveform.device());
    let padding = [reach, reach + from];
    let x = waveform.reshape([b * c, 1, samples]);
    let x = match edges {
        Edges::Silent => x.constant_pad_nd(padding),
        Edges::Repeated => x.replication_pad1d(padding),
    };
    // Each kernel computes one of every `to` samples.
    let x = x.conv1d(
        &kernels.view([to, 1, -1]),
        None::<&Tensor>,
        [from],
        [0],
        [1],
        1,
    );
    let length = (to * samples + from - 1) / from;
    x.transpose(1, 2).reshape([b, c, -1]).narrow(2, 0, length)
}

/// Returns `to` kernels, one after the other, of `from + 2 · reach` values each, and the reach.
fn resampling_kernels(from: i64, to: i64) -> (Vec<f64>, i64) {
    let band = from.min(to) as f64 * ROLL_OFF;
    let mut reach = 0;
    while (reach as f64) < CROSSINGS * from as f64 / band {
        reach += 1;
    }
    let mut kernels = Vec::new();
    for phase in 0..to {
        for place in -reach..reach + from {
            let time = place as f64 / from as f64 - phase as f64 / to as f64;
            let time = (time * band).clamp(-CROSSINGS, CROSSINGS);
            let window = (time * PI / CROSSINGS / 2.0).cos().powi(2);
            let sinc = if time == 0.0 {
                1.0
            } else {
                (time * PI).sin() / (time * PI)
            };
            kernels.push(sinc * window * band / from as f64);
        }
    }
    (kernels, reach)
}

fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}
