//! The autoencoder's configuration, read from either layout's file.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{ConfigError, only, read};
use crate::weights::Weights;

const PART: &str = "video VAE";

/// The shape of the network, the same for both layouts.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The number of colours of a pixel.
    pub channels: i64,
    pub latent_channels: i64,
    /// The number of rows and columns of pixels that become channels before the first convolution.
    pub patch_size: i64,
    pub encoder: Side,
    pub decoder: Side,
}

/// The encoder or the decoder, in the order of computation.
#[derive(Clone, Debug, PartialEq)]
pub struct Side {
    /// The number of channels after the first convolution.
    pub width: i64,
    /// The number of resnets of the middle block, which is the encoder's last and the decoder's first.
    pub mid_layers: i64,
    pub stages: Vec<Stage>,
    /// Whether a frame sees only itself and those before it.
    pub causal: bool,
    pub padding: Padding,
}

/// The resnets at one resolution, and the step to or from the next coarser one.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    pub layers: i64,
    /// The factors by which frames, rows and columns shrink (encoder) or grow (decoder).
    pub stride: [i64; 3],
    /// The number of channels after the step.
    pub width: i64,
    /// Whether the step adds its rearranged input.
    pub residual: bool,
}

/// The padding beyond the picture's edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Padding {
    Zeros,
    Reflect,
}

