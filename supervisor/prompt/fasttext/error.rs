//! Why a file is not a usable model, and checks of the numbers in it.

use std::io;

pub(super) const MAGIC: i32 = 793_712_314;
/// The older of the two versions that can be read. They differ in one thing: supervised models of version 11 have no
/// subwords.
pub(super) const OLD_VERSION: i32 = 11;
pub(super) const VERSION: i32 = 12;

/// Why a file is not a usable model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("cannot read it")]
    Read(#[from] io::Error),
    #[error("not a file")]
    NotAFile,
    #[error("not a fastText model: it begins with {0:#010x}, expected {MAGIC:#010x}")]
    NotAModel(i32),
    #[error("a fastText model of version {0}, expected {OLD_VERSION} or {VERSION}")]
    Version(i32),
    #[error("not a classifier but a model of words, made by `fasttext skipgram` or `cbow`")]
    NotSupervised,
    #[error("cut off or damaged: {what} takes {needed} bytes and {left} are left")]
    Short {
        what: &'static str,
        needed: u64,
        left: u64,
    },
    #[error("damaged: {what} is {given}, expected {expected}")]
    Damaged {
        what: &'static str,
        given: i64,
        expected: String,
    },
    #[error("damaged: {0} holds a value that is not a finite number")]
    NotFinite(&'static str),
}

/// Returns the error for a value that no undamaged model has.
pub(super) fn damaged(what: &'static str, given: impl TryInto<i64>, expected: &str) -> ModelError {
    ModelError::Damaged {
        what,
        given: given.try_into().unwrap_or(i64::MAX),
        expected: expected.to_owned(),
    }
}

/// Checks that a number of the file is the expected one.
pub(super) fn check_equal(
    what: &'static str,
    given: usize,
    expected: usize,
) -> Result<(), ModelError> {
    match given == expected {
        true => Ok(()),
        false => Err(damaged(what, given, &expected.to_string())),
    }
}

/// Converts a number of the file, which must be between `min` and `max`, into the type that it has in memory.
pub(super) fn within<T: TryFrom<i32>>(
    what: &'static str,
    given: i32,
    min: i32,
    max: i32,
) -> Result<T, ModelError> {
    let fits = (min..=max).contains(&given);
    let value = T::try_from(given).ok().filter(|_| fits);
    value.ok_or_else(|| damaged(what, given, &format!("{min} to {max}")))
}
