//! Why a segment or a film is refused.

use mp4_atom::FourCC;

use crate::kind::Kind;

/// Why bytes cannot be indexed as a segment. `at` is a place in the segment, mostly that of a box, in bytes.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// A box does not end within the box or the message around it, or has no size.
    #[error("the box at byte {at} does not end within what holds it")]
    Cut { at: u64 },

    #[error("the box `{kind}` at byte {at} cannot be read")]
    Box {
        kind: FourCC,
        at: u64,
        #[source]
        source: mp4_atom::Error,
    },

    #[error("the box `{kind}` is missing in what begins at byte {at}")]
    Missing { kind: FourCC, at: u64 },

    /// The boxes can be read, but what they say is wrong.
    #[error("{what} (at byte {at})")]
    Invalid { what: &'static str, at: u64 },

    /// The segment may be right, but ordinary MP4 cannot say the same, or this package does not know how.
    #[error("{what} (at byte {at}): not supported")]
    Unsupported { what: &'static str, at: u64 },
}

/// Why segments cannot be made into one file. `segment` counts in the list of indexes, from 0.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// No segment has a sample.
    #[error("the film is empty")]
    Empty,

    /// The index was not read from a segment, or was damaged since.
    #[error("the index of segment {segment} is damaged: {what}")]
    Damaged { segment: usize, what: &'static str },

    /// A sample begins where the one before it begins, or earlier.
    #[error("the {kind} of segment {segment} begins before the last sample that comes before it")]
    Overlap { segment: usize, kind: Kind },

    #[error("the timescales of the segments' {kind} have no common multiple below 2^32")]
    Timescale { kind: Kind },

    /// A time, a count or a size exceeds what its field in the file can hold.
    #[error("the film is too long for an MP4 file")]
    TooLong(#[source] Option<mp4_atom::Error>),
}
