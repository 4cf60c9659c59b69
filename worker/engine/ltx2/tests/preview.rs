//! The preview decoder against the reference, and previews of whole segments.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fastvideo_ltx2::checkpoint::Checkpoint;
use fastvideo_ltx2::load;
use fastvideo_ltx2::nn::Precision;
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pipeline::{
    Conditioning, Latents, Output, OutputError, Pipeline, Previews, Request, Resume, Settings,
    Stage, Start, Step,
};
use fastvideo_ltx2::preview::PreviewDecoder;
use fastvideo_ltx2::sampling::latents::{self, VideoGrid};
use tch::{Device, Kind, Tensor};

use crate::pipeline::{Case, Recorder, one_stage};
use crate::reference::{Golden, Reference, check};

/// The channels of the tiny checkpoints' latents.
const CHANNELS: i64 = 8;

fn folder() -> PathBuf {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../tests/reference/data-preview"
    ))
    .to_owned()
}

fn file() -> PathBuf {
    folder().join("decoder.safetensors")
}

fn golden() -> Golden {
    Golden::read(&folder().join("golden.safetensors"))
}

fn decoder(kind: Kind) -> PreviewDecoder {
    PreviewDecoder::load(&file(), CHANNELS, kind, Device::Cpu, false).unwrap()
}

#[test]
fn frames_equal_the_reference() {
    let golden = golden();
    let (latents, expected) = (golden.get("latents"), golden.get("frames"));
    let decoder = decoder(Kind::Float);
    let all: Vec<i64> = (0..expected.size()[0]).collect();
    check("all", &decoder.decode(latents, &all), expected, 2e-6);
    // Each needs other frames than the rest.
    for frame in all {
        let alone = decoder.decode(latents, &[frame]);
        let expected = expected.narrow(0, frame, 1);
        check(&format!("frame {frame}"), &alone, &expected, 2e-6);
    }
    for frames in [&[2, 5, 11, 24][..], &[0, 24], &[7, 8, 9]] {
        let expected = expected.index_select(0, &Tensor::from_slice(frames));
        let some = decoder.decode(latents, frames);
        check(&format!("frames {frames:?}"), &some, &expected, 2e-6);
    }
}

#[test]
fn pictures_are_rounded_to_8_bits() {
    let golden = golden();
    let rgb8 = decoder(Kind::Float).decode_rgb8(golden.get("latents"), &[3, 20]);
    let chosen = Tensor::from_slice(&[3_i64, 20]);
    let expected = golden.get("frames").index_select(0, &chosen) * 255;
    let expected = expected.permute([0, 2, 3, 1]);
    assert_eq!(rgb8.kind(), Kind::Uint8);
    let off = (rgb8.to_kind(Kind::Float) - expected).abs().max();
    assert!(off.double_value(&[]) <= 0.501);
}

#[test]
fn bfloat16_shows_nearly_the_same() {
    let golden = golden();
    let all: Vec<i64> = (0..golden.get("frames").size()[0]).collect();
    let frames = decoder(Kind::BFloat16).decode(golden.get("latents"), &all);
    check("bfloat16", &frames, golden.get("frames"), 2e-2);
}

type Tensors = BTreeMap<String, Tensor>;

/// Writes the decoder's file, changed, and returns why it is refused. What names and shapes show is noticed without reading
/// values.
fn refused(change: impl FnOnce(&mut Tensors), by_values: bool) -> String {
    let read = Tensor::read_safetensors(file()).unwrap();
    let mut tensors: Tensors = read.into_iter().collect();
    change(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    let tensors: Vec<_> = tensors.into_iter().collect();
    Tensor::write_safetensors(&tensors, &path).unwrap();
    let load = |dry| PreviewDecoder::load(&path, CHANNELS, Kind::Float, Device::Cpu, dry);
    if by_values {
        assert!(load(true).is_ok());
    } else {
        assert!(load(true).is_err());
    }
    let error = load(false).unwrap_err().to_string();
    assert!(error.contains("changed.safetensors"), "{error}");
    error
}

#[track_caller]
fn says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Float, Device::Cpu))
}

#[test]
fn decoders_of_other_models_are_refused_by_name() {
    for (channels, name) in [
        (16, "taew2_1"),
        (24, "taeh3"),
        (32, "taehv1_5"),
        (48, "taew2_2"),
    ] {
        let error = refused(
            |tensors| {
                let shape = [12, channels, 3, 3];
                tensors.insert("decoder.1.weight".to_owned(), zeros(&shape));
            },
            false,
        );
        says(&error, &[name, "`taeltx_2` or `taeltx2_3`", "have 8"]);
    }
    let error = refused(
        |tensors| {
            tensors.insert("decoder.3.conv.6.weight".to_owned(), zeros(&[12, 12, 3, 3]));
        },
        false,
    );
    says(&error, &["`taeltx2_3_wide`", "`taeltx_2` or `taeltx2_3`"]);
    let error = refused(
        |tensors| {
            tensors.insert("decoder.0.weight".to_owned(), zeros(&[12, 8, 1, 1]));
        },
        false,
    );
    says(&error, &["`super`"]);
    let error = refused(
        |tensors| {
            let all = std::mem::take(tensors);
            tensors.extend(all.into_iter().map(|(name, t)| (format!("vae.{name}"), t)));
        },
        false,
    );
    says(&error, &["no decoder of TAEHV"]);
    // One that does not double the frames in its first stage.
    let error = refused(
        |tensors| {
            tensors.insert("decoder.7.conv.weight".to_owned(), zeros(&[12, 12, 1, 1]));
        },
        false,
    );
    says(
        &error,
        &[
            "`decoder.7.conv.weight`",
            "[24, 12, 1, 1]",
            "[12, 12, 1, 1]",
        ],
    );
}

