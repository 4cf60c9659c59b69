//! Which jobs run and which wait: the tenant with the fewest running jobs goes first, and of its jobs the oldest one. Tenants
//! with as many running jobs take turns.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fastvideo_proto::ids::VideoId;

use crate::tenant::Tenant;

/// The jobs that have not ended, as far as this server knows.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: HashMap<Tenant, BTreeSet<VideoId>>,
    running: HashMap<VideoId, Tenant>,
    /// The latest turn of each tenant that has jobs and has had one.
    served: HashMap<Tenant, u64>,
    /// Number of turns so far.
    turns: u64,
}

/// What decides between tenants: the number of their running jobs, their latest turn, and their oldest job that waits.
type Rank = (usize, u64, VideoId);

impl Queue {
    /// Adds a job that waits.
    pub(super) fn wait(&mut self, id: VideoId, tenant: &Tenant) {
        self.running.remove(&id);
        let waiting = self.waiting.entry(tenant.clone()).or_default();
        waiting.insert(id);
    }

    /// Takes note that a job runs, here or at another server.
    pub(super) fn run(&mut self, id: VideoId, tenant: &Tenant) {
        self.remove_waiting(id, tenant);
        if self.running.insert(id, tenant.clone()).is_none() {
            self.turns += 1;
            self.served.insert(tenant.clone(), self.turns);
        }
    }

    /// Removes a job that has ended.
    pub(super) fn remove(&mut self, id: VideoId, tenant: &Tenant) {
        self.running.remove(&id);
        self.remove_waiting(id, tenant);
        let has_jobs = self.waiting.contains_key(tenant)
            || self.running.values().any(|running| running == tenant);
        if !has_jobs {
            self.served.remove(tenant);
        }
    }

    fn remove_waiting(&mut self, id: VideoId, tenant: &Tenant) {
        if let Some(waiting) = self.waiting.get_mut(tenant) {
            waiting.remove(&id);
            if waiting.is_empty() {
                self.waiting.remove(tenant);
            }
        }
    }

    /// Returns the job that is to run next.
    pub(super) fn next(&self) -> Option<(VideoId, Tenant)> {
        let (_, tenant) = self.heads().into_iter().next()?;
        Some((*self.waiting.get(tenant)?.first()?, tenant.clone()))
    }

    /// Returns the tenants that have jobs which wait, in their order.
    fn heads(&self) -> BTreeMap<Rank, &Tenant> {
        let running = self.running_by_tenant();
        let heads = self.waiting.iter().filter_map(|(tenant, waiting)| {
            let count = running.get(tenant).copied().unwrap_or(0);
            let served = self.served.get(tenant).copied().unwrap_or(0);
            Some(((count, served, *waiting.first()?), tenant))
        });
        heads.collect()
    }

    /// Returns the number of jobs of a tenant that wait.
    pub(super) fn waiting_of(&self, tenant: &Tenant) -> usize {
        self.waiting.get(tenant).map_or(0, BTreeSet::len)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.values().map(BTreeSet::len).sum()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Returns the waiting jobs in the order in which they would run if none ended.
    pub(super) fn order(&self) -> Vec<VideoId> {
        let mut next = self.heads();
        let mut rest: HashMap<&Tenant, _> = (self.waiting.iter())
            .map(|(tenant, waiting)| (tenant, waiting.iter().copied().skip(1)))
            .collect();
        let mut turns = self.turns;
        let mut order = Vec::with_capacity(self.waiting());
        while let Some(((count, _, id), tenant)) = next.pop_first() {
            order.push(id);
            turns += 1;
            if let Some(following) = rest.get_mut(tenant).and_then(Iterator::next) {
                next.insert((count + 1, turns, following), tenant);
            }
        }
        order
    }

    fn running_by_tenant(&self) -> HashMap<&Tenant, usize> {
        let mut counts = HashMap::new();
        for tenant in self.running.values() {
            *counts.entry(tenant).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> VideoId {
        VideoId::after(None, number, 0)
    }

    /// A queue of jobs that wait, each a number and its tenant.
    fn queue(jobs: &[(u64, &str)]) -> Queue {
        let mut queue = Queue::default();
        for (number, tenant) in jobs {
            queue.wait(id(*number), &Tenant::new(tenant));
        }
        queue
    }

    fn order(queue: &Queue) -> Vec<u64> {
        let order = queue.order();
        let number = |of: &VideoId| (0..100).find(|n| id(*n) == *of).unwrap();
        order.iter().map(number).collect()
    }

    /// Runs the next job and returns its number.
    fn run(queue: &mut Queue) -> Option<u64> {
        let (next, tenant) = queue.next()?;
        queue.run(next, &tenant);
        (0..100).find(|n| id(*n) == next)
    }

    #[test]
    fn of_one_tenant_the_oldest_job_is_next() {
        let mut queue = queue(&[(3, "a"), (1, "a"), (2, "a")]);
        assert_eq!(order(&queue), [1, 2, 3]);
        assert_eq!(run(&mut queue), Some(1));
        assert_eq!((queue.waiting(), queue.running()), (2, 1));
        // It has to go back: it was not lost.
        queue.wait(id(1), &Tenant::new("a"));
        assert_eq!(order(&queue), [1, 2, 3]);
    }

    #[test]
    fn the_tenant_with_the_fewest_running_jobs_is_next() {
        let mut queue = queue(&[(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c"), (6, "b")]);
        let expected = [1, 4, 5, 2, 6, 3];
        assert_eq!(order(&queue), expected);
        for number in expected {
            assert_eq!(run(&mut queue), Some(number));
        }
        assert_eq!(run(&mut queue), None);
    }

    #[test]
    fn tenants_take_turns_where_one_job_runs_at_a_time() {
        let mut queue = queue(&[(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b")]);
        for (number, rest) in [
            (1, &[4, 2, 5, 3][..]),
            (4, &[2, 5, 3]),
            (2, &[5, 3]),
            (5, &[3]),
            (3, &[]),
        ] {
            let (next, tenant) = queue.next().unwrap();
            assert_eq!(next, id(number));
            queue.run(next, &tenant);
            assert_eq!(order(&queue), rest, "while {number} runs");
            queue.remove(next, &tenant);
        }
        assert!(queue.served.is_empty());
    }

    #[test]
    fn what_a_tenant_runs_elsewhere_counts() {
        let mut queue = queue(&[(1, "a"), (2, "b")]);
        queue.run(id(9), &Tenant::new("a"));
        assert_eq!(order(&queue), [2, 1]);
        queue.remove(id(9), &Tenant::new("a"));
        assert_eq!(order(&queue), [2, 1]);
        assert_eq!(queue.waiting_of(&Tenant::new("a")), 1);
        assert_eq!(queue.waiting_of(&Tenant::new("c")), 0);
    }
}
