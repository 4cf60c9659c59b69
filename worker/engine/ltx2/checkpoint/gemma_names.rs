//! The tensor names of Gemma 3 in published files, and the names that the text encoder asks for.

/// The prefixes of tensors in the published files that encoding text does not need.
const SKIPPED: [&str; 3] = ["vision_tower.", "multi_modal_projector.", "lm_head."];

/// Returns the name of a tensor below the language model, from its name in any published file; `None` for a tensor of a
/// part that is not used here. A name of unknown form stays unchanged.
pub fn library_name(name: &str) -> Option<String> {
    let within = ["language_model.model.", "model.language_model."];
    if let Some(rest) = within.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        return Some(rest.to_owned());
    }
    let outer = ["model.", "language_model."];
    let bare = outer.iter().find_map(|prefix| name.strip_prefix(prefix));
    let bare = bare.unwrap_or(name);
    let skipped = SKIPPED.iter().any(|prefix| bare.starts_with(prefix));
    (!skipped).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_published_name_is_found_or_skipped() {
        let name = |name| library_name(name);
        let layer = Some("layers.0.mlp.up_proj.weight".to_owned());
        assert_eq!(
            name("language_model.model.layers.0.mlp.up_proj.weight"),
            layer
        );
        assert_eq!(
            name("model.language_model.layers.0.mlp.up_proj.weight"),
            layer
        );
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
