//! One transformer block: each stream attends to itself, to the text, and to the other stream; the feed-forward layers
//! follow.
//!
//! Follows `LTX2VideoTransformerBlock` in `models/transformers/transformer_ltx2.py` of diffusers 0.42.1.

use tch::Tensor;

use super::Config;
use super::attention::{Attention, FeedForward, KeyValue, Shape};
use super::modulation::Modulation;
use super::rope::RotaryTables;
use crate::activations::{Activations, Form};
use crate::generation::Generation;
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
    /// Whether each token sees itself alone in the self-attention of both streams.
    pub perturbed: bool,
}

/// The keys and values of the text in one block.
#[derive(Debug)]
pub struct BlockText {
    pub video: KeyValue,
    pub audio: KeyValue,
}

/// The text as a stream's block takes it.
#[derive(Clone, Copy, Debug)]
pub enum Text<'a> {
    /// Keys and values that do not depend on the noise level, as in LTX-2.0.
    KeyValue(&'a KeyValue),
    /// The context `[B, S, D]`, which the block modulates, as in LTX-2.3.
    Context(&'a Tensor),
}

/// The rows that modulate one part of a block, each `[B, runs, D]`.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) shift: Tensor,
    pub(crate) scale: Tensor,
    pub(crate) gate: Tensor,
}

/// The rows of a stream's block.
#[derive(Debug)]
pub(crate) struct StreamRows {
    pub(crate) attn1: Rows,
    pub(crate) ff: Rows,
    /// The rows of the attention to the text, in LTX-2.3.
    pub(crate) attn2: Option<Rows>,
}

impl Block {
    pub fn new(config: &Config, weights: &Weights, kernels: &Kernels) -> Self {
        let (video, audio) = (config.width(), config.audio_width());
        let cross = |name: &str, query_dim: i64, context_dim: i64, of_video: bool| {
            let shape = Shape {
                query_dim,
                context_dim,
                heads: config.audio_num_attention_heads,
                head_dim: config.audio_attention_head_dim,
                eps: config.norm_eps,
                gated: config.generation == Generation::V2_3,
                wide_query: of_video,
                wide_context: !of_video,
            };
            Attention::new(&weights.sub(name), shape, kernels)
        };
        Self {
            video: StreamBlock::new(config, weights, Stream::Video, kernels),
            audio: StreamBlock::new(config, weights, Stream::Audio, kernels),
            audio_to_video_attn: cross("audio_to_video_attn", video, audio, true),
            video_to_audio_attn: cross("video_to_audio_attn", audio, video, false),
            eps: config.norm_eps,
            kernels: kernels.clone(),
        }
    }

    /// Computes the keys and values of the projected contexts, `[B, S, D]` each.
    pub fn text(&self, video: &Tensor, audio: &Tensor) -> BlockText {
        BlockText {
            video: self.video.attn2.key_value(video),
            audio: self.audio.attn2.key_value(audio),
        }
    }

