//! Worker processes, one per GPU: the pool starts, watches and restarts them, binds sessions to them, and gives the time that
//! these leave to video jobs.
//!
//! - `worker` is the task that manages one GPU. `boot` makes a process ready, `serving` is the state machine of a process
//!   that serves, `renewal` replaces it by a standby, `shutdown` is the way out.
//! - `process` owns a child process, `link` speaks to it; `stall`, `exit` and `progress_limit` say when and why it ends;
//!   `attendance` notices when the supervisor could not hear it.
//! - `lifecycle` has the states of a worker, `restart` the restart policy, `event` has an event for each change, `status` the
//!   state that operators see, `control` the requests of operators and of the shutdown, `context` what the tasks of one
//!   GPU share.
//! - `assignments` binds sessions to workers, behind the lock of `shared_assignments`, and `queue` has those that wait;
//!   `assignments::videos` has the segments of video jobs. `job` is one job between a session or a video job and a worker, `adapters` those that are loaded while workers serve, `step_snapshot` what its next attempt goes on from. `rolling_median` estimates how long steps and segments take.
//!
//! Only this module creates processes. It does not know about clients, and treats a continuation state as opaque bytes.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastvideo_proto::adapter::Adapter;
use fastvideo_proto::api::workers::NewAdapter;
use fastvideo_proto::ids::{GpuId, JobId, SessionId, VideoId, WorkerId};
use fastvideo_proto::link::JobSpec;
use futures_util::FutureExt;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

pub use adapters::{AdapterStatus, LoadRefused, UnloadRefused, WorkerAdapter, WorkerAdapterState};
pub use assignments::{Assignment, MoveError, Placement};
pub use config::{Config, Gpu, Recycle};
pub use exit::{ExitKind, ExitReport};
pub use job::{Credit, JobEnd, JobEvent, JobHandle, Media, StartState};
pub use lifecycle::WorkerState;
pub use status::{PoolStatus, Room, Seats, SlotStatus, WorkerStatus};
pub use step_snapshot::StepSnapshot;

use crate::current::Current;
use crate::engines;
use crate::tenant::Tenant;
use crate::turns::Turns;
use adapters::{Added, OrderedAdapters};
use assignments::{Absence, Assignments, Sharing};
use context::WorkerContext;
use control::{Controls, Directive, StopSignal};
use event::WorkerEvent;
use event_readers::WorkerEvents;
use metrics::PoolMetrics;
use shared_assignments::{AssignmentsGuard, SharedAssignments};
use worker::WorkerTask;

mod adapters;
mod assignments;
mod attendance;
mod boot;
pub mod config;
mod context;
mod control;
mod event;
mod event_readers;
mod exit;
#[cfg(test)]
mod fixtures;
mod job;
mod lifecycle;
mod link;
mod metrics;
mod process;
mod progress_limit;
mod queue;
mod renewal;
mod restart;
mod rolling_median;
mod serving;
mod shared_assignments;
mod shutdown;
mod stall;
mod status;
mod step_snapshot;
#[cfg(test)]
pub(crate) mod testing;
mod worker;
mod worker_log;

/// The running workers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Current<Config>,
    assignments: Arc<SharedAssignments>,
    ordered_adapters: Arc<OrderedAdapters>,
    slots: Vec<SlotHandle>,
    next_job: AtomicU64,
    stop: watch::Sender<StopSignal>,
    all_lost: watch::Sender<bool>,
    tracker: TaskTracker,
    metrics: PoolMetrics,
}

/// The pool's side of the task that manages one GPU.
#[derive(Debug)]
struct SlotHandle {
    gpu: GpuId,
    status: watch::Receiver<WorkerStatus>,
    notify: Arc<Notify>,
    directive: watch::Sender<Directive>,
}

impl SlotHandle {
    /// Returns how the loading of an adapter stands that was ordered.
    fn adapter(&self, name: &str, serial: u64) -> Option<WorkerAdapterState> {
        let status = self.status.borrow();
        let adapter = status.adapters.get(name)?;
        (adapter.serial == Some(serial)).then(|| adapter.state.clone())
    }
}

/// A session's membership in the pool: the session is bound to a worker or waits for one. Dropping the binding ends
/// both at once.
#[derive(Debug)]
pub struct Binding {
    session: SessionId,
    placement: watch::Receiver<Placement>,
    /// Since when sessions have waited for a worker.
    demand: watch::Receiver<Option<Instant>>,
    /// How long the session's place is kept when this is dropped.
    hold: Duration,
    pool: Pool,
}

