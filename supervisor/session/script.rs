//! What a session generates next. No I/O, no time: the session asks when it is free.

use std::collections::VecDeque;
use std::time::Instant;

use super::Config;
use super::request::ValidRequest;

/// The requests that wait, the curated prompts, and the switches between them.
#[derive(Debug)]
pub(crate) struct Script {
    waiting: VecDeque<Ask>,
    curated: Vec<String>,
    next_curated: usize,
    pub(crate) looping: bool,
    pub(crate) paused: bool,
    /// A curated prompt failed: none runs for a while.
    pub(crate) resting: bool,
    /// Segments after which the session is complete.
    cap: u32,
    produced: u32,
}

/// Somebody wants a segment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    pub(crate) request: ValidRequest,
    pub(crate) received: Instant,
}

impl Script {
    /// `produced`: segments that are finished already.
    pub(crate) fn new(curated: Vec<String>, looping: bool, cap: u32, produced: u32) -> Self {
        Self {
            waiting: VecDeque::new(),
            curated,
            next_curated: 0,
            looping,
            paused: false,
            resting: false,
            cap,
            produced,
        }
    }

    /// Adds a request; false when `limit` wait already.
    pub(crate) fn add(&mut self, ask: Ask, limit: usize) -> bool {
        let room = self.waiting.len() < limit;
        if room {
            self.waiting.push_back(ask);
        }
        room
    }

    /// Replaces the curated prompts, from the first.
    pub(crate) fn set_curated(&mut self, prompts: Vec<String>) {
        self.curated = prompts;
        self.next_curated = 0;
    }

    /// Takes what comes next: a request in order of arrival, else with looping on the next curated prompt.
    pub(crate) fn next(&mut self, config: &Config) -> Option<Ask> {
        if self.paused || self.is_complete() {
            return None;
        }
        if let Some(ask) = self.waiting.pop_front() {
            return Some(ask);
        }
        if !self.looping || self.resting || self.curated.is_empty() {
            return None;
        }
        let prompt = &self.curated[self.next_curated % self.curated.len()];
        self.next_curated = (self.next_curated + 1) % self.curated.len();
        Some(Ask {
            request: ValidRequest::curated(prompt, config),
            received: Instant::now(),
        })
    }

    /// A segment was finished.
    pub(crate) fn segment_finished(&mut self) {
        self.produced += 1;
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.produced >= self.cap
    }

    /// The index of the next segment.
    pub(crate) fn segment_idx(&self) -> u32 {
        self.produced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::config;

    fn ask(prompt: &str) -> Ask {
        Ask {
            request: ValidRequest::curated(prompt, &config()),
            received: Instant::now(),
        }
    }

    fn next(script: &mut Script) -> Option<String> {
        let ask = script.next(&config())?;
        script.segment_finished();
        Some(ask.request.prompt)
    }

    fn prompts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&p| p.to_owned()).collect()
    }

    #[test]
    fn requests_go_before_curated_prompts_which_wrap_around() {
        let mut script = Script::new(prompts(&["a", "b"]), true, 100, 0);
        assert_eq!(next(&mut script).as_deref(), Some("a"));
        assert!(script.add(ask("user 1"), 8));
        assert!(script.add(ask("user 2"), 8));
        let order: Vec<_> = (0..5).map(|_| next(&mut script).unwrap()).collect();
        assert_eq!(order, ["user 1", "user 2", "b", "a", "b"]);
    }

    #[test]
    fn nothing_runs_while_paused_and_requests_keep_their_order() {
        let mut script = Script::new(vec![], false, 100, 0);
        script.paused = true;
        script.add(ask("1"), 8);
        script.add(ask("2"), 8);
        assert_eq!(next(&mut script), None);
        script.paused = false;
        assert_eq!(next(&mut script).as_deref(), Some("1"));
        assert_eq!(next(&mut script).as_deref(), Some("2"));
        assert_eq!(next(&mut script), None);
    }

    #[test]
    fn the_cap_ends_it_and_the_waiting_line_is_bounded() {
        let mut script = Script::new(prompts(&["a"]), true, 2, 0);
        assert!(script.add(ask("1"), 1));
        assert!(!script.add(ask("2"), 1));
        assert_eq!(next(&mut script).as_deref(), Some("1"));
        assert_eq!(next(&mut script).as_deref(), Some("a"));
        assert_eq!(next(&mut script), None);
        assert!(script.is_complete());
    }

    #[test]
    fn a_new_list_starts_at_its_first_prompt() {
        let mut script = Script::new(prompts(&["a", "b"]), true, 100, 0);
        next(&mut script);
        script.set_curated(prompts(&["c", "d"]));
        assert_eq!(next(&mut script).as_deref(), Some("c"));
        script.set_curated(vec![]);
        assert_eq!(next(&mut script), None);
    }
}