    /// Applies the block to both streams in place: `x` `[B, N, D]` and `a` `[B, L, D']`.
    pub fn forward(
        &self,
        x: &mut Tensor,
        a: &mut Tensor,
        around: &Surroundings<'_>,
        [video_text, audio_text]: [Text<'_>; 2],
    ) {
        let video_rows = self.video.rows(around.video);
        let audio_rows = self.audio.rows(around.audio);
        let (video, audio) = (around.video, around.audio);
        let tables = around.tables;
        if around.perturbed {
            self.video.perturb_self(x, &video_rows, video);
            self.audio.perturb_self(a, &audio_rows, audio);
        } else {
            self.video.attend_self(x, &video_rows, video, &tables.video);
            self.audio.attend_self(a, &audio_rows, audio, &tables.audio);
        }
        self.video.attend_text(x, &video_rows, video, video_text);
        self.audio.attend_text(a, &audio_rows, audio, audio_text);
        if !around.isolate_modalities {
            self.attend_across(x, a, around);
        }
        self.video.feed_forward(x, &video_rows, video);
        self.audio.feed_forward(a, &audio_rows, audio);
    }

    /// Computes the attention of each stream to the other one, both as they were before either is changed.
    pub(crate) fn attend_across(&self, x: &mut Tensor, a: &mut Tensor, around: &Surroundings<'_>) {
        let (video, audio) = (around.video, around.audio);
        let [s1, b1, s2, b2, gate] = self.video.cross_rows(video);
        let [u1, c1, u2, c2, audio_gate] = self.audio.cross_rows(audio);
        let of_video = |x: &Tensor, scale: &Tensor, shift: &Tensor, form: Form| {
            self.kernels
                .modulated(x, self.eps, scale, shift, &video.cross_runs, form)
        };
        let of_audio = |a: &Tensor, scale: &Tensor, shift: &Tensor, form: Form| {
            self.kernels
                .modulated(a, self.eps, scale, shift, &audio.cross_runs, form)
        };
        let (from_video, from_audio) = (&self.video_to_audio_attn, &self.audio_to_video_attn);
        let (of_time, of_audio_time) = (&around.tables.cross_video, &around.tables.cross_audio);
        // The sound comes first, because its result needs less memory to keep.
        let to_audio = from_video.forward_cross(
            &of_audio(a, &u2, &c2, from_video.query_form()),
            &of_video(x, &s2, &b2, from_video.context_form()),
            of_audio_time,
            of_time,
        );
        let to_video = from_audio.forward_cross(
            &of_video(x, &s1, &b1, from_audio.query_form()),
            &of_audio(a, &u1, &c1, from_audio.context_form()),
            of_time,
            of_audio_time,
        );
        self.kernels.add_gated(x, to_video, &gate, &video.gate_runs);
        self.kernels
            .add_gated(a, to_audio, &audio_gate, &audio.gate_runs);
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
    /// `[6 or 9, D]`.
    scale_shift_table: Tensor,
    /// The table of the text's shift and scale in LTX-2.3, `[2, D]`.
    prompt_table: Option<Tensor>,
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
        let is_video = matches!(stream, Stream::Video);
        let attention = |name: &str, context_dim: i64, wide_context: bool| {
            let shape = Shape {
                query_dim: width,
                context_dim,
                heads,
                head_dim,
                eps: config.norm_eps,
                gated: config.generation == Generation::V2_3,
                wide_query: is_video,
                wide_context,
            };
            Attention::new(&weights.sub(format!("{prefix}{name}")), shape, kernels)
        };
        let ff = weights.sub(format!("{prefix}ff"));
        Self {
            attn1: attention("attn1", width, is_video),
            attn2: attention("attn2", text, false),
            ff: match stream {
                Stream::Video => FeedForward::wide(&ff, width, kernels),
                Stream::Audio => FeedForward::new(&ff, width, kernels),
            },
            scale_shift_table: weights.tensor(
                &format!("{prefix}scale_shift_table"),
                &[config.modulation_rows(), width],
            ),
            prompt_table: match config.generation {
                Generation::V2_0 => None,
                Generation::V2_3 => {
                    let name = format!("{prefix}prompt_scale_shift_table");
                    Some(weights.tensor(&name, &[2, text]))
                }
            },
            cross_table: weights.tensor(table, &[5, width]),
            eps: config.norm_eps,
            kernels: kernels.clone(),
        }
    }

    /// Returns the rows of this block.
    pub(crate) fn rows(&self, modulation: &Modulation) -> StreamRows {
        let rows = rows(&self.scale_shift_table, &modulation.temb);
        let of = |first: i64| Rows {
            shift: rows.get(first),
            scale: rows.get(first + 1),
            gate: rows.get(first + 2),
        };
        StreamRows {
            attn1: of(0),
            ff: of(3),
            attn2: self.prompt_table.is_some().then(|| of(6)),
        }
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
        rows: &StreamRows,
        modulation: &Modulation,
        rotation: &Rotation,
    ) {
        let normed = self.modulated(x, &rows.attn1, modulation, self.attn1.self_form());
        let attended = self.attn1.forward_self(&normed, rotation);
        drop(normed);
        self.kernels
            .add_gated(x, attended, &rows.attn1.gate, &modulation.runs);
    }

    /// Does what [`Self::attend_self`] does, with each token attending to itself alone.
    fn perturb_self(&self, x: &mut Tensor, rows: &StreamRows, modulation: &Modulation) {
        let normed = self.modulated(x, &rows.attn1, modulation, self.attn1.self_form());
        let attended = self.attn1.forward_perturbed(&normed);
        drop(normed);
        self.kernels
            .add_gated(x, attended, &rows.attn1.gate, &modulation.runs);
    }

    pub(crate) fn attend_text(
        &self,
        x: &mut Tensor,
        rows: &StreamRows,
        modulation: &Modulation,
        text: Text<'_>,
    ) {
        let attended = |normed: &Activations| match text {
            Text::KeyValue(text) => self.attn2.forward_cached(normed, text),
            Text::Context(context) => {
                let text = self.attn2.key_value(&self.prompted(context, modulation));
                self.attn2.forward_cached(normed, &text)
            }
        };
        let form = self.attn2.query_form();
        match &rows.attn2 {
            Some(rows) => {
                let attended = attended(&self.modulated(x, rows, modulation, form));
                self.kernels
                    .add_gated(x, attended, &rows.gate, &modulation.runs);
            }
            None => {
                let attended = attended(&self.kernels.input(rms_norm(x, self.eps), form));
                let _ = x.g_add_(&attended);
            }
        }
    }

    /// Modulates a context `[B, S, D]` by the noise level of the pass, where the model does that.
    fn prompted(&self, context: &Tensor, modulation: &Modulation) -> Tensor {
        let (Some(table), Some(prompt)) = (&self.prompt_table, &modulation.prompt) else {
            return context.shallow_clone();
        };
        let rows = rows(table, prompt);
        let mut modulated = context * (rows.get(1) + 1.0);
        let _ = modulated.g_add_(&rows.get(0));
        modulated
    }

    pub(crate) fn feed_forward(&self, x: &mut Tensor, rows: &StreamRows, modulation: &Modulation) {
        let normed = self.modulated(x, &rows.ff, modulation, self.ff.form());
        let output = self.ff.forward(&normed);
        drop(normed);
        self.kernels
            .add_gated(x, output, &rows.ff.gate, &modulation.runs);
    }

    fn modulated(
        &self,
        x: &Tensor,
        rows: &Rows,
        modulation: &Modulation,
        form: Form,
    ) -> Activations {
        let (scale, shift) = (&rows.scale, &rows.shift);
        self.kernels
            .modulated(x, self.eps, scale, shift, &modulation.runs, form)
    }
}

/// Adds the pass's modulation `[rows, B, runs, D]` to a block's table `[rows, D]`.
fn rows(table: &Tensor, modulation: &Tensor) -> Tensor {
    table.unsqueeze(1).unsqueeze(1) + modulation
}

fn index(i: usize) -> i64 {
    i64::try_from(i).expect("a handful of rows")
}
