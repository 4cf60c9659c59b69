//! What systemd, or another service manager with its protocol, is told: that the service is ready, reloads or stops, how it
//! is, and that it is not stuck.
//!
//! A message is a datagram that is sent or not, at once: nobody waits for the service manager. What it did not take is sent
//! again at the next tick.

use std::collections::VecDeque;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep_until};

use crate::settings::Surroundings;
use crate::turns::{Seen, Turns};

/// The variables by which the service manager tells what it wants to hear. Workers see none of them.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
const WATCHDOG_LIMIT: &str = "WATCHDOG_USEC";
const WATCHDOG_PROCESS: &str = "WATCHDOG_PID";

/// How often the service manager is asked for more time while the service stops.
const EXTENSION_INTERVAL: Duration = Duration::from_secs(5);
/// The time that it is asked for then.
const EXTENSION: Duration = Duration::from_secs(20);
/// How late the runtime may come to a task that is due.
const MAX_LATENESS: Duration = Duration::from_secs(1);
/// The watchdog is fed so often within its time limit.
const FEEDS_PER_LIMIT: u32 = 3;
/// Limit on messages that were not taken yet. The oldest ones are given up.
const MAX_UNSENT: usize = 16;

/// The service manager, if there is one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
    outbox: Mutex<Outbox>,
}

#[derive(Debug, Default)]
struct Outbox {
    unsent: VecDeque<String>,
    is_stopping: bool,
    /// Whether the last message was not taken.
    is_failing: bool,
}

/// Returns the time limit of the service manager's watchdog; `None` where it has none for this process.
pub fn watchdog_limit(surroundings: &Surroundings) -> Option<Duration> {
    let limit: u64 = surroundings.variable(WATCHDOG_LIMIT)?.parse().ok()?;
    let process = surroundings.variable(WATCHDOG_PROCESS);
    let is_ours = process.is_none_or(|process| process.parse() == Ok(std::process::id()));
    (limit > 0 && is_ours).then(|| Duration::from_micros(limit))
}

impl ServiceManager {
    /// Finds the service manager that has started this process. Logs when it cannot be reached by any means.
    pub fn find(surroundings: &Surroundings) -> Self {
        let given = surroundings.variable(NOTIFY_SOCKET).unwrap_or_default();
        if given.is_empty() {
            return Self(None);
        }
        match Shared::open(given, watchdog_limit(surroundings)) {
            Ok(shared) => Self(Some(Arc::new(shared))),
            Err(error) => {
                tracing::warn!(%error, "`{NOTIFY_SOCKET}` cannot be used: the service manager is told nothing");
                Self(None)
            }
        }
    }

    /// Asks for the time that the service may have to wait for others before it is ready.
    pub(crate) fn starting(&self, wait: Duration) {
        self.tell(extension(wait + EXTENSION));
    }

    /// Tells that the service is ready.
    pub(crate) fn ready(&self) {
        self.tell("READY=1".to_owned());
    }

