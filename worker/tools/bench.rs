//! The tool that measures how long the model's parts take on this machine, and how much memory they need.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use fastvideo_ltx2::bench::{
    self, BenchSpec, Measured, Model, Part, Request, SegmentsSpec, Size, SizeReport,
};
use fastvideo_ltx2::checkpoint::{Checkpoint, hub};
use fastvideo_ltx2::device::Compute;
use fastvideo_ltx2::generation::Generation;
use fastvideo_ltx2::load;
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pipeline::{Pipeline, Settings};
use fastvideo_ltx2::video_vae::Tiling;

use crate::engine::ltx2_options::{DeviceChoice, MatricesChoice, PrecisionChoice};

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArgs {
    /// A folder, a safetensors file, or the id of a Hugging Face repository.
    #[arg(long, required_unless_present = "random_full_size")]
    model: Option<String>,
    /// Random weights in the sizes of the released model, for which no checkpoint is needed.
    #[arg(long, conflicts_with = "model")]
    random_full_size: bool,
    /// The released model whose sizes random weights have.
    #[arg(long, value_enum, default_value_t = GenerationName::V2_0, conflicts_with = "model")]
    generation: GenerationName,
    /// The number of blocks of the transformer, with random weights only.
    #[arg(long, conflicts_with = "model")]
    blocks: Option<i64>,
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// How the transformer's wide matrices are kept.
    #[arg(long, value_enum, default_value_t = MatricesChoice::Bfloat16)]
    matrices: MatricesChoice,
    /// Measure whole continued segments in these sizes, WIDTHxHEIGHT, instead of each part.
    #[arg(long, value_delimiter = ',', value_parser = size, conflicts_with_all = ["parts", "height", "width", "blocks"])]
    sizes: Vec<Size>,
    /// The denoise steps of the first stage, with --sizes.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// A file that gets the table of the sizes, in Markdown.
    #[arg(long, requires = "sizes")]
    table: Option<PathBuf>,
    /// What the model computes in [default: bfloat16 on a GPU, float32 on the CPU].
    #[arg(long, value_enum, default_value_t = PrecisionChoice::Auto, hide_default_value = true)]
    precision: PrecisionChoice,
    /// Without this program's own CUDA kernels.
    #[arg(long)]
    plain: bool,
    /// What to measure [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<PartName>,
    /// The height of the picture in the second stage.
    #[arg(long, default_value_t = 1088)]
    height: i64,
    #[arg(long, default_value_t = 1920)]
    width: i64,
    #[arg(long, default_value_t = 121)]
    num_frames: i64,
    #[arg(long, default_value_t = 24.0)]
    fps: f64,
    /// The number of frames of each block to decode at once, instead of all.
    #[arg(long)]
    decode_groups: Option<i64>,
    /// The number of timed runs, whose median is reported.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum GenerationName {
    #[value(name = "2.0")]
    V2_0,
    #[value(name = "2.3")]
    V2_3,
}

impl GenerationName {
    fn generation(self) -> Generation {
        match self {
            Self::V2_0 => Generation::V2_0,
            Self::V2_3 => Generation::V2_3,
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum PartName {
    Text,
    Transformer,
    VideoVae,
    Upsampler,
    Sound,
}

/// Prints each part on stderr as it is measured, and all of them as JSON at the end.
///
/// # Errors
/// Returns an error when there is no such device or model, or when the request does not fit it.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let compute = Compute::open(args.device.wanted())?;
    if !args.sizes.is_empty() {
        return run_sizes(args, &compute);
    }
    let spec = BenchSpec {
        model: match &args.model {
            Some(model) => Model::Checkpoint(Checkpoint::open(&folder(model)?)?),
            None => Model::Released {
                generation: args.generation.generation(),
                blocks: args.blocks,
            },
        },
        precision: args.precision.on(&compute),
        kernels: match args.plain {
            true => Kernels::Plain,
            false => Kernels::on(&compute),
        },
        parts: parts(&args.parts),
        request: Request {
            height: args.height,
            width: args.width,
            num_frames: args.num_frames,
            fps: args.fps,
            ..Request::default()
        },
        tiling: match args.decode_groups {
            Some(frames) => Tiling::Grouped { frames },
            None => Tiling::Whole,
        },
        repeats: args.repeats,
    };
    let report = bench::run(&compute, &spec, &mut tell)?;
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, &report)?;
    Ok(writeln!(stdout)?)
}

/// Measures whole segments.
fn run_sizes(args: &BenchArgs, compute: &Compute) -> anyhow::Result<()> {
    let options = load::Options {
        matrices: args.matrices.matrices(compute)?,
        ..load::Options::new(
            compute.device,
            args.precision.on(compute),
            match args.plain {
                true => Kernels::Plain,
                false => Kernels::on(compute),
            },
        )
    };
    let parts = match &args.model {
        Some(model) => {
            let checkpoint = Checkpoint::open(&folder(model)?)?;
            load::load(&checkpoint, &options, |_| {})?
        }
        None => bench::random_parts(args.generation.generation(), &options)?,
    };
    let mut pipeline = Pipeline::new(parts, Settings::default())?;
    let spec = SegmentsSpec {
        sizes: args.sizes.clone(),
        num_frames: args.num_frames,
        fps: args.fps,
        num_inference_steps: args.steps,
        repeats: args.repeats,
    };
    let reports = bench::segments(compute, &mut pipeline, &spec, &mut |report| {
        let SizeReport {
            size: Size { width, height },
            seconds,
            factor,
            ..
        } = report;
        tracing::info!("{width}x{height}: {seconds:.2} s a segment, {factor:.2} of what it plays");
    })?;
    let device = compute.gpu.as_ref().map_or("CPU", |gpu| gpu.name());
    if let Some(path) = &args.table {
        std::fs::write(path, bench::table(device, &reports))?;
    }
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, &reports)?;
    Ok(writeln!(stdout)?)
}

/// Reads a size, WIDTHxHEIGHT.
fn size(text: &str) -> Result<Size, String> {
    let parts = text.split_once('x');
    let sizes = parts.and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    match sizes {
        Some((width, height)) => Ok(Size { width, height }),
        None => Err("expected WIDTHxHEIGHT, such as 1920x1088".to_owned()),
    }
}

fn folder(model: &str) -> anyhow::Result<PathBuf> {
    Ok(hub::resolve(model, &mut |download| {
        let percent = download.fraction * 100.0;
        tracing::info!("downloading {}: {percent:.0} %", download.file);
    })?)
}

fn parts(names: &[PartName]) -> Vec<Part> {
    if names.is_empty() {
        return Part::ALL.to_vec();
    }
    let part = |name: &PartName| match name {
        PartName::Text => Part::Text,
        PartName::Transformer => Part::Transformer,
        PartName::VideoVae => Part::VideoVae,
        PartName::Upsampler => Part::Upsampler,
        PartName::Sound => Part::Sound,
    };
    names.iter().map(part).collect()
}

fn tell(measured: &Measured) {
    let Measured {
        name,
        seconds,
        tflop_per_second,
        peak_gib,
        ..
    } = measured;
    let rate = tflop_per_second.map_or_else(String::new, |rate| format!(", {rate:.1} TFLOP/s"));
    let peak = peak_gib.map_or_else(String::new, |peak| format!(", peak {peak:.2} GiB"));
    tracing::info!("{name}: {:.3} ms{rate}{peak}", 1e3 * seconds);
}
