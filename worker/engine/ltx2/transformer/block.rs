//! One transformer block: each stream attends to itself, to the text, and to the other stream; the feed-forward layers
//! follow.
//!
//! Follows `LTX2VideoTransformerBlock` in `models/transformers/transformer_ltx2.py` of diffusers 0.42.1.

use tch::Tensor;

use super::Config;
use super::attention::{Attention, FeedForward, KeyValue, Shape};
use super::modulation::Modulation;
use super::rope::RotaryTables;
use crate::nn::rms_norm;
use crate::ops::{Kernels, Rotation};
use crate::weights::Weights;

#[derive(Debug)]
pub struct Block {
    pub(crate) video: StreamBlock,
    pub(crate) audio: StreamBlock,
    audio_to_video_attn: Attention,
    video_to_audio_attn: Attention,
    eps: f64,
    kernels: Kernels,
}

/// The inputs of a block besides the tokens.
#[derive(Debug)]
pub struct Surroundings<'a> {
    pub video: &'a Modulation,
    pub audio: &'a Modulation,
    pub tables: &'a RotaryTables,
    /// Whether the streams do not attend to each other.
    pub isolate_modalities: bool,
}

/// The keys and values of the text in one block.
#[derive(Debug)]
pub struct BlockText {
    pub video: KeyValue,
    pub audio: KeyValue,
}

impl Block {
    pub fn new(config: &Config, weights: &Weights, kernels: &Kernels) -> Self {
        let (video, audio) = (config.width(), config.audio_width());
        let cross = |name: &str, query_dim: i64, context_dim: i64| {
            let shape = Shape {
                query_dim,
                context_dim,
                heads: config.audio_num_attention_heads,
                head_dim: config.audio_attention_head_dim,
                eps: config.norm_eps,
            };
            Attention::new(&weights.sub(name), shape, kernels)
        };
        Self {
            video: StreamBlock::new(config, weights, Stream::Video, kernels),
            audio: StreamBlock::new(config, weights, Stream::Audio, kernels),
            audio_to_video_attn: cross("audio_to_video_attn", video, audio),
            video_to_audio_attn: cross("video_to_audio_attn", audio, video),
            eps: config.norm_eps,
            kernels: kernels.clone(),
        }
    }

    /// Computes the keys and values of the projected contexts, `[B, S, D]` each.
    pub fn text(&self, video: &Tensor, audio: &Tensor) -> BlockText {
        BlockText {
            video: self.video.attn2.key_value(video, None),
            audio: self.audio.attn2.key_value(audio, None),
        }
    }

    /// Applies the block to both streams in place: `x` `[B, N, D]` and `a` `[B, L, D']`.
    pub fn forward(
        &self,
        x: &mut Tensor,
        a: &mut Tensor,
        around: &Surroundings<'_>,
        text: &BlockText,
    ) {
        let video_rows = self.video.rows(around.video);
        let audio_rows = self.audio.rows(around.audio);
        self.video
            .attend_self(x, &video_rows, around.video, &around.tables.video);
        self.audio
            .attend_self(a, &audio_rows, around.audio, &around.tables.audio);
        self.video.attend_text(x, &text.video);
        self.audio.attend_text(a, &text.audio);
        if !around.isolate_modalities {
            self.attend_across(x, a, around);
        }
        self.video.feed_forward(x, &video_rows, around.video);
        self.audio.feed_forward(a, &audio_rows, around.audio);
    }

    /// Computes the attention of each stream to the other one, both as they were before either is changed.
    pub(crate) fn attend_across(&self, x: &mut Tensor, a: &mut Tensor, around: &Surroundings<'_>) {
        let (video, audio) = (around.video, around.audio);
        let [s1, b1, s2, b2, gate] = self.video.cross_rows(video);
        let [u1, c1, u2, c2, audio_gate] = self.audio.cross_rows(audio);
        let of_video = |x: &Tensor, scale: &Tensor, shift: &Tensor| {
            self.kernels
                .rms_norm_modulate(x, self.eps, scale, shift, &video.runs)
        };
        let of_audio = |a: &Tensor, scale: &Tensor, shift: &Tensor| {
            self.kernels
                .rms_norm_modulate(a, self.eps, scale, shift, &audio.runs)
        };
        let (of_time, of_audio_time) = (&around.tables.cross_video, &around.tables.cross_audio);
        // The sound comes first, because its result needs less memory to keep.
        let to_audio = self.video_to_audio_attn.forward_cross(
            &of_audio(a, &u2, &c2),
            &of_video(x, &s2, &b2),
            of_audio_time,
            of_time,
        );
        let to_video = self.audio_to_video_attn.forward_cross(
            &of_video(x, &s1, &b1),
            &of_audio(a, &u1, &c1),
            of_time,
            of_audio_time,
        );
        self.kernels.add_gated(x, to_video, &gate, &video.runs);
        self.kernels
            .add_gated(a, to_audio, &audio_gate, &audio.runs);
    }
}

