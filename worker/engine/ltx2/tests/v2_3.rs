//! LTX-2.3 against the reference: what differs from LTX-2.0, and whole requests.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fastvideo_ltx2::audio_vae::{self, AudioVae};
use fastvideo_ltx2::checkpoint::{Checkpoint, Companions, Component};
use fastvideo_ltx2::config::ConfigError;
use fastvideo_ltx2::float8::Products;
use fastvideo_ltx2::generation::Generation;
use fastvideo_ltx2::load;
use fastvideo_ltx2::memory::{Estimate, Size};
use fastvideo_ltx2::nn::{Linear, Precision};
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pipeline::{
    Conditioning, Continuation, GenerateError, Pipeline, Request, Settings, Stage, Start,
};
use fastvideo_ltx2::pixels::{from_rgb8, to_rgb8};
use fastvideo_ltx2::sampling::latents;
use fastvideo_ltx2::sampling::noise::{DrawOrder, Noise};
use fastvideo_ltx2::sampling::schedule::Scheduler;
use fastvideo_ltx2::text::connectors;
use fastvideo_ltx2::text::tokens::Tokenizer;
use fastvideo_ltx2::transformer::block::{Block, Surroundings};
use fastvideo_ltx2::transformer::modulation::Embeddings;
use fastvideo_ltx2::transformer::{Config, CrossModalLevels, NoiseLevels};
use fastvideo_ltx2::upsampler::{self, Upsampler};
use fastvideo_ltx2::video_vae::{self, Tile, Tiling, VideoVae};
use fastvideo_ltx2::vocoder::{self, Vocoder};
use fastvideo_ltx2::weights::{Float8, LayerMatrix, Reading, Weights};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tch::{Device, IndexOp, Kind, Tensor};

use crate::layout::{Stored, copy_folder, write_file};
use crate::pipeline::{Case as Clip, Recorder, check_result, one_stage, parts};
use crate::reference::{Reference, check, relative_error};
use crate::text::{connectors, gemma};
use crate::transformer::{Asked, Case};
use crate::video_vae::check_rgb8;

const TOLERANCE: f64 = 2e-6;
const CPU: Device = Device::Cpu;
const RULES: [(&str, CrossModalLevels); 3] = [
    ("library", CrossModalLevels::Library),
    ("lightricks", CrossModalLevels::Lightricks),
    ("fastvideo", CrossModalLevels::FastVideo),
];

fn case(kind: Kind) -> Case {
    Case::of(&Reference::v2_3(), CPU, kind, &Kernels::Plain)
}

fn asked(cross_modal_levels: CrossModalLevels) -> Asked<'static> {
    Asked {
        cross_modal_levels,
        ..Asked::library(Generation::V2_3)
    }
}

#[test]
fn the_generation_is_read_from_the_configuration() {
    let of = |reference: Reference| Config::library(&reference.config("transformer")).unwrap();
    assert_eq!(of(Reference::open()).generation, Generation::V2_0);
    let newer = of(Reference::v2_3());
    assert_eq!(newer.generation, Generation::V2_3);
    assert_eq!(newer.caption_channels, None);
}

#[test]
fn contexts_equal_the_reference() {
    let reference = Reference::v2_3();
    let golden = reference.golden("text");
    let gemma = gemma(&reference, Kind::Float);
    let connectors = connectors(&reference, Kind::Float);
    let settings = reference.settings();
    let length = settings["text_len"].as_i64().unwrap();
    let path = reference.checkpoint().join("tokenizer/tokenizer.json");
    let tokenizer = Tokenizer::open(&path, length).unwrap();
    for label in ["prompt", "negative"] {
        let ids = tokenizer.encode(settings[label].as_str().unwrap()).unwrap();
        let states = gemma.forward(&ids, length);
        if label == "prompt" {
            let width = connectors.widths()[0] as f64 / states.size()[2] as f64;
            let normed = connectors::normalize_tokens(&states) * width.sqrt();
            let last = normed.narrow(1, normed.size()[1] - 4, 4);
            let expected = golden.get("prompt.video_text_proj_in.in.last4");
            check("normed states", &last, expected, 1e-6);
        }
        let contexts = connectors.forward(&states, length);
        for (stream, context) in [("video", &contexts.video), ("audio", &contexts.audio)] {
            let name = format!("{label}.{stream}_context");
            check(&name, context, golden.get(&name), TOLERANCE);
        }
    }
}

#[test]
fn embeddings_of_noise_levels_equal_the_reference() {
    let case = case(Kind::Float);
    let store = Reference::v2_3().store("transformer", Kind::Float);
    let levels = NoiseLevels::of_samples(1, &case.sigmas());
    // [rows, B, 1, D] to [B, rows · D].
    let flat = |rows: &Tensor| rows.squeeze_dim(2).transpose(0, 1).flatten(1, 2);
    for (embeddings, prefix) in [
        (Embeddings::video(&case.config, &store.root()), ""),
        (Embeddings::audio(&case.config, &store.root()), "audio_"),
    ] {
        let modulation = embeddings.forward(&levels, &levels, CrossModalLevels::Library, CPU);
        let same = |name: &str, rows: &Tensor| {
            let name = format!("{prefix}{name}.0");
            check(&name, &flat(rows), case.golden.get(&name), 1e-5);
        };
        same("time_embed", &modulation.temb);
        same("prompt_adaln", modulation.prompt.as_ref().unwrap());
    }
}

