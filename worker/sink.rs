//! The engine's sink for one job: passes frames to the encoder's thread, and steps and their snapshots to the link.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastvideo_proto::job::{Phase, PhaseSpan, Stage, VideoFormat};
use fastvideo_proto::link::{Event, JobSpec};
use fastvideo_proto::step_snapshot::StepPoint;

use crate::engine::{EngineError, Preview, Sink, StepLatents};
use crate::faults::{FaultPoint, Faults, JobContext};
use crate::link::EventSender;
use crate::media::encoder_thread::{EncoderThread, MediaTarget};
use crate::phases::{Phases, monotonic_us};
use crate::sound::AudioFormat;
use crate::step_snapshot::SnapshotMaker;

/// Receives a segment from the engine.
pub(crate) struct JobSink<'a> {
    spec: &'a JobSpec,
    target: &'a MediaTarget,
    encoder: &'a EncoderThread,
    faults: &'a mut Faults,
    events: &'a EventSender,
    /// The number of frames received from the engine.
    frames: u32,
    /// What is still passed on; `None`: everything is.
    cut: Option<Cut>,
    /// When the last denoise or refine step was done.
    last_step: Instant,
    /// When the current step began.
    step_began: Instant,
    /// The number of denoise and refine steps that are done, those of an earlier attempt included.
    steps_done: u32,
    snapshots: SnapshotMaker,
    phases: Phases,
    /// When the first frame came, as CLOCK_MONOTONIC in microseconds.
    first_frame_us: Option<u64>,
    /// An injected failure. It stops the engine as a cancellation does.
    failure: Option<EngineError>,
}

/// The end of a segment, behind which frames and sound are dropped.
#[derive(Debug)]
struct Cut {
    /// The number of frames before the cut.
    frames: u32,
    /// The number of samples before the cut that have not come yet, those of all channels.
    samples_left: usize,
}

impl Cut {
    /// Returns the part before the cut of the sound that came with a frame.
    fn sound<'a>(&mut self, sound: &'a [f32]) -> &'a [f32] {
        let kept = sound.len().min(self.samples_left);
        self.samples_left -= kept;
        &sound[..kept]
    }
}

/// A segment that was not generated.
#[derive(Debug)]
pub(crate) struct FailedSegment {
    pub(crate) error: EngineError,
    /// The phases, the one included in which it failed.
    pub(crate) phases: Vec<PhaseSpan>,
}

/// Where the time of the engine's part of a segment went.
#[derive(Debug)]
pub(crate) struct EngineTiming {
    /// The time since the last denoise or refine step, which the decoder took.
    pub(crate) decode: Duration,
    pub(crate) phases: Phases,
    /// When the first frame came, as CLOCK_MONOTONIC in microseconds.
    pub(crate) first_frame_us: Option<u64>,
}

impl<'a> JobSink<'a> {
    /// Creates a sink whose segment has begun in the encoder's thread. `faults` are injected for jobs, not for warm-up.
    /// `after` is the step of an earlier attempt that the segment goes on from.
    pub(crate) fn new(
        spec: &'a JobSpec,
        after: Option<StepPoint>,
        snapshots: SnapshotMaker,
        target: &'a MediaTarget,
        encoder: &'a EncoderThread,
        faults: &'a mut Faults,
        events: &'a EventSender,
    ) -> Self {
        let now = Instant::now();
        let mut sink = Self {
            spec,
            target,
            encoder,
            faults,
            events,
            frames: 0,
            cut: None,
            last_step: now,
            step_began: now,
            steps_done: after.map_or(0, |after| after.steps_done),
            snapshots,
            phases: Phases::begin(Phase::TextEncode),
            first_frame_us: None,
            failure: None,
        };
        match after {
            None => sink.reach(FaultPoint::Step(1)),
            Some(after) if after.stage == Stage::Denoise => {
                sink.reach(FaultPoint::Step(after.step + 1));
            }
            Some(_) => {}
        }
        sink
    }

    /// Drops the frames and the sound that come behind the end of a segment of this format.
    pub(crate) fn cut_behind(&mut self, format: VideoFormat, audio: Option<AudioFormat>) {
        let samples = audio.map_or(0, |audio| {
            let samples = audio.sample_at(format.num_frames.into(), format.fps);
            samples.saturating_mul(audio.channels.into())
        });
        self.cut = Some(Cut {
            frames: format.num_frames,
            samples_left: usize::try_from(samples).unwrap_or(usize::MAX),
        });
    }

