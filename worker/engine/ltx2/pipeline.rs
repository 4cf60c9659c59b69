//! One request, end to end: from a prompt, and perhaps a picture or the segment before, to frames, sound and what the next
//! segment continues from.
//!
//! The caller gives a [`Request`] and takes what comes out through an [`Output`]. Everything that the model cannot do is
//! refused before anything is computed. Running out of memory panics, as libtorch does; the caller catches that.
//!
//! - `request`: what can be asked for, and what comes back;
//! - `plan`: sizes, levels, kept parts and trims of one request, or why it is refused;
//! - `stage`: the denoising loop.

mod plan;
mod request;
mod stage;

use std::num::NonZeroUsize;

use lru::LruCache;
use tch::{Device, IndexOp, Kind, Tensor};

use self::plan::{Plan, StagePlan};
pub use self::request::{
    Conditioning, Continuation, GenerateError, Latents, Output, OutputError, Request, Settings,
    Stage, Stages, Start, Step,
};
use crate::audio_vae::AudioVae;
use crate::mel::MelSpectrogram;
use crate::pixels::from_rgb8;
use crate::sampling::latents::{self, VideoGrid};
use crate::sampling::noise::{self, Noise};
use crate::sampling::schedule::Scheduler;
use crate::text::TextEncoder;
use crate::transformer::{self, TextContext, Transformer};
use crate::upsampler::Upsampler;
use crate::video_vae::VideoVae;
use crate::vocoder::Vocoder;

/// The parts of a checkpoint, all on one device.
#[derive(Debug)]
pub struct Parts {
    pub text: TextEncoder,
    pub transformer_config: transformer::Config,
    pub transformer: Transformer,
    pub video_vae: VideoVae,
    /// None where the checkpoint has no second stage.
    pub upsampler: Option<Upsampler>,
    pub audio_vae: AudioVae,
    pub vocoder: Vocoder,
    pub scheduler: Scheduler,
    pub device: Device,
}

/// A model that makes segments.
#[derive(Debug)]
pub struct Pipeline {
    parts: Parts,
    settings: Settings,
    /// Encodes the played sound again, where the settings ask for that.
    mel: Option<MelSpectrogram>,
    /// Keys and values of the latest prompts; they do not depend on the noise level.
    texts: LruCache<String, TextContext>,
}

/// Parts or settings that do not go together.
#[derive(Debug, thiserror::Error)]
#[error("{what}: expected {expected}, given {given}")]
pub struct PipelineError {
    pub what: &'static str,
    pub expected: String,
    pub given: String,
}

impl Pipeline {
    /// # Errors
    /// When the parts are not of one model, or the settings ask for what these parts cannot do.
    pub fn new(parts: Parts, settings: Settings) -> Result<Self, PipelineError> {
        check_parts(&parts)?;
        settings.check(&parts)?;
        // Base weights go back and forth between the prompt and the negative one.
        let prompts = match parts.scheduler {
            Scheduler::Distilled => 1,
            Scheduler::Base(_) => 2,
        };
        let prompts = NonZeroUsize::new(prompts).expect("one or two");
        let mel = settings
            .audio_reencode
            .then(|| MelSpectrogram::new(parts.audio_vae.config(), parts.device));
        Ok(Self {
            parts,
            settings,
            mel,
            texts: LruCache::new(prompts),
        })
    }

    /// Samples per second and channel of the sound.
    pub fn sample_rate(&self) -> i64 {
        self.parts.vocoder.config().output_sampling_rate
    }

    pub fn audio_channels(&self) -> i64 {
        self.parts.vocoder.config().out_channels
    }

    /// Refuses what the model cannot do, without computing anything.
    ///
    /// # Errors
    /// [`GenerateError::Refused`] and [`GenerateError::State`], naming what was wrong.
    pub fn check(&self, request: &Request<'_>) -> Result<(), GenerateError> {
        Plan::new(request, &self.parts, &self.settings).map(|_| ())
    }

    /// Makes one segment: reports steps, hands out the sound, then the frames in order. Returns what the next segment
    /// continues from. The result depends on the request alone.
    ///
    /// # Errors
    /// As [`Self::check`]; [`GenerateError::Cancelled`] as soon as the output says so.
    ///
    /// # Panics
    /// Where libtorch does: out of memory, a device that fails.
    pub fn generate(
        &mut self,
        request: &Request<'_>,
        output: &mut dyn Output,
    ) -> Result<Continuation, GenerateError> {
        let plan = Plan::new(request, &self.parts, &self.settings)?;
        let grids: Vec<_> = plan.stages.iter().map(|s| (s.grid, plan.audio)).collect();
        let noise = noise::draw(request.seed, self.settings.draw_order, &grids);
        tch::no_grad(|| self.run(request, &plan, &noise, output))
    }

