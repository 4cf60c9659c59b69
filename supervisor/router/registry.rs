//! The servers that the router knows, and which of them takes the next session.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fastvideo_proto::fleet::Report;
use tokio::sync::watch;
use tokio::time::timeout;

use super::choose::{self, Candidate, Load};
use super::config::ReplicaEndpoint;
use super::health::{ReplicaHealth, Thresholds};
use super::line::Room;
use super::makers::{Maker, Standing};

/// All replicas: those of the configuration in its order, then those that were found. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReplicaRegistry(Arc<Shared>);

/// The replicas at one time.
pub(super) type Replicas = Arc<[Arc<Replica>]>;

#[derive(Debug)]
struct Shared {
    replicas: watch::Sender<Replicas>,
    thresholds: Thresholds,
    /// The router's own zone.
    zone: Option<String>,
    /// Whether each replica was probed at least once.
    all_probed: watch::Sender<bool>,
    /// Told when a session may find a place where there was none.
    changes: watch::Sender<()>,
    /// Whether servers are asked for a link.
    has_links: bool,
    /// Number of video jobs that replicas were asked for.
    videos: AtomicU64,
}

/// One server.
#[derive(Debug)]
pub struct Replica {
    pub endpoint: ReplicaEndpoint,
    origin: Origin,
    health: Mutex<ReplicaHealth>,
    /// What it has reported last of what outlives the link.
    known: Mutex<Known>,
    /// What it reports.
    link: watch::Sender<LinkStatus>,
    /// Told when a session may find a place where there was none.
    changes: watch::Sender<()>,
    /// Number of sessions that go to it.
    sessions: AtomicUsize,
    /// Number of sessions that have begun since its last report.
    unreported: AtomicUsize,
    /// The number of the last video job that it was asked for; 0 before the first one.
    last_video: AtomicU64,
}

/// What a replica has reported last of what outlives the link.
#[derive(Clone, Debug, Default)]
struct Known {
    name: Option<String>,
    store: Option<String>,
}

/// Where a replica comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The configuration.
    Configuration,
    /// It was found before all replicas were probed for the first time.
    FoundAtStart,
    Found,
}

/// What is known of the link with a replica.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum LinkStatus {
    /// It was not asked yet.
    #[default]
    Unknown,
    /// It speaks no link, or does not know this router's key.
    Plain,
    /// There is no link at the moment.
    Down,
    Up(Box<Report>),
}

/// Where a session can go on: the class and the store of the server that has begun it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) class: String,
    pub(super) store: String,
    /// Whether the store outlives the server.
    pub(super) store_outlives: bool,
}

impl Home {
    /// Returns what routers call it.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.class, self.store)
    }
}

/// A session that goes to a replica counts until this is dropped.
#[derive(Debug)]
pub(super) struct CountedSession(Arc<Replica>);

impl CountedSession {
    /// Takes note that the replica has not taken the session.
    pub(super) fn was_not_taken(self) {
        let fewer = |unreported: usize| unreported.checked_sub(1);
        // Err: a report has come meanwhile.
        let _ = (self.0.unreported).fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
    }
}

impl Drop for CountedSession {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ReplicaRegistry {
    /// Creates a registry in which no replica was probed.
    pub fn new(
        replicas: Vec<ReplicaEndpoint>,
        thresholds: Thresholds,
        zone: Option<String>,
        has_links: bool,
    ) -> Self {
        let changes = watch::Sender::default();
        let replica = |endpoint| Replica::new(endpoint, Origin::Configuration, &changes);
        let replicas = replicas.into_iter().map(replica).collect();
        Self(Arc::new(Shared {
            replicas: watch::Sender::new(replicas),
            thresholds,
            zone,
            all_probed: watch::Sender::new(false),
            changes: changes.clone(),
            has_links,
            videos: AtomicU64::new(0),
        }))
    }