impl Config {
    /// Reads `config.json` of the library's `AutoencoderKLLTX2Video`.
    ///
    /// # Errors
    /// Returns an error that names the key that is missing, contradicts another or asks for what is not implemented.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        only(PART, json, "patch_size_t", &json!(1))?;
        only(PART, json, "timestep_conditioning", &json!(false))?;
        only(PART, json, "scaling_factor", &json!(1.0))?;
        every(json, "spatio_temporal_scaling", &json!(true))?;
        every(json, "decoder_spatio_temporal_scaling", &json!(true))?;
        every(json, "decoder_inject_noise", &json!(false))?;
        every(json, "down_block_types", &json!("LTX2VideoDownBlock3D"))?;
        let library: Library = read(PART, json)?;
        if library.in_channels != library.out_channels {
            return Err(wrong(
                "out_channels",
                library.in_channels,
                library.out_channels,
            ));
        }
        let config = Self {
            channels: library.in_channels,
            latent_channels: library.latent_channels,
            patch_size: library.patch_size,
            encoder: library.encoder()?,
            decoder: library.decoder()?,
        };
        config.checked()?;
        let ratios = [
            (
                "spatial_compression_ratio",
                library.spatial_compression_ratio,
                config.spatial_ratio(),
            ),
            (
                "temporal_compression_ratio",
                library.temporal_compression_ratio,
                config.temporal_ratio(),
            ),
        ];
        for (key, given, counted) in ratios {
            if let Some(given) = given
                && given != counted
            {
                return Err(wrong(key, counted, given));
            }
        }
        Ok(config)
    }

    /// Reads the converter's `config.json`, which lists blocks. The widths after the first convolutions, which are not
    /// in it, come from the tensors.
    ///
    /// # Errors
    /// Returns an error that names the key that is missing or asks for what is not implemented.
    pub fn original(json: &Value, weights: &Weights) -> Result<Self, ConfigError> {
        let Some(json) = json.get("vae") else {
            return Err(wrong("vae", "the autoencoder's configuration", "nothing"));
        };
        only(PART, json, "dims", &json!(3))?;
        only(PART, json, "norm_layer", &json!("pixel_norm"))?;
        only(PART, json, "latent_log_var", &json!("uniform"))?;
        only(PART, json, "timestep_conditioning", &json!(false))?;
        only(PART, json, "use_quant_conv", &json!(false))?;
        only(PART, json, "normalize_latent_channels", &json!(false))?;
        let original: Original = read(PART, json)?;
        if original.in_channels != original.out_channels {
            return Err(wrong(
                "out_channels",
                original.in_channels,
                original.out_channels,
            ));
        }
        let config = Self {
            channels: original.in_channels,
            latent_channels: original.latent_channels,
            patch_size: original.patch_size,
            encoder: original.encoder(weights)?,
            decoder: original.decoder(weights)?,
        };
        config.checked()?;
        Ok(config)
    }

    /// Returns the height and width of a latent cell in pixels.
    pub fn spatial_ratio(&self) -> i64 {
        self.patch_size
            * self
                .encoder
                .stages
                .iter()
                .map(|s| s.stride[1])
                .product::<i64>()
    }

    /// Returns the smallest number of rows and columns of latents that can be decoded: edges that are reflected need two.
    pub fn least_cells(&self) -> i64 {
        match self.decoder.padding {
            Padding::Zeros => 1,
            Padding::Reflect => 2,
        }
    }

    /// Returns the number of frames of a latent frame; the first latent frame has one.
    pub fn temporal_ratio(&self) -> i64 {
        self.encoder.stages.iter().map(|s| s.stride[0]).product()
    }

    /// Checks that the decoder reverses the encoder's steps, and that channels can be divided evenly.
    fn checked(&self) -> Result<(), ConfigError> {
        let product =
            |side: &Side, axis: usize| side.stages.iter().map(|s| s.stride[axis]).product::<i64>();
        for (axis, name) in ["frames", "rows", "columns"].iter().enumerate() {
            let (down, up) = (product(&self.encoder, axis), product(&self.decoder, axis));
            if down != up {
                return Err(wrong(
                    &format!("decoder, {name}"),
                    format!("{down} times as many"),
                    up,
                ));
            }
        }
        let mut width = self.encoder.width;
        for stage in &self.encoder.stages {
            let cells: i64 = stage.stride.iter().product();
            if stage.width % cells != 0 || (width * cells) % stage.width != 0 {
                let expected = format!("a multiple of {cells} and a divisor of {}", width * cells);
                return Err(wrong("encoder width", expected, stage.width));
            }
            width = stage.width;
        }
        width = self.decoder.width;
        for stage in &self.decoder.stages {
            let cells: i64 = stage.stride.iter().product();
            if width % cells != 0 || (stage.width * cells) % width != 0 {
                let expected = format!("of which {width} is a divisor when multiplied by {cells}");
                return Err(wrong("decoder width", expected, stage.width));
            }
            width = stage.width;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Library {
    in_channels: i64,
    out_channels: i64,
    latent_channels: i64,
    patch_size: i64,
    block_out_channels: Vec<i64>,
    layers_per_block: Vec<i64>,
    downsample_type: Vec<Step>,
    encoder_causal: bool,
    encoder_spatial_padding_mode: Padding,
    decoder_block_out_channels: Vec<i64>,
    decoder_layers_per_block: Vec<i64>,
    upsample_type: Vec<Step>,
    upsample_residual: Each,
    upsample_factor: Vec<i64>,
    decoder_causal: bool,
    decoder_spatial_padding_mode: Padding,
    spatial_compression_ratio: Option<i64>,
    temporal_compression_ratio: Option<i64>,
}

/// The axes that a step halves or doubles.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    Spatial,
    Temporal,
    Spatiotemporal,
}

/// One value for all stages, or one for each.
#[derive(Deserialize)]
#[serde(untagged)]
enum Each {
    All(bool),
    Listed(Vec<bool>),
}

impl Step {
    fn stride(self) -> [i64; 3] {
        match self {
            Self::Spatial => [1, 2, 2],
            Self::Temporal => [2, 1, 1],
            Self::Spatiotemporal => [2, 2, 2],
        }
    }
}

impl Library {
    fn encoder(&self) -> Result<Side, ConfigError> {
        let widths = &self.block_out_channels;
        length(
            "layers_per_block",
            self.layers_per_block.len(),
            widths.len() + 1,
        )?;
        length("downsample_type", self.downsample_type.len(), widths.len())?;
        let stages = (0..widths.len()).map(|i| Stage {
            layers: self.layers_per_block[i],
            stride: self.downsample_type[i].stride(),
            width: widths[i],
            residual: true,
        });
        Ok(Side {
            width: self.latent_channels,
            mid_layers: self.layers_per_block[widths.len()],
            stages: stages.collect(),
            causal: self.encoder_causal,
            padding: self.encoder_spatial_padding_mode,
        })
    }

    /// Describes the decoder. All lists except the kinds of steps are written from the picture inwards.
    fn decoder(&self) -> Result<Side, ConfigError> {
        let widths: Vec<i64> = self
            .decoder_block_out_channels
            .iter()
            .rev()
            .copied()
            .collect();
        let layers: Vec<i64> = self
            .decoder_layers_per_block
            .iter()
            .rev()
            .copied()
            .collect();
        let factors: Vec<i64> = self.upsample_factor.iter().rev().copied().collect();
        let residuals: Vec<bool> = match &self.upsample_residual {
            Each::All(residual) => vec![*residual; widths.len()],
            Each::Listed(residuals) => residuals.iter().rev().copied().collect(),
        };
        length("decoder_layers_per_block", layers.len(), widths.len() + 1)?;
        length("upsample_factor", factors.len(), widths.len())?;
        length("upsample_residual", residuals.len(), widths.len())?;
        length("upsample_type", self.upsample_type.len(), widths.len())?;
        let Some(&top) = widths.first() else {
            return Err(wrong(
                "decoder_block_out_channels",
                "at least one width",
                "none",
            ));
        };
        let mut width = top;
        let mut stages = Vec::new();
        for i in 0..widths.len() {
            // Another width here would require a resnet with two widths before the step.
            if widths[i] != width {
                return Err(wrong("decoder_block_out_channels", width, widths[i]));
            }
            width = divided("upsample_factor", width, factors[i])?;
            stages.push(Stage {
                layers: layers[i + 1],
                stride: self.upsample_type[i].stride(),
                width,
                residual: residuals[i],
            });
        }
        Ok(Side {
            width: top,
            mid_layers: layers[0],
            stages,
            causal: self.decoder_causal,
            padding: self.decoder_spatial_padding_mode,
        })
    }
}

#[derive(Deserialize)]
struct Original {
    in_channels: i64,
    out_channels: i64,
    latent_channels: i64,
    patch_size: i64,
    encoder_blocks: Vec<(String, Value)>,
    decoder_blocks: Vec<(String, Value)>,
    causal_decoder: bool,
    encoder_spatial_padding_mode: Option<Padding>,
    /// The decoder's, as the authors' own code calls it, and as FastVideo does.
    spatial_padding_mode: Option<Padding>,
    decoder_spatial_padding_mode: Option<Padding>,
}

/// A block of either list. The reference uses defaults for the keys that a kind of block lacks.
#[derive(Deserialize)]
struct Block {
    #[serde(default)]
    num_layers: i64,
    multiplier: Option<i64>,
    #[serde(default)]
    residual: bool,
}

/// A list of blocks, as the numbers of resnets and the steps between them.
struct Blocks {
    layers: Vec<i64>,
    steps: Vec<([i64; 3], Block)>,
}

impl Original {
    fn encoder(&self, weights: &Weights) -> Result<Side, ConfigError> {
        const KEY: &str = "encoder_blocks";
        let blocks = Blocks::read(KEY, self.encoder_blocks.iter(), "_res")?;
        let stored = weights.shape("encoder.conv_in.conv.weight");
        let width = stored.map_or(self.latent_channels, |shape| shape[0]);
        let mut at = width;
        let mut stages = Vec::new();
        for (layers, (stride, block)) in blocks.layers.iter().zip(&blocks.steps) {
            at *= block.multiplier.unwrap_or(2);
            stages.push(Stage {
                layers: *layers,
                stride: *stride,
                width: at,
                residual: true,
            });
        }
        Ok(Side {
            width,
            mid_layers: blocks.layers[blocks.steps.len()],
            stages,
            causal: true,
            padding: self.encoder_spatial_padding_mode.unwrap_or(Padding::Zeros),
        })
    }

    fn decoder(&self, weights: &Weights) -> Result<Side, ConfigError> {
        const KEY: &str = "decoder_blocks";
        let blocks = Blocks::read(KEY, self.decoder_blocks.iter().rev(), "")?;
        let product: i64 = blocks
            .steps
            .iter()
            .map(|(_, block)| block.multiplier.unwrap_or(1))
            .product();
        let stored = weights.shape("decoder.conv_in.conv.weight");
        let width = stored.map_or(self.latent_channels * product, |shape| shape[0]);
        let mut at = width;
        let mut stages = Vec::new();
        for (layers, (stride, block)) in blocks.layers[1..].iter().zip(&blocks.steps) {
            let multiplier = block.multiplier.unwrap_or(1);
            at = divided("decoder_blocks multiplier", at, multiplier)?;
            stages.push(Stage {
                layers: *layers,
                stride: *stride,
                width: at,
                residual: block.residual,
            });
        }
        Ok(Side {
            width,
            mid_layers: blocks.layers[0],
            stages,
            causal: self.causal_decoder,
            padding: self.decoder_padding()?,
        })
    }
}

impl Original {
    fn decoder_padding(&self) -> Result<Padding, ConfigError> {
        match (self.spatial_padding_mode, self.decoder_spatial_padding_mode) {
            (Some(own), Some(other)) if own != other => {
                let expected = format!("{own:?}, as `spatial_padding_mode` says").to_lowercase();
                let given = format!("{other:?}").to_lowercase();
                Err(wrong("decoder_spatial_padding_mode", expected, given))
            }
            (own, other) => Ok(own.or(other).unwrap_or(Padding::Reflect)),
        }
    }
}

impl Blocks {
    /// Reads alternating resnets and steps, with resnets first and last. `suffix` ends the names of the encoder's
    /// steps.
    fn read<'a>(
        key: &str,
        list: impl Iterator<Item = &'a (String, Value)>,
        suffix: &str,
    ) -> Result<Self, ConfigError> {
        let (mut layers, mut steps) = (Vec::new(), Vec::new());
        for (name, value) in list {
            only(PART, value, "inject_noise", &json!(false))?;
            let block: Block = read(PART, value)?;
            let stride = match name.strip_suffix(suffix) {
                Some("compress_space") => [1, 2, 2],
                Some("compress_time") => [2, 1, 1],
                Some("compress_all") => [2, 2, 2],
                _ if name == "res_x" && layers.len() == steps.len() => {
                    layers.push(block.num_layers);
                    continue;
                }
                _ => return Err(wrong(key, "`res_x` and steps by turns", name)),
            };
            if layers.len() != steps.len() + 1 {
                return Err(wrong(key, "`res_x` and steps by turns", name));
            }
            steps.push((stride, block));
        }
        length(key, layers.len(), steps.len() + 1)?;
        Ok(Self { layers, steps })
    }
}

/// Refuses a switch, given once or for each stage, that has another value than `implemented` anywhere.
fn every(json: &Value, key: &str, implemented: &Value) -> Result<(), ConfigError> {
    match json.get(key) {
        Some(Value::Array(values)) if values.iter().all(|value| value == implemented) => Ok(()),
        _ => only(PART, json, key, implemented),
    }
}

fn divided(key: &str, width: i64, by: i64) -> Result<i64, ConfigError> {
    if by < 1 || width % by != 0 {
        return Err(wrong(key, format!("a divisor of {width}"), by));
    }
    Ok(width / by)
}

fn length(key: &str, given: usize, expected: usize) -> Result<(), ConfigError> {
    if given == expected {
        return Ok(());
    }
    Err(wrong(
        key,
        format!("{expected} entries"),
        format!("{given}"),
    ))
}

fn wrong(key: &str, expected: impl ToString, given: impl ToString) -> ConfigError {
    ConfigError::Value {
        part: PART,
        key: key.to_owned(),
        expected: expected.to_string(),
        given: given.to_string(),
    }
}
