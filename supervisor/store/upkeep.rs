//! The upkeep of a store: this server's heartbeat, and garbage collection.
//!
//! `cleanup` executes the pending cleanup of this server.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use fastvideo_proto::ids::VideoId;
use fastvideo_proto::stored::StoredSession;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};

use super::error::StoreError;
use super::handle::SessionStore;
use super::health::Operation;
use super::ids::{BlobKey, RecordKey, Revision, ServerId};
use super::records::{BlobKind, Record, StoredRecord, Survey, SurveyedRecord};
use crate::causes::with_causes;

mod cleanup;

/// Number of beats within the length of a lease.
const BEATS_PER_LEASE: u32 = 3;
/// Longest pause between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before cleanup that the store did not answer is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long a claim of an idempotency key is kept whose video does not exist: far longer than creating one takes.
const CLAIM_TTL: Duration = Duration::from_secs(3600);
/// How long a condemned blob is left to the server that has condemned it, before another server deletes it.
const LEFTOVER_AGE: Duration = Duration::from_secs(20);

/// Sends this server's heartbeat, collects garbage, and executes the pending cleanup.
#[derive(Debug)]
pub struct Upkeep {
    store: SessionStore,
    /// Each server's beat, and when it last changed.
    beats: HashMap<ServerId, (u64, Instant)>,
    /// Each record that no server runs: its revision, and when that was first seen.
    idle: HashMap<RecordKey, (Revision, Instant)>,
    /// Each session and video job that the store assigns to this server although it does not run it, and when that was
    /// first seen.
    strays: HashMap<RecordKey, (Revision, Instant)>,
    /// Each condemned blob, and when it was first seen.
    condemned: HashMap<BlobKey, Instant>,
    /// When the store was last surveyed.
    surveyed: Option<Instant>,
}

impl Upkeep {
    /// Creates the upkeep of a store, which does nothing until [`Self::run`].
    pub fn new(store: SessionStore) -> Self {
        Self {
            store,
            beats: HashMap::new(),
            idle: HashMap::new(),
            strays: HashMap::new(),
            condemned: HashMap::new(),
            surveyed: None,
        }
    }

    /// Sends heartbeats, collects garbage and cleans up. Never returns.
    pub async fn run(mut self) {
        let store = self.store.clone();
        let cleaning = async {
            loop {
                store.0.cleanup.added().await;
                store.clean_up_all().await;
            }
        };
        let beating = async {
            let mut ticks = ticks(beat_interval(&store));
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = store.0.restoring.found() => sleep(RETRY_PAUSE).await,
                }
                let beaten = store.beat().await;
                store.0.health.observe(Operation::Beat, &beaten);
            }
        };
        let sweeping = async {
            loop {
                if let Err(error) = self.sweep().await {
                    let error = with_causes(&error);
                    tracing::debug!(error, "the store is not swept");
                }
                sleep(sweep_interval(&store)).await;
            }
        };
        let restoring = async {
            loop {
                store.0.restoring.needed().await;
                while !store.restore().await {
                    sleep(RETRY_PAUSE).await;
                }
            }
        };
        tokio::join!(cleaning, beating, sweeping, restoring);
    }

    /// Collects garbage: leases of silent servers, states that were kept for long enough, blobs that a crash has left.
    async fn sweep(&mut self) -> Result<(), StoreError> {
        let store = self.store.clone();
        let survey = store.within(store.0.records.survey()).await?;
        let now = Instant::now();
        self.skip_blind_time(now);
        let silent = self.silent_servers(&survey, now);
        for server in &silent {
            tracing::warn!(
                server = server.as_str(),
                "another server is silent: its sessions can be resumed, and its video jobs taken"
            );
            let condemned = store.within(store.0.records.retire(server)).await?;
            store.0.cleanup.delete(condemned);
        }
        let state_ttl = store.config().resume_ttl;
        let film_ttl = store.config().film_ttl();
        let (mut idle, mut strays) = (HashMap::new(), HashMap::new());
        let videos: HashSet<VideoId> = survey.records.iter().filter_map(video_of).collect();
        for record in survey.records {
            let SurveyedRecord {
                key,
                revision,
                owner,
                has_state,
                has_media,
            } = record;
            match owner {
                Some(owner) if silent.contains(&owner) => {
                    store.disown(&key, revision).await?;
                }
                // The answer to the write that took the lease was lost.
                Some(owner) if owner == store.0.server && !store.runs(&key) => {
                    let since = since(&self.strays, &key, revision, now);
                    if now - since > store.config().lease {
                        store.disown(&key, revision).await?;
                    } else {
                        strays.insert(key, (revision, since));
                    }
                }
                Some(_) => {}
                // Its library says how long it is kept.
                None if matches!(key, RecordKey::Video { .. }) => {}
                None if matches!(key, RecordKey::VideoClaim(_)) => {
                    let since = since(&self.idle, &key, revision, now);
                    let is_due = now - since > CLAIM_TTL;
                    if is_due && store.sweep_claim(&key, revision, &videos).await? {
                        // It is looked at again after as long.
                        idle.insert(key, (revision, now));
                    } else if !is_due {
                        idle.insert(key, (revision, since));
                    }
                }
                None => {
                    let since = since(&self.idle, &key, revision, now);
                    let outlives_state = has_media && film_ttl > state_ttl;
                    // A film without its state was kept for a while already.
                    let ttl = match outlives_state && !has_state {
                        true => film_ttl - state_ttl,
                        false => state_ttl,
                    };
                    if now - since <= ttl {
                        idle.insert(key, (revision, since));
                    } else if outlives_state && has_state && now - since <= film_ttl {
                        if !store.forget_state(&key, revision).await? {
                            idle.insert(key, (revision, since));
                        }
                    } else {
                        tracing::info!(record = %key, "stored record expired");
                        store.replace(&key, revision, None).await?;
                    }
                }
            }
        }
        self.idle = idle;
        self.strays = strays;
        let known = std::mem::take(&mut self.condemned);
        for blob in survey.condemned {
            let since = known.get(&blob).copied().unwrap_or(now);
            if now - since > LEFTOVER_AGE {
                store.0.cleanup.delete([blob]);
            }
            self.condemned.insert(blob, since);
        }
        Ok(())
    }

    /// Excludes time in which the store did not answer or this server was stopped: no beat and no resume could be seen
    /// during that time.
    fn skip_blind_time(&mut self, now: Instant) {
        let pause = (self.surveyed.replace(now)).map_or(Duration::ZERO, |last| now - last);
        let blind = pause.saturating_sub(2 * sweep_interval(&self.store));
        if blind.is_zero() {
            return;
        }
        for (_, since) in self.beats.values_mut() {
            *since = now;
        }
        for (_, since) in self.idle.values_mut().chain(self.strays.values_mut()) {
            *since += blind;
        }
    }

    /// Returns the servers whose beat has not changed for the length of a lease. A server that owns sessions and has no
    /// beat has retired.
    fn silent_servers(&mut self, survey: &Survey, now: Instant) -> HashSet<ServerId> {
        let records = survey.records.iter();
        let owners = records.filter_map(|record| record.owner.as_ref());
        let known: HashSet<&ServerId> = survey.servers.keys().chain(owners).collect();
        self.beats.retain(|server, _| known.contains(server));
        for server in known {
            let beat = survey.servers.get(server).copied().unwrap_or(0);
            let seen = self.beats.entry(server.clone()).or_insert((beat, now));
            if seen.0 != beat {
                *seen = (beat, now);
            }
        }
        let lease = self.store.config().lease;
        let own = &self.store.0.server;
        let silent = self
            .beats
            .iter()
            .filter(|(server, (_, since))| *server != own && now - *since > lease);
        silent.map(|(server, _)| server.clone()).collect()
    }
}

