//! Segments are made box by box, assembled, and the file is read back by `mp4-atom` alone.

mod damage;
mod file;
mod indexing;
mod properties;
mod ranges;
mod segment;
mod timing;

use bytes::Bytes;

use self::file::File;
use self::segment::{Segment, Sound, Video};
use crate::{Layout, Piece, SegmentIndex};

/// Indexes segments and makes a file of them.
fn layout(segments: &[Bytes]) -> Layout {
    let indexes: Vec<SegmentIndex> = segments
        .iter()
        .map(|bytes| SegmentIndex::read(bytes).unwrap())
        .collect();
    Layout::new(&indexes).unwrap()
}

/// Reads bytes of the file as a server does.
fn read(layout: &Layout, segments: &[Bytes], range: std::ops::Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in layout.pieces(range) {
        match piece {
            Piece::Head(head) => bytes.extend_from_slice(&head),
            Piece::Media { segment, range } => {
                let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
                assert!(start < end, "an empty piece");
                bytes.extend_from_slice(&segments[segment][start..end]);
            }
        }
    }
    bytes
}

fn assemble(segments: &[Segment]) -> File {
    let segments: Vec<Bytes> = segments.iter().map(Segment::bytes).collect();
    let layout = layout(&segments);
    let bytes = read(&layout, &segments, 0..layout.size());
    File::of(bytes)
}

/// Segments of pictures and sound without gaps: 12 pictures of 1/24 s, and blocks of 1024 samples at 24 kHz.
fn film(segments: u64) -> Vec<Segment> {
    (0..segments)
        .map(|segment| {
            let first = 12 * segment;
            let block = |picture: u64| (picture * 1000).div_ceil(1024);
            let fragments = [
                first..first + 1,
                first + 1..first + 6,
                first + 6..first + 12,
            ];
            let mut made = Segment::new(&[Video::TRACK, Sound::TRACK]);
            for pictures in fragments {
                made.fragment(&[
                    Video::samples(pictures.clone()),
                    Sound::samples(block(pictures.start)..block(pictures.end)),
                ]);
            }
            made
        })
        .collect()
}
