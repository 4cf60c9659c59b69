//! The audio VAE: encodes mel spectrograms as audio latents, and decodes them.
//!
//! Follows diffusers 0.42.1, `models/autoencoders/autoencoder_kl_ltx2_audio.py`.

use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::config::{ConfigError, only, read};
use crate::nn::{LatentStatistics, sizes};
use crate::weights::Weights;

const PART: &str = "audio VAE";
const EPS: f64 = 1e-6;
const KERNEL: i64 = 3;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The number of channels of the finest level.
    pub base_channels: i64,
    /// The number of channels of each level, as multiples of `base_channels`, from fine to coarse.
    pub ch_mult: Vec<i64>,
    pub num_res_blocks: i64,
    pub latent_channels: i64,
    /// The number of sound channels.
    pub channels: i64,
    pub mel_bins: i64,
    /// The sample rate of the sound that mel spectrograms are made of, in Hz.
    pub sample_rate: i64,
    /// The number of samples from one row of a mel spectrogram to the next.
    pub mel_hop_length: i64,
}

#[derive(Deserialize)]
struct Library {
    base_channels: i64,
    ch_mult: Vec<i64>,
    num_res_blocks: i64,
    latent_channels: i64,
    in_channels: i64,
    output_channels: i64,
    mel_bins: i64,
    sample_rate: i64,
    mel_hop_length: i64,
}

#[derive(Deserialize)]
struct Original {
    ch: i64,
    ch_mult: Vec<i64>,
    num_res_blocks: i64,
    z_channels: i64,
    in_channels: i64,
    out_ch: i64,
    mel_bins: i64,
}

#[derive(Deserialize)]
struct Stft {
    hop_length: i64,
}

impl Config {
    /// Reads `config.json` of the library's `AutoencoderKLLTX2Audio`.
    ///
    /// # Errors
    /// Returns an error that names the key that is missing or asks for what is not implemented.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        only(PART, json, "is_causal", &json!(true))?;
        switches(json)?;
        let library: Library = read(PART, json)?;
        let config = Self {
            base_channels: library.base_channels,
            ch_mult: library.ch_mult,
            num_res_blocks: library.num_res_blocks,
            latent_channels: library.latent_channels,
            channels: library.in_channels,
            mel_bins: library.mel_bins,
            sample_rate: library.sample_rate,
            mel_hop_length: library.mel_hop_length,
        };
        config.checked(library.output_channels)
    }

    /// Reads the converter's `config.json`.
    ///
    /// # Errors
    /// Returns the errors of [`Config::library`].
    pub fn original(json: &Value, _weights: &Weights) -> Result<Self, ConfigError> {
        let at = |path: &str| {
            json.pointer(path).ok_or_else(|| ConfigError::Value {
                part: PART,
                key: path.to_owned(),
                expected: "a value".to_owned(),
                given: "none".to_owned(),
            })
        };
        let params = at("/audio_vae/model/params")?;
        let network = at("/audio_vae/model/params/ddconfig")?;
        switches(network)?;
        let original: Original = read(PART, network)?;
        let stft: Stft = read(PART, at("/audio_vae/preprocessing/stft")?)?;
        #[derive(Deserialize)]
        struct Params {
            sampling_rate: i64,
        }
        let params: Params = read(PART, params)?;
        let config = Self {
            base_channels: original.ch,
            ch_mult: original.ch_mult,
            num_res_blocks: original.num_res_blocks,
            latent_channels: original.z_channels,
            channels: original.in_channels,
            mel_bins: original.mel_bins,
            sample_rate: params.sampling_rate,
            mel_hop_length: stft.hop_length,
        };
        config.checked(original.out_ch)
    }

    /// Returns the number of rows of a mel spectrogram, and of its columns, that become one latent.
    pub fn compression_ratio(&self) -> i64 {
        self.ch_mult.iter().skip(1).map(|_| 2).product()
    }

    /// Returns the number of columns of the latents.
    pub fn latent_mel_bins(&self) -> i64 {
        self.mel_bins / self.compression_ratio()
    }

    fn checked(self, output_channels: i64) -> Result<Self, ConfigError> {
        let wrong = |key: &str, expected: String, given: String| {
            Err(ConfigError::Value {
                part: PART,
                key: key.to_owned(),
                expected,
                given,
            })
        };
        if self.ch_mult.is_empty() {
            return wrong(
                "ch_mult",
                "at least one level".to_owned(),
                "none".to_owned(),
            );
        }
        if output_channels != self.channels {
            return wrong(
                "output channels",
                self.channels.to_string(),
                output_channels.to_string(),
            );
        }
        let ratio = self.compression_ratio();
        if self.mel_bins % ratio != 0 {
            return wrong(
                "mel_bins",
                format!("a multiple of {ratio}"),
                self.mel_bins.to_string(),
            );
        }
        Ok(self)
    }
}