    /// Replaces the replicas that were found by these. One that was there already stays the same, and one of the
    /// configuration stays that.
    pub(super) fn set_found(&self, found: Vec<ReplicaEndpoint>) {
        let origin = match *self.0.all_probed.borrow() {
            true => Origin::Found,
            false => Origin::FoundAtStart,
        };
        let before = self.all();
        let is_wanted = |replica: &&Arc<Replica>| {
            let is_found = || found.iter().any(|it| it.url == replica.endpoint.url);
            replica.origin == Origin::Configuration || is_found()
        };
        let mut replicas: Vec<_> = before.iter().filter(is_wanted).cloned().collect();
        let kept = replicas.len();
        for endpoint in found {
            if !replicas.iter().any(|it| it.endpoint.url == endpoint.url) {
                let replica = Replica::new(endpoint, origin, &self.0.changes);
                tracing::info!(%replica, "server found");
                replicas.push(replica);
            }
        }
        if kept == before.len() && replicas.len() == kept {
            return;
        }
        for gone in before
            .iter()
            .filter(|replica| !is_among(replica, &replicas))
        {
            tracing::info!(replica = %gone, "server is gone");
        }
        self.0.replicas.send_replace(replicas.into());
        self.0.changes.send_replace(());
    }

    /// Returns all replicas, in order.
    pub fn all(&self) -> Arc<[Arc<Replica>]> {
        self.0.replicas.borrow().clone()
    }

    /// Returns the replicas that operators call so: by a name, or by host and port.
    pub(super) fn named(&self, name: &str) -> Vec<Arc<Replica>> {
        let replicas = self.all();
        let is_named = |replica: &&Arc<Replica>| {
            replica.label() == name || replica.endpoint.url.authority() == name
        };
        replicas.iter().filter(is_named).cloned().collect()
    }

    /// Returns a receiver of all replicas, which is told when they change.
    pub(super) fn list(&self) -> watch::Receiver<Replicas> {
        self.0.replicas.subscribe()
    }

    /// Returns the replica that takes the next session: the first healthy primary, else the first healthy other, and
    /// among those that report how they are the one with the least to do; `None` when none is healthy.
    pub fn select(&self) -> Option<Arc<Replica>> {
        self.preferred().into_iter().next()
    }

    /// Waits until a replica is healthy, for so long at most. Returns whether one is.
    pub(super) async fn any(&self, patience: Duration) -> bool {
        let mut changes = self.changes();
        let found = async {
            while !self.is_any_healthy() {
                // Err: the registry is gone, which the caller holds.
                let _ = changes.changed().await;
            }
        };
        timeout(patience, found).await.is_ok()
    }

    /// Returns the healthy replicas, in order.
    pub(super) fn healthy(&self) -> impl Iterator<Item = Arc<Replica>> {
        let replicas = self.all();
        let healthy = replicas.iter().filter(|replica| replica.is_healthy());
        healthy.cloned().collect::<Vec<_>>().into_iter()
    }

    /// Returns the healthy replicas in the order in which a session tries them.
    pub(super) fn preferred(&self) -> Vec<Arc<Replica>> {
        let healthy: Vec<_> = self.healthy().collect();
        let candidates = healthy
            .iter()
            .map(|replica| replica.candidate(self.0.zone.as_deref(), self.0.has_links));
        let order = choose::order(&candidates.collect::<Vec<_>>());
        order.into_iter().map(|n| healthy[n].clone()).collect()
    }

    /// Returns the replicas that would take a session now, in the order in which it tries them. `home` is where a session
    /// has to stay that was begun.
    pub(super) fn with_room(&self, home: Option<&Home>) -> Vec<Arc<Replica>> {
        let mut preferred = self.preferred();
        preferred.retain(|replica| replica.room(home, self.0.has_links) > 0);
        preferred
    }

    /// Returns how many sessions the healthy replicas would take.
    pub(super) fn room(&self) -> Room {
        let mut room = Room::default();
        // Everybody who waits asks for this at each change, so nothing is copied where there is no room.
        for replica in &*self.all() {
            let free = replica.room(None, self.0.has_links);
            if free == 0 || !replica.is_healthy() {
                continue;
            }
            match replica.home() {
                Some(home) => *room.homes.entry(home.name()).or_default() += free,
                None => room.elsewhere += free,
            }
        }
        room
    }

    /// Returns whether a replica is healthy.
    pub(super) fn is_any_healthy(&self) -> bool {
        self.all().iter().any(|replica| replica.is_healthy())
    }

    /// Returns whether a session with that home may go on at all: a server of its store is there, or may come back.
    pub(super) fn may_go_on(&self, home: &Home) -> bool {
        let has_store = |replica: &Arc<Replica>| {
            replica
                .report()
                .is_some_and(|report| report.store == home.store)
        };
        home.store_outlives || self.all().iter().any(has_store)
    }

