//! LTX-2: its keys `generator.ltx2.*`, and the sizes that every checkpoint of its family refuses. The rest is known
//! once a worker has loaded the checkpoint.
//!
//! `worker/engine/ltx2_options.rs` reads the options that are made here.

use std::path::Path;

use fastvideo_proto::link::EngineSpec;
use serde_json::{Map, Value};

use super::{Engine, Shapes, conditioning, default_request, warmup};

use crate::settings::{Key, KeySpec, Reader};

mod loras;

pub(crate) use loras::{BadOrder, order};

/// The name that the engine has in the configuration and on the link.
pub const NAME: &str = "ltx2";

/// Rows and columns of pixels that one latent stands for.
const LATENT_PIXELS: u32 = 32;
/// Frames that one latent stands for, except the first latent, which stands for one frame.
const LATENT_FRAMES: u32 = 8;

/// The keys of `generator.ltx2`.
pub static KEYS: &[&KeySpec] = &[
    &DEVICE.spec,
    &PRECISION.spec,
    &STAGES.spec,
    &REFINE_STEPS.spec,
    &AUDIO_CONDITIONING_NUM_FRAMES.spec,
    &DRAW_ORDER.spec,
    &POSITIONS.spec,
    &VAE_TILING.spec,
    &KERNELS.spec,
    &CHECK_WEIGHTS.spec,
    &TEXT_ENCODER.spec,
    &LATENT_UPSAMPLER.spec,
    &SCHEDULE.spec,
    &CROSS_MODAL_LEVELS.spec,
    &MATRICES.spec,
    &FLOAT8_DENSE_BLOCKS.spec,
    &LORAS.spec,
    &LORAS_MAX_MIB.spec,
    &LORAS_MAX_RANK.spec,
    &PREVIEW_DECODER.spec,
    &PREVIEW_FRAMES.spec,
];

/// The keys that are for the supervisor alone.
pub static OWN_KEYS: &[&KeySpec] = &[&LORAS_FOLDER.spec];

static DEVICE: Key<String> = Key::choice("generator.ltx2.device", &["auto", "cpu", "cuda"])
    .short("device")
    .help("Where workers compute; auto takes the GPU that they have, or else the CPU")
    .default("auto");

static PRECISION: Key<String> =
    Key::choice("generator.ltx2.precision", &["auto", "bfloat16", "float32"])
        .help("What the model computes in; auto is bfloat16 on a GPU and float32 on the CPU")
        .default("auto");

static STAGES: Key<String> = Key::choice("generator.ltx2.stages", &["auto", "one", "two"])
    .help("Whether a segment is made at half the size first; auto does so where the model has an upsampler")
    .default("auto");

static REFINE_STEPS: Key<u32> = Key::u32("generator.ltx2.refine_steps", 1, 3)
    .unit("steps")
    .help("Denoise steps of the second stage")
    .default(2);

static AUDIO_CONDITIONING_NUM_FRAMES: Key<u32> =
    Key::u32("generator.ltx2.audio_conditioning_num_frames", 0, 1000)
        .unit("frames")
        .help("Frames' worth of sound that a segment takes over from the one before")
        .default(49);

static DRAW_ORDER: Key<String> = Key::choice(
    "generator.ltx2.draw_order",
    &["channels", "tokens"],
)
.help("How a seed's random numbers are laid out: as diffusers' text-to-video does, or token by token as FastVideo does")
.default("channels");

static POSITIONS: Key<String> = Key::choice("generator.ltx2.positions", &["float32", "bfloat16"])
    .help("What positions in the picture are rounded to: bfloat16 as FastVideo does")
    .default("float32");

static VAE_TILING: Key<String> = Key::choice(
    "generator.ltx2.vae_tiling",
    &["whole", "grouped", "library", "fastvideo"],
)
.help("How frames are decoded: all at once, a few at a time with the same result, or in blended tiles as diffusers or FastVideo cut them")
.default("grouped");

static KERNELS: Key<bool> = Key::switch("generator.ltx2.kernels")
    .help("Use this program's own CUDA kernels on a GPU; without, libtorch's alone")
    .default(true);

static CHECK_WEIGHTS: Key<bool> = Key::switch("generator.ltx2.check_weights")
    .help("Look for weights that are no numbers while the model is loaded")
    .default(false);

static TEXT_ENCODER: Key<Option<String>> = Key::text("generator.ltx2.text_encoder")
    .help("The folder of Gemma 3, for a model in one file [default: the one beside that file]");

static LATENT_UPSAMPLER: Key<Option<String>> = Key::text("generator.ltx2.latent_upsampler")
    .help("The latent upsampler, for a model in one file [default: the one beside that file, if there is one]");

