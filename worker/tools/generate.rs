//! The tool that generates a video file from prompts, one segment each, through a worker's engine and encoder.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::job::{MediaMode, Stage};
use fastvideo_proto::link::EncoderSpec;

use crate::encode::{EncodeParams, Encoder, Media};
use crate::engine::ltx2::Ltx2;
use crate::engine::ltx2_options::Options;
use crate::engine::{Engine, EngineError, GenerateRequest, NewState, Sink, State, StepLatents};
use crate::sound::AudioFormat;

#[derive(Clone, Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: Options,
    /// What to show; each further prompt is a segment that continues the one before.
    #[arg(long, required = true)]
    prompt: Vec<String>,
    /// The video, a fragmented MP4 with sound.
    #[arg(short, long)]
    output: PathBuf,
    /// Write the frames here too, as they are before they are encoded: RGB uint8, `[frames, height, width, 3]`.
    #[arg(long)]
    raw: Option<PathBuf>,
    /// PNG, JPEG or WebP, with which the first segment begins.
    #[arg(long)]
    image: Option<PathBuf>,
    #[arg(long)]
    negative_prompt: Option<String>,
    #[arg(long, default_value_t = 768)]
    width: u32,
    #[arg(long, default_value_t = 512)]
    height: u32,
    /// Frames of a segment, with those that it takes over.
    #[arg(long, default_value_t = 121)]
    num_frames: u32,
    #[arg(long, default_value_t = 24)]
    fps: u32,
    /// Denoise steps.
    #[arg(long, default_value_t = 8)]
    steps: u32,
    #[arg(long, default_value_t = 10)]
    seed: u64,
    #[arg(long, default_value_t = 1.0)]
    guidance_scale: f64,
}

/// Generates the video and reports progress on stderr.
///
/// # Errors
/// Returns an error when the model cannot be loaded or refuses the request, or when a file cannot be written.
pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let create = |path: &PathBuf| {
        let file = File::create(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        anyhow::Ok(BufWriter::new(file))
    };
    let mut files = Files {
        video: create(&args.output)?,
        raw: args.raw.as_ref().map(create).transpose()?,
        begun: false,
    };
    let format = VideoFormat {
        width: args.width,
        height: args.height,
        num_frames: args.num_frames,
        fps: args.fps,
    };
    let mut engine = Ltx2::new(args.model.clone(), format);
    let loaded = engine.load(Box::new(|fraction, what| {
        tracing::info!("{what}: {:.0} %", fraction * 100.0);
    }))?;
    let mut before: Option<(NewState, Vec<f32>)> = None;
    let mut start_frame = 0;
    for (segment_idx, prompt) in (0..).zip(&args.prompt) {
        let begun = Instant::now();
        let state = before.as_ref().map(|(state, _)| State {
            header: &state.header,
            blob: &state.blob,
        });
        let request = GenerateRequest {
            segment_idx,
            prompt,
            negative_prompt: args.negative_prompt.as_deref(),
            seed: args.seed,
            num_inference_steps: args.steps,
            guidance_scale: args.guidance_scale,
            adapters: &[],
            format,
            cut_frames: 0,
            initial_image: args.image.as_deref().filter(|_| segment_idx == 0),
            state,
            snapshot: None,
        };
        let sound_before = before.as_ref().map_or(&[][..], |(_, sound)| sound);
        let (state, tail, frames) = segment(
            &mut engine,
            loaded.audio,
            &request,
            start_frame,
            sound_before,
            &mut files,
        )?;
        start_frame += u64::from(frames);
        let took = begun.elapsed().as_secs_f64();
        let plays = f64::from(frames) / f64::from(args.fps);
        tracing::info!("segment {segment_idx}: {plays:.2} s of video in {took:.2} s");
        before = Some((state, tail));
    }
    files.video.flush()?;
    if let Some(raw) = &mut files.raw {
        raw.flush()?;
    }
    Ok(())
}

/// Generates one segment into the files. Returns its state, the end of its sound, and its number of frames.
fn segment(
    engine: &mut Ltx2,
    audio: Option<AudioFormat>,
    request: &GenerateRequest<'_>,
    start_frame: u64,
    sound_before: &[f32],
    files: &mut Files,
) -> anyhow::Result<(NewState, Vec<f32>, u32)> {
    let frames = engine.frames(request);
    let params = EncodeParams {
        format: VideoFormat {
            num_frames: frames,
            ..request.format
        },
        mode: MediaMode::AvFmp4,
        audio,
        spec: EncoderSpec::default(),
    };
    let mut encoder = Encoder::open(&params)?;
    let mut written = Ok(());
    encoder.begin(start_frame, sound_before, &mut files.media(&mut written))?;
    let mut sink = FileSink {
        encoder: &mut encoder,
        files,
        written,
        frame_bytes: request.format.frame_bytes(),
    };
    let made = engine.generate(request, &mut sink);
    let mut written = sink.written;
    written?;
    let state = made?;
    written = Ok(());
    let tail = encoder.finish(&mut files.media(&mut written))?;
    written?;
    Ok((state, tail, frames))
}

struct Files {
    video: BufWriter<File>,
    raw: Option<BufWriter<File>>,
    /// Whether the video has its init segment; that of the first segment serves all.
    begun: bool,
}

impl Files {
    /// Returns a sink that writes media and leaves errors in `written`.
    fn media<'a>(&'a mut self, written: &'a mut std::io::Result<()>) -> impl FnMut(Media) + 'a {
        move |media| {
            let bytes = match media {
                Media::Init { .. } if std::mem::replace(&mut self.begun, true) => return,
                Media::Init { bytes, .. } | Media::Fragment { bytes } => bytes,
            };
            if written.is_ok() {
                *written = self.video.write_all(&bytes);
            }
        }
    }
}

struct FileSink<'a> {
    encoder: &'a mut Encoder,
    files: &'a mut Files,
    written: std::io::Result<()>,
    frame_bytes: usize,
}

impl Sink for FileSink<'_> {
    fn cancelled(&self) -> bool {
        false
    }

    fn step(
        &mut self,
        stage: Stage,
        step: u32,
        total_steps: u32,
        _latents: Option<&dyn StepLatents>,
    ) {
        tracing::info!("{stage:?}: step {step} of {total_steps}");
    }

    fn blank_frame(&mut self) -> Vec<u8> {
        vec![0; self.frame_bytes]
    }

    fn frame(&mut self, rgb: Arc<Vec<u8>>, sound: &[f32]) -> Result<(), EngineError> {
        let failed = |error: &dyn std::fmt::Display| EngineError::Failed(error.to_string());
        if let Some(raw) = &mut self.files.raw {
            raw.write_all(&rgb).map_err(|error| failed(&error))?;
        }
        let mut media = self.files.media(&mut self.written);
        let encoded = self.encoder.frame(&rgb, sound, &mut media);
        encoded.map_err(|error| failed(&error))
    }
}
