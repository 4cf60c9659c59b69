//! Measures the engine alone. Prints measurements while it runs, and a JSON report at the end:
//! `cargo run --release -p fastvideo-ltx2 --features torch --example bench -- --help`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "prints what it measures"
)]

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use fastvideo_ltx2::bench::{self, BenchSpec, Measured, Model, Part, Request, SegmentsSpec, Size};
use fastvideo_ltx2::checkpoint::Checkpoint;
use fastvideo_ltx2::device::{Attention, Compute, Wanted};
use fastvideo_ltx2::generation::Generation;
use fastvideo_ltx2::load::{self, Matrices};
use fastvideo_ltx2::nn::Precision;
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pipeline::{Pipeline, Settings};
use fastvideo_ltx2::video_vae::Tiling;

const USAGE: &str = "\
bench [OPTIONS]   without --model: random weights in the sizes of the released model
  --model FOLDER           a checkpoint
  --generation V           of the released model, 2.0 or 2.3                 [2.0]
  --blocks N               only so many blocks of the released transformer
  --device NAME            auto, cpu, cuda or cuda:INDEX                     [auto]
  --precision NAME         bfloat16 or float32              [bfloat16 on a GPU, else float32]
  --kernels NAME           plain or cuda                           [cuda where it can be]
  --attention A,B,…        kernels that libtorch tries first, of cudnn, flash, efficient, math
  --parts A,B,…            of text, transformer, video_vae, upsampler, sound  [all]
  --height N --width N     of the second stage                               [1088, 1920]
  --frames N --fps N       of the segment                                    [121, 24]
  --kept N --kept-audio N  frames and frames' worth of sound kept            [9, 49]
  --prompt-tokens N        tokens of the prompt                              [256]
  --text-length N          tokens of the context                             [1024]
  --decode-groups N        decode so many frames of each block at once       [whole]
  --sizes WxH,WxH,…        measure whole continued segments in these sizes instead of parts
  --steps N                of the first stage                                [5]
  --matrices NAME          with --sizes: bfloat16 or float8                  [bfloat16]
  --repeats N              runs of which the median is told                  [3]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match report(&arguments) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn report(arguments: &[String]) -> Result<String, Box<dyn Error>> {
    let options = Options::read(arguments)?;
    let compute = Compute::open(options.device)?;
    if let (Some(gpu), false) = (&compute.gpu, options.attention.is_empty()) {
        gpu.set_attention_order(&options.attention)?;
    }
    let kernels = match options.kernels.as_deref() {
        None | Some("cuda") => Kernels::on(&compute),
        Some("plain") => Kernels::Plain,
        Some(other) => return Err(format!("--kernels: given {other}").into()),
    };
    if !options.sizes.is_empty() {
        return sizes(&options, &compute, kernels);
    }
    let spec = BenchSpec {
        model: options.model,
        precision: options.precision.unwrap_or(compute.default_precision()),
        kernels,
        parts: options.parts,
        request: options.request,
        tiling: options.tiling,
        repeats: options.repeats,
    };
    let report = bench::run(&compute, &spec, &mut print)?;
    Ok(serde_json::to_string_pretty(&report)?)
}

/// Measures whole segments.
fn sizes(options: &Options, compute: &Compute, kernels: Kernels) -> Result<String, Box<dyn Error>> {
    let precision = options.precision.unwrap_or(compute.default_precision());
    let load = load::Options {
        matrices: options.matrices.clone(),
        ..load::Options::new(compute.device, precision, kernels)
    };
    let parts = match &options.model {
        Model::Checkpoint(checkpoint) => load::load(checkpoint, &load, |_| {})?,
        Model::Released { generation, .. } => bench::random_parts(*generation, &load)?,
    };
    let mut pipeline = Pipeline::new(parts, Settings::default())?;
    let spec = SegmentsSpec {
        sizes: options.sizes.clone(),
        num_frames: options.request.num_frames,
        fps: options.request.fps,
        num_inference_steps: options.request.steps[0],
        repeats: options.repeats,
    };
    let reports = bench::segments(compute, &mut pipeline, &spec, &mut |report| {
        eprintln!("{}", serde_json::json!(report));
    })?;
    let device = compute.gpu.as_ref().map_or("CPU", |gpu| gpu.name());
    eprintln!("{}", bench::table(device, &reports));
    Ok(serde_json::to_string_pretty(&reports)?)
}

fn print(measured: &Measured) {
    let Measured {
        name,
        seconds,
        tflop_per_second,
        peak_gib,
        ..
    } = measured;
    let rate = tflop_per_second.map_or(String::new(), |rate| format!("{rate:8.1} TFLOP/s"));
    let peak = peak_gib.map_or(String::new(), |peak| format!("  peak {peak:.2} GiB"));
    eprintln!("{name:46} {:11.3} ms {rate:16}{peak}", 1e3 * seconds);
}

