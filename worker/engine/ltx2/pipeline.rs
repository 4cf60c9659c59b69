//! Generates one segment from start to end: from a prompt, and perhaps an image or the segment before, to frames, sound
//! and the continuation state of the next segment.
//!
//! The caller passes a [`Request`] and receives the results through an [`Output`]. Everything that the model cannot do
//! is refused before anything is computed. Running out of memory panics, as in libtorch; the caller catches that.
//!
//! - `request`: requests, settings and results;
//! - `plan`: sizes, noise levels, kept parts and trims of one request, or why it is refused;
//! - `stage`: the denoising loop.

mod plan;
mod request;
mod stage;

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lru::LruCache;
use tch::{Device, IndexOp, Kind, Tensor};

use self::plan::{Plan, StagePlan};
pub use self::request::{
    Conditioning, Continuation, GenerateError, Latents, Output, OutputError, Previews, Request,
    Resume, Settings, Stage, Stages, Start, Step,
};
use self::stage::Begin;
use crate::adapters::Adapters;
use crate::audio_vae::AudioVae;
use crate::mel::MelSpectrogram;
use crate::pixels::from_rgb8;
use crate::preview::{self, PreviewDecoder};
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
    /// The adapters of the transformer and of the connectors.
    pub adapters: Adapters,
    pub text: TextEncoder,
    pub transformer_config: transformer::Config,
    pub transformer: Transformer,
    pub video_vae: VideoVae,
    /// The upsampler; `None` when the checkpoint has no second stage.
    pub upsampler: Option<Upsampler>,
    /// The preview decoder; `None` when segments have no previews.
    pub preview_decoder: Option<PreviewDecoder>,
    pub audio_vae: AudioVae,
    pub vocoder: Vocoder,
    pub scheduler: Scheduler,
    pub device: Device,
}

/// A model that generates segments.
#[derive(Debug)]
pub struct Pipeline {
    parts: Parts,
    settings: Settings,
    /// Encodes the played sound again, if the settings ask for that.
    mel: Option<MelSpectrogram>,
    /// An LRU cache of what the transformer attends to, by prompt and by the key of the adapters that act.
    texts: LruCache<(String, String), TextContext>,
}

/// The error for parts or settings that do not fit together.
#[derive(Debug, thiserror::Error)]
#[error("{what}: expected {expected}, given {given}")]
pub struct PipelineError {
    pub what: &'static str,
    pub expected: String,
    pub given: String,
}

