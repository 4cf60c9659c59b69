//! The transformer against the reference's tensors, section `transformer`; sizes come from its files.

use fastvideo_ltx2::config::ConfigError;
use fastvideo_ltx2::generation::Generation;
use fastvideo_ltx2::ops::{Kernels, Rotation, Runs};
use fastvideo_ltx2::transformer::block::{Block, Surroundings, Text};
use fastvideo_ltx2::transformer::modulation::{Embeddings, Modulation, sinusoid};
use fastvideo_ltx2::transformer::rope::{audio_coords, video_coords};
use fastvideo_ltx2::transformer::{
    Config, CrossModalLevels, Geometry, Inputs, NoiseLevels, Positions, RotaryTables, TextContext,
    Transformer, Velocities,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::reference::{Golden, Reference, check, relative_error, tiny_model};

const CPU: Device = Device::Cpu;
/// As the library runs LTX-2.0.
const LIBRARY: Asked<'_> = Asked {
    cross_modal_levels: CrossModalLevels::FastVideo,
    isolate_modalities: false,
    perturbed_blocks: &[],
};

/// A transformer with the geometry of the reference's inputs.
pub(crate) struct Case {
    pub(crate) golden: Golden,
    pub(crate) config: Config,
    pub(crate) geometry: Geometry,
    pub(crate) tables: RotaryTables,
    pub(crate) model: Transformer,
    device: Device,
}

/// What a pass is asked for besides the tokens.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) cross_modal_levels: CrossModalLevels,
    pub(crate) isolate_modalities: bool,
    pub(crate) perturbed_blocks: &'a [usize],
}

impl Asked<'_> {
    /// As the library runs this generation.
    pub(crate) fn library(generation: Generation) -> Self {
        Self {
            cross_modal_levels: match generation {
                Generation::V2_0 => CrossModalLevels::FastVideo,
                Generation::V2_3 => CrossModalLevels::Library,
            },
            isolate_modalities: false,
            perturbed_blocks: &[],
        }
    }
}

impl Case {
    fn open(kind: Kind) -> Self {
        Self::on(CPU, kind, &Kernels::Plain)
    }

    pub(crate) fn on(device: Device, kind: Kind, kernels: &Kernels) -> Self {
        Self::of(&Reference::open(), device, kind, kernels)
    }

    pub(crate) fn of(reference: &Reference, device: Device, kind: Kind, kernels: &Kernels) -> Self {
        let golden = reference.golden("transformer");
        let config = Config::library(&reference.config("transformer")).unwrap();
        let settings = reference.settings();
        let size = |key: &str| settings[key].as_i64().unwrap();
        let [time, rows, columns] = config.vae_scale_factors;
        let geometry = Geometry {
            grid: [
                (size("num_frames") - 1) / time + 1,
                size("height") / rows,
                size("width") / columns,
            ],
            audio_latents: golden.get("in.audio_hidden_states").size()[1],
            fps: settings["fps"].as_f64().unwrap(),
            video_offset: 0.0,
            positions: Positions::Float32,
        };
        let store = reference.store_on("transformer", kind, device);
        let model = Transformer::new(&config, &store.root(), kernels);
        store.finish().unwrap();
        let tables = RotaryTables::new(&config, &geometry, device, kernels);
        Self {
            golden,
            config,
            geometry,
            tables,
            model,
            device,
        }
    }

    pub(crate) fn input(&self, name: &str) -> Tensor {
        self.golden
            .get(&format!("in.{name}"))
            .to_device(self.device)
    }

    /// The first sample of an input.
    fn first(&self, name: &str) -> Tensor {
        self.input(name).narrow(0, 0, 1)
    }

    /// σ of each sample.
    pub(crate) fn sigmas(&self) -> Vec<f64> {
        Vec::try_from(
            self.input("timestep").to_kind(Kind::Double) / self.config.timestep_scale_multiplier,
        )
        .unwrap()
    }

    pub(crate) fn text(&self, samples: i64) -> TextContext {
        let context = |name: &str| self.input(name).narrow(0, 0, samples);
        self.model.text(
            &context("encoder_hidden_states"),
            &context("audio_encoder_hidden_states"),
        )
    }

