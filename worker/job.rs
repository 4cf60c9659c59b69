//! The job loop: receive, run, reply.
//!
//! Three threads share a worker: this one runs the engine; the commands' thread cancels jobs, gives them credit and
//! ends the process when the link closes; the heart tells the supervisor that the process runs. The encoder has a
//! fourth, see `pipeline`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fastvideo_proto::ids::{JobId, SessionId};
use fastvideo_proto::job::{JobFailure, JobTiming, VideoFormat};
use fastvideo_proto::job::{MediaMode, Stage};
use fastvideo_proto::link::{
    Command, EngineSpec, Event, JobReport, JobSpec, JobState, LINK_VERSION, LoadSpec, ReadyReport,
    WarmupSpec,
};
use fastvideo_proto::state::{StateError, StateHeader, blob_hash};
use ipc_channel::ipc::IpcSharedMemory;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use crate::encode::EncodeParams;
#[cfg(feature = "torch")]
use crate::engine::ltx2;
use crate::engine::synthetic::{self, Synthetic};
use crate::engine::{AudioFormat, Engine, EngineError, GenerateRequest, NewState, Sink, State};
use crate::faults::{FaultPoint, FaultSpec, Faults, Scene};
use crate::link::{Commands, Events, LinkError, connect};
use crate::outbox::JobOutbox;
use crate::pipeline::{Pipeline, Target};

/// Where a state's metadata keep the end of the segment's sound: base64 of f32 little endian, interleaved.
const SOUND_TAIL_KEY: &str = "sound_tail";

type Jobs = Arc<Mutex<HashMap<JobId, Arc<JobOutbox>>>>;

/// What the job loop is given to do, in order.
enum Work {
    Job(Box<JobSpec>, Option<IpcSharedMemory>),
    Forget(SessionId),
}

/// Serves the supervisor that opened `link`. Does not return while the link is open.
///
/// # Errors
/// When the link cannot be opened, or the engine can never serve; the supervisor has been told.
pub(crate) fn serve(link: &str) -> anyhow::Result<()> {
    // The closed link ends this process; should it be stopped or stuck by then, this does.
    set_pdeathsig(Signal::SIGKILL).context("cannot ask to die with the supervisor")?;
    let (commands, events) = connect(link)?;
    let spec = match commands.next()? {
        (Command::Load(spec), _) if spec.version == LINK_VERSION => *spec,
        (Command::Load(spec), _) => {
            bail!(LinkError::Version {
                theirs: spec.version
            })
        }
        _ => bail!(LinkError::Unexpected("another command before Load")),
    };
    let jobs = Jobs::default();
    let (work_tx, work) = channel();
    {
        let (jobs, events) = (jobs.clone(), events.clone());
        spawn("commands", move || {
            obey(&commands, &events, &jobs, &work_tx)
        })?;
    }
    {
        let (events, interval) = (events.clone(), spec.heartbeat_interval);
        spawn("heart", move || beat(&events, interval))?;
    }
    let mut worker = match Worker::load(&spec, &events) {
        Ok(worker) => worker,
        Err(error) => {
            events.send(Event::BootFailed {
                message: format!("{error:#}"),
                permanent: is_permanent(&error),
            });
            return Err(error);
        }
    };
    worker.run(&work, &jobs)
}

/// Whether another process would not become ready either: the model, the machine and the configured size stay the same.
fn is_permanent(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref();
    matches!(
        error,
        Some(EngineError::Unusable(_) | EngineError::Refused(_))
    )
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .with_context(|| format!("cannot start the thread {name}"))?;
    Ok(())
}

/// Passes jobs on and does everything else at once. Ends the process with its link: whatever the engine is doing,
/// nobody is left to do it for.
fn obey(commands: &Commands, events: &Events, jobs: &Jobs, work: &Sender<Work>) {
    let outbox = |job| {
        let jobs = jobs.lock().expect("no holder of this lock panics");
        jobs.get(&job).cloned()
    };
    let why = loop {
        match commands.next() {
            Ok((Command::Generate(spec), blob)) => {
                let outbox = JobOutbox::new(spec.job, spec.window, events.clone());
                let mut jobs = jobs.lock().expect("no holder of this lock panics");
                jobs.retain(|_, outbox| !outbox.is_over());
                jobs.insert(spec.job, outbox);
                drop(jobs);
                if work.send(Work::Job(spec, blob)).is_err() {
                    break "the job loop has ended".to_owned();
                }
            }
            Ok((Command::Forget { session }, _)) => {
                if work.send(Work::Forget(session)).is_err() {
                    break "the job loop has ended".to_owned();
                }
            }
            Ok((Command::Cancel { job }, _)) => {
                if let Some(outbox) = outbox(job) {
                    outbox.cancel();
                }
            }
            Ok((Command::Credit { job, cost }, _)) => {
                if let Some(outbox) = outbox(job) {
                    outbox.credit(cost);
                }
            }
            Ok((Command::Shutdown, _)) => break "asked to leave".to_owned(),
            Ok((Command::Load(_), _)) => break LinkError::Unexpected("a second Load").to_string(),
            Err(error) => break error.to_string(),
        }
    };
    tracing::debug!(why, "leaving");
    leave()
}

