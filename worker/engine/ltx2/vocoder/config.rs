//! The vocoder's configuration, read from either form of file.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{ConfigError, only, read};
use crate::generation::Generation;
use crate::weights::Weights;

const PART: &str = "vocoder";
/// The slope that the original leaves to the reference's code.
const ORIGINAL_SLOPE: f64 = 0.1;
/// The names of the two generators' weights, and of their configurations, in LTX-2.3.
const GENERATORS: [(&str, &str); 2] = [("vocoder", "vocoder"), ("bwe_generator", "bwe")];

/// The sizes of the vocoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub generator: Generator,
    /// What makes a waveform of a higher sample rate of the generator's; LTX-2.3 has it.
    pub extension: Option<Extension>,
    /// The sample rate of the result in Hz.
    pub output_sampling_rate: i64,
}

/// The sizes of a network that computes a waveform from a mel spectrogram.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Generator {
    /// The number of mel bins of all sound channels together.
    pub in_channels: i64,
    pub hidden_channels: i64,
    /// The number of sound channels.
    pub out_channels: i64,
    pub upsample_kernel_sizes: Vec<i64>,
    pub upsample_factors: Vec<i64>,
    pub resnet_kernel_sizes: Vec<i64>,
    pub resnet_dilations: Vec<Vec<i64>>,
    #[serde(skip, default = "snake")]
    pub activation: Activation,
}

/// The activation of a generator, and what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// Leaky ReLU, and tanh at the end: LTX-2.0.
    LeakyRelu { negative_slope: f64 },
    /// SnakeBeta at twice the sample rate, so that it causes no aliasing: LTX-2.3.
    SnakeBeta,
}

/// The sizes of the bandwidth extension.
#[derive(Clone, Debug, PartialEq)]
pub struct Extension {
    pub generator: Generator,
    /// The sample rate of the first generator's waveform in Hz.
    pub input_sampling_rate: i64,
    /// The mel spectrogram of that waveform: the samples of a window, those from one window to the next, and the bins.
    pub filter_length: i64,
    pub hop_length: i64,
    pub num_mel_channels: i64,
}

fn snake() -> Activation {
    Activation::SnakeBeta
}

#[derive(Deserialize)]
struct LibraryExtension {
    filter_length: i64,
    hop_length: i64,
    window_length: i64,
    num_mel_channels: i64,
    input_sampling_rate: i64,
    output_sampling_rate: i64,
}

#[derive(Deserialize)]
struct LibraryLeaky {
    leaky_relu_negative_slope: f64,
    output_sampling_rate: i64,
}

#[derive(Deserialize)]
struct OriginalGenerator {
    upsample_initial_channel: i64,
    stereo: bool,
    upsample_kernel_sizes: Vec<i64>,
    upsample_rates: Vec<i64>,
    resblock_kernel_sizes: Vec<i64>,
    resblock_dilation_sizes: Vec<Vec<i64>>,
}

#[derive(Deserialize)]
struct OriginalRate {
    output_sample_rate: i64,
}

#[derive(Deserialize)]
struct OriginalExtension {
    n_fft: i64,
    hop_length: i64,
    win_size: i64,
    num_mels: i64,
    input_sampling_rate: i64,
    output_sampling_rate: i64,
}

