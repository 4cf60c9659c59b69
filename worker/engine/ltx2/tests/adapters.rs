//! Adapters against the reference's tensors, section `lora` of LTX-2.3: beside the weights, added to them, and refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fastvideo_ltx2::adapters::{AdapterError, AdapterFile, Adapters, Choice, Fused, Limits};
use fastvideo_ltx2::checkpoint::{Checkpoint, Component};
use fastvideo_ltx2::generation::Generation;
use fastvideo_ltx2::load;
use fastvideo_ltx2::nn::Precision;
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pipeline::{Pipeline, Request, Start};
use fastvideo_ltx2::transformer::{Transformer, Velocities};
use fastvideo_ltx2::weights::Store;
use safetensors::tensor::Dtype;
use tch::{Device, Kind, Tensor};

use crate::layout::{Stored, tensors_of, write_file};
use crate::pipeline::{Case as Clip, Recorder, one_stage, parts};
use crate::reference::{Golden, Reference, check, relative_error};
use crate::transformer::{Asked, Case};

const TOLERANCE: f64 = 2e-6;
const NAMES: [&str; 3] = ["style", "tone", "scaled"];

fn file(name: &str) -> PathBuf {
    let root = Reference::v2_3().checkpoint();
    root.with_file_name("lora")
        .join(format!("{name}.safetensors"))
}

fn choice(name: &str, strength: f64) -> Choice {
    Choice {
        name: name.to_owned(),
        strength,
    }
}

/// The stacks of the goldens.
fn stacks() -> Vec<(&'static str, Vec<Choice>)> {
    vec![
        ("none", Vec::new()),
        ("style.1", vec![choice("style", 1.0)]),
        ("style.0.5", vec![choice("style", 0.5)]),
        ("tone.1", vec![choice("tone", 1.0)]),
        ("scaled.1", vec![choice("scaled", 1.0)]),
        ("two", vec![choice("style", 0.5), choice("tone", 0.8)]),
        (
            "stack",
            vec![
                choice("style", 0.5),
                choice("tone", 0.8),
                choice("scaled", 1.0),
            ],
        ),
    ]
}

/// The model with the inputs of the goldens, and its adapters.
struct Model {
    case: Case,
    adapters: Adapters,
    golden: Golden,
}

impl Model {
    /// With all three adapters loaded.
    fn open(kind: Kind) -> Self {
        let mut model = Self::fused(kind, &[]);
        for name in NAMES {
            let file = AdapterFile::open(&file(name)).unwrap();
            model.adapters.load(name, &file).unwrap();
        }
        model
    }

    /// With these adapters added to the weights.
    fn fused(kind: Kind, choices: &[Choice]) -> Self {
        let reference = Reference::v2_3();
        let precision = match kind {
            Kind::Float => Precision::Float32,
            _ => Precision::Bfloat16,
        };
        let fused = choices
            .iter()
            .map(|c| (file(&c.name), c.strength))
            .collect();
        let options = load::Options {
            fused,
            ..load::Options::new(Device::Cpu, precision, Kernels::Plain)
        };
        let checkpoint = Checkpoint::open(&reference.checkpoint()).unwrap();
        let parts = load::load(&checkpoint, &options, |_| {}).unwrap();
        let mut case = Case::of(&reference, Device::Cpu, kind, &Kernels::Plain);
        case.model = parts.transformer;
        Self {
            case,
            adapters: parts.adapters,
            golden: reference.golden("lora"),
        }
    }

    fn forward(&self) -> Velocities {
        let (video, audio) = self.case.uniform();
        let asked = Asked::library(Generation::V2_3);
        self.case.single(&video, &audio, &self.case.text(1), asked)
    }

    fn with(&mut self, choices: &[Choice]) -> Velocities {
        self.adapters.choose(choices).unwrap();
        self.forward()
    }

    #[track_caller]
    fn check(&self, name: &str, actual: &Velocities, tolerance: f64) {
        for (stream, actual) in [("0", &actual.video), ("1", &actual.audio)] {
            let name = format!("{name}.{stream}");
            check(&name, actual, self.golden.get(&name), tolerance);
        }
    }
}

