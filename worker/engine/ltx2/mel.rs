//! Computes the mel spectrogram of a waveform for the audio VAE's encoder, to encode sound again after it was played.
//!
//! Follows LTX-2's `AudioProcessor` on torchaudio 2.11: `functional.resample` with its default filter, and
//! `transforms.MelSpectrogram` with power 1, Slaney's scale and norm.

use tch::{Device, Kind, Tensor};

use crate::audio_vae;
use crate::nn::sizes;
use crate::resample::{Edges, resampled};

/// The number of samples of a window and of the transform.
const WINDOW: i64 = 1024;
/// The lower bound of magnitudes, which counts as silence.
const FLOOR: f64 = 1e-5;

/// Computes mel spectrograms.
#[derive(Debug)]
pub struct MelSpectrogram {
    sample_rate: i64,
    hop: i64,
    window: Tensor,
    /// The mel filters, `[frequencies, mel bins]`.
    filters: Tensor,
}

impl MelSpectrogram {
    /// Creates a transform for the encoder with this configuration.
    pub fn new(config: &audio_vae::Config, device: Device) -> Self {
        let filters = slaney_filters(config.sample_rate, config.mel_bins);
        let bins = config.mel_bins;
        Self {
            sample_rate: config.sample_rate,
            hop: config.mel_hop_length,
            window: Tensor::hann_window(WINDOW, (Kind::Float, device)),
            filters: Tensor::from_slice(&filters)
                .to_kind(Kind::Float)
                .to_device(device)
                .view([-1, bins]),
        }
    }

    /// Computes the spectrogram of samples `[B, 2, N]` in −1…1 at `sample_rate`: natural logarithms `[B, 2, T, mel]` in
    /// float32, with a row for every hop. There must be at least half a window of samples.
    pub fn forward(&self, waveform: &Tensor, sample_rate: i64) -> Tensor {
        let waveform = waveform
            .to_device(self.window.device())
            .to_kind(Kind::Float);
        let waveform = resampled(&waveform, sample_rate, self.sample_rate, Edges::Silent);
        let [b, ears, samples] = sizes(&waveform);
        let waveform = waveform
            .reshape([b * ears, samples])
            .reflection_pad1d([WINDOW / 2, WINDOW / 2]);
        let spectrum = waveform.stft(
            WINDOW,
            self.hop,
            WINDOW,
            Some(&self.window),
            false,
            true,
            true,
            false,
        );
        let mel = spectrum.abs().transpose(1, 2).matmul(&self.filters); // b·ears t mel
        let [_, rows, bins] = sizes(&mel);
        mel.clamp_min(FLOOR).log().view([b, ears, rows, bins])
    }
}

/// Returns triangles of equal area that overlap by half, evenly spaced on Slaney's mel scale: `[frequencies, bins]`.
fn slaney_filters(sample_rate: i64, bins: i64) -> Vec<f64> {
    let nyquist = sample_rate as f64 / 2.0;
    let top = hz_to_mel(nyquist);
    let corners: Vec<f64> = (0..bins + 2)
        .map(|i| mel_to_hz(top * i as f64 / (bins + 1) as f64))
        .collect();
    let frequencies = WINDOW / 2 + 1;
    let mut filters = Vec::new();
    for i in 0..frequencies {
        let hz = nyquist * i as f64 / (frequencies - 1) as f64;
        for corner in corners.windows(3) {
            let rising = (hz - corner[0]) / (corner[1] - corner[0]);
            let falling = (corner[2] - hz) / (corner[2] - corner[1]);
            let height = 2.0 / (corner[2] - corner[0]);
            filters.push(rising.min(falling).max(0.0) * height);
        }
    }
    filters
}

/// Slaney's scale is linear up to here …
const LINEAR_HZ: f64 = 1000.0;
const HZ_PER_MEL: f64 = 200.0 / 3.0;
/// … and logarithmic above, 27 steps for a factor of 6.4.
const STEPS: f64 = 27.0;
const FACTOR: f64 = 6.4;

fn hz_to_mel(hz: f64) -> f64 {
    if hz < LINEAR_HZ {
        return hz / HZ_PER_MEL;
    }
    LINEAR_HZ / HZ_PER_MEL + (hz / LINEAR_HZ).ln() * STEPS / FACTOR.ln()
}

fn mel_to_hz(mel: f64) -> f64 {
    let linear = LINEAR_HZ / HZ_PER_MEL;
    if mel < linear {
        return mel * HZ_PER_MEL;
    }
    LINEAR_HZ * ((mel - linear) * FACTOR.ln() / STEPS).exp()
}