    /// Tells that the configuration is read again, until [`Self::reloaded`].
    pub(crate) fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
        let now = now.map(Duration::from).unwrap_or_default();
        self.tell(format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// Tells that the configuration was read again.
    pub(crate) fn reloaded(&self) {
        self.ready();
    }

    /// Tells that the service stops. From now on it is only asked for time.
    pub(crate) fn stopping(&self) {
        if let Some(shared) = &self.0 {
            let mut outbox = shared.lock();
            shared.put(&mut outbox, format!("STOPPING=1\n{}", extension(EXTENSION)));
            outbox.is_stopping = true;
        }
    }

    /// Tells how the service is whenever that changes, feeds the watchdog while the loops turn, and asks for time while the
    /// service stops; until it is dropped.
    pub(crate) async fn keep_informed(self, turns: Turns, status: impl Fn() -> String) {
        let Some(shared) = self.0 else { return };
        let mut told = String::new();
        let mut watchdog = shared.watchdog.map(Watchdog::new);
        let mut extended = Instant::now();
        let mut due = Instant::now();
        loop {
            sleep_until(due).await;
            let now = Instant::now();
            let lateness = now - due;
            due = now + turns.period();
            let status = status();
            let feed = watchdog
                .as_mut()
                .is_some_and(|watchdog| watchdog.is_fed(now, lateness, &turns));
            let mut outbox = shared.lock();
            if status != told {
                let line = format!("STATUS={}", status.replace('\n', " "));
                shared.put_always(&mut outbox, line);
                told = status;
            }
            if outbox.is_stopping && now - extended >= EXTENSION_INTERVAL {
                shared.put_always(&mut outbox, extension(EXTENSION));
                extended = now;
            }
            shared.flush(&mut outbox);
            // It is of no use later.
            if feed && outbox.unsent.is_empty() {
                shared.send(&mut outbox, "WATCHDOG=1");
            }
        }
    }

    fn tell(&self, message: String) {
        if let Some(shared) = &self.0 {
            shared.put(&mut shared.lock(), message);
        }
    }
}

/// Returns the message that asks for so much time, after which there has to be another one.
fn extension(time: Duration) -> String {
    format!("EXTEND_TIMEOUT_USEC={}", time.as_micros())
}

impl Shared {
    fn open(given: &str, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match given.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None if given.starts_with('/') => SocketAddr::from_pathname(given)?,
            None => {
                let why = format!("it must be a path or begin with `@`, given {given:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            address,
            watchdog,
            outbox: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().expect("no holder of this lock panics")
    }

    /// Sends a message unless the service stops, of which the service manager was told.
    fn put(&self, outbox: &mut Outbox, message: String) {
        if !outbox.is_stopping {
            self.put_always(outbox, message);
        }
    }

    fn put_always(&self, outbox: &mut Outbox, message: String) {
        if outbox.unsent.len() >= MAX_UNSENT {
            outbox.unsent.pop_front();
        }
        outbox.unsent.push_back(message);
        self.flush(outbox);
    }

    /// Sends as many messages as are taken.
    fn flush(&self, outbox: &mut Outbox) {
        while let Some(message) = outbox.unsent.pop_front() {
            if !self.send(outbox, &message) {
                outbox.unsent.push_front(message);
                return;
            }
        }
    }

    /// Sends a message if it is taken at once, and returns whether it was. Logs when that changes.
    fn send(&self, outbox: &mut Outbox, message: &str) -> bool {
        let sent = self.socket.send_to_addr(message.as_bytes(), &self.address);
        match &sent {
            Err(error) if !outbox.is_failing => {
                tracing::warn!(%error, "the service manager takes no messages");
            }
            Ok(_) if outbox.is_failing => {
                tracing::info!("the service manager takes messages again");
            }
            _ => {}
        }
        outbox.is_failing = sent.is_err();
        sent.is_ok()
    }
}

/// Decides whether the watchdog is fed.
#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    due: Instant,
    /// The greatest lateness since the last decision.
    lateness: Duration,
    seen: Seen,
}

impl Watchdog {
    /// Creates the feeder of a watchdog with this time limit.
    fn new(limit: Duration) -> Self {
        Self {
            interval: limit / FEEDS_PER_LIMIT,
            due: Instant::now(),
            lateness: Duration::ZERO,
            seen: Seen::default(),
        }
    }

