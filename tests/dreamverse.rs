//! The socket of FastVideo's web UI, `/ws`: what it says in which order, and what becomes of a session when things go wrong.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{Client, Heard, Server, WATCHFUL, short};

mod faults;
mod places;
mod rollouts;
mod web_ui;
mod written;

const ONE_GPU: &[&str] = &["--gpus", "1", "--streaming.generation_segment_cap", "6"];
/// Steps and frames that leave time to say something while they run.
const SLOW: &[&str] = &[
    "--gpus",
    "1",
    "--streaming.generation_segment_cap",
    "6",
    "--generator.synthetic.step_ms",
    "30",
    "--generator.synthetic.frame_ms",
    "15",
];

/// Connects, and opens a session with these fields.
async fn open(server: &Server, fields: Value) -> Client {
    let mut client = server.connect_to("/ws").await;
    let mut opening = json!({"type": "session_init_v2"});
    crate::harness::merge(&mut opening, fields);
    client.send(opening).await;
    client
}

/// A session whose first rollout has begun.
async fn live(server: &Server, prompts: &[&str]) -> Client {
    let mut client = open(server, json!({"curated_prompts": prompts})).await;
    client.until_type("seed_prompts_updated").await;
    client
}

/// The segments of a rollout: the prompts, and the media of each.
struct Rollout {
    prompts: Vec<String>,
    media: Vec<Vec<Vec<u8>>>,
    texts: Vec<Value>,
}

/// Takes all up to a text of this type.
async fn take_until(client: &mut Client, kind: &str) -> Rollout {
    let mut rollout = Rollout {
        prompts: Vec::new(),
        media: Vec::new(),
        texts: Vec::new(),
    };
    loop {
        match client.next().await {
            Heard::Text(text) => {
                assert_ne!(text["type"], "error", "{text}");
                if text["type"] == "ltx2_segment_start" {
                    rollout
                        .prompts
                        .push(text["prompt"].as_str().unwrap().to_owned());
                    rollout.media.push(Vec::new());
                }
                rollout.texts.push(text);
                if rollout
                    .texts
                    .last()
                    .is_some_and(|text| text["type"] == kind)
                {
                    return rollout;
                }
            }
            // Of a segment that began before.
            Heard::Media(_) if rollout.media.is_empty() => {}
            Heard::Media(bytes) => rollout.media.last_mut().unwrap().push(bytes),
            other => panic!("{} before {kind}", short(&other)),
        }
    }
}

/// The messages' types, in order; each run of media is one `media`.
async fn kinds_until(client: &mut Client, kind: &str) -> Vec<String> {
    let mut kinds: Vec<String> = Vec::new();
    loop {
        let heard = match client.next().await {
            Heard::Text(text) => text["type"].as_str().unwrap().to_owned(),
            Heard::Media(_) => "media".to_owned(),
            other => panic!("{} before {kind}, after {kinds:?}", short(&other)),
        };
        if heard != "media" || kinds.last().is_none_or(|last| last != "media") {
            kinds.push(heard);
        }
        if kinds.last().is_some_and(|last| last == kind) {
            return kinds;
        }
    }
}

/// Asserts that nothing comes for a moment.
async fn silent(client: &mut Client) {
    let heard = timeout(Duration::from_millis(300), client.next()).await;
    assert!(heard.is_err(), "{}", short(&heard.unwrap()));
}
