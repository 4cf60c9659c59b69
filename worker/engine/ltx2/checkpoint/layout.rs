//! The layouts of a checkpoint, and the parts that it consists of.

/// The way in which the parts are arranged in their folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The layout in which diffusers saves a pipeline and in which `Lightricks/LTX-2` is published.
    Library,
    /// The layout that FastVideo's converter writes: the original tensor names, one file per part.
    Original,
    /// The authors' own file, which ComfyUI loads too: the original tensor names, all parts but the text encoder and the
    /// upsampler in one file with their configurations.
    SingleFile,
}

/// A network of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    TextEncoder,
    Connectors,
    Transformer,
    VideoVae,
    AudioVae,
    Vocoder,
    /// The upsampler, which only a checkpoint with a second stage has.
    Upsampler,
}

impl Component {
    /// All parts in loading order: the largest come first, so that a device that is too small is noticed early.
    pub const ALL: [Self; 7] = [
        Self::Transformer,
        Self::TextEncoder,
        Self::Connectors,
        Self::VideoVae,
        Self::Upsampler,
        Self::AudioVae,
        Self::Vocoder,
    ];

    /// Returns the library's name of the part.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder",
            Self::Connectors => "connectors",
            Self::Transformer => "transformer",
            Self::VideoVae => "vae",
            Self::AudioVae => "audio_vae",
            Self::Vocoder => "vocoder",
            Self::Upsampler => "latent_upsampler",
        }
    }

    /// Returns the folders where the part may be, the usual one first.
    pub(super) fn folders(self, layout: Layout) -> &'static [&'static str] {
        match (self, layout) {
            (
                Self::TextEncoder
                | Self::Connectors
                | Self::Transformer
                | Self::VideoVae
                | Self::AudioVae
                | Self::Vocoder,
                Layout::SingleFile,
            ) => &[],
            (Self::TextEncoder, Layout::Library) => &["text_encoder"],
            (Self::TextEncoder, Layout::Original) => &["text_encoder/gemma"],
            (Self::Connectors, Layout::Library) => &["connectors"],
            (Self::Connectors, Layout::Original) => &["text_encoder", "text_embedding_projection"],
            (Self::Transformer, _) => &["transformer"],
            (Self::VideoVae, _) => &["vae"],
            (Self::AudioVae, _) => &["audio_vae"],
            (Self::Vocoder, _) => &["vocoder"],
            (Self::Upsampler, _) => &["latent_upsampler", "spatial_upscaler", "spatial_upsampler"],
        }
    }
}