    /// Returns the stores of the healthy servers; `None` is that of one without a link.
    pub(super) fn stores(&self) -> Vec<Option<String>> {
        let stores = self
            .healthy()
            .map(|replica| replica.home().map(|home| home.store));
        stores.collect()
    }

    /// Returns a receiver that is told when a session may find a place where there was none.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.0.changes.subscribe()
    }

    /// Records the outcome of a probe: how long the answer took, or why there was none.
    pub(super) fn record(&self, replica: &Replica, outcome: Result<Duration, String>) {
        let mut health = replica.lock();
        let before = health.status();
        health.record(outcome.as_ref().ok().copied(), &self.0.thresholds);
        let after = health.status();
        drop(health);
        if after != before {
            self.0.changes.send_replace(());
            let reason = outcome.err();
            tracing::info!(%replica, from = %before, to = %after, reason, "replica changed state");
        }
    }

    /// Waits until a replica is not healthy, or is none any more.
    pub(super) async fn until_lost(&self, replica: &Arc<Replica>) {
        let mut changes = self.changes();
        while replica.is_healthy() && is_among(replica, &self.all()) {
            // Err: the registry is gone, which the caller holds.
            let _ = changes.changed().await;
        }
    }

    /// Takes note that a replica is asked for a video job.
    pub(super) fn video_asked(&self, replica: &Replica) {
        let number = self.0.videos.fetch_add(1, Ordering::Relaxed) + 1;
        replica.last_video.store(number, Ordering::Relaxed);
    }

    /// Tells those who wait that each replica was probed.
    pub(super) fn all_probed(&self) {
        self.0.all_probed.send_replace(true);
    }

    /// Waits until each replica that was there at the start was probed at least once, and asked for a link: before that,
    /// none is healthy.
    pub(super) async fn first_probes(&self) {
        let mut probed = self.0.all_probed.subscribe();
        let _ = probed.wait_for(|all| *all).await;
        if self.0.has_links {
            let replicas = self.all();
            let awaited = |replica: &&Arc<Replica>| replica.origin != Origin::Found;
            for replica in replicas.iter().filter(awaited) {
                let mut link = replica.link.subscribe();
                let _ = link.wait_for(|link| *link != LinkStatus::Unknown).await;
            }
        }
    }
}

fn is_among(replica: &Arc<Replica>, replicas: &[Arc<Replica>]) -> bool {
    replicas.iter().any(|other| Arc::ptr_eq(other, replica))
}

impl Replica {
    fn new(endpoint: ReplicaEndpoint, origin: Origin, changes: &watch::Sender<()>) -> Arc<Self> {
        Arc::new(Self {
            endpoint,
            origin,
            health: Mutex::default(),
            known: Mutex::default(),
            link: watch::Sender::default(),
            changes: changes.clone(),
            sessions: AtomicUsize::new(0),
            unreported: AtomicUsize::new(0),
            last_video: AtomicU64::new(0),
        })
    }

    /// Returns its name here, or else the one that it has reported.
    pub(super) fn name(&self) -> Option<String> {
        let reported = || self.known().name.clone();
        self.endpoint.name.clone().or_else(reported)
    }

    /// Returns what tells its store from others: servers with the same one have the same videos. One that has never said
    /// which it has is taken to have its own.
    pub(super) fn store(&self) -> String {
        let own = || self.endpoint.url.to_string();
        self.known().store.clone().unwrap_or_else(own)
    }

    /// Returns what operators call it: its name, or its address.
    pub(super) fn label(&self) -> String {
        let address = || self.endpoint.url.as_str().trim_end_matches('/').to_owned();
        self.name().unwrap_or_else(address)
    }