fn same(a: &Velocities, b: &Velocities) -> bool {
    a.video == b.video && a.audio == b.audio
}

#[test]
fn adapters_beside_the_weights_equal_the_reference() {
    let mut model = Model::open(Kind::Float);
    for (name, mut choices) in stacks() {
        let actual = model.with(&choices);
        model.check(&format!("{name}.out"), &actual, TOLERANCE);
        choices.reverse();
        assert!(
            same(&model.with(&choices), &actual),
            "{name} in another order"
        );
    }
}

#[test]
fn adapters_in_the_weights_equal_the_reference() {
    for (name, choices) in stacks() {
        let model = Model::fused(Kind::Float, &choices);
        model.check(&format!("{name}.out"), &model.forward(), TOLERANCE);
    }
    // Rounded to bfloat16 once, where the golden rounds after each adapter.
    let (_, stack) = stacks().pop().unwrap();
    let files: Vec<(AdapterFile, f64)> = stack
        .iter()
        .map(|choice| {
            (
                AdapterFile::open(&file(&choice.name)).unwrap(),
                choice.strength,
            )
        })
        .collect();
    let reference = Reference::v2_3();
    let fused = |(name, tensor): (String, Tensor)| {
        let tensor = match name.strip_suffix(".weight") {
            Some(layer) if tensor.dim() == 2 => Fused(&files)
                .apply(Component::Transformer, layer, tensor)
                .unwrap(),
            _ => tensor,
        };
        (name, tensor)
    };
    let stored = reference.tensors("transformer", |name| Some(name.to_owned()));
    let tensors = stored.into_iter().map(fused).collect();
    let store = Store::new("transformer", tensors, Kind::Float, Device::Cpu);
    let mut model = Model::fused(Kind::Float, &[]);
    model.case.model = Transformer::new(&model.case.config, &store.root(), &Kernels::Plain);
    store.finish().unwrap();
    let actual = model.forward();
    model.check("stack.fused_bfloat16.out", &actual, 4e-3);
    model.check("stack.out", &actual, 6e-3);
}

#[test]
fn the_alpha_of_a_file_counts() {
    let folder = tempfile::tempdir().unwrap();
    let copy = edited(folder.path(), "scaled", |tensors| {
        tensors.retain(|name, _| !name.ends_with(".alpha"));
    });
    let mut model = Model::open(Kind::Float);
    let file = AdapterFile::open(&copy).unwrap();
    model.adapters.load("without", &file).unwrap();
    let actual = model.with(&[choice("without", 1.0)]);
    let error = relative_error(&actual.video, model.golden.get("scaled.1.out.0"));
    assert!(error > 1e-2, "{error:e}");
}

/// Whatever acted before, what acts now is all that counts.
#[test]
fn changes_leave_nothing_behind() {
    let mut model = Model::open(Kind::Float);
    let plain = model.forward();
    let fresh = |choices: &[Choice]| Model::open(Kind::Float).with(choices);
    // The second one changes fewer layers than the first.
    let style = [choice("style", 1.0)];
    let scaled = [choice("scaled", 1.0)];
    for choices in [&style[..], &[], &scaled, &[], &style, &scaled] {
        let actual = model.with(choices);
        assert!(same(&actual, &fresh(choices)), "{choices:?}");
    }
    let zero = model.with(&[choice("style", 0.0), choice("tone", 0.0)]);
    assert!(same(&zero, &plain));
    model.with(&style);
    model.adapters.unload("style").unwrap();
    assert!(same(&model.forward(), &plain));
    let refused = model.adapters.choose(&style).unwrap_err();
    assert_eq!(refused.to_string(), "adapter `style` is not loaded");
}