#[test]
fn blocks_equal_the_reference() {
    let case = case(Kind::Float);
    let (config, sigmas) = (&case.config, case.sigmas());
    let store = Reference::v2_3().store("transformer", Kind::Float);
    let weights = store.root();
    let stream = |name: &str, channels: i64, width: i64, tokens: &str| {
        Linear::new(&weights.sub(name), channels, width).forward(&case.input(tokens))
    };
    let (width, audio_width) = (config.width(), config.audio_width());
    let mut x = stream("proj_in", config.in_channels, width, "hidden_states");
    let mut a = stream(
        "audio_proj_in",
        config.audio_in_channels,
        audio_width,
        "audio_hidden_states",
    );
    let levels = [&x, &a].map(|x| NoiseLevels::of_samples(x.size()[1], &sigmas));
    let cross = CrossModalLevels::Library;
    let video = Embeddings::video(config, &weights).forward(&levels[0], &levels[1], cross, CPU);
    let audio = Embeddings::audio(config, &weights).forward(&levels[1], &levels[0], cross, CPU);
    let around = Surroundings {
        video: &video,
        audio: &audio,
        tables: &case.tables,
        isolate_modalities: false,
        perturbed: false,
    };
    let text = case.text(2);
    for i in 0..3 {
        let weights = weights.sub("transformer_blocks").sub(i);
        let block = Block::new(config, &weights, &Kernels::Plain);
        block.forward(&mut x, &mut a, &around, text.of_block(0));
        for (stream, tokens) in [("0", &x), ("1", &a)] {
            let name = format!("block{i}.out.{stream}");
            check(&name, tokens, case.golden.get(&name), 1e-6);
        }
    }
}

#[test]
fn the_whole_transformer_equals_the_reference() {
    let case = case(Kind::Float);
    case.check("out", &case.batch(), TOLERANCE);
}

#[test]
fn bfloat16_is_near_the_reference_and_near_float32() {
    let case = case(Kind::BFloat16);
    let velocities = case.batch();
    for (actual, name) in [(&velocities.video, "0"), (&velocities.audio, "1")] {
        let expected = case.golden.get(&format!("bfloat16.out.{name}"));
        // Processors of different kinds add in different orders: one step of the format.
        check(name, actual, &expected.to_kind(Kind::Float), 8e-3);
        let float32 = case.golden.get(&format!("out.{name}"));
        check(name, actual, float32, 1.5e-2);
    }
}

#[test]
fn streams_at_two_levels_follow_each_rule() {
    let case = case(Kind::Float);
    let audio = case.golden.get("two_levels.audio_timestep") / 1000.0;
    let audio = Vec::<f64>::try_from(audio.to_kind(Kind::Double)).unwrap();
    for (name, rule) in RULES {
        let velocities = case.samples(&case.sigmas(), &audio, asked(rule));
        case.check(&format!("two_levels.{name}.out"), &velocities, TOLERANCE);
    }
}

#[test]
fn kept_tokens_follow_each_rule() {
    let case = case(Kind::Float);
    let plain = case.sigmas()[0];
    for (name, rule) in RULES {
        let name = format!("per_token.{name}.out");
        case.check(&name, &case.kept_as(asked(rule)), TOLERANCE);
        // As many levels as tokens give the same as a few runs of equal ones.
        let levels = ["timestep", "audio_timestep"]
            .map(|stream| NoiseLevels::per_token(&case.per_token(stream), plain));
        let every = case.single(&levels[0], &levels[1], &case.text(1), asked(rule));
        case.check(&name, &every, TOLERANCE);
    }
}

/// The default rule is the authors', and the others give other pictures.
#[test]
fn rules_differ_where_tokens_are_kept() {
    let case = case(Kind::Float);
    let expected = case.golden.get("per_token.lightricks.out.0");
    for other in [CrossModalLevels::Library, CrossModalLevels::FastVideo] {
        let velocities = case.kept_as(asked(other));
        let error = relative_error(&velocities.video, expected);
        assert!(error > 1e-2, "{other:?}: {error:e}");
    }
}

#[test]
fn passes_for_guidance_equal_the_reference() {
    let reference = Reference::v2_3();
    let case = case(Kind::Float);
    let (video, audio) = case.uniform();
    let isolated = Asked {
        isolate_modalities: true,
        ..asked(CrossModalLevels::Library)
    };
    let velocities = case.single(&video, &audio, &case.text(1), isolated);
    case.check("isolated.out", &velocities, TOLERANCE);
    let perturbed = Asked {
        perturbed_blocks: &perturbed_blocks(&reference),
        ..asked(CrossModalLevels::Library)
    };
    let velocities = case.single(&video, &audio, &case.text(1), perturbed);
    case.check("perturbed.out", &velocities, TOLERANCE);
}

fn perturbed_blocks(reference: &Reference) -> Vec<usize> {
    let block = reference.settings()["perturbed_block"].as_u64().unwrap();
    vec![usize::try_from(block).unwrap()]
}

fn video_vae(kind: Kind) -> VideoVae {
    let reference = Reference::v2_3();
    let config = video_vae::Config::library(&reference.config("vae")).unwrap();
    let store = reference.store("vae", kind);
    let vae = VideoVae::new(&config, &store.root(), &Kernels::Plain);
    store.finish().unwrap();
    vae
}

