//! A text message of a client. It is a message or is refused in few words, and costs no more memory than a few times its
//! size: `fuzz/run` limits the largest allocation and the time.
#![no_main]

use fastvideo_proto::stream_v1::ClientMessage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match ClientMessage::parse_request(text) {
        (_, Ok(message)) => {
            // What is taken can be written again, and stays what it is.
            let again = serde_json::to_string(&message).expect("a message is JSON");
            assert_eq!(ClientMessage::parse(&again).ok(), Some(message));
        }
        (_, Err(error)) => assert!(error.to_string().len() < 2000, "{error}"),
    }
});