impl SessionStore {
    /// Retires the servers that used the store before, takes their video jobs from them, and deletes the blobs that no
    /// record names. This must only be called for a store that no other server uses, before its first use.
    ///
    /// # Errors
    /// Returns an error when the store does not answer.
    pub async fn mend(&self) -> Result<(), StoreError> {
        let survey = self.0.records.survey().await?;
        for server in survey.servers.keys() {
            self.0.cleanup.delete(self.0.records.retire(server).await?);
        }
        for record in &survey.records {
            if video_of(record).is_some() && record.owner.is_some() {
                self.disown(&record.key, record.revision).await?;
            }
        }
        let blobs = self.0.blobs.list().await?;
        let unknown = self.0.records.condemn_unknown(&blobs).await?;
        if !unknown.is_empty() {
            tracing::info!(blobs = unknown.len(), "blobs deleted that nobody refers to");
            self.0.cleanup.delete(unknown);
        }
        Ok(())
    }

    /// Executes the pending cleanup and retires this server. After `limit` it gives up: the other servers then detect
    /// the silence of this one. It is to be called when upkeep and all sessions have ended.
    pub async fn close(&self, limit: Duration) {
        let closing = async {
            self.0.puts.close();
            self.0.puts.wait().await;
            // A store that has lost data takes nothing before this server has noticed.
            let _ = self.beat().await;
            self.clean_up_all().await;
            match self.0.records.retire(&self.0.server).await {
                Ok(condemned) => self.0.cleanup.delete(condemned),
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(error, "the store was not told that this server ends");
                }
            }
            self.clean_up().await;
        };
        if timeout(limit, closing).await.is_err() {
            tracing::warn!("the store does not answer: the cleanup is left to other servers");
        }
    }

    /// Increments this server's beat, and finds out which of its leases are lost.
    pub(in crate::store) async fn beat(&self) -> Result<(), StoreError> {
        self.beat_in_epoch().await?;
        let epoch = self.0.records.epoch();
        let mut leased = self.0.leased.all();
        // Those of an earlier epoch are to be restored.
        leased.retain(|leased| leased.epoch() == epoch);
        let mut videos = self.0.videos.all();
        videos.retain(|leased| leased.epoch() == epoch && leased.is_ours());
        // What is being written detects a lost lease by its write.
        let revision = |key: &RecordKey, record: &AsyncMutex<StoredRecord>| {
            let record = record.try_lock().ok()?;
            Some((key.clone(), record.revision))
        };
        let sessions = leased.iter().map(|leased| (&leased.key, &leased.record));
        let records = sessions.chain(videos.iter().map(|leased| (&leased.key, &leased.record)));
        let revisions = records.filter_map(|(key, record)| revision(key, record));
        let known: Vec<(RecordKey, Revision)> = revisions.collect();
        let stale = self.within(self.0.records.stale(&known)).await?;
        for leased in leased.iter().filter(|leased| stale.contains(&leased.key)) {
            let Ok(mut record) = leased.record.try_lock() else {
                continue;
            };
            // Skips a record that was written in the meantime.
            if known.contains(&(leased.key.clone(), record.revision)) {
                self.is_still_ours(leased, &mut record, self.deadline())
                    .await?;
            }
        }
        for leased in videos.iter().filter(|leased| stale.contains(&leased.key)) {
            let Ok(mut record) = leased.record.try_lock() else {
                continue;
            };
            if known.contains(&(leased.key.clone(), record.revision)) {
                self.look_at_video(leased, &mut record).await?;
            }
        }
        Ok(())
    }

    /// Returns whether this server runs the session or the video job of that record.
    fn runs(&self, key: &RecordKey) -> bool {
        match key {
            RecordKey::Session(session) => self.0.leased.get(session).is_some(),
            RecordKey::Video { id, .. } => self.0.videos.get(id).is_some(),
            RecordKey::Loan(_) | RecordKey::VideoClaim(_) => false,
        }
    }

    /// Takes the lease from a server that is silent: no server runs the session or the video job then.
    pub(in crate::store) async fn disown(
        &self,
        key: &RecordKey,
        revision: Revision,
    ) -> Result<(), StoreError> {
        let Some(stored) = self.within(self.0.records.read(key)).await? else {
            return Ok(());
        };
        let record = Record {
            owner: None,
            ..stored.record
        };
        self.replace(key, revision, Some(&record)).await
    }

    /// Removes the claim of an idempotency key unless its video is there. Returns whether the claim stays.
    async fn sweep_claim(
        &self,
        key: &RecordKey,
        revision: Revision,
        videos: &HashSet<VideoId>,
    ) -> Result<bool, StoreError> {
        match self.stored_claim(key).await {
            Ok(Some((_, claim))) if videos.contains(&claim.video) => return Ok(true),
            Ok(Some(_)) | Err(StoreError::Lost(_)) => {}
            Ok(None) => return Ok(false),
            Err(StoreError::Newer(_)) => return Ok(true),
            Err(error) => return Err(error),
        }
        tracing::info!(record = %key, "claim without a video removed");
        self.replace(key, revision, None).await?;
        Ok(false)
    }

    /// Drops the state of a session that no server runs, and leaves its film. Returns false where that is left to newer
    /// servers, which can read the record.
    async fn forget_state(&self, key: &RecordKey, revision: Revision) -> Result<bool, StoreError> {
        let Some(stored) = self.within(self.0.records.read(key)).await? else {
            return Ok(true);
        };
        let mut body = match StoredSession::decode(&stored.record.body) {
            Ok(body) => body,
            Err(error) if error.is_newer() => return Ok(false),
            Err(_) => {
                // Nobody can read its film either.
                self.replace(key, revision, None).await?;
                return Ok(true);
            }
        };
        tracing::info!(record = %key, "stored state expired; the film stays");
        body.state = None;
        let mut blobs = stored.record.blobs;
        blobs.retain(|blob| blob.kind == BlobKind::Media);
        let record = Record {
            owner: None,
            blobs,
            body: body.encode(),
        };
        self.replace(key, revision, Some(&record)).await?;
        Ok(true)
    }

    /// Replaces or removes a record, unless another writer was faster.
    async fn replace(
        &self,
        key: &RecordKey,
        expected: Revision,
        record: Option<&Record>,
    ) -> Result<(), StoreError> {
        let swapped = self.swap_record(key, expected, record, self.deadline());
        match swapped.await {
            Ok(_) | Err(StoreError::Stale) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Returns the video that a record is about, if it is that of a job.
fn video_of(record: &SurveyedRecord) -> Option<VideoId> {
    match record.key {
        RecordKey::Video { id, .. } => Some(id),
        _ => None,
    }
}

/// Returns when a record was first seen with this revision.
fn since(
    seen: &HashMap<RecordKey, (Revision, Instant)>,
    key: &RecordKey,
    revision: Revision,
    now: Instant,
) -> Instant {
    match seen.get(key) {
        Some((known, since)) if *known == revision => *since,
        _ => now,
    }
}

fn beat_interval(store: &SessionStore) -> Duration {
    store.config().lease / BEATS_PER_LEASE
}

fn sweep_interval(store: &SessionStore) -> Duration {
    SWEEP_INTERVAL
        .min(store.config().resume_ttl)
        .max(beat_interval(store))
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
