//! What a router and a server say on their links, and checkpoints: what can be read can be written, and reads the same.

#![no_main]

use fastvideo_proto::checkpoint::{Checkpoint, CuratedPrompt, Shown};
use fastvideo_proto::fleet::{RouterMessage, ServerMessage};
use fastvideo_proto::session_link::{ToRouter, ToServer, join, split};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|text: &str| {
    if let Ok((head, body)) = split::<ToServer>(text) {
        assert!(split::<ToServer>(&join(&head, body)).is_ok());
        if let ToServer::Open(open) = head
            && let Some(moved) = open.moved
        {
            same::<Checkpoint>(moved.checkpoint.get());
            let parts = [moved.curated, moved.shown];
            for part in parts.iter().flatten() {
                same::<Vec<CuratedPrompt>>(part.get());
                same::<Shown>(part.get());
            }
        }
    }
    if let Ok((head, body)) = split::<ToRouter>(text) {
        assert!(split::<ToRouter>(&join(&head, body)).is_ok());
    }
    same::<RouterMessage>(text);
    same::<ServerMessage>(text);
});

fn same<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(text: &str) {
    if let Ok(read) = serde_json::from_str::<T>(text) {
        let written = serde_json::to_string(&read).expect("it is JSON");
        assert_eq!(
            serde_json::from_str::<T>(&written).expect("it can be read"),
            read
        );
    }
}
