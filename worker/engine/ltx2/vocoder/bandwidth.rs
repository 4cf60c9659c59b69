//! The bandwidth extension: adds the high frequencies to a waveform of a low sample rate.

use tch::{Kind, Tensor};

use super::config::{Config, Extension};
use super::generator::Generator;
use crate::nn::sizes;
use crate::resample::{Edges, resampled};
use crate::weights::Weights;

/// The lower bound of magnitudes, which counts as silence.
const FLOOR: f64 = 1e-5;

/// Makes a waveform of the output's sample rate of one of the input's.
#[derive(Debug)]
pub struct BandwidthExtension {
    mel: MelSpectrogram,
    /// Computes what is added to the resampled waveform.
    generator: Generator,
    /// The sample rates in Hz.
    input: i64,
    output: i64,
}

impl BandwidthExtension {
    pub(super) fn new(config: &Config, extension: &Extension, weights: &Weights) -> Self {
        Self {
            mel: MelSpectrogram::new(extension, &weights.sub("mel_stft")),
            generator: Generator::new(&extension.generator, &weights.sub("bwe_generator")),
            input: extension.input_sampling_rate,
            output: config.output_sampling_rate,
        }
    }

    /// Extends samples in −1…1, `[B, ears, N]` to `[B, ears, factor · N]`.
    pub fn forward(&self, waveform: &Tensor) -> Tensor {
        (self.residual(waveform) + self.skip(waveform)).clamp(-1.0, 1.0)
    }

    /// Computes the mel spectrogram of `[B, ears, N]`, natural logarithms `[B, ears, N / hop, bins]`.
    pub fn mel(&self, waveform: &Tensor) -> Tensor {
        self.mel.forward(waveform)
    }

    /// Computes what is added to the resampled waveform.
    pub fn residual(&self, waveform: &Tensor) -> Tensor {
        self.generator.forward(&self.mel(waveform))
    }

    /// Resamples the waveform.
    pub fn skip(&self, waveform: &Tensor) -> Tensor {
        resampled(waveform, self.input, self.output, Edges::Repeated)
    }
}

/// The causal mel spectrogram that the extension was trained on, with the stored matrices of its transform.
#[derive(Debug)]
struct MelSpectrogram {
    /// The real rows of the transform, then the imaginary ones, `[2 · frequencies, 1, window]`.
    forward_basis: Tensor,
    /// `[bins, frequencies]`.
    mel_basis: Tensor,
    window: i64,
    hop: i64,
}

impl MelSpectrogram {
    fn new(config: &Extension, weights: &Weights) -> Self {
        let Extension {
            filter_length,
            hop_length,
            num_mel_channels,
            ..
        } = *config;
        let frequencies = filter_length / 2 + 1;
        Self {
            forward_basis: weights.sub("stft_fn").tensor_as(
                "forward_basis",
                &[2 * frequencies, 1, filter_length],
                Kind::Float,
            ),
            mel_basis: weights.tensor_as(
                "mel_basis",
                &[num_mel_channels, frequencies],
                Kind::Float,
            ),
            window: filter_length,
            hop: hop_length,
        }
    }

    /// Computes the spectrogram of `[B, ears, N]`, natural logarithms `[B, ears, N / hop, bins]`.
    fn forward(&self, waveform: &Tensor) -> Tensor {
        let [b, ears, samples] = sizes(waveform);
        let waveform = waveform.reshape([b * ears, 1, samples]);
        let waveform = waveform.constant_pad_nd([self.window - self.hop, 0]);
        let none = None::<&Tensor>;
        let spectrum = waveform.conv1d(&self.forward_basis, none, [self.hop], [0], [1], 1);
        let halves = spectrum.chunk(2, 1);
        let magnitude = (halves[0].square() + halves[1].square()).sqrt();
        let mel = self.mel_basis.matmul(&magnitude).clamp_min(FLOOR).log();
        mel.unflatten(0, [b, ears]).transpose(2, 3)
    }
}
