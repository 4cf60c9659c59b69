//! Maps the tensor names of the original checkpoint to the library's.
//!
//! The pairs are those of the library's conversion script (diffusers 0.42.1, `scripts/convert_ltx2_to_diffusers.py`),
//! in the opposite direction.

use super::gemma_names::library_name;
use super::layout::{Component, Layout};
use super::single_file::part_of;

/// The mapping of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    Library(String),
    /// The tensor is known and not needed.
    Skip,
}

/// Maps the names of one part's tensors. It needs all of them at once, because the position of the video VAE's last
/// block depends on their number.
#[derive(Debug)]
pub(super) struct Names {
    component: Component,
    layout: Layout,
    /// The index of the last block of the video VAE's encoder in the original layout.
    last_down_block: usize,
    /// Whether the vocoder's names are those of LTX-2.0 behind a prefix: in LTX-2.3 the same word names one of its parts.
    vocoder_has_prefix: bool,
}

impl Names {
    pub(super) fn new<'a>(
        component: Component,
        layout: Layout,
        stored: impl Iterator<Item = &'a str>,
    ) -> Self {
        let mut vocoder_has_prefix = true;
        let of_part = |stored: &'a str| match layout {
            Layout::SingleFile => part_of(stored)
                .filter(|(part, _)| *part == component)
                .map(|(_, name)| name),
            Layout::Library | Layout::Original => Some(stored),
        };
        let last_down_block = stored
            .filter_map(of_part)
            .inspect(|name| vocoder_has_prefix &= name.starts_with("vocoder."))
            .filter_map(|name| name.strip_prefix("encoder.down_blocks."))
            .filter_map(|rest| rest.split('.').next()?.parse().ok())
            .max()
            .unwrap_or(0);
        Self {
            component,
            layout,
            last_down_block,
            vocoder_has_prefix,
        }
    }

    pub(super) fn of(&self, stored: &str) -> Name {
        let stored = match (self.layout, part_of(stored)) {
            (Layout::Library | Layout::Original, _) => stored,
            (Layout::SingleFile, Some((part, name))) if part == self.component => name,
            (Layout::SingleFile, _) => return Name::Skip,
        };
        if self.component == Component::TextEncoder {
            return library_name(stored).map_or(Name::Skip, Name::Library);
        }
        let name = match self.component {
            Component::Vocoder if !self.vocoder_has_prefix => stored,
            component => without_prefix(component, stored),
        };
        if self.component == Component::Upsampler && name == "blur_down.kernel" {
            return Name::Library("upsampler.blur_down.kernel".to_owned());
        }
        if self.component == Component::Vocoder && name.ends_with("stft_fn.inverse_basis") {
            return Name::Skip;
        }
        match self.layout {
            Layout::Library => Name::Library(name.to_owned()),
            Layout::Original | Layout::SingleFile => self.original(name),
        }
    }

    fn original(&self, name: &str) -> Name {
        match self.component {
            Component::Transformer => Name::Library(words(name, TRANSFORMER)),
            Component::Connectors => Name::Library(words(name, CONNECTORS)),
            Component::Vocoder => Name::Library(words(&name.replace(".lowpass.", "."), VOCODER)),
            Component::VideoVae => statistics(name)
                .unwrap_or_else(|| Name::Library(video_block(name, self.last_down_block))),
            Component::AudioVae => {
                statistics(name).unwrap_or_else(|| Name::Library(name.to_owned()))
            }
            Component::Upsampler | Component::TextEncoder => Name::Library(name.to_owned()),
        }
    }
}