#[expect(
    clippy::exit,
    reason = "the engine may be deep in a step, and nothing waits for it any more"
)]
fn leave() -> ! {
    std::process::exit(0)
}

fn beat(events: &Events, interval: Duration) {
    let (_never, silence) = channel::<Infallible>();
    loop {
        events.send(Event::Heartbeat {
            resident_bytes: resident_bytes().unwrap_or(0),
        });
        let _ = silence.recv_timeout(interval);
    }
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * page_size.cast_unsigned())
}

/// An engine that is loaded, and what it needs to serve.
struct Worker {
    engine: Box<dyn Engine>,
    audio: Option<AudioFormat>,
    pipeline: Pipeline,
    faults: Faults,
    encoder: fastvideo_proto::link::EncoderSpec,
    events: Events,
    /// The last state that each session got here. Its memory is shared with the supervisor, which keeps it anyway.
    held: HashMap<SessionId, HeldState>,
}

/// A state that this worker has made.
struct HeldState {
    made_by: JobId,
    header: StateHeader,
    blob: IpcSharedMemory,
}

/// The state that a job continues from.
struct Start {
    header: StateHeader,
    blob: Option<IpcSharedMemory>,
}

/// Why a job has no state to continue from.
enum NoStart {
    NotHeld,
    Bad(StateError),
}

impl Start {
    fn blob(&self) -> &[u8] {
        self.blob.as_deref().unwrap_or_default()
    }
}

/// What a segment became.
struct Made {
    state: NewState,
    frames: u32,
    generation: Duration,
    timing: JobTiming,
}

