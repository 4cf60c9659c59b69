//! The record of a session, as it comes from a store that others write to.
#![no_main]

use fastvideo_proto::state::StateHeader;
use fastvideo_proto::stored::StoredSession;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(session) = StoredSession::decode(data) else {
        return;
    };
    // What is taken can be written again, and stays what it is.
    let again = StoredSession::decode(&session.encode()).expect("a record of our own");
    assert_eq!(session.encode(), again.encode());
    if let Some(Ok(header)) = session.state.as_deref().map(StateHeader::decode) {
        assert!(header.frames_end() <= header.blob_bytes());
    }
});
