//! The vocoder: computes a waveform from a mel spectrogram.
//!
//! Follows diffusers 0.42.1, `pipelines/ltx2/vocoder.py`, `LTX2Vocoder`. It computes in float32 whatever the
//! checkpoint's type is, because it is small and rounding errors are audible.

use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::config::{ConfigError, only, read};
use crate::nn::sizes;
use crate::weights::Weights;

const PART: &str = "vocoder";
/// The kernel size of the first and the last convolution.
const KERNEL: i64 = 7;
/// The slope of the leaky ReLU before the last convolution. The reference does not use the configured slope there either.
const FINAL_SLOPE: f64 = 0.01;
/// The values that the converter's layout leaves to the reference's code.
const ORIGINAL_SLOPE: f64 = 0.1;

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Config {
    /// The number of mel bins of all sound channels together.
    pub in_channels: i64,
    pub hidden_channels: i64,
    /// The number of sound channels.
    pub out_channels: i64,
    pub upsample_kernel_sizes: Vec<i64>,
    pub upsample_factors: Vec<i64>,
    pub resnet_kernel_sizes: Vec<i64>,
    pub resnet_dilations: Vec<Vec<i64>>,
    pub leaky_relu_negative_slope: f64,
    /// The sample rate in Hz.
    pub output_sampling_rate: i64,
}

#[derive(Deserialize)]
struct Original {
    upsample_initial_channel: i64,
    stereo: bool,
    upsample_kernel_sizes: Vec<i64>,
    upsample_rates: Vec<i64>,
    resblock_kernel_sizes: Vec<i64>,
    resblock_dilation_sizes: Vec<Vec<i64>>,
    output_sample_rate: i64,
}

impl Config {
    /// Reads `config.json` of the library's `LTX2Vocoder`.
    ///
    /// # Errors
    /// Returns an error that names the key that is missing or asks for what is not implemented.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        only(PART, json, "act_fn", &json!("leaky_relu"))?;
        only(PART, json, "antialias", &json!(false))?;
        only(PART, json, "final_act_fn", &json!("tanh"))?;
        only(PART, json, "final_bias", &json!(true))?;
        let config: Self = read(PART, json)?;
        config.checked()
    }

    /// Reads the converter's `config.json`. The number of mel bins, which is not in it, comes from the first weight.
    ///
    /// # Errors
    /// Returns the errors of [`Config::library`].
    pub fn original(json: &Value, weights: &Weights) -> Result<Self, ConfigError> {
        let Some(json) = json.get("vocoder") else {
            return Err(wrong("vocoder", "the vocoder's configuration", "nothing"));
        };
        only(PART, json, "resblock", &json!("1"))?;
        let original: Original = read(PART, json)?;
        let Some(&[_, in_channels, _]) = weights.shape("conv_in.weight").as_deref() else {
            return Err(wrong(
                "conv_in.weight",
                "a tensor of three axes",
                "another or none",
            ));
        };
        let config = Self {
            in_channels,
            hidden_channels: original.upsample_initial_channel,
            out_channels: if original.stereo { 2 } else { 1 },
            upsample_kernel_sizes: original.upsample_kernel_sizes,
            upsample_factors: original.upsample_rates,
            resnet_kernel_sizes: original.resblock_kernel_sizes,
            resnet_dilations: original.resblock_dilation_sizes,
            leaky_relu_negative_slope: ORIGINAL_SLOPE,
            output_sampling_rate: original.output_sample_rate,
        };
        config.checked()
    }

    /// Returns the number of samples of a row of the mel spectrogram.
    pub fn upsample_factor(&self) -> i64 {
        self.upsample_factors.iter().product()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        let same = |key, given: usize, expected: usize| {
            if given == expected {
                return Ok(());
            }
            Err(wrong(
                key,
                &format!("{expected} entries"),
                &given.to_string(),
            ))
        };
        same(
            "upsample_kernel_sizes",
            self.upsample_kernel_sizes.len(),
            self.upsample_factors.len(),
        )?;
        same(
            "resnet_dilations",
            self.resnet_dilations.len(),
            self.resnet_kernel_sizes.len(),
        )?;
        for (kernel, factor) in self
            .upsample_kernel_sizes
            .iter()
            .zip(&self.upsample_factors)
        {
            if *factor < 1 || kernel < factor || (kernel - factor) % 2 != 0 {
                let expected = "kernels larger than their factors by an even number";
                return Err(wrong(
                    "upsample_kernel_sizes",
                    expected,
                    &format!("{kernel} for {factor}"),
                ));
            }
        }
        if let Some(kernel) = self
            .resnet_kernel_sizes
            .iter()
            .find(|kernel| *kernel % 2 == 0)
        {
            return Err(wrong(
                "resnet_kernel_sizes",
                "odd sizes",
                &kernel.to_string(),
            ));
        }
        Ok(self)
    }
}

fn wrong(key: &str, expected: &str, given: &str) -> ConfigError {
    ConfigError::Value {
        part: PART,
        key: key.to_owned(),
        expected: expected.to_owned(),
        given: given.to_owned(),
    }
}

#[derive(Debug)]
pub struct Vocoder {
    config: Config,
    conv_in: Conv,
    stages: Vec<Stage>,
    conv_out: Conv,
    negative_slope: Tensor,
    final_slope: Tensor,
    device: Device,
}

