//! The options of the engine, as the supervisor sends them: see `supervisor/engines/synthetic.rs`.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::faults::FaultSpec;

/// The options of the engine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// The time that each denoise step takes.
    #[serde(rename = "step_ms", deserialize_with = "millis")]
    pub(crate) step: Duration,
    /// The time that each frame takes.
    #[serde(rename = "frame_ms", deserialize_with = "millis")]
    pub(crate) frame: Duration,
    /// The time that loading takes.
    #[serde(rename = "load_ms", deserialize_with = "millis")]
    pub(crate) load: Duration,
    /// The number of trailing frames in the continuation state.
    pub(crate) conditioning_num_frames: u32,
    /// The number of audio latents in the continuation state along time: the tensor is `[1, 8, T, 16]` bf16.
    pub(crate) audio_latent_frames: u32,
    /// The size of the latents in a step snapshot in bytes, an even number.
    pub(crate) latent_bytes: u32,
    /// Whether a segment's frames are rendered at load and reused, so that a benchmark measures everything but drawing.
    pub(crate) prerender: bool,
    /// Whether previews are made for sinks that take them.
    pub(crate) preview: bool,
    /// The faults that the job loop injects; empty unless a test asks for some.
    pub(crate) faults: Vec<FaultSpec>,
}

fn millis<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let millis = f64::deserialize(deserializer)?;
    Duration::try_from_secs_f64(millis / 1000.0).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the supervisor makes in its own test.
    #[test]
    fn options_of_the_supervisor_are_read() {
        let options = include_str!("../../../tests/data/engine_options/synthetic.json");
        let options: Options = serde_json::from_str(options).unwrap();
        assert_eq!(
            (options.step, options.conditioning_num_frames),
            (Duration::ZERO, 9)
        );
        assert_eq!(options.faults.len(), 3);
    }
}