struct Options {
    device: Wanted,
    model: Model,
    precision: Option<Precision>,
    kernels: Option<String>,
    attention: Vec<Attention>,
    parts: Vec<Part>,
    request: Request,
    tiling: Tiling,
    repeats: usize,
    /// Sizes in which whole segments are measured, instead of parts.
    sizes: Vec<Size>,
    matrices: Matrices,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            device: Wanted::Auto,
            model: Model::Released {
                generation: Generation::V2_0,
                blocks: None,
            },
            precision: None,
            kernels: None,
            attention: Vec::new(),
            parts: Part::ALL.to_vec(),
            request: Request::default(),
            tiling: Tiling::Whole,
            repeats: 3,
            sizes: Vec::new(),
            matrices: Matrices::Dense,
        };
        for pair in arguments.chunks(2) {
            let [option, value] = pair else {
                return Err(format!("{}: expected a value", pair[0]).into());
            };
            options
                .set(option, value)
                .map_err(|error| format!("{option} {value}: {error}"))?;
        }
        Ok(options)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<(), Box<dyn Error>> {
        let request = &mut self.request;
        match option {
            "--model" => self.model = Model::Checkpoint(Checkpoint::open(Path::new(value))?),
            "--generation" | "--blocks" => match &mut self.model {
                Model::Checkpoint(_) => return Err("expected random weights".into()),
                Model::Released { blocks, .. } if option == "--blocks" => {
                    *blocks = Some(value.parse()?);
                }
                Model::Released { generation, .. } => {
                    *generation = Generation::of_version(value).ok_or("expected 2.0 or 2.3")?;
                }
            },
            "--device" => self.device = value.parse()?,
            "--precision" => self.precision = Some(precision(value)?),
            "--kernels" => self.kernels = Some(value.to_owned()),
            "--attention" => {
                self.attention = value.split(',').map(attention).collect::<Result<_, _>>()?;
            }
            "--parts" => self.parts = value.split(',').map(part).collect::<Result<_, _>>()?,
            "--height" => request.height = value.parse()?,
            "--width" => request.width = value.parse()?,
            "--frames" => request.num_frames = value.parse()?,
            "--fps" => request.fps = value.parse()?,
            "--kept" => request.kept_frames = value.parse()?,
            "--kept-audio" => request.kept_audio_frames = value.parse()?,
            "--prompt-tokens" => request.prompt_tokens = value.parse()?,
            "--text-length" => request.text_length = value.parse()?,
            "--decode-groups" => {
                self.tiling = Tiling::Grouped {
                    frames: value.parse()?,
                }
            }
            "--steps" => request.steps[0] = value.parse()?,
            "--sizes" => self.sizes = value.split(',').map(size).collect::<Result<_, _>>()?,
            "--matrices" => {
                self.matrices = match value {
                    "bfloat16" => Matrices::Dense,
                    "float8" => Matrices::Float8 {
                        dense_blocks: Vec::new(),
                    },
                    _ => return Err("expected bfloat16 or float8".into()),
                }
            }
            "--repeats" => self.repeats = value.parse()?,
            _ => return Err("unknown option".into()),
        }
        Ok(())
    }
}

fn size(text: &str) -> Result<Size, String> {
    let parts = text.split_once('x');
    let sizes = parts.and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    let (width, height) = sizes.ok_or("expected WIDTHxHEIGHT")?;
    Ok(Size { width, height })
}

fn precision(name: &str) -> Result<Precision, String> {
    match name {
        "bfloat16" => Ok(Precision::Bfloat16),
        "float32" => Ok(Precision::Float32),
        _ => Err("expected bfloat16 or float32".to_owned()),
    }
}

fn attention(name: &str) -> Result<Attention, String> {
    match name {
        "cudnn" => Ok(Attention::Cudnn),
        "flash" => Ok(Attention::Flash),
        "efficient" => Ok(Attention::Efficient),
        "math" => Ok(Attention::Math),
        _ => Err("expected cudnn, flash, efficient or math".to_owned()),
    }
}

fn part(name: &str) -> Result<Part, String> {
    match name {
        "text" => Ok(Part::Text),
        "transformer" => Ok(Part::Transformer),
        "video_vae" => Ok(Part::VideoVae),
        "upsampler" => Ok(Part::Upsampler),
        "sound" => Ok(Part::Sound),
        _ => Err("expected text, transformer, video_vae, upsampler or sound".to_owned()),
    }
}