    /// Returns whether it is fed at a tick that came so late: when that is due, the runtime was not late, and all loops have
    /// turned.
    fn is_fed(&mut self, now: Instant, lateness: Duration, turns: &Turns) -> bool {
        self.lateness = self.lateness.max(lateness);
        if now < self.due {
            return false;
        }
        self.due = now + self.interval;
        let lateness = std::mem::take(&mut self.lateness);
        let stuck = turns.stuck(&mut self.seen);
        if stuck.is_empty() && lateness < MAX_LATENESS {
            return true;
        }
        let late_ms = lateness.as_millis();
        tracing::warn!(
            ?stuck,
            late_ms,
            "the service manager's watchdog is not told that all is well"
        );
        false
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::task::JoinSet;
    use tokio::time::{advance, sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn surroundings(variables: &[(&str, &str)]) -> Surroundings {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Surroundings {
            variables: variables.iter().map(owned).collect(),
            program_folder: PathBuf::new(),
            root: PathBuf::new(),
        }
    }

    /// A service manager that listens, and the one that is told.
    fn pair(limit: &str) -> (UnixDatagram, ServiceManager) {
        let name = format!("fastvideo-test-{:032x}", rand::random::<u128>());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let hears = UnixDatagram::bind_addr(&address).unwrap();
        hears.set_nonblocking(true).unwrap();
        let variables = [
            (NOTIFY_SOCKET, &*format!("@{name}")),
            (WATCHDOG_LIMIT, limit),
        ];
        (hears, ServiceManager::find(&surroundings(&variables)))
    }

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        let mut messages = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(length) = socket.recv(&mut buffer) {
            messages.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        messages
    }

    #[test]
    fn the_watchdog_is_that_of_this_process() {
        let own = std::process::id().to_string();
        for (variables, limit) in [
            (&[][..], None),
            (&[(WATCHDOG_LIMIT, "20000000")], Some(20 * SECOND)),
            (
                &[(WATCHDOG_LIMIT, "1000000"), (WATCHDOG_PROCESS, &own)],
                Some(SECOND),
            ),
            (
                &[(WATCHDOG_LIMIT, "1000000"), (WATCHDOG_PROCESS, "1")],
                None,
            ),
            (&[(WATCHDOG_LIMIT, "0")], None),
            (&[(WATCHDOG_LIMIT, "often")], None),
        ] {
            assert_eq!(watchdog_limit(&surroundings(variables)), limit);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_service_manager_did_not_take_is_told_later_and_nobody_waits() {
        let (hears, service) = pair("");
        // More than its queue takes.
        for _ in 0..5000 {
            service.ready();
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(
            service
                .clone()
                .keep_informed(Turns::new(None), || "warming".to_owned()),
        );
        sleep(SECOND).await;
        let first = heard(&hears).len();
        assert!(first < 5000, "{first}");
        let mut later = Vec::new();
        for _ in 0..2 * MAX_UNSENT {
            sleep(SECOND).await;
            later.extend(heard(&hears));
        }
        assert_eq!(later.last().unwrap(), "STATUS=warming");
        assert_eq!(later.len(), MAX_UNSENT, "{later:?}");
        drop(hears);
        service.reloading();
        service.stopping();
        service.reloaded();
        sleep(60 * SECOND).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_stops_asks_for_time_and_says_nothing_else_but_how_it_is() {
        let (hears, service) = pair("");
        let mut tasks = JoinSet::new();
        tasks.spawn(
            service
                .clone()
                .keep_informed(Turns::new(None), || "draining\nnow".to_owned()),
        );
        sleep(SECOND / 2).await;
        assert_eq!(heard(&hears), ["STATUS=draining now"]);
        service.stopping();
        service.reloading();
        service.ready();
        assert_eq!(heard(&hears), ["STOPPING=1\nEXTEND_TIMEOUT_USEC=20000000"]);
        sleep(60 * SECOND).await;
        let asked = heard(&hears);
        assert!((11..=13).contains(&asked.len()), "{asked:?}");
        assert!(
            asked
                .iter()
                .all(|message| message == "EXTEND_TIMEOUT_USEC=20000000")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_while_all_loops_turn_and_the_runtime_is_in_time() {
        let (hears, service) = pair("15000000");
        let turns = Turns::new(None);
        let turning = Arc::new(turns.add("log"));
        let mut tasks = JoinSet::new();
        tasks.spawn(service.keep_informed(turns, String::new));
        let feeds = async |seconds: u32| {
            for _ in 0..seconds {
                turning.turn();
                sleep(SECOND).await;
            }
            heard(&hears).iter().filter(|m| *m == "WATCHDOG=1").count()
        };
        let fed = feeds(30).await;
        assert!((5..=7).contains(&fed), "{fed}");
        // A loop hangs.
        sleep(8 * SECOND).await;
        heard(&hears);
        sleep(30 * SECOND).await;
        assert_eq!(heard(&hears), [""; 0]);
        // It goes on.
        assert!(feeds(15).await >= 2);
        // The runtime does not get to its tasks.
        turning.turn();
        advance(7 * SECOND).await;
        turning.turn();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(heard(&hears), [""; 0]);
        assert!(feeds(15).await >= 2);
    }
}
