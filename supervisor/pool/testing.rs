//! A pool without processes, for tests of those who use it: the test plays the workers.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use fastvideo_link::SharedMemory;
use fastvideo_proto::ids::{GpuId, SessionId, WorkerId};
use fastvideo_proto::job::{JobFailure, JobTiming, MediaKind, Stage, VideoFormat};
use fastvideo_proto::link::{JobSpec, Preview, VideoPictures, media_cost};
use fastvideo_proto::state::{Dtype, FramesLayout, StateHeader, TensorLayout, blob_hash};
use fastvideo_proto::step_snapshot::{SnapshotHeader, StepPoint};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use super::assignments::{Absence, Assignment, Assignments};
use super::control::{Directive, StopSignal};
use super::fixtures;
use super::job::{Credit, JobEnd, JobEvent, Media, QueuedJob, pair};
use super::metrics::PoolMetrics;
use super::shared_assignments::SharedAssignments;
use super::step_snapshot::{HeldBytes, StepSnapshot};
use super::{Config, Gpu, Pool, Shared, SlotHandle, WorkerStatus};
use crate::current::Current;
use crate::engines::Shapes;

const FORMAT: VideoFormat = VideoFormat {
    width: 64,
    height: 64,
    num_frames: 8,
    fps: 24,
};

/// The workers of a pool, one for each GPU. None serves before [`Self::serve`].
#[derive(Debug)]
pub(crate) struct TestWorkers {
    pool: Pool,
    /// Processes of each GPU so far.
    incarnations: Vec<u32>,
    /// Keeps the slots' channels open.
    _channels: Vec<(watch::Sender<WorkerStatus>, watch::Receiver<Directive>)>,
}

/// A job that a worker was given.
#[derive(Debug)]
pub(crate) struct TestJob {
    job: QueuedJob,
    worker: WorkerId,
    slot: usize,
    pool: Pool,
}

impl TestWorkers {
    pub(crate) fn new(gpus: u32, sessions_per_gpu: usize) -> Self {
        let gpus = (0..gpus).map(|id| Gpu {
            id: GpuId(id),
            visible_device: id.to_string(),
        });
        let config = Config {
            gpus: gpus.collect(),
            sessions_per_gpu,
            format: FORMAT,
            new_frames: FORMAT.num_frames,
            shapes: Shapes::ANY,
            refine_steps: 0,
            model_name: String::new(),
            ..fixtures::config()
        };
        let (mut slots, mut channels) = (Vec::new(), Vec::new());
        for gpu in &config.gpus {
            let (status, status_seen) = watch::channel(WorkerStatus::new(gpu.clone()));
            let (directive, directive_seen) = watch::channel(Directive::default());
            channels.push((status, directive_seen));
            slots.push(SlotHandle {
                gpu: gpu.id,
                status: status_seen,
                notify: Arc::<Notify>::default(),
                directive,
            });
        }
        let sharing = fixtures::sharing(sessions_per_gpu);
        let wakes = slots.iter().map(|slot| (slot.gpu, slot.notify.clone()));
        let assignments = Assignments::new(wakes, sharing, PoolMetrics::default());
        let (stop, _) = watch::channel(StopSignal::Run);
        let (all_lost, _) = watch::channel(false);
        Self {
            incarnations: vec![0; slots.len()],
            pool: Pool {
                shared: Arc::new(Shared {
                    config: Current::new(config),
                    assignments: Arc::new(SharedAssignments::new(assignments)),
                    ordered_adapters: Arc::default(),
                    slots,
                    next_job: AtomicU64::new(1),
                    stop,
                    all_lost,
                    metrics: PoolMetrics::default(),
                    tracker: TaskTracker::new(),
                }),
            },
            _channels: channels,
        }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Another process of a GPU serves.
    pub(crate) fn serve(&mut self, slot: usize) {
        self.incarnations[slot] += 1;
        let assignment = Assignment {
            gpu: self.pool.shared.slots[slot].gpu,
            worker: self.worker(slot),
            model_id: "test".to_owned(),
            device: "CPU".to_owned(),
            audio: true,
        };
        self.pool.assignments().serve(slot, assignment);
    }

    /// The worker of a GPU is gone and will not come back by itself.
    pub(crate) fn lose_for_good(&self, slot: usize) {
        self.pool.assignments().vacate(slot, Absence::Lost);
    }

    /// Waits for the next job of a worker, be it a session's or a video job's, and begins it.
    pub(crate) async fn next_job(&self, slot: usize) -> TestJob {
        loop {
            let wake = self.pool.shared.slots[slot].notify.clone();
            let now = Instant::now();
            let job = self.pool.assignments().next_job(slot, now);
            if let Some(job) = job {
                let after = job.snapshot.get().map(|snapshot| snapshot.at());
                let worker = self.worker(slot);
                job.tell(JobEvent::Started { worker, after });
                return TestJob {
                    job,
                    worker: self.worker(slot),
                    slot,
                    pool: self.pool.clone(),
                };
            }
            let held_off = self.pool.assignments().videos_held_off_until(slot, now);
            tokio::select! {
                () = wake.notified() => {}
                () = sleep_until(held_off.unwrap_or(now)), if held_off.is_some() => {}
            }
        }
    }

    /// A worker has needed this long for a segment like that of [`video_spec`].
    pub(crate) fn record_video_time(&self, slot: usize, took: Duration) {
        let mut assignments = self.pool.assignments();
        assignments.record_video_time(slot, &video_spec(), took);
    }

    fn worker(&self, slot: usize) -> WorkerId {
        WorkerId::new(self.pool.shared.slots[slot].gpu, self.incarnations[slot])
    }
}

/// A segment of a video job, which the pool gives its name.
pub(crate) fn video_spec() -> JobSpec {
    fixtures::video_spec(0, fixtures::video_id(0))
}

/// A binary message of a job that nobody runs.
pub(crate) fn media(kind: MediaKind, bytes: Bytes) -> Media {
    let spec = fixtures::job_spec(0, SessionId::random());
    let (_, job) = pair(spec, None, None, Some(Instant::now()));
    Media {
        credit: Credit::new(media_cost(bytes.len()), job.signals),
        kind,
        bytes,
        sent_at_us: Some(0),
    }
}

/// A snapshot after a step, whose latents name it.
pub(in crate::pool) fn step_snapshot(step: u32, held: &HeldBytes) -> StepSnapshot {
    let (header, latents) = snapshot_parts(step);
    StepSnapshot::new(header, latents, held.clone())
}

/// The header and the latents of such a snapshot.
pub(in crate::pool) fn snapshot_parts(step: u32) -> (SnapshotHeader, SharedMemory) {
    let latents = step.to_le_bytes();
    let header = SnapshotHeader {
        origin: [7; 32],
        at: StepPoint {
            stage: Stage::Denoise,
            step,
            steps_done: step,
        },
        total_steps: 20,
        latents: vec![TensorLayout {
            dtype: Dtype::F32,
            shape: vec![1],
        }],
        blob_hash: blob_hash(&latents),
    };
    (header, SharedMemory::from_bytes(&latents).unwrap())
}

/// The end of a job whose state names the segment's index.
pub(crate) fn finished(segment_idx: u32, format: VideoFormat, thumbnail: Option<Bytes>) -> JobEnd {
    let blob = vec![0; format.frame_bytes()];
    let header = StateHeader {
        segment_index: segment_idx,
        video_conditioning_frame_idx: 0,
        video_conditioning_strength: 1.0,
        audio_sample_rate: None,
        audio_conditioning_num_frames: 0,
        audio_conditioning_strength: 0.0,
        video_position_offset_sec: 0.0,
        metadata: "{}".to_owned(),
        frames: Some(FramesLayout {
            count: 1,
            height: format.height,
            width: format.width,
        }),
        audio_latents: None,
        blob_hash: blob_hash(&blob),
    };
    JobEnd::Finished {
        state: (header.encode(), SharedMemory::from_bytes(&blob).unwrap()),
        generation: Duration::from_millis(100),
        timing: JobTiming::default(),
        frames: format.num_frames,
        thumbnail,
        video: None,
    }
}

impl TestJob {
    pub(crate) fn spec(&self) -> &JobSpec {
        &self.job.spec
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.job.signals.cancelled()
    }

