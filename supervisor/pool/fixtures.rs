//! What several tests of the pool start from.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::{GpuId, JobId, SessionId, VideoId, WorkerId};
use fastvideo_proto::job::{MediaMode, VideoFormat};
use fastvideo_proto::link::{DeviceReport, EngineSpec, JobSpec, ReadyReport, VideoPart};
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use super::assignments::{Assignment, Assignments, Sharing};
use super::config::{Config, Gpu, Recycle};
use super::context::WorkerContext;
use super::event_readers::WorkerEvents;
use super::metrics::PoolMetrics;
use super::restart::{RestartLimits, RestartPolicy};
use super::shared_assignments::SharedAssignments;
use super::status::WorkerStatus;
use crate::current::Current;
use crate::engines::Shapes;

pub(super) const FORMAT: VideoFormat = VideoFormat {
    width: 64,
    height: 64,
    num_frames: 24,
    fps: 24,
};

/// One GPU, whose worker may serve three sessions.
pub(super) fn config() -> Config {
    let seconds = Duration::from_secs;
    Config {
        worker_bin: "/nowhere/fastvideo-worker".into(),
        gpus: vec![Gpu {
            id: GpuId(0),
            visible_device: "0".to_owned(),
        }],
        engine: EngineSpec {
            name: "synthetic".to_owned(),
            options: "{}".to_owned(),
        },
        adapters: Vec::new(),
        adapters_folder: None,
        previews: false,
        format: FORMAT,
        new_frames: FORMAT.num_frames,
        shapes: Shapes::ANY,
        refine_steps: 0,
        model_name: String::new(),
        encoder: Default::default(),
        warmup: None,
        warmup_is_typical: false,
        sessions_per_gpu: 3,
        keep_up: false,
        reserved_gpus: 0,
        yield_pause: Duration::from_millis(200),
        recycle: Recycle::default(),
        boot_timeout: seconds(60),
        connect_timeout: seconds(60),
        heartbeat_interval: seconds(1),
        heartbeat_timeout: seconds(5),
        min_step_timeout: seconds(30),
        min_backoff: seconds(1),
        max_backoff: seconds(10),
        snapshot_min_step: Some(Duration::ZERO),
        quarantine_after: 3,
        quarantine_lift: seconds(60),
        quarantine_trial: seconds(30),
        realtime: false,
    }
}

/// The policy that three exits in a row quarantine a worker.
pub(super) fn restart_policy() -> RestartPolicy {
    let seconds = Duration::from_secs;
    RestartPolicy::new(RestartLimits {
        min_backoff: seconds(1),
        max_backoff: seconds(10),
        quarantine_after: 3,
        quarantine_trial: seconds(30),
    })
}

/// At most so many sessions on each worker, at any pace, and no worker reserved for video jobs.
pub(super) fn sharing(max_sessions: usize) -> Sharing {
    Sharing {
        max_sessions,
        keep_up: None,
        reserved_gpus: 0,
        yield_pause: Duration::from_millis(200),
    }
}

/// The context of GPU 0, and the worker's status.
pub(super) fn context(config: Config) -> (WorkerContext, watch::Receiver<WorkerStatus>) {
    let gpu = config.gpus[0].clone();
    let notify = Arc::<Notify>::default();
    let sharing = Sharing {
        reserved_gpus: config.reserved_gpus,
        ..sharing(config.sessions_per_gpu)
    };
    let assignments = Assignments::new([(gpu.id, notify.clone())], sharing, PoolMetrics::default());
    let (status, seen) = watch::channel(WorkerStatus::new(gpu.clone()));
    let context = WorkerContext {
        slot: 0,
        gpu,
        config: Current::new(config),
        assignments: Arc::new(SharedAssignments::new(assignments)),
        ordered_adapters: Arc::default(),
        all_lost: watch::channel(false).0,
        events: WorkerEvents::new(status, PoolMetrics::default().meter(GpuId(0))),
        notify,
        tracker: TaskTracker::new(),
        incarnations: 1.into(),
    };
    (context, seen)
}

pub(super) fn assignment(gpu: u32, incarnation: u32) -> Assignment {
    Assignment {
        gpu: GpuId(gpu),
        worker: WorkerId::new(GpuId(gpu), incarnation),
        model_id: "m".to_owned(),
        device: "CPU".to_owned(),
        audio: true,
    }
}

pub(super) fn ready_report(warmup: &[Duration]) -> ReadyReport {
    ReadyReport {
        model_id: "m".to_owned(),
        device: DeviceReport {
            name: "CPU".to_owned(),
            memory_bytes: None,
            uuid: None,
        },
        audio_sample_rate: None,
        load: Duration::ZERO,
        warmup: warmup.to_vec(),
        adapters: Vec::new(),
    }
}

pub(super) fn job_spec(job: u64, session: SessionId) -> JobSpec {
    JobSpec {
        job: JobId(job),
        session,
        segment_idx: 0,
        attempt: 1,
        prompt: "a red fox".to_owned(),
        negative_prompt: None,
        seed: 0,
        num_inference_steps: 1,
        guidance_scale: 1.0,
        adapters: Vec::new(),
        format: FORMAT,
        media_mode: MediaMode::AvFmp4,
        start_frame: 0,
        initial_image: None,
        state: None,
        snapshot: None,
        snapshot_min_step: None,
        previews: false,
        video: None,
        window: 100_000,
        trace: None,
    }
}

/// The id of the `n`th video job.
pub(super) fn video_id(n: u128) -> VideoId {
    VideoId::after(None, 0, n)
}

/// A segment of a video job, all of whose frames are shown.
pub(super) fn video_spec(job: u64, video: VideoId) -> JobSpec {
    JobSpec {
        video: Some(Box::new(VideoPart {
            width: FORMAT.width,
            height: FORMAT.height,
            frames: FORMAT.num_frames,
            tiles: Vec::new(),
            thumbnail: None,
            sheet_after: None,
        })),
        ..job_spec(job, video.as_session())
    }
}
