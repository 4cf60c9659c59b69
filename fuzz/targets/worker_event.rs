//! Events and commands of the link, in the encoding in which ipc-channel carries them: a worker's event is untrusted.
#![no_main]

use std::fmt::Debug;

use fastvideo_proto::link::{Command, Event, Hello};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_last() else {
        return;
    };
    match kind % 3 {
        0 => {
            read::<Event>(data);
            check_snapshot(data);
        }
        1 => read::<Command>(data),
        _ => read::<Hello>(data),
    }
});

/// A step snapshot is checked before anything is done with it.
fn check_snapshot(data: &[u8]) {
    if let Ok(Event::StepSnapshot { header, .. }) = postcard::from_bytes(data)
        && header.check(data).is_ok()
    {
        assert_eq!(header.blob_bytes(), data.len() as u64);
        let _ = header.check_hash(data);
    }
}

fn read<T: Serialize + DeserializeOwned + Debug>(data: &[u8]) {
    let Ok(message) = postcard::from_bytes::<T>(data) else {
        return;
    };
    // What is taken can be written again. NaNs are not equal to themselves, so the bytes are compared.
    let bytes = postcard::to_allocvec(&message).expect("a message of our own");
    let again: T = postcard::from_bytes(&bytes).expect("a message of our own");
    let second = postcard::to_allocvec(&again).expect("a message of our own");
    assert_eq!(bytes, second, "{message:?}");
}