#[test]
fn sessions_with_different_adapters_do_not_meet() {
    let clip = Clip::of(Reference::v2_3());
    let pipeline = || {
        let parts = parts(&clip.reference.checkpoint(), Precision::Float32);
        let mut pipeline = Pipeline::new(parts, one_stage()).unwrap();
        for name in NAMES {
            let file = AdapterFile::open(&file(name)).unwrap();
            pipeline.adapters_mut().load(name, &file).unwrap();
        }
        pipeline
    };
    let segment = |pipeline: &mut Pipeline, adapters: &[Choice]| {
        let request = Request {
            num_inference_steps: 2,
            start: Start::Noise,
            adapters,
            ..clip.request()
        };
        let mut output = Recorder::default();
        pipeline.generate(&request, &mut output).unwrap();
        (output.frames(), output.sound)
    };
    let sessions = [
        vec![choice("style", 0.7)],
        vec![choice("tone", 1.0), choice("scaled", -0.5)],
        Vec::new(),
    ];
    let alone: Vec<_> = sessions
        .iter()
        .map(|adapters| segment(&mut pipeline(), adapters))
        .collect();
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2]);
    let mut shared = pipeline();
    for _ in 0..2 {
        for (adapters, alone) in sessions.iter().zip(&alone) {
            assert!(segment(&mut shared, adapters) == *alone, "{adapters:?}");
        }
    }
}

/// Another adapter under the name of one that was unloaded: nothing of the first one is kept.
#[test]
fn a_name_can_be_used_again() {
    let clip = Clip::of(Reference::v2_3());
    let parts = parts(&clip.reference.checkpoint(), Precision::Float32);
    let mut pipeline = Pipeline::new(parts, one_stage()).unwrap();
    let mut segment_of = |name: &str| {
        let adapters = pipeline.adapters_mut();
        adapters
            .load("it", &AdapterFile::open(&file(name)).unwrap())
            .unwrap();
        let request = Request {
            num_inference_steps: 1,
            adapters: &[choice("it", 1.0)],
            ..clip.request()
        };
        let mut output = Recorder::default();
        pipeline.generate(&request, &mut output).unwrap();
        pipeline.adapters_mut().unload("it").unwrap();
        output.frames()
    };
    let (first, second) = (segment_of("style"), segment_of("scaled"));
    assert!(first != second);
    assert!(segment_of("style") == first);
}

/// Writes a changed copy of an adapter.
fn edited(folder: &Path, name: &str, edit: impl FnOnce(&mut BTreeMap<String, Stored>)) -> PathBuf {
    let source = tempfile::tempdir().unwrap();
    fs::copy(file(name), source.path().join("it.safetensors")).unwrap();
    let mut tensors: BTreeMap<String, Stored> = tensors_of(source.path()).into_iter().collect();
    edit(&mut tensors);
    let path = folder.join("edited.safetensors");
    write_file(&path, &tensors, BTreeMap::new());
    path
}