    /// The whole batch, every sample at its own level.
    pub(crate) fn batch(&self) -> Velocities {
        let sigmas = self.sigmas();
        let asked = Asked::library(self.config.generation);
        self.samples(&sigmas, &sigmas, asked)
    }

    /// The whole batch, every sample at the given levels of video and audio.
    pub(crate) fn samples(
        &self,
        sigmas: &[f64],
        audio_sigmas: &[f64],
        asked: Asked<'_>,
    ) -> Velocities {
        let (video, audio) = (
            self.input("hidden_states"),
            self.input("audio_hidden_states"),
        );
        self.model.forward(&Inputs {
            video: &video,
            audio: &audio,
            video_levels: &NoiseLevels::of_samples(video.size()[1], sigmas),
            audio_levels: &NoiseLevels::of_samples(audio.size()[1], audio_sigmas),
            tables: &self.tables,
            text: &self.text(video.size()[0]),
            cross_modal_levels: asked.cross_modal_levels,
            isolate_modalities: asked.isolate_modalities,
            perturbed_blocks: asked.perturbed_blocks,
        })
    }

    /// The first sample.
    pub(crate) fn single(
        &self,
        video_levels: &NoiseLevels,
        audio_levels: &NoiseLevels,
        text: &TextContext,
        asked: Asked<'_>,
    ) -> Velocities {
        self.model.forward(&Inputs {
            video: &self.first("hidden_states"),
            audio: &self.first("audio_hidden_states"),
            video_levels,
            audio_levels,
            tables: &self.tables,
            text,
            cross_modal_levels: asked.cross_modal_levels,
            isolate_modalities: asked.isolate_modalities,
            perturbed_blocks: asked.perturbed_blocks,
        })
    }

    pub(crate) fn uniform(&self) -> (NoiseLevels, NoiseLevels) {
        let sigma = self.sigmas()[0];
        (
            NoiseLevels::uniform(self.first("hidden_states").size()[1], sigma),
            NoiseLevels::uniform(self.geometry.audio_latents, sigma),
        )
    }

    /// The levels of the golden with one noise level per token.
    pub(crate) fn per_token(&self, name: &str) -> Tensor {
        self.golden.get(&format!("per_token.{name}")) / self.config.timestep_scale_multiplier
    }

    #[track_caller]
    pub(crate) fn check(&self, name: &str, actual: &Velocities, tolerance: f64) {
        check(
            &format!("{name}, video"),
            &actual.video,
            self.golden.get(&format!("{name}.0")),
            tolerance,
        );
        check(
            &format!("{name}, audio"),
            &actual.audio,
            self.golden.get(&format!("{name}.1")),
            tolerance,
        );
    }
}

/// Equal, up to the batch axis that the tables do not need.
#[track_caller]
fn assert_same(what: &str, actual: &Tensor, expected: &Tensor) {
    let actual = actual.expand_as(expected);
    assert!(
        actual.equal(expected),
        "{what}: off by {:e}",
        relative_error(&actual, expected)
    );
}

#[test]
fn coordinates_and_rotary_tables_equal_the_reference() {
    let Case {
        golden,
        config,
        geometry,
        tables,
        ..
    } = Case::open(Kind::Float);
    assert_same(
        "video",
        &video_coords(&config, &geometry, CPU),
        golden.get("coords.video"),
    );
    let audio = audio_coords(&config, geometry.audio_latents, CPU);
    assert_same("audio", &audio, golden.get("coords.audio"));
    let heads = config.num_attention_heads;
    let audio_heads = config.audio_num_attention_heads;
    let named = [
        ("rope", &tables.video, heads),
        ("audio_rope", &tables.audio, audio_heads),
        ("cross_attn_rope", &tables.cross_video, audio_heads),
        ("cross_attn_audio_rope", &tables.cross_audio, audio_heads),
    ];
    for (name, table, heads) in named {
        let [cos, sin] = table.of_tokens(heads);
        assert_same(
            &format!("{name} cos"),
            &cos,
            golden.get(&format!("{name}.0")),
        );
        assert_same(
            &format!("{name} sin"),
            &sin,
            golden.get(&format!("{name}.1")),
        );
    }
}