#[test]
fn pictures_are_encoded_and_decoded_like_the_reference() {
    let (vae, golden) = (
        video_vae(Kind::Float),
        Reference::v2_3().golden("video_vae"),
    );
    let frames = golden.get("encode.rgb8");
    let pixels = from_rgb8(frames, frames.size()[1], frames.size()[2]);
    for (name, pixels) in [
        ("encode.latents", pixels.shallow_clone()),
        ("encode.single_frame", pixels.narrow(2, 0, 1)),
    ] {
        let latents = vae.unnormalize(&vae.encode(&pixels));
        check(name, &latents, golden.get(name), TOLERANCE);
    }
    let latents = vae.normalize(golden.get("decode.latents"));
    let indices = Tensor::from_slice(&[0_i64, 12, 24]);
    for tiling in [
        Tiling::Whole,
        Tiling::Grouped { frames: 1 },
        Tiling::Grouped { frames: 3 },
        Tiling::Grouped { frames: 100 },
    ] {
        let sample = vae.decode(&latents, &tiling).unwrap();
        let shown = sample.index_select(2, &indices);
        let expected = golden.get("decode.sample.frames_0_12_24");
        check(&format!("{tiling:?}"), &shown, expected, TOLERANCE);
        check_rgb8(&to_rgb8(&sample), golden.get("decode.rgb8"));
    }
}

#[test]
fn pictures_are_decoded_in_tiles_like_the_reference() {
    let (vae, golden) = (
        video_vae(Kind::Float),
        Reference::v2_3().golden("video_vae"),
    );
    let latents = vae.normalize(golden.get("tiled.latents"));
    let tile = |size, overlap| Tile { size, overlap };
    let tiling = Tiling::Library {
        space: Some([tile(96, 32); 2]),
        time: Some(tile(16, 8)),
    };
    let sample = vae.decode(&latents, &tiling).unwrap();
    let expected = golden.get("tiled.spatial_temporal.frames_7_8_9");
    check("tiles", &sample.narrow(2, 7, 3), expected, TOLERANCE);
}

/// Zeros around a picture need no second cell to mirror.
#[test]
fn pictures_of_one_cell_are_decoded() {
    let (vae, golden) = (
        video_vae(Kind::Float),
        Reference::v2_3().golden("video_vae"),
    );
    let latents = golden.get("decode.latents").narrow(3, 0, 1).narrow(4, 0, 1);
    let sample = vae.decode(&latents, &Tiling::Whole).unwrap();
    assert_eq!(sample.size()[3..], [32, 32]);
}

fn vocoder() -> Vocoder {
    let reference = Reference::v2_3();
    let config = vocoder::Config::library(&reference.config("vocoder")).unwrap();
    // Whatever the model's type, the vocoder's is float32.
    let store = reference.store("vocoder", Kind::BFloat16);
    let root = store.root();
    let inverse = "mel_stft.stft_fn.inverse_basis";
    let _ = root.tensor(inverse, &root.shape(inverse).unwrap());
    let vocoder = Vocoder::new(&config, &root);
    store.finish().unwrap();
    vocoder
}

#[test]
fn sound_is_made_like_the_reference() {
    let reference = Reference::v2_3();
    let golden = reference.golden("audio");
    let config = audio_vae::Config::library(&reference.config("audio_vae")).unwrap();
    let store = reference.store("audio_vae", Kind::Float);
    let vae = AudioVae::new(&config, &store.root());
    store.finish().unwrap();
    let mel = vae.decode(&vae.normalize(golden.get("decode.latents")));
    check("mel", &mel, golden.get("decode.mel"), TOLERANCE);

    let vocoder = vocoder();
    let low = vocoder.generated(&mel);
    check("16 kHz", &low, golden.get("vocoder.waveform"), TOLERANCE);
    let extension = vocoder.extension().unwrap();
    // The reference's parts get what is not clamped.
    let mel_again = extension.mel(&low).flatten(0, 1).transpose(1, 2);
    let skip = extension.skip(&low);
    let residual = extension.residual(&low);
    for (name, actual) in [
        ("bwe.mel.0", &mel_again),
        ("bwe.skip", &skip),
        ("bwe.residual", &residual),
    ] {
        check(name, actual, golden.get(name), TOLERANCE);
    }
    let waveform = vocoder.forward(&mel);
    let clamped = golden.get("clamped.waveform");
    check("48 kHz", &waveform, clamped, TOLERANCE);
    let unclamped = relative_error(&waveform, golden.get("waveform"));
    assert!(unclamped > 1e-4, "the clamp shows: {unclamped:e}");
}

#[test]
fn latents_are_enlarged_like_the_reference() {
    let reference = Reference::v2_3();
    let golden = reference.golden("upsamplers");
    for (part, doubles) in [
        ("latent_upsampler", true),
        ("latent_upsampler_plain", true),
        ("latent_upsampler_x1.5", false),
        ("temporal_upsampler", false),
    ] {
        let config = upsampler::Config::library(&reference.config(part)).unwrap();
        assert_eq!(config.doubles_pictures(), doubles, "{part}");
        let store = reference.store(part, Kind::Float);
        let upsampler = Upsampler::new(&config, &store.root());
        store.finish().unwrap();
        let large = upsampler.forward(golden.get("latents"));
        check(part, &large, golden.get(&format!("{part}.out")), TOLERANCE);
    }
}