    /// Ends the segment after the engine has passed in all of it. Returns where the time went, as far as the engine is
    /// concerned: the state is packed from now on.
    ///
    /// # Errors
    /// Returns the engine's own error, or the injected failure that made the engine stop.
    pub(crate) fn end<T>(
        mut self,
        generated: Result<T, EngineError>,
    ) -> Result<(T, EngineTiming), FailedSegment> {
        let decode = self.last_step.elapsed();
        if generated.is_ok() {
            self.phases.next(Phase::StatePack);
            self.reach(FaultPoint::End);
        }
        let ended = match self.failure {
            Some(failure) => Err(failure),
            None => generated,
        };
        match ended {
            Ok(generated) => {
                let timing = EngineTiming {
                    decode,
                    phases: self.phases,
                    first_frame_us: self.first_frame_us,
                };
                Ok((generated, timing))
            }
            Err(error) => {
                if let Some(first_frame_us) = self.first_frame_us {
                    self.phases.beside(Phase::Encode, first_frame_us);
                }
                let phases = self.phases.finish();
                Err(FailedSegment { error, phases })
            }
        }
    }

    /// Sends a snapshot of the step that has just been reported, if it took long enough. A job is not lost for a snapshot
    /// that cannot be made.
    fn leave_snapshot(
        &mut self,
        took: Duration,
        at: StepPoint,
        total_steps: u32,
        latents: &dyn StepLatents,
    ) {
        if !self.snapshots.is_due(took) || self.cancelled() {
            return;
        }
        match self.snapshots.make(at, total_steps, latents) {
            Ok((mut header, latents)) => {
                if self.faults.take_spoil() {
                    header.blob_hash[0] ^= 1;
                }
                let snapshot = Event::StepSnapshot {
                    job: self.spec.job,
                    header: Box::new(header),
                };
                self.events.send_with_memory(snapshot, latents);
            }
            Err(error) => {
                tracing::warn!(step = at.step, %error, "step leaves no snapshot");
            }
        }
    }

    /// Injects the fault that is armed for this point. Warm-up is not a job, and has a fault point of its own.
    fn reach(&mut self, point: FaultPoint) {
        let context = JobContext {
            segment_idx: self.spec.segment_idx,
            attempt: self.spec.attempt,
            prompt: &self.spec.prompt,
        };
        if let MediaTarget::Job(_) = self.target
            && let Err(error) = self.faults.reach(point, Some(context))
        {
            self.failure = Some(error);
        }
    }
}

impl Sink for JobSink<'_> {
    fn cancelled(&self) -> bool {
        self.failure.is_some()
            || match self.target {
                MediaTarget::Job(outbox) => outbox.is_cancelled(),
                MediaTarget::Discard => false,
            }
    }

    fn begin(&mut self, stage: Stage) {
        self.phases.next(match stage {
            Stage::Denoise => Phase::Denoise,
            Stage::Refine => Phase::Refine,
            Stage::Decode => Phase::Decode,
        });
        self.step_began = Instant::now();
    }

    fn step(
        &mut self,
        stage: Stage,
        step: u32,
        total_steps: u32,
        latents: Option<&dyn StepLatents>,
    ) {
        let took = self.step_began.elapsed();
        if stage != Stage::Decode {
            self.last_step = Instant::now();
            self.steps_done = self.steps_done.saturating_add(1);
        }
        if let MediaTarget::Job(_) = self.target {
            self.events.send(Event::Step {
                job: self.spec.job,
                stage,
                step,
                total_steps,
            });
        }
        // Progress is told first, since the copy takes milliseconds.
        if let Some(latents) = latents.filter(|_| stage != Stage::Decode) {
            let at = StepPoint {
                stage,
                step,
                steps_done: self.steps_done,
            };
            self.leave_snapshot(took, at, total_steps, latents);
        }
        self.step_began = Instant::now();
        if stage == Stage::Denoise && step < total_steps {
            self.reach(FaultPoint::Step(step + 1));
        }
    }

    /// Warm-up takes them, too, so that the first session does not wait for what is made ready once.
    fn takes_previews(&self) -> bool {
        self.spec.previews
    }

    fn previews(&mut self, previews: Vec<Preview>) {
        if !self.cancelled() {
            self.encoder.previews(previews);
        }
    }

    fn blank_frame(&mut self) -> Vec<u8> {
        let mut frame = self.encoder.recycled_frame();
        frame.resize(self.spec.format.frame_bytes(), 0);
        frame
    }

    fn frame(&mut self, rgb: Arc<Vec<u8>>, sound: &[f32]) -> Result<(), EngineError> {
        self.reach(FaultPoint::Frame(self.frames));
        self.frames += 1;
        self.first_frame_us.get_or_insert_with(monotonic_us);
        if self.cancelled() {
            return Err(EngineError::Cancelled);
        }
        let sound = match &mut self.cut {
            Some(cut) if self.frames > cut.frames => return Ok(()),
            Some(cut) => cut.sound(sound),
            None => sound,
        };
        let rgb = match self.faults.take_blank() {
            true => Arc::new(vec![0; rgb.len()]),
            false => rgb,
        };
        let sent = self.encoder.frame(rgb, sound.to_vec());
        sent.map_err(|gone| EngineError::Failed(gone.to_string()))
    }
}
