//! Prompts on their way to a segment.
//!
//! `safety` keeps those from being used that a classifier calls unsafe; `fasttext` is the classifier.

pub mod fasttext;
pub mod safety;

/// What is done with prompts.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Prompts are used without being looked at when absent.
    pub safety: Option<safety::Config>,
}