#[test]
fn the_pipeline_refuses_an_upsampler_of_another_scale() {
    let reference = Reference::v2_3();
    for part in ["latent_upsampler_x1.5", "temporal_upsampler"] {
        let mut parts = parts(&reference.checkpoint(), Precision::Float32);
        let config = upsampler::Config::library(&reference.config(part)).unwrap();
        let store = reference.store(part, Kind::Float);
        parts.upsampler = Some(Upsampler::new(&config, &store.root()));
        let refused = Pipeline::new(parts, Settings::default()).unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("latent upsampler: expected one that doubles"),
            "{refused}"
        );
    }
}

fn clip() -> Clip {
    Clip::of(Reference::v2_3())
}

fn twice_as_large<'a>(request: Request<'a>) -> Request<'a> {
    Request {
        height: 2 * request.height,
        width: 2 * request.width,
        ..request
    }
}

#[test]
fn two_stages_equal_the_reference() {
    let clip = clip();
    let golden = clip.reference.golden("generate");
    let mut pipeline = clip.pipeline(Settings {
        refine_steps: 3,
        ..Settings::default()
    });
    assert_eq!(pipeline.sample_rate(), 48_000);
    let mut output = Recorder::default();
    pipeline
        .generate(&twice_as_large(clip.request()), &mut output)
        .unwrap();
    output.check_steps(&golden, "stage1", Stage::Denoise, 1);
    let (video, audio) = (golden.get("stage1.video"), golden.get("stage1.audio"));
    check_result(&clip, output.last(Stage::Denoise), video, audio);
    output.check_steps(&golden, "stage2", Stage::Refine, 1);
    let shown = output
        .frames()
        .index_select(0, &Tensor::from_slice(&[0_i64, 12, 24]));
    check_rgb8(&shown, golden.get("stage2.rgb8.frames_0_12_24"));
    let sound = output.waveform(2);
    let samples = golden.get("stage2.waveform").size()[2];
    assert_eq!(sound.size(), [1, 2, samples]);
}

#[test]
fn guided_request_equals_the_reference() {
    let clip = clip();
    let golden = clip.reference.golden("guided");
    let mut scheduler = clip.reference.scheduler();
    scheduler["use_dynamic_shifting"] = json!(true);
    scheduler["shift_terminal"] = json!(0.1);
    let mut parts = parts(&clip.reference.checkpoint(), Precision::Float32);
    parts.scheduler = Scheduler::library(&scheduler).unwrap();
    let settings = Settings {
        perturbed_blocks: perturbed_blocks(&clip.reference),
        ..one_stage()
    };
    let mut pipeline = Pipeline::new(parts, settings).unwrap();
    let request = Request {
        num_inference_steps: 3,
        guidance_scale: 3.0,
        ..clip.request()
    };
    let mut output = Recorder::default();
    pipeline.generate(&request, &mut output).unwrap();
    output.check_steps(&golden, "call", Stage::Denoise, 3);
    let latents = output.last(Stage::Denoise);
    check_result(&clip, latents, golden.get("video"), golden.get("audio"));
}

#[test]
fn blocks_that_the_model_lacks_are_not_perturbed() {
    let clip = clip();
    let mut scheduler = clip.reference.scheduler();
    scheduler["use_dynamic_shifting"] = json!(true);
    let mut parts = parts(&clip.reference.checkpoint(), Precision::Float32);
    parts.scheduler = Scheduler::library(&scheduler).unwrap();
    let refused = Pipeline::new(parts, one_stage()).unwrap_err().to_string();
    assert!(
        refused.starts_with("perturbed_blocks: expected blocks below") && refused.ends_with("28"),
        "{refused}"
    );
}

/// From the library's own pipeline, so by the library's rule.
#[test]
fn given_frames_equal_the_reference() {
    let clip = clip();
    let golden = clip.reference.golden("condition");
    let mut pipeline = clip.pipeline(Settings {
        draw_order: DrawOrder::Tokens,
        cross_modal_levels: Some(CrossModalLevels::Library),
        ..one_stage()
    });
    let before = Continuation {
        frames: Some(golden.get("rgb8").copy()),
        audio_latents: None,
        audio_num_frames: 0,
        video_position_offset_sec: 0.0,
        generation: None,
    };
    let request = Request {
        start: Start::Segment(&before),
        ..clip.request()
    };
    let mut output = Recorder::default();
    pipeline.generate(&request, &mut output).unwrap();
    output.check_steps(&golden, "call", Stage::Denoise, 1);
    let latents = output.last(Stage::Denoise);
    check_result(&clip, latents, golden.get("video"), golden.get("audio"));
}

