//! The seam between a session and what decides its segments: what a client may ask for, and what comes next.
//!
//! There are two kinds: [`RequestDirector`] takes requests for segments one by one (`/v1/stream`), and [`RolloutDirector`]
//! runs projects of several segments (`/ws`). The session asks through [`Director`], whichever it is, and passes a
//! client's commands to the kind that knows them.

use std::fmt::Debug;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tokio::time::Instant;

use super::Config;
use super::event::{DroppedRequest, SessionEvent};
use super::playlist::PlannedSegment;
use super::prompt_tasks::{PromptTaskEnd, PromptTaskResult, PromptTasks};
use super::request_director::RequestDirector;
use super::rollout::Said;
use super::rollout_director::RolloutDirector;

/// Decides what a session generates next. No other part of a session does.
pub(super) trait Director: Debug + Send {
    /// Takes the next segment; with `alone`, also one that nobody has asked for. Returns `None` while nothing is to be
    /// generated, or while the prompt whose turn it is is being prepared.
    fn next(&mut self, config: &Config, alone: bool) -> Option<PlannedSegment>;

    /// Takes note that the session has a worker for the first time.
    /// At most `limit` requests may wait.
    fn bound(&mut self, limit: usize) {
        let _ = limit;
    }

    /// Does what was put off until no segment runs.
    fn at_boundary(&mut self) {}

    /// Takes the next of what the session is to do besides.
    fn take_said(&mut self) -> Option<Said> {
        None
    }

    /// Returns whether nobody wants the running segment any more.
    fn is_running_in_vain(&self) -> bool {
        false
    }

    /// Returns whether the next segment is one that nobody has asked for.
    fn goes_on_alone(&self) -> bool;

    /// Starts to prepare the prompts that will be needed, and aborts the tasks that are no longer needed.
    fn prepare_prompts(&mut self);

    /// Returns the tasks that prepare and write prompts. What they give has to be passed to [`Self::settle`].
    fn tasks(&mut self) -> &mut PromptTasks;

    /// Returns what was done for a prompt, as an event for the readers.
    fn worked(&self, end: &mut PromptTaskEnd) -> SessionEvent;

    /// Takes a prompt that was prepared or written. Returns the event to emit, or `None` when the prompt is no longer
    /// needed.
    fn settle(&mut self, result: PromptTaskResult) -> Option<SessionEvent>;

    /// Removes and returns all waiting requests.
    fn take_waiting(&mut self) -> Vec<DroppedRequest>;

    /// Returns since when the first of the waiting requests has been asked for.
    fn asked_since(&self) -> Option<Instant>;

    /// Drops adapters that are not there any more.
    fn drop_adapters(&mut self, gone: &[String]);

    /// Records that the running segment is finished.
    fn segment_finished(&mut self);

    /// Records that the running segment was cancelled.
    fn segment_cancelled(&mut self);

    /// Returns how long to wait before the running segment, which has failed, is tried again; `None` where it is given up.
    fn pause_before_retry(&mut self) -> Option<Duration> {
        None
    }

    /// Records that the running segment is given up. `by_client` says whether the client has asked for it.
    fn segment_failed(&mut self, by_client: bool);

    /// Returns the time at which [`Self::clock_rang`] has to be called.
    fn alarm(&self) -> Option<Instant>;

    fn clock_rang(&mut self, now: Instant);

    /// Returns whether the prompt of the next segment is being prepared.
    fn is_preparing(&self) -> bool;

    /// Returns whether the session is paused and has requests that wait for its end.
    fn is_paused_with_requests(&self) -> bool;

    /// Returns whether the session has all the segments that it may have.
    fn is_complete(&self) -> bool;

    /// Returns the index of the next segment, which is the number of finished ones.
    fn segment_idx(&self) -> u32;
}

/// What a session has of the two kinds.
#[derive(Debug)]
pub(super) enum AnyDirector {
    Requests(Box<RequestDirector>),
    Rollouts(Box<RolloutDirector>),
}

impl AnyDirector {
    /// Returns the director of requests; `None` where a session makes rollouts.
    pub(super) fn requests(&self) -> Option<&RequestDirector> {
        match self {
            Self::Requests(director) => Some(director),
            Self::Rollouts(_) => None,
        }
    }

    /// As [`Self::requests`], to change it.
    pub(super) fn requests_mut(&mut self) -> Option<&mut RequestDirector> {
        match self {
            Self::Requests(director) => Some(director),
            Self::Rollouts(_) => None,
        }
    }

    /// Returns the director of rollouts; `None` where a session takes requests.
    pub(super) fn rollouts_mut(&mut self) -> Option<&mut RolloutDirector> {
        match self {
            Self::Requests(_) => None,
            Self::Rollouts(director) => Some(director),
        }
    }
}

impl Deref for AnyDirector {
    type Target = dyn Director;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Requests(director) => &**director,
            Self::Rollouts(director) => &**director,
        }
    }
}

impl DerefMut for AnyDirector {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Requests(director) => &mut **director,
            Self::Rollouts(director) => &mut **director,
        }
    }
}
