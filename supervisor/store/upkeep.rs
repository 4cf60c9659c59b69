//! What a store needs besides writes: proof that this server lives, and tidying up after those that do not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::SessionId;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};

use super::{Chore, Held, SessionStore, Stored};
use crate::store::StoreError;
use crate::store::records::{BlobKey, Change, Record, Revision, ServerId, Survey};

/// Beats within the time after which a silent server has lost its sessions.
const BEATS_PER_LEASE: u32 = 3;
/// Between two looks at all that a store keeps, unless what is looked for is due earlier.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before a chore is tried again that the store did not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// A condemned blob is left for this long to the one who has condemned it.
const LEFTOVER_AGE: Duration = Duration::from_secs(20);
/// Chores that are done side by side.
const CHORES_AT_ONCE: usize = 16;

/// Looks after a store until it is dropped.
#[derive(Debug)]
pub struct Upkeep {
    store: SessionStore,
    /// Since when each server's beat has not moved.
    beats: HashMap<ServerId, (u64, Instant)>,
    /// Since when each session that nobody runs is as it is.
    idle: HashMap<SessionId, (Revision, Instant)>,
    /// Since when the store says of each session that this server runs it, which it does not.
    strays: HashMap<SessionId, (Revision, Instant)>,
    /// Since when each blob has been condemned.
    condemned: HashMap<BlobKey, Instant>,
    /// When the store was last seen as a whole.
    surveyed: Option<Instant>,
}

impl Upkeep {
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

    /// Beats, sweeps and does chores for ever.
    pub async fn run(mut self) {
        let store = self.store.clone();
        let chores = async {
            loop {
                store.0.chore_added.notified().await;
                while !store.do_chores().await {
                    sleep(RETRY_PAUSE).await;
                }
            }
        };
        let beating = async {
            let mut ticks = ticks(beat_interval(&store));
            loop {
                ticks.tick().await;
                if let Err(error) = store.beat().await {
                    tracing::warn!(%error, "the store was not told that this server lives");
                }
            }
        };
        let sweeping = async {
            let mut ticks = ticks(sweep_interval(&store));
            loop {
                ticks.tick().await;
                if let Err(error) = self.sweep().await {
                    tracing::warn!(%error, "the store is not looked after");
                }
            }
        };
        tokio::join!(chores, beating, sweeping);
    }

    /// Looks for what nobody looks after: sessions of silent servers, states that have been kept for long enough, blobs
    /// that a crash has left.
    async fn sweep(&mut self) -> Result<(), StoreError> {
        let store = self.store.clone();
        let survey = store.within(store.0.records.survey()).await?;
        let now = Instant::now();
        self.skip_blind_time(now);
        let silent = self.silent_servers(&survey, now);
        for server in &silent {
            tracing::warn!(
                server = server.as_str(),
                "another server is silent: its sessions can be resumed"
            );
            let condemned = store.within(store.0.records.retire(server)).await?;
            store.delete(condemned);
        }
        let ttl = store.config().resume_ttl;
        let (mut idle, mut strays) = (HashMap::new(), HashMap::new());
        for (session, revision, owner) in survey.sessions {
            match owner {
                Some(owner) if silent.contains(&owner) => {
                    store.disown(&session, revision).await?;
                }
                // It was taken, but the answer was lost.
                Some(owner) if owner == store.0.server && !store.held().contains_key(&session) => {
                    let since = match self.strays.get(&session) {
                        Some((seen, since)) if *seen == revision => *since,
                        _ => now,
                    };
                    if now - since > store.config().lease {
                        store.disown(&session, revision).await?;
                    } else {
                        strays.insert(session, (revision, since));
                    }
                }
                Some(_) => {}
                None => {
                    let since = match self.idle.get(&session) {
                        Some((seen, since)) if *seen == revision => *since,
                        _ => now,
                    };
                    if now - since > ttl {
                        tracing::info!(session_id = %session, "stored state expired");
                        store.replace(&session, revision, None).await?;
                    } else {
                        idle.insert(session, (revision, since));
                    }
                }
            }
        }
        self.idle = idle;
        self.strays = strays;
        let known = std::mem::take(&mut self.condemned);
        for id in survey.condemned {
            let since = known.get(&id).copied().unwrap_or(now);
            if now - since > LEFTOVER_AGE {
                store.delete(vec![id]);
            }
            self.condemned.insert(id, since);
        }
        Ok(())
    }

    /// Where the store did not answer, or this server was stopped, nobody could be seen to beat or to resume anything:
    /// that time counts for nothing.
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

    /// Servers whose beat has not moved for the length of a lease. One that owns sessions and has no beat has retired.
    fn silent_servers(&mut self, survey: &Survey, now: Instant) -> HashSet<ServerId> {
        let owners = survey
            .sessions
            .iter()
            .filter_map(|(_, _, owner)| owner.as_ref());
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
    /// Takes back what servers have left that live no longer, and deletes the blobs that no record names. Only for a
    /// store that no other server uses, before its first use.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn mend(&self) -> Result<(), StoreError> {
        for server in self.0.records.survey().await?.servers.keys() {
            self.delete(self.0.records.retire(server).await?);
        }
        let blobs = self.0.blobs.list().await?;
        let unknown = self.0.records.condemn_unknown(&blobs).await?;
        if !unknown.is_empty() {
            tracing::info!(blobs = unknown.len(), "blobs deleted that nobody refers to");
            self.delete(unknown);
        }
        Ok(())
    }

