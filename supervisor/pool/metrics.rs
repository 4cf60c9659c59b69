//! The metrics of workers and their jobs: a reader of their events, and gauges of the pool's status.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastvideo_link::SharedMemory;
use fastvideo_proto::ids::GpuId;
use fastvideo_proto::job::JobFailure;
use fastvideo_proto::step_snapshot::SnapshotHeader;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::Pool;
use super::event::{HandoffReason, WorkerEvent};
use super::exit::ExitKind;
use super::lifecycle::WorkerState;
use super::step_snapshot::{HeldBytes, StepSnapshot};
use crate::metrics::{
    Bounds, Gauges, GpuLabel, Histograms, LATENCY, LONG, TracedHistograms, create, number, seconds,
};

const OUTCOMES: [&str; 7] = [
    "finished",
    "cancelled",
    "failed",
    "refused",
    "state_incompatible",
    "worker_lost",
    "taken_back",
];

/// The metrics of all workers. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct PoolMetrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    started: Family<GpuLabel, Counter>,
    ended: Family<AttemptLabels, Counter>,
    preempted: Family<GpuLabel, Counter>,
    generation: TracedHistograms<GpuLabel>,
    frames: Family<GpuLabel, Counter>,
    exits: Family<ExitLabels, Counter>,
    start: Histograms<PhaseLabel>,
    handoffs: Family<ReasonLabel, Counter>,
    snapshots: Family<GpuLabel, Counter>,
    snapshots_refused: Family<GpuLabel, Counter>,
    went_on: Family<GpuLabel, Counter>,
    steps_saved: Family<GpuLabel, Counter>,
    snapshot_bytes: HeldBytes,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    gpu: u32,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExitLabels {
    gpu: u32,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    gpu: u32,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InfoLabels {
    gpu: u32,
    uuid: String,
    device: String,
    model: String,
}

impl Default for PoolMetrics {
    fn default() -> Self {
        Self(Arc::new(Families {
            started: Family::default(),
            ended: Family::default(),
            preempted: Family::default(),
            generation: Family::new_with_constructor(Bounds(&LATENCY)),
            frames: Family::default(),
            exits: Family::default(),
            start: Family::new_with_constructor(Bounds(&LONG)),
            handoffs: Family::default(),
            snapshots: Family::default(),
            snapshots_refused: Family::default(),
            went_on: Family::default(),
            steps_saved: Family::default(),
            snapshot_bytes: HeldBytes::default(),
        }))
    }
}

impl PoolMetrics {
    /// Registers the metrics, with all series of the pool's GPUs.
    pub(super) fn register(&self, registry: &mut Registry, pool: &Pool) {
        let all = &self.0;
        registry.register(
            "segment_attempts_started",
            "Jobs that were given to a worker; those that have not ended run",
            all.started.clone(),
        );
        registry.register(
            "segment_attempts",
            "Jobs that were given to a worker and have ended, by how",
            all.ended.clone(),
        );
        registry.register(
            "segment_attempts_preempted",
            "Segments of video jobs that were stopped for one that a viewer waited for",
            all.preempted.clone(),
        );
        registry.register(
            "segment_generation_seconds",
            "Time that a finished segment took in its worker",
            all.generation.clone(),
        );
        registry.register(
            "video_frames",
            "Frames of the finished segments",
            all.frames.clone(),
        );
        registry.register(
            "worker_exits",
            "Worker processes that have ended; all but `asked` ended by themselves or were killed",
            all.exits.clone(),
        );
        registry.register(
            "worker_start_seconds",
            "Time that a worker process took to open its link, to load its model, and to warm up",
            all.start.clone(),
        );
        registry.register(
            "handoffs",
            "Sessions that went on with another worker, by why",
            all.handoffs.clone(),
        );
        registry.register(
            "step_snapshots",
            "Denoise steps after which a worker left the latents with the server",
            all.snapshots.clone(),
        );
        registry.register(
            "step_snapshots_refused",
            "Step snapshots that a worker did not go on from; the segment began with its first step",
            all.snapshots_refused.clone(),
        );
        registry.register(
            "segment_attempts_resumed",
            "Attempts that went on from the step snapshot of an earlier one",
            all.went_on.clone(),
        );
        registry.register(
            "denoise_steps_saved",
            "Denoise steps that were not done again, since an attempt went on from a step snapshot",
            all.steps_saved.clone(),
        );
        for reason in HandoffReason::ALL {
            let reason = reason.name();
            create(&all.handoffs, &ReasonLabel { reason });
        }
        for phase in ["connect", "load", "warmup"] {
            create(&all.start, &PhaseLabel { phase });
        }
        for slot in &pool.shared.slots {
            self.know(slot.gpu);
        }
        registry.register_collector(Box::new(PoolGauges(pool.clone())));
    }

    fn know(&self, gpu: GpuId) {
        let all = &self.0;
        let gpu = gpu.0;
        create(&all.started, &GpuLabel { gpu });
        create(&all.preempted, &GpuLabel { gpu });
        create(&all.generation, &GpuLabel { gpu });
        create(&all.frames, &GpuLabel { gpu });
        create(&all.snapshots, &GpuLabel { gpu });
        create(&all.snapshots_refused, &GpuLabel { gpu });
        create(&all.went_on, &GpuLabel { gpu });
        create(&all.steps_saved, &GpuLabel { gpu });
        for outcome in OUTCOMES {
            create(&all.ended, &AttemptLabels { gpu, outcome });
        }
        for kind in ExitKind::ALL {
            let kind = kind.name();
            create(&all.exits, &ExitLabels { gpu, kind });
        }
    }

    /// Counts a session that goes on with another worker.
    pub(super) fn handed_off(&self, reason: HandoffReason) {
        let reason = reason.name();
        self.0.handoffs.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Returns the number of segments of video jobs that were stopped for one of a viewer, on all of these GPUs.
    pub(super) fn preemptions(&self, gpus: impl Iterator<Item = GpuId>) -> u64 {
        let preempted = &self.0.preempted;
        gpus.map(|gpu| preempted.get_or_create(&GpuLabel { gpu: gpu.0 }).get())
            .sum()
    }

    /// Returns the reader of the events of a GPU's worker.
    pub(super) fn meter(&self, gpu: GpuId) -> WorkerMeter {
        WorkerMeter {
            metrics: self.clone(),
            gpu: gpu.0,
            since: Arc::default(),
        }
    }
}

/// Reads the events of one GPU's worker for the metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct WorkerMeter {
    metrics: PoolMetrics,
    gpu: u32,
    /// When the process began the phase of its start that it is in.
    since: Arc<Mutex<Option<Instant>>>,
}

impl WorkerMeter {
    pub(super) fn read(&self, event: &WorkerEvent) {
        let all = &*self.metrics.0;
        let gpu = self.gpu;
        match event {
            WorkerEvent::Spawned { .. } => *self.since() = Some(Instant::now()),
            WorkerEvent::Connected => self.phase_ended("connect"),
            WorkerEvent::WarmingUp => self.phase_ended("load"),
            WorkerEvent::Ready { report } => {
                self.phase_ended(match report.warmup.is_empty() {
                    true => "load",
                    false => "warmup",
                });
                *self.since() = None;
            }
            WorkerEvent::JobSent { again: false, .. } => {
                all.started.get_or_create(&GpuLabel { gpu }).inc();
            }
            WorkerEvent::SnapshotRefused { .. } => {
                all.snapshots_refused.get_or_create(&GpuLabel { gpu }).inc();
            }
            WorkerEvent::JobWentOn { after, .. } => {
                all.went_on.get_or_create(&GpuLabel { gpu }).inc();
                let saved = all.steps_saved.get_or_create(&GpuLabel { gpu });
                saved.inc_by(after.steps_done.into());
            }
            WorkerEvent::JobFinished {
                generation, frames, ..
            } => {
                self.attempt_ended("finished");
                let took = all.generation.get_or_create(&GpuLabel { gpu });
                took.observe(seconds(*generation), None, None);
                let video = all.frames.get_or_create(&GpuLabel { gpu });
                video.inc_by(u64::from(*frames));
            }
            WorkerEvent::JobFailed { failure, .. } => self.attempt_ended(match failure {
                JobFailure::Cancelled => "cancelled",
                JobFailure::Refused => "refused",
                JobFailure::StateIncompatible => "state_incompatible",
                JobFailure::StateNotHeld
                | JobFailure::SnapshotRefused
                | JobFailure::OutOfMemory
                | JobFailure::Failed => "failed",
            }),
            WorkerEvent::JobTakenBack { .. } => self.attempt_ended("taken_back"),
            WorkerEvent::JobPreempted { .. } => {
                self.attempt_ended("taken_back");
                all.preempted.get_or_create(&GpuLabel { gpu }).inc();
            }
            WorkerEvent::JobLost { started: true, .. } => self.attempt_ended("worker_lost"),
            WorkerEvent::Exited { exit, .. } | WorkerEvent::Retired { exit } => {
                *self.since() = None;
                let kind = exit.kind.name();
                all.exits.get_or_create(&ExitLabels { gpu, kind }).inc();
            }
            _ => {}
        }
    }

    #[cfg(test)]
    pub(super) fn held_snapshot_bytes(&self) -> u64 {
        self.metrics.0.snapshot_bytes.get()
    }

    /// Takes a step snapshot that the worker has left.
    pub(super) fn take_snapshot(
        &self,
        header: SnapshotHeader,
        latents: SharedMemory,
    ) -> StepSnapshot {
        let all = &*self.metrics.0;
        let label = GpuLabel { gpu: self.gpu };
        all.snapshots.get_or_create(&label).inc();
        StepSnapshot::new(header, latents, all.snapshot_bytes.clone())
    }

    fn phase_ended(&self, phase: &'static str) {
        let now = Instant::now();
        if let Some(began) = self.since().replace(now) {
            let took = self.metrics.0.start.get_or_create(&PhaseLabel { phase });
            took.observe(seconds(now - began));
        }
    }

    fn attempt_ended(&self, outcome: &'static str) {
        let labels = AttemptLabels {
            gpu: self.gpu,
            outcome,
        };
        self.metrics.0.ended.get_or_create(&labels).inc();
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the pool's status when it is scraped.
#[derive(Debug)]
struct PoolGauges(Pool);

impl Collector for PoolGauges {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.status();
        let now = Instant::now();
        let mut gauges = Gauges(encoder);
        gauges.one(
            "queue_depth",
            "Sessions that wait for a worker",
            number(status.queue_depth),
        )?;
        gauges.one(
            "capacity_sessions",
            "Sessions that the workers which serve can have at once",
            number(status.room.places),
        )?;
        gauges.one(
            "free_sessions",
            "Sessions that the workers which serve could take now",
            number(status.room.free),
        )?;
        gauges.one(
            "step_snapshot_bytes",
            "Size of the latents that are kept, so that segments go on after a step when their workers are lost",
            number(self.0.shared.metrics.0.snapshot_bytes.get()),
        )?;
        let workers = || status.workers.iter().map(|slot| &slot.status);
        let states = workers().flat_map(|worker| {
            WorkerState::ALL.map(|state| {
                let labels = StateLabels {
                    gpu: worker.gpu.id.0,
                    state: state.name(),
                };
                (labels, f64::from(u8::from(worker.state == state)))
            })
        });
        gauges.each(
            "worker_state",
            "The state that a GPU's worker is in",
            states,
        )?;
        let infos = workers().filter_map(|worker| {
            let ready = worker.ready.as_ref()?;
            let labels = InfoLabels {
                gpu: worker.gpu.id.0,
                uuid: ready.device.uuid.clone().unwrap_or_default(),
                device: ready.device.name.clone(),
                model: ready.model_id.clone(),
            };
            Some((labels, 1.0))
        });
        gauges.each(
            "worker_info",
            "What a worker that serves is: the GPU's UUID, which joins the exporter of the GPU's vendor, its name, and the model",
            infos,
        )?;
        let label = |gpu: GpuId| GpuLabel { gpu: gpu.0 };
        let busy = workers().map(|w| (label(w.gpu.id), seconds(w.busy_time(now))));
        gauges.counters(
            "worker_busy_seconds",
            "Time in which a GPU's worker had a job",
            busy,
        )?;
        let ages = workers().filter_map(|worker| {
            let heard = worker.heartbeat?;
            Some((label(worker.gpu.id), seconds(now - heard)))
        });
        gauges.each(
            "worker_heartbeat_age_seconds",
            "Time since a worker process last said that it lives",
            ages,
        )?;
        let resident = workers().filter_map(|w| Some((label(w.gpu.id), number(w.resident_bytes?))));
        gauges.each(
            "worker_resident_bytes",
            "Resident memory of a worker process",
            resident,
        )?;
        let gpu_memory = workers().filter_map(|w| Some((label(w.gpu.id), number(w.gpu_bytes?))));
        gauges.each(
            "worker_gpu_memory_bytes",
            "Memory that is in use on a worker's GPU",
            gpu_memory,
        )
    }
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::ids::{JobId, SessionId};

    use super::*;

    #[test]
    fn segments_that_make_way_are_counted_on_all_gpus() {
        let metrics = PoolMetrics::default();
        let gpus = [0, 1, 2].map(GpuId);
        for (gpu, count) in gpus.into_iter().zip(0..) {
            for _ in 0..count {
                metrics.meter(gpu).read(&WorkerEvent::JobPreempted {
                    job: JobId(1),
                    session: SessionId::random(),
                });
            }
        }
        assert_eq!(metrics.preemptions(gpus.into_iter()), 3);
        assert_eq!(metrics.preemptions([GpuId(2)].into_iter()), 2);
    }
}