#[derive(Clone, Copy, Debug)]
enum Stream {
    Video,
    Audio,
}

/// A stream's own half of a block.
#[derive(Debug)]
pub(crate) struct StreamBlock {
    attn1: Attention,
    attn2: Attention,
    ff: FeedForward,
    /// `[6, D]`.
    scale_shift_table: Tensor,
    /// `[5, D]`.
    cross_table: Tensor,
    eps: f64,
    kernels: Kernels,
}

impl StreamBlock {
    fn new(config: &Config, weights: &Weights, stream: Stream, kernels: &Kernels) -> Self {
        let (prefix, table, width, text, heads, head_dim) = match stream {
            Stream::Video => (
                "",
                "video_a2v_cross_attn_scale_shift_table",
                config.width(),
                config.cross_attention_dim,
                config.num_attention_heads,
                config.attention_head_dim,
            ),
            Stream::Audio => (
                "audio_",
                "audio_a2v_cross_attn_scale_shift_table",
                config.audio_width(),
                config.audio_cross_attention_dim,
                config.audio_num_attention_heads,
                config.audio_attention_head_dim,
            ),
        };
        let attention = |name: &str, context_dim: i64| {
            let eps = config.norm_eps;
            let shape = Shape {
                query_dim: width,
                context_dim,
                heads,
                head_dim,
                eps,
            };
            Attention::new(&weights.sub(format!("{prefix}{name}")), shape, kernels)
        };
        Self {
            attn1: attention("attn1", width),
            attn2: attention("attn2", text),
            ff: FeedForward::new(&weights.sub(format!("{prefix}ff")), width),
            scale_shift_table: weights.tensor(&format!("{prefix}scale_shift_table"), &[6, width]),
            cross_table: weights.tensor(table, &[5, width]),
            eps: config.norm_eps,
            kernels: kernels.clone(),
        }
    }

    /// Returns shift, scale and gate of self-attention, then of the feed-forward layer, each `[B, runs, D]`.
    pub(crate) fn rows(&self, modulation: &Modulation) -> [Tensor; 6] {
        let rows = rows(&self.scale_shift_table, &modulation.temb);
        std::array::from_fn(|i| rows.get(index(i)))
    }

    /// Returns scale and shift of audio-to-video attention, then of video-to-audio attention, and the gate, each
    /// `[B, runs, D]`.
    fn cross_rows(&self, modulation: &Modulation) -> [Tensor; 5] {
        let scale_shift = rows(
            &self.cross_table.narrow(0, 0, 4),
            &modulation.cross_scale_shift,
        );
        let gate = rows(&self.cross_table.narrow(0, 4, 1), &modulation.cross_gate);
        std::array::from_fn(|i| {
            if i < 4 {
                scale_shift.get(index(i))
            } else {
                gate.get(0)
            }
        })
    }

    pub(crate) fn attend_self(
        &self,
        x: &mut Tensor,
        [shift, scale, gate, ..]: &[Tensor; 6],
        modulation: &Modulation,
        rotation: &Rotation,
    ) {
        let runs = &modulation.runs;
        let normed = self
            .kernels
            .rms_norm_modulate(x, self.eps, scale, shift, runs);
        let attended = self.attn1.forward_self(&normed, rotation);
        drop(normed);
        self.kernels.add_gated(x, attended, gate, runs);
    }

    pub(crate) fn attend_text(&self, x: &mut Tensor, text: &KeyValue) {
        let attended = self.attn2.forward_cached(&rms_norm(x, self.eps), text);
        let _ = x.g_add_(&attended);
    }

    pub(crate) fn feed_forward(
        &self,
        x: &mut Tensor,
        [.., shift, scale, gate]: &[Tensor; 6],
        modulation: &Modulation,
    ) {
        let runs = &modulation.runs;
        let normed = self
            .kernels
            .rms_norm_modulate(x, self.eps, scale, shift, runs);
        let output = self.ff.forward(&normed);
        drop(normed);
        self.kernels.add_gated(x, output, gate, runs);
    }
}

/// Adds the pass's modulation `[rows, B, runs, D]` to a block's table `[rows, D]`.
fn rows(table: &Tensor, modulation: &Tensor) -> Tensor {
    table.unsqueeze(1).unsqueeze(1) + modulation
}

fn index(i: usize) -> i64 {
    i64::try_from(i).expect("a handful of rows")
}
