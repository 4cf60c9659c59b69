//! The internal form of a state, as it comes from a worker or a store: a header, then its blob.
#![no_main]

use fastvideo_proto::state::StateHeader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Where the header ends is known to whoever keeps a state: here, in the last byte.
    let Some((&length, data)) = data.split_last() else {
        return;
    };
    let (bytes, blob) = data.split_at(data.len().min(usize::from(length)));
    let Ok(header) = StateHeader::decode(bytes) else {
        return;
    };
    // What is taken can be written again, and stays what it is.
    let again = StateHeader::decode(&header.encode()).expect("a header of our own");
    assert_eq!(header, again);
    assert!(header.frames_end() <= header.blob_bytes());
    if header.check_blob(blob).is_ok() {
        assert_eq!(header.blob_bytes(), blob.len() as u64);
    }
});
