//! Guidance for base weights: combines several predictions of the clean latents.
//!
//! Follows diffusers 0.42.1, `pipelines/ltx2/pipeline_ltx2.py`.

use tch::Tensor;

use crate::generation::Generation;

/// The strengths of guidance for one stream. Text 1, perturbed 0, modality 1 and rescale 0 mean no guidance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// The strength away from the negative prompt's prediction.
    pub text: f64,
    /// The strength away from the prediction in which some blocks' tokens see themselves alone.
    pub perturbed: f64,
    /// The strength away from the prediction without the other stream.
    pub modality: f64,
    /// The share of the prediction's own deviation that is restored, 0 to 1.
    pub rescale: f64,
}

/// The guidance of both streams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidances {
    pub video: Guidance,
    pub audio: Guidance,
}

impl Guidances {
    pub const NONE: Self = Self {
        video: Guidance::NONE,
        audio: Guidance::NONE,
    };

    /// Creates the guidance from the single number that requests have: 1 is no guidance, 3 is the value that the
    /// model's authors use. The sound's scale stays in proportion to the picture's.
    pub fn of_scale(scale: f64, generation: Generation) -> Self {
        if scale == 1.0 {
            return Self::NONE;
        }
        let (mut video, mut audio) = (Guidance::VIDEO, Guidance::AUDIO);
        if generation == Generation::V2_3 {
            (video.perturbed, audio.perturbed) = (1.0, 1.0);
        }
        let proportion = (audio.text - 1.0) / (video.text - 1.0);
        video.text = scale;
        audio.text = 1.0 + (scale - 1.0) * proportion;
        Self { video, audio }
    }

    /// Returns whether the negative prompt has an effect.
    pub fn uses_negative(&self) -> bool {
        self.video.text != 1.0 || self.audio.text != 1.0
    }

    /// Returns whether there is also a prediction with perturbed attention.
    pub fn uses_perturbed(&self) -> bool {
        self.video.perturbed != 0.0 || self.audio.perturbed != 0.0
    }

    /// Returns whether picture and sound are also predicted separately.
    pub fn uses_isolated(&self) -> bool {
        self.video.modality != 1.0 || self.audio.modality != 1.0
    }
}

/// The other predictions of a step, as far as the guidance needs them.
#[derive(Debug)]
pub struct Others<'a> {
    /// The prediction with the negative prompt.
    pub negative: Option<&'a Tensor>,
    /// The prediction in which some blocks' tokens see themselves alone.
    pub perturbed: Option<&'a Tensor>,
    /// The prediction with picture and sound kept separate.
    pub isolated: Option<&'a Tensor>,
}

impl Guidance {
    pub const NONE: Self = Self {
        text: 1.0,
        perturbed: 0.0,
        modality: 1.0,
        rescale: 0.0,
    };
    /// The values that the model's authors use for the picture of base weights of LTX-2.0.
    pub const VIDEO: Self = Self {
        text: 3.0,
        perturbed: 0.0,
        modality: 3.0,
        rescale: 0.7,
    };
    /// The values that the model's authors use for the sound of base weights of LTX-2.0.
    pub const AUDIO: Self = Self {
        text: 7.0,
        perturbed: 0.0,
        modality: 3.0,
        rescale: 0.7,
    };

    /// Returns the guided prediction of the clean latents, from the plain one and the others.
    pub fn apply(&self, x0: &Tensor, others: &Others<'_>) -> Tensor {
        // This must be a copy, because the terms are added in place.
        let mut guided = x0.copy();
        if let Some(negative) = others.negative {
            guided += (x0 - negative) * (self.text - 1.0);
        }
        if let Some(perturbed) = others.perturbed {
            guided += (x0 - perturbed) * self.perturbed;
        }
        if let Some(isolated) = others.isolated {
            guided += (x0 - isolated) * (self.modality - 1.0);
        }
        if self.rescale > 0.0 {
            guided = self.rescaled(&guided, x0);
        }
        guided
    }

    fn rescaled(&self, guided: &Tensor, x0: &Tensor) -> Tensor {
        let deviation = |x: &Tensor| x.std_dim([1, 2].as_slice(), true, true);
        let restored = guided * (deviation(x0) / deviation(guided));
        restored * self.rescale + guided * (1.0 - self.rescale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_of_requests_leads_from_none_to_the_authors() {
        for generation in [Generation::V2_0, Generation::V2_3] {
            assert_eq!(Guidances::of_scale(1.0, generation), Guidances::NONE);
        }
        assert!(!Guidances::NONE.uses_negative() && !Guidances::NONE.uses_isolated());
        assert!(!Guidances::NONE.uses_perturbed());
        let authors = Guidances {
            video: Guidance::VIDEO,
            audio: Guidance::AUDIO,
        };
        assert_eq!(Guidances::of_scale(3.0, Generation::V2_0), authors);
        let newer = Guidances::of_scale(3.0, Generation::V2_3);
        assert_eq!((newer.video.perturbed, newer.audio.perturbed), (1.0, 1.0));
    }

    #[test]
    fn predictions_are_left_as_they_were() {
        let x0 = Tensor::from_slice(&[1.0, -2.0, 3.0]).view([1, 3, 1]);
        let before = x0.copy();
        let other = Tensor::from_slice(&[5.0, 5.0, 6.0]).view([1, 3, 1]);
        let others = Others {
            negative: Some(&other),
            perturbed: Some(&other),
            isolated: Some(&other),
        };
        let guided = Guidance::VIDEO.apply(&x0, &others);
        assert!(guided != before);
        assert_eq!(x0, before);
    }

    #[test]
    fn no_guidance_changes_nothing() {
        let x0 = Tensor::from_slice(&[1.0, -2.0, 3.0]).view([1, 3, 1]);
        let other = Tensor::from_slice(&[5.0, 5.0, 6.0]).view([1, 3, 1]);
        let others = Others {
            negative: Some(&other),
            perturbed: Some(&other),
            isolated: Some(&other),
        };
        assert_eq!(Guidance::NONE.apply(&x0, &others), x0);
    }
}