#[test]
#[expect(
    clippy::cast_possible_truncation,
    reason = "frames and frames per second of a reference are small"
)]
fn continued_segments_equal_the_reference() {
    let clip = clip();
    let golden = clip.reference.golden("continuation");
    let kept = golden.get("in.rgb8");
    let frames = kept.size()[0];
    let offset = golden.get("video_offset_seconds").double_value(&[]);
    let request = Request {
        num_inference_steps: 5,
        ..twice_as_large(clip.request())
    };
    let sound = frames + (offset * request.fps).round() as i64;
    let before = Continuation {
        frames: Some(kept.copy()),
        audio_latents: Some(golden.get("in.audio_latents").copy()),
        audio_num_frames: sound,
        video_position_offset_sec: offset,
        generation: Some(Generation::V2_3),
    };
    let request = Request {
        start: Start::Segment(&before),
        ..request
    };
    let noise = [1, 2].map(|stage| Noise {
        video: golden.get(&format!("stage{stage}.noise.0")).copy(),
        audio: golden.get(&format!("stage{stage}.noise.1")).copy(),
    });
    let by_default = (RULES[1].0, None);
    let rules = RULES.map(|(name, rule)| (name, Some(rule)));
    for (name, cross_modal_levels) in rules.into_iter().chain([by_default]) {
        let mut pipeline = clip.pipeline(Settings {
            conditioning: Conditioning {
                num_frames: frames,
                audio_num_frames: sound,
                end_offset: 0,
            },
            cross_modal_levels,
            ..Settings::default()
        });
        let mut output = Recorder::default();
        let next = pipeline
            .generate_from(&request, &noise, &mut output)
            .unwrap();
        for (stage, number) in [(Stage::Denoise, 1), (Stage::Refine, 2)] {
            let latents = output.last(stage);
            for (stream, tokens) in [("video", &latents.video), ("audio", &latents.audio)] {
                let name = format!("{name}.stage{number}.{stream}");
                check(&name, tokens, golden.get(&name), 1e-5);
            }
        }
        if name == "fastvideo" {
            let shown = golden.get("fastvideo.rgb8.frames_0_9_24");
            for (frame, expected) in [(9, 1), (24, 2)] {
                let frame = output.frames().i(frame - frames).unsqueeze(0);
                check_rgb8(&frame, &shown.i(expected..=expected));
            }
        }
        // 49 frames at 24 fps and 48 kHz would be 98 000 samples.
        let trimmed = sound * pipeline.sample_rate() / request.fps as i64;
        let whole = golden.get("fastvideo.waveform").size()[2];
        let played = (request.num_frames - frames) * pipeline.sample_rate() / request.fps as i64;
        assert_eq!(output.waveform(2).size()[2], (whole - trimmed).min(played));
        assert_eq!(next.generation, Some(Generation::V2_3));
        let audio = latents::pack_audio(&next.audio_latents.unwrap());
        let expected = golden.get(&format!("{name}.stage2.audio"));
        check("next audio", &audio, expected, 1e-5);
    }
}

#[test]
fn a_state_of_the_other_generation_is_refused() {
    let newer = clip().pipeline(one_stage());
    let older = Clip::of(Reference::open()).pipeline(one_stage());
    for (pipeline, theirs, told) in [
        (
            &newer,
            Generation::V2_0,
            "state's model: expected LTX-2.3, whose sound has other latents, given LTX-2.0",
        ),
        (
            &older,
            Generation::V2_3,
            "state's model: expected LTX-2.0, whose sound has other latents, given LTX-2.3",
        ),
    ] {
        let clip = clip();
        let golden = clip.reference.golden("continuation");
        let before = Continuation {
            frames: Some(golden.get("in.rgb8").copy()),
            audio_latents: Some(golden.get("in.audio_latents").copy()),
            audio_num_frames: 9,
            video_position_offset_sec: 0.0,
            generation: Some(theirs),
        };
        let request = Request {
            start: Start::Segment(&before),
            ..clip.request()
        };
        let refused = pipeline.check(&request).unwrap_err();
        assert!(matches!(refused, GenerateError::State { .. }), "{refused}");
        assert_eq!(refused.to_string(), told);
    }
}

#[test]
fn both_layouts_tell_the_same_shapes() {
    let reference = Reference::v2_3();
    let original = |component: &str| reference.original_config(component);
    let library = |component: &str| reference.config(component);
    let weights = |component: &str| reference.store(component, Kind::Float).root();
    macro_rules! same {
        ($part:ident, $folder:literal, $component:literal) => {
            assert_eq!(
                $part::Config::original(&original($folder), &weights($component)).unwrap(),
                $part::Config::library(&library($component)).unwrap(),
                $component
            );
        };
    }
    use fastvideo_ltx2::transformer;
    same!(transformer, "transformer", "transformer");
    same!(connectors, "text_encoder", "connectors");
    same!(video_vae, "vae", "vae");
    same!(audio_vae, "audio_vae", "audio_vae");
    same!(vocoder, "vocoder", "vocoder");
    same!(upsampler, "spatial_upscaler", "latent_upsampler");
}

/// FastVideo's converter may drop the switches. The tensors tell the generation then.
#[test]
fn tensors_tell_the_generation_where_the_switches_are_absent() {
    for (reference, generation) in [
        (Reference::open(), Generation::V2_0),
        (Reference::v2_3(), Generation::V2_3),
    ] {
        let mut json = reference.original_config("transformer");
        for switch in [
            "apply_gated_attention",
            "cross_attention_adaln",
            "caption_proj_before_connector",
        ] {
            json.as_object_mut().unwrap().remove(switch);
        }
        let weights = reference.store("transformer", Kind::Float).root();
        let config = Config::original(&json, &weights).unwrap();
        assert_eq!(config.generation, generation);
        config.fits(&weights).unwrap();
    }
}

