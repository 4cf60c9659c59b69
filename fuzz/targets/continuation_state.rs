//! The public form of a state, as it comes from a client: the whole envelope as JSON, or a valid envelope in which one
//! part is whatever came. Which one is told by how it begins, so that real files are seeds as they are.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use fastvideo_link::SharedMemory;
use fastvideo_proto::state::ContinuationState;
use fastvideo_proto::state::{FramesLayout, StateHeader, blob_hash};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

use crate::store::State;
use crate::store::export::{self, Blobs, Expectation};

mod store;

/// That of the golden states.
const EXPECT: Expectation = Expectation {
    width: 24,
    height: 16,
};
/// Larger states are well-formed, and only slow.
const MAX_EXPORT_BYTES: u64 = 64 << 10;

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/data/continuation/", $name))
    };
}

const FRAMES_ID: &str = "8a3f0e5d6c1b4f7e9a2d4c6b8e0f1a3c";
const LATENTS_ID: &str = "1c9e7b5a3d2f4e6c8b0a9f7d5e3c1b2a";

fuzz_target!(|data: &[u8]| {
    match data.first() {
        Some(b'{') => whole(data),
        Some(b'F') => header(data),
        Some(0x89) => part("video", json!({ "frames_b64": [BASE64.encode(data)] })),
        // A count of less than 2^24.
        Some(0) => blob(FRAMES_ID, data),
        Some(_) if data.len() % 2 == 0 => blob(LATENTS_ID, data),
        Some(_) => part("audio", json!({ "safetensors_b64": BASE64.encode(data) })),
        None => {}
    }
});

fn whole(data: &[u8]) {
    if let Ok(envelope) = serde_json::from_slice(data) {
        read(&envelope, &golden_blobs());
    }
}

fn part(name: &str, value: Value) {
    let mut envelope: ContinuationState =
        serde_json::from_slice(golden!("bf16.json")).expect("a golden file");
    envelope.payload.insert(name.to_owned(), value);
    read(&envelope, &Blobs::new());
}

fn blob(id: &str, data: &[u8]) {
    let envelope = serde_json::from_slice(golden!("blobs.json")).expect("a golden file");
    let mut blobs = golden_blobs();
    blobs.insert(id.to_owned(), Bytes::copy_from_slice(data));
    read(&envelope, &blobs);
}

fn golden_blobs() -> Blobs {
    [
        (FRAMES_ID, &golden!("8a3f0e5d6c1b4f7e9a2d4c6b8e0f1a3c")[..]),
        (LATENTS_ID, &golden!("1c9e7b5a3d2f4e6c8b0a9f7d5e3c1b2a")[..]),
    ]
    .map(|(id, bytes)| (id.to_owned(), Bytes::from_static(bytes)))
    .into()
}

/// Whatever is taken is a state that a worker could have made, and comes back the same.
fn read(envelope: &ContinuationState, blobs: &Blobs) {
    let references = export::references(envelope);
    let Ok(state) = export::import(envelope, blobs, &EXPECT) else {
        return;
    };
    let references = references.expect("what was taken has fine references");
    assert!(references.iter().all(|id| blobs.contains_key(id)));
    let decoded = StateHeader::decode(state.header_bytes()).expect("a header of our own");
    assert_eq!(&decoded, state.header());
    comes_back(&state, &EXPECT);
}

/// A header that a worker could have sent can be exported, with any blob of its size.
fn header(data: &[u8]) {
    let Ok(mut header) = StateHeader::decode(data) else {
        return;
    };
    if header.blob_bytes() > MAX_EXPORT_BYTES {
        return;
    }
    let bytes: Vec<u8> = data
        .iter()
        .copied()
        .cycle()
        .take(header.blob_bytes() as usize)
        .collect();
    header.blob_hash = blob_hash(&bytes);
    let expect = match header.frames {
        Some(FramesLayout { width, height, .. }) => Expectation { width, height },
        None => EXPECT,
    };
    let header_bytes = header.encode();
    let state = State::new(
        header,
        header_bytes,
        SharedMemory::from_bytes(&bytes).unwrap(),
    );
    comes_back(&state, &expect);
}

fn comes_back(state: &State, expect: &Expectation) {
    let inline = export::export_inline(state).expect("a state that was checked");
    let (by_reference, blobs) = export::export_by_reference(state).expect("as inline");
    let blobs = blobs
        .into_iter()
        .map(|blob| (blob.id, blob.bytes))
        .collect();
    for (envelope, blobs) in [(inline, Blobs::new()), (by_reference, blobs)] {
        let text = serde_json::to_vec(&envelope).expect("JSON");
        let envelope = serde_json::from_slice(&text).expect("what was just written");
        let again = export::import(&envelope, &blobs, expect).expect("an export of our own");
        assert_eq!(again.header().frames, state.header().frames);
        assert_eq!(again.header().audio_latents, state.header().audio_latents);
        assert_eq!(again.header().blob_hash, state.header().blob_hash);
        assert!(again.blob()[..] == state.blob()[..]);
    }
}
