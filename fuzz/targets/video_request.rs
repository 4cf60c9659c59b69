//! The body of a request for a video, in either form: which one is told by how it begins, so that seeds are bodies as they are.
//! It is a request or is refused in few words.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

mod http;

/// The limits that the readers take from elsewhere in the supervisor.
mod engines {
    pub mod default_request {
        pub const MAX_GUIDANCE: f64 = 100.0;
    }
}

const MAX_IMAGE_BYTES: usize = 256;

fuzz_target!(|data: &[u8]| {
    let content_type = match data.first() {
        Some(b'{') => None,
        _ => Some("multipart/form-data; boundary=x"),
    };
    let body = Bytes::copy_from_slice(data);
    let refusal = http::videos::read(content_type, &body, MAX_IMAGE_BYTES);
    assert!(refusal.len() < 2000, "{refusal}");
});
