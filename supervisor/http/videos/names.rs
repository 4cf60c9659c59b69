//! The names of the fields of a request: which are read, which have no effect, and which ask for what this server does not do.

use super::error::VideoError;

/// The lowest similarity (0 to 1) of a suggestion; one below it would confuse more than help.
const MIN_LIKENESS: f64 = 0.6;

/// The fields that are read.
pub(super) const READ: &[&str] = &[
    "enhance_prompt",
    "fps",
    "guidance_scale",
    "height",
    "image_reference",
    "input_reference",
    "metadata",
    "model",
    "negative_prompt",
    "num_frames",
    "num_inference_steps",
    "prompt",
    "reference_url",
    "seconds",
    "seed",
    "size",
    "video",
    "video_params",
    "width",
];

/// The fields of `video_params` that are read.
pub(super) const READ_OF_PARAMS: &[&str] = &["fps", "height", "num_frames", "width"];

/// The fields that have no effect, whatever they are: OpenAI's for accounting and for quality, and the choice of sound, which is
/// the model's.
pub(super) const IGNORED: &[&str] = &["generate_sound", "quality", "user"];

/// The fields that may only ask for what is done anyway, with that.
pub(super) const FIXED: &[(&str, &str)] = &[("n", "1"), ("response_format", "url")];

/// The fields of other servers of this interface (vLLM-Omni, FastVideo, SGLang, TensorRT-LLM and OpenAI's) that ask for what this
/// one does not do.
const UNSUPPORTED: &[&str] = &[
    "adapters",
    "aspect_ratio",
    "audio_noise_mask",
    "audio_reference",
    "audio_url",
    "background",
    "boundary_ratio",
    "callback_url",
    "characters",
    "condition_frame_indexes_vision",
    "condition_video_keep",
    "control_guidance",
    "control_reference",
    "control_type",
    "diffusers_kwargs",
    "duration",
    "enable_frame_interpolation",
    "enable_teacache",
    "end_image_reference",
    "file_id",
    "flow_shift",
    "frame_interpolation_exp",
    "frame_interpolation_model_path",
    "frame_interpolation_scale",
    "generator_device",
    "guidance_rescale",
    "guidance_scale_2",
    "image_url",
    "lora",
    "lora_path",
    "lora_scale",
    "max_sequence_length",
    "num_outputs_per_prompt",
    "output_compression",
    "output_format",
    "output_quality",
    "preencode_batch_frames",
    "preencode_mp4",
    "sound_duration",
    "source_audio",
    "source_video",
    "stream",
    "task",
    "true_cfg_scale",
    "video_codec_options",
    "video_noise_mask",
    "video_path",
    "video_reference",
    "video_url",
    "vsa_mode",
    "webhook_url",
];

/// Refuses a name that is none of `read`. `within` is the field that it is a field of, with a dot, or nothing.
///
/// # Errors
/// Returns which field may have been meant, or that this server does not do what the field asks for.
pub(super) fn check(name: &str, read: &[&str], within: &str) -> Result<(), VideoError> {
    if read.contains(&name) {
        return Ok(());
    }
    let param = format!("{within}{name}");
    if UNSUPPORTED.contains(&name) {
        let why = "this server does not do what it asks for";
        return Err(VideoError::unsupported_parameter(param, why));
    }
    let nearest = nearest(name, read).map(|nearest| format!("{within}{nearest}"));
    Err(VideoError::unknown_parameter(param, nearest.as_deref()))
}

/// Returns the known name that is most similar to an unknown one.
fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(unknown, name);
    let known = known.iter().map(|&name| (likeness(name), name));
    let likely = known.filter(|(likeness, _)| *likeness >= MIN_LIKENESS);
    let nearest = likely.max_by(|(one, _), (other, _)| one.total_cmp(other));
    nearest.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_one_meaning() {
        let fixed = FIXED.iter().map(|(name, _)| name);
        let mut all: Vec<_> = READ
            .iter()
            .chain(IGNORED)
            .chain(UNSUPPORTED)
            .chain(fixed)
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn unknown_names_lead_to_the_known_one() {
        let check = |unknown, expected| assert_eq!(nearest(unknown, READ), expected, "{unknown}");
        check("promt", Some("prompt"));
        check("Prompt", Some("prompt"));
        check("negativePrompt", Some("negative_prompt"));
        check("num_inference_step", Some("num_inference_steps"));
        check("guidance", None);
        check("second", Some("seconds"));
        check("zzz", None);
        check("", None);
    }
}
