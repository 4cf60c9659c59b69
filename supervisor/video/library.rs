//! All video jobs: takes them in, lets them run in their order, and removes them when their time is over.
//!
//! The store has the records. This server knows a summary of each, which it compares with the store every few seconds, since
//! other servers may share it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastvideo_proto::ids::VideoId;
use fastvideo_proto::link::EncoderSpec;
use fastvideo_proto::stored_video::StoredFile;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::clock::unix_ms;
use super::config::Config;
use super::failure::Failure;
use super::job::{JobParts, JobRun, Loaded, Outcome};
use super::known::{Counts, Entry, Known, Place, Start};
use super::live::Live;
use super::metrics::VideoMetrics;
use super::record;
use super::record_writer::RecordWriter;
use super::reports::Reports;
use super::webhook;
use crate::backoff::Backoff;
use crate::causes::with_causes;
use crate::current::Current;
use crate::pool::Pool;
use crate::prompt::Prompts;
use crate::session::Drain;
use crate::session::log::Logs;
use crate::store::records::VideoPage;
use crate::store::{DataLoss, SessionStore, StoreError, VideoRecord};
use crate::tenant::Tenant;

/// The pause between two looks at what the store has.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// The pause between two looks for jobs whose time is over.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(2);
/// The pause between two looks at a job that another server runs.
const ELSEWHERE_INTERVAL: Duration = Duration::from_millis(500);
/// The pauses before a job is tried again whose record could not be read.
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What jobs need of the server.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) config: Current<Config>,
    pub(crate) encoder: EncoderSpec,
    pub(crate) pool: Pool,
    pub(crate) prompts: Prompts,
    pub(crate) store: SessionStore,
    pub(crate) drain: watch::Receiver<Drain>,
    pub(crate) logs: Logs,
    /// Tracks writes to the store, which may outlive their job.
    pub(crate) writes: TaskTracker,
}

/// All video jobs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Videos(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    parts: Parts,
    known: Mutex<Known>,
    /// Notified when a job may run.
    wake: Notify,
    /// Notified when the operator is to be told of the end of a job.
    untold: Notify,
    /// Cancelled when the server goes away and no job runs here any more.
    left: CancellationToken,
    sender: webhook::Sender,
    metrics: VideoMetrics,
    /// Tracks the jobs that run here.
    running: TaskTracker,
    /// When this server was started, in milliseconds since the Unix epoch.
    since_ms: u64,
}

/// A part of a tenant's jobs.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// In order.
    pub(crate) jobs: Vec<(VideoId, Live)>,
    /// Whether more jobs follow.
    pub(crate) has_more: bool,
}

