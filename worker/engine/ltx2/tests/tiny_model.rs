//! The small trained model's picture and sound, where `TINY_MODEL` names its folder.

use fastvideo_ltx2::audio_vae::{self, AudioVae};
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pixels::{from_rgb8, to_rgb8};
use fastvideo_ltx2::video_vae::{self, Tiling, VideoVae};
use fastvideo_ltx2::vocoder::{self, Vocoder};
use tch::{Kind, Tensor};

use crate::reference::{Reference, check, tiny_model};
use crate::video_vae::check_rgb8;

const TOLERANCE: f64 = 2e-6;
const PROMPTS: [&str; 2] = ["0", "1"];

fn video_vae(model: &Reference) -> VideoVae {
    let config = video_vae::Config::library(&model.config("vae")).unwrap();
    let store = model.store("vae", Kind::Float);
    let vae = VideoVae::new(&config, &store.root(), &Kernels::Plain);
    store.finish().unwrap();
    vae
}

/// The frames of which rgb8 is kept: first, middle, last.
fn kept_frames(frames: &Tensor) -> Tensor {
    let last = frames.size()[0] - 1;
    frames.index_select(0, &Tensor::from_slice(&[0, last / 2, last]))
}

/// Tokens `[1, N, C]` as latents `[1, C, f, h, w]`.
fn latents(vae: &VideoVae, tokens: &Tensor, rgb8: &Tensor) -> Tensor {
    let (_, height, width, _) = rgb8.size4().unwrap();
    let (_, count, channels) = tokens.size3().unwrap();
    let ratio = vae.config().spatial_ratio();
    let (h, w) = (height / ratio, width / ratio);
    let frames = count / (h * w);
    tokens.transpose(1, 2).reshape([1, channels, frames, h, w])
}

#[test]
fn the_tiny_model_shows_what_the_reference_shows() {
    let Some((model, golden)) = tiny_model() else {
        return;
    };
    let vae = video_vae(&model);
    for prompt in PROMPTS {
        for segment in ["start", "continue"] {
            let expected = golden.get(&format!("{prompt}.{segment}.rgb8"));
            let tokens = golden.get(&format!("{prompt}.{segment}.final.video"));
            let latents = latents(&vae, tokens, expected);
            for tiling in [Tiling::Whole, Tiling::Grouped { frames: 4 }] {
                let frames = to_rgb8(&vae.decode(&latents, &tiling).unwrap());
                check_rgb8(&kept_frames(&frames), expected);
            }
        }
    }
}

#[test]
fn the_tiny_model_sees_its_last_frames_as_the_reference_does() {
    let Some((model, golden)) = tiny_model() else {
        return;
    };
    let vae = video_vae(&model);
    for prompt in PROMPTS {
        let kept = golden.get(&format!("{prompt}.continue.kept.rgb8"));
        let (_, height, width, _) = kept.size4().unwrap();
        let seen = vae.encode(&from_rgb8(kept, height, width));
        let tokens = seen.flatten(2, 4).transpose(1, 2);
        let expected = golden.get(&format!("{prompt}.continue.clean.video"));
        let expected = expected.narrow(1, 0, tokens.size()[1]);
        check(prompt, &tokens, &expected, TOLERANCE);
    }
}

#[test]
fn the_tiny_model_sounds_like_the_reference() {
    let Some((model, golden)) = tiny_model() else {
        return;
    };
    let config = audio_vae::Config::library(&model.config("audio_vae")).unwrap();
    let store = model.store("audio_vae", Kind::Float);
    let vae = AudioVae::new(&config, &store.root());
    store.finish().unwrap();
    let config = vocoder::Config::library(&model.config("vocoder")).unwrap();
    let store = model.store("vocoder", Kind::Float);
    let vocoder = Vocoder::new(&config, &store.root());
    store.finish().unwrap();
    for prompt in PROMPTS {
        let tokens = golden.get(&format!("{prompt}.start.final.audio"));
        let (_, length, _) = tokens.size3().unwrap();
        let channels = vae.config().latent_channels;
        let latents = tokens.reshape([1, length, channels, -1]).transpose(1, 2);
        let waveform = vocoder.forward(&vae.decode(&latents));
        let expected = golden.get(&format!("{prompt}.start.waveform"));
        let beginning = waveform.narrow(2, 0, expected.size()[2]);
        check(prompt, &beginning, expected, TOLERANCE);
    }
}
