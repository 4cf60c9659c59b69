//! The tensor names of Gemma 3 in published files, and the names that the text encoder asks for.

/// The prefixes of tensors in the published files that encoding text does not need.
const SKIPPED: [&str; 3] = ["vision_tower.", "multi_modal_projector.", "lm_head."];

/// The modules of the language model.
const MODULES: [&str; 3] = ["embed_tokens.", "layers.", "norm."];

/// Returns the name of a tensor below the language model, from its name in any published file; `None` for a tensor of a
/// part that is not used here. A name of unknown form stays unchanged.
///
/// What is in front of the language model's names depends on the class that was saved and on the version of the
/// library: `language_model.model.` or `model.language_model.` for the whole model, `language_model.` without its head,
/// `model.` or nothing for the language model alone.
pub fn library_name(name: &str) -> Option<String> {
    let outer = ["model.", "language_model."];
    let mut bare = name;
    while let Some(rest) = outer.iter().find_map(|prefix| bare.strip_prefix(prefix)) {
        bare = rest;
    }
    if SKIPPED.iter().any(|prefix| bare.starts_with(prefix)) {
        return None;
    }
    let is_known = MODULES.iter().any(|module| bare.starts_with(module));
    Some(if is_known { bare } else { name }.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_published_name_is_found_or_skipped() {
        let name = |name| library_name(name);
        for tensor in [
            "layers.0.mlp.up_proj.weight",
            "embed_tokens.weight",
            "norm.weight",
        ] {
            for front in [
                "language_model.model.",
                "model.language_model.",
                "language_model.",
                "model.",
                "",
            ] {
                let stored = format!("{front}{tensor}");
                assert_eq!(library_name(&stored), Some(tensor.to_owned()), "{stored}");
            }
        }
        for skipped in [
            "vision_tower.vision_model.embeddings.position_embedding.weight",
            "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
            "multi_modal_projector.mm_soft_emb_norm.weight",
            "model.multi_modal_projector.mm_input_projection_weight",
            "lm_head.weight",
            "language_model.lm_head.weight",
        ] {
            assert_eq!(name(skipped), None, "{skipped}");
        }
        assert_eq!(name("decoder.x"), Some("decoder.x".to_owned()));
    }
}