/// Checks the keys that both layouts share.
fn switches(json: &Value) -> Result<(), ConfigError> {
    only(PART, json, "norm_type", &json!("pixel"))?;
    only(PART, json, "causality_axis", &json!("height"))?;
    only(PART, json, "mid_block_add_attention", &json!(false))?;
    only(PART, json, "double_z", &json!(true))?;
    match json.get("attn_resolutions") {
        Some(Value::Array(resolutions)) if resolutions.is_empty() => Ok(()),
        _ => only(PART, json, "attn_resolutions", &Value::Null),
    }
}

/// The audio autoencoder. Its interface takes and returns normalized latents in float32, whatever type it computes in.
#[derive(Debug)]
pub struct AudioVae {
    config: Config,
    encoder: Encoder,
    decoder: Decoder,
    statistics: LatentStatistics,
    kind: Kind,
    device: Device,
}

impl AudioVae {
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let (channels, columns) = (config.latent_channels, config.latent_mel_bins());
        Self {
            encoder: Encoder::new(config, &weights.sub("encoder")),
            decoder: Decoder::new(config, &weights.sub("decoder")),
            statistics: LatentStatistics::new(
                weights,
                channels * columns,
                &[1, channels, 1, columns],
            ),
            kind: weights.kind(),
            device: weights.device(),
            config: config.clone(),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Encodes a mel spectrogram `[B, 2, T, mel]`, in natural logarithms, as normalized latents `[B, C, L, M]`, L =
    /// ⌈T/4⌉.
    pub fn encode(&self, mel: &Tensor) -> Tensor {
        let mel = mel.to_device(self.device).to_kind(self.kind);
        self.normalize(&self.encoder.forward(&mel))
    }

    /// Decodes normalized latents `[B, C, L, M]` to a mel spectrogram `[B, 2, 4L − 3, mel]`.
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        let latents = self.unnormalize(&latents.to_device(self.device));
        self.decoder.forward(&latents.to_kind(self.kind))
    }

    /// Converts latents `[B, C, L, M]` from the encoder's scale to the normalized scale of the transformer, in float32.
    pub fn normalize(&self, latents: &Tensor) -> Tensor {
        self.statistics.normalize(latents)
    }

    /// The inverse of [`Self::normalize`].
    pub fn unnormalize(&self, latents: &Tensor) -> Tensor {
        self.statistics.unnormalize(latents)
    }
}

#[derive(Debug)]
struct Encoder {
    conv_in: CausalConv2d,
    down: Vec<DownLevel>,
    mid: Mid,
    conv_out: CausalConv2d,
    latent_channels: i64,
}

#[derive(Debug)]
struct DownLevel {
    block: Vec<ResnetBlock>,
    downsample: Option<Downsample>,
}