impl Videos {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(Shared {
            parts,
            known: Mutex::default(),
            wake: Notify::new(),
            untold: Notify::new(),
            left: CancellationToken::new(),
            sender: webhook::Sender::new(),
            metrics: VideoMetrics::default(),
            running: TaskTracker::new(),
            since_ms: unix_ms(),
        }))
    }

    /// Returns the configuration that holds now.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.0.parts.config.get()
    }

    /// Returns since when the model is served, in seconds since the Unix epoch.
    pub(crate) fn since(&self) -> u64 {
        self.0.since_ms / 1000
    }

    /// Returns whether jobs outlive the server's process.
    pub(crate) fn are_durable(&self) -> bool {
        self.0.parts.store.outlives_server()
    }

    /// Takes over another configuration, for the jobs that run already, too.
    pub(crate) fn reconfigure(&self, config: Config) {
        self.0.parts.config.replace(config);
        self.look_around();
    }

    pub(crate) fn counts(&self) -> Counts {
        self.known().counts()
    }

    /// Lets jobs run, and removes those whose time is over. Never returns.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        while let Err(error) = self.refresh().await {
            let error = with_causes(&error);
            tracing::warn!(error, "the video jobs that are stored are not known yet");
            sleep(backoff.next_pause()).await;
        }
        let mut refresh = interval(REFRESH_INTERVAL);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut expiry = interval(EXPIRY_INTERVAL);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.start_jobs();
            tokio::select! {
                () = self.0.wake.notified() => {}
                _ = refresh.tick() => {
                    if let Err(error) = self.refresh().await {
                        let error = with_causes(&error);
                        tracing::debug!(error, "the video jobs of other servers are not known");
                    }
                }
                _ = expiry.tick() => self.remove_expired().await,
            }
        }
    }

    /// Waits until no job runs here any more. The server is going away then.
    pub(crate) async fn drained(&self) {
        self.0.running.close();
        self.0.running.wait().await;
        self.0.left.cancel();
    }

    /// Returns whether no job runs here any more, since the server goes away.
    pub(crate) fn have_left(&self) -> bool {
        self.0.left.is_cancelled()
    }

    /// Returns whether a language model writes prompts out.
    pub(crate) fn can_enhance(&self) -> bool {
        self.0.parts.prompts.can_enhance()
    }

    pub(super) fn is_draining(&self) -> bool {
        *self.0.parts.drain.borrow() != Drain::No
    }

    /// Begins the jobs that are due.
    fn start_jobs(&self) {
        if self.is_draining() {
            return;
        }
        let most = self.config().max_parallel;
        loop {
            let next = self.known().start_next(most);
            let Some(start) = next else {
                return;
            };
            let span = tracing::info_span!("video", video_id = %start.id);
            let running = self.clone().run_job(start).instrument(span);
            self.0.running.spawn(running);
        }
    }

    /// Runs a job until it has ended, or goes on elsewhere.
    async fn run_job(self, start: Start) {
        let (id, tenant) = (start.id, start.tenant.clone());
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        let ran = loop {
            match self.try_job(&start).await {
                Err(error) if !self.is_draining() => {
                    let error = with_causes(&error);
                    let pause = backoff.next_pause();
                    tracing::warn!(
                        error,
                        pause_ms = pause.as_millis(),
                        "a video job cannot begin; trying again"
                    );
                    sleep(pause).await;
                }
                ran => break ran,
            }
        };
        if let Ok(outcome) = ran {
            tracing::info!(?outcome, "video job has left this server");
        }
        self.known().stopped(id);
        if !self.is_draining() {
            self.look_again(&tenant, id).await;
        }
        self.look_around();
    }

    /// Takes a job and runs it. Returns at once when it is not to be run here.
    async fn try_job(&self, start: &Start) -> Result<Outcome, StoreError> {
        let parts = &self.0.parts;
        let store = &parts.store;
        let Some(record) = store.read_video(&start.tenant, start.id).await? else {
            return Ok(Outcome::Gone);
        };
        if record.video.status.is_end() {
            return Ok(Outcome::Ended);
        }
        let loaded = match load(store, &record).await {
            Ok(loaded) => Ok(loaded),
            Err(StoreError::Lost(loss)) => Err(lost(&loss)),
            Err(error) => return Err(error),
        };
        let lease = match store.take_video(&record, &record.video, &[]).await {
            Err(StoreError::Stale) => return Ok(Outcome::Gone),
            lease => lease?,
        };
        let video = record.video;
        let is_cancelled = video.is_cancelled;
        let stored = Arc::new(video.clone());
        let writer = RecordWriter::begin(start.id, lease, stored, &parts.writes);
        let job = JobParts {
            config: self.config(),
            encoder: parts.encoder.clone(),
            prompts: parts.prompts.clone().of_tenant(start.tenant.clone()),
            asker: parts.pool.video_asker(start.id),
            drain: parts.drain.clone(),
            cancelled: start.cancelled.clone(),
            live: start.live.clone(),
            writer,
            reports: self.reports(&start.tenant, start.id),
        };
        if is_cancelled {
            start.cancelled.cancel();
        }
        Ok(JobRun::new(start.id, video, job).run(loaded).await)
    }

    /// Reads what the store has of all jobs that have changed.
    async fn refresh(&self) -> Result<(), StoreError> {
        let before: Vec<VideoId> = self.known().jobs.keys().copied().collect();
        let survey = self.0.parts.store.survey_videos().await?;
        let mut gone: HashSet<VideoId> = before.into_iter().collect();
        let mut changed = Vec::new();
        {
            let known = self.known();
            for found in &survey {
                gone.remove(&found.id);
                let entry = known.jobs.get(&found.id);
                let is_known = entry.is_some_and(|entry| {
                    entry.revision == found.revision || matches!(entry.place, Place::Here(..))
                });
                if !is_known {
                    changed.push((found.tenant.clone(), found.id));
                }
            }
        }
        for (tenant, id) in changed {
            self.look_again(&tenant, id).await;
        }
        let mut known = self.known();
        for id in gone {
            let is_here = |entry: &Entry| matches!(entry.place, Place::Here(..));
            if known.jobs.get(&id).is_some_and(|entry| !is_here(entry)) {
                known.forget(id);
            }
        }
        known.is_surveyed = true;
        drop(known);
        self.look_around();
        Ok(())
    }

    /// Reads what the store has of a job. A store that does not answer is asked again with the next refresh.
    async fn look_again(&self, tenant: &Tenant, id: VideoId) {
        match self.0.parts.store.read_video(tenant, id).await {
            Ok(Some(record)) => self.known().see(&record),
            Ok(None) => self.known().forget(id),
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(video_id = %id, error, "a video job cannot be read");
            }
        }
    }

    /// Removes the jobs whose time is over.
    async fn remove_expired(&self) {
        let expired = self.known().expired(unix_ms());
        for (tenant, id) in expired {
            match self.0.parts.store.remove_video(&tenant, id).await {
                Ok(_) => {
                    tracing::info!(video_id = %id, "video removed: its time is over");
                    self.known().forget(id);
                }
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::debug!(video_id = %id, error, "video not removed yet");
                }
            }
        }
    }

    /// Returns a job of a tenant; `None` when there is none. One that waits or runs here is looked for in the store, too:
    /// another server may have removed it a moment ago.
    ///
    /// # Errors
    /// Returns an error when the store does not answer, and the job neither waits nor runs here.
    pub(crate) async fn get(
        &self,
        tenant: &Tenant,
        id: VideoId,
    ) -> Result<Option<Live>, StoreError> {
        let record = self.store().read_video(tenant, id).await;
        let live = self.subscribe(tenant, id);
        let live = live.map(|live| live.borrow().clone());
        match record {
            Ok(None) => Ok(None),
            Ok(Some(record)) => Ok(Some(live.unwrap_or_else(|| seen(record)))),
            Err(error) => live.map(Some).ok_or(error),
        }
    }

    /// Returns a job of a tenant once its status or its progress differs from what it is now, when the time is over, or when
    /// the server goes away and no job runs here any more; `None` when there is none, or none any more.
    ///
    /// # Errors
    /// Returns an error when the store does not answer.
    pub(crate) async fn wait(
        &self,
        tenant: &Tenant,
        id: VideoId,
        time: Duration,
    ) -> Result<Option<Live>, StoreError> {
        let deadline = Instant::now() + time;
        let Some(before) = self.get(tenant, id).await? else {
            return Ok(None);
        };
        let mut now = before.clone();
        while now.looks_like(&before) && !now.video.status.is_end() && Instant::now() < deadline {
            let changed = async {
                match self.subscribe(tenant, id) {
                    // Its end closes the channel, too.
                    Some(mut live) => _ = live.wait_for(|live| !live.looks_like(&before)).await,
                    None => sleep(ELSEWHERE_INTERVAL).await,
                }
            };
            tokio::select! {
                _ = timeout_at(deadline, changed) => {}
                () = self.0.left.cancelled() => break,
            }
            match self.get(tenant, id).await? {
                Some(live) => now = live,
                None => return Ok(None),
            }
        }
        Ok(Some(now))
    }

    /// Returns a page of a tenant's jobs, in order.
    ///
    /// # Errors
    /// Returns an error when the store does not answer.
    pub(crate) async fn list(&self, tenant: &Tenant, page: VideoPage) -> Result<Page, StoreError> {
        let list = self.store().list_videos(tenant, page).await?;
        let jobs = list.videos.into_iter().map(|record| {
            let id = record.id;
            (id, self.live(id).unwrap_or_else(|| seen(record)))
        });
        Ok(Page {
            jobs: jobs.collect(),
            has_more: list.has_more,
        })
    }

    /// Asks for the end of a job. One that waits has ended when this returns; one that runs ends at its next step. Returns
    /// the job; `None` when there is none.
    ///
    /// # Errors
    /// Returns an error when the store does not answer.
    pub(crate) async fn cancel(
        &self,
        tenant: &Tenant,
        id: VideoId,
    ) -> Result<Option<Live>, StoreError> {
        while !self.cancel_here(tenant, id) {
            let Some(record) = self.store().cancel_video(tenant, id).await? else {
                return Ok(None);
            };
            if record.owner().is_some() || record.video.status.is_end() {
                self.take_in(record);
                break;
            }
            // It waits.
            let mut video = record.video.clone();
            let failure = Failure::cancelled();
            record::fail(&mut video, &failure, &self.config());
            match self.store().replace_video(&record, &video, &[]).await {
                Ok(record) => {
                    self.reports(tenant, id)
                        .ended(&record.video, Some(&failure));
                    self.take_in(record);
                    break;
                }
                // A server has taken it meanwhile.
                Err(StoreError::Stale) => {}
                Err(error) => return Err(error),
            }
        }
        self.get(tenant, id).await
    }

    /// Asks for the end of a job that runs here. Returns false when it does not.
    fn cancel_here(&self, tenant: &Tenant, id: VideoId) -> bool {
        let known = self.known();
        match known.jobs.get(&id) {
            Some(Entry {
                tenant: owner,
                place: Place::Here(_, cancelled),
                ..
            }) if owner == tenant => {
                cancelled.cancel();
                true
            }
            _ => false,
        }
    }

    /// Removes a job, whatever becomes of it at the moment. Returns false when there is none.
    ///
    /// # Errors
    /// Returns an error when the store does not answer.
    pub(crate) async fn delete(&self, tenant: &Tenant, id: VideoId) -> Result<bool, StoreError> {
        let is_removed = self.store().remove_video(tenant, id).await?;
        if is_removed {
            // Its run ends at the next step.
            self.cancel_here(tenant, id);
            self.known().forget(id);
            self.0.wake.notify_one();
        }
        Ok(is_removed)
    }

    /// Removes a job although nobody waits for that.
    pub(crate) fn delete_soon(&self, tenant: Tenant, id: VideoId) {
        let videos = self.clone();
        self.tasks().spawn(async move {
            if let Err(failed) = videos.delete(&tenant, id).await {
                let error = with_causes(&failed);
                tracing::warn!(video_id = %id, error, "a job whose client has gone away is not deleted");
            }
        });
    }

    /// Returns the tracker of tasks that outlive their caller.
    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.0.parts.writes
    }

    /// Takes note of a job that this server has just written. Returns what is known of it before it may run.
    pub(super) fn take_in(&self, record: VideoRecord) -> Live {
        let mut known = self.known();
        known.see(&record);
        let live = known.live(record.id);
        drop(known);
        self.look_around();
        live.unwrap_or_else(|| seen(record))
    }

    /// Lets jobs run that may, and has the operator told of those that have ended.
    fn look_around(&self) {
        self.0.wake.notify_one();
        self.0.untold.notify_one();
    }

    /// Waits until the operator may have to be told of the end of a job.
    pub(super) async fn end_is_untold(&self) {
        self.0.untold.notified().await;
    }

    /// Returns a job of whose end this server is to tell the operator from now on, if it has a webhook to do so.
    pub(super) fn next_to_tell(&self) -> Option<(Tenant, VideoId)> {
        if self.is_draining() || self.config().webhook.is_none() {
            return None;
        }
        self.known().next_to_tell()
    }

    /// Takes note that this server tells of the end of a job no more.
    pub(super) async fn told(&self, tenant: &Tenant, id: VideoId) {
        self.known().told(id);
        self.look_again(tenant, id).await;
    }

    /// Runs a task which ends soon when the server begins to go away, and is waited for then.
    pub(super) fn track(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.running.spawn(task);
    }

    pub(super) fn drain(&self) -> watch::Receiver<Drain> {
        self.0.parts.drain.clone()
    }

    pub(super) fn sender(&self) -> &webhook::Sender {
        &self.0.sender
    }

    pub(super) fn metrics(&self) -> &VideoMetrics {
        &self.0.metrics
    }

    /// Returns what reports on a job.
    fn reports(&self, tenant: &Tenant, id: VideoId) -> Reports {
        let log = self.0.parts.logs.video(id, tenant);
        Reports::new(log, self.metrics().clone())
    }

    /// Returns the id of another job. It is greater than those of all others that this server knows, and of all that were
    /// stored when it started, whatever its clock says.
    pub(super) async fn next_id(&self) -> VideoId {
        if !self.known().is_surveyed
            && let Err(error) = self.refresh().await
        {
            tracing::debug!(
                error = with_causes(&error),
                "the ids that are stored are not known"
            );
        }
        let mut known = self.known();
        let id = VideoId::after(known.last_id, unix_ms(), rand::random());
        known.last_id = Some(id);
        id
    }

    /// Returns how many jobs wait, and how many of these are a tenant's.
    pub(super) fn waiting(&self, tenant: &Tenant) -> (usize, usize) {
        let known = self.known();
        (known.queue.waiting(), known.queue.waiting_of(tenant))
    }

    /// Returns what is known of a job that waits or runs here.
    pub(super) fn live(&self, id: VideoId) -> Option<Live> {
        self.known().live(id)
    }

    fn subscribe(&self, tenant: &Tenant, id: VideoId) -> Option<watch::Receiver<Live>> {
        let known = self.known();
        let entry = known
            .jobs
            .get(&id)
            .filter(|entry| entry.tenant == *tenant)?;
        match &entry.place {
            Place::Waiting(live) | Place::Here(live, _) => Some(live.subscribe()),
            Place::Elsewhere | Place::Ended { .. } => None,
        }
    }

    pub(super) fn store(&self) -> &SessionStore {
        &self.0.parts.store
    }

    pub(super) fn prompts(&self, tenant: &Tenant) -> Prompts {
        self.0.parts.prompts.clone().of_tenant(tenant.clone())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        (self.0.known.lock()).expect("no holder of this lock panics")
    }
}

/// Returns what is known of a job that neither waits nor runs here.
fn seen(record: VideoRecord) -> Live {
    match record.owner().is_some() {
        true => Live::elsewhere(Arc::new(record.video)),
        false => Live::of(Arc::new(record.video)),
    }
}

/// Reads what a job goes on from.
async fn load(store: &SessionStore, record: &VideoRecord) -> Result<Loaded, StoreError> {
    let video = &record.video;
    let file = async |file: Option<&StoredFile>| match file {
        Some(file) => Ok(Some(store.file(file).await?.join())),
        None => Ok::<_, StoreError>(None),
    };
    Ok(Loaded {
        state: store.state_of(record).await?,
        tiles: file(video.tiles.as_ref()).await?.unwrap_or_default(),
        image: match video.film.is_empty() {
            true => file(video.image.as_ref()).await?,
            false => None,
        },
    })
}

/// Returns why a job fails of which the store has lost a part.
fn lost(loss: &DataLoss) -> Failure {
    tracing::error!(error = with_causes(loss), "a video job cannot go on");
    Failure::internal("a part of the job is lost")
}
