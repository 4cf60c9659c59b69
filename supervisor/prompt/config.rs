//! The keys `streaming.prompt.*` and `streaming.safety.*`.
//!
//! `providers` reads those of the language models' providers.

use std::path::PathBuf;
use std::time::Duration;

use super::enhancer::{self, BreakerConfig, Style};
use super::{Config, rollout, safety};
use crate::settings::{DAY, HOUR, Key, KeySpec, Reader, Reload};

mod providers;

/// A prompt takes about a hundred tokens; the default models reason first, which takes several hundred.
const MAX_TOKENS_DEFAULT: u32 = 2048;
/// The prompts of a rollout take about a hundred tokens each.
const ROLLOUT_MAX_TOKENS_DEFAULT: u32 = 3000;

/// The keys of `streaming.prompt`.
pub static KEYS: &[&KeySpec] = &[
    &ENABLED.spec,
    &providers::PROVIDER.spec,
    &providers::BASE_URL.spec,
    &providers::API_KEY_ENV.spec,
    &providers::API_KEY_FILE.spec,
    &providers::MODEL.spec,
    &providers::TIMEOUT.spec,
    &OPERATION_TIMEOUT.spec,
    &providers::PROVIDERS.spec,
    &SYSTEM_PROMPT_DIR.spec,
    &providers::ENHANCE_MODEL.spec,
    &ENHANCE_TEMPERATURE.spec,
    &ENHANCE_MAX_TOKENS.spec,
    &providers::AUTO_EXTEND_MODEL.spec,
    &AUTO_EXTEND_TEMPERATURE.spec,
    &AUTO_EXTEND_MAX_TOKENS.spec,
    &providers::REWRITE_MODEL.spec,
    &REWRITE_TEMPERATURE.spec,
    &REWRITE_MAX_TOKENS.spec,
    &providers::ROLLOUT_MODEL.spec,
    &ROLLOUT_TEMPERATURE.spec,
    &ROLLOUT_MAX_TOKENS.spec,
    &MAX_PARALLEL.spec,
    &CACHE_ENTRIES.spec,
    &BREAKER_FAILURES.spec,
    &BREAKER_REST.spec,
];

/// The keys of `streaming.safety`.
pub static SAFETY_KEYS: &[&KeySpec] = &[
    &SAFETY_ENABLED.spec,
    &CLASSIFIER_PATH.spec,
    &BLOCK_THRESHOLD.spec,
    &REQUIRED.spec,
    &LOG_PROMPTS.spec,
];

/// One of the limits in the file; sessions enforce it for clients.
pub static MAX_PROMPT_CHARS: Key<usize> =
    Key::usize("streaming.limits.max_prompt_chars", 1, 1_000_000)
        .unit("characters")
        .reload(Reload::AtOnce)
        .help("Longest prompt")
        .default(4000);

static ENABLED: Key<bool> = Key::switch("streaming.prompt.enabled")
    .reload(Reload::AtOnce)
    .help("Let a language model enhance, extend and rewrite prompts")
    .default(false);

static OPERATION_TIMEOUT: Key<Duration> =
    Key::millis("streaming.prompt.operation_timeout_ms", 1.0, HOUR * 1e3)
        .reload(Reload::AtOnce)
        .help("Time for one prompt over all providers; then it is used as it was written")
        .default(30_000.0);

pub(super) static SYSTEM_PROMPT_DIR: Key<Option<String>> = Key::text(
    "streaming.prompt.system_prompt_dir",
)
.reload(Reload::AtOnce)
.help("Folder with enhance.txt, auto_extend.txt, rewrite.txt, rollout_new.txt and rollout_edit.txt [default: built-in system prompts]");

static ENHANCE_TEMPERATURE: Key<f64> = temperature("streaming.prompt.enhance.temperature")
    .reload(Reload::AtOnce)
    .help("Temperature of the model that enhances a prompt")
    .default(0.7);

static ENHANCE_MAX_TOKENS: Key<u32> = max_tokens("streaming.prompt.enhance.max_tokens")
    .reload(Reload::AtOnce)
    .help("Most tokens of the model that enhances a prompt, its reasoning included")
    .default(MAX_TOKENS_DEFAULT);

static AUTO_EXTEND_TEMPERATURE: Key<f64> = temperature("streaming.prompt.auto_extend.temperature")
    .reload(Reload::AtOnce)
    .help("Temperature of the model that writes the next prompt")
    .default(0.7);

static AUTO_EXTEND_MAX_TOKENS: Key<u32> = max_tokens("streaming.prompt.auto_extend.max_tokens")
    .reload(Reload::AtOnce)
    .help("Most tokens of the model that writes the next prompt, its reasoning included")
    .default(MAX_TOKENS_DEFAULT);

static REWRITE_TEMPERATURE: Key<f64> = temperature("streaming.prompt.rewrite.temperature")
    .reload(Reload::AtOnce)
    .help("Temperature of the model that rewrites a prompt")
    .default(0.7);

static REWRITE_MAX_TOKENS: Key<u32> = max_tokens("streaming.prompt.rewrite.max_tokens")
    .reload(Reload::AtOnce)
    .help("Most tokens of the model that rewrites a prompt, its reasoning included")
    .default(MAX_TOKENS_DEFAULT);

static ROLLOUT_TEMPERATURE: Key<f64> = temperature("streaming.prompt.rollout.temperature")
    .reload(Reload::AtOnce)
    .help("Temperature of the model that writes the prompts of a whole video")
    .default(rollout::DEFAULT_TEMPERATURE);

