//! The engine's sink for one job: passes frames to the encoder's thread, and steps to the link.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastvideo_proto::job::{Phase, PhaseSpan, Stage};
use fastvideo_proto::link::{Event, JobSpec};

use crate::engine::{EngineError, Sink};
use crate::faults::{FaultPoint, Faults, JobContext};
use crate::link::EventSender;
use crate::media::encoder_thread::{EncoderThread, MediaTarget};
use crate::phases::{Phases, monotonic_us};

/// Receives a segment from the engine.
pub(crate) struct JobSink<'a> {
    spec: &'a JobSpec,
    target: &'a MediaTarget,
    encoder: &'a EncoderThread,
    faults: &'a mut Faults,
    events: &'a EventSender,
    /// The number of frames received from the engine.
    frames: u32,
    /// When the last denoise or refine step was done.
    last_step: Instant,
    phases: Phases,
    /// When the first frame came, as CLOCK_MONOTONIC in microseconds.
    first_frame_us: Option<u64>,
    /// An injected failure. It stops the engine as a cancellation does.
    failure: Option<EngineError>,
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
    pub(crate) fn new(
        spec: &'a JobSpec,
        target: &'a MediaTarget,
        encoder: &'a EncoderThread,
        faults: &'a mut Faults,
        events: &'a EventSender,
    ) -> Self {
        let mut sink = Self {
            spec,
            target,
            encoder,
            faults,
            events,
            frames: 0,
            last_step: Instant::now(),
            phases: Phases::begin(Phase::TextEncode),
            first_frame_us: None,
            failure: None,
        };
        sink.reach(FaultPoint::Step(1));
        sink
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
    }

    fn step(&mut self, stage: Stage, step: u32, total_steps: u32) {
        if stage != Stage::Decode {
            self.last_step = Instant::now();
        }
        if let MediaTarget::Job(_) = self.target {
            self.events.send(Event::Step {
                job: self.spec.job,
                stage,
                step,
                total_steps,
            });
        }
        if stage == Stage::Denoise && step < total_steps {
            self.reach(FaultPoint::Step(step + 1));
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
        let rgb = match self.faults.take_blank() {
            true => Arc::new(vec![0; rgb.len()]),
            false => rgb,
        };
        let sent = self.encoder.frame(rgb, sound.to_vec());
        sent.map_err(|gone| EngineError::Failed(gone.to_string()))
    }
}
