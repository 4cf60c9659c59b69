//! The entry of one worker in `/status`, built from the pool's status of it.

use std::time::Duration;

use fastvideo_proto::api;
use fastvideo_proto::api::status::{Device, GpuStatus, LastExit, LoadProgress, WarmupTimings};

use crate::http::operator::adapters::on_worker;
use crate::ingress::timestamp::rfc3339;
use crate::pool::{ExitKind, ExitReport, SlotStatus, WorkerState};

pub(super) fn status(slot: &SlotStatus, warmup_enabled: bool) -> GpuStatus {
    let worker = &slot.status;
    let ready = worker.ready.as_ref();
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let warmup_ms = |segment| ready.and_then(|r| r.warmup.get(segment)).copied().map(ms);
    GpuStatus {
        ready: worker.state.serves(),
        available: slot.available,
        client_count: slot.sessions,
        current_model_id: ready.map(|r| r.model_id.clone()),
        process_alive: worker.pid.is_some(),
        warmup_enabled,
        warmup_success: worker.warmed_up,
        warmup_error: boot_error(slot),
        warmup_timings: WarmupTimings {
            load_ms: ready.map(|r| ms(r.load)),
            first_segment_ms: warmup_ms(0),
            second_segment_ms: warmup_ms(1),
        },
        worker_id: worker.worker_id.clone(),
        pid: worker.pid,
        state: worker.state.into(),
        restarts: worker.restarts,
        last_exit: worker.last_exit.as_ref().map(last_exit),
        load_progress: worker
            .load_progress
            .clone()
            .map(|(fraction, what)| LoadProgress { fraction, what }),
        visible_device: worker.gpu.visible_device.clone(),
        device: ready.map(|r| Device {
            name: r.device.name.clone(),
            memory_bytes: r.device.memory_bytes,
        }),
        resident_bytes: worker.resident_bytes,
        segments_finished: worker.jobs_finished,
        real_time_factor: slot.real_time_factor,
        adapters: (worker.adapters.iter())
            .map(|(name, adapter)| (name.clone(), on_worker(adapter)))
            .collect(),
    }
}

/// Returns the reason of the last exit when no process of this GPU has ever become ready.
pub(super) fn boot_error(slot: &SlotStatus) -> Option<String> {
    match &slot.status.last_exit {
        Some(exit) if !slot.status.warmed_up => Some(exit.reason.clone()),
        _ => None,
    }
}

fn last_exit(exit: &ExitReport) -> LastExit {
    LastExit {
        kind: exit.kind.into(),
        reason: exit.reason.clone(),
        permanent: exit.permanent,
        uptime_seconds: exit.uptime.as_secs_f64(),
        ts: rfc3339(exit.at),
    }
}

impl From<WorkerState> for api::status::WorkerState {
    fn from(state: WorkerState) -> Self {
        match state {
            WorkerState::Spawning => Self::Spawning,
            WorkerState::Connecting => Self::Connecting,
            WorkerState::Loading => Self::Loading,
            WorkerState::WarmingUp => Self::WarmingUp,
            WorkerState::Ready => Self::Ready,
            WorkerState::Busy => Self::Busy,
            WorkerState::Draining => Self::Draining,
            WorkerState::Drained => Self::Drained,
            WorkerState::Exited => Self::Exited,
            WorkerState::BackingOff => Self::BackingOff,
            WorkerState::Quarantined => Self::Quarantined,
        }
    }
}

impl From<ExitKind> for api::status::ExitKind {
    fn from(kind: ExitKind) -> Self {
        match kind {
            ExitKind::Asked => Self::Asked,
            ExitKind::Crashed => Self::Crashed,
            ExitKind::Stuck => Self::Stuck,
            ExitKind::Boot => Self::Boot,
            ExitKind::BadLink => Self::BadLink,
            ExitKind::Shortage => Self::Shortage,
        }
    }
}
