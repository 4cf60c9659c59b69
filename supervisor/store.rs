//! Continuation states of the sessions: what the next segment of each needs from its last one.
//!
//! [`MemoryStore`] keeps the last committed [`State`] of every session, `export` turns a state into the form that
//! clients see and back. Nothing here looks into frames or latents except `export`.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastvideo_proto::ids::{JobId, SessionId};
use fastvideo_proto::state::{StateError, StateHeader};
use ipc_channel::ipc::IpcSharedMemory;

pub mod export;

/// A committed continuation state. Immutable; a clone shares everything.
///
/// The blob stays in the shared memory in which it came, so that it travels on to another worker without a copy.
#[derive(Clone)]
pub struct State {
    inner: Arc<Inner>,
    made_by: Option<JobId>,
}

struct Inner {
    header: StateHeader,
    header_bytes: Vec<u8>,
    blob: IpcSharedMemory,
}

impl State {
    /// Takes the state that a worker has made.
    ///
    /// Of the blob only the size is checked: reading it would make tens of megabytes resident in this process, and the
    /// next worker checks its checksum anyway.
    ///
    /// # Errors
    /// When the header is damaged or of another version, or the blob has another size than the header says.
    pub fn from_worker(header_bytes: Vec<u8>, blob: IpcSharedMemory) -> Result<Self, StateError> {
        let header = StateHeader::decode(&header_bytes)?;
        header.check_blob_size(blob.len())?;
        Ok(Self::new(header, header_bytes, blob))
    }

    fn new(header: StateHeader, header_bytes: Vec<u8>, blob: IpcSharedMemory) -> Self {
        Self {
            inner: Arc::new(Inner {
                header,
                header_bytes,
                blob,
            }),
            made_by: None,
        }
    }

    /// Names the job of this supervisor that made the state: the worker that ran it may still hold a copy.
    pub fn made_by(self, job: JobId) -> Self {
        Self {
            made_by: Some(job),
            ..self
        }
    }

    /// The job of this supervisor that made the state; none when it came from elsewhere.
    pub fn maker(&self) -> Option<JobId> {
        self.made_by
    }

    pub fn header(&self) -> &StateHeader {
        &self.inner.header
    }

    /// The header as [`StateHeader::encode`] writes it, ready to be sent.
    pub fn header_bytes(&self) -> &[u8] {
        &self.inner.header_bytes
    }

    /// Frames, then audio latents; as long as the header says, its checksum unchecked.
    pub fn blob(&self) -> &IpcSharedMemory {
        &self.inner.blob
    }
}

// Not derived: shared memory prints every byte that it holds.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("header", &self.inner.header)
            .field("blob_bytes", &self.inner.blob.len())
            .finish_non_exhaustive()
    }
}

/// The last committed state of each session, in this process. Cheap to clone; clones share the states.
///
/// A state leaves only when it is replaced or dropped: whoever ends a session drops its state.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    states: Arc<Mutex<HashMap<SessionId, State>>>,
}

impl MemoryStore {
    /// Keeps `state` for the session in place of the one before.
    pub fn store(&self, session: &SessionId, state: State) {
        // The last holder of a state unmaps its blob, which takes a while: not under the lock.
        let replaced = self.lock().insert(session.clone(), state);
        drop(replaced);
    }

    /// The session's state, if it has one.
    pub fn snapshot(&self, session: &SessionId) -> Option<State> {
        self.lock().get(session).cloned()
    }

    /// Keeps `state` as the starting point of a new session and returns the session's id.
    pub fn hydrate(&self, state: State) -> SessionId {
        let session = SessionId::random();
        self.store(&session, state);
        session
    }

    /// Forgets the session's state, if it has one.
    pub fn drop(&self, session: &SessionId) {
        let dropped = self.lock().remove(session);
        drop(dropped);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::state::{FramesLayout, blob_checksum};

    use super::*;

    fn header(segment_index: u32) -> StateHeader {
        StateHeader {
            segment_index,
            video_conditioning_frame_idx: 0,
            video_conditioning_strength: 1.0,
            audio_sample_rate: None,
            audio_conditioning_num_frames: 0,
            audio_conditioning_strength: 1.0,
            video_position_offset_sec: 0.0,
            metadata: "{}".to_owned(),
            frames: Some(FramesLayout {
                count: 1,
                height: 2,
                width: 2,
            }),
            audio_latents: None,
            blob_crc32: blob_checksum(&[3; 12]),
        }
    }

    fn state(segment_index: u32) -> State {
        let blob = IpcSharedMemory::from_bytes(&[3; 12]);
        State::from_worker(header(segment_index).encode(), blob).unwrap()
    }

    fn stored(store: &MemoryStore, session: &SessionId) -> Option<u32> {
        store.snapshot(session).map(|s| s.header().segment_index)
    }

    #[test]
    fn state_keeps_what_the_worker_sent() {
        let state = state(7);
        assert_eq!(state.header(), &header(7));
        assert_eq!(state.header_bytes(), header(7).encode());
        assert_eq!(&state.blob()[..], [3; 12]);
        assert!(format!("{state:?}").contains("blob_bytes: 12"));
    }

    #[test]
    fn state_of_another_size_than_its_header_says_is_refused() {
        let blob = IpcSharedMemory::from_bytes(&[3; 11]);
        let refused = State::from_worker(header(7).encode(), blob);
        assert!(matches!(
            refused,
            Err(StateError::BlobSize {
                expected: 12,
                actual: 11
            })
        ));
        let blob = IpcSharedMemory::from_bytes(&[3; 12]);
        let refused = State::from_worker(b"nonsense".to_vec(), blob);
        assert!(matches!(refused, Err(StateError::Magic)));
    }

    #[test]
    fn store_keeps_the_last_state_of_each_session_until_it_is_dropped() {
        let store = MemoryStore::default();
        let (one, other) = (SessionId::random(), SessionId::random());
        assert_eq!(stored(&store, &one), None);
        store.store(&one, state(0));
        store.store(&other, state(5));
        store.clone().store(&one, state(1));
        assert_eq!(stored(&store, &one), Some(1));
        assert_eq!(stored(&store, &other), Some(5));
        store.drop(&one);
        store.drop(&one);
        assert_eq!(stored(&store, &one), None);
        assert_eq!(stored(&store, &other), Some(5));
    }

    #[test]
    fn hydrated_state_is_found_under_its_new_session() {
        let store = MemoryStore::default();
        let session = store.hydrate(state(4));
        assert_ne!(store.hydrate(state(6)), session);
        assert_eq!(stored(&store, &session), Some(4));
    }
}