impl Encoder {
    fn new(config: &Config, weights: &Weights) -> Self {
        let mut width = config.base_channels;
        let mut down = Vec::new();
        for (level, multiple) in config.ch_mult.iter().enumerate() {
            let weights = weights.sub("down").sub(level);
            let out = config.base_channels * multiple;
            let is_last = level + 1 == config.ch_mult.len();
            down.push(DownLevel {
                block: ResnetBlock::several(&weights, config.num_res_blocks, width, out),
                downsample: (!is_last).then(|| Downsample::new(&weights.sub("downsample"), out)),
            });
            width = out;
        }
        // The encoder returns means, then logarithms of variances, which are not used.
        let moments = 2 * config.latent_channels;
        Self {
            conv_in: CausalConv2d::new(
                &weights.sub("conv_in"),
                config.channels,
                config.base_channels,
                KERNEL,
            ),
            down,
            mid: Mid::new(&weights.sub("mid"), width),
            conv_out: CausalConv2d::new(&weights.sub("conv_out"), width, moments, KERNEL),
            latent_channels: config.latent_channels,
        }
    }

    /// Encodes `[B, 2, T, mel]` as `[B, C, L, M]`.
    fn forward(&self, mel: &Tensor) -> Tensor {
        let mut hidden_states = self.conv_in.forward(mel);
        for level in &self.down {
            for block in &level.block {
                hidden_states = block.forward(&hidden_states);
            }
            if let Some(downsample) = &level.downsample {
                hidden_states = downsample.forward(&hidden_states);
            }
        }
        hidden_states = self.mid.forward(&hidden_states);
        let moments = self.conv_out.forward(&norm_and_silu(&hidden_states));
        moments.narrow(1, 0, self.latent_channels)
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: CausalConv2d,
    mid: Mid,
    /// The levels from coarse to fine.
    up: Vec<UpLevel>,
    conv_out: CausalConv2d,
    ratio: i64,
    mel_bins: i64,
}

#[derive(Debug)]
struct UpLevel {
    block: Vec<ResnetBlock>,
    upsample: Option<CausalConv2d>,
}

impl Decoder {
    fn new(config: &Config, weights: &Weights) -> Self {
        let mut width = config.base_channels * config.ch_mult.last().copied().unwrap_or(1);
        let top = width;
        let mut up = Vec::new();
        for (level, multiple) in config.ch_mult.iter().enumerate().rev() {
            let weights = weights.sub("up").sub(level);
            let out = config.base_channels * multiple;
            let upsample = || CausalConv2d::new(&weights.sub("upsample.conv"), out, out, KERNEL);
            up.push(UpLevel {
                block: ResnetBlock::several(&weights, config.num_res_blocks + 1, width, out),
                upsample: (level > 0).then(upsample),
            });
            width = out;
        }
        Self {
            conv_in: CausalConv2d::new(
                &weights.sub("conv_in"),
                config.latent_channels,
                top,
                KERNEL,
            ),
            mid: Mid::new(&weights.sub("mid"), top),
            up,
            conv_out: CausalConv2d::new(&weights.sub("conv_out"), width, config.channels, KERNEL),
            ratio: config.compression_ratio(),
            mel_bins: config.mel_bins,
        }
    }