/// A video job's membership in the pool: its segments run on any worker, in the time that viewers leave. It has no seat, and
/// counts neither as a session nor as demand. Dropping it takes a waiting segment back, cancels a running one, and lets the
/// worker forget the job's state.
#[derive(Debug)]
pub struct VideoAsker {
    /// The name of the job on the link to workers.
    name: SessionId,
    pool: Pool,
}

/// What [`Binding::changed`] has noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindingChange {
    /// The session's placement differs from that of the last [`Binding::look`].
    Placement,
    /// Others wait for a worker now, or no longer.
    Demand,
}

/// Sessions that wait at a router for a place here or elsewhere: idle ones make room for them. They count until this is
/// dropped.
#[derive(Debug)]
pub struct DemandElsewhere {
    number: u64,
    pool: Pool,
}

impl DemandElsewhere {
    /// Takes note of how many there are.
    pub fn set(&self, sessions: usize) {
        let mut assignments = self.pool.assignments();
        assignments.set_waiting_elsewhere(self.number, sessions);
    }
}

impl Drop for DemandElsewhere {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// There is no such GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no GPU {0}")]
pub struct UnknownGpu(pub GpuId);

/// The session is not bound to that worker any more.
#[derive(Debug, thiserror::Error)]
#[error("the session has left worker {0}")]
pub struct Moved(WorkerId);

impl Pool {
    /// Starts all workers, each with a task that is one of the loops that have to turn. It returns at once; [`Self::status`]
    /// tells how far they are.
    ///
    /// It must be called on a runtime thread that lives as long as the pool: workers die with the thread that started
    /// them, so that none outlives the supervisor.
    pub fn start(config: Config, turns: &Turns) -> Self {
        let notifiers: Vec<_> = (config.gpus.iter())
            .map(|_| Arc::<Notify>::default())
            .collect();
        let sharing = sharing(&config);
        let ids = config.gpus.iter().map(|gpu| gpu.id);
        let metrics = PoolMetrics::default();
        let slots = ids.zip(notifiers.iter().cloned());
        let assignments = Assignments::new(slots, sharing, metrics.clone());
        let assignments = Arc::new(SharedAssignments::new(assignments));
        let (stop, stop_seen) = watch::channel(StopSignal::Run);
        let (all_lost, _) = watch::channel(false);
        let tracker = TaskTracker::new();
        let mut slots = Vec::new();
        let current = Current::new(config.clone());
        let ordered_adapters = Arc::<OrderedAdapters>::default();
        for (slot, (gpu, notify)) in config.gpus.iter().zip(notifiers).enumerate() {
            let (status, status_seen) = watch::channel(WorkerStatus::new(gpu.clone()));
            let (directive, directive_seen) = watch::channel(Directive::default());
            let context = WorkerContext {
                slot,
                gpu: gpu.clone(),
                config: current.clone(),
                assignments: assignments.clone(),
                ordered_adapters: ordered_adapters.clone(),
                all_lost: all_lost.clone(),
                events: WorkerEvents::new(status, metrics.meter(gpu.id)),
                notify: notify.clone(),
                tracker: tracker.clone(),
                incarnations: 0.into(),
            };
            let controls = Controls::new(directive_seen, stop_seen.clone());
            let span = tracing::info_span!("gpu", gpu = %gpu.id);
            let task = manage(context, controls).instrument(span);
            tracker.spawn(turns.watch(&format!("GPU {}", gpu.id), task));
            slots.push(SlotHandle {
                gpu: gpu.id,
                directive,
                status: status_seen,
                notify,
            });
        }
        Self {
            shared: Arc::new(Shared {
                config: current,
                assignments,
                ordered_adapters,
                slots,
                next_job: AtomicU64::new(1),
                stop,
                all_lost,
                tracker,
                metrics,
            }),
        }
    }

    /// Takes over another configuration of the same GPUs. How many sessions share a GPU, when workers are renewed, and the
    /// time limits change for running workers too; the rest holds for those that are started later. No session loses its
    /// place.
    pub(crate) fn reconfigure(&self, config: Config) {
        let sharing = sharing(&config);
        self.shared.config.replace(config);
        self.assignments().set_sharing(sharing);
        // For the time limits.
        self.wake_workers();
    }