    pub(crate) fn step(&self, step: u32) {
        self.job.tell(JobEvent::Step {
            stage: Stage::Denoise,
            step,
            total_steps: self.job.spec.num_inference_steps,
        });
    }

    /// Leaves a snapshot of a step.
    pub(crate) fn snapshot(&self, step: u32) {
        let snapshot = step_snapshot(step, &HeldBytes::default());
        self.job.snapshot.replace(Some(snapshot));
    }

    /// The step that the job goes on from.
    pub(crate) fn goes_on_after(&self) -> Option<u32> {
        self.job.snapshot.get().map(|snapshot| snapshot.at().step)
    }

    /// A preview of so many bytes.
    pub(crate) fn preview(&self, frame: u32, bytes: usize) {
        self.job.show(Preview {
            frame,
            num_frames: self.job.spec.format.num_frames,
            width: 64,
            height: 64,
            jpeg: vec![0; bytes].into(),
        });
    }

    /// One binary message of so many bytes.
    pub(crate) fn media(&self, bytes: usize) {
        self.message(MediaKind::Fragment, vec![0; bytes].into());
    }

    /// One binary message.
    pub(crate) fn message(&self, kind: MediaKind, bytes: Bytes) {
        self.job.tell(JobEvent::Media(Media {
            credit: Credit::new(media_cost(bytes.len()), self.job.signals.clone()),
            kind,
            bytes,
            sent_at_us: Some(0),
        }));
    }

    /// Finishes the segment with a state that names its index.
    pub(crate) fn finish(self) {
        let end = finished(self.job.spec.segment_idx, self.job.spec.format, None);
        self.end(end);
    }

    /// Finishes a segment of a video job with its pictures.
    pub(crate) fn finish_with(self, pictures: VideoPictures) {
        let spec = &self.job.spec;
        let mut end = finished(spec.segment_idx, spec.format, None);
        if let JobEnd::Finished { video, .. } = &mut end {
            *video = Some(Box::new(pictures));
        }
        self.end(end);
    }

    pub(crate) fn fail(self, failure: JobFailure) {
        let message = "failed in a test".to_owned();
        self.end(JobEnd::Failed {
            failure,
            message,
            phases: Vec::new(),
        });
    }

    /// The worker has to leave; the job was running.
    pub(crate) fn take_back(self) {
        self.end(JobEnd::TakenBack { started: true });
    }

    /// A viewer's segment takes the worker's time from this one of a video job.
    pub(crate) fn preempt(self) {
        self.pool.assignments().yield_to_viewers(self.slot);
        self.end(JobEnd::Preempted);
    }

    /// The worker dies with the job, and another will be started.
    pub(crate) fn lose_worker(self) {
        let (pool, slot) = (self.pool.clone(), self.slot);
        let worker = self.worker.clone();
        self.end(JobEnd::WorkerLost {
            worker,
            started: true,
            reason: "killed in a test".to_owned(),
        });
        pool.assignments().vacate(slot, Absence::Starting);
    }

    fn end(self, end: JobEnd) {
        self.job.tell(JobEvent::Ended(end));
        let spec = &self.job.spec;
        self.pool.assignments().job_ended(&spec.session, spec.job);
    }
}