impl Vocoder {
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let device = weights.device();
        let slope = |slope: f64| {
            Tensor::from_slice(&[slope])
                .to_kind(Kind::Float)
                .to_device(device)
        };
        let mut width = config.hidden_channels;
        let conv_in = Conv::new(
            &weights.sub("conv_in"),
            config.in_channels,
            width,
            KERNEL,
            1,
        );
        let mut stages = Vec::new();
        for i in 0..config.upsample_factors.len() {
            stages.push(Stage::new(config, weights, i, width));
            width /= 2;
        }
        Self {
            conv_in,
            stages,
            conv_out: Conv::new(
                &weights.sub("conv_out"),
                width,
                config.out_channels,
                KERNEL,
                1,
            ),
            negative_slope: slope(config.leaky_relu_negative_slope),
            final_slope: slope(FINAL_SLOPE),
            device,
            config: config.clone(),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Computes samples `[B, 2, 240·T]` in −1…1, float32, from a mel spectrogram `[B, 2, T, mel]` in natural
    /// logarithms.
    pub fn forward(&self, mel: &Tensor) -> Tensor {
        let [b, ears, t, bins] = sizes(mel);
        let mel = mel.to_device(self.device).to_kind(Kind::Float);
        let mel = mel.transpose(2, 3).reshape([b, ears * bins, t]);
        let mut hidden_states = self.conv_in.forward(&mel);
        for stage in &self.stages {
            hidden_states = stage.forward(&hidden_states, &self.negative_slope);
        }
        self.conv_out
            .forward(&hidden_states.prelu(&self.final_slope))
            .tanh()
    }
}

/// An upsampling step to more samples and fewer channels, followed by parallel residual blocks.
#[derive(Debug)]
struct Stage {
    weight: Tensor,
    bias: Tensor,
    factor: i64,
    padding: i64,
    resnets: Vec<ResBlock>,
}

impl Stage {
    /// Loads stage number `i`, which has `width` channels.
    fn new(config: &Config, weights: &Weights, i: usize, width: i64) -> Self {
        let (kernel, factor) = (config.upsample_kernel_sizes[i], config.upsample_factors[i]);
        let upsampler = weights.sub("upsamplers").sub(i);
        let several = config.resnet_kernel_sizes.len();
        let blocks = config
            .resnet_kernel_sizes
            .iter()
            .zip(&config.resnet_dilations)
            .enumerate();
        let resnets = blocks.map(|(j, (kernel, dilations))| {
            let weights = weights.sub("resnets").sub(i * several + j);
            ResBlock::new(&weights, width / 2, *kernel, dilations)
        });
        Self {
            weight: upsampler.tensor_as("weight", &[width, width / 2, kernel], Kind::Float),
            bias: upsampler.tensor_as("bias", &[width / 2], Kind::Float),
            factor,
            padding: (kernel - factor) / 2,
            resnets: resnets.collect(),
        }
    }

    /// Applies the stage: `[B, C, T]` to `[B, C/2, factor·T]`.
    fn forward(&self, x: &Tensor, slope: &Tensor) -> Tensor {
        let (weight, bias) = (&self.weight, Some(&self.bias));
        let x = x.prelu(slope).conv_transpose1d(
            weight,
            bias,
            [self.factor],
            [self.padding],
            [0],
            1,
            [1],
        );
        let outputs: Vec<Tensor> = self
            .resnets
            .iter()
            .map(|resnet| resnet.forward(&x, slope))
            .collect();
        Tensor::stack(&outputs, 0).mean_dim([0i64].as_slice(), false, None::<Kind>)
    }
}

#[derive(Debug)]
struct ResBlock {
    convs1: Vec<Conv>,
    convs2: Vec<Conv>,
}

impl ResBlock {
    fn new(weights: &Weights, channels: i64, kernel: i64, dilations: &[i64]) -> Self {
        let convs = |name: &str, dilated: bool| {
            let weights = weights.sub(name);
            let conv = |(i, dilation): (usize, &i64)| {
                let dilation = if dilated { *dilation } else { 1 };
                Conv::new(&weights.sub(i), channels, channels, kernel, dilation)
            };
            dilations.iter().enumerate().map(conv).collect()
        };
        Self {
            convs1: convs("convs1", true),
            convs2: convs("convs2", false),
        }
    }

    fn forward(&self, x: &Tensor, slope: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        for (conv1, conv2) in self.convs1.iter().zip(&self.convs2) {
            let hidden_states = conv1.forward(&x.prelu(slope));
            x = x.g_add(&conv2.forward(&hidden_states.prelu(slope)));
        }
        x
    }
}

/// A convolution that keeps the number of samples.
#[derive(Debug)]
struct Conv {
    weight: Tensor,
    bias: Tensor,
    padding: i64,
    dilation: i64,
}

impl Conv {
    fn new(
        weights: &Weights,
        in_channels: i64,
        out_channels: i64,
        kernel: i64,
        dilation: i64,
    ) -> Self {
        Self {
            weight: weights.tensor_as("weight", &[out_channels, in_channels, kernel], Kind::Float),
            bias: weights.tensor_as("bias", &[out_channels], Kind::Float),
            padding: dilation * (kernel - 1) / 2,
            dilation,
        }
    }

    /// Applies the convolution to `[B, C, T]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        x.conv1d(
            &self.weight,
            Some(&self.bias),
            [1],
            [self.padding],
            [self.dilation],
            1,
        )
    }
}
