//! A network that computes a waveform from a mel spectrogram.

use tch::{Kind, Tensor};

use super::activation::Act;
use super::config::{Activation, Generator as Config};
use crate::nn::sizes;
use crate::weights::Weights;

/// The kernel size of the first and the last convolution.
const KERNEL: i64 = 7;
/// The slope of the leaky ReLU before the last convolution. The reference does not use the configured slope there either.
const FINAL_SLOPE: f64 = 0.01;

#[derive(Debug)]
pub(super) struct Generator {
    conv_in: Conv,
    stages: Vec<Stage>,
    act_out: Act,
    conv_out: Conv,
    tanh: bool,
}

impl Generator {
    pub(super) fn new(config: &Config, weights: &Weights) -> Self {
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
        let is_leaky = matches!(config.activation, Activation::LeakyRelu { .. });
        let out = weights.sub("conv_out");
        let channels = config.out_channels;
        Self {
            conv_in,
            stages,
            act_out: match config.activation {
                Activation::LeakyRelu { .. } => Act::leaky_relu(FINAL_SLOPE, weights),
                snake => Act::new(snake, &weights.sub("act_out"), width),
            },
            conv_out: match is_leaky {
                true => Conv::new(&out, width, channels, KERNEL, 1),
                false => Conv::without_bias(&out, width, channels, KERNEL),
            },
            tanh: is_leaky,
        }
    }

    /// Computes samples `[B, ears, factor · T]` from a mel spectrogram `[B, ears, T, bins]` in natural logarithms.
    pub(super) fn forward(&self, mel: &Tensor) -> Tensor {
        let [b, ears, t, bins] = sizes(mel);
        let mel = mel.transpose(2, 3).reshape([b, ears * bins, t]);
        let mut hidden_states = self.conv_in.forward(&mel);
        for stage in &self.stages {
            hidden_states = stage.forward(hidden_states);
        }
        let waveform = self.conv_out.forward(&self.act_out.forward(&hidden_states));
        if self.tanh { waveform.tanh() } else { waveform }
    }
}

/// An upsampling step to more samples and fewer channels, followed by parallel residual blocks.
#[derive(Debug)]
struct Stage {
    /// The activation before the step; a generator with SnakeBeta has none there.
    act: Option<Act>,
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
            ResBlock::new(config.activation, &weights, width / 2, *kernel, dilations)
        });
        Self {
            act: match config.activation {
                Activation::LeakyRelu { negative_slope } => {
                    Some(Act::leaky_relu(negative_slope, weights))
                }
                Activation::SnakeBeta => None,
            },
            weight: upsampler.tensor_as("weight", &[width, width / 2, kernel], Kind::Float),
            bias: upsampler.tensor_as("bias", &[width / 2], Kind::Float),
            factor,
            padding: (kernel - factor) / 2,
            resnets: resnets.collect(),
        }
    }

    /// Applies the stage: `[B, C, T]` to `[B, C/2, factor·T]`.
    fn forward(&self, x: Tensor) -> Tensor {
        let x = match &self.act {
            Some(act) => act.forward(&x),
            None => x,
        };
        let (weight, bias) = (&self.weight, Some(&self.bias));
        let x = x.conv_transpose1d(weight, bias, [self.factor], [self.padding], [0], 1, [1]);
        let outputs: Vec<Tensor> = self
            .resnets
            .iter()
            .map(|resnet| resnet.forward(&x))
            .collect();
        Tensor::stack(&outputs, 0).mean_dim([0i64].as_slice(), false, None::<Kind>)
    }
}

#[derive(Debug)]
struct ResBlock {
    acts1: Vec<Act>,
    convs1: Vec<Conv>,
    acts2: Vec<Act>,
    convs2: Vec<Conv>,
}

impl ResBlock {
    fn new(
        activation: Activation,
        weights: &Weights,
        channels: i64,
        kernel: i64,
        dilations: &[i64],
    ) -> Self {
        let acts = |name: &str| {
            let weights = weights.sub(name);
            let act = |(i, _)| Act::new(activation, &weights.sub(i), channels);
            dilations.iter().enumerate().map(act).collect()
        };
        let convs = |name: &str, dilated: bool| {
            let weights = weights.sub(name);
            let conv = |(i, dilation): (usize, &i64)| {
                let dilation = if dilated { *dilation } else { 1 };
                Conv::new(&weights.sub(i), channels, channels, kernel, dilation)
            };
            dilations.iter().enumerate().map(conv).collect()
        };
        Self {
            acts1: acts("acts1"),
            convs1: convs("convs1", true),
            acts2: acts("acts2"),
            convs2: convs("convs2", false),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        let first = self.acts1.iter().zip(&self.convs1);
        let second = self.acts2.iter().zip(&self.convs2);
        for ((act1, conv1), (act2, conv2)) in first.zip(second) {
            let hidden_states = conv1.forward(&act1.forward(&x));
            x = x.g_add(&conv2.forward(&act2.forward(&hidden_states)));
        }
        x
    }
}

/// A convolution that keeps the number of samples.
#[derive(Debug)]
struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
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
            bias: Some(weights.tensor_as("bias", &[out_channels], Kind::Float)),
            padding: dilation * (kernel - 1) / 2,
            dilation,
            ..Self::without_bias(weights, in_channels, out_channels, kernel)
        }
    }

    fn without_bias(weights: &Weights, in_channels: i64, out_channels: i64, kernel: i64) -> Self {
        Self {
            weight: weights.tensor_as("weight", &[out_channels, in_channels, kernel], Kind::Float),
            bias: None,
            padding: (kernel - 1) / 2,
            dilation: 1,
        }
    }

    /// Applies the convolution to `[B, C, T]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        x.conv1d(
            &self.weight,
            self.bias.as_ref(),
            [1],
            [self.padding],
            [self.dilation],
            1,
        )
    }
}
