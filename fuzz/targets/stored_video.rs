//! The records of a video job and of an idempotency key's claim, as they come from a store that others write to.
#![no_main]

use fastvideo_proto::state::StateHeader;
use fastvideo_proto::stored_video::{StoredVideo, VideoClaim};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // What is taken can be written again, and stays what it is.
    if let Ok(claim) = VideoClaim::decode(data) {
        let again = VideoClaim::decode(&claim.encode()).expect("a claim of our own");
        assert_eq!(claim, again);
    }
    let Ok(video) = StoredVideo::decode(data) else {
        return;
    };
    let again = StoredVideo::decode(&video.encode()).expect("a record of our own");
    assert_eq!(video.encode(), again.encode());
    if let Some(Ok(header)) = video.state.as_deref().map(StateHeader::decode) {
        assert!(header.frames_end() <= header.blob_bytes());
    }
    let done = video.segments_done() as usize;
    assert!(done <= video.film.len());
});
