//! Whether the loops that the program cannot do without still turn: what accepts connections, the task of each GPU, the
//! log's thread. The service manager's watchdog is fed only while they do.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// How often loops turn that have nothing to do.
const USUAL_PERIOD: Duration = Duration::from_secs(1);
/// How often they turn at least within the time limit of a watchdog.
const TURNS_PER_LIMIT: u32 = 9;

/// All loops that have to turn. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Turns {
    period: Duration,
    loops: Arc<Mutex<Vec<Arc<Counter>>>>,
}

#[derive(Debug)]
struct Counter {
    name: String,
    turns: AtomicU64,
    /// Whether it need not turn now.
    is_excused: AtomicBool,
}

/// One loop, as itself sees it. When it is dropped, the loop still has to turn: whoever drops it by a panic is missed.
#[derive(Debug)]
pub struct Turning(Arc<Counter>);

/// What [`Turns::stuck`] has seen before.
#[derive(Debug, Default)]
pub(crate) struct Seen(Vec<u64>);

impl Turns {
    /// Creates a list without loops, for a watchdog with this time limit.
    pub fn new(watchdog: Option<Duration>) -> Self {
        let period = watchdog.map_or(USUAL_PERIOD, |limit| {
            (limit / TURNS_PER_LIMIT).clamp(Duration::from_millis(1), USUAL_PERIOD)
        });
        Self {
            period,
            loops: Arc::default(),
        }
    }

    /// Adds a loop that tells of each of its turns, of which there is one in each [`Self::period`].
    pub fn add(&self, name: impl Into<String>) -> Turning {
        let counter = Arc::new(Counter {
            name: name.into(),
            turns: AtomicU64::new(0),
            is_excused: AtomicBool::new(false),
        });
        let mut loops = self.loops.lock().expect("no holder of this lock panics");
        loops.push(counter.clone());
        Turning(counter)
    }

    /// Returns how often a loop turns that has nothing to do.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Adds a task as a loop: it turns whenever the runtime gets to it, and it is called often enough. It counts until it
    /// ends.
    pub(crate) fn watch<F: Future>(
        &self,
        name: &str,
        task: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        let ends = Ends(self.add(name));
        let period = self.period;
        // An async block would hold the task twice: as it was captured, and as it is awaited.
        let mut task = Box::pin(task);
        async move {
            let mut ticks = pin!(interval(period));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            poll_fn(|cx| {
                ends.0.turn();
                while ticks.poll_tick(cx).is_ready() {}
                task.as_mut().poll(cx)
            })
            .await
        }
    }

    /// Returns the names of the loops that have not turned since `seen`, which is then what is seen now.
    pub(crate) fn stuck(&self, seen: &mut Seen) -> Vec<String> {
        let loops = self.loops.lock().expect("no holder of this lock panics");
        let mut stuck = Vec::new();
        for (place, counter) in loops.iter().enumerate() {
            let turns = counter.turns.load(Ordering::Relaxed);
            let is_excused = counter.is_excused.load(Ordering::Relaxed);
            match seen.0.get_mut(place) {
                Some(before) => {
                    if *before == turns && !is_excused {
                        stuck.push(counter.name.clone());
                    }
                    *before = turns;
                }
                // It is new.
                None => seen.0.push(turns),
            }
        }
        stuck
    }
}

impl Turning {
    /// Takes note of a turn.
    pub fn turn(&self) {
        self.0.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Does something that may wait for others as long as it likes.
    pub fn wait_for_others<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.0.is_excused.store(true, Ordering::Relaxed);
        let done = wait();
        self.0.is_excused.store(false, Ordering::Relaxed);
        self.turn();
        done
    }
}

/// Excuses a loop when it ends.
struct Ends(Turning);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.0.is_excused.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::task::JoinSet;
    use tokio::time::{advance, sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_loop_that_does_not_turn_is_named_until_it_does() {
        let turns = Turns::new(None);
        let (log, other) = (turns.add("log"), turns.add("other"));
        let mut seen = Seen::default();
        assert_eq!(turns.stuck(&mut seen), [""; 0], "both are new");
        other.turn();
        assert_eq!(turns.stuck(&mut seen), ["log"]);
        let during = log.wait_for_others(|| {
            other.turn();
            turns.stuck(&mut seen)
        });
        assert_eq!(during, [""; 0]);
        other.turn();
        assert_eq!(turns.stuck(&mut seen), [""; 0], "it has returned");
        drop(log);
        other.turn();
        assert_eq!(turns.stuck(&mut seen), ["log"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_turns_while_it_waits_and_is_excused_when_it_ends() {
        let turns = Turns::new(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(turns.watch("idle", pending()));
        tasks.spawn(turns.watch("short", sleep(5 * SECOND)));
        let mut seen = Seen::default();
        turns.stuck(&mut seen);
        for _ in 0..10 {
            sleep(2 * SECOND).await;
            assert_eq!(turns.stuck(&mut seen), [""; 0]);
        }
        tasks.shutdown().await;
        advance(10 * SECOND).await;
        assert_eq!(turns.stuck(&mut seen), [""; 0]);
    }

    #[test]
    fn loops_turn_several_times_within_the_limit_of_the_watchdog() {
        for (limit, period) in [(20_000, 1000), (9000, 1000), (900, 100), (0, 1)] {
            let turns = Turns::new(Some(Duration::from_millis(limit)));
            assert_eq!(turns.period(), Duration::from_millis(period), "{limit}");
        }
    }
}
