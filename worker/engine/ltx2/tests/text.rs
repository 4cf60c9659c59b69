//! Tokenizer, Gemma 3 and connectors against the reference.

use std::num::NonZeroUsize;
use std::path::Path;

use fastvideo_ltx2::checkpoint::gemma_names;
use fastvideo_ltx2::text::connectors::{self, Connectors};
use fastvideo_ltx2::text::gemma::{self, Gemma};
use fastvideo_ltx2::text::tokens::{self, Tokenizer};
use fastvideo_ltx2::text::{TextEncoder, TextError};
use fastvideo_ltx2::weights::Store;
use serde_json::Value;
use tch::Kind;

use crate::reference::{Golden, Reference, check};

const LABELS: [&str; 2] = ["prompt", "negative"];

/// The prompt that a label of the goldens stands for.
fn prompt(reference: &Reference, label: &str) -> String {
    reference.settings()[label].as_str().unwrap().to_owned()
}

pub(crate) fn tokenizer(reference: &Reference) -> Tokenizer {
    let length = reference.settings()["text_len"].as_i64().unwrap();
    let path = reference.checkpoint().join("tokenizer/tokenizer.json");
    Tokenizer::open(&path, length).unwrap()
}

pub(crate) fn gemma(reference: &Reference, kind: Kind) -> Gemma {
    let config = gemma::Config::library(&reference.config("text_encoder")).unwrap();
    let store = reference.renamed("text_encoder", kind, gemma_names::library_name);
    let gemma = Gemma::new(&config, &store.root());
    store.finish().unwrap();
    gemma
}

pub(crate) fn connectors(reference: &Reference, kind: Kind) -> Connectors {
    let config = connectors::Config::library(&reference.config("connectors")).unwrap();
    let store = reference.store("connectors", kind);
    let connectors = Connectors::new(&config, &store.root());
    store.finish().unwrap();
    connectors
}

/// The padding on the left and the tokens of a golden prompt.
fn padding(golden: &Golden, label: &str) -> (i64, i64) {
    let mask = golden.get(&format!("{label}.attention_mask"));
    let length = mask.size()[1];
    let valid = mask.sum(Kind::Int64).int64_value(&[]);
    (length - valid, valid)
}

#[test]
fn token_ids_equal_the_reference() {
    let reference = Reference::open();
    let golden = reference.golden("text");
    let tokenizer = tokenizer(&reference);
    for label in LABELS {
        let prompt = prompt(&reference, label);
        let ids = tokenizer.encode(&format!("  {prompt}\n")).unwrap();
        let (padding, _) = padding(&golden, label);
        let padding = vec![0; usize::try_from(padding).unwrap()];
        let padded = [padding, ids].concat();
        let expected = golden.get(&format!("{label}.input_ids")).squeeze();
        assert_eq!(Vec::<i64>::try_from(expected).unwrap(), padded, "{label}");
    }
}

#[test]
fn long_prompt_is_cut_at_its_end() {
    let reference = Reference::open();
    let tokenizer = tokenizer(&reference);
    let prompt = prompt(&reference, "prompt");
    let short = tokenizer.encode(&prompt).unwrap();
    let long = tokenizer.encode(&prompt.repeat(20)).unwrap();
    assert_eq!(long.len() as i64, tokenizer.length());
    assert_eq!(long[..short.len() - 1], short[..short.len() - 1]);
}

#[test]
fn states_and_contexts_equal_the_reference() {
    let reference = Reference::open();
    let golden = reference.golden("text");
    let gemma = gemma(&reference, Kind::Float);
    let connectors = connectors(&reference, Kind::Float);
    let tokenizer = tokenizer(&reference);
    for label in LABELS {
        let ids = tokenizer.encode(&prompt(&reference, label)).unwrap();
        let (padding, valid) = padding(&golden, label);
        let states = gemma.forward(&ids, tokenizer.length());
        let expected = golden.get(&format!("{label}.hidden_states")); // [states, 1, text, hidden]
        let expected = expected.narrow(2, padding, valid).permute([1, 2, 3, 0]);
        check(&format!("{label}: states"), &states, &expected, 1e-6);

        if label == "prompt" {
            let expected = golden
                .get("prompt.text_proj_in.in.0")
                .narrow(1, padding, valid);
            let normalized = connectors::normalize(&states);
            check("normalized states", &normalized, &expected, 1e-6);
        }
        let contexts = connectors.forward(&states, tokenizer.length());
        let expected = |stream| golden.get(&format!("{label}.{stream}_context"));
        check(
            &format!("{label}: video"),
            &contexts.video,
            expected("video"),
            2e-6,
        );
        check(
            &format!("{label}: audio"),
            &contexts.audio,
            expected("audio"),
            2e-6,
        );
    }
}