/// Returns the part and the library name of a layer from its name in an adapter's file, which may be the original's or the
/// library's, behind several prefixes.
pub(crate) fn adapter_layer(name: &str) -> (Component, String) {
    const PREFIXES: [&str; 4] = [
        "base_model.model.",
        "model.diffusion_model.",
        "diffusion_model.",
        "transformer.",
    ];
    let mut name = name;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    let of_connectors = ["connectors.", "text_embedding_projection."];
    let bare = of_connectors
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let first = name.split('.').next().unwrap_or_default();
    let is_connector = CONNECTORS
        .iter()
        .filter(|(original, _)| original.contains("embed"))
        .any(|&(original, library)| first == original || first == library);
    match bare {
        Some(bare) => (Component::Connectors, words(bare, CONNECTORS)),
        None if is_connector => (Component::Connectors, words(name, CONNECTORS)),
        None => (Component::Transformer, words(name, TRANSFORMER)),
    }
}

/// Replacements of whole words between dots: original, library.
type Words = &'static [(&'static str, &'static str)];

const TRANSFORMER: Words = &[
    ("patchify_proj", "proj_in"),
    ("audio_patchify_proj", "audio_proj_in"),
    ("adaln_single", "time_embed"),
    ("audio_adaln_single", "audio_time_embed"),
    (
        "av_ca_video_scale_shift_adaln_single",
        "av_cross_attn_video_scale_shift",
    ),
    (
        "av_ca_audio_scale_shift_adaln_single",
        "av_cross_attn_audio_scale_shift",
    ),
    (
        "av_ca_a2v_gate_adaln_single",
        "av_cross_attn_video_a2v_gate",
    ),
    (
        "av_ca_v2a_gate_adaln_single",
        "av_cross_attn_audio_v2a_gate",
    ),
    (
        "scale_shift_table_a2v_ca_video",
        "video_a2v_cross_attn_scale_shift_table",
    ),
    (
        "scale_shift_table_a2v_ca_audio",
        "audio_a2v_cross_attn_scale_shift_table",
    ),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
    ("prompt_adaln_single", "prompt_adaln"),
    ("audio_prompt_adaln_single", "audio_prompt_adaln"),
    ("to_gate_compress", "to_gate_logits"),
];

