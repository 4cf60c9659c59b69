//! The indexes of a film's segments, as they come from a store that others write to.
#![no_main]

use fastvideo_mp4::{Layout, Piece, SegmentIndex};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(indexes) = postcard::from_bytes::<Vec<SegmentIndex>>(data) else {
        return;
    };
    let Ok(layout) = Layout::new(&indexes) else {
        return;
    };
    // The file has all that it says, and nothing from outside of a segment.
    let mut size = 0;
    for piece in layout.pieces(0..layout.size()) {
        size += match piece {
            Piece::Head(bytes) => bytes.len() as u64,
            Piece::Media { segment, range } => {
                assert!(range.start < range.end && range.end <= indexes[segment].size());
                range.end - range.start
            }
        };
    }
    assert_eq!(size, layout.size());
});
