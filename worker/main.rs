//! The worker: one process per GPU, started by the supervisor. It loads a model, generates segments, encodes them in
//! the same process, and sends finished fragments over its link.
//!
//! - `run`: the process and its threads; `link`: its end of the link to the supervisor.
//! - `check`: tries what `run` would need, for `fastvideo-supervisor check`.
//! - `load`: loads the engine; `job`: the job loop; `held_states`: the states that the worker holds for sessions;
//!   `step_snapshot`: the latents that a segment goes on from after its worker was lost; `video_part`: what a video job
//!   asks of a segment.
//! - `engine`: the models; `sink`: receives the frames of a job.
//! - `encode`: frames and sound to fragmented MP4; `media`: the encoder's thread, and a job's media on their way to the
//!   link.
//! - `sound`, `sound_tail`: types that engines, encoder and states share.
//! - `faults`: fault injection; `footage`, `tools`: for measuring and trying a model without a supervisor.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fastvideo_proto::job::{MediaMode, VideoFormat};
use fastvideo_proto::link::EncoderSpec;

mod check;
mod encode;
mod engine;
mod faults;
mod footage;
mod gpu_memory;
mod held_states;
mod job;
mod link;
mod load;
mod logging;
mod media;
mod phases;
mod run;
mod sink;
mod sound;
mod sound_tail;
mod step_snapshot;
#[cfg(feature = "torch")]
mod tools;
mod video_part;

/// Generates and encodes video segments on one GPU. Started by fastvideo-supervisor, not by hand.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves a supervisor until its link closes.
    Run {
        /// The name that this worker has in logs.
        #[arg(long)]
        worker_id: String,
        /// The name of the link that the supervisor has opened.
        #[arg(long)]
        link: String,
    },
    /// Tries what a worker would need, and prints JSON. Started by `fastvideo-supervisor check`.
    #[command(hide = true)]
    Check {
        /// A `CheckSpec` in JSON.
        spec: String,
    },
    /// Measures the parts of a model: time, memory, operations per second. Prints JSON.
    #[cfg(feature = "torch")]
    Bench(Box<tools::bench::BenchArgs>),
    /// Makes a video of one or several prompts with a model, without a supervisor.
    #[cfg(feature = "torch")]
    Generate(Box<tools::generate::GenerateArgs>),
    /// Tells what a model is, what it needs and whether anything is wrong with it.
    #[cfg(feature = "torch")]
    Inspect(tools::inspect::InspectArgs),
    /// Measures the encoder alone, on the frames that the synthetic engine renders ahead, and prints JSON.
    BenchEncode {
        #[arg(long, default_value_t = 1920)]
        width: u32,
        #[arg(long, default_value_t = 1088)]
        height: u32,
        #[arg(long, default_value_t = 121)]
        num_frames: u32,
        #[arg(long, default_value_t = 24)]
        fps: u32,
        #[arg(long, default_value_t = 5)]
        runs: u32,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run { worker_id, link } => {
            logging::json_to_stderr();
            // Returned from `main`, the error would be several lines, and with a backtrace some dozens.
            return Ok(run::run(&link).unwrap_or_else(|error| {
                tracing::error!(error = format!("{error:#}"), "worker {worker_id} stopped");
                ExitCode::FAILURE
            }));
        }
        Command::Check { spec } => check::run(&spec)?,
        #[cfg(feature = "torch")]
        Command::Bench(args) => {
            logging::text_to_stderr();
            tools::bench::run(&args)?;
        }
        #[cfg(feature = "torch")]
        Command::Generate(args) => {
            logging::text_to_stderr();
            tools::generate::run(&args)?;
        }
        #[cfg(feature = "torch")]
        Command::Inspect(args) => {
            logging::text_to_stderr();
            tools::inspect::run(&args)?;
        }
        Command::BenchEncode {
            width,
            height,
            num_frames,
            fps,
            runs,
        } => {
            let params = encode::EncodeParams {
                format: VideoFormat {
                    width,
                    height,
                    num_frames,
                    fps,
                },
                mode: MediaMode::AvFmp4,
                audio: Some(engine::synthetic::AUDIO),
                spec: EncoderSpec::default(),
            };
            let footage = footage::record(params.format)?;
            let report = encode::bench::bench(&params, &footage, runs)?;
            let mut stdout = std::io::stdout().lock();
            serde_json::to_writer(&mut stdout, &report)?;
            writeln!(stdout)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
