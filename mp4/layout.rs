//! The file that the segments of a film make.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use crate::error::LayoutError;
use crate::head::{Head, Movie};
use crate::index::SegmentIndex;
use crate::kind::Kind;
use crate::track::FilmTrack;

/// The most media of a film, in bytes, so that places in its file do not overflow.
const MAX_MEDIA_SIZE: u64 = 1 << 62;

/// A file: its first bytes, and where the others are.
///
/// It holds `moov`, which has about 6 bytes per sample, and none of the media.
#[derive(Clone, Debug)]
pub struct Layout {
    head: Bytes,
    parts: Vec<Part>,
    size: u64,
    duration: Duration,
}

/// Bytes of the file that are bytes of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The place of its first byte in the file.
    pub at: u64,
    /// The segment, counted in the list of indexes from 0.
    pub segment: usize,
    /// Which bytes of the segment; not empty.
    pub range: Range<u64>,
}

/// What comes next in a range of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes, which the layout holds.
    Head(Bytes),
    /// These bytes of a segment, which is counted in the list of indexes from 0.
    Media { segment: usize, range: Range<u64> },
}

impl Layout {
    /// Makes a file of the segments of a film, in order. Segments without samples add nothing.
    ///
    /// The media of the file lie in the order of the segments' own, so the samples of both tracks stay interleaved.
    ///
    /// # Errors
    /// Returns an error when there is no sample, when a segment begins before the last sample of its predecessor, or
    /// when an ordinary file has no room for a number.
    pub fn new<'a>(
        segments: impl IntoIterator<Item = &'a SegmentIndex>,
    ) -> Result<Self, LayoutError> {
        let segments: Vec<&SegmentIndex> = segments.into_iter().collect();
        for (segment, index) in segments.iter().enumerate() {
            let damaged = |what| LayoutError::Damaged { segment, what };
            index.check().map_err(damaged)?;
        }
        let tracks = [Kind::Video, Kind::Sound]
            .into_iter()
            .filter_map(|kind| FilmTrack::join(kind, &segments).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        if tracks.is_empty() {
            return Err(LayoutError::Empty);
        }
        let mut media = Media::default();
        let mut chunks = vec![Vec::new(); tracks.len()];
        for (segment, index) in segments.iter().enumerate() {
            for (chunk, bytes) in chunks_in_order(index, &tracks) {
                chunks[chunk].push(media.size);
                media.add(segment, bytes)?;
            }
        }
        let too_long = |error| LayoutError::TooLong(Some(error));
        let movie = Movie::of(&tracks).map_err(too_long)?;
        let head = Head {
            movie,
            tracks: &tracks,
            chunks: &chunks,
            media_size: media.size,
        };
        let head = head.encode().map_err(too_long)?;
        Ok(media.behind(head, movie))
    }

    /// `ftyp`, `moov` and the header of `mdat`: the first bytes of the file.
    pub fn head(&self) -> &Bytes {
        &self.head
    }

    /// The bytes after the head, in order. Together they reach to the file's end.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The length of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How long the file plays.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Returns the bytes of a range of the file, piece by piece. What is behind the file's end is left out.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Piece> {
        let head_size = self.head.len() as u64;
        let end = if range.is_empty() {
            0
        } else {
            range.end.min(self.size)
        };
        let head = (range.start < head_size.min(end)).then(|| {
            let [start, end] = [range.start, end.min(head_size)]
                .map(|at| usize::try_from(at).expect("the head is in memory"));
            Piece::Head(self.head.slice(start..end))
        });
        let first = self.parts.partition_point(|part| part.end() <= range.start);
        let parts = self.parts[first..].iter();
        let media = parts
            .take_while(move |part| part.at < end)
            .map(move |part| part.cut(range.start, end));
        head.into_iter().chain(media)
    }
}

impl Part {
    /// The place after its last byte in the file.
    pub fn end(&self) -> u64 {
        self.at + (self.range.end - self.range.start)
    }

    /// Returns what of it is between two places in the file.
    fn cut(&self, start: u64, end: u64) -> Piece {
        let skipped = start.saturating_sub(self.at);
        let missing = self.end().saturating_sub(end);
        Piece::Media {
            segment: self.segment,
            range: self.range.start + skipped..self.range.end - missing,
        }
    }
}

/// Returns the chunks of a segment in the order of their bytes: each one's place in `tracks`, and its bytes. Those of
/// one track stay in decode order.
fn chunks_in_order(index: &SegmentIndex, tracks: &[FilmTrack]) -> Vec<(usize, Range<u64>)> {
    let mut chunks = Vec::new();
    for (place, film_track) in tracks.iter().enumerate() {
        let Some(track) = index.track(film_track.kind) else {
            continue;
        };
        let mut sizes = track.sizes.iter();
        // A chunk that lies before its predecessor comes after it nevertheless.
        let mut order = 0;
        for chunk in &track.chunks {
            let sizes = sizes.by_ref().take(chunk.samples as usize);
            let size: u64 = sizes.copied().map(u64::from).sum();
            order = chunk.offset.max(order);
            chunks.push((order, place, chunk.offset..chunk.offset + size));
        }
    }
    chunks.sort_by_key(|&(order, place, _)| (order, place));
    let chunks = chunks.into_iter();
    chunks.map(|(_, place, bytes)| (place, bytes)).collect()
}

/// The body of `mdat`. Places count from its start.
#[derive(Debug, Default)]
struct Media {
    parts: Vec<Part>,
    size: u64,
}

impl Media {
    fn add(&mut self, segment: usize, range: Range<u64>) -> Result<(), LayoutError> {
        let at = self.size;
        let size = at.checked_add(range.end - range.start);
        let size = size.filter(|size| *size <= MAX_MEDIA_SIZE);
        self.size = size.ok_or(LayoutError::TooLong(None))?;
        match self.parts.last_mut() {
            Some(last) if last.segment == segment && last.range.end == range.start => {
                last.range.end = range.end;
            }
            _ => self.parts.push(Part { at, segment, range }),
        }
        Ok(())
    }

    /// Puts the media behind the head of their file, which has room for their size.
    fn behind(mut self, head: Vec<u8>, movie: Movie) -> Layout {
        let head_size = head.len() as u64;
        for part in &mut self.parts {
            part.at += head_size;
        }
        Layout {
            head: head.into(),
            parts: self.parts,
            size: head_size + self.size,
            duration: movie.length(),
        }
    }
}
