//! From the last latents of a whole request to frames and sound, and the configurations of both layouts.

use fastvideo_ltx2::audio_vae::{self, AudioVae};
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pixels::to_rgb8;
use fastvideo_ltx2::upsampler::{self, Upsampler};
use fastvideo_ltx2::video_vae::{self, Tiling, VideoVae};
use fastvideo_ltx2::vocoder::{self, Vocoder};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::reference::{Reference, check};
use crate::video_vae::check_rgb8;

const TOLERANCE: f64 = 2e-6;

fn audio_vae(reference: &Reference) -> AudioVae {
    let config = audio_vae::Config::library(&reference.config("audio_vae")).unwrap();
    let store = reference.store("audio_vae", Kind::Float);
    let vae = AudioVae::new(&config, &store.root());
    store.finish().unwrap();
    vae
}

fn vocoder(reference: &Reference) -> Vocoder {
    let config = vocoder::Config::library(&reference.config("vocoder")).unwrap();
    // Whatever the model's type, the vocoder's is float32.
    let store = reference.store("vocoder", Kind::BFloat16);
    let vocoder = Vocoder::new(&config, &store.root());
    store.finish().unwrap();
    vocoder
}

fn video_vae(reference: &Reference) -> VideoVae {
    let config = video_vae::Config::library(&reference.config("vae")).unwrap();
    VideoVae::new(
        &config,
        &reference.store("vae", Kind::Float).root(),
        &Kernels::Plain,
    )
}

#[test]
fn upsamples_like_the_reference() {
    let reference = Reference::open();
    let config = upsampler::Config::library(&reference.config("latent_upsampler")).unwrap();
    let store = reference.store("latent_upsampler", Kind::Float);
    let upsampler = Upsampler::new(&config, &store.root());
    store.finish().unwrap();
    let golden = reference.golden("generate");
    let large = upsampler.forward(golden.get("stage1.video"));
    check("latents", &large, golden.get("upsample.video"), TOLERANCE);
}

#[test]
fn hears_and_speaks_like_the_reference() {
    let reference = Reference::open();
    let (vae, vocoder, golden) = (
        audio_vae(&reference),
        vocoder(&reference),
        reference.golden("audio"),
    );
    let latents = vae.encode(golden.get("encode.mel"));
    check(
        "latents",
        &vae.unnormalize(&latents),
        golden.get("encode.latents"),
        TOLERANCE,
    );
    let mel = vae.decode(&vae.normalize(golden.get("decode.latents")));
    check("mel", &mel, golden.get("decode.mel"), TOLERANCE);
    check(
        "waveform",
        &vocoder.forward(&mel),
        golden.get("vocoder.waveform"),
        TOLERANCE,
    );
}

/// The state after the last step, which the reference does not keep: x − σv.
fn last_latents(reference: &Reference, stream: &str) -> Tensor {
    let settings = reference.settings();
    let sigmas = settings["refine_sigmas"].as_array().unwrap();
    let last = sigmas
        .iter()
        .rposition(|sigma| sigma.as_f64().unwrap() > 0.0)
        .unwrap();
    let golden = reference.golden("generate");
    let get = |what| golden.get(&format!("stage2.step{last:02}.{stream}_{what}"));
    get("latents") - get("velocity") * sigmas[last].as_f64().unwrap()
}

#[test]
fn shows_the_last_latents_of_a_request_like_the_reference() {
    let reference = Reference::open();
    let golden = reference.golden("generate");
    let upsampled = golden.get("upsample.video");
    let [_, _, frames, height, width] = upsampled.size()[..] else {
        panic!()
    };
    let tokens = last_latents(&reference, "video");
    let latents = tokens
        .transpose(1, 2)
        .reshape([1, -1, frames, height, width]);
    let vae = video_vae(&reference);
    let sample = vae.decode(&latents, &Tiling::Whole).unwrap();
    check_rgb8(&to_rgb8(&sample), golden.get("stage2.rgb8"));
    let middle = (sample.size()[2] - 1) / 2;
    let seen = sample.index_select(2, &Tensor::from_slice(&[0, middle, 2 * middle]));
    check(
        "sample",
        &seen,
        golden.get("stage2.sample.frames_0_12_24"),
        1e-5,
    );
}

#[test]
fn plays_the_last_latents_of_a_request_like_the_reference() {
    let reference = Reference::open();
    let golden = reference.golden("generate");
    let (vae, vocoder) = (audio_vae(&reference), vocoder(&reference));
    let tokens = last_latents(&reference, "audio");
    let [_, length, _] = tokens.size()[..] else {
        panic!()
    };
    let channels = vae.config().latent_channels;
    let latents = tokens
        .reshape([1, length, channels, -1])
        .permute([0, 2, 1, 3]);
    let mel = vae.decode(&latents);
    check("mel", &mel, golden.get("stage2.mel"), 1e-5);
    check(
        "waveform",
        &vocoder.forward(&mel),
        golden.get("stage2.waveform"),
        1e-5,
    );
}

#[test]
fn both_layouts_tell_the_same_shapes() {
    let reference = Reference::open();
    let original = |component: &str| reference.original_config(component);
    let library = |component: &str| reference.config(component);
    let weights = |component: &str| reference.store(component, Kind::Float).root();

    let from_tensors = video_vae::Config::original(&original("vae"), &weights("vae")).unwrap();
    assert_eq!(
        from_tensors,
        video_vae::Config::library(&library("vae")).unwrap()
    );
    let from_tensors =
        audio_vae::Config::original(&original("audio_vae"), &weights("audio_vae")).unwrap();
    assert_eq!(
        from_tensors,
        audio_vae::Config::library(&library("audio_vae")).unwrap()
    );
    let from_tensors =
        vocoder::Config::original(&original("vocoder"), &weights("vocoder")).unwrap();
    assert_eq!(
        from_tensors,
        vocoder::Config::library(&library("vocoder")).unwrap()
    );
    let from_tensors =
        upsampler::Config::original(&original("spatial_upscaler"), &weights("latent_upsampler"))
            .unwrap();
    assert_eq!(
        from_tensors,
        upsampler::Config::library(&library("latent_upsampler")).unwrap()
    );
}

#[test]
fn switches_that_are_not_implemented_are_refused_by_name() {
    let reference = Reference::open();
    let with = |component: &str, key: &str, value: Value| {
        let mut config = reference.config(component);
        config[key] = value;
        config
    };
    let refused = [
        video_vae::Config::library(&with("vae", "timestep_conditioning", true.into())).err(),
        video_vae::Config::library(&with(
            "vae",
            "decoder_inject_noise",
            vec![false, true].into(),
        ))
        .err(),
        video_vae::Config::library(&with("vae", "spatial_compression_ratio", 16.into())).err(),
        video_vae::Config::library(&with("vae", "layers_per_block", vec![1].into())).err(),
        audio_vae::Config::library(&with("audio_vae", "norm_type", "group".into())).err(),
        vocoder::Config::library(&with("vocoder", "act_fn", "snakebeta".into())).err(),
        upsampler::Config::library(&with("latent_upsampler", "dims", 2.into())).err(),
    ];
    let told: Vec<String> = refused
        .into_iter()
        .map(|error| error.unwrap().to_string())
        .collect();
    let keys = [
        "timestep_conditioning",
        "decoder_inject_noise",
        "spatial_compression_ratio",
        "layers_per_block",
        "norm_type",
        "act_fn",
        "dims",
    ];
    for (told, key) in told.iter().zip(keys) {
        assert!(told.contains(key), "{told}");
    }
}