#[test]
fn the_clock_offset_moves_the_video_alone() {
    let Case {
        config,
        geometry,
        tables,
        ..
    } = Case::open(Kind::Float);
    let later = Geometry {
        video_offset: 0.5,
        ..geometry
    };
    let moved = video_coords(&config, &later, CPU) - video_coords(&config, &geometry, CPU);
    let expected = Tensor::from_slice(&[0.5, 0.0, 0.0])
        .to_kind(Kind::Float)
        .view([1, 3, 1, 1]);
    assert!(moved.allclose(&expected.expand_as(&moved), 0.0, 1e-6, false));
    let moved = RotaryTables::new(&config, &later, CPU, &Kernels::Plain);
    let same = |one: &Rotation, other: &Rotation| {
        let (one, other) = (one.of_tokens(4), other.of_tokens(4));
        one.iter().zip(&other).all(|(one, other)| one.equal(other))
    };
    assert!(same(&moved.audio, &tables.audio));
    assert!(same(&moved.cross_audio, &tables.cross_audio));
    assert!(!same(&moved.cross_video, &tables.cross_video));
}

#[test]
fn positions_can_be_rounded_as_fastvideo_does() {
    let Case {
        config, geometry, ..
    } = Case::open(Kind::Float);
    let offset = Geometry {
        video_offset: 40.0 / 24.0,
        ..geometry
    };
    let rounded = Geometry {
        positions: Positions::Bfloat16,
        ..offset
    };
    let exact = video_coords(&config, &offset, CPU);
    let coords = video_coords(&config, &rounded, CPU);
    assert!(coords.equal(&exact.to_kind(Kind::BFloat16).to_kind(Kind::Float)));
    assert!(!coords.equal(&exact));
}

#[test]
fn noise_level_embeddings_equal_the_reference() {
    let case = Case::open(Kind::Float);
    let timestep = case.input("timestep");
    // The last bit of an exponential depends on the processor, and timesteps of up to 1000 multiply it.
    check(
        "sinusoid",
        &sinusoid(&timestep),
        case.golden.get("time_embed.sinusoid"),
        1e-5,
    );
    let store = Reference::open().store("transformer", Kind::Float);
    let levels = NoiseLevels::of_samples(1, &case.sigmas());
    let streams = [
        (
            Embeddings::video(&case.config, &store.root()),
            "time_embed",
            "video_scale_shift",
            "video_a2v_gate",
        ),
        (
            Embeddings::audio(&case.config, &store.root()),
            "audio_time_embed",
            "audio_scale_shift",
            "audio_v2a_gate",
        ),
    ];
    for (embeddings, time_embed, scale_shift, gate) in streams {
        let cross = CrossModalLevels::FastVideo;
        let modulation = embeddings.forward(&levels, &levels, cross, CPU);
        // [rows, B, 1, D] to [B, rows · D].
        let flat = |rows: &Tensor| rows.squeeze_dim(2).transpose(0, 1).flatten(1, 2);
        let same =
            |name: String, actual: Tensor| check(&name, &actual, case.golden.get(&name), 1e-5);
        same(format!("{time_embed}.0"), flat(&modulation.temb));
        same(
            format!("{time_embed}.1"),
            modulation.embedded.squeeze_dim(1),
        );
        same(
            format!("av_cross_attn_{scale_shift}.0"),
            flat(&modulation.cross_scale_shift),
        );
        same(
            format!("av_cross_attn_{gate}.0"),
            flat(&modulation.cross_gate),
        );
    }
}

