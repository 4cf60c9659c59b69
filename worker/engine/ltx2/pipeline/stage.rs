//! The denoising loop of one stage.

use tch::Tensor;

use super::plan::{Plan, StagePlan};
use super::{GenerateError, Latents, Output, Parts, Settings, Step, cancelled};
use crate::sampling;
use crate::sampling::guidance::Others;
use crate::sampling::latents::{lay_over, noised};
use crate::sampling::noise::Noise;
use crate::transformer::{Geometry, Inputs, NoiseLevels, RotaryTables, TextContext};

/// The contexts that a stage attends to.
pub(super) struct Texts<'a> {
    pub(super) positive: &'a TextContext,
    /// The context of the negative prompt, if the guidance needs one.
    pub(super) negative: Option<&'a TextContext>,
}

/// The conditioning tokens that are given: the first ones of each stream.
pub(super) struct Clean {
    /// The video tokens, `[1, kept, C]`.
    pub(super) video: Option<Tensor>,
    /// The audio tokens, `[1, kept, D]`.
    pub(super) audio: Option<Tensor>,
}

/// What a pass of the transformer predicts for the guidance.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Plain,
    /// Some blocks' tokens see themselves alone.
    Perturbed,
    /// The streams do not see each other.
    Isolated,
}

/// One stage of one request.
pub(super) struct Run<'a> {
    pub(super) parts: &'a Parts,
    pub(super) settings: &'a Settings,
    pub(super) plan: &'a Plan,
    pub(super) stage: &'a StagePlan,
    pub(super) texts: &'a Texts<'a>,
    pub(super) clean: &'a Clean,
}

/// What a stage begins with.
pub(super) enum Begin {
    /// Pure noise.
    Noise,
    /// The latents of the stage before, at this one's size; noise is added to them.
    Stage(Latents),
    /// The latents after this many steps of the stage.
    Step(usize, Latents),
}

impl Run<'_> {
    /// Denoises to clean latents.
    pub(super) fn denoise(
        &self,
        noise: &Noise,
        begin: Begin,
        output: &mut dyn Output,
    ) -> Result<Latents, GenerateError> {
        output.begin(self.stage.stage);
        let sigmas = &self.stage.sigmas;
        let tables = self.tables();
        let (done, mut x) = match begin {
            Begin::Noise => (0, self.first(noise, None, sigmas[0])),
            Begin::Stage(start) => (0, self.first(noise, Some(start), sigmas[0])),
            Begin::Step(done, latents) => (done, latents),
        };
        let total_steps = sigmas.len() - 1;
        for (i, pair) in sigmas.windows(2).enumerate().skip(done) {
            cancelled(output)?;
            let (sigma, next) = (pair[0], pair[1]);
            let x0 = self.given(self.predict(&x, sigma, &tables));
            x = Latents {
                video: sampling::euler(&x.video, &x0.video, sigma, next),
                audio: sampling::euler(&x.audio, &x0.audio, sigma, next),
            };
            output.step(&Step {
                stage: self.stage.stage,
                step: i + 1,
                total_steps,
                latents: &x,
            });
        }
        Ok(x)
    }

    fn tables(&self) -> RotaryTables {
        let grid = &self.stage.grid;
        let geometry = Geometry {
            grid: [grid.frames, grid.height, grid.width],
            audio_latents: self.plan.audio.frames,
            fps: self.plan.fps,
            video_offset: self.plan.video_offset,
            positions: self.settings.positions,
        };
        let Parts {
            transformer,
            transformer_config,
            device,
            ..
        } = self.parts;
        RotaryTables::new(
            transformer_config,
            &geometry,
            *device,
            transformer.kernels(),
        )
    }

    fn first(&self, noise: &Noise, start: Option<Latents>, sigma: f32) -> Latents {
        let device = self.parts.device;
        let (video, audio) = match &start {
            Some(start) => (Some(&start.video), Some(&start.audio)),
            None => (None, None),
        };
        self.given(Latents {
            video: noised(&noise.video.to_device(device), sigma, video),
            audio: noised(&noise.audio.to_device(device), sigma, audio),
        })
    }

    /// Returns the latents with the conditioning tokens in their place.
    fn given(&self, latents: Latents) -> Latents {
        Latents {
            video: lay_over(latents.video, self.clean.video.as_ref()),
            audio: lay_over(latents.audio, self.clean.audio.as_ref()),
        }
    }

    /// Predicts the clean latents with guidance.
    fn predict(&self, x: &Latents, sigma: f32, tables: &RotaryTables) -> Latents {
        let guidance = &self.plan.guidance;
        let pass = |text, kind| self.x0(x, sigma, tables, text, kind);
        let positive = self.texts.positive;
        let plain = pass(positive, Pass::Plain);
        let negative = self.texts.negative.map(|text| pass(text, Pass::Plain));
        let perturbed = guidance
            .uses_perturbed()
            .then(|| pass(positive, Pass::Perturbed));
        let isolated = guidance
            .uses_isolated()
            .then(|| pass(positive, Pass::Isolated));
        let others = |of: fn(&Latents) -> &Tensor| Others {
            negative: negative.as_ref().map(of),
            perturbed: perturbed.as_ref().map(of),
            isolated: isolated.as_ref().map(of),
        };
        Latents {
            video: guidance.video.apply(&plain.video, &others(|x| &x.video)),
            audio: guidance.audio.apply(&plain.audio, &others(|x| &x.audio)),
        }
    }

    /// Predicts the clean latents by one pass of the transformer.
    fn x0(
        &self,
        x: &Latents,
        sigma: f32,
        tables: &RotaryTables,
        text: &TextContext,
        pass: Pass,
    ) -> Latents {
        let sigma = f64::from(sigma);
        let generation = self.parts.transformer_config.generation;
        let velocity = self.parts.transformer.forward(&Inputs {
            video: &x.video,
            audio: &x.audio,
            video_levels: &levels(&x.video, self.clean.video.as_ref(), sigma),
            audio_levels: &levels(&x.audio, self.clean.audio.as_ref(), sigma),
            tables,
            text,
            cross_modal_levels: self.settings.cross_modal_levels(generation),
            isolate_modalities: pass == Pass::Isolated,
            perturbed_blocks: match pass {
                Pass::Perturbed => &self.settings.perturbed_blocks,
                Pass::Plain | Pass::Isolated => &[],
            },
        });
        Latents {
            video: &x.video - velocity.video * sigma,
            audio: &x.audio - velocity.audio * sigma,
        }
    }
}

/// Returns level 0 for the given tokens and `sigma` for the rest.
fn levels(x: &Tensor, clean: Option<&Tensor>, sigma: f64) -> NoiseLevels {
    let kept = clean.map_or(0, |clean| clean.size()[1]);
    NoiseLevels::kept(kept, x.size()[1], sigma)
}