#[test]
fn files_that_cannot_be_applied_are_refused_by_name() {
    const DOWN: &str = "diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight";
    const UP: &str = "diffusion_model.transformer_blocks.0.attn1.to_q.lora_B.weight";
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::open(Kind::Float);
    let before = model.forward();
    let renamed = |to: &'static str| {
        move |tensors: &mut BTreeMap<String, Stored>| {
            let tensor = tensors.remove(DOWN).unwrap();
            tensors.insert(to.to_owned(), tensor);
        }
    };
    type Edit = Box<dyn FnOnce(&mut BTreeMap<String, Stored>)>;
    let cases: Vec<(Edit, &[&str])> = vec![
        (
            Box::new(renamed(
                "diffusion_model.transformer_blocks.0.attn1.to_q.dora_scale",
            )),
            &["dora_scale", "a DoRA adapter"],
        ),
        (
            Box::new(renamed(
                "diffusion_model.transformer_blocks.0.attn1.to_q.lokr_w1",
            )),
            &["lokr_w1", "a LoKr adapter"],
        ),
        (
            Box::new(renamed(
                "diffusion_model.transformer_blocks.0.attn1.to_q.hada_w1_a",
            )),
            &["hada_w1_a", "a LoHa adapter"],
        ),
        (
            Box::new(renamed(
                "diffusion_model.transformer_blocks.0.attn1.to_q.diff_b",
            )),
            &["diff_b", "a difference of whole tensors"],
        ),
        (
            Box::new(renamed(
                "diffusion_model.transformer_blocks.0.attn1.to_q.gamma",
            )),
            &["gamma", "expected `.lora_A.weight`"],
        ),
        (
            Box::new(move |tensors| drop(tensors.remove(DOWN))),
            &[UP, "has no partner"],
        ),
        (
            Box::new(move |tensors| {
                let (dtype, shape, data) = tensors.remove(UP).unwrap();
                let half = data[..data.len() / 2].to_vec();
                tensors.insert(UP.to_owned(), (dtype, vec![shape[0], shape[1] / 2], half));
            }),
            &[DOWN, UP, "have no common rank", "[4, 64]", "[64, 2]"],
        ),
        (
            Box::new(move |tensors| {
                let (dtype, shape, data) = tensors.remove(DOWN).unwrap();
                let shape = vec![shape[0], shape[1], 1, 1];
                tensors.insert(DOWN.to_owned(), (dtype, shape, data));
            }),
            &[DOWN, "[4, 64, 1, 1]", "adapters of convolutions"],
        ),
        (
            Box::new(move |tensors| {
                let bytes = &mut tensors.get_mut(DOWN).unwrap().2;
                bytes[..2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
            }),
            &[DOWN, "no finite numbers"],
        ),
        (
            Box::new(|tensors| {
                for name in tensors.keys().cloned().collect::<Vec<_>>() {
                    let tensor = tensors.remove(&name).unwrap();
                    let to = name.replace("transformer_blocks.", "transformer_blocks.9");
                    tensors.insert(to, tensor);
                }
            }),
            &[
                "the model has no layer `transformer_blocks.9",
                "and ",
                " more",
            ],
        ),
        (
            Box::new(move |tensors| {
                let (dtype, shape, data) = tensors.remove(UP).unwrap();
                let half = data[..data.len() / 2].to_vec();
                tensors.insert(UP.to_owned(), (dtype, vec![shape[0] / 2, shape[1]], half));
            }),
            &["`transformer_blocks.0.attn1.to_q` is [32, 64], but the model's layer is [64, 64]"],
        ),
        (
            Box::new(move |tensors| {
                let alpha = (Dtype::F32, vec![2], vec![0; 8]);
                let name = "diffusion_model.transformer_blocks.0.attn1.to_q.alpha";
                tensors.insert(name.to_owned(), alpha);
            }),
            &["to_q.alpha", "expected one number, given [2]"],
        ),
    ];
    for (edit, expected) in cases {
        let path = edited(folder.path(), "style", edit);
        let loaded = AdapterFile::open(&path).and_then(|file| model.adapters.load("it", &file));
        let told = loaded.unwrap_err().to_string();
        for part in [&["edited.safetensors"], expected].concat() {
            assert!(told.contains(part), "{told}: expected `{part}`");
        }
        assert!(same(&model.forward(), &before));
    }

    // What is no adapter, and what needs more than one.
    let pickle = folder.path().join("style.pt");
    fs::write(&pickle, "").unwrap();
    let refused = AdapterFile::open(&pickle).unwrap_err().to_string();
    assert!(
        refused.ends_with("expected a safetensors file"),
        "{refused}"
    );
    let broken = folder.path().join("broken.safetensors");
    fs::write(&broken, "not a header").unwrap();
    let refused = AdapterFile::open(&broken).unwrap_err().to_string();
    assert!(refused.contains("truncated or damaged"), "{refused}");
    let reference = folder.path().join("reference.safetensors");
    let source = tempfile::tempdir().unwrap();
    fs::copy(file("style"), source.path().join("it.safetensors")).unwrap();
    let metadata = [("reference_downscale_factor".to_owned(), "2".to_owned())];
    write_file(
        &reference,
        &tensors_of(source.path()).into_iter().collect(),
        metadata.into(),
    );
    let refused = AdapterFile::open(&reference).unwrap_err().to_string();
    assert!(refused.contains("an IC adapter"), "{refused}");
}

#[test]
fn an_adapter_of_the_other_generation_is_refused() {
    let mut older = parts(&Reference::open().checkpoint(), Precision::Float32);
    let tone = AdapterFile::open(&file("tone")).unwrap();
    let refused = older.adapters.load("tone", &tone).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("the model has no layer `prompt_adaln.linear`"),
        "{refused}"
    );
}