impl Config {
    /// Reads `config.json` of the library's `LTX2Vocoder` or `LTX2VocoderWithBWE`.
    ///
    /// # Errors
    /// Returns an error that names the key that is missing or asks for what is not implemented.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        let has_extension =
            json.get("bwe_in_channels").is_some() || json["_class_name"] == "LTX2VocoderWithBWE";
        if has_extension {
            return Self::library_with_extension(json);
        }
        only(PART, json, "act_fn", &json!("leaky_relu"))?;
        only(PART, json, "antialias", &json!(false))?;
        only(PART, json, "final_act_fn", &json!("tanh"))?;
        only(PART, json, "final_bias", &json!(true))?;
        let leaky: LibraryLeaky = read(PART, json)?;
        let config = Self {
            generator: Generator {
                activation: Activation::LeakyRelu {
                    negative_slope: leaky.leaky_relu_negative_slope,
                },
                ..read(PART, json)?
            },
            extension: None,
            output_sampling_rate: leaky.output_sampling_rate,
        };
        config.checked()
    }

    fn library_with_extension(json: &Value) -> Result<Self, ConfigError> {
        let mut extension = json.clone();
        for prefix in ["", "bwe_"] {
            let only_value =
                |key: &str, value: Value| only(PART, json, &format!("{prefix}{key}"), &value);
            only_value("act_fn", json!("snakebeta"))?;
            only_value("antialias", json!(true))?;
            only_value("antialias_ratio", json!(2))?;
            only_value("antialias_kernel_size", json!(12))?;
            only_value("final_act_fn", Value::Null)?;
            only_value("final_bias", json!(false))?;
        }
        // The second generator has the keys of the first one behind a prefix.
        let keys = json.as_object().into_iter().flatten();
        for (key, value) in keys.filter_map(|(key, value)| Some((key.strip_prefix("bwe_")?, value)))
        {
            extension[key] = value.clone();
        }
        let raw: LibraryExtension = read(PART, json)?;
        same("window_length", raw.filter_length, raw.window_length)?;
        let config = Self {
            generator: read(PART, json)?,
            extension: Some(Extension {
                generator: read(PART, &extension)?,
                input_sampling_rate: raw.input_sampling_rate,
                filter_length: raw.filter_length,
                hop_length: raw.hop_length,
                num_mel_channels: raw.num_mel_channels,
            }),
            output_sampling_rate: raw.output_sampling_rate,
        };
        config.checked()
    }

    /// Reads the vocoder's configuration under the original names. The number of mel bins, which is not in it, comes from
    /// the first weight.
    ///
    /// # Errors
    /// Returns the errors of [`Config::library`].
    pub fn original(json: &Value, weights: &Weights) -> Result<Self, ConfigError> {
        let Some(json) = json.get("vocoder") else {
            return Err(wrong("vocoder", "the vocoder's configuration", "nothing"));
        };
        if json.get("bwe").is_some() {
            return Self::original_with_extension(json, weights);
        }
        only(PART, json, "resblock", &json!("1"))?;
        let rate: OriginalRate = read(PART, json)?;
        let activation = Activation::LeakyRelu {
            negative_slope: ORIGINAL_SLOPE,
        };
        let config = Self {
            generator: Generator::original(json, weights, activation)?,
            extension: None,
            output_sampling_rate: rate.output_sample_rate,
        };
        config.checked()
    }

    fn original_with_extension(json: &Value, weights: &Weights) -> Result<Self, ConfigError> {
        let [generator, extension] = GENERATORS.map(|(name, key)| {
            let json = json
                .get(key)
                .ok_or_else(|| wrong(key, "a generator's configuration", "nothing"))?;
            only(PART, json, "resblock", &json!("AMP1"))?;
            only(PART, json, "activation", &json!("snakebeta"))?;
            only(PART, json, "use_tanh_at_final", &json!(false))?;
            only(PART, json, "use_bias_at_final", &json!(false))?;
            Generator::original(json, &weights.sub(name), Activation::SnakeBeta)
        });
        only(PART, &json["bwe"], "apply_final_activation", &json!(false))?;
        let raw: OriginalExtension = read(PART, &json["bwe"])?;
        same("win_size", raw.n_fft, raw.win_size)?;
        let config = Self {
            generator: generator?,
            extension: Some(Extension {
                generator: extension?,
                input_sampling_rate: raw.input_sampling_rate,
                filter_length: raw.n_fft,
                hop_length: raw.hop_length,
                num_mel_channels: raw.num_mels,
            }),
            output_sampling_rate: raw.output_sampling_rate,
        };
        config.checked()
    }

    pub fn generation(&self) -> Generation {
        match self.extension {
            None => Generation::V2_0,
            Some(_) => Generation::V2_3,
        }
    }

    /// Checks that the tensors are those of the configuration's generation.
    ///
    /// # Errors
    /// Returns an error that names the tensor that contradicts the configuration.
    pub fn fits(self, weights: &Weights) -> Result<Self, ConfigError> {
        let generation = self.generation();
        let check = |name, only| crate::config::check_tensor(PART, generation, weights, name, only);
        check("conv_in.weight", Generation::V2_0)?;
        check("bwe_generator.conv_in.weight", Generation::V2_3)?;
        Ok(self)
    }

    fn checked(self) -> Result<Self, ConfigError> {
        self.generator.check()?;
        let Some(extension) = &self.extension else {
            return Ok(self);
        };
        extension.generator.check()?;
        let Extension {
            generator,
            input_sampling_rate,
            filter_length,
            hop_length,
            num_mel_channels,
        } = extension;
        for (key, given) in [
            ("input_sampling_rate", *input_sampling_rate),
            ("filter_length", *filter_length),
            ("hop_length", *hop_length),
            ("num_mel_channels", *num_mel_channels),
        ] {
            if given < 1 {
                return Err(wrong(key, "at least 1", given));
            }
        }
        same(
            "bwe_out_channels",
            self.generator.out_channels,
            generator.out_channels,
        )?;
        let bins = num_mel_channels * self.generator.out_channels;
        same("bwe_in_channels", bins, generator.in_channels)?;
        let factor = self.output_sampling_rate / input_sampling_rate;
        same(
            "output_sampling_rate",
            factor.max(1) * input_sampling_rate,
            self.output_sampling_rate,
        )?;
        // So the spectrogram needs no padding, and the second waveform is as long as the first one.
        if self.generator.upsample_factor() % hop_length != 0 {
            let expected = format!("a divisor of {}", self.generator.upsample_factor());
            return Err(wrong("hop_length", &expected, hop_length));
        }
        same(
            "bwe_upsample_factors",
            hop_length * factor,
            generator.upsample_factor(),
        )?;
        Ok(self)
    }
}

