//! The job loop: it takes one job after the other, runs the engine, and reports the results.
//!
//! `load` creates it, `run` drives it on the main thread. It does not know how commands arrive.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastvideo_link::SharedMemory;
use fastvideo_proto::adapter::AdapterSpec;
use fastvideo_proto::ids::{JobId, SessionId};
use fastvideo_proto::job::{JobFailure, JobTiming, MediaMode, Phase, PhaseSpan, VideoFormat};
use fastvideo_proto::link::{EncoderSpec, Event, JobReport, JobSpec, JobState, VideoPictures};
use fastvideo_proto::state::{StateHeader, blob_hash};

use crate::encode::EncodeParams;
use crate::engine::{Engine, EngineError, GenerateRequest};
use crate::faults::Faults;
use crate::gpu_memory::GpuMemory;
use crate::held_states::{HeldStates, SharedState, StartStateError};
use crate::link::EventSender;
use crate::media::encoder_thread::{EncodeSegmentError, EncoderThread, MediaTarget, SegmentSpec};
use crate::media::outbox::JobOutbox;
use crate::sink::{EngineTiming, FailedSegment, JobSink};
use crate::sound::AudioFormat;
use crate::sound_tail::SoundTail;
use crate::step_snapshot::{self, ModelIdentity, SharedSnapshot, SnapshotMaker};
use crate::video_part;

/// The outboxes of all unfinished jobs, for the thread that cancels jobs and gives them flow credit.
pub(crate) type JobOutboxes = Arc<Mutex<HashMap<JobId, Arc<JobOutbox>>>>;

/// An item of work for the job loop, which processes the items in order.
#[derive(Debug)]
pub(crate) enum WorkItem {
    /// Generate a segment. The job's outbox exists already.
    Generate(Box<JobSpec>, JobBlobs),
    /// Drop the state that is held for the session.
    Forget(SessionId),
    LoadAdapter(Box<AdapterSpec>),
    /// Drop the adapter with this name.
    UnloadAdapter(String),
}

/// The memory that was sent along with a job.
#[derive(Debug, Default)]
pub(crate) struct JobBlobs {
    /// The blob of the state.
    pub(crate) state: Option<SharedMemory>,
    /// The latents of the step snapshot.
    pub(crate) snapshot: Option<SharedMemory>,
}

impl JobBlobs {
    /// Tells which of the blobs beside a job's command is which.
    pub(crate) fn of(spec: &JobSpec, blobs: Vec<SharedMemory>) -> Self {
        let mut blobs = blobs.into_iter();
        let is_sent = matches!(spec.state, Some(JobState::Sent(_)));
        Self {
            state: is_sent.then(|| blobs.next()).flatten(),
            snapshot: spec.snapshot.as_ref().and_then(|_| blobs.next()),
        }
    }
}

/// The reason why the job loop ended: the process cannot serve any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobLoopError {
    #[error("the commands' thread has ended")]
    NoCommands,
    #[error("job {0} has no outbox")]
    NoOutbox(JobId),
    /// Every further job would fail in this process.
    #[error(transparent)]
    Engine(EngineError),
}

/// A loaded engine with everything that it needs to serve.
pub(crate) struct JobLoop {
    pub(crate) engine: Box<dyn Engine>,
    /// The format of the engine's sound; `None` when it generates none.
    pub(crate) audio: Option<AudioFormat>,
    pub(crate) encoder: EncoderThread,
    pub(crate) encoder_spec: EncoderSpec,
    pub(crate) faults: Faults,
    pub(crate) events: EventSender,
    pub(crate) held_states: HeldStates,
    pub(crate) gpu_memory: GpuMemory,
    pub(crate) model: ModelIdentity,
}

/// What a segment starts from, besides its request.
#[derive(Debug, Default)]
pub(crate) struct SegmentStart {
    /// The state that it continues from.
    pub(crate) state: Option<SharedState>,
    /// The latents of an earlier attempt.
    pub(crate) snapshot: Option<SharedSnapshot>,
}

/// A segment that was generated and encoded.
#[derive(Debug)]
pub(crate) struct GeneratedSegment {
    /// The header of the new state, and its blob.
    pub(crate) header: StateHeader,
    pub(crate) blob: SharedMemory,
    pub(crate) frames: u32,
    thumbnail: Option<Vec<u8>>,
    video: Option<Box<VideoPictures>>,
    /// The time from the call until the last frame was encoded.
    pub(crate) generation: Duration,
    timing: JobTiming,
}