#[test]
fn limits_and_strengths_are_kept() {
    let mut model = Model::open(Kind::Float);
    let adapters = &mut model.adapters;
    for (choices, told) in [
        (vec![choice("other", 1.0)], "adapter `other` is not loaded"),
        (
            vec![choice("style", 1.0), choice("style", 0.5)],
            "adapter `style` is named twice",
        ),
        (
            vec![choice("style", 2.5)],
            "adapter `style`: expected a strength of -2 to 2, given 2.5",
        ),
        (
            vec![choice("style", f64::NAN)],
            "adapter `style`: expected a strength of -2 to 2, given NaN",
        ),
    ] {
        assert_eq!(adapters.choose(&choices).unwrap_err().to_string(), told);
    }
    let style = AdapterFile::open(&file("style")).unwrap();
    let refused = adapters.load("style", &style).unwrap_err();
    assert_eq!(refused.to_string(), "adapter `style` is loaded already");

    let limited = |limits: Limits| {
        let reference = Reference::v2_3();
        let options = load::Options {
            adapter_limits: limits,
            ..load::Options::new(Device::Cpu, Precision::Float32, Kernels::Plain)
        };
        let checkpoint = Checkpoint::open(&reference.checkpoint()).unwrap();
        load::load(&checkpoint, &options, |_| {}).unwrap().adapters
    };
    let ranks = Limits {
        rank: 11,
        ..Limits::default()
    };
    let mut adapters = limited(ranks);
    for name in NAMES {
        let file = AdapterFile::open(&file(name)).unwrap();
        adapters.load(name, &file).unwrap();
    }
    // 4 and 8 in the attention to the text.
    let both = [choice("style", 1.0), choice("scaled", 1.0)];
    let refused = adapters.choose(&both).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "adapters: expected ranks (`loras_max_rank`) of at most 11, given 12"
    );
    adapters
        .choose(&[choice("style", 1.0), choice("tone", 1.0)])
        .unwrap();

    let size = style.bytes().len() as u64;
    let copy = AdapterFile::copy(&file("style"), size).unwrap();
    assert_eq!(copy.bytes(), style.bytes());
    let refused = AdapterFile::copy(&file("style"), size - 1).unwrap_err();
    assert!(refused.to_string().contains("a file in bytes"), "{refused}");
    for (limits, what) in [
        (
            Limits {
                loaded_bytes: 1000,
                ..Limits::default()
            },
            "memory in bytes",
        ),
        (
            Limits {
                rank: 3,
                ..Limits::default()
            },
            "a rank",
        ),
    ] {
        let refused = limited(limits).load("style", &style).unwrap_err();
        assert!(matches!(refused, AdapterError::Limit { .. }), "{refused}");
        assert!(refused.to_string().contains(what), "{refused}");
    }
}

#[test]
fn loaded_adapters_are_listed() {
    let model = Model::open(Kind::Float);
    let reports = model.adapters.reports();
    let names: Vec<&str> = reports.iter().map(|report| report.name.as_str()).collect();
    assert_eq!(names, ["scaled", "style", "tone"]);
    let style = &reports[1];
    assert_eq!((style.rank, style.metadata["format"].as_str()), (4, "pt"));
    // Stored in two bytes each, loaded in four.
    let stored = AdapterFile::open(&style.path).unwrap().bytes().len() as u64;
    assert!(
        style.bytes > stored && style.bytes < 2 * stored,
        "{style:?}"
    );
}

/// The checkpoint is refused whole when an adapter that belongs into its weights does not fit.
#[test]
fn an_adapter_for_the_weights_is_checked_before_they_are_loaded() {
    let reference = Reference::open();
    let checkpoint = Checkpoint::open(&reference.checkpoint()).unwrap();
    let options = load::Options {
        fused: vec![(file("tone"), 1.0)],
        ..load::Options::new(Device::Cpu, Precision::Float32, Kernels::Plain)
    };
    let refused = load::check_with(&checkpoint, &options).unwrap_err();
    assert!(
        refused.to_string().contains("tone.safetensors"),
        "{refused}"
    );
}
