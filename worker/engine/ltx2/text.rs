//! The text encoder: turns a prompt into the contexts that the transformer attends to.
//!
//! - `tokens`: the prompt's token ids;
//! - `gemma`: the language model; the outputs of all its layers are used;
//! - `connectors`: turn those outputs into one context for the picture and one for the sound.
//!
//! Only the tokens of the prompt itself are computed. The reference pads prompts on the left to the text length and
//! masks the padding everywhere, so leaving it out only saves time for short prompts.

pub mod connectors;
pub mod gemma;
pub mod tokens;

use std::num::NonZeroUsize;

use lru::LruCache;
use tch::Tensor;

use self::connectors::Connectors;
use self::gemma::Gemma;
use self::tokens::{Tokenizer, TokensError};
use crate::generation::Generation;

/// The contexts of one prompt, which the transformer attends to.
#[derive(Debug)]
pub struct Contexts {
    /// The context of the video, `[1, text, width]`.
    pub video: Tensor,
    /// The context of the audio, `[1, text, width]`.
    pub audio: Tensor,
}

impl Contexts {
    /// Returns a second handle to the same tensors.
    pub fn share(&self) -> Self {
        Self {
            video: self.video.shallow_clone(),
            audio: self.audio.shallow_clone(),
        }
    }
}

/// The tokenizer, the language model and the connectors, with an LRU cache of contexts.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: Tokenizer,
    gemma: Gemma,
    connectors: Connectors,
    /// The contexts of the latest prompts, each with the key of the adapters that act on it.
    recent: LruCache<(String, String), Contexts>,
}

impl TextEncoder {
    /// Creates a text encoder that caches the contexts of the latest `capacity` prompts.
    ///
    /// # Errors
    /// Returns an error when the tokenizer has ids that the language model does not have, or when the text length does
    /// not fit the connectors.
    pub fn new(
        tokenizer: Tokenizer,
        gemma: Gemma,
        connectors: Connectors,
        capacity: NonZeroUsize,
    ) -> Result<Self, TextError> {
        let (largest, vocabulary) = (tokenizer.largest_id(), gemma.vocabulary());
        if largest >= vocabulary {
            return Err(TextError::Vocabulary {
                largest,
                vocabulary,
            });
        }
        let (length, registers) = (tokenizer.length(), connectors.registers());
        if length % registers != 0 {
            return Err(TextError::Length { length, registers });
        }
        Ok(Self {
            tokenizer,
            gemma,
            connectors,
            recent: LruCache::new(capacity),
        })
    }

    /// Returns the widths of the contexts, for video and audio.
    pub fn widths(&self) -> [i64; 2] {
        self.connectors.widths()
    }

    /// Returns the generation of the model that the contexts are for.
    pub fn generation(&self) -> Generation {
        self.connectors.generation()
    }

    /// Returns the contexts of a prompt, which is truncated to the text length. `adapters` is the key of the adapters that
    /// change the connectors.
    ///
    /// # Errors
    /// Returns an error when the tokenizer cannot read the prompt.
    pub fn encode(&mut self, prompt: &str, adapters: &str) -> Result<Contexts, TextError> {
        let prompt = prompt.trim();
        let key = (prompt.to_owned(), adapters.to_owned());
        if let Some(contexts) = self.recent.get(&key) {
            return Ok(contexts.share());
        }
        let ids = self.tokenizer.encode(prompt)?;
        let contexts = tch::no_grad(|| {
            let length = self.tokenizer.length();
            let states = self.gemma.forward(&ids, length);
            self.connectors.forward(&states, length)
        });
        self.recent.put(key, contexts.share());
        Ok(contexts)
    }
}

/// The reason why a prompt, or any prompt, cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(
        "tokenizer does not fit the text encoder: its largest id is {largest}, the vocabulary ends before {vocabulary}"
    )]
    Vocabulary { largest: i64, vocabulary: i64 },
    #[error(
        "text length is {length} tokens, expected a multiple of the connectors' {registers} registers"
    )]
    Length { length: i64, registers: i64 },
    #[error(transparent)]
    Tokens(#[from] TokensError),
}