impl JobLoop {
    /// Serves jobs until the process cannot continue.
    ///
    /// # Errors
    /// Always returns the reason why the loop ended. A job that fails is reported, and does not end the loop.
    pub(crate) fn run(
        &mut self,
        work: &Receiver<WorkItem>,
        outboxes: &JobOutboxes,
    ) -> Result<Infallible, JobLoopError> {
        loop {
            match work.recv().map_err(|_| JobLoopError::NoCommands)? {
                WorkItem::Generate(spec, blobs) => {
                    let outbox = {
                        let outboxes = outboxes.lock().expect("no holder of this lock panics");
                        outboxes.get(&spec.job).cloned()
                    };
                    let outbox = outbox.ok_or(JobLoopError::NoOutbox(spec.job))?;
                    self.serve(&spec, blobs, &outbox)?;
                    self.look_at_memory();
                }
                WorkItem::Forget(session) => self.held_states.forget(&session),
                WorkItem::LoadAdapter(spec) => {
                    self.load_adapter(&spec)?;
                    self.look_at_memory();
                }
                WorkItem::UnloadAdapter(name) => {
                    self.engine.unload_adapter(&name);
                    self.model.forget_adapter(&name);
                    self.look_at_memory();
                }
            }
        }
    }

    /// Takes note of how much of the GPU's memory is in use.
    pub(crate) fn look_at_memory(&self) {
        self.gpu_memory.set(self.engine.gpu_bytes());
    }

    /// Loads an adapter and tells the supervisor how that went.
    ///
    /// # Errors
    /// Returns an error when the process cannot serve any more.
    fn load_adapter(&mut self, spec: &AdapterSpec) -> Result<(), JobLoopError> {
        let serial = spec.serial;
        let event = match self.engine.load_adapter(&spec.options) {
            Ok(adapter) => {
                self.model.add_adapter(&adapter, &spec.options);
                let adapter = Box::new(adapter);
                Event::AdapterLoaded { serial, adapter }
            }
            Err(error @ EngineError::Broken(_)) => return Err(JobLoopError::Engine(error)),
            Err(error) => {
                let message = error.to_string();
                Event::AdapterFailed { serial, message }
            }
        };
        self.events.send(event);
        Ok(())
    }

    /// Generates the segment of one job and reports its end to the outbox.
    fn serve(
        &mut self,
        spec: &JobSpec,
        blobs: JobBlobs,
        outbox: &Arc<JobOutbox>,
    ) -> Result<(), JobLoopError> {
        let received = Instant::now();
        let start = match self.held_states.start_state(spec, blobs.state) {
            Ok(start) => start,
            Err(StartStateError::NotHeld) => {
                outbox.fail(JobFailure::StateNotHeld, String::new(), Vec::new());
                return Ok(());
            }
            Err(StartStateError::Invalid(error)) => {
                outbox.fail(JobFailure::StateIncompatible, error.to_string(), Vec::new());
                return Ok(());
            }
        };
        let origin = step_snapshot::origin(&self.model, spec, start.as_ref());
        let snapshot = spec.snapshot.as_deref();
        let snapshot =
            snapshot.map(|header| SharedSnapshot::check(header, blobs.snapshot, &origin));
        let start = SegmentStart {
            state: start,
            snapshot: match snapshot.transpose() {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    let reason = error.to_string();
                    outbox.fail(JobFailure::SnapshotRefused, reason, Vec::new());
                    return Ok(());
                }
            },
        };
        let snapshots = SnapshotMaker::new(spec, origin);
        let target = MediaTarget::Job(outbox.clone());
        match self.generate(spec, &start, snapshots, &target) {
            Ok(segment) => {
                let generation = received.elapsed();
                let report = JobReport {
                    job: spec.job,
                    state: segment.header.encode(),
                    generation,
                    timing: segment.timing,
                    frames: segment.frames,
                    thumbnail: segment.thumbnail.map(Bytes::from),
                    video: segment.video,
                };
                let state = SharedState {
                    header: segment.header,
                    blob: Some(segment.blob.clone()),
                };
                self.held_states.hold(spec.session.clone(), spec.job, state);
                outbox.finish(report, segment.blob);
                Ok(())
            }
            Err(FailedSegment { error, .. })
                if matches!(error, EngineError::Broken(_)) || self.encoder.is_gone() =>
            {
                Err(JobLoopError::Engine(error))
            }
            Err(FailedSegment { error, phases }) => {
                outbox.fail(failure(&error), error.to_string(), phases);
                Ok(())
            }
        }
    }

    /// Generates one segment. Its media have been passed to the target when this returns.
    ///
    /// # Errors
    /// Returns the engine's error, [`EngineError::Refused`] when the segment cannot be the part of a video that it is to be,
    /// or the reason why it could not be encoded, with the phases until then.
    pub(crate) fn generate(
        &mut self,
        spec: &JobSpec,
        start: &SegmentStart,
        snapshots: SnapshotMaker,
        target: &MediaTarget,
    ) -> Result<GeneratedSegment, FailedSegment> {
        let started = Instant::now();
        let mut request = GenerateRequest {
            segment_idx: spec.segment_idx,
            prompt: &spec.prompt,
            negative_prompt: spec.negative_prompt.as_deref(),
            seed: spec.seed,
            num_inference_steps: spec.num_inference_steps,
            guidance_scale: spec.guidance_scale,
            adapters: &spec.adapters,
            format: spec.format,
            cut_frames: 0,
            initial_image: spec.initial_image.as_deref(),
            state: start.state.as_ref().map(SharedState::as_engine_state),
            snapshot: (start.snapshot.as_ref()).map(SharedSnapshot::as_engine_snapshot),
        };
        let made = VideoFormat {
            num_frames: self.engine.frames(&request),
            ..spec.format
        };
        let shown = shown_format(spec, made)?;
        request.cut_frames = made.num_frames - shown.num_frames;
        let sound_before = start.state.as_ref();
        let sound_before = sound_before.map(|state| SoundTail::read(&state.header));
        let segment = SegmentSpec {
            params: self.encode_params(shown, spec.media_mode),
            frame_size: (made.width, made.height),
            start_frame: spec.start_frame,
            sound_before: sound_before.unwrap_or_default(),
            target: target.clone(),
            video: spec.video.clone(),
        };
        self.encoder
            .begin(segment)
            .map_err(|gone| failed(gone.to_string(), Vec::new()))?;
        let mut sink = JobSink::new(
            spec,
            request.snapshot.map(|snapshot| snapshot.at),
            snapshots,
            target,
            &self.encoder,
            &mut self.faults,
            &self.events,
        );
        if request.cut_frames > 0 {
            sink.cut_behind(shown, self.audio);
        }
        let generated = self.engine.generate(&request, &mut sink);
        let (state, timing) = match sink.end(generated) {
            Ok(ended) => ended,
            Err(error) => {
                self.encoder.abandon();
                return Err(error);
            }
        };
        // The hash is computed, and the memory sealed, while the last frames are encoded.
        let mut header = state.header;
        header.blob_hash = blob_hash(&state.blob);
        let blob = state.blob.seal();
        let EngineTiming {
            decode,
            mut phases,
            first_frame_us,
        } = timing;
        phases.end();
        let encoded = match self.encoder.finish() {
            Ok(encoded) => encoded,
            Err(error) => return Err(not_encoded(&error, phases.finish())),
        };
        if let Some(first_frame_us) = first_frame_us {
            phases.beside(Phase::Encode, first_frame_us);
        }
        encoded.sound_tail.write(&mut header);
        let phases = phases.finish();
        let blob = match blob {
            Ok(blob) => blob,
            Err(error) => {
                let reason = format!("the state's memory cannot be sealed: {error}");
                return Err(failed(reason, phases));
            }
        };
        Ok(GeneratedSegment {
            header,
            blob,
            frames: encoded.frames,
            thumbnail: encoded.thumbnail,
            video: encoded.video,
            generation: started.elapsed(),
            timing: JobTiming {
                decode,
                encode: encoded.encode_time,
                phases,
            },
        })
    }

    /// Returns the encoder's parameters for a segment of this format.
    pub(crate) fn encode_params(&self, format: VideoFormat, mode: MediaMode) -> EncodeParams {
        EncodeParams {
            format,
            mode,
            audio: self.audio,
            spec: self.encoder_spec.clone(),
        }
    }
}

