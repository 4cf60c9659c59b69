//! Assembles a film into one ordinary MP4 file, with `moov` in front, by exact sample copy.
//!
//! A film exists as segments. Each has an init segment (`ftyp` and `moov`) and fragments (`moof` and `mdat`) with a
//! track of pictures, of sound, or both; the segments share one time line. This package does arithmetic on boxes and
//! nothing else: it reads no file, knows no codec, and never holds the media of more than the segment that it is
//! reading.
//!
//! - [`SegmentIndex`] is what the file needs to know of one segment. It is read once, when the segment's bytes are at
//!   hand, and can be stored beside them.
//! - [`Layout`] is the file made of the indexes of all segments: its first bytes, which it holds, and which bytes of
//!   which segment follow. A server answers any HTTP range with [`Layout::pieces`].
//!
//! Times, file by file:
//!
//! - The file starts at 0, with whatever is presented first, also when the film's first segment does not.
//! - The presentation times of all samples keep their distances, in a track and between the tracks. A track that begins
//!   later than the other, or whose first samples are not presented, has an edit list.
//! - A sample lasts until the next one of its track. So a gap between two segments lengthens the last sample before it,
//!   and an overlap shortens that sample. Players understand both, and many ignore edits in the middle of a film. An
//!   overlap that would leave nothing of that sample is an error.
//! - Segments with different timescales or sample entries share one track. FFmpeg follows a change of sample entries;
//!   Chromium's player stops there, so pictures should keep their size and encoder.
//!
//! The same input gives the same bytes: nothing in the file comes from a clock or a random number.
//!
//! ```
//! # fn film(segments: &[bytes::Bytes]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
//! use fastvideo_mp4::{Layout, Piece, SegmentIndex};
//!
//! let indexes = segments.iter().map(|bytes| SegmentIndex::read(bytes)).collect::<Result<Vec<_>, _>>()?;
//! let layout = Layout::new(&indexes)?;
//! let mut file = Vec::new();
//! for piece in layout.pieces(0..layout.size()) {
//!     match piece {
//!         Piece::Head(bytes) => file.extend_from_slice(&bytes),
//!         Piece::Media { segment, range } => {
//!             file.extend_from_slice(&segments[segment][range.start as usize..range.end as usize]);
//!         }
//!     }
//! }
//! # Ok(file)
//! # }
//! ```

#![forbid(unsafe_code)]

mod boxes;
mod error;
mod head;
mod index;
mod kind;
mod layout;
mod reader;
mod track;

#[cfg(test)]
mod tests;

pub use error::{IndexError, LayoutError};
pub use index::{Form, Message, SegmentIndex};
pub use kind::Kind;
pub use layout::{Layout, Part, Piece};