const CONNECTORS: Words = &[
    ("embeddings_connector", "video_connector"),
    ("video_embeddings_connector", "video_connector"),
    ("audio_embeddings_connector", "audio_connector"),
    ("transformer_1d_blocks", "transformer_blocks"),
    ("aggregate_embed", "text_proj_in"),
    ("video_aggregate_embed", "video_text_proj_in"),
    ("audio_aggregate_embed", "audio_text_proj_in"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
];

const VOCODER: Words = &[
    ("conv_pre", "conv_in"),
    ("ups", "upsamplers"),
    ("resblocks", "resnets"),
    ("conv_post", "conv_out"),
    ("act_post", "act_out"),
];

fn words(name: &str, pairs: Words) -> String {
    let renamed = name.split('.').map(|word| {
        let pair = pairs.iter().find(|&&(original, _)| original == word);
        pair.map_or(word, |&(_, library)| library)
    });
    renamed.collect::<Vec<_>>().join(".")
}

/// Removes the prefix that programs put before a part's names when they save it with other parts.
fn without_prefix(component: Component, name: &str) -> &str {
    let prefixes: &[&str] = match component {
        Component::Transformer => &["model.diffusion_model.", "diffusion_model.", "model."],
        Component::Connectors => &[
            "model.diffusion_model.",
            "text_embedding_projection.",
            "feature_extractor.",
        ],
        Component::VideoVae => &["vae."],
        Component::AudioVae => &["audio_vae."],
        Component::Vocoder => &["vocoder."],
        Component::Upsampler | Component::TextEncoder => &[],
    };
    let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    rest.unwrap_or(name)
}

/// Maps the names of the latents' mean and deviation. The original file has more statistics than are used.
fn statistics(name: &str) -> Option<Name> {
    let statistic = name.strip_prefix("per_channel_statistics.")?;
    Some(match statistic {
        "mean-of-means" => Name::Library("latents_mean".to_owned()),
        "std-of-means" => Name::Library("latents_std".to_owned()),
        _ => Name::Skip,
    })
}

/// Maps a block's name. The original has one flat list of blocks: residual stages at even positions, resamplers at odd
/// ones. The encoder's last stage and the decoder's first are the library's middle block.
fn video_block(name: &str, last_down_block: usize) -> String {
    let mut parts = name.splitn(4, '.');
    let (side, list, position, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
    let position = position.and_then(|position| position.parse::<usize>().ok());
    let (Some(side), Some(list), Some(position), Some(rest)) = (side, list, position, rest) else {
        return name.to_owned();
    };
    let place = match (side, list, position % 2) {
        ("encoder", "down_blocks", 0) if position == last_down_block => "mid_block".to_owned(),
        ("encoder", "down_blocks", 0) => format!("down_blocks.{}", position / 2),
        ("encoder", "down_blocks", _) => format!("down_blocks.{}.downsamplers.0", position / 2),
        ("decoder", "up_blocks", 0) if position == 0 => "mid_block".to_owned(),
        ("decoder", "up_blocks", 0) => format!("up_blocks.{}", position / 2 - 1),
        ("decoder", "up_blocks", _) => format!("up_blocks.{}.upsamplers.0", position / 2),
        _ => return name.to_owned(),
    };
    let rest = match rest.strip_prefix("res_blocks.") {
        Some(rest) => format!("resnets.{rest}"),
        None => rest.to_owned(),
    };
    format!("{side}.{place}.{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_names_become_the_library_s() {
        let check = |component, stored, expected: &str| {
            let last = ["encoder.down_blocks.8.x"];
            let names = Names::new(component, Layout::Original, last.into_iter());
            assert_eq!(names.of(stored), Name::Library(expected.to_owned()));
        };
        use Component as C;
        check(
            C::Transformer,
            "model.diffusion_model.patchify_proj.weight",
            "proj_in.weight",
        );
        check(
            C::Transformer,
            "audio_adaln_single.emb.timestep_embedder.linear_1.bias",
            "audio_time_embed.emb.timestep_embedder.linear_1.bias",
        );
        check(
            C::Transformer,
            "transformer_blocks.3.attn1.q_norm.weight",
            "transformer_blocks.3.attn1.norm_q.weight",
        );
        check(
            C::Transformer,
            "scale_shift_table_a2v_ca_audio",
            "audio_a2v_cross_attn_scale_shift_table",
        );
        check(
            C::Connectors,
            "video_embeddings_connector.transformer_1d_blocks.0.attn1.k_norm.weight",
            "video_connector.transformer_blocks.0.attn1.norm_k.weight",
        );
        check(
            C::VideoVae,
            "encoder.down_blocks.7.conv.conv.bias",
            "encoder.down_blocks.3.downsamplers.0.conv.conv.bias",
        );
        check(
            C::VideoVae,
            "encoder.down_blocks.2.res_blocks.0.conv1.conv.bias",
            "encoder.down_blocks.1.resnets.0.conv1.conv.bias",
        );
        check(
            C::VideoVae,
            "encoder.down_blocks.8.res_blocks.0.conv1.conv.bias",
            "encoder.mid_block.resnets.0.conv1.conv.bias",
        );
        check(
            C::VideoVae,
            "decoder.up_blocks.0.res_blocks.1.conv1.conv.bias",
            "decoder.mid_block.resnets.1.conv1.conv.bias",
        );
        check(
            C::VideoVae,
            "decoder.up_blocks.1.conv.conv.bias",
            "decoder.up_blocks.0.upsamplers.0.conv.conv.bias",
        );
        check(
            C::VideoVae,
            "decoder.up_blocks.2.res_blocks.0.conv2.conv.bias",
            "decoder.up_blocks.0.resnets.0.conv2.conv.bias",
        );
        check(
            C::VideoVae,
            "per_channel_statistics.mean-of-means",
            "latents_mean",
        );
        check(
            C::AudioVae,
            "per_channel_statistics.std-of-means",
            "latents_std",
        );
        check(C::Vocoder, "ups.3.weight", "upsamplers.3.weight");
        check(
            C::Vocoder,
            "resblocks.1.convs1.0.bias",
            "resnets.1.convs1.0.bias",
        );
    }
}