/// The engine that is asked for, and the faults to inject while it runs.
fn engine(spec: &LoadSpec) -> Result<(Box<dyn Engine>, Vec<FaultSpec>), EngineError> {
    match spec.engine.name.as_str() {
        synthetic::NAME => {
            let options: synthetic::Options = engine_options(&spec.engine)?;
            let faults = options.faults.clone();
            Ok((Box::new(Synthetic::new(options, spec.format)), faults))
        }
        #[cfg(feature = "torch")]
        ltx2::NAME => {
            let engine = ltx2::Ltx2::new(engine_options(&spec.engine)?);
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

impl Worker {
    /// Loads the engine and warms it up. The supervisor has been told when this returns.
    fn load(spec: &LoadSpec, events: &Events) -> anyhow::Result<Self> {
        let (mut engine, faults) = engine(spec)?;
        let mut faults = Faults::new(&faults, spec.gpu.0, spec.incarnation, events.clone());
        faults.reach(FaultPoint::Boot, None)?;
        let started = Instant::now();
        faults.reach(FaultPoint::Load, None)?;
        let told = events.clone();
        let loaded = engine.load(Box::new(move |fraction, what| {
            let what = what.to_owned();
            told.send(Event::LoadProgress { fraction, what });
        }))?;
        let load = started.elapsed();
        let mut worker = Self {
            engine,
            audio: loaded.audio,
            pipeline: Pipeline::start().context("cannot start the encoder's thread")?,
            faults,
            encoder: spec.encoder.clone(),
            events: events.clone(),
            held: HashMap::new(),
        };
        let warmup = match &spec.warmup {
            Some(warmup) => {
                events.send(Event::WarmingUp);
                worker.faults.reach(FaultPoint::Warmup, None)?;
                worker.warm_up(warmup).context("warm-up failed")?
            }
            None => Vec::new(),
        };
        let next = worker.params(spec.format, MediaMode::AvFmp4);
        worker.pipeline.prepare(next)?;
        events.send(Event::Ready(Box::new(ReadyReport {
            model_id: loaded.model_id,
            device: loaded.device,
            audio_sample_rate: loaded.audio.map(|a| a.sample_rate),
            load,
            warmup,
        })));
        worker.faults.reach(FaultPoint::Idle, None)?;
        Ok(worker)
    }

    /// Two segments, the second from the first one's state, so that both branches are hot.
    fn warm_up(&mut self, warmup: &WarmupSpec) -> anyhow::Result<Vec<Duration>> {
        let mut start: Option<Start> = None;
        let mut took = Vec::new();
        for segment_idx in 0..2 {
            let spec = JobSpec {
                job: JobId(0),
                session: SessionId::random(),
                segment_idx,
                attempt: 1,
                prompt: warmup.prompt.clone(),
                negative_prompt: None,
                seed: 0,
                num_inference_steps: warmup.num_inference_steps,
                guidance_scale: 1.0,
                format: warmup.format,
                media_mode: MediaMode::AvFmp4,
                start_frame: u64::from(segment_idx * warmup.format.num_frames),
                initial_image: None,
                state: None,
                window: 0,
            };
            let made = self.make(&spec, start.as_ref(), &Target::Nowhere)?;
            took.push(made.generation);
            start = Some(Start {
                header: made.state.header,
                blob: Some(made.state.blob.into_shared()),
            });
        }
        Ok(took)
    }

    fn run(&mut self, work: &Receiver<Work>, outboxes: &Jobs) -> anyhow::Result<()> {
        loop {
            // Ends with the process: the commands' thread holds the other end.
            let (spec, blob) = match work.recv().context("the commands' thread has ended")? {
                Work::Job(spec, blob) => (spec, blob),
                Work::Forget(session) => {
                    self.held.remove(&session);
                    continue;
                }
            };
            let outbox = {
                let outboxes = outboxes.lock().expect("no holder of this lock panics");
                outboxes
                    .get(&spec.job)
                    .cloned()
                    .context("a job without an outbox")?
            };
            let target = Target::Job(outbox.clone());
            let received = Instant::now();
            let made = match self.start(&spec, blob) {
                Ok(start) => self.make(&spec, start.as_ref(), &target),
                Err(NoStart::NotHeld) => {
                    outbox.fail(JobFailure::StateNotHeld, String::new());
                    continue;
                }
                Err(NoStart::Bad(error)) => Err(EngineError::StateIncompatible(error.to_string())),
            };
            match made {
                Ok(made) => {
                    let generation = received.elapsed();
                    let NewState { header, blob } = made.state;
                    let blob = blob.into_shared();
                    let report = JobReport {
                        job: spec.job,
                        state: header.encode(),
                        generation,
                        timing: made.timing,
                        frames: made.frames,
                    };
                    let held = HeldState {
                        made_by: spec.job,
                        header,
                        blob: blob.clone(),
                    };
                    self.held.insert(spec.session, held);
                    outbox.finish(report, blob);
                }
                // It would fail every job; another process may not.
                Err(error @ EngineError::Broken(_)) => return Err(error.into()),
                Err(error) if self.pipeline.is_closed() => return Err(error.into()),
                Err(error) => {
                    let failure = match &error {
                        EngineError::Cancelled => JobFailure::Cancelled,
                        EngineError::Refused(_) => JobFailure::Refused,
                        EngineError::StateIncompatible(_) => JobFailure::StateIncompatible,
                        EngineError::Failed(_)
                        | EngineError::Broken(_)
                        | EngineError::Unusable(_) => JobFailure::Failed,
                    };
                    outbox.fail(failure, error.to_string());
                }
            }
        }
    }

    /// The state that a job continues from, if any. One that was made here needs no check of its sum.
    fn start(
        &self,
        spec: &JobSpec,
        blob: Option<IpcSharedMemory>,
    ) -> Result<Option<Start>, NoStart> {
        match &spec.state {
            None => Ok(None),
            Some(JobState::Sent(header)) => {
                let header = StateHeader::decode(header).map_err(NoStart::Bad)?;
                let start = Start { header, blob };
                let checked = start.header.check_blob(start.blob());
                checked.map_err(NoStart::Bad)?;
                Ok(Some(start))
            }
            Some(JobState::Held(job)) => match self.held.get(&spec.session) {
                Some(held) if held.made_by == *job => Ok(Some(Start {
                    header: held.header.clone(),
                    blob: Some(held.blob.clone()),
                })),
                _ => Err(NoStart::NotHeld),
            },
        }
    }

    /// Makes one segment; its media are on their way to the target when this returns.
    fn make(
        &mut self,
        spec: &JobSpec,
        start: Option<&Start>,
        target: &Target,
    ) -> Result<Made, EngineError> {
        let started = Instant::now();
        let state = start.map(|start| State {
            header: &start.header,
            blob: start.blob(),
        });
        let sound_before = start.map(|s| sound_tail(&s.header)).unwrap_or_default();
        let request = GenerateRequest {
            segment_idx: spec.segment_idx,
            prompt: &spec.prompt,
            negative_prompt: spec.negative_prompt.as_deref(),
            seed: spec.seed,
            num_inference_steps: spec.num_inference_steps,
            guidance_scale: spec.guidance_scale,
            format: spec.format,
            initial_image: spec.initial_image.as_deref(),
            state,
        };
        let format = VideoFormat {
            num_frames: self.engine.frames(&request),
            ..spec.format
        };
        let params = self.params(format, spec.media_mode);
        let (pipeline, faults) = (&self.pipeline, &mut self.faults);
        let begun = pipeline.begin(params, spec.start_frame, sound_before, target.clone());
        begun.map_err(|closed| EngineError::Failed(closed.to_string()))?;
        let mut sink = JobSink {
            spec,
            target,
            pipeline,
            faults,
            events: &self.events,
            frames: 0,
            last_step: started,
            failure: None,
        };
        sink.reach(FaultPoint::Step(1));
        let generated = self.engine.generate(&request, &mut sink);
        let decode = sink.last_step.elapsed();
        if generated.is_ok() {
            sink.reach(FaultPoint::End);
        }
        // What the sink could not say is why the engine stopped.
        let generated = match sink.failure.take() {
            Some(failure) => Err(failure),
            None => generated,
        };
        let mut state = match generated {
            Ok(state) => state,
            Err(error) => {
                pipeline.abandon();
                return Err(error);
            }
        };
        // While the last frames are encoded.
        state.header.blob_hash = blob_hash(&state.blob);
        let outcome = pipeline
            .finish()
            .map_err(|e| EngineError::Failed(e.to_string()))?;
        keep_sound_tail(&mut state.header, &outcome.sound_tail);
        Ok(Made {
            state,
            frames: outcome.frames,
            generation: started.elapsed(),
            timing: JobTiming {
                decode,
                encode: outcome.took,
            },
        })
    }

    fn params(&self, format: VideoFormat, mode: MediaMode) -> EncodeParams {
        EncodeParams {
            format,
            mode,
            audio: self.audio,
            spec: self.encoder.clone(),
        }
    }
}

/// Takes what the engine makes of one job.
struct JobSink<'a> {
    spec: &'a JobSpec,
    target: &'a Target,
    pipeline: &'a Pipeline,
    faults: &'a mut Faults,
    events: &'a Events,
    frames: u32,
    /// When the last denoise or refine step was done.
    last_step: Instant,
    /// Stops the engine as a cancellation does, and is then what failed.
    failure: Option<EngineError>,
}

impl JobSink<'_> {
    fn reach(&mut self, point: FaultPoint) {
        let scene = Scene {
            segment_idx: self.spec.segment_idx,
            attempt: self.spec.attempt,
            prompt: &self.spec.prompt,
        };
        // A warm-up is no job: only its own fault point counts there.
        if let Target::Job(_) = self.target
            && let Err(error) = self.faults.reach(point, Some(scene))
        {
            self.failure = Some(error);
        }
    }
}

impl Sink for JobSink<'_> {
    fn cancelled(&self) -> bool {
        self.failure.is_some()
            || match self.target {
                Target::Job(outbox) => outbox.cancelled(),
                Target::Nowhere => false,
            }
    }

    fn step(&mut self, stage: Stage, step: u32, total_steps: u32) {
        if stage != Stage::Decode {
            self.last_step = Instant::now();
        }
        if let Target::Job(_) = self.target {
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
        let mut frame = self.pipeline.empty_frame();
        frame.resize(self.spec.format.frame_bytes(), 0);
        frame
    }

    fn frame(&mut self, rgb: Arc<Vec<u8>>, sound: &[f32]) -> Result<(), EngineError> {
        self.reach(FaultPoint::Frame(self.frames));
        self.frames += 1;
        if self.cancelled() {
            return Err(EngineError::Cancelled);
        }
        let sent = self.pipeline.frame(rgb, sound.to_vec());
        sent.map_err(|closed| EngineError::Failed(closed.to_string()))
    }
}

/// The sound before a segment, as the state before it tells; none when it does not.
fn sound_tail(header: &StateHeader) -> Vec<f32> {
    let metadata: serde_json::Value = serde_json::from_str(&header.metadata).unwrap_or_default();
    let text = metadata
        .get(SOUND_TAIL_KEY)
        .and_then(|v| v.as_str())
        .unwrap_or_default();
    let bytes = BASE64.decode(text).unwrap_or_default();
    let (samples, _) = bytes.as_chunks::<4>();
    let samples = samples.iter().map(|&b| f32::from_le_bytes(b));
    samples.filter(|s| s.is_finite()).collect()
}

fn keep_sound_tail(header: &mut StateHeader, samples: &[f32]) {
    let bytes: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
    let mut metadata: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&header.metadata).unwrap_or_default();
    metadata.insert(SOUND_TAIL_KEY.to_owned(), BASE64.encode(bytes).into());
    header.metadata = serde_json::Value::Object(metadata).to_string();
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::ids::GpuId;
    use fastvideo_proto::link::EncoderSpec;

    use super::*;

    const FORMAT: VideoFormat = VideoFormat {
        width: 64,
        height: 64,
        num_frames: 4,
        fps: 24,
    };

    fn worker() -> Worker {
        let options = r#"{
            "step_ms": 0, "frame_ms": 0, "load_ms": 0, "conditioning_num_frames": 2, "audio_latent_frames": 3,
            "prerender": false, "faults": []
        }"#;
        let spec = LoadSpec {
            version: LINK_VERSION,
            gpu: GpuId(0),
            incarnation: 1,
            engine: EngineSpec {
                name: synthetic::NAME.to_owned(),
                options: options.to_owned(),
            },
            format: FORMAT,
            encoder: EncoderSpec::default(),
            warmup: None,
            heartbeat_interval: Duration::from_secs(1),
        };
        let (events, _sent) = Events::to_nobody();
        Worker::load(&spec, &events).unwrap()
    }

    fn job(job: u64, session: &SessionId, state: Option<JobState>) -> JobSpec {
        JobSpec {
            job: JobId(job),
            session: session.clone(),
            segment_idx: u32::from(state.is_some()),
            attempt: 1,
            prompt: "a red fox".to_owned(),
            negative_prompt: None,
            seed: 1,
            num_inference_steps: 1,
            guidance_scale: 1.0,
            format: FORMAT,
            media_mode: MediaMode::AvFmp4,
            start_frame: 0,
            initial_image: None,
            state,
            window: 0,
        }
    }

    #[test]
    fn a_held_state_is_that_of_the_job_that_made_it_and_continues_as_the_sent_one_does() {
        let mut worker = worker();
        let session = SessionId::random();
        let made = worker.make(&job(1, &session, None), None, &Target::Nowhere);
        let NewState { header, blob } = made.unwrap().state;
        let (encoded, blob) = (header.encode(), blob.into_shared());
        let held = HeldState {
            made_by: JobId(1),
            header,
            blob: blob.clone(),
        };
        worker.held.insert(session.clone(), held);

        let sent = job(2, &session, Some(JobState::Sent(encoded.clone())));
        let held = |maker, session| job(3, session, Some(JobState::Held(JobId(maker))));
        let mut next = |spec: &JobSpec, blob| {
            let start = worker.start(spec, blob)?;
            let made = worker.make(spec, start.as_ref(), &Target::Nowhere).unwrap();
            Ok((made.state.header, made.state.blob.to_vec()))
        };
        let of_sent = next(&sent, Some(blob.clone()));
        let of_held = next(&held(1, &session), None);
        assert!(of_sent.is_ok_and(|sent| of_held.is_ok_and(|held| held == sent)));

        let other = SessionId::random();
        for spec in [held(2, &session), held(1, &other)] {
            assert!(matches!(next(&spec, None), Err(NoStart::NotHeld)));
        }
        let mut damaged = blob.to_vec();
        damaged[0] ^= 1;
        let damaged = IpcSharedMemory::from_bytes(&damaged);
        assert!(matches!(
            next(&sent, Some(damaged)),
            Err(NoStart::Bad(StateError::Hash))
        ));
    }

    #[test]
    fn the_end_of_the_sound_survives_the_state() {
        let mut header = StateHeader {
            segment_index: 0,
            video_conditioning_frame_idx: 0,
            video_conditioning_strength: 1.0,
            audio_sample_rate: None,
            audio_conditioning_num_frames: 0,
            audio_conditioning_strength: 1.0,
            video_position_offset_sec: 0.0,
            metadata: r#"{"engine":"x"}"#.to_owned(),
            frames: None,
            audio_latents: None,
            blob_hash: [0; 32],
        };
        keep_sound_tail(&mut header, &[0.25, -1.0, 1e-9]);
        assert_eq!(sound_tail(&header), [0.25, -1.0, 1e-9]);
        assert!(header.metadata.contains(r#""engine":"x""#));
        header.metadata = "no object".to_owned();
        assert!(sound_tail(&header).is_empty());
    }
}