#[test]
fn contradictions_are_refused_by_name() {
    let reference = Reference::v2_3();
    let library = |key: &str, value: Value| {
        let mut json = reference.config("transformer");
        json[key] = value;
        Config::library(&json)
    };
    for key in ["gated_attn", "audio_gated_attn", "cross_attn_mod"] {
        let error = library(key, json!(false)).unwrap_err();
        assert!(matches!(error, ConfigError::Mixed { .. }), "{error}");
        assert!(error.to_string().contains(key), "{error}");
    }
    // Changes nothing but what guidance may ask for.
    library("perturbed_attn", json!(false)).unwrap();

    let weights = reference.store("transformer", Kind::Float).root();
    let original = |key: &str, value: Value| {
        let mut json = reference.original_config("transformer");
        json[key] = value;
        Config::original(&json, &weights)
    };
    for (key, value) in [
        ("caption_projection_first_linear", json!(false)),
        ("apply_gated_attention", json!(false)),
        ("frequencies_precision", json!("float32")),
        ("use_keyframes_abs_pos_embedding", json!(true)),
    ] {
        let error = original(key, value).unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains(key) || told.contains("caption_projection_second_linear"),
            "{told}"
        );
    }

    // The tensors of the other generation.
    let older = Reference::open().store("transformer", Kind::Float).root();
    let config = Config::library(&reference.config("transformer")).unwrap();
    let error = config.fits(&older).unwrap_err();
    assert!(
        error.to_string().starts_with(
            "transformer: its configuration is one of LTX-2.3, but tensor `transformer_blocks.0."
        ),
        "{error}"
    );
    let config = vocoder::Config::library(&reference.config("vocoder")).unwrap();
    let older = Reference::open().store("vocoder", Kind::Float).root();
    let error = config.fits(&older).unwrap_err();
    assert!(
        matches!(error, ConfigError::Contradiction { .. }),
        "{error}"
    );
}

#[test]
fn a_gate_of_sparse_attention_is_refused_by_name() {
    use std::collections::BTreeMap;

    use fastvideo_ltx2::weights::Store;

    let reference = Reference::v2_3();
    let config = Config::library(&reference.config("transformer")).unwrap();
    let name = "transformer_blocks.0.attn1.to_gate_logits.weight";
    let width = config.width();
    let gate = Tensor::zeros([width, width], (Kind::Float, CPU));
    let tensors = BTreeMap::from([(name.to_owned(), gate)]);
    let store = Store::new("transformer", tensors, Kind::Float, CPU);
    let error = config.fits(&store.root()).unwrap_err().to_string();
    assert!(
        error.contains("which belongs to sparse attention"),
        "{error}"
    );
}

#[test]
fn parts_of_two_generations_are_refused() {
    let mut mixed = parts(&Reference::v2_3().checkpoint(), Precision::Float32);
    mixed.vocoder = parts(&Reference::open().checkpoint(), Precision::Float32).vocoder;
    let refused = Pipeline::new(mixed, Settings::default()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "generation of the vocoder: expected LTX-2.3, as the transformer is, given LTX-2.0"
    );
}

/// What comes of the settings' request at twice the size, in each layout.
#[test]
fn all_layouts_give_the_same_segment() {
    let clip = clip();
    let reference = &clip.reference;
    let (folder, file) = reference.single_file();
    let segments = [
        reference.checkpoint(),
        reference.original_checkpoint(),
        file,
        folder.path().to_owned(),
    ]
    .map(|root| {
        let parts = parts(&root, Precision::Float32);
        let mut pipeline = Pipeline::new(parts, Settings::default()).unwrap();
        let mut output = Recorder::default();
        pipeline
            .generate(&twice_as_large(clip.request()), &mut output)
            .unwrap();
        (output.frames(), output.sound)
    });
    for other in &segments[1..] {
        assert!(*other == segments[0]);
    }
}

/// A single file whose metadata and tensors the test changes.
struct Edited {
    folder: tempfile::TempDir,
    file: PathBuf,
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Stored>,
}

impl Edited {
    fn new() -> Self {
        let (folder, file) = Reference::v2_3().single_file();
        let bytes = std::fs::read(&file).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = tensors.iter().map(|(name, view)| {
            let stored = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            (name.to_owned(), stored)
        });
        Self {
            folder,
            file,
            metadata: header.metadata().clone().unwrap().into_iter().collect(),
            tensors: tensors.collect(),
        }
    }