    /// Registers the pool's metrics, with all their series.
    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry, self);
    }

    /// Adds a session to the pool: it is bound to a worker or queued until the binding is dropped. A session whose place
    /// is held takes that place.
    pub fn join(&self, session: SessionId, tenant: Tenant) -> Binding {
        let mut assignments = self.assignments();
        let placement = assignments.join(session.clone(), tenant);
        let demand = assignments.demand();
        drop(assignments);
        Binding {
            session,
            placement,
            demand,
            hold: Duration::ZERO,
            pool: self.clone(),
        }
    }

    /// Adds a video job to the pool, in which there is one asker for each at most.
    pub fn video_asker(&self, id: VideoId) -> VideoAsker {
        let name = id.as_session();
        self.assignments().add_video(name.clone());
        VideoAsker {
            name,
            pool: self.clone(),
        }
    }

    /// Returns whether a session that joins now is bound at once.
    pub fn has_place_for(&self, session: &SessionId) -> bool {
        self.assignments().has_place_for(session)
    }

    /// Returns the current status of all workers.
    pub fn status(&self) -> PoolStatus {
        let config = self.shared.config.get();
        let assignments = self.assignments();
        let slots = self.shared.slots.iter().enumerate();
        let workers = slots.map(|(i, slot)| SlotStatus {
            status: slot.status.borrow().clone(),
            sessions: assignments.sessions_on(i),
            available: assignments.has_room(i),
            real_time_factor: (assignments.pace(i)).map(|pace| config.real_time_factor(pace)),
        });
        PoolStatus {
            workers: workers.collect(),
            queue_depth: assignments.queue_depth(),
            room: assignments.room(),
            preemptions: (self.shared.metrics).preemptions(self.shared.slots.iter().map(|s| s.gpu)),
            warmup_enabled: config.warmup.is_some(),
        }
    }

    /// Returns how many GPUs there are, and who waits for one.
    pub fn seats(&self) -> Seats {
        self.assignments().seats()
    }

    /// Returns a receiver that is told when the assignments of sessions may have changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.assignments.changes()
    }

    /// Lets a caller say how many sessions wait at a router.
    pub fn demand_elsewhere(&self) -> DemandElsewhere {
        DemandElsewhere {
            number: self.assignments().begin_elsewhere(),
            pool: self.clone(),
        }
    }

    /// Returns the number of sessions that the workers can serve at once, including workers that still boot.
    pub fn capacity(&self) -> usize {
        self.assignments().capacity()
    }

    /// Moves a session to a GPU, or to any other one, at the end of its running segment; at once when none runs. The
    /// session learns of it by its [`Placement`]. The call does nothing when the session is there already.
    ///
    /// # Errors
    /// Returns an error when the session cannot go there; it then stays where it is.
    pub fn move_session(&self, session: &SessionId, to: Option<GpuId>) -> Result<(), MoveError> {
        self.assignments().move_session(session, to)
    }

    /// Drains a worker: it takes no new sessions, exits, and is not started again until [`Self::restart_worker`]. At
    /// the end of its running segment, each of its sessions moves to another worker or waits for one. Segments that
    /// still run after `patience` are started again on another worker.
    ///
    /// # Errors
    /// Returns an error when there is no such GPU.
    pub fn drain_worker(&self, gpu: GpuId, patience: Option<Duration>) -> Result<(), UnknownGpu> {
        self.direct(gpu, true, patience)
    }

    /// Starts a worker. A worker that serves exits first, as in [`Self::drain_worker`]; one that is drained, backs off
    /// or is quarantined starts now.
    ///
    /// # Errors
    /// Returns an error when there is no such GPU.
    pub fn restart_worker(&self, gpu: GpuId, patience: Option<Duration>) -> Result<(), UnknownGpu> {
        self.direct(gpu, false, patience)
    }

    fn direct(
        &self,
        gpu: GpuId,
        drained: bool,
        patience: Option<Duration>,
    ) -> Result<(), UnknownGpu> {
        let mut slots = self.shared.slots.iter();
        let slot = slots.find(|slot| slot.gpu == gpu).ok_or(UnknownGpu(gpu))?;
        let cut_at = patience.and_then(|patience| Instant::now().checked_add(patience));
        slot.directive.send_replace(Directive { drained, cut_at });
        Ok(())
    }

    /// Returns the adapters that clients can choose, each with its default strength.
    pub fn offered_adapters(&self) -> Vec<Adapter> {
        self.adapters_that(|name, serial| {
            let states = self.shared.slots.iter();
            let mut states = states
                .filter_map(|slot| slot.adapter(name, serial))
                .peekable();
            states.peek().is_none() || !states.all(|state| state.has_failed())
        })
    }

    /// Returns those of [`Self::offered_adapters`] that the worker of a GPU has not failed to load.
    pub fn adapters_of(&self, gpu: GpuId) -> Vec<Adapter> {
        let slot = self.shared.slots.iter().find(|slot| slot.gpu == gpu);
        self.adapters_that(|name, serial| {
            let state = slot.and_then(|slot| slot.adapter(name, serial));
            !state.is_some_and(|state| state.has_failed())
        })
    }

    /// Returns the adapters of the configuration, and those that clients were offered by order and of which this is true,
    /// by name and serial number.
    fn adapters_that(&self, are_usable: impl Fn(&str, u64) -> bool) -> Vec<Adapter> {
        let configured = self.shared.config.get().adapters.clone();
        let ordered = self.shared.ordered_adapters.list().into_iter();
        let usable = ordered.filter(|(adapter, serial, is_offered)| {
            *is_offered && are_usable(&adapter.name, *serial)
        });
        let usable = usable.map(|(adapter, ..)| adapter);
        configured.into_iter().chain(usable).collect()
    }

    /// Returns the adapters that clients can choose and those that are being loaded.
    pub fn adapters(&self) -> Vec<AdapterStatus> {
        let configured = self.shared.config.get().adapters.clone().into_iter();
        let configured = configured.map(|adapter| (adapter, true, true));
        let ordered = self.shared.ordered_adapters.list().into_iter();
        let offered = self.offered_adapters();
        let ordered = ordered.map(|(adapter, ..)| {
            let is_offered = offered.iter().any(|it| it.name == adapter.name);
            (adapter, false, is_offered)
        });
        let assignments = self.assignments();
        let status = |(adapter, configured, offered): (Adapter, bool, bool)| AdapterStatus {
            sessions: assignments.sessions_with_adapter(&adapter.name),
            adapter,
            configured,
            offered,
        };
        configured.chain(ordered).map(status).collect()
    }

    /// Loads an adapter into all workers that serve, each at the end of its running segment, and then lets clients choose
    /// it. Workers that become ready later load it too. It is there until it is unloaded or the server ends.
    ///
    /// It is loaded or refused to the end although the caller may give up.
    ///
    /// # Errors
    /// Returns an error when one worker cannot load it. Then none has it.
    pub async fn load_adapter(&self, new: NewAdapter) -> Result<(), LoadRefused> {
        let config = self.shared.config.get();
        let folder = config.adapters_folder.as_deref();
        let (adapter, options) = engines::ltx2::order(folder.ok_or(LoadRefused::NoFolder)?, new)?;
        let name = adapter.name.clone();
        let taken = || LoadRefused::NameTaken(name.clone());
        let is_configured = config.adapters.iter().any(|it| it.name == name);
        if is_configured || self.shared.ordered_adapters.contains(&name) {
            return Err(taken());
        }
        let sessions = self.assignments().sessions_with_adapter(&name);
        if sessions > 0 {
            return Err(LoadRefused::StillChosen { name, sessions });
        }
        if !(self.status().workers.iter()).any(|slot| slot.status.state.serves()) {
            return Err(LoadRefused::NoWorker);
        }
        let added = self.shared.ordered_adapters.add(adapter, options);
        let Added { serial, gone } = added.ok_or_else(taken)?;
        let pool = self.clone();
        let limit = config.boot_timeout;
        let loading = self.shared.tracker.spawn(async move {
            let loaded = tokio::select! {
                loaded = timeout(limit, pool.adapter_loaded(serial)) => {
                    loaded.unwrap_or(Err(LoadRefused::TooSlow(limit)))
                }
                () = gone.cancelled() => Err(LoadRefused::Unloaded),
            };
            let ordered = &pool.shared.ordered_adapters;
            let loaded = loaded.and_then(|()| match ordered.offer(serial) {
                true => Ok(()),
                false => Err(LoadRefused::Unloaded),
            });
            if loaded.is_err() {
                ordered.withdraw(serial);
                pool.wake_workers();
            }
            loaded
        });
        self.wake_workers();
        loading.await.unwrap_or(Err(LoadRefused::Unloaded))
    }

    /// Waits until each worker that serves has loaded an adapter, or one has failed to.
    async fn adapter_loaded(&self, serial: u64) -> Result<(), LoadRefused> {
        let mut loaded = false;
        for slot in &self.shared.slots {
            let mut status = slot.status.clone();
            let answer = |status: &WorkerStatus| {
                let adapter = (status.adapters.values()).find(|it| it.serial == Some(serial));
                adapter.map(|adapter| adapter.state.clone())
            };
            let is_settled = |status: &WorkerStatus| {
                !status.state.serves()
                    || !matches!(answer(status), None | Some(WorkerAdapterState::Loading))
            };
            // The pool has ended where this fails.
            let Ok(status) = status.wait_for(is_settled).await else {
                return Err(LoadRefused::NoWorker);
            };
            match answer(&status) {
                Some(WorkerAdapterState::Loaded(_)) => loaded = true,
                Some(WorkerAdapterState::Failed(message)) => {
                    let gpu = slot.gpu;
                    return Err(LoadRefused::Failed { gpu, message });
                }
                Some(WorkerAdapterState::Loading) | None => {}
            }
        }
        match loaded {
            true => Ok(()),
            false => Err(LoadRefused::NoWorker),
        }
    }

    /// Unloads an adapter that was loaded by order: clients cannot choose it any more, and each worker drops it at the end
    /// of its running segment.
    ///
    /// # Errors
    /// Returns an error when it stays. One that sessions have chosen is unloaded only with `force`.
    pub fn unload_adapter(&self, name: &str, force: bool) -> Result<(), UnloadRefused> {
        let named = || name.to_owned();
        let config = self.shared.config.get();
        if config.adapters.iter().any(|adapter| adapter.name == name) {
            return Err(UnloadRefused::Configured(named()));
        }
        let ordered = &self.shared.ordered_adapters;
        if !ordered.contains(name) {
            return Err(UnloadRefused::Unknown(named()));
        }
        let sessions = self.assignments().sessions_with_adapter(name);
        if sessions > 0 && !force {
            let name = named();
            return Err(UnloadRefused::InUse { name, sessions });
        }
        if !ordered.remove(name) {
            return Err(UnloadRefused::Unknown(named()));
        }
        self.wake_workers();
        Ok(())
    }

    /// Makes all workers' tasks look at what has changed.
    fn wake_workers(&self) {
        for slot in &self.shared.slots {
            slot.notify.notify_one();
        }
    }

    /// Returns whether no worker serves, and none will until an operator intervenes or a quarantine ends.
    pub fn all_lost(&self) -> bool {
        *self.shared.all_lost.borrow()
    }

    /// Waits until a thread panics while it changes the assignments, which is a programming error. They may be
    /// inconsistent from then on, so the server has to end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failed(&self) {
        self.shared.assignments.failed().await;
    }

    /// Asks all workers to exit, and waits until all processes are gone.
    pub async fn stop(&self) {
        self.shared.stop.send_if_modified(|stop| {
            let running = *stop == StopSignal::Run;
            if running {
                *stop = StopSignal::Ask;
            }
            running
        });
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
    }

    /// Makes a running or future [`Self::stop`] kill the workers at once.
    pub fn stop_now(&self) {
        self.shared.stop.send_replace(StopSignal::Kill);
    }

    fn next_job_id(&self) -> JobId {
        JobId(self.shared.next_job.fetch_add(1, Ordering::Relaxed))
    }

    fn assignments(&self) -> AssignmentsGuard<'_> {
        self.shared.assignments.lock()
    }
}

