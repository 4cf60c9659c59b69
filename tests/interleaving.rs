//! Whatever a client says and whenever it says it, what it hears keeps the order rules of the protocol.
//!
//! Random conversations with a real server; a checker that knows the rules and nothing of the server listens in.

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Value, json};

use crate::harness::{Client, Heard, Server, short};

const CASES: u32 = 32;
const CAP: u64 = 3;
const ARGS: &[&str] = &[
    "--gpus",
    "1",
    "--generator.synthetic.step_ms=3",
    "--generator.synthetic.frame_ms=2",
    "--streaming.limits.max_waiting_requests=3",
    "--default_request.sampling.width=64",
    "--default_request.sampling.height=64",
    "--default_request.sampling.num_frames=6",
    "--default_request.sampling.num_inference_steps=3",
    "--streaming.generation_segment_cap=3",
];

/// What a client does next.
#[derive(Clone, Debug)]
enum Act {
    Prompt(u8),
    Curated(u8),
    Loop(bool),
    Pause(bool),
    Cancel,
    Snapshot,
    Garbage(&'static str),
    Toggle(&'static str),
    /// Hears so many messages of a segment, as long as one runs.
    Listen(u8),
    /// Hears all that the server has said.
    CatchUp,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let garbage = prop::sample::select(vec![
        "",
        "nonsense",
        "{}",
        r#"{"type":"dance"}"#,
        r#"{"type":"session_init_v2"}"#,
        r#"{"type":"segment_prompt_source","prompt":""}"#,
        r#"{"type":"segment_prompt_source","prompt":"a","num_inference_steps":0}"#,
        r#"{"type":"rewrite_seed_prompts","seed_prompt":"a"}"#,
    ]);
    let toggle = prop::sample::select(vec!["enhancement_updated", "auto_extension_updated"]);
    let act = prop_oneof![
        4 => any::<u8>().prop_map(Act::Prompt),
        1 => (0_u8..3).prop_map(Act::Curated),
        1 => any::<bool>().prop_map(Act::Loop),
        1 => any::<bool>().prop_map(Act::Pause),
        1 => Just(Act::Cancel),
        2 => Just(Act::Snapshot),
        1 => garbage.prop_map(Act::Garbage),
        1 => toggle.prop_map(Act::Toggle),
        8 => (1_u8..16).prop_map(Act::Listen),
        2 => Just(Act::CatchUp),
    ];
    prop::collection::vec(act, 1..40)
}

/// What is known of the running segment from what was heard.
#[derive(Debug)]
struct Running {
    steps: u64,
    total_steps: u64,
    stream_id: Option<Value>,
    media: u64,
    media_complete: bool,
}

/// The order rules.
#[derive(Debug, Default)]
struct Checker {
    /// Types heard so far before the first segment.
    opening: Vec<String>,
    running: Option<Running>,
    finished: u64,
    complete: bool,
    closed: bool,
    /// Prompts that were sent and have not been seen in a segment yet.
    prompts: VecDeque<String>,
    /// Finished segments heard of when each unanswered snapshot was asked for.
    snapshots: VecDeque<u64>,
    /// Requests for the running segment's cancellation that have no answer yet.
    cancels: u64,
    errors_due: u64,
}

impl Checker {
    fn hear(&mut self, heard: &Heard) {
        assert!(!self.closed, "nothing follows the close");
        match heard {
            Heard::Closed(code) => {
                assert!(self.complete, "ltx2_stream_complete comes before the close");
                assert_eq!(*code, Some(1000));
                self.closed = true;
            }
            Heard::Media(bytes) => {
                let running = self.running.as_mut().expect("media belong to a segment");
                assert!(running.stream_id.is_some(), "media_init comes first");
                assert!(!running.media_complete);
                let kind: &[u8] = if running.media == 0 { b"ftyp" } else { b"moof" };
                assert_eq!(&bytes[4..8], kind);
                running.media += 1;
            }
            Heard::Text(text) => {
                assert!(!self.complete, "nothing but the close follows the end");
                self.hear_text(text);
            }
        }
    }

    fn hear_text(&mut self, text: &Value) {
        let number = |field: &str| text[field].as_u64().unwrap();
        let kind = text["type"].as_str().unwrap();
        let opening = ["queue_status", "gpu_assigned", "ltx2_stream_start"];
        if opening.contains(&kind) {
            self.opening.push(kind.to_owned());
            // The queue's news may come several times; one session at a time makes it once here.
            assert_eq!(self.opening, opening[..self.opening.len()]);
            return;
        }
        if text.get("segment_idx").is_some() {
            assert_eq!(number("segment_idx"), self.finished, "{text}");
            assert_eq!(self.opening.len(), opening.len(), "the session is open");
        }
        if kind == "ltx2_segment_start" {
            assert!(self.running.is_none(), "segments do not interleave");
            assert_eq!(text["attempt"], 1);
            self.start(text);
            self.running = Some(Running {
                steps: 0,
                total_steps: number("total_steps"),
                stream_id: None,
                media: 0,
                media_complete: false,
            });
            return;
        }
        let running = &mut self.running;
        match kind {
            "step_complete" => {
                let running = running.as_mut().unwrap();
                running.steps += 1;
                assert_eq!(number("step"), running.steps);
                assert_eq!(number("total_steps"), running.total_steps);
                assert!(running.steps <= running.total_steps);
                assert!(running.stream_id.is_none(), "denoising comes before media");
            }
            "media_init" => {
                let running = running.as_mut().unwrap();
                let before = running.stream_id.replace(text["stream_id"].clone());
                assert_eq!(before, None);
                assert_eq!(running.steps, running.total_steps);
            }
            "media_segment_complete" => {
                let running = running.as_mut().unwrap();
                assert_eq!(Some(&text["stream_id"]), running.stream_id.as_ref());
                assert_eq!(number("chunks") + 1, running.media);
                assert_eq!(text["duration_ms"], 250.0);
                assert_eq!(
                    text["pts_base_ms"].as_f64(),
                    Some(self.finished as f64 * 250.0)
                );
                assert!(!running.media_complete);
                running.media_complete = true;
            }
            "ltx2_segment_complete" => {
                assert!(running.take().unwrap().media_complete);
                self.finished += 1;
            }
            "segment_cancelled" => {
                let cancelled = running.take().expect("a segment was running");
                assert!(!cancelled.media_complete, "what is whole is not cancelled");
                assert!(self.cancels > 0, "somebody asked for it");
            }
            "continuation_state_snapshot" => {
                let asked_at = self.snapshots.pop_front().expect("it was asked for");
                let index = text["state"]["payload"]["segment_index"].as_u64().unwrap();
                assert!((asked_at..=self.finished).contains(&(index + 1)), "{index}");
            }
            "error" => self.hear_error(text),
            "ltx2_stream_complete" => {
                let cap = text["reason"] == "segment_cap";
                assert_eq!(
                    cap,
                    self.finished == CAP && self.running.is_none(),
                    "{text}"
                );
                self.complete = true;
            }
            other => panic!("{other} has no place here"),
        }
    }

    /// Requests run in the order in which they were made; those that were refused never do.
    fn start(&mut self, text: &Value) {
        let prompt = text["prompt"].as_str().unwrap();
        match text["source"].as_str().unwrap() {
            "user" => loop {
                let next = self.prompts.pop_front().expect("a prompt that was sent");
                if next == prompt {
                    break;
                }
            },
            source => assert_eq!((source, prompt.starts_with("curated")), ("curated", true)),
        }
    }

    fn hear_error(&mut self, text: &Value) {
        let message = text["message"].as_str().unwrap();
        assert!(
            text.get("segment_idx").is_none(),
            "no segment fails: {text}"
        );
        match text["code"].as_str().unwrap() {
            "internal_error" => {
                assert!(message.contains("no continuation state yet"), "{message}");
                let asked_at = self.snapshots.pop_front().expect("it was asked for");
                assert_eq!(asked_at, 0);
            }
            "invalid_message" if message.contains("no segment is running") => {
                self.cancels = self.cancels.checked_sub(1).expect("somebody asked");
            }
            "invalid_message" if message.contains("requests wait already") => {}
            "invalid_message" => {
                self.errors_due = self.errors_due.checked_sub(1).expect("it was provoked");
            }
            code => panic!("{code}: {message}"),
        }
    }
}

/// One conversation: what is said, and what the checker makes of the answers.
struct Conversation {
    client: Client,
    checker: Checker,
    sent: u32,
}

impl Conversation {
    async fn hold(server: &Server, looping: bool, acts: &[Act]) {
        let opening = json!({"curated_prompts": ["curated"], "loop_generation_enabled": looping});
        let mut conversation = Self {
            client: server.open(opening).await,
            checker: Checker::default(),
            sent: 0,
        };
        for act in acts {
            if conversation.checker.complete {
                break;
            }
            conversation.act(act).await;
        }
        conversation.end().await;
    }

    async fn say(&mut self, message: Value) {
        self.say_text(&message.to_string()).await;
    }

    /// The server may have closed meanwhile: then there is something to hear.
    async fn say_text(&mut self, text: &str) {
        use futures_util::SinkExt;
        use tokio_tungstenite::tungstenite::Message;
        let _ = self.client.socket.send(Message::text(text)).await;
    }

    async fn hear(&mut self) {
        let heard = self.client.next().await;
        let checker = &mut self.checker;
        let checked = std::panic::AssertUnwindSafe(|| checker.hear(&heard));
        if let Err(panic) = std::panic::catch_unwind(checked) {
            eprintln!("at {} with {:?}", short(&heard), self.checker);
            std::panic::resume_unwind(panic);
        }
    }

    async fn act(&mut self, act: &Act) {
        match act {
            Act::Prompt(word) => {
                let prompt = format!("prompt {} {word}", self.sent);
                self.sent += 1;
                self.checker.prompts.push_back(prompt.clone());
                self.say(json!({"type": "segment_prompt_source", "prompt": prompt}))
                    .await;
            }
            Act::Curated(count) => {
                let prompts: Vec<_> = (0..*count).map(|n| format!("curated {n}")).collect();
                self.say(json!({"type": "seed_prompts_updated", "seed_prompts": prompts}))
                    .await;
            }
            Act::Loop(enabled) => {
                self.say(json!({"type": "loop_generation_updated", "enabled": enabled}))
                    .await;
            }
            Act::Pause(paused) => {
                self.say(json!({"type": "generation_paused_updated", "paused": paused}))
                    .await;
            }
            Act::Cancel => {
                self.checker.cancels += 1;
                self.say(json!({"type": "cancel_segment"})).await;
            }
            Act::Snapshot => {
                self.checker.snapshots.push_back(self.checker.finished);
                self.say(json!({"type": "snapshot_state"})).await;
                // The server refuses the ninth at once.
                if self.checker.snapshots.len() >= 8 {
                    self.catch_up().await;
                }
            }
            Act::Garbage(text) => {
                self.checker.errors_due += 1;
                self.say_text(text).await;
            }
            // Without a prompt enhancer it has no effect, and no answer.
            Act::Toggle(kind) => {
                self.say(json!({"type": kind, "enabled": true})).await;
            }
            Act::Listen(count) => {
                for _ in 0..*count {
                    if self.checker.running.is_some() && !self.checker.complete {
                        self.hear().await;
                    }
                }
            }
            Act::CatchUp => self.catch_up().await,
        }
    }

    /// Hears up to the answers of everything that has one.
    async fn catch_up(&mut self) {
        self.checker.errors_due += 1;
        self.say(json!({"type": "are-you-there"})).await;
        let due = |c: &Checker| c.errors_due > 0 || !c.snapshots.is_empty();
        while due(&self.checker) && !self.checker.closed {
            self.hear().await;
        }
    }

    async fn end(&mut self) {
        self.say(json!({"type": "leave"})).await;
        while !self.checker.closed {
            self.hear().await;
        }
    }
}

#[test]
fn any_conversation_keeps_the_order_rules() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = Server::start(ARGS);
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(20_260_101),
        max_shrink_iters: 60,
        ..Config::default()
    };
    let strategy = (any::<bool>(), acts());
    let outcome = TestRunner::new(config).run(&strategy, |(looping, acts)| {
        runtime.block_on(async {
            server.ready(1).await;
            Conversation::hold(&server, looping, &acts).await;
            server.sessions(0).await;
        });
        Ok(())
    });
    let log = server.log();
    assert!(!log.contains("ERROR"), "{log}");
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