impl Generator {
    fn original(
        json: &Value,
        weights: &Weights,
        activation: Activation,
    ) -> Result<Self, ConfigError> {
        let raw: OriginalGenerator = read(PART, json)?;
        let Some(&[_, in_channels, _]) = weights.shape("conv_in.weight").as_deref() else {
            return Err(wrong(
                "conv_in.weight",
                "a tensor of three axes",
                "another or none",
            ));
        };
        Ok(Self {
            in_channels,
            hidden_channels: raw.upsample_initial_channel,
            out_channels: if raw.stereo { 2 } else { 1 },
            upsample_kernel_sizes: raw.upsample_kernel_sizes,
            upsample_factors: raw.upsample_rates,
            resnet_kernel_sizes: raw.resblock_kernel_sizes,
            resnet_dilations: raw.resblock_dilation_sizes,
            activation,
        })
    }

    /// Returns the number of samples of a row of the mel spectrogram.
    pub fn upsample_factor(&self) -> i64 {
        self.upsample_factors.iter().product()
    }

    fn check(&self) -> Result<(), ConfigError> {
        let length = |key, given: usize, expected: usize| {
            if given == expected {
                return Ok(());
            }
            Err(wrong(key, &format!("{expected} entries"), given))
        };
        length(
            "upsample_kernel_sizes",
            self.upsample_kernel_sizes.len(),
            self.upsample_factors.len(),
        )?;
        length(
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
                    format!("{kernel} for {factor}"),
                ));
            }
        }
        if let Some(kernel) = self
            .resnet_kernel_sizes
            .iter()
            .find(|kernel| *kernel % 2 == 0)
        {
            return Err(wrong("resnet_kernel_sizes", "odd sizes", kernel));
        }
        Ok(())
    }
}

fn same(key: &str, expected: i64, given: i64) -> Result<(), ConfigError> {
    if given == expected {
        return Ok(());
    }
    Err(wrong(key, &expected.to_string(), given))
}

fn wrong(key: &str, expected: &str, given: impl ToString) -> ConfigError {
    ConfigError::Value {
        part: PART,
        key: key.to_owned(),
        expected: expected.to_owned(),
        given: given.to_string(),
    }
}