static SCHEDULE: Key<String> =
    Key::choice("generator.ltx2.schedule", &["auto", "distilled", "base"])
        .help("What the weights were made for; auto asks the model's scheduler, and takes weights without one for distilled")
        .default("auto");

static CROSS_MODAL_LEVELS: Key<String> = Key::choice(
    "generator.ltx2.cross_modal_levels",
    &["auto", "library", "lightricks", "fastvideo"],
)
.help("The noise levels that the attention between picture and sound is modulated by, where frames or sound are taken over: as diffusers, the model's authors or FastVideo do; auto is lightricks for LTX-2.3 and fastvideo for LTX-2.0")
.default("auto");

static MATRICES: Key<String> = Key::choice("generator.ltx2.matrices", &["bfloat16", "float8"])
    .help("How the matrices are kept that are applied to every video token: float8 computes faster and takes 12 GiB less, on GPUs of compute capability 8.9 or later, and changes pictures a little")
    .default("bfloat16");

static FLOAT8_DENSE_BLOCKS: Key<Option<Vec<Value>>> = Key::json_list(
    "generator.ltx2.float8_dense_blocks",
    "a list of numbers of the transformer's blocks",
)
.help("Blocks of the transformer whose matrices stay in bfloat16, with matrices: float8 [default: none]");

static LORAS: Key<Option<Vec<Value>>> = Key::json_list(
    "generator.ltx2.loras",
    "a list such as `[{name: toon, path: /models/toon.safetensors}]`",
)
.help("Adapters (LoRA): each with `name` and `path`, and where needed `strength` (1; -2 to 2), `trigger` (words that are added to prompts), `trigger_position` (`front` or `back`) and `fused` (added to the weights for all sessions) [default: none]");

static LORAS_MAX_MIB: Key<u32> = Key::u32("generator.ltx2.loras_max_mib", 1, 1 << 20)
    .unit("MiB")
    .help("Memory on each GPU for all adapters that are not fused, and the largest file of one")
    .default(8192);

static LORAS_MAX_RANK: Key<u32> = Key::u32("generator.ltx2.loras_max_rank", 1, 4096)
    .help("Largest sum of the ranks of all adapters that act on a segment; each rank costs time in every step")
    .default(128);

static LORAS_FOLDER: Key<Option<String>> = Key::text("generator.ltx2.loras_folder")
    .help("The folder whose adapters an operator may load while workers serve (`POST /v1/workers/loras`) [default: none may be loaded]");

static PREVIEW_DECODER: Key<Option<String>> = Key::text("generator.ltx2.preview_decoder")
    .help("The tiny decoder that makes previews of a segment between its two stages: `taeltx_2` or `taeltx2_3` of TAEHV, a safetensors file [default: none, no previews]");

static PREVIEW_FRAMES: Key<u32> = Key::u32("generator.ltx2.preview_frames", 1, 32)
    .unit("frames")
    .help("Frames of a segment of which there are previews, spread evenly; the last frame is one of them")
    .default(8);

/// Returns the engine with this model, which is a folder, a file or the id of a repository.
pub(super) fn read(reader: &mut Reader<'_>, model: &str) -> Engine {
    check_sizes(reader);
    loras::check(reader, &LORAS);
    let blocks = reader.get(&FLOAT8_DENSE_BLOCKS).unwrap_or_default();
    if !blocks.iter().all(Value::is_u64) {
        reader.refuse(
            &FLOAT8_DENSE_BLOCKS.spec,
            "numbers of blocks, counted from 0",
        );
    }
    if reader.get(&MATRICES) == "float8" {
        for (key, unfit) in [(&DEVICE, "cpu"), (&PRECISION, "float32")] {
            if reader.get(key) == unfit {
                let expected = "another value, as generator.ltx2.matrices is float8";
                reader.refuse(&key.spec, expected);
            }
        }
    }
    if reader.get(&PREVIEW_DECODER).is_some() && reader.get(&STAGES) == "one" {
        let expected = "none, as generator.ltx2.stages is one";
        reader.refuse(&PREVIEW_DECODER.spec, expected);
    }
    Engine {
        spec: EngineSpec {
            name: NAME.to_owned(),
            options: Value::Object(options(reader, model)).to_string(),
        },
        needs_gpu: reader.get(&DEVICE) != "cpu",
        repeated_frames: reader.get(&conditioning::NUM_FRAMES),
        warms_up_at_full_size: true,
        adapters: loras::offered(reader, &LORAS),
        adapters_folder: loras::folder(reader, &LORAS_FOLDER),
        previews: reader.get(&PREVIEW_DECODER).is_some(),
        shapes: Shapes {
            // Whether there is a second stage may be known only once a worker has loaded the model.
            cell: match reader.get(&STAGES).as_str() {
                "one" => LATENT_PIXELS,
                _ => 2 * LATENT_PIXELS,
            },
            frame_step: LATENT_FRAMES,
            // A segment hands these on to the next one.
            min_frames: reader.get(&conditioning::NUM_FRAMES)
                + reader.get(&conditioning::END_OFFSET),
        },
        refine_steps: match reader.get(&STAGES).as_str() {
            "one" => 0,
            _ => reader.get(&REFINE_STEPS),
        },
        model_name: model_name(model),
    }
}

