//! The tokenizer: turns a prompt into token ids.

use std::fmt;
use std::path::Path;

use serde_json::Value;

/// The highest number of tokens that LTX-2 was trained on; its pipeline truncates longer prompts.
pub const MAX_LENGTH: i64 = 1024;

const BEGIN: &str = "<bos>";

/// A tokenizer with a single word.
const WORDS: &[u8] = br#"{
    "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"<bos>": 0, "word": 1}, "unk_token": "word"}
}"#;

/// A `tokenizer.json` and the number of tokens that a context has.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    begin: i64,
    length: i64,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

/// The reason why there are no token ids.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error("tokenizer {path}: {reason}")]
    Open { path: String, reason: String },
    #[error("tokenizer cannot read the prompt: {0}")]
    Encode(String),
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; prompts will have at most `length` tokens.
    ///
    /// # Errors
    /// Returns an error when the file is not a tokenizer, or has no token for the beginning of a text.
    pub fn open(path: &Path, length: i64) -> Result<Self, TokensError> {
        let fail = |reason: String| TokensError::Open {
            path: path.display().to_string(),
            reason,
        };
        let inner =
            tokenizers::Tokenizer::from_file(path).map_err(|error| fail(error.to_string()))?;
        Self::of(inner, length, fail)
    }

    /// Creates a tokenizer that makes the same token of every word: for random weights.
    ///
    /// # Panics
    /// Does not: it is made of a constant.
    pub fn of_words(length: i64) -> Self {
        let inner = tokenizers::Tokenizer::from_bytes(WORDS).expect("a tokenizer of this program");
        Self::of(inner, length, |reason| TokensError::Open {
            path: "of words".to_owned(),
            reason,
        })
        .expect("a tokenizer of this program")
    }

    fn of(
        mut inner: tokenizers::Tokenizer,
        length: i64,
        fail: impl Fn(String) -> TokensError,
    ) -> Result<Self, TokensError> {
        // The file's padding settings are for other uses of the tokenizer.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| fail(error.to_string()))?;
        let begin = inner
            .token_to_id(BEGIN)
            .ok_or_else(|| fail(format!("no token `{BEGIN}`")))?;
        Ok(Self {
            inner,
            begin: begin.into(),
            length,
        })
    }

    /// Returns the ids of a prompt, from 1 to [`Self::length`] of them, beginning with the token for the beginning of a
    /// text and without padding.
    ///
    /// # Errors
    /// Returns an error when the tokenizer cannot read the prompt.
    pub fn encode(&self, prompt: &str) -> Result<Vec<i64>, TokensError> {
        let encoding = self
            .inner
            .encode_fast(prompt.trim(), false)
            .map_err(|error| TokensError::Encode(error.to_string()))?;
        let ids = encoding.get_ids().iter().map(|&id| i64::from(id));
        let length = usize::try_from(self.length).unwrap_or(0);
        Ok(std::iter::once(self.begin)
            .chain(ids)
            .take(length)
            .collect())
    }

    /// Returns the number of tokens of a context, including padding.
    pub fn length(&self) -> i64 {
        self.length
    }

    /// Returns the largest id that a prompt can contain.
    pub fn largest_id(&self) -> i64 {
        let ids = self.inner.get_vocab(true);
        ids.values().copied().max().unwrap_or(0).into()
    }
}

/// Returns the number of tokens of a context in the library: the value in `tokenizer_config.json`, up to
/// [`MAX_LENGTH`].
pub fn library_length(tokenizer_config: &Value) -> i64 {
    // Tokenizers without a limit have the value 1e30.
    let length = tokenizer_config.get("model_max_length");
    let length = length.and_then(Value::as_i64).unwrap_or(MAX_LENGTH);
    length.clamp(1, MAX_LENGTH)
}