#[test]
fn bfloat16_contexts_stay_near_the_reference() {
    let reference = Reference::open();
    let golden = reference.golden("text");
    let mut encoder = encoder(&reference, Kind::BFloat16);
    let contexts = encoder.encode(&prompt(&reference, "prompt"), "").unwrap();
    assert_eq!(contexts.video.kind(), Kind::BFloat16);
    check(
        "video",
        &contexts.video,
        golden.get("prompt.video_context"),
        3e-2,
    );
    check(
        "audio",
        &contexts.audio,
        golden.get("prompt.audio_context"),
        3e-2,
    );
}

#[test]
fn contexts_of_a_prompt_are_kept() {
    let reference = Reference::open();
    let mut encoder = encoder(&reference, Kind::Float);
    let first = encoder.encode("a lantern", "").unwrap();
    let again = encoder.encode(" a lantern ", "").unwrap();
    assert_eq!(first.video.data_ptr(), again.video.data_ptr());
    encoder.encode("rain", "").unwrap();
    encoder.encode("a bell", "").unwrap();
    let anew = encoder.encode("a lantern", "").unwrap();
    assert_ne!(first.video.data_ptr(), anew.video.data_ptr());
    assert_eq!(first.video, anew.video);
}

fn encoder(reference: &Reference, kind: Kind) -> TextEncoder {
    let (gemma, connectors) = (gemma(reference, kind), connectors(reference, kind));
    TextEncoder::new(
        tokenizer(reference),
        gemma,
        connectors,
        NonZeroUsize::new(2).unwrap(),
    )
    .unwrap()
}

/// Any prompt gives finite contexts, the empty one too.
#[test]
fn strange_prompts_are_survived() {
    let reference = Reference::open();
    let mut encoder = encoder(&reference, Kind::Float);
    for prompt in [
        "",
        "   ",
        "\u{0}",
        "日本語 🎈",
        "<bos><pad><eos>",
        &"x".repeat(10_000),
    ] {
        let contexts = encoder.encode(prompt, "").unwrap();
        for context in [&contexts.video, &contexts.audio] {
            assert!(
                bool::try_from(context.isfinite().all()).unwrap(),
                "{prompt:?}"
            );
        }
    }
}

#[test]
fn tokenizer_with_more_ids_than_the_embedding_is_refused() {
    let reference = Reference::open();
    let mut json = reference.config("text_encoder");
    json["text_config"]["vocab_size"] = 100.into();
    let config = gemma::Config::library(&json).unwrap();
    let random = Store::random("text_encoder", Kind::Float, tch::Device::Cpu);
    let gemma = Gemma::new(&config, &random.root());
    let connectors = connectors(&reference, Kind::Float);
    let refused = TextEncoder::new(
        tokenizer(&reference),
        gemma,
        connectors,
        NonZeroUsize::new(2).unwrap(),
    )
    .unwrap_err();
    assert!(
        matches!(
            refused,
            TextError::Vocabulary {
                vocabulary: 100,
                ..
            }
        ),
        "{refused}"
    );
}

#[test]
fn file_that_is_no_tokenizer_is_refused_by_name() {
    let refused = Tokenizer::open(Path::new("no/such.json"), 64).unwrap_err();
    assert!(
        refused.to_string().starts_with("tokenizer no/such.json: "),
        "{refused}"
    );
}

#[test]
fn text_length_is_read() {
    let length = |text| tokens::library_length(&serde_json::from_str::<Value>(text).unwrap());
    assert_eq!(length(r#"{"model_max_length": 64}"#), 64);
    assert_eq!(
        length(r#"{"model_max_length": 1000000000000000019884624838656}"#),
        1024
    );
    assert_eq!(length("{}"), 1024);
}

/// Longer texts than a local layer's window: each token of one sees no further back.
#[test]
fn local_layers_look_no_further_than_their_window() {
    let reference = Reference::open();
    let config = gemma::Config::library(&reference.config("text_encoder")).unwrap();
    let gemma = gemma(&reference, Kind::Float);
    let n = config.sliding_window + 3;
    let mut ids: Vec<i64> = (5..5 + n).collect();
    let second_state = |ids: &[i64]| gemma.forward(ids, n).select(3, 1).select(1, n - 1);
    let before = second_state(&ids);
    ids[2] += 50;
    assert_eq!(before, second_state(&ids));
    ids[3] += 50;
    assert!(before != second_state(&ids));
}
