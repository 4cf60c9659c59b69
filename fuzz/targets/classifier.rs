//! A fastText model, as an operator may have been given a damaged one.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "what it offers to others")]
mod fasttext;

fuzz_target!(|data: &[u8]| {
    let Ok(model) = fasttext::Classifier::read(data, data.len() as u64) else {
        return;
    };
    let Some(label) = model.label("__label__unsafe") else {
        return;
    };
    for text in [
        "",
        "rain on 東京 \u{1f98a} unheard-of </s> x",
        "__label__a b\0c",
    ] {
        model.score(text, label);
    }
});