    /// Generates from the given noise, one for each stage, instead of the seed's noise.
    ///
    /// # Errors
    /// As [`Self::generate`].
    ///
    /// # Panics
    /// As [`Self::generate`]; where the noise has other sizes than the request.
    pub fn generate_from(
        &mut self,
        request: &Request<'_>,
        noise: &[Noise],
        output: &mut dyn Output,
    ) -> Result<Continuation, GenerateError> {
        let plan = Plan::new(request, &self.parts, &self.settings)?;
        tch::no_grad(|| self.run(request, &plan, noise, output))
    }

    fn run(
        &mut self,
        request: &Request<'_>,
        plan: &Plan,
        noise: &[Noise],
        output: &mut dyn Output,
    ) -> Result<Continuation, GenerateError> {
        let negative = request.negative_prompt.unwrap_or_default();
        self.prepare(request.prompt)?;
        if plan.guidance.uses_negative() {
            self.prepare(negative)?;
        }
        let texts = stage::Texts {
            positive: self.text(request.prompt),
            negative: plan.guidance.uses_negative().then(|| self.text(negative)),
        };
        let audio_clean = self.audio_clean(request, plan);
        let mut latents: Option<(Latents, VideoGrid)> = None;
        for (stage, noise) in plan.stages.iter().zip(noise) {
            let start = latents.take().map(|(done, grid)| Latents {
                video: self.upsampled(&done.video, &grid, &stage.grid),
                audio: done.audio,
            });
            let clean = stage::Clean {
                video: self.video_clean(request, stage),
                audio: audio_clean.as_ref().map(Tensor::shallow_clone),
            };
            let run = stage::Run {
                parts: &self.parts,
                positions: self.settings.positions,
                plan,
                stage,
                texts: &texts,
                clean: &clean,
            };
            latents = Some((run.denoise(noise, start, output)?, stage.grid));
        }
        let (latents, grid) = latents.expect("a plan has a stage");
        self.hand_out(plan, &latents, &grid, output)
    }

    /// Computes what the transformer needs of a prompt, unless it is there.
    fn prepare(&mut self, prompt: &str) -> Result<(), GenerateError> {
        let prompt = prompt.trim();
        if self.texts.get(prompt).is_none() {
            let contexts = self.parts.text.encode(prompt)?;
            // The room is made first, since computing the new context may need the memory.
            while self.texts.len() >= self.texts.cap().get() {
                self.texts.pop_lru();
            }
            let text = self
                .parts
                .transformer
                .text(&contexts.video, &contexts.audio);
            self.texts.put(prompt.to_owned(), text);
        }
        Ok(())
    }

    /// The prompt's context, which [`Self::prepare`] has computed.
    fn text(&self, prompt: &str) -> &TextContext {
        let text = self.texts.peek(prompt.trim());
        text.expect("prepared before, and there is room for all that a request needs")
    }

    /// The picture's conditioning as tokens `[1, kept, C]`: the start of the clip.
    fn video_clean(&self, request: &Request<'_>, stage: &StagePlan) -> Option<Tensor> {
        let frames = request.start.frames()?.to_device(self.parts.device);
        let pixels = from_rgb8(&frames, stage.height, stage.width);
        Some(latents::pack_video(&self.parts.video_vae.encode(&pixels)))
    }

    /// The sound's conditioning as tokens `[1, kept, D]`: the start of the sound.
    fn audio_clean(&self, request: &Request<'_>, plan: &Plan) -> Option<Tensor> {
        let cached = request.start.audio_latents()?; // [1, C, T, M]
        let (first, kept) = (cached.size()[2] - plan.kept_audio, plan.kept_audio);
        let cached = cached.narrow(2, first, kept).to_kind(Kind::Float);
        Some(latents::pack_audio(&cached).to_device(self.parts.device))
    }

    /// A stage's latents at the size of the next one.
    fn upsampled(&self, video: &Tensor, from: &VideoGrid, to: &VideoGrid) -> Tensor {
        let upsampler = self.parts.upsampler.as_ref();
        let upsampler =
            upsampler.expect("a plan has a second stage only where there is an upsampler");
        let vae = &self.parts.video_vae;
        let small = vae.unnormalize(&latents::unpack_video(video, from));
        let large = vae.normalize(&upsampler.forward(&small));
        debug_assert_eq!(large.size(), to.shape());
        latents::pack_video(&large)
    }

