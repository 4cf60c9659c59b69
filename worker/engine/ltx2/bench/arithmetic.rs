//! Counts multiplications and additions (two for each multiply-accumulate) in matrices, attention and convolutions.
//! Element-wise work is not counted.

use crate::generation::Generation;
use crate::text::{connectors, gemma};
use crate::transformer::Config;
use crate::upsampler;
use crate::video_vae::{self, Side};

/// The sizes of a stage: video tokens, audio tokens, text tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens {
    pub(super) video: i64,
    pub(super) audio: i64,
    pub(super) text: i64,
}

/// Returns the operations of `[rows, from]` times `[from, to]`.
fn matrix(rows: i64, from: i64, to: i64) -> f64 {
    2.0 * rows as f64 * from as f64 * to as f64
}

/// Returns the operations of attention from `queries` to `keys` over all heads, whose total width is `width`.
pub(super) fn attention(queries: i64, keys: i64, width: i64) -> f64 {
    2.0 * matrix(queries, width, keys)
}

/// The operations of one block of the transformer, by layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) video_self: f64,
    pub(super) video_text: f64,
    pub(super) video_ff: f64,
    pub(super) audio: f64,
    pub(super) across: f64,
}

impl Block {
    pub(super) fn of(config: &Config, tokens: Tokens) -> Self {
        let (width, audio_width) = (config.width(), config.audio_width());
        let Tokens { video, audio, text } = tokens;
        let own = |n: i64, d: i64| 4.0 * matrix(n, d, d) + attention(n, n, d);
        // Keys and values of the text are computed once per prompt.
        let to_text = |n: i64, d: i64| 2.0 * matrix(n, d, d) + attention(n, text, d);
        let ff = |n: i64, d: i64| 2.0 * matrix(n, d, 4 * d);
        let to_video = 2.0 * matrix(video, width, audio_width)
            + 2.0 * matrix(audio, audio_width, audio_width)
            + attention(video, audio, audio_width);
        let to_audio = 2.0 * matrix(audio, audio_width, audio_width)
            + 2.0 * matrix(video, width, audio_width)
            + attention(audio, video, audio_width);
        Self {
            video_self: own(video, width),
            video_text: to_text(video, width),
            video_ff: ff(video, width),
            audio: own(audio, audio_width) + to_text(audio, audio_width) + ff(audio, audio_width),
            across: to_video + to_audio,
        }
    }

    pub(super) fn sum(&self) -> f64 {
        self.video_self + self.video_text + self.video_ff + self.audio + self.across
    }
}

/// Returns the operations of one pass of the transformer, without those outside of the blocks.
pub(super) fn step(config: &Config, tokens: Tokens) -> f64 {
    let blocks = config.num_layers as f64 * Block::of(config, tokens).sum();
    match config.generation {
        Generation::V2_0 => blocks,
        // The keys and values of the text depend on the noise level.
        Generation::V2_3 => blocks + text_context(config, tokens.text),
    }
}

/// Returns the operations for the keys and values of a prompt.
pub(super) fn text_context(config: &Config, text: i64) -> f64 {
    let captions = config.caption_channels;
    let of = |d: i64| {
        captions.map_or(0.0, |width| matrix(text, width, d) + matrix(text, d, d))
            + config.num_layers as f64 * 2.0 * matrix(text, d, d)
    };
    of(config.width()) + of(config.audio_width())
}

/// Returns the operations of the language model on `tokens` tokens. Each of them attends to those before it, which is
/// half of all pairs.
pub(super) fn gemma(config: &gemma::Config, tokens: i64) -> f64 {
    let (hidden, head) = (config.hidden_size, config.head_dim);
    let queries = config.num_attention_heads * head;
    let keys = config.num_key_value_heads * head;
    let layer = 2.0 * matrix(tokens, hidden, queries)
        + 2.0 * matrix(tokens, hidden, keys)
        + 3.0 * matrix(tokens, hidden, config.intermediate_size)
        + attention(tokens, tokens, queries) / 2.0;
    config.layers.len() as f64 * layer
}

/// Returns the operations of both connectors. `tokens` is the length of the prompt, `length` the length with the
/// registers.
pub(super) fn connectors(config: &connectors::Config, tokens: i64, length: i64) -> f64 {
    let inner = config.caption_channels * config.text_proj_in_factor;
    let of = |stream: &connectors::Stream| {
        let width = stream.width();
        let layer = 12.0 * matrix(length, width, width) + attention(length, length, width);
        stream.num_layers as f64 * layer
    };
    let projection = match config.generation {
        Generation::V2_0 => matrix(tokens, inner, config.caption_channels),
        Generation::V2_3 => {
            matrix(tokens, inner, config.video.width())
                + matrix(tokens, inner, config.audio.width())
        }
    };
    projection + of(&config.video) + of(&config.audio)
}

