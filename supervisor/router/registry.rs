//! The servers that the router knows, and which of them takes the next session.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::config::ReplicaEndpoint;
use super::health::{ReplicaHealth, Thresholds};

/// All replicas in the order of the configuration. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReplicaRegistry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    replicas: Vec<Arc<Replica>>,
    thresholds: Thresholds,
    /// Whether each replica was probed at least once.
    all_probed: watch::Sender<bool>,
}

/// One server.
#[derive(Debug)]
pub struct Replica {
    pub endpoint: ReplicaEndpoint,
    health: Mutex<ReplicaHealth>,
    /// Number of sessions that go to it.
    sessions: AtomicUsize,
}

/// A session that goes to a replica counts until this is dropped.
#[derive(Debug)]
pub(super) struct CountedSession(Arc<Replica>);

impl Drop for CountedSession {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ReplicaRegistry {
    /// Creates a registry in which no replica was probed.
    pub fn new(replicas: Vec<ReplicaEndpoint>, thresholds: Thresholds) -> Self {
        let replica = |endpoint| {
            Arc::new(Replica {
                endpoint,
                health: Mutex::default(),
                sessions: AtomicUsize::new(0),
            })
        };
        Self(Arc::new(Shared {
            replicas: replicas.into_iter().map(replica).collect(),
            thresholds,
            all_probed: watch::Sender::new(false),
        }))
    }

    /// Returns all replicas, in order.
    pub fn all(&self) -> &[Arc<Replica>] {
        &self.0.replicas
    }

    /// Returns the replica that takes the next session: the first healthy primary, else the first healthy other; `None`
    /// when none is healthy.
    pub fn select(&self) -> Option<Arc<Replica>> {
        self.preferred().next()
    }

    /// Returns the healthy replicas in the order in which a session tries them.
    pub(super) fn preferred(&self) -> impl Iterator<Item = Arc<Replica>> {
        let tier = move |primary: bool| {
            let replicas = self.0.replicas.iter();
            replicas.filter(move |replica| replica.endpoint.primary == primary)
        };
        let ordered = tier(true).chain(tier(false));
        ordered.filter(|replica| replica.is_healthy()).cloned()
    }

    /// Records the outcome of a probe: how long the answer took, or why there was none.
    pub(super) fn record(&self, replica: &Replica, outcome: Result<Duration, String>) {
        let mut health = replica.lock();
        let before = health.status();
        health.record(outcome.as_ref().ok().copied(), &self.0.thresholds);
        let after = health.status();
        drop(health);
        if after != before {
            let reason = outcome.err();
            tracing::info!(%replica, from = %before, to = %after, reason, "replica changed state");
        }
    }

    /// Tells those who wait that each replica was probed.
    pub(super) fn all_probed(&self) {
        self.0.all_probed.send_replace(true);
    }

    /// Waits until each replica was probed at least once: before that, none is healthy.
    pub(super) async fn first_probes(&self) {
        let mut probed = self.0.all_probed.subscribe();
        let _ = probed.wait_for(|all| *all).await;
    }
}

impl Replica {
    /// Returns how the replica is, as the last probes say.
    pub fn health(&self) -> ReplicaHealth {
        self.lock().clone()
    }

    /// Returns how many sessions go to it.
    pub(super) fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Counts a session.
    pub(super) fn begin_session(self: &Arc<Self>) -> CountedSession {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        CountedSession(self.clone())
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.lock().is_healthy()
    }

    fn lock(&self) -> MutexGuard<'_, ReplicaHealth> {
        self.health.lock().expect("no holder of this lock panics")
    }
}

/// Formats the replica as the log names it.
impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint.name {
            Some(name) => f.write_str(name),
            None => self.endpoint.url.fmt(f),
        }
    }
}

/// Returns seconds since the Unix epoch.
pub(super) fn seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds {
        failure: 2,
        recovery: 1,
    };

    /// A registry of replicas with these names; the one with a star is primary.
    fn registry(names: &[&str]) -> ReplicaRegistry {
        let endpoint = |name: &&str| ReplicaEndpoint {
            url: format!("http://{}:8000", name.trim_end_matches('*'))
                .parse()
                .unwrap(),
            name: Some((*name).to_owned()),
            primary: name.ends_with('*'),
            weight: 1.0,
        };
        ReplicaRegistry::new(names.iter().map(endpoint).collect(), THRESHOLDS)
    }

    #[test]
    fn the_first_healthy_primary_comes_before_the_first_healthy_other() {
        let registry = registry(&["a", "b*", "c"]);
        let selected = || registry.select().map(|replica| replica.to_string());
        assert_eq!(selected(), None);
        let answer = |n: usize| registry.record(&registry.all()[n], Ok(Duration::from_millis(1)));
        let fail = |n: usize| registry.record(&registry.all()[n], Err("no".to_owned()));
        answer(2);
        assert_eq!(selected().as_deref(), Some("c"));
        answer(0);
        assert_eq!(selected().as_deref(), Some("a"));
        answer(1);
        assert_eq!(selected().as_deref(), Some("b*"));
        let preferred: Vec<_> = registry.preferred().map(|r| r.to_string()).collect();
        assert_eq!(preferred, ["b*", "a", "c"]);
        fail(1);
        assert_eq!(selected().as_deref(), Some("b*"));
        fail(1);
        assert_eq!(selected().as_deref(), Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_probes_are_waited_for() {
        let registry = registry(&["a"]);
        let waiting = registry.first_probes();
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        registry.all_probed();
        waiting.await;
        registry.first_probes().await;
    }
}