/// Returns the name of a model: the id of a repository, or the last part of a path, without the extension of a file.
fn model_name(model: &str) -> String {
    let path = Path::new(model);
    // A repository has one owner, and no path begins with that.
    let is_repository = model.split('/').count() == 2 && !model.starts_with(['/', '.', '~']);
    if is_repository && !path.exists() {
        return model.to_owned();
    }
    let name = match path.extension() {
        Some(extension) if extension == "safetensors" => path.file_stem(),
        _ => path.file_name(),
    };
    let name = name.unwrap_or(NAME.as_ref());
    name.to_string_lossy().into_owned()
}

fn options(reader: &Reader<'_>, model: &str) -> Map<String, Value> {
    let mut options = reader.to_json(KEYS);
    options.append(&mut reader.to_json(conditioning::KEYS));
    options.insert("model".to_owned(), model.into());
    options
}

fn check_sizes(reader: &mut Reader<'_>) {
    let multiple = match reader.get(&STAGES).as_str() {
        // The first stage generates at half the size.
        "two" => 2 * LATENT_PIXELS,
        _ => LATENT_PIXELS,
    };
    let kept = reader.get(&conditioning::NUM_FRAMES);
    if kept != 0 && kept % LATENT_FRAMES != 1 {
        let expected = "0 or one more than a multiple of 8 for engine ltx2";
        reader.refuse(&conditioning::NUM_FRAMES.spec, expected);
    }
    let taken_over = kept + reader.get(&conditioning::END_OFFSET);
    let check_picture = |reader: &mut Reader<'_>, key: &Key<u32>| {
        if !reader.get(key).is_multiple_of(multiple) {
            let expected = format!("a multiple of {multiple} for engine ltx2");
            reader.refuse(&key.spec, expected);
        }
    };
    let check_frames = |reader: &mut Reader<'_>, key: &Key<u32>| {
        let frames = reader.get(key);
        if frames % LATENT_FRAMES != 1 {
            let expected = "one more than a multiple of 8 for engine ltx2";
            reader.refuse(&key.spec, expected);
        } else if frames <= taken_over {
            let expected = format!("more than the {taken_over} that a segment takes over");
            reader.refuse(&key.spec, expected);
        }
    };
    check_picture(reader, &default_request::WIDTH);
    check_picture(reader, &default_request::HEIGHT);
    check_frames(reader, &default_request::NUM_FRAMES);
    // Warm-up has the default request's sizes where it has none of its own.
    if reader.is_given(&warmup::WIDTH.spec) {
        check_picture(reader, &warmup::WIDTH);
    }
    if reader.is_given(&warmup::HEIGHT.spec) {
        check_picture(reader, &warmup::HEIGHT);
    }
    if reader.is_given(&warmup::NUM_FRAMES.spec) {
        check_frames(reader, &warmup::NUM_FRAMES);
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::{Settings, Surroundings};

    use super::*;

    #[test]
    fn a_model_is_named_by_its_repository_or_by_the_last_part_of_its_path() {
        for (model, name) in [
            ("Lightricks/LTX-2", "Lightricks/LTX-2"),
            ("/models/LTX-2", "LTX-2"),
            ("/models/LTX-2/", "LTX-2"),
            ("./LTX-2", "LTX-2"),
            ("models/of/ltx-2.3.safetensors", "ltx-2.3"),
            ("ltx-2", "ltx-2"),
            ("/", "ltx2"),
            ("..", "ltx2"),
        ] {
            assert_eq!(model_name(model), name, "{model}");
        }
    }

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
        let options = options(&Reader::new(&settings, &surroundings), "some/model");
        let expected: Value =
            serde_json::from_str(include_str!("../../tests/data/engine_options/ltx2.json"))
                .unwrap();
        assert_eq!(Value::Object(options), expected);
    }
}