    /// Changes a value of the metadata's configuration.
    fn configure(&mut self, pointer: &str, value: Value) {
        let mut config: Value = serde_json::from_str(&self.metadata["config"]).unwrap();
        let (object, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(object).unwrap()[key] = value;
        self.metadata
            .insert("config".to_owned(), config.to_string());
    }

    /// Writes the file and returns why it cannot be run.
    fn refusal(&self) -> String {
        write_file(&self.file, &self.tensors, self.metadata.clone());
        match Checkpoint::open(&self.file) {
            Err(error) => error.to_string(),
            Ok(checkpoint) => load::check(&checkpoint).unwrap_err().to_string(),
        }
    }
}

#[test]
fn what_is_wrong_with_a_single_file_is_told_in_words() {
    let check = |edit: &dyn Fn(&mut Edited), expected: &[&str]| {
        let mut edited = Edited::new();
        edit(&mut edited);
        let told = edited.refusal();
        for part in expected {
            assert!(told.contains(part), "{told}: expected `{part}`");
        }
    };
    let insert = |edited: &mut Edited, key: &str, value: &str| {
        edited.metadata.insert(key.to_owned(), value.to_owned());
    };
    check(
        &|edited| insert(edited, "model_version", "2.5.0"),
        &["`model_version` is 2.5.0"],
    );
    check(
        &|edited| insert(edited, "gemma_source_checkpoint", "google/gemma-4"),
        &["LTX-2.5 or later"],
    );
    check(
        &|edited| insert(edited, "model_version", "2.0.1"),
        &["`model_version`: expected that of LTX-2.3, given that of LTX-2.0"],
    );
    check(
        &|edited| edited.configure("/transformer/_class_name", json!("Transformer3DModel")),
        &[
            "part `transformer` must be a",
            "given a `Transformer3DModel`",
        ],
    );
    check(
        &|edited| edited.configure("/transformer/caption_proj_input_norm", json!(true)),
        &["caption_proj_input_norm", "expected false, given true"],
    );
    check(
        &|edited| edited.configure("/transformer/cross_attention_adaln", json!(false)),
        &[
            "switches are of two generations",
            "`cross_attention_adaln`: false",
        ],
    );
    check(
        &|edited| edited.configure("/vae/decoder_spatial_padding_mode", json!("reflect")),
        &[
            "decoder_spatial_padding_mode",
            "expected zeros",
            "given reflect",
        ],
    );
    check(
        &|edited| {
            edited.configure(
                "/transformer/connector_positional_embedding_max_pos",
                Value::Null,
            );
        },
        &["connectors"],
    );
    check(
        &|edited| {
            let tensor = edited.tensors["vae.decoder.conv_in.conv.bias"].clone();
            edited.tensors.insert("optimizer.state".to_owned(), tensor);
        },
        &["tensor `optimizer.state` belongs to no part"],
    );
    check(
        &|edited| {
            let name = "model.diffusion_model.transformer_blocks.0.attn1.to_gate_logits.weight";
            edited.tensors.remove(name).unwrap();
        },
        &["configuration is one of LTX-2.3, but tensor", "is missing"],
    );
    check(
        &|edited| std::fs::remove_dir_all(edited.folder.path().join("gemma")).unwrap(),
        &[
            "part `text_encoder` is missing",
            "a folder of Gemma 3 beside",
        ],
    );
    check(
        &|edited| {
            let folder = edited.folder.path();
            copy_folder(&folder.join("gemma"), &folder.join("other"));
        },
        &["several text encoders, name one", "gemma", "other"],
    );
    check(
        &|edited| {
            let folder = edited.folder.path();
            let copy = folder.join("second.safetensors");
            std::fs::copy(folder.join("latent_upsampler.safetensors"), copy).unwrap();
        },
        &["several latent upsamplers, name one", "second.safetensors"],
    );
    check(
        &|edited| edited.metadata.clear(),
        &["no configuration of a model"],
    );
}

#[test]
fn companions_of_a_single_file_can_be_named() {
    let (folder, file) = Reference::v2_3().single_file();
    let elsewhere = tempfile::tempdir().unwrap();
    let companions = Companions {
        text_encoder: Some(elsewhere.path().join("gemma")),
        upsampler: Some(elsewhere.path().join("up.safetensors")),
    };
    copy_folder(
        &folder.path().join("gemma"),
        companions.text_encoder.as_ref().unwrap(),
    );
    std::fs::remove_dir_all(folder.path().join("gemma")).unwrap();
    std::fs::rename(
        folder.path().join("latent_upsampler.safetensors"),
        companions.upsampler.as_ref().unwrap(),
    )
    .unwrap();
    let checkpoint = Checkpoint::open_with(&file, &companions).unwrap();
    assert!(checkpoint.part(Component::Upsampler).is_some());
    load::check(&checkpoint).unwrap();
    // A model in folders has its own.
    let refused = Checkpoint::open_with(&Reference::v2_3().checkpoint(), &companions).unwrap_err();
    assert!(
        refused
            .to_string()
            .ends_with("`text_encoder` was named, but this model has its parts in folders"),
        "{refused}"
    );
}

/// Files in 8 bits have a scale for each matrix; what is stored otherwise is taken as it is.
#[test]
fn matrices_in_8_bits_are_widened() {
    let mut edited = Edited::new();
    let prefix = "model.diffusion_model.transformer_blocks.";
    let matrices: Vec<String> = edited
        .tensors
        .iter()
        .filter(|(name, (_, shape, _))| name.starts_with(prefix) && shape.len() == 2)
        .map(|(name, _)| name.clone())
        .filter(|name| name.ends_with(".weight"))
        .collect();
    assert!(matrices.len() > 100);
    let mut expected = BTreeMap::new();
    for name in &matrices {
        let (_, shape, data) = &edited.tensors[name];
        let size: Vec<i64> = shape
            .iter()
            .map(|&size| i64::try_from(size).unwrap())
            .collect();
        let stored = Tensor::from_data_size(data, &size, Kind::BFloat16).to_kind(Kind::Float);
        let scale = stored.abs().max().double_value(&[]) / 448.0;
        #[expect(clippy::cast_possible_truncation, reason = "a scale is a float32")]
        let scale = scale as f32;
        let small = (stored / f64::from(scale)).clamp(-448.0, 448.0);
        let small = small.to_kind(Kind::Float8e4m3fn);
        let wide = small.to_kind(Kind::Float) * f64::from(scale);
        expected.insert(name.clone(), (wide.to_kind(Kind::BFloat16), wide));
        let bytes = Vec::<u8>::try_from(small.view_dtype(Kind::Uint8).flatten(0, -1)).unwrap();
        let shape = shape.clone();
        edited
            .tensors
            .insert(name.clone(), (Dtype::F8_E4M3, shape, bytes));
        for suffix in ["weight_scale", "input_scale"] {
            let name = name.replace(".weight", &format!(".{suffix}"));
            let bytes = scale.to_le_bytes().to_vec();
            edited.tensors.insert(name, (Dtype::F32, Vec::new(), bytes));
        }
    }
    write_file(&edited.file, &edited.tensors, edited.metadata.clone());
    let checkpoint = Checkpoint::open(&edited.file).unwrap();
    load::check(&checkpoint).unwrap();
    let part = checkpoint.part(Component::Transformer).unwrap();
    let store = part.store(Precision::Bfloat16, CPU, Reading::default());
    let as_stored = Reading {
        float8: Some(Float8 {
            products: Products::Wide,
            dense_blocks: Vec::new(),
        }),
        ..Reading::default()
    };
    let as_stored = part.store(Precision::Bfloat16, CPU, as_stored);
    for (library, stored) in part.files.names() {
        if let Some((wide, values)) = expected.remove(stored) {
            let shape = store.root().shape(library).unwrap();
            assert!(store.root().tensor(library, &shape) == wide, "{stored}");
            // Where matrices are kept in 8 bits, these are the values that were stored.
            let layer = as_stored
                .root()
                .sub(library.strip_suffix(".weight").unwrap());
            let (matrix, _) = layer.wide_matrix([shape[0], shape[1]]);
            let LayerMatrix::Float8(matrix) = matrix else {
                panic!("{stored} is dense");
            };
            assert!(matrix.widen() == values, "{stored}");
        }
    }
    assert!(expected.is_empty(), "all of them: {expected:?}");

    // A scale without such a matrix.
    let name = format!("{prefix}0.attn1.norm_q.weight_scale").replace("norm_q", "q_norm");
    let scale = (Dtype::F32, Vec::new(), 1_f32.to_le_bytes().to_vec());
    edited.tensors.insert(name, scale);
    let told = edited.refusal();
    assert!(told.contains("is not stored in 8 bits"), "{told}");
}

/// As many parameters as the released models are known to have. The known counts leave out the video VAE's 256 statistics,
/// and of LTX-2.3's vocoder the transforms (514 × 512 and 64 × 257) and 200 activations' filters (2 × 12 each).
#[test]
fn released_sizes_are_those_that_are_published() {
    use fastvideo_ltx2::bench::released;
    use fastvideo_ltx2::text::connectors::Connectors;
    use fastvideo_ltx2::transformer::Transformer;
    use fastvideo_ltx2::weights::Store;

    for (generation, counts) in [
        (
            Generation::V2_0,
            [
                18_876_174_592,
                1_431_475_200,
                1_222_479_601 + 256,
                55_592_802,
            ],
        ),
        (
            Generation::V2_3,
            [
                18_988_838_144,
                3_172_227_584,
                726_105_969 + 256,
                128_537_448 + 284_416,
            ],
        ),
    ] {
        let config = |component| released(generation, component);
        let count = |name: &str, build: &dyn Fn(&Weights)| {
            let store = Store::counting(name);
            build(&store.root());
            store.counted()
        };
        let transformer = Config::library(&config(Component::Transformer)).unwrap();
        let text = connectors::Config::library(&config(Component::Connectors)).unwrap();
        let vae = video_vae::Config::library(&config(Component::VideoVae)).unwrap();
        let voice = vocoder::Config::library(&config(Component::Vocoder)).unwrap();
        let counted = [
            count("transformer", &|weights| {
                Transformer::new(&transformer, weights, &Kernels::Plain);
            }),
            count("connectors", &|weights| {
                Connectors::new(&text, weights);
            }),
            count("vae", &|weights| {
                VideoVae::new(&vae, weights, &Kernels::Plain);
            }),
            count("vocoder", &|weights| {
                Vocoder::new(&voice, weights);
            }),
        ];
        assert_eq!(counted, counts, "{generation}");
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_arithmetic() {
    let checkpoint = Checkpoint::open(&Reference::v2_3().checkpoint()).unwrap();
    let options = load::Options::new(CPU, Precision::Bfloat16, Kernels::Plain);
    let size = Size {
        width: 1920,
        height: 1088,
        num_frames: 121,
    };
    let tiling = Settings::default().tiling;
    let needed = Estimate::new(&checkpoint, &options, &tiling, size);
    let vocoder = checkpoint.part(Component::Vocoder).unwrap().parameters() as f64;
    let all: f64 = checkpoint
        .parts()
        .iter()
        .map(|part| part.parameters() as f64)
        .sum();
    assert_eq!(needed.weights, 2.0 * all + 2.0 * vocoder);
    needed.fits(80 << 30).unwrap();
    let refused = needed.fits(4 << 30).unwrap_err().to_string();
    assert!(
        refused.contains(
            "about 8.0 GiB for 121 frames of 1920x1088, together 8.0 GiB, and the GPU has 4.0 GiB"
        ),
        "{refused}"
    );
    // Fewer pixels, 8-bit matrices and a whole decode change it.
    let small = Size {
        width: 960,
        height: 544,
        ..size
    };
    let smaller = Estimate::new(&checkpoint, &options, &tiling, small);
    assert_eq!(4.0 * smaller.working, needed.working);
    let whole = Estimate::new(&checkpoint, &options, &Tiling::Whole, size);
    assert!(whole.working > needed.working);
    let float8 = load::Options {
        matrices: load::Matrices::Float8 {
            dense_blocks: Vec::new(),
        },
        ..options
    };
    let float8 = Estimate::new(&checkpoint, &float8, &tiling, size);
    assert!(float8.weights < needed.weights);
}