impl Binding {
    /// Returns the session's placement, and marks it as seen for [`Self::changed`].
    pub fn look(&mut self) -> Placement {
        self.placement.borrow_and_update().clone()
    }

    /// Waits until the placement or the demand changes.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn changed(&mut self) -> BindingChange {
        // Neither can fail, because the assignments hold the senders for as long as this binding lives.
        tokio::select! {
            _ = self.placement.changed() => BindingChange::Placement,
            _ = self.demand.changed() => BindingChange::Demand,
        }
    }

    /// Returns since when other sessions have waited for a worker; `None` when none waits.
    pub fn others_wait_since(&self) -> Option<Instant> {
        *self.demand.borrow()
    }

    /// Gives the session's place up to one that waits: the caller then drops this. Returns false when as many other
    /// sessions as wait do so already.
    pub fn give_up(&self) -> bool {
        self.pool.assignments().give_up(&self.session)
    }

    /// Keeps the session's place with the pool for `time` after this is dropped, unless the session joins again before.
    pub fn hold_for(&mut self, time: Duration) {
        self.hold = time;
    }

    /// Takes note of the adapters that act on the session's next segment. The session moves when another worker with room
    /// holds more of them; returns whether it does.
    pub fn choose_adapters(&self, adapters: &[Adapter]) -> bool {
        let names = adapters.iter().map(|adapter| adapter.name.clone());
        let mut assignments = self.pool.assignments();
        assignments.choose_adapters(&self.session, names.collect())
    }

    /// Takes note that the session needs no state that its worker holds.
    pub fn forget_state(&self) {
        self.pool.assignments().forget_state(&self.session);
    }

    /// Tells the pool when the session's viewer runs out of video; `None`: it does not, as far as is known. Until then the
    /// worker begins no segment of a video job that would not be done by that time.
    pub fn viewer_lasts_until(&self, until: Option<Instant>) {
        let mut assignments = self.pool.assignments();
        assignments.set_viewer_lasts_until(&self.session, until);
    }

    /// Submits a job to the worker that the session is bound to. The worker serves its sessions by earliest deadline
    /// first: `due` is the time when the session's viewer runs out of video. The pool chooses the job's id, and whether
    /// the state that the job starts from is sent along or already held by the worker. `snapshot` is that of an earlier
    /// attempt, which the job goes on from. Events of the job are logged in the caller's span.
    ///
    /// # Errors
    /// Returns an error when the session was moved in the meantime; the caller looks at the placement again.
    pub fn submit(
        &self,
        worker: &WorkerId,
        mut spec: JobSpec,
        start: Option<StartState>,
        snapshot: Option<StepSnapshot>,
        due: Instant,
    ) -> Result<JobHandle, Moved> {
        spec.job = self.pool.next_job_id();
        let mut assignments = self.pool.assignments();
        let Some(slot) = assignments.slot_of(worker, &self.session) else {
            return Err(Moved(worker.clone()));
        };
        let (handle, job) = job::pair(spec, start, snapshot, Some(due));
        assignments.submit(slot, job);
        Ok(handle)
    }
}