    /// Decodes sound and frames.
    fn hand_out(
        &self,
        plan: &Plan,
        latents: &Latents,
        grid: &VideoGrid,
        output: &mut dyn Output,
    ) -> Result<Continuation, GenerateError> {
        cancelled(output)?;
        let mut audio = latents::unpack_audio(&latents.audio, &plan.audio);
        let waveform = self.waveform(&audio);
        output.sound(&interleaved(&cut(&waveform, plan)))?;
        if let Some(mel) = &self.mel {
            audio = self
                .parts
                .audio_vae
                .encode(&mel.forward(&waveform, self.sample_rate()));
        }
        drop(waveform);

        let mut kept = KeptFrames::new(plan);
        let mut next = 0;
        let video = latents::unpack_video(&latents.video, grid);
        self.parts.video_vae.decode_streaming(
            &video,
            &self.settings.tiling,
            &mut |frames: &Tensor| -> Result<(), GenerateError> {
                cancelled(output)?;
                let count = frames.size()[0];
                kept.take(next, frames);
                let trimmed = (plan.trimmed_frames - next).clamp(0, count);
                next += count;
                if trimmed < count {
                    output.frames(&frames.i(trimmed..))?;
                }
                Ok(())
            },
        )?;
        Ok(Continuation {
            frames: kept.finish(),
            audio_latents: Some(audio.to_device(Device::Cpu)),
            audio_num_frames: plan.next_audio_num_frames,
            video_position_offset_sec: plan.next_video_offset,
        })
    }

    /// The sound of normalized latents, `[1, channels, samples]`.
    fn waveform(&self, audio: &Tensor) -> Tensor {
        self.parts
            .vocoder
            .forward(&self.parts.audio_vae.decode(audio))
    }
}

/// A segment's sound without what belongs to the segment before, and no longer than the picture.
fn cut(waveform: &Tensor, plan: &Plan) -> Tensor {
    let samples = waveform.size()[2];
    let first = plan.trimmed_samples.min(samples);
    waveform.narrow(2, first, (samples - first).min(plan.samples))
}

/// `[1, channels, samples]` as sample after sample of all channels.
fn interleaved(waveform: &Tensor) -> Vec<f32> {
    let samples = waveform.squeeze_dim(0).transpose(0, 1);
    let samples = samples.to_device(Device::Cpu).to_kind(Kind::Float);
    Vec::try_from(samples.contiguous().view(-1)).expect("float32 on the CPU, one axis")
}

/// The frames that the next segment starts with, on the CPU.
struct KeptFrames {
    first: i64,
    end: i64,
    pieces: Vec<Tensor>,
}

impl KeptFrames {
    fn new(plan: &Plan) -> Self {
        Self {
            first: plan.next_frames.start,
            end: plan.next_frames.end,
            pieces: Vec::new(),
        }
    }

    /// Looks through frames of which the first is frame `at` of the clip.
    fn take(&mut self, at: i64, frames: &Tensor) {
        let count = frames.size()[0];
        let first = (self.first - at).clamp(0, count);
        let end = (self.end - at).clamp(0, count);
        if first < end {
            // A copy, on the CPU too: a view would keep the whole clip.
            self.pieces
                .push(frames.i(first..end).to_device(Device::Cpu).copy());
        }
    }

    /// `[n, H, W, 3]`.
    fn finish(self) -> Option<Tensor> {
        (!self.pieces.is_empty()).then(|| Tensor::cat(&self.pieces, 0))
    }
}

fn cancelled(output: &dyn Output) -> Result<(), GenerateError> {
    match output.cancelled() {
        true => Err(GenerateError::Cancelled),
        false => Ok(()),
    }
}

/// Checks that the parts are of one model.
fn check_parts(parts: &Parts) -> Result<(), PipelineError> {
    let (config, vae) = (&parts.transformer_config, parts.video_vae.config());
    let audio = parts.audio_vae.config();
    let [time, rows, columns] = config.vae_scale_factors;
    for (what, expected, given) in [
        (
            "video VAE's latent channels",
            config.in_channels,
            vae.latent_channels,
        ),
        ("video VAE's rows of a latent", rows, vae.spatial_ratio()),
        (
            "video VAE's columns of a latent",
            columns,
            vae.spatial_ratio(),
        ),
        ("video VAE's frames of a latent", time, vae.temporal_ratio()),
        (
            "audio VAE's values of a latent",
            config.audio_in_channels,
            audio.latent_channels * audio.latent_mel_bins(),
        ),
        (
            "audio VAE's sampling rate",
            config.audio_sampling_rate,
            audio.sample_rate,
        ),
        (
            "audio VAE's hop length",
            config.audio_hop_length,
            audio.mel_hop_length,
        ),
        (
            "audio VAE's rows of a latent",
            config.audio_scale_factor,
            audio.compression_ratio(),
        ),
        (
            "vocoder's mel bins",
            audio.channels * audio.mel_bins,
            parts.vocoder.config().in_channels,
        ),
    ] {
        if expected != given {
            return Err(PipelineError {
                what,
                expected: expected.to_string(),
                given: given.to_string(),
            });
        }
    }
    Ok(())
}