#[test]
fn damaged_decoders_are_refused_with_the_tensor() {
    let error = refused(
        |tensors| {
            tensors.remove("decoder.16.conv.2.bias");
        },
        false,
    );
    says(&error, &["no tensor `decoder.16.conv.2.bias`"]);
    let error = refused(
        |tensors| {
            tensors.insert("decoder.23.weight".to_owned(), zeros(&[1]));
        },
        false,
    );
    says(&error, &["unexpected tensor `decoder.23.weight`"]);
    let error = refused(
        |tensors| {
            let bad = zeros(&[48]).fill_(f64::NAN);
            tensors.insert("decoder.22.bias".to_owned(), bad);
        },
        true,
    );
    says(&error, &["`decoder.22.bias`", "no finite numbers"]);

    let folder = tempfile::tempdir().unwrap();
    let load = |path: &Path| {
        let loaded = PreviewDecoder::load(path, CHANNELS, Kind::Float, Device::Cpu, true);
        loaded.unwrap_err().to_string()
    };
    let short = folder.path().join("short.safetensors");
    std::fs::write(&short, &std::fs::read(file()).unwrap()[..100_000]).unwrap();
    says(
        &load(&short),
        &["short.safetensors", "truncated or damaged"],
    );
    says(
        &load(&folder.path().join("none.safetensors")),
        &["cannot read"],
    );
    let pickle = folder.path().join("taeltx_2.pth");
    says(
        &load(&pickle),
        &["taeltx_2.pth", "pickle", "convert it to safetensors"],
    );
    says(
        &load(&folder.path().join("x.gguf")),
        &["expected a safetensors file"],
    );
}

#[test]
fn an_encoder_beside_the_decoder_is_left_out() {
    let read = Tensor::read_safetensors(file()).unwrap();
    let mut tensors: Vec<_> = read.into_iter().collect();
    tensors.push(("encoder.0.weight".to_owned(), zeros(&[64, 48, 3, 3])));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("both.safetensors");
    Tensor::write_safetensors(&tensors, &path).unwrap();
    PreviewDecoder::load(&path, CHANNELS, Kind::Float, Device::Cpu, false).unwrap();
}

/// Keeps all that comes, previews included.
#[derive(Default)]
struct Viewer {
    segment: Recorder,
    asks: bool,
    /// Whether it fails when previews come.
    fails: bool,
    /// What has come, in order: the stages that began, `previews`, and `decoding`.
    order: Vec<String>,
    positions: Vec<i64>,
    num_frames: i64,
    rgb8: Option<Tensor>,
}

impl Viewer {
    fn asking() -> Self {
        Self {
            asks: true,
            ..Self::default()
        }
    }
}

impl Output for Viewer {
    fn cancelled(&self) -> bool {
        self.segment.cancelled()
    }

    fn begin(&mut self, stage: Stage) {
        self.order.push(format!("{stage:?}"));
    }

    fn begin_decoding(&mut self) {
        self.order.push("decoding".to_owned());
    }

    fn step(&mut self, step: &Step<'_>) {
        self.segment.step(step);
    }

    fn takes_previews(&self) -> bool {
        self.asks
    }

    fn previews(&mut self, previews: &Previews<'_>) {
        assert!(!self.fails, "a viewer that fails on purpose");
        self.order.push("previews".to_owned());
        self.positions = previews.positions.to_vec();
        self.num_frames = previews.num_frames;
        self.rgb8 = Some(previews.rgb8.copy());
    }

    fn sound(&mut self, samples: &[f32]) -> Result<(), OutputError> {
        self.segment.sound(samples)
    }

    fn frames(&mut self, rgb8: &Tensor) -> Result<(), OutputError> {
        Output::frames(&mut self.segment, rgb8)
    }
}

fn pipeline(reference: &Reference, settings: Settings) -> Pipeline {
    let options = load::Options {
        preview_decoder: Some(file()),
        ..load::Options::new(Device::Cpu, Precision::Float32, Kernels::Plain)
    };
    let checkpoint = Checkpoint::open(&reference.checkpoint()).unwrap();
    load::check_with(&checkpoint, &options).unwrap();
    Pipeline::new(load::load(&checkpoint, &options, |_| {}).unwrap(), settings).unwrap()
}

fn settings() -> Settings {
    Settings {
        preview_frames: 3,
        ..Settings::default()
    }
}