/// Returns the format of the frames that are encoded of a segment of the format `made`.
///
/// # Errors
/// Returns [`EngineError::Refused`] when the segment cannot be the part of a video that it is to be.
fn shown_format(spec: &JobSpec, made: VideoFormat) -> Result<VideoFormat, FailedSegment> {
    let Some(part) = &spec.video else {
        return Ok(made);
    };
    match video_part::check(part, made) {
        Ok(()) => Ok(video_part::shown_format(part, made.fps)),
        Err(bad) => Err(FailedSegment {
            error: EngineError::Refused(bad.to_string()),
            phases: Vec::new(),
        }),
    }
}

fn not_encoded(error: &EncodeSegmentError, phases: Vec<PhaseSpan>) -> FailedSegment {
    let reason = error.to_string();
    let error = match error.is_out_of_memory() {
        true => EngineError::OutOfMemory(reason),
        false => EngineError::Failed(reason),
    };
    FailedSegment { error, phases }
}

fn failed(reason: String, phases: Vec<PhaseSpan>) -> FailedSegment {
    FailedSegment {
        error: EngineError::Failed(reason),
        phases,
    }
}

/// Converts an engine's error to the failure that the supervisor is told.
fn failure(error: &EngineError) -> JobFailure {
    match error {
        EngineError::Cancelled => JobFailure::Cancelled,
        EngineError::Refused(_) => JobFailure::Refused,
        EngineError::StateIncompatible(_) => JobFailure::StateIncompatible,
        EngineError::SnapshotRefused(_) => JobFailure::SnapshotRefused,
        EngineError::OutOfMemory(_) => JobFailure::OutOfMemory,
        EngineError::Failed(_) | EngineError::Broken(_) | EngineError::Unusable(_) => {
            JobFailure::Failed
        }
    }
}

#[cfg(test)]
mod tests;