#[test]
fn one_block_equals_the_reference() {
    let Case {
        golden,
        config,
        tables,
        ..
    } = Case::open(Kind::Float);
    let store = Reference::open().store("transformer", Kind::Float);
    let weights = store.root().sub("transformer_blocks").sub(0);
    let block = Block::new(&config, &weights, &Kernels::Plain);
    let input = |name: &str| golden.get(&format!("block0.in.{name}"));
    // [B, 1, rows · D] to [rows, B, 1, D].
    let rows = |name: &str, width: i64| {
        let batch = input(name).size()[0];
        input(name)
            .view([batch, 1, -1, width])
            .permute([2, 0, 1, 3])
    };
    let modulation = |suffix: [&str; 3], tokens: i64, width: i64| Modulation {
        runs: Runs::new(vec![tokens]),
        temb: rows(suffix[0], width),
        embedded: Tensor::zeros([1, 1, width], (Kind::Float, CPU)),
        prompt: None,
        cross_scale_shift: rows(suffix[1], width),
        cross_runs: Runs::new(vec![tokens]),
        cross_gate: rows(suffix[2], width),
        gate_runs: Runs::new(vec![tokens]),
    };
    let (mut x, mut a) = (
        input("hidden_states").copy(),
        input("audio_hidden_states").copy(),
    );
    let video = modulation(
        ["temb", "temb_ca_scale_shift", "temb_ca_gate"],
        x.size()[1],
        config.width(),
    );
    let audio = modulation(
        [
            "temb_audio",
            "temb_ca_audio_scale_shift",
            "temb_ca_audio_gate",
        ],
        a.size()[1],
        config.audio_width(),
    );
    let around = Surroundings {
        video: &video,
        audio: &audio,
        tables: &tables,
        isolate_modalities: false,
        perturbed: false,
    };
    let text = block.text(
        input("encoder_hidden_states"),
        input("audio_encoder_hidden_states"),
    );
    let text = [Text::KeyValue(&text.video), Text::KeyValue(&text.audio)];
    block.forward(&mut x, &mut a, &around, text);
    check("video", &x, golden.get("block0.out.0"), 1e-6);
    check("audio", &a, golden.get("block0.out.1"), 1e-6);
}

#[test]
fn the_whole_transformer_equals_the_reference() {
    let case = Case::open(Kind::Float);
    case.check("out", &case.batch(), 2e-6);
}

#[test]
fn bfloat16_is_near_the_reference_and_near_float32() {
    let case = Case::open(Kind::BFloat16);
    let velocities = case.batch();
    assert_eq!(velocities.video.kind(), Kind::Float);
    for (actual, name) in [(&velocities.video, "0"), (&velocities.audio, "1")] {
        let expected = case
            .golden
            .get(&format!("bfloat16.out.{name}"))
            .to_kind(Kind::Float);
        // Processors of different kinds add in different orders: one step of the format.
        check(name, actual, &expected, 8e-3);
        check(
            name,
            actual,
            case.golden.get(&format!("out.{name}")),
            1.5e-2,
        );
    }
}

#[test]
fn every_token_can_have_its_own_noise_level() {
    let case = Case::open(Kind::Float);
    let plain = case.sigmas()[0];
    let levels = NoiseLevels::per_token(&case.per_token("timestep"), plain);
    let audio_levels = NoiseLevels::per_token(&case.per_token("audio_timestep"), plain);
    let velocities = case.single(&levels, &audio_levels, &case.text(1), LIBRARY);
    case.check("per_token.out", &velocities, 2e-6);
}

#[test]
fn few_levels_equal_one_per_token() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let case = Case::open(kind);
        let per_token = case.per_token("timestep");
        let audio_per_token = case.per_token("audio_timestep");
        let plain = case.sigmas()[0];
        let text = case.text(1);
        let every = case.single(
            &NoiseLevels::per_token(&per_token, plain),
            &NoiseLevels::per_token(&audio_per_token, plain),
            &text,
            LIBRARY,
        );
        let few = case.single(
            &levels(&per_token, plain),
            &levels(&audio_per_token, plain),
            &text,
            LIBRARY,
        );
        check("video", &few.video, &every.video, 1e-6);
        check("audio", &few.audio, &every.audio, 1e-6);
    }
}

impl Case {
    /// The golden with kept tokens, in runs of equal levels.
    pub(crate) fn kept(&self) -> Velocities {
        self.kept_as(Asked::library(self.config.generation))
    }

    pub(crate) fn kept_as(&self, asked: Asked<'_>) -> Velocities {
        let plain = self.sigmas()[0];
        let video = levels(&self.per_token("timestep"), plain);
        let audio = levels(&self.per_token("audio_timestep"), plain);
        self.single(&video, &audio, &self.text(1), asked)
    }
}

/// The runs of equal values in `[1, N]`.
fn levels(per_token: &Tensor, plain: f64) -> NoiseLevels {
    let values = Vec::<f32>::try_from(per_token.flatten(0, 1)).unwrap();
    let mut runs: Vec<(i64, f64)> = vec![(0, 0.0)];
    for value in values.into_iter().map(f64::from) {
        match runs.last_mut() {
            Some((tokens, last)) if *last == value => *tokens += 1,
            _ => runs.push((1, value)),
        }
    }
    assert!(runs.len() < 4, "few levels: {runs:?}");
    NoiseLevels::runs(&runs, plain)
}

