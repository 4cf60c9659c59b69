//! Matrices in 8-bit floats, in the form that a CPU computes them: against the reference's section `float8`, and whole
//! passes against those of dense matrices.

use fastvideo_ltx2::adapters::{AdapterFile, Choice};
use fastvideo_ltx2::checkpoint::Checkpoint;
use fastvideo_ltx2::float8::{Matrix, Products, Rows};
use fastvideo_ltx2::generation::Generation;
use fastvideo_ltx2::load::{self, Matrices};
use fastvideo_ltx2::nn::Precision;
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pipeline::{Parts, Pipeline, Request, Settings, Start};
use fastvideo_ltx2::transformer::Velocities;
use tch::{Device, Kind, Tensor};

use crate::pipeline::Recorder;
use crate::reference::{Reference, check, relative_error, tiny_model};
use crate::transformer::{Asked, Case};

#[test]
fn rows_are_quantized_like_the_reference() {
    let golden = Reference::v2_3().golden("float8");
    for name in ["x", "w"] {
        let rows = Rows::quantize(golden.get(name));
        let values = rows.values.to_kind(Kind::Float);
        assert!(
            values == *golden.get(&format!("{name}.rows.values")),
            "{name}"
        );
        let scales = golden.get(&format!("{name}.rows.scales"));
        check(name, &rows.scales, scales, 1e-7);
    }
}

#[test]
fn products_equal_the_reference() {
    let golden = Reference::v2_3().golden("float8");
    let matrix = Matrix::quantize(golden.get("w"), Products::Wide);
    let x = Products::Wide.quantize(golden.get("x"));
    let product = matrix.forward(&x, Some(golden.get("b")), Kind::Float);
    check("rows", &product, golden.get("rows.out"), 1e-6);
    // As far from the exact product as the format is coarse.
    let error = relative_error(&product, golden.get("exact.out"));
    assert!((1e-2..6e-2).contains(&error), "{error:e}");
}

#[test]
fn large_values_and_zeros_stay_numbers() {
    let x = Tensor::from_slice(&[1e4_f32, -3e4, 463.9, 464.1, 0.0, 1e-30]).view([1, 6]);
    let rows = Tensor::cat(&[&x, &(&x * 0.0), &(&x / 1e6)], 0);
    let quantized = Rows::quantize(&rows);
    let widened = quantized.widen();
    assert!(
        bool::try_from(widened.isfinite().all()).unwrap(),
        "{widened}"
    );
    check("first row", &widened.get(0), &rows.get(0), 4e-2);
    assert!(widened.get(1) == rows.get(1));
    // Values that were stored with a scale keep it, whichever products there are.
    for products in [Products::OfRows, Products::OfTensors, Products::Wide] {
        let stored = Matrix::stored(quantized.values.shallow_clone(), 0.5, products);
        let expected = quantized.values.to_kind(Kind::Float) * 0.5;
        assert!(stored.widen() == expected);
    }
}

fn parts(reference: &Reference, matrices: Matrices) -> Parts {
    let options = load::Options {
        matrices,
        ..load::Options::new(Device::Cpu, Precision::Float32, Kernels::Plain)
    };
    let checkpoint = Checkpoint::open(&reference.checkpoint()).unwrap();
    load::load(&checkpoint, &options, |_| {}).unwrap()
}

fn float8() -> Matrices {
    Matrices::Float8 {
        dense_blocks: Vec::new(),
    }
}

/// A pass of the reference's first sample, with the adapter `style` at this strength.
fn pass(matrices: Matrices, strength: f64) -> Velocities {
    let reference = Reference::v2_3();
    let mut parts = parts(&reference, matrices);
    let style = reference
        .checkpoint()
        .with_file_name("lora/style.safetensors");
    let style = AdapterFile::open(&style).unwrap();
    parts.adapters.load("style", &style).unwrap();
    let choice = Choice {
        name: "style".to_owned(),
        strength,
    };
    parts.adapters.choose(&[choice]).unwrap();
    let mut case = Case::of(&reference, Device::Cpu, Kind::Float, &Kernels::Plain);
    case.model = parts.transformer;
    let (video, audio) = case.uniform();
    let asked = Asked::library(Generation::V2_3);
    case.single(&video, &audio, &case.text(1), asked)
}

#[test]
fn passes_stay_near_those_of_dense_matrices() {
    let dense = pass(Matrices::Dense, 0.0);
    let coarse = pass(float8(), 0.0);
    let error = relative_error(&coarse.video, &dense.video);
    assert!((1e-3..1e-1).contains(&error), "{error:e}");
    // With all blocks left out, nothing is coarse.
    let blocks = Matrices::Float8 {
        dense_blocks: (0..48).collect(),
    };
    let same = pass(blocks, 0.0);
    assert!(same.video == dense.video && same.audio == dense.audio);

    // An adapter beside the matrices is as exact as without them.
    let adapted = relative_error(
        &pass(float8(), 1.0).video,
        &pass(Matrices::Dense, 1.0).video,
    );
    assert!(adapted < 1.2 * error, "{adapted:e}, without it {error:e}");
}

/// The small trained model: one pass, and what a viewer could see of a segment.
#[test]
fn the_small_trained_model_shows_nearly_the_same() {
    let Some((tiny, goldens)) = tiny_model() else {
        return;
    };
    let segment = |matrices, steps| {
        let mut pipeline = Pipeline::new(parts(&tiny, matrices), Settings::default()).unwrap();
        let request = Request {
            prompt: "a big red circle moving right on a blue background",
            negative_prompt: None,
            seed: 10,
            num_inference_steps: steps,
            guidance_scale: 1.0,
            height: 96,
            width: 128,
            num_frames: 33,
            cut_frames: 0,
            fps: 24.0,
            start: Start::Noise,
            adapters: &[],
            resume: None,
        };
        let mut output = Recorder::default();
        pipeline.generate(&request, &mut output).unwrap();
        let latents = output.last(fastvideo_ltx2::pipeline::Stage::Denoise);
        (latents.video.copy(), output.frames())
    };
    // One pass, from noise alone: the velocity is the noise minus the prediction. Then a whole segment.
    let noise = goldens.get("0.start.step0.video");
    let velocity = |matrices| noise - segment(matrices, 1).0;
    let (dense, coarse) = (velocity(Matrices::Dense), velocity(float8()));
    let error = relative_error(&coarse, &dense);
    let cosine = Tensor::cosine_similarity(&dense.flatten(0, -1), &coarse.flatten(0, -1), 0, 1e-8);
    let ((_, frames), (_, coarse_frames)) = (segment(Matrices::Dense, 8), segment(float8(), 8));
    let apart = frames.to_kind(Kind::Double) - coarse_frames.to_kind(Kind::Double);
    let square = apart.square().mean(Kind::Double).double_value(&[]);
    let psnr = 10.0 * (255.0 * 255.0 / square).log10();
    println!(
        "float8 against float32: a pass {error:.4}, cosine {:.5}, PSNR {psnr:.1} dB",
        cosine.double_value(&[])
    );
    assert!(error < 6e-2, "{error}");
    assert!(cosine.double_value(&[]) > 0.998);
    assert!(psnr > 30.0, "{psnr}");
}