    /// Returns how the control link is, in a word.
    pub(super) fn link(&self) -> &'static str {
        match &*self.link.borrow() {
            LinkStatus::Unknown => "unknown",
            LinkStatus::Plain => "plain",
            LinkStatus::Down => "down",
            LinkStatus::Up(_) => "up",
        }
    }

    /// Returns how the replica is, as the last probes say.
    pub fn health(&self) -> ReplicaHealth {
        self.lock().clone()
    }

    /// Returns how many sessions go to it.
    pub(super) fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Returns what it reports; `None` while there is no link with it.
    pub fn report(&self) -> Option<Report> {
        match &*self.link.borrow() {
            LinkStatus::Up(report) => Some((**report).clone()),
            LinkStatus::Unknown | LinkStatus::Plain | LinkStatus::Down => None,
        }
    }

    /// Takes a report.
    pub(super) fn reported(&self, report: Report) {
        if self.report().is_none() {
            tracing::info!(replica = %self, places = report.places, "server linked");
        }
        *self.known() = Known {
            name: report.name.clone(),
            store: Some(report.store.clone()).filter(|store| !store.is_empty()),
        };
        self.link.send_replace(LinkStatus::Up(Box::new(report)));
        self.unreported.store(0, Ordering::Relaxed);
        self.changes.send_replace(());
    }

    /// Takes note that there is no link; `is_plain` says whether the server speaks none. Returns whether there was one.
    pub(super) fn unlinked(&self, is_plain: bool) -> bool {
        let now = if is_plain {
            LinkStatus::Plain
        } else {
            LinkStatus::Down
        };
        let before = self.link.send_replace(now);
        self.changes.send_replace(());
        matches!(before, LinkStatus::Up(_))
    }

    /// Returns whether sessions go to the server over a plain bridge.
    pub(super) fn is_plain(&self) -> bool {
        *self.link.borrow() == LinkStatus::Plain
    }

    /// Returns whether there was a link, or is to be one, and is none at the moment.
    pub(super) fn is_cut_off(&self) -> bool {
        *self.link.borrow() == LinkStatus::Down
    }

    /// Waits until there is no link.
    pub(super) async fn is_down(&self) {
        let mut link = self.link.subscribe();
        let is_down = |link: &LinkStatus| !matches!(link, LinkStatus::Up(_));
        let _ = link.wait_for(is_down).await;
    }

    /// Takes note that the server takes no session before it says so again.
    pub(super) fn is_full(&self) {
        self.link.send_if_modified(|link| {
            if let LinkStatus::Up(report) = link {
                report.free = 0;
            }
            false
        });
    }

    /// Returns where a session can go on that begins here; `None` while there is no link.
    pub(super) fn home(&self) -> Option<Home> {
        self.report().map(|report| Home {
            class: report.class,
            store: report.store,
            store_outlives: report.store_outlives,
        })
    }

    /// Returns how many sessions with that home it would take now. A server without links takes any that is new.
    fn room(&self, home: Option<&Home>, has_links: bool) -> usize {
        match &*self.link.borrow() {
            _ if !has_links => usize::from(home.is_none()),
            LinkStatus::Plain => usize::from(home.is_none()),
            LinkStatus::Unknown | LinkStatus::Down => 0,
            LinkStatus::Up(report) => {
                let fits = home
                    .is_none_or(|home| home.class == report.class && home.store == report.store);
                let is_open = report.ready && !report.draining && fits;
                let unreported = self.unreported.load(Ordering::Relaxed);
                match is_open {
                    true => report.free.saturating_sub(unreported),
                    false => 0,
                }
            }
        }
    }

    fn candidate(&self, zone: Option<&str>, has_links: bool) -> Candidate {
        let unreported = self.unreported.load(Ordering::Relaxed);
        let load = match &*self.link.borrow() {
            LinkStatus::Up(report) => Some(Load {
                is_open: report.ready && !report.draining,
                is_of_own_zone: report.zone.as_deref() == zone,
                places: report.places,
                free: report.free.saturating_sub(unreported),
                sessions: report.sessions + unreported,
            }),
            LinkStatus::Down if has_links => Some(Load {
                is_open: false,
                is_of_own_zone: false,
                places: 0,
                free: 0,
                sessions: 0,
            }),
            LinkStatus::Unknown | LinkStatus::Plain | LinkStatus::Down => None,
        };
        Candidate {
            is_primary: self.endpoint.primary,
            weight: self.endpoint.weight,
            load,
        }
    }

    /// Returns what is known of it as one that could take a video job.
    pub(super) fn maker(&self) -> Maker {
        let (standing, load) = match &*self.link.borrow() {
            _ if !self.is_healthy() => (Standing::Away, None),
            LinkStatus::Up(report) => {
                let standing = match (report.draining, report.ready) {
                    (true, _) => Standing::Leaving,
                    (false, false) => Standing::Starting,
                    (false, true) => Standing::Open,
                };
                let jobs = report.videos.map(|jobs| jobs.queued + jobs.running);
                let gpus = report.gpus.ready.max(1) as f64 * self.endpoint.weight;
                (standing, jobs.map(|jobs| (jobs + 1) as f64 / gpus))
            }
            // It was not asked for a link, or has none, or none at the moment.
            LinkStatus::Unknown | LinkStatus::Plain | LinkStatus::Down => (Standing::Open, None),
        };
        Maker {
            url: self.endpoint.url.to_string(),
            store: self.store(),
            was_reached: self.lock().last_ok().is_some(),
            standing,
            load,
            is_primary: self.endpoint.primary,
            last_video: self.last_video.load(Ordering::Relaxed),
        }
    }

    /// Counts a session.
    pub(super) fn begin_session(self: &Arc<Self>) -> CountedSession {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        self.unreported.fetch_add(1, Ordering::Relaxed);
        CountedSession(self.clone())
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.lock().is_healthy()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no holder of this lock panics")
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
    use fastvideo_proto::fleet::VideoJobs;

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
        ReplicaRegistry::new(
            names.iter().map(endpoint).collect(),
            THRESHOLDS,
            None,
            false,
        )
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
        let preferred = registry.preferred();
        let preferred: Vec<_> = preferred.iter().map(ToString::to_string).collect();
        assert_eq!(preferred, ["b*", "a", "c"]);
        fail(1);
        assert_eq!(selected().as_deref(), Some("b*"));
        fail(1);
        assert_eq!(selected().as_deref(), Some("a"));
    }

    #[test]
    fn sessions_on_their_way_count_until_the_next_report() {
        let registry = registry(&["a", "b"]);
        let report = |sessions: usize| Report {
            ready: true,
            places: 2,
            free: 2 - sessions,
            sessions,
            ..Report::default()
        };
        for replica in registry.all().iter() {
            registry.record(replica, Ok(Duration::from_millis(1)));
            replica.reported(report(0));
        }
        let mut begun = Vec::new();
        for expected in ["a", "b", "a", "b"] {
            let replica = registry.select().unwrap();
            assert_eq!(replica.to_string(), expected);
            begun.push(replica.begin_session());
        }
        registry.all()[0].reported(report(1));
        assert_eq!(registry.select().unwrap().to_string(), "a");
        assert!(registry.all()[0].unlinked(false));
        assert!(!registry.all()[0].unlinked(true));
        assert_eq!(registry.all()[0].sessions(), 2);
    }

    #[test]
    fn a_server_keeps_its_store_while_it_is_away() {
        let registry = registry(&["a", "b"]);
        let [a, b] = [0, 1].map(|n| registry.all()[n].clone());
        assert_eq!(a.store(), "http://a:8000/");
        assert_eq!(a.maker().standing, Standing::Away);
        registry.record(&a, Ok(Duration::from_millis(1)));
        assert_eq!(a.maker().standing, Standing::Open);
        a.reported(Report {
            store: "one".to_owned(),
            ready: true,
            videos: Some(VideoJobs {
                queued: 2,
                running: 1,
            }),
            ..Report::default()
        });
        registry.video_asked(&b);
        registry.video_asked(&a);
        assert_eq!((a.maker().load, a.maker().last_video), (Some(4.0), 2));
        a.unlinked(false);
        let maker = a.maker();
        assert_eq!((&*maker.store, maker.load), ("one", None));
        assert!(maker.was_reached && !b.maker().was_reached);
    }

    #[test]
    fn servers_that_were_found_stand_behind_the_configured_ones_and_stay_while_they_are_found() {
        let registry = registry(&["a", "b*"]);
        let found = |names: &[&str]| {
            let endpoint = |name: &&str| {
                ReplicaEndpoint::found(
                    format!("http://{name}:8000").parse().unwrap(),
                    Some((*name).to_owned()),
                )
            };
            registry.set_found(names.iter().map(endpoint).collect());
            let all = registry.all();
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let mut list = registry.list();
        assert_eq!(found(&["d", "a", "c", "d"]), ["a", "b*", "d", "c"]);
        assert!(list.has_changed().unwrap());
        list.mark_unchanged();
        let c = registry.all()[3].clone();
        registry.record(&c, Ok(Duration::from_millis(1)));
        assert_eq!(registry.select().unwrap().to_string(), "c");
        assert_eq!(found(&["c", "d"]), ["a", "b*", "d", "c"]);
        assert!(!list.has_changed().unwrap());
        assert_eq!(found(&["c", "e"]), ["a", "b*", "c", "e"]);
        assert!(Arc::ptr_eq(&registry.all()[2], &c));
        assert_eq!(found(&[]), ["a", "b*"]);
        assert!(registry.select().is_none());
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