#[test]
fn streams_can_be_isolated() {
    let case = Case::open(Kind::Float);
    let (video, audio) = case.uniform();
    case.check(
        "isolated.out",
        &case.single(
            &video,
            &audio,
            &case.text(1),
            Asked {
                isolate_modalities: true,
                ..LIBRARY
            },
        ),
        2e-6,
    );
}

/// The reference's mask on text tokens is the same as leaving them out, so there is no mask here.
#[test]
fn leaving_out_text_tokens_equals_masking_them() {
    let case = Case::open(Kind::Float);
    let kept = case
        .golden
        .get("masked.text_mask")
        .sum(Kind::Int64)
        .int64_value(&[]);
    let context = |name: &str| case.first(name).narrow(1, 0, kept);
    let text = case.model.text(
        &context("encoder_hidden_states"),
        &context("audio_encoder_hidden_states"),
    );
    let (video, audio) = case.uniform();
    case.check(
        "masked.out",
        &case.single(&video, &audio, &text, LIBRARY),
        2e-6,
    );
}

#[test]
fn inputs_are_left_as_they_were() {
    let case = Case::open(Kind::Float);
    let before = [
        case.input("hidden_states").copy(),
        case.input("audio_hidden_states").copy(),
    ];
    let (first, second) = (case.batch(), case.batch());
    assert!(first.video.equal(&second.video) && first.audio.equal(&second.audio));
    assert!(case.input("hidden_states").equal(&before[0]));
    assert!(case.input("audio_hidden_states").equal(&before[1]));
}

#[test]
fn both_layouts_have_the_same_configuration() {
    let reference = Reference::open();
    let library = Config::library(&reference.config("transformer")).unwrap();
    let weights = reference.store("transformer", Kind::Float).root();
    assert_eq!(
        Config::original(&reference.original_config("transformer"), &weights).unwrap(),
        library
    );
}