    /// Decodes `[B, C, L, M]` to `[B, 2, 4L − 3, mel]`.
    fn forward(&self, latents: &Tensor) -> Tensor {
        let rows = latents.size()[2] * self.ratio - (self.ratio - 1);
        let mut hidden_states = self.mid.forward(&self.conv_in.forward(latents));
        for level in &self.up {
            for block in &level.block {
                hidden_states = block.forward(&hidden_states);
            }
            if let Some(conv) = &level.upsample {
                let [_, _, t, m] = sizes(&hidden_states);
                hidden_states = hidden_states.upsample_nearest2d([2 * t, 2 * m], None, None);
                // The first row belongs to the time before the sound.
                hidden_states = conv.forward(&hidden_states).narrow(2, 1, 2 * t - 1);
            }
        }
        let mel = self.conv_out.forward(&norm_and_silu(&hidden_states));
        mel.narrow(2, 0, rows).narrow(3, 0, self.mel_bins)
    }
}

/// The middle of the network: two blocks at the coarsest level.
#[derive(Debug)]
struct Mid {
    block_1: ResnetBlock,
    block_2: ResnetBlock,
}

impl Mid {
    fn new(weights: &Weights, channels: i64) -> Self {
        Self {
            block_1: ResnetBlock::new(&weights.sub("block_1"), channels, channels),
            block_2: ResnetBlock::new(&weights.sub("block_2"), channels, channels),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.block_2.forward(&self.block_1.forward(x))
    }
}

#[derive(Debug)]
struct ResnetBlock {
    conv1: CausalConv2d,
    conv2: CausalConv2d,
    nin_shortcut: Option<CausalConv2d>,
}

impl ResnetBlock {
    fn new(weights: &Weights, in_channels: i64, out_channels: i64) -> Self {
        let conv =
            |name, from, kernel| CausalConv2d::new(&weights.sub(name), from, out_channels, kernel);
        Self {
            conv1: conv("conv1", in_channels, KERNEL),
            conv2: conv("conv2", out_channels, KERNEL),
            nin_shortcut: (in_channels != out_channels)
                .then(|| conv("nin_shortcut", in_channels, 1)),
        }
    }

    /// Loads a level's blocks, whose names are below `weights`.
    fn several(weights: &Weights, count: i64, in_channels: i64, out_channels: i64) -> Vec<Self> {
        let weights = weights.sub("block");
        let width = |i| if i == 0 { in_channels } else { out_channels };
        (0..count)
            .map(|i| Self::new(&weights.sub(i), width(i), out_channels))
            .collect()
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let hidden_states = self.conv1.forward(&norm_and_silu(x));
        let hidden_states = self.conv2.forward(&norm_and_silu(&hidden_states));
        match &self.nin_shortcut {
            Some(shortcut) => hidden_states + shortcut.forward(x),
            None => hidden_states + x,
        }
    }
}

/// Computes `silu(x / rms)` in float32, with the rms over the channels of `[B, C, T, M]`.
fn norm_and_silu(x: &Tensor) -> Tensor {
    let rms = (x.square().mean_dim([1i64].as_slice(), true, Kind::Float) + EPS).sqrt();
    (x / rms.to_kind(x.kind())).silu()
}

/// A convolution that is causal in time and symmetric among the mel bins.
#[derive(Debug)]
struct CausalConv2d {
    weight: Tensor,
    bias: Tensor,
    /// The padding: columns in front and behind, rows in front and behind.
    padding: [i64; 4],
}

impl CausalConv2d {
    fn new(weights: &Weights, in_channels: i64, out_channels: i64, kernel: i64) -> Self {
        let weights = weights.sub("conv");
        let around = kernel - 1;
        Self {
            weight: weights.tensor("weight", &[out_channels, in_channels, kernel, kernel]),
            bias: weights.tensor("bias", &[out_channels]),
            padding: [around / 2, around - around / 2, around, 0],
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x.constant_pad_nd(self.padding);
        x.conv2d(&self.weight, Some(&self.bias), [1, 1], [0, 0], [1, 1], 1)
    }
}

/// The step that halves the number of rows and columns.
#[derive(Debug)]
struct Downsample {
    weight: Tensor,
    bias: Tensor,
}

impl Downsample {
    fn new(weights: &Weights, channels: i64) -> Self {
        let weights = weights.sub("conv");
        Self {
            weight: weights.tensor("weight", &[channels, channels, KERNEL, KERNEL]),
            bias: weights.tensor("bias", &[channels]),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x.constant_pad_nd([0, 1, 2, 0]);
        x.conv2d(&self.weight, Some(&self.bias), [2, 2], [0, 0], [1, 1], 1)
    }
}