impl Pipeline {
    /// # Errors
    /// Returns an error when the parts are not of one model, or the settings ask for something that these parts cannot
    /// do.
    pub fn new(parts: Parts, settings: Settings) -> Result<Self, PipelineError> {
        check_parts(&parts)?;
        settings.check(&parts)?;
        // Base weights alternate between the prompt and the negative prompt.
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

    /// Returns the sample rate of the sound in Hz.
    pub fn sample_rate(&self) -> i64 {
        self.parts.vocoder.config().output_sampling_rate
    }

    pub fn audio_channels(&self) -> i64 {
        self.parts.vocoder.config().generator.out_channels
    }

    /// Returns the adapters that are loaded.
    pub fn adapters(&self) -> &Adapters {
        &self.parts.adapters
    }

    /// Returns the adapters, to load and unload some between two segments.
    pub fn adapters_mut(&mut self) -> &mut Adapters {
        &mut self.parts.adapters
    }

    /// Refuses what the model cannot do, without computing anything.
    ///
    /// # Errors
    /// Returns [`GenerateError::Refused`] or [`GenerateError::State`], which name what is wrong.
    pub fn check(&self, request: &Request<'_>) -> Result<(), GenerateError> {
        self.parts.adapters.check(request.adapters)?;
        Plan::new(request, &self.parts, &self.settings).map(|_| ())
    }

    /// Generates one segment: reports steps, and passes out the sound, then the frames in order. Returns the state that
    /// the next segment continues from. The result depends on the request alone.
    ///
    /// # Errors
    /// Returns the errors of [`Self::check`], and [`GenerateError::Cancelled`] as soon as the output is cancelled.
    ///
    /// # Panics
    /// Panics where libtorch does: when memory runs out or the device fails.
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

    /// Generates from the given noise, one for each stage, instead of noise drawn from the seed.
    ///
    /// # Errors
    /// Returns the errors of [`Self::generate`].
    ///
    /// # Panics
    /// Panics in the cases of [`Self::generate`], and when the noise has other sizes than the request.
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
        self.parts.adapters.choose(request.adapters)?;
        let negative = request.negative_prompt.unwrap_or_default();
        let uses_negative = plan.guidance.uses_negative();
        let positive = self.prepare(request.prompt)?;
        let negative = uses_negative.then(|| self.prepare(negative)).transpose()?;
        let texts = stage::Texts {
            positive: self.text(&positive),
            negative: negative.as_ref().map(|key| self.text(key)),
        };
        let audio_clean = self.audio_clean(request, plan);
        let mut latents: Option<(Latents, VideoGrid)> = None;
        for (stage, noise) in plan.stages.iter().zip(noise) {
            let resume = request.resume.filter(|resume| resume.stage == stage.stage);
            let begin = match (resume, latents.take()) {
                (Some(resume), _) => Begin::Step(resume.step, self.on_device(resume.latents)),
                // The first stage was finished before the step to go on from.
                (None, None) if request.resume.is_some() => continue,
                (None, None) => Begin::Noise,
                (None, Some((done, grid))) => {
                    self.preview(plan, &done.video, &grid, output);
                    Begin::Stage(Latents {
                        video: self.upsampled(&done.video, &grid, &stage.grid),
                        audio: done.audio,
                    })
                }
            };
            let clean = stage::Clean {
                video: self.video_clean(request, stage),
                audio: audio_clean.as_ref().map(Tensor::shallow_clone),
            };
            let run = stage::Run {
                parts: &self.parts,
                settings: &self.settings,
                plan,
                stage,
                texts: &texts,
                clean: &clean,
            };
            latents = Some((run.denoise(noise, begin, output)?, stage.grid));
        }
        let (latents, grid) = latents.expect("a plan has a stage");
        self.hand_out(plan, &latents, &grid, output)
    }

    /// Computes the transformer's context of a prompt, unless it is cached. Returns its key.
    fn prepare(&mut self, prompt: &str) -> Result<(String, String), GenerateError> {
        let adapters = &self.parts.adapters;
        let key = (prompt.trim().to_owned(), adapters.key());
        if self.texts.get(&key).is_none() {
            let contexts = self.parts.text.encode(prompt, &adapters.key_of_text())?;
            // Old entries are dropped first, since computing the new context may need their memory.
            while self.texts.len() >= self.texts.cap().get() {
                self.texts.pop_lru();
            }
            let text = self
                .parts
                .transformer
                .text(&contexts.video, &contexts.audio);
            self.texts.put(key.clone(), text);
        }
        Ok(key)
    }

    /// Returns the context that [`Self::prepare`] has computed.
    fn text(&self, key: &(String, String)) -> &TextContext {
        let text = self.texts.peek(key);
        text.expect("prepared before, and there is room for all that a request needs")
    }

    fn on_device(&self, latents: &Latents) -> Latents {
        let move_there = |x: &Tensor| x.to_device(self.parts.device);
        Latents {
            video: move_there(&latents.video),
            audio: move_there(&latents.audio),
        }
    }

    /// Returns the picture's conditioning, the start of the clip, as tokens `[1, kept, C]`.
    fn video_clean(&self, request: &Request<'_>, stage: &StagePlan) -> Option<Tensor> {
        let frames = request.start.frames()?.to_device(self.parts.device);
        let pixels = from_rgb8(&frames, stage.height, stage.width);
        Some(latents::pack_video(&self.parts.video_vae.encode(&pixels)))
    }

    /// Returns the sound's conditioning, the start of the sound, as tokens `[1, kept, D]`.
    fn audio_clean(&self, request: &Request<'_>, plan: &Plan) -> Option<Tensor> {
        let cached = request.start.audio_latents()?; // [1, C, T, M]
        let (first, kept) = (cached.size()[2] - plan.kept_audio, plan.kept_audio);
        let cached = cached.narrow(2, first, kept).to_kind(Kind::Float);
        Some(latents::pack_audio(&cached).to_device(self.parts.device))
    }

