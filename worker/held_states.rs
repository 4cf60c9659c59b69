//! The continuation states that this worker holds for its sessions.
//!
//! A state stays in the worker that generated it, so that the next job of the session need not carry it. Its memory is
//! shared with the supervisor, which keeps it anyway.

use std::collections::HashMap;

use fastvideo_link::SharedMemory;
use fastvideo_proto::ids::{JobId, SessionId};
use fastvideo_proto::link::{JobSpec, JobState};
use fastvideo_proto::state::{StateError, StateHeader};

use crate::engine::State;

/// A continuation state in shared memory.
#[derive(Clone, Debug)]
pub(crate) struct SharedState {
    pub(crate) header: StateHeader,
    /// `None` for a state that has no blob.
    pub(crate) blob: Option<SharedMemory>,
}

impl SharedState {
    /// Returns the state as an engine reads it.
    pub(crate) fn as_engine_state(&self) -> State<'_> {
        State {
            header: &self.header,
            blob: self.blob.as_deref().unwrap_or_default(),
        }
    }
}

/// The reason why a job has no state to continue from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartStateError {
    /// The supervisor has to send the state along.
    #[error("this worker does not hold the state")]
    NotHeld,
    #[error(transparent)]
    Invalid(#[from] StateError),
}

/// The last state that this worker generated for each session.
#[derive(Debug, Default)]
pub(crate) struct HeldStates(HashMap<SessionId, HeldState>);

#[derive(Debug)]
struct HeldState {
    made_by: JobId,
    state: SharedState,
}

impl HeldStates {
    /// Holds the state that a job has generated, in place of the session's last one.
    pub(crate) fn hold(&mut self, session: SessionId, made_by: JobId, state: SharedState) {
        self.0.insert(session, HeldState { made_by, state });
    }

    /// Forgets the session's state, if there is one.
    pub(crate) fn forget(&mut self, session: &SessionId) {
        self.0.remove(session);
    }

    /// Returns the state that a job continues from, or `None` when it starts from nothing. `blob` came with the job.
    ///
    /// A state that was sent along is checked against its hash. A state that is held here is not, because it never left
    /// this process.
    ///
    /// # Errors
    /// Returns an error when the job names a state that is not held, or the state that came with it is damaged.
    pub(crate) fn start_state(
        &self,
        spec: &JobSpec,
        blob: Option<SharedMemory>,
    ) -> Result<Option<SharedState>, StartStateError> {
        match &spec.state {
            None => Ok(None),
            Some(JobState::Sent(header)) => {
                let header = StateHeader::decode(header)?;
                let state = SharedState { header, blob };
                state.header.check_blob(state.as_engine_state().blob)?;
                Ok(Some(state))
            }
            Some(JobState::Held(job)) => match self.0.get(&spec.session) {
                Some(held) if held.made_by == *job => Ok(Some(held.state.clone())),
                _ => Err(StartStateError::NotHeld),
            },
        }
    }
}