impl VideoAsker {
    /// Submits a segment of the video job, one at a time: it waits for any worker, behind those of older jobs. Each time that it
    /// ends with [`JobEnd::Preempted`], [`JobEnd::TakenBack`] or [`JobEnd::WorkerLost`], it may be submitted again. The pool
    /// chooses the job's id, its name on the link, and whether the state that it starts from is sent along or already held by
    /// the worker. `snapshot` is that of an earlier attempt, which the job goes on from. Events of the job are logged in the
    /// caller's span.
    pub fn submit(
        &self,
        mut spec: JobSpec,
        start: Option<StartState>,
        snapshot: Option<StepSnapshot>,
    ) -> JobHandle {
        spec.job = self.pool.next_job_id();
        spec.session = self.name.clone();
        let (mut handle, job) = job::pair(spec, start, snapshot, None);
        handle.wait_in(self.pool.shared.assignments.clone());
        self.pool.assignments().submit_video_job(job);
        handle
    }
}

impl Drop for VideoAsker {
    fn drop(&mut self) {
        self.pool.assignments().remove_video(&self.name);
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        let mut assignments = self.pool.assignments();
        if self.hold.is_zero() {
            return assignments.leave(&self.session);
        }
        let Some(hold) = assignments.hold(&self.session) else {
            return;
        };
        drop(assignments);
        let (pool, session, time) = (self.pool.clone(), self.session.clone(), self.hold);
        let mut stop = self.pool.shared.stop.subscribe();
        self.pool.shared.tracker.spawn(async move {
            tokio::select! {
                () = sleep(time) => {}
                _ = stop.wait_for(|stop| *stop != StopSignal::Run) => {}
            }
            pool.assignments().end_hold(&session, hold);
        });
    }
}

/// Returns how sessions and video jobs share the GPUs.
fn sharing(config: &Config) -> Sharing {
    Sharing {
        max_sessions: config.sessions_per_gpu,
        keep_up: (config.keep_up).then(|| config.segment_plays()),
        reserved_gpus: config.reserved_gpus,
        yield_pause: config.yield_pause,
    }
}

/// Runs the task of one GPU. A panic in it loses the GPU but not the server.
async fn manage(context: WorkerContext, controls: Controls) {
    let (slot, events, assignments) = (
        context.slot,
        context.events.clone(),
        context.assignments.clone(),
    );
    let task = WorkerTask::new(context, controls).run();
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        events.emit(WorkerEvent::TaskPanicked);
        assignments.lock().vacate(slot, Absence::Lost);
    }
}

#[cfg(test)]
mod tests;
