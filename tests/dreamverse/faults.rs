//! Workers that die: no client is told.

use super::*;

/// The number of frames of a segment of these tests.
const FRAMES: u32 = 24;

fn args<'a>(gpus: &'a str, faults: &'a str) -> Vec<&'a str> {
    let mut args = WATCHFUL.to_vec();
    args.extend(["--gpus", gpus, "--generator.synthetic.faults", faults]);
    args.extend(["--default_request.sampling.num_frames", "24"]);
    args
}

/// What a client gets of one rollout of two segments: the types of the messages, and the media.
async fn rollout(server: &Server, prompt: &str) -> (Vec<Value>, Vec<Vec<Vec<u8>>>) {
    let mut client = live(server, &[prompt, "the end"]).await;
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    let kinds = rollout.texts.iter().map(|text| text["type"].clone());
    (kinds.collect(), rollout.media)
}

#[tokio::test]
async fn a_worker_that_dies_anywhere_in_a_segment_is_not_told() {
    let points: Vec<String> = (0..FRAMES)
        .map(|frame| format!("frame{frame}"))
        .chain(["step1", "step3", "end"].map(str::to_owned))
        .collect();
    let undisturbed = Server::start(&args("1", ""));
    let faults: String = points
        .iter()
        .map(|point| format!("exit@{point},prompt=dies at {point}.,max_attempt=1;"))
        .collect();
    let server = Server::start(&args("2", &faults));
    for point in &points {
        let prompt = format!("dies at {point}.");
        let expected = rollout(&undisturbed, &prompt).await;
        let given = rollout(&server, &prompt).await;
        assert_eq!(given.0, expected.0, "{point}");
        assert!(
            given.1 == expected.1,
            "other media after a death at {point}"
        );
    }
}

#[tokio::test]
async fn two_deaths_in_a_row_are_not_told_either() {
    let faults =
        "exit@frame5,prompt=dies twice,max_attempt=1;exit@frame15,prompt=dies twice,max_attempt=2";
    let server = Server::start(&args("3", faults));
    let undisturbed = Server::start(&args("1", ""));
    assert!(rollout(&server, "dies twice").await == rollout(&undisturbed, "dies twice").await);
}

#[tokio::test]
async fn media_that_differ_are_another_stream() {
    let faults = "blank@frame0,max_attempt=1;exit@frame20,max_attempt=1";
    let server = Server::start(&args("2", faults));
    let undisturbed = Server::start(&args("1", ""));
    let expected = rollout(&undisturbed, "a fox").await.1;
    let mut client = live(&server, &["a fox"]).await;
    let given = take_until(&mut client, "prompt_sources_blocked").await;
    let inits: Vec<&Value> = given
        .texts
        .iter()
        .filter(|text| text["type"] == "media_init")
        .collect();
    assert_eq!(inits.len(), 2);
    assert_ne!(inits[0]["stream_id"], inits[1]["stream_id"]);
    let whole = &given.media[0][given.media[0].len() - expected[0].len()..];
    assert!(whole == expected[0], "the second stream is whole");
    let complete = given
        .texts
        .iter()
        .find(|text| text["type"] == "media_segment_complete")
        .unwrap();
    assert_eq!(complete["stream_id"], inits[1]["stream_id"]);
    assert_eq!(complete["chunks"], expected[0].len());
}

#[tokio::test]
async fn a_segment_that_is_given_up_leaves_a_way_on() {
    let server = Server::start(
        &[
            &args("2", "exit@frame3,prompt=kills")[..],
            &["--streaming.pool.max_attempts", "2"],
        ]
        .concat(),
    );
    let mut client = live(&server, &["kills all", "never"]).await;
    let kinds = kinds_until(&mut client, "ltx2_stream_complete").await;
    assert!(!kinds.contains(&"error".to_owned()), "{kinds:?}");
    client.expect("error").await;
    silent(&mut client).await;
    client
        .send(json!({"type": "rewrite_seed_prompts", "prompt_window_prompts": ["a fox"]}))
        .await;
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(rollout.prompts, ["a fox"]);
}

#[tokio::test]
async fn a_worker_that_dies_while_a_project_ends_does_not_hold_it() {
    let server = Server::start(&args("2", "exit@step4,prompt=dies,max_attempt=1"));
    let mut client = live(&server, &["dies", "never"]).await;
    client.until_type("ltx2_segment_start").await;
    client
        .send(json!({"type": "end_project_keep_session"}))
        .await;
    client.until_type("project_idle").await;
    client
        .send(json!({"type": "project_init_v1", "curated_prompts": ["a fox"]}))
        .await;
    let rollout = take_until(&mut client, "prompt_sources_blocked").await;
    assert_eq!(rollout.prompts, ["a fox"]);
}