static ROLLOUT_MAX_TOKENS: Key<u32> = max_tokens("streaming.prompt.rollout.max_tokens")
    .reload(Reload::AtOnce)
    .help(
        "Most tokens of the model that writes the prompts of a whole video, its reasoning included",
    )
    .default(ROLLOUT_MAX_TOKENS_DEFAULT);

static MAX_PARALLEL: Key<usize> = Key::usize("streaming.prompt.max_parallel", 1, 1000)
    .unit("prompts")
    .reload(Reload::AtOnce)
    .help("Curated prompts of one session that are enhanced at the same time")
    .default(4);

static CACHE_ENTRIES: Key<usize> = Key::usize("streaming.prompt.cache_entries", 0, 100_000)
    .unit("prompts")
    .reload(Reload::AtOnce)
    .help("Enhanced prompts that are kept and not asked for again")
    .default(256);

static BREAKER_FAILURES: Key<u32> = Key::u32("streaming.prompt.breaker_failures", 1, 1000)
    .unit("failures")
    .reload(Reload::AtOnce)
    .help("Failures in a row after which a provider is left alone for a while")
    .default(3);

static BREAKER_REST: Key<Duration> =
    Key::seconds("streaming.prompt.breaker_rest_seconds", 0.01, DAY)
        .reload(Reload::AtOnce)
        .help("How long it is left alone before it is tried again")
        .default(30.0);

static SAFETY_ENABLED: Key<bool> = Key::switch("streaming.safety.enabled")
    .reload(Reload::AtOnce)
    .help("Block prompts that a classifier calls unsafe")
    .default(false);

/// Where it is not set, the server warns that prompts are not screened.
pub static CLASSIFIER_PATH: Key<Option<String>> = Key::text("streaming.safety.classifier_path")
    .reload(Reload::AtOnce)
    .help("The classifier: a supervised fastText model (.bin or .ftz) with the label __label__unsafe [default: none, and every prompt passes]");

static BLOCK_THRESHOLD: Key<f64> = Key::f64("streaming.safety.block_threshold", 0.0, 1.0)
    .reload(Reload::AtOnce)
    .help("Score of that label from which a prompt is blocked")
    .default(0.5);

static REQUIRED: Key<bool> = Key::switch("streaming.safety.required")
    .reload(Reload::AtOnce)
    .help("Do not start without the classifier; otherwise it is loaded when the first prompt comes, and every prompt passes when that fails")
    .default(false);

static LOG_PROMPTS: Key<bool> = Key::switch("streaming.safety.log_prompts")
    .reload(Reload::AtOnce)
    .help("Show blocked prompts in the log")
    .default(false);

const fn temperature(path: &'static str) -> Key<Option<f64>> {
    Key::f64(path, 0.0, 2.0)
}

const fn max_tokens(path: &'static str) -> Key<Option<u32>> {
    Key::u32(path, 1, 100_000).unit("tokens")
}

pub(crate) fn read(reader: &mut Reader<'_>) -> Config {
    Config {
        enhancer: read_enhancer(reader),
        safety: read_safety(reader),
    }
}

fn read_enhancer(reader: &mut Reader<'_>) -> Option<enhancer::Config> {
    if !reader.get(&ENABLED) {
        return None;
    }
    let providers = providers::read(reader);
    let system_prompt_dir = reader.get(&SYSTEM_PROMPT_DIR).map(PathBuf::from);
    if system_prompt_dir.as_ref().is_some_and(|dir| !dir.is_dir()) {
        reader.refuse(&SYSTEM_PROMPT_DIR.spec, "an existing folder");
    }
    let style = |temperature: &Key<f64>, max_tokens: &Key<u32>| Style {
        temperature: reader.get(temperature),
        max_tokens: reader.get(max_tokens),
    };
    Some(enhancer::Config {
        providers,
        system_prompt_dir,
        timeout: reader.get(&OPERATION_TIMEOUT),
        enhance: style(&ENHANCE_TEMPERATURE, &ENHANCE_MAX_TOKENS),
        auto_extend: style(&AUTO_EXTEND_TEMPERATURE, &AUTO_EXTEND_MAX_TOKENS),
        rewrite: style(&REWRITE_TEMPERATURE, &REWRITE_MAX_TOKENS),
        rollout: style(&ROLLOUT_TEMPERATURE, &ROLLOUT_MAX_TOKENS),
        cache_entries: reader.get(&CACHE_ENTRIES),
        max_prompt_chars: reader.get(&MAX_PROMPT_CHARS),
        breaker: BreakerConfig {
            failures: reader.get(&BREAKER_FAILURES),
            rest: reader.get(&BREAKER_REST),
        },
        max_parallel: reader.get(&MAX_PARALLEL),
    })
}

fn read_safety(reader: &mut Reader<'_>) -> Option<safety::Config> {
    let required = reader.get(&REQUIRED);
    if !reader.get(&SAFETY_ENABLED) {
        if required {
            let enabled = SAFETY_ENABLED.spec.path;
            reader.refuse(&REQUIRED.spec, format!("false where `{enabled}` is"));
        }
        return None;
    }
    reader.refuse_blank(&CLASSIFIER_PATH, "the path of a file");
    let classifier_path = reader.get(&CLASSIFIER_PATH);
    if required && classifier_path.is_none() {
        let expected = format!("set where `{}` is true", REQUIRED.spec.path);
        reader.refuse(&CLASSIFIER_PATH.spec, expected);
    }
    Some(safety::Config {
        classifier_path: classifier_path.map(PathBuf::from),
        block_threshold: reader.get(&BLOCK_THRESHOLD),
        required,
        log_prompts: reader.get(&LOG_PROMPTS),
    })
}