    /// Does what is left to do and says that this server lives no longer. Gives up after `limit`: the others find out by
    /// its silence. To be called when upkeep and all sessions have ended.
    pub async fn close(&self, limit: Duration) {
        let closing = async {
            self.0.puts.close();
            self.0.puts.wait().await;
            while !self.do_chores().await {
                sleep(RETRY_PAUSE).await;
            }
            match self.0.records.retire(&self.0.server).await {
                Ok(condemned) => self.delete(condemned),
                Err(error) => {
                    tracing::warn!(%error, "the store was not told that this server ends");
                }
            }
            self.do_chores().await;
        };
        if timeout(limit, closing).await.is_err() {
            tracing::warn!("the store does not answer: what was left to do is left as it is");
        }
    }

    /// Says that this server lives, and finds out which of its sessions are not its own any more.
    pub(in crate::store) async fn beat(&self) -> Result<(), StoreError> {
        self.within(self.0.records.beat(&self.0.server)).await?;
        let held: Vec<Arc<Held>> = self.held().values().cloned().collect();
        // One that is being written finds out by itself.
        let look = |held: &Arc<Held>| {
            let stored = held.stored.try_lock().ok()?;
            Some((held.session.clone(), stored.revision))
        };
        let looked: Vec<_> = held.iter().filter_map(look).collect();
        let stale = self.within(self.0.records.stale(&looked)).await?;
        for held in held.iter().filter(|held| stale.contains(&held.session)) {
            let Ok(mut stored) = held.stored.try_lock() else {
                continue;
            };
            // Unless it was written meanwhile.
            if looked.contains(&(held.session.clone(), stored.revision)) {
                self.is_still_ours(held, &mut stored).await?;
            }
        }
        Ok(())
    }

    /// Does all chores there are. False when the store did not answer; then what is left is kept.
    ///
    /// # Cancel safety
    /// Cancel safe: a chore is there until it is done.
    pub(in crate::store) async fn do_chores(&self) -> bool {
        let _alone = self.0.doing_chores.lock().await;
        loop {
            let waiting = self.chores().waiting.clone();
            if waiting.is_empty() {
                return true;
            }
            let doing = waiting.into_iter().map(|(number, chore)| async move {
                let done = self.do_chore(&chore).await;
                if done.is_ok() {
                    self.chores().waiting.remove(&number);
                }
                done.err()
            });
            let mut doing = stream::iter(doing).buffer_unordered(CHORES_AT_ONCE);
            let (mut left, mut last_error) = (0, None);
            while let Some(error) = doing.next().await {
                left += usize::from(error.is_some());
                last_error = error.or(last_error);
            }
            if let Some(error) = last_error {
                tracing::warn!(%error, left, "the store is not tidied up yet");
                return false;
            }
        }
    }

    async fn do_chore(&self, chore: &Chore) -> Result<(), StoreError> {
        match chore {
            Chore::Release(held) => {
                let mut stored = held.stored.lock().await;
                if held.lost.is_cancelled() {
                    return Ok(());
                }
                match self.write_latest(held, &mut stored, None).await {
                    Ok(()) | Err(StoreError::Stale) => {}
                    // Sessions that nobody runs are the first to go.
                    Err(StoreError::Full { .. }) => {
                        tracing::info!(session_id = %held.session, "stored state dropped: the store is full");
                        self.remove(held, &mut stored).await?;
                    }
                    Err(error) => return Err(error),
                }
                self.let_go(held);
                Ok(())
            }
            Chore::Drop(held) => {
                let mut stored = held.stored.lock().await;
                if !held.lost.is_cancelled() {
                    self.remove(held, &mut stored).await?;
                }
                self.let_go(held);
                Ok(())
            }
            Chore::Unreserve(reservation, blob) => {
                let blobs = blob.as_slice();
                let released = (self.0.records).release(&self.0.server, *reservation, blobs);
                let condemned = self.within(released).await?;
                self.delete(condemned);
                Ok(())
            }
            Chore::Delete(blobs) => {
                for &id in blobs {
                    self.within(self.0.blobs.drop(id)).await?;
                }
                self.within(self.0.records.forget(blobs)).await
            }
        }
    }

    /// Removes the record of a session that this server runs, unless it runs elsewhere by now.
    async fn remove(&self, held: &Arc<Held>, stored: &mut Stored) -> Result<(), StoreError> {
        loop {
            let change = Change {
                session: &held.session,
                expected: Some(stored.revision),
                record: None,
                server: &self.0.server,
                reservation: None,
            };
            match self.within(self.0.records.write(change)).await {
                Ok(outcome) => {
                    self.delete(outcome.condemned);
                    return Ok(());
                }
                Err(StoreError::Stale) => {
                    if !self.is_still_ours(held, stored).await? {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The session's owner is silent: nobody runs it.
    async fn disown(&self, session: &SessionId, revision: Revision) -> Result<(), StoreError> {
        let Some(written) = self.within(self.0.records.read(session)).await? else {
            return Ok(());
        };
        let record = Record {
            owner: None,
            ..written.record
        };
        self.replace(session, revision, Some(&record)).await
    }

    /// Replaces or removes a record, unless somebody else was faster.
    async fn replace(
        &self,
        session: &SessionId,
        expected: Revision,
        record: Option<&Record>,
    ) -> Result<(), StoreError> {
        let change = Change {
            session,
            expected: Some(expected),
            record,
            server: &self.0.server,
            reservation: None,
        };
        match self.within(self.0.records.write(change)).await {
            Ok(outcome) => {
                self.delete(outcome.condemned);
                Ok(())
            }
            Err(StoreError::Stale) => Ok(()),
            Err(error) => Err(error),
        }
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
