//! The bench, at small sizes.

use fastvideo_ltx2::bench::{
    self, BenchError, BenchSpec, Model, Part, Request, SegmentsSpec, Size,
};
use fastvideo_ltx2::checkpoint::Checkpoint;
use fastvideo_ltx2::device::{Compute, Wanted};
use fastvideo_ltx2::nn::Precision;
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pipeline::{Conditioning, Pipeline, Settings};
use fastvideo_ltx2::video_vae::Tiling;

use crate::reference::Reference;

/// The reference checkpoint and a request as small as it allows.
fn spec() -> BenchSpec {
    let reference = Reference::open();
    let settings = reference.settings();
    let size = |key: &str| settings[key].as_i64().unwrap();
    BenchSpec {
        model: Model::Checkpoint(Checkpoint::open(&reference.checkpoint()).unwrap()),
        precision: Precision::Float32,
        kernels: Kernels::Plain,
        parts: Part::ALL.to_vec(),
        request: Request {
            height: 2 * size("height"),
            width: 2 * size("width"),
            num_frames: size("num_frames"),
            kept_audio_frames: 17,
            prompt_tokens: 20,
            text_length: size("text_len"),
            ..Request::default()
        },
        tiling: Tiling::Grouped { frames: 8 },
        repeats: 1,
    }
}

#[test]
fn every_part_of_a_segment_is_measured() {
    let compute = Compute::open(Wanted::Cpu).unwrap();
    let mut told = Vec::new();
    let report = bench::run(&compute, &spec(), &mut |measured| {
        told.push(measured.name.clone())
    })
    .unwrap();
    let names: Vec<_> = report.measured.iter().map(|m| m.name.clone()).collect();
    assert_eq!(told, names);
    let needed = [
        "gemma",
        "connectors",
        "stage 1: step",
        "upsample",
        "stage 2: step",
        "decode to rgb8",
        "vocoder",
    ];
    for name in needed {
        let measured = report.measured.iter().find(|m| m.name == name);
        assert!(
            measured.is_some_and(|m| m.seconds > 0.0 && m.per_segment > 0),
            "{name}"
        );
    }
    assert!(report.segment_seconds.is_some_and(|seconds| seconds > 0.0));
}

#[test]
fn a_request_that_does_not_fit_is_refused() {
    let compute = Compute::open(Wanted::Cpu).unwrap();
    let mut spec = spec();
    spec.parts = vec![Part::Transformer];
    spec.request.height += 1;
    let error = bench::run(&compute, &spec, &mut |_| ()).unwrap_err();
    assert!(matches!(error, BenchError::Request(_)), "{error}");
}

/// Whole segments, in two processes' worth of pipelines.
#[test]
fn segments_of_each_size_are_measured() {
    let compute = Compute::open(Wanted::Cpu).unwrap();
    let spec = SegmentsSpec {
        sizes: vec![
            Size {
                width: 128,
                height: 64,
            },
            Size {
                width: 128,
                height: 128,
            },
        ],
        num_frames: 25,
        fps: 24.0,
        num_inference_steps: 1,
        repeats: 1,
    };
    let measure = || {
        let reference = Reference::open();
        let parts = crate::pipeline::parts(&reference.checkpoint(), Precision::Float32);
        let settings = Settings {
            conditioning: Conditioning {
                num_frames: 9,
                audio_num_frames: 17,
                end_offset: 0,
            },
            ..Settings::default()
        };
        let mut pipeline = Pipeline::new(parts, settings).unwrap();
        bench::segments(&compute, &mut pipeline, &spec, &mut |_| ()).unwrap()
    };
    let (first, second) = (measure(), measure());
    assert_eq!(first.len(), 2);
    for (first, second) in first.iter().zip(&second) {
        assert!((first.played_seconds - 16.0 / 24.0).abs() < 1e-9);
        assert!((first.factor - first.seconds / first.played_seconds).abs() < 1e-9);
        assert!(first.phases.refine > 0.0 && first.phases.decode > 0.0);
        assert_eq!(first.digest, second.digest);
    }
    assert_ne!(first[0].digest, first[1].digest);
    // The checkpoint makes no such size.
    let refused = SegmentsSpec {
        sizes: vec![Size {
            width: 100,
            height: 64,
        }],
        ..spec.clone()
    };
    let parts = crate::pipeline::parts(&Reference::open().checkpoint(), Precision::Float32);
    let mut pipeline = Pipeline::new(parts, Settings::default()).unwrap();
    let error = bench::segments(&compute, &mut pipeline, &refused, &mut |_| ()).unwrap_err();
    assert!(
        error.to_string().contains("width: expected a multiple"),
        "{error}"
    );
}