/// The settings' request in two stages.
fn request(case: &Case) -> Request<'_> {
    let request = case.request();
    Request {
        height: 2 * request.height,
        width: 2 * request.width,
        ..request
    }
}

/// The pictures of a first stage's latents.
fn expected(request: &Request<'_>, video: &Tensor, frames: &[i64]) -> Tensor {
    let grid = VideoGrid {
        channels: CHANNELS,
        frames: (request.num_frames - 1) / 8 + 1,
        height: request.height / 64,
        width: request.width / 64,
    };
    let latents = latents::unpack_video(video, &grid);
    decoder(Kind::Float).decode_rgb8(&latents, frames)
}

#[test]
fn previews_come_between_the_stages_and_change_nothing() {
    for reference in [Reference::open(), Reference::v2_3()] {
        let case = Case::of(reference);
        let request = request(&case);
        let mut plain = Recorder::default();
        let mut without = case.pipeline(Settings::default());
        let state = without.generate(&request, &mut plain).unwrap();

        let mut pipeline = pipeline(&case.reference, settings());
        for mut viewer in [
            Viewer::asking(),
            Viewer::default(),
            Viewer {
                fails: true,
                ..Viewer::asking()
            },
        ] {
            let state_here = pipeline.generate(&request, &mut viewer).unwrap();
            assert_eq!(viewer.segment.frames(), plain.frames());
            assert_eq!(viewer.segment.sound, plain.sound);
            assert_eq!(state_here.frames, state.frames);
            assert_eq!(state_here.audio_latents, state.audio_latents);
            if !viewer.asks || viewer.fails {
                assert_eq!(viewer.order, ["Denoise", "Refine", "decoding"]);
                continue;
            }
            assert_eq!(viewer.order, ["Denoise", "previews", "Refine", "decoding"]);
            assert_eq!(viewer.num_frames, 25);
            assert_eq!(viewer.positions, [7, 15, 24]);
            let video = &viewer.segment.last(Stage::Denoise).video;
            let shown = expected(&request, video, &viewer.positions);
            assert_eq!(shown.size(), [3, 64, 96, 3]);
            assert_eq!(viewer.rgb8, Some(shown));
        }
    }
}

#[test]
fn positions_count_the_frames_that_are_passed_out() {
    let case = Case::of(Reference::open());
    let mut pipeline = pipeline(
        &case.reference,
        Settings {
            preview_frames: 32,
            conditioning: Conditioning {
                num_frames: 9,
                audio_num_frames: 9,
                end_offset: 0,
            },
            ..settings()
        },
    );
    let first = request(&case);
    let before = pipeline.generate(&first, &mut Recorder::default()).unwrap();
    let continued = Request {
        start: Start::Segment(&before),
        ..first
    };
    let mut viewer = Viewer::asking();
    pipeline.generate(&continued, &mut viewer).unwrap();
    // Nine of 25 frames belong to the segment before.
    assert_eq!(viewer.num_frames, 16);
    assert_eq!(viewer.positions, (0..16).collect::<Vec<_>>());
    assert_eq!(viewer.segment.frames().size()[0], 16);
    let in_clip: Vec<i64> = (9..25).collect();
    let video = &viewer.segment.last(Stage::Denoise).video;
    assert_eq!(viewer.rgb8, Some(expected(&continued, video, &in_clip)));
}

#[test]
fn a_segment_that_goes_on_shows_previews_while_its_second_stage_is_ahead() {
    let case = Case::of(Reference::open());
    let mut pipeline = pipeline(&case.reference, settings());
    let whole = request(&case);
    let mut first = Viewer::asking();
    pipeline.generate(&whole, &mut first).unwrap();
    let copy = |latents: &Latents| Latents {
        video: latents.video.copy(),
        audio: latents.audio.copy(),
    };
    let mut rgb8_after = |stage, step| {
        let resume = Some(Resume {
            stage,
            step,
            latents: &copy(first.segment.last(stage)),
        });
        let mut viewer = Viewer::asking();
        pipeline
            .generate(&Request { resume, ..whole }, &mut viewer)
            .unwrap();
        viewer.rgb8
    };
    assert_eq!(rgb8_after(Stage::Denoise, 8), first.rgb8);
    assert_eq!(rgb8_after(Stage::Refine, 2), None);
}

#[test]
fn one_stage_has_no_previews() {
    let case = Case::of(Reference::open());
    let mut pipeline = pipeline(&case.reference, one_stage());
    let mut viewer = Viewer::asking();
    pipeline.generate(&case.request(), &mut viewer).unwrap();
    assert_eq!(viewer.order, ["Denoise", "decoding"]);
}

#[test]
fn a_decoder_that_does_not_fit_stops_the_load_before_weights_are_read() {
    let options = load::Options {
        preview_decoder: Some(folder().join("golden.safetensors")),
        ..load::Options::new(Device::Cpu, Precision::Float32, Kernels::Plain)
    };
    let checkpoint = Checkpoint::open(&Reference::open().checkpoint()).unwrap();
    let error = load::check_with(&checkpoint, &options).unwrap_err();
    says(
        &error.to_string(),
        &["golden.safetensors", "no decoder of TAEHV"],
    );
}