#[test]
fn other_generations_are_refused_by_name() {
    let reference = Reference::open();
    let refused = |key: &str, value: Value| {
        let mut json = reference.config("transformer");
        json[key] = value;
        Config::library(&json).unwrap_err()
    };
    for (key, value) in [
        ("ff_bias", json!(false)),
        ("use_prompt_adaln_single", json!(false)),
        ("use_keyframes_abs_pos_embedding", json!(true)),
    ] {
        let error = refused(key, value);
        assert!(matches!(error, ConfigError::Generation { .. }), "{error}");
        let told = error.to_string();
        assert!(
            told.contains("LTX-2.5 or later") && told.contains(key),
            "{told}"
        );
    }
    for key in ["gated_attn", "audio_cross_attn_mod"] {
        let error = refused(key, json!(true));
        assert!(matches!(error, ConfigError::Mixed { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains(&format!("`{key}`: true as in LTX-2.3")),
            "{error}"
        );
    }
    let others = [
        ("_class_name", json!("LTXVideoTransformer3DModel")),
        ("rope_type", json!("interleaved")),
        ("cross_attention_dim", json!(1)),
        ("num_layers", json!(0)),
    ];
    for (key, value) in others {
        let error = refused(key, value);
        assert!(matches!(error, ConfigError::Value { .. }), "{error}");
        assert!(error.to_string().contains(key), "{error}");
    }
    let mut json = reference.original_config("transformer");
    json["apply_gated_attention"] = json!(true);
    let weights = reference.store("transformer", Kind::Float).root();
    let error = Config::original(&json, &weights).unwrap_err();
    assert!(matches!(error, ConfigError::Mixed { .. }), "{error}");
    json["cross_attention_adaln"] = json!(true);
    json["caption_proj_before_connector"] = json!(true);
    let config = Config::original(&json, &weights).unwrap();
    let error = config.fits(&weights).unwrap_err();
    assert!(
        matches!(error, ConfigError::Contradiction { .. }),
        "{error}"
    );
}

#[test]
fn the_multiplier_of_the_gates_has_no_default() {
    let reference = Reference::open();
    let mut json = reference.original_config("transformer");
    json.as_object_mut()
        .unwrap()
        .remove("av_ca_timestep_scale_multiplier");
    let weights = reference.store("transformer", Kind::Float).root();
    let error = Config::original(&json, &weights).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("av_ca_timestep_scale_multiplier"),
        "{error}"
    );
}

/// Every step of the small trained model, from its own latents before to those after.
#[test]
fn steps_of_the_small_trained_model_equal_the_reference() {
    let Some((reference, goldens)) = tiny_model() else {
        return;
    };
    let config = Config::library(&reference.config("transformer")).unwrap();
    let store = reference.store("transformer", Kind::Float);
    let model = Transformer::new(&config, &store.root(), &Kernels::Plain);
    store.finish().unwrap();
    // The picture of its README: 33 frames of 128 × 96 at 24 fps.
    let geometry = Geometry {
        grid: [5, 3, 4],
        audio_latents: goldens.get("0.start.noise.audio").size()[1],
        fps: 24.0,
        video_offset: 0.0,
        positions: Positions::Float32,
    };
    let tables = RotaryTables::new(&config, &geometry, CPU, &Kernels::Plain);
    for clip in ["0.start", "0.continue", "1.start", "1.continue"] {
        let get = |name: &str| goldens.get(&format!("{clip}.{name}"));
        let text = model.text(get("context.video"), get("context.audio"));
        let streams = ["video", "audio"].map(|stream| Stream::of(&goldens, clip, stream));
        let steps = 8;
        for step in 0..steps {
            let (sigma, next) = (sigma(step, steps), sigma(step + 1, steps));
            let [x, a] = ["video", "audio"].map(|stream| get(&format!("step{step}.{stream}")));
            let [video_levels, audio_levels] =
                streams.each_ref().map(|stream| stream.levels(sigma));
            let velocities = model.forward(&Inputs {
                video: x,
                audio: a,
                video_levels: &video_levels,
                audio_levels: &audio_levels,
                tables: &tables,
                text: &text,
                cross_modal_levels: CrossModalLevels::FastVideo,
                isolate_modalities: false,
                perturbed_blocks: &[],
            });
            let after = |stream: &str| match step + 1 {
                last if last == steps => get(&format!("final.{stream}")),
                next => get(&format!("step{next}.{stream}")),
            };
            let x = streams[0].euler(x, &velocities.video, sigma, next);
            let a = streams[1].euler(a, &velocities.audio, sigma, next);
            check(
                &format!("{clip} step {step}, video"),
                &x,
                after("video"),
                1e-5,
            );
            check(
                &format!("{clip} step {step}, audio"),
                &a,
                after("audio"),
                1e-5,
            );
        }
    }
}

/// The base schedule with a shift of 3, as the small model's scheduler says.
fn sigma(step: i32, steps: i32) -> f64 {
    let linear = 1.0 - f64::from(step) / f64::from(steps);
    if step == steps {
        0.0
    } else {
        3.0 / (3.0 + 1.0 / linear - 1.0)
    }
}

/// What is kept of one stream: a prefix, clean.
struct Stream {
    clean: Option<Tensor>,
    kept: i64,
    tokens: i64,
}

impl Stream {
    fn of(goldens: &Golden, clip: &str, stream: &str) -> Self {
        let start = goldens.get(&format!("{clip}.step0.{stream}"));
        let tokens = start.size()[1];
        let clean = goldens
            .find(&format!("{clip}.clean.{stream}"))
            .map(Tensor::shallow_clone);
        let kept = clean.as_ref().map_or(0, |clean| {
            let same = start.eq_tensor(clean).all_dim(-1, false);
            same.sum(Kind::Int64).int64_value(&[])
        });
        Self {
            clean,
            kept,
            tokens,
        }
    }

    fn levels(&self, sigma: f64) -> NoiseLevels {
        NoiseLevels::kept(self.kept, self.tokens, sigma)
    }

    fn euler(&self, x: &Tensor, velocity: &Tensor, sigma: f64, next: f64) -> Tensor {
        let x0 = x - velocity * sigma;
        if let Some(clean) = &self.clean {
            x0.narrow(1, 0, self.kept)
                .copy_(&clean.narrow(1, 0, self.kept));
        }
        x + (x - x0) / sigma * (next - sigma)
    }
}
