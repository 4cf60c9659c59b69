//! Prompts on their way to a segment.
//!
//! `safety` keeps those from being used that a classifier calls unsafe; `fasttext` is the classifier.

pub mod fasttext;
pub mod safety;