/// Returns the operations of a convolution with this number of output positions.
fn convolution(positions: i64, from: i64, to: i64, kernel: i64) -> f64 {
    matrix(positions, from * kernel, to)
}

/// Returns the operations of decoding latents to pixels. The sizes are frames, rows and columns of latents.
pub(super) fn decode(config: &video_vae::Config, [mut f, mut h, mut w]: [i64; 3]) -> f64 {
    const KERNEL: i64 = 27;
    let Side {
        mid_layers,
        width,
        stages,
        ..
    } = &config.decoder;
    let mut width = *width;
    let mut sum = convolution(f * h * w, config.latent_channels, width, KERNEL);
    sum += 2.0 * *mid_layers as f64 * convolution(f * h * w, width, width, KERNEL);
    for stage in stages {
        let [frames, rows, columns] = stage.stride;
        let stepped = stage.width * frames * rows * columns;
        sum += convolution(f * h * w, width, stepped, KERNEL);
        (f, h, w) = ((f - 1) * frames + 1, h * rows, w * columns);
        width = stage.width;
        sum += 2.0 * stage.layers as f64 * convolution(f * h * w, width, width, KERNEL);
    }
    sum + convolution(f * h * w, width, pixels(config), KERNEL)
}

/// Returns the operations of encoding pixels as latents. The sizes are frames, rows and columns of pixels.
pub(super) fn encode(config: &video_vae::Config, [mut f, mut h, mut w]: [i64; 3]) -> f64 {
    const KERNEL: i64 = 27;
    let Side {
        mid_layers,
        width,
        stages,
        ..
    } = &config.encoder;
    (h, w) = (h / config.patch_size, w / config.patch_size);
    let mut width = *width;
    let mut sum = convolution(f * h * w, pixels(config), width, KERNEL);
    for stage in stages {
        sum += 2.0 * stage.layers as f64 * convolution(f * h * w, width, width, KERNEL);
        let [frames, rows, columns] = stage.stride;
        let stepped = stage.width / (frames * rows * columns);
        sum += convolution((f + frames - 1) * h * w, width, stepped, KERNEL);
        (f, h, w) = ((f - 1) / frames + 1, h / rows, w / columns);
        width = stage.width;
    }
    sum += 2.0 * *mid_layers as f64 * convolution(f * h * w, width, width, KERNEL);
    sum + convolution(f * h * w, width, config.latent_channels + 1, KERNEL)
}

/// Returns the operations of doubling the rows and columns of latents. The sizes are frames, rows and columns.
pub(super) fn upsample(config: &upsampler::Config, [f, h, w]: [i64; 3]) -> f64 {
    let upsampler::Config {
        in_channels,
        mid_channels: mid,
        num_blocks_per_stage: blocks,
        growth: _,
    } = *config;
    let positions = f * h * w;
    let resnets = |positions: i64| 2.0 * blocks as f64 * convolution(positions, mid, mid, 27);
    convolution(positions, in_channels, mid, 27)
        + resnets(positions)
        + convolution(positions, mid, 4 * mid, 9)
        + resnets(4 * positions)
        + convolution(4 * positions, mid, in_channels, 27)
}

fn pixels(config: &video_vae::Config) -> i64 {
    config.channels * config.patch_size * config.patch_size
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::bench::RELEASED;

    fn released(part: &str) -> Value {
        serde_json::from_str::<Value>(RELEASED).unwrap()[part].take()
    }

    #[track_caller]
    fn check(flop: f64, tflop: f64) {
        let counted = flop / 1e12;
        assert!(
            (counted / tflop - 1.0).abs() < 0.03,
            "{counted} TFLOP, expected {tflop}"
        );
    }

    /// Counted independently, on the reference's modules.
    #[test]
    fn the_released_model_is_as_large_as_it_is_known_to_be() {
        let transformer = Config::library(&released("transformer")).unwrap();
        let stage = |video: i64| Tokens {
            video,
            audio: 126,
            text: 1024,
        };
        check(step(&transformer, stage(8160)), 275.0);
        check(step(&transformer, stage(32640)), 1714.0);
        let vae = video_vae::Config::library(&released("vae")).unwrap();
        check(decode(&vae, [16, 34, 60]), 320.0);
        check(encode(&vae, [9, 544, 960]), 15.0);
        check(encode(&vae, [9, 1088, 1920]), 61.0);
        let upsampler = upsampler::Config::library(&released("latent_upsampler")).unwrap();
        check(upsample(&upsampler, [16, 17, 30]), 19.0);
        let language = gemma::Config::library(&released("text_encoder")).unwrap();
        check(gemma(&language, 1024), 22.0);
        let connecting = connectors::Config::library(&released("connectors")).unwrap();
        check(connectors(&connecting, 1024, 1024), 3.0);
    }
}
