//! Loading: creates the engine, loads it and warms it up, and tells the supervisor when it is ready.

use std::io;
use std::time::{Duration, Instant};

use fastvideo_proto::ids::{JobId, SessionId};
use fastvideo_proto::job::{MediaMode, VideoFormat};
use fastvideo_proto::link::{EngineSpec, Event, JobSpec, LoadSpec, ReadyReport, WarmupSpec};
use serde::de::DeserializeOwned;

#[cfg(feature = "torch")]
use crate::engine::ltx2;
use crate::engine::synthetic::{self, Synthetic};
use crate::engine::{Engine, EngineError};
use crate::faults::{FaultPoint, FaultSpec, Faults};
use crate::gpu_memory::GpuMemory;
use crate::held_states::{HeldStates, SharedState};
use crate::job::{JobLoop, SegmentStart};
use crate::link::EventSender;
use crate::media::encoder_thread::{EncoderThread, EncoderThreadGone, MediaTarget};
use crate::step_snapshot::{ModelIdentity, SnapshotMaker};

/// The number of segments that warm-up generates.
const WARMUP_SEGMENTS: u32 = 2;

/// The reason why a worker did not become ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("warm-up failed")]
    Warmup(#[source] EngineError),
    #[error("cannot start the encoder's thread")]
    EncoderThread(#[source] io::Error),
    #[error(transparent)]
    EncoderThreadGone(#[from] EncoderThreadGone),
}

impl LoadError {
    /// Returns whether another process would fail in the same way, because the model, the machine and the configured
    /// size stay the same.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Engine(error) | Self::Warmup(error) => {
                matches!(error, EngineError::Unusable(_) | EngineError::Refused(_))
            }
            Self::EncoderThread(_) | Self::EncoderThreadGone(_) => false,
        }
    }
}

/// Loads the engine and warms it up. The supervisor has been sent [`Event::Ready`] when this returns.
///
/// # Errors
/// Returns an error when the worker cannot serve. The supervisor has not been told then.
pub(crate) fn load(
    spec: &LoadSpec,
    events: &EventSender,
    gpu_memory: GpuMemory,
) -> Result<JobLoop, LoadError> {
    let (mut engine, faults) = engine(&spec.engine, spec.format)?;
    let mut faults = Faults::new(&faults, spec.gpu.0, spec.incarnation, events.clone());
    faults.reach(FaultPoint::Boot, None)?;
    let started = Instant::now();
    faults.reach(FaultPoint::Load, None)?;
    let progress = events.clone();
    let loaded = engine.load(Box::new(move |fraction, what| {
        let what = what.to_owned();
        progress.send(Event::LoadProgress { fraction, what });
    }))?;
    let load = started.elapsed();
    let mut jobs = JobLoop {
        engine,
        audio: loaded.audio,
        encoder: EncoderThread::start().map_err(LoadError::EncoderThread)?,
        encoder_spec: spec.encoder.clone(),
        faults,
        events: events.clone(),
        held_states: HeldStates::default(),
        gpu_memory,
        model: ModelIdentity::new(&spec.engine, &loaded.model_id, &loaded.adapters),
    };
    jobs.look_at_memory();
    let warmup = match &spec.warmup {
        Some(warmup) => {
            events.send(Event::WarmingUp);
            jobs.faults.reach(FaultPoint::Warmup, None)?;
            warm_up(&mut jobs, warmup).map_err(LoadError::Warmup)?
        }
        None => Vec::new(),
    };
    jobs.look_at_memory();
    let first = jobs.encode_params(spec.format, MediaMode::AvFmp4);
    jobs.encoder.open_ahead(first)?;
    events.send(Event::Ready(Box::new(ReadyReport {
        model_id: loaded.model_id,
        device: loaded.device,
        audio_sample_rate: loaded.audio.map(|audio| audio.sample_rate),
        load,
        warmup,
        adapters: loaded.adapters,
    })));
    jobs.faults.reach(FaultPoint::Idle, None)?;
    Ok(jobs)
}

/// Creates the requested engine, which is not loaded yet, and returns it with the faults to inject while it runs.
/// `format` is that of the default request.
pub(crate) fn engine(
    spec: &EngineSpec,
    format: VideoFormat,
) -> Result<(Box<dyn Engine>, Vec<FaultSpec>), EngineError> {
    match spec.name.as_str() {
        synthetic::NAME => {
            let options: synthetic::Options = engine_options(spec)?;
            let faults = options.faults.clone();
            Ok((Box::new(Synthetic::new(options, format)), faults))
        }
        #[cfg(feature = "torch")]
        ltx2::NAME => {
            let engine = ltx2::Ltx2::new(engine_options(spec)?, format);
            Ok((Box::new(engine), Vec::new()))
        }
        #[cfg(not(feature = "torch"))]
        "ltx2" => Err(EngineError::Unusable(
            "this worker was built without the engine ltx2; `make build ENGINE=ltx2` builds one with it"
                .to_owned(),
        )),
        name => Err(EngineError::Unusable(format!("there is no engine {name}"))),
    }
}

fn engine_options<T: DeserializeOwned>(spec: &EngineSpec) -> Result<T, EngineError> {
    serde_json::from_str(&spec.options).map_err(|error| {
        EngineError::Unusable(format!(
            "the options of engine {} are wrong: {error}",
            spec.name
        ))
    })
}

/// Generates two segments, the second from the first one's state, so that both paths of the engine are warm. Returns
/// the time that each of them took.
fn warm_up(jobs: &mut JobLoop, warmup: &WarmupSpec) -> Result<Vec<Duration>, EngineError> {
    let mut start = SegmentStart::default();
    let mut durations = Vec::new();
    for segment_idx in 0..WARMUP_SEGMENTS {
        let spec = warmup_job(warmup, segment_idx);
        let segment = jobs.generate(&spec, &start, SnapshotMaker::none(), &MediaTarget::Discard);
        let segment = segment.map_err(|failed| failed.error)?;
        durations.push(segment.generation);
        start.state = Some(SharedState {
            header: segment.header,
            blob: Some(segment.blob),
        });
    }
    Ok(durations)
}

/// Creates a job that belongs to no session. Its media are discarded.
fn warmup_job(warmup: &WarmupSpec, segment_idx: u32) -> JobSpec {
    JobSpec {
        job: JobId(0),
        session: SessionId::random(),
        segment_idx,
        attempt: 1,
        prompt: warmup.prompt.clone(),
        negative_prompt: None,
        seed: 0,
        num_inference_steps: warmup.num_inference_steps,
        guidance_scale: 1.0,
        adapters: Vec::new(),
        format: warmup.format,
        media_mode: MediaMode::AvFmp4,
        start_frame: u64::from(segment_idx * warmup.format.num_frames),
        initial_image: None,
        state: None,
        snapshot: None,
        snapshot_min_step: None,
        previews: true,
        video: None,
        window: 0,
        trace: None,
    }
}