    /// Passes out pictures of a finished stage's latents, if the output takes them. The segment does not depend on them, and
    /// goes on without them where they fail.
    fn preview(&self, plan: &Plan, video: &Tensor, grid: &VideoGrid, output: &mut dyn Output) {
        let Some(decoder) = &self.parts.preview_decoder else {
            return;
        };
        if !output.takes_previews() || output.cancelled() {
            return;
        }
        let num_frames = plan.clip_frames - plan.trimmed_frames;
        let shown = preview::spread(num_frames, self.settings.preview_frames);
        let frames: Vec<i64> = shown.iter().map(|n| n + plan.trimmed_frames).collect();
        // libtorch panics, for example when memory runs out.
        let passed = catch_unwind(AssertUnwindSafe(|| {
            let latents = latents::unpack_video(video, grid);
            output.previews(&Previews {
                rgb8: &decoder.decode_rgb8(&latents, &frames),
                positions: &shown,
                num_frames,
            });
        }));
        if passed.is_err() {
            tracing::warn!("a segment has no previews, since decoding them failed");
        }
    }

    /// Returns a stage's latents at the size of the next stage.
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

    /// Decodes the sound and the frames, and passes them to the output.
    fn hand_out(
        &self,
        plan: &Plan,
        latents: &Latents,
        grid: &VideoGrid,
        output: &mut dyn Output,
    ) -> Result<Continuation, GenerateError> {
        cancelled(output)?;
        output.begin_decoding();
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
        let before_cut = audio.size()[2] - plan.cut_audio;
        let audio = audio.narrow(2, 0, before_cut.max(1));

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
            generation: Some(self.parts.transformer_config.generation),
        })
    }

    /// Decodes normalized latents to samples, `[1, channels, samples]`.
    fn waveform(&self, audio: &Tensor) -> Tensor {
        self.parts
            .vocoder
            .forward(&self.parts.audio_vae.decode(audio))
    }
}

/// Cuts off the samples that belong to the segment before, and those beyond the end of the picture.
fn cut(waveform: &Tensor, plan: &Plan) -> Tensor {
    let samples = waveform.size()[2];
    let first = plan.trimmed_samples.min(samples);
    waveform.narrow(2, first, (samples - first).min(plan.samples))
}

/// Interleaves the channels of `[1, channels, samples]`.
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

    /// Takes the frames to keep out of `frames`, the first of which is frame `at` of the clip.
    fn take(&mut self, at: i64, frames: &Tensor) {
        let count = frames.size()[0];
        let first = (self.first - at).clamp(0, count);
        let end = (self.end - at).clamp(0, count);
        if first < end {
            // The frames are copied on the CPU too, because a view would keep the whole clip in memory.
            self.pieces
                .push(frames.i(first..end).to_device(Device::Cpu).copy());
        }
    }

    /// Returns the kept frames, `[n, H, W, 3]`.
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
    let generation = config.generation;
    for (what, given) in [
        (
            "generation of the text encoder's connectors",
            parts.text.generation(),
        ),
        (
            "generation of the vocoder",
            parts.vocoder.config().generation(),
        ),
    ] {
        if given != generation {
            return Err(PipelineError {
                what,
                expected: format!("{generation}, as the transformer is"),
                given: given.to_string(),
            });
        }
    }
    if let Some(upsampler) = &parts.upsampler
        && !upsampler.config().doubles_pictures()
    {
        return Err(PipelineError {
            what: "latent upsampler",
            expected: "one that doubles rows and columns".to_owned(),
            given: format!("{:?}", upsampler.config().growth),
        });
    }
    if let Some(decoder) = &parts.preview_decoder {
        for (what, expected, given) in [
            (
                "preview decoder's latent channels",
                vae.latent_channels,
                decoder.latent_channels(),
            ),
            (
                "rows of a latent, for the preview decoder",
                preview::SPATIAL_RATIO,
                vae.spatial_ratio(),
            ),
            (
                "frames of a latent, for the preview decoder",
                preview::TEMPORAL_RATIO,
                vae.temporal_ratio(),
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
    }
    let [width, audio_width] = config.context_widths();
    let [given_width, given_audio_width] = parts.text.widths();
    let [time, rows, columns] = config.vae_scale_factors;
    for (what, expected, given) in [
        ("video connector's width", width, given_width),
        ("audio connector's width", audio_width, given_audio_width),
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
            parts.vocoder.config().generator.in_channels,
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
