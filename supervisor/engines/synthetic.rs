//! The engine that needs no model: its keys `generator.synthetic.*`.
//!
//! `worker/engine/synthetic/options.rs` reads the options that are made here; `faults` parses the faults that tests ask
//! for.

use std::time::Duration;

use fastvideo_proto::link::EngineSpec;
use serde_json::{Map, Value};

use super::{Engine, Shapes, conditioning};
use crate::settings::{HOUR, Key, KeySpec, Origin, Reader};

mod faults;

/// The name that the engine has in the configuration and on the link.
pub const NAME: &str = "synthetic";

/// The keys of `generator.synthetic`.
pub static KEYS: &[&KeySpec] = &[
    &STEP.spec,
    &FRAME.spec,
    &LOAD.spec,
    &AUDIO_LATENT_FRAMES.spec,
    &LATENT_BYTES.spec,
    &PRERENDER.spec,
    &PREVIEW.spec,
    &FAULTS.spec,
];

static STEP: Key<Duration> = Key::millis("generator.synthetic.step_ms", 0.0, HOUR * 1e3)
    .help("Time that each denoise step takes")
    .default(0.0);

static FRAME: Key<Duration> = Key::millis("generator.synthetic.frame_ms", 0.0, HOUR * 1e3)
    .help("Time that each frame takes to come out")
    .default(0.0);

static LOAD: Key<Duration> = Key::millis("generator.synthetic.load_ms", 0.0, HOUR * 1e3)
    .help("Time that loading takes")
    .default(0.0);

static AUDIO_LATENT_FRAMES: Key<u32> = Key::u32("generator.synthetic.audio_latent_frames", 0, 1024)
    .unit("latents")
    .help("Audio latents in the continuation state")
    .default(51);

static LATENT_BYTES: Key<u32> = Key::u32("generator.synthetic.latent_bytes", 2, 256 << 20)
    .even()
    .unit("bytes")
    .help("Size of the latents in a step snapshot")
    .default(64 << 10);

static PRERENDER: Key<bool> = Key::switch("generator.synthetic.prerender")
    .help("For benchmarks: draw some frames at load and repeat them")
    .default(false);

static PREVIEW: Key<bool> = Key::switch("generator.synthetic.preview")
    .help("Make previews of segments for clients that ask")
    .default(false);

static FAULTS: Key<Option<String>> = Key::text("generator.synthetic.faults").help(
    "For tests only: faults to inject, such as `exit@step2,segment=1,max_attempt=1;garbage@boot,gpu=0`",
);

#[derive(Debug, thiserror::Error)]
#[error("`{}`: {source} ({origin})", FAULTS.spec.path)]
struct BadFaults {
    source: faults::FaultError,
    origin: Origin,
}

/// Returns the engine.
pub(super) fn read(reader: &mut Reader<'_>) -> Engine {
    let faults = faults::parse(&reader.get(&FAULTS).unwrap_or_default());
    let faults = faults.unwrap_or_else(|source| {
        let origin = reader.origin(&FAULTS.spec);
        reader.refuse_because(BadFaults { source, origin });
        Vec::new()
    });
    Engine {
        spec: EngineSpec {
            name: NAME.to_owned(),
            options: Value::Object(options(reader, faults)).to_string(),
        },
        needs_gpu: false,
        repeated_frames: 0,
        warms_up_at_full_size: false,
        adapters: Vec::new(),
        adapters_folder: None,
        previews: reader.get(&PREVIEW),
        shapes: Shapes::ANY,
        refine_steps: 0,
        model_name: NAME.to_owned(),
    }
}

fn options(reader: &Reader<'_>, faults: Vec<Value>) -> Map<String, Value> {
    let mut options = reader.to_json(KEYS);
    options.append(&mut reader.to_json(&[&conditioning::NUM_FRAMES.spec]));
    options.insert(FAULTS.spec.name().to_owned(), faults.into());
    options
}

#[cfg(test)]
mod tests {
    use crate::settings::{Settings, Surroundings};

    use super::*;

    /// What the worker's engine is tested with, too.
    #[test]
    fn options_have_the_names_that_the_worker_reads() {
        let keys = KEYS.iter().chain(conditioning::KEYS).copied();
        let settings = Settings::defaults(keys);
        let surroundings = Surroundings {
            variables: Vec::new(),
            program_folder: "/".into(),
            root: "/".into(),
        };
        let reader = Reader::new(&settings, &surroundings);
        let faults = "exit@step2,segment=1,max_attempt=1;garbage@boot,gpu=0;panic@frame0,prompt=red fox,max_incarnation=2";
        let options = options(&reader, faults::parse(faults).unwrap());
        let expected = include_str!("../../tests/data/engine_options/synthetic.json");
        let expected: Value = serde_json::from_str(expected).unwrap();
        assert_eq!(Value::Object(options), expected);
    }
}
