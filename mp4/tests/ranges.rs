//! A file is read in ranges.

use std::num::NonZeroU32;
use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::index::{Chunk, Edit, Run, Timing, Track};
use crate::{Kind, LayoutError, Part};

proptest! {
    #[test]
    fn any_range_is_a_slice_of_the_file(
        start in 0_u64..9_000,
        length in 0_u64..9_000,
        segments in 1_u64..4,
    ) {
        let segments: Vec<Bytes> = film(segments).iter().map(Segment::bytes).collect();
        let layout = layout(&segments);
        let whole = read(&layout, &segments, 0..u64::MAX);
        prop_assert_eq!(whole.len() as u64, layout.size());
        let slice = |at: u64| usize::try_from(at).unwrap().min(whole.len());
        let expected = &whole[slice(start)..slice(start + length)];
        prop_assert_eq!(read(&layout, &segments, start..start + length), expected);
    }
}

#[test]
fn each_byte_can_be_read_alone() {
    let segments: Vec<Bytes> = film(2).iter().map(Segment::bytes).collect();
    let layout = layout(&segments);
    let whole = read(&layout, &segments, 0..layout.size());
    for (at, byte) in (0..).zip(&whole) {
        assert_eq!(read(&layout, &segments, at..at + 1), [*byte]);
        assert!(read(&layout, &segments, at..at).is_empty());
    }
    let end = layout.size();
    assert!(read(&layout, &segments, end..end + 5).is_empty());
    assert_eq!(layout.pieces(Range { start: 5, end: 2 }).count(), 0);
}

#[test]
fn parts_are_the_bodies_of_the_fragments() {
    let film = film(2);
    let segments: Vec<Bytes> = film.iter().map(Segment::bytes).collect();
    let layout = layout(&segments);
    let mut at = layout.head().len() as u64;
    let mut expected = Vec::new();
    for (segment, made) in film.iter().enumerate() {
        let mut end = 0;
        for (number, message) in made.messages().iter().enumerate() {
            end += message.len() as u64;
            if number > 0 {
                let samples = made.fragments[number - 1]
                    .iter()
                    .flat_map(|track| &track.samples);
                let size: usize = samples.map(|sample| sample.data.len()).sum();
                let range = end - size as u64..end;
                expected.push(Part { at, segment, range });
                at += size as u64;
            }
        }
    }
    assert_eq!(layout.parts(), expected);
    assert_eq!(layout.size(), at);
}

/// An index of a track with samples of these sizes, which lie in a segment behind one another.
fn index(sizes: &[u32]) -> SegmentIndex {
    let samples = u32::try_from(sizes.len()).unwrap();
    let entry = [&32_u32.to_be_bytes()[..], &[0; 28]].concat();
    let chunk = |number: usize| Chunk {
        offset: 100 + sizes[..number].iter().copied().map(u64::from).sum::<u64>(),
        time: 1000 * number as u64,
        samples: 1,
        entry: 0,
    };
    let timing = Timing {
        duration: 1000,
        offset: 0,
        sync: true,
    };
    SegmentIndex {
        size: 100 + sizes.iter().copied().map(u64::from).sum::<u64>(),
        tracks: vec![Track {
            kind: Kind::Video,
            timescale: NonZeroU32::new(24_000).unwrap(),
            dimensions: [0; 2],
            edit: Edit::default(),
            entries: vec![entry.into()],
            chunks: (0..sizes.len()).map(chunk).collect(),
            sizes: sizes.to_vec(),
            runs: vec![Run { samples, timing }],
        }],
    }
}

/// The offsets of the only track's chunks, and the size of one.
fn offsets(head: &[u8]) -> (usize, Vec<u64>) {
    let place = |kind: &[u8; 4]| head.windows(4).position(|bytes| bytes == kind);
    let (at, size) = match (place(b"stco"), place(b"co64")) {
        (Some(at), None) => (at, 4),
        (None, Some(at)) => (at, 8),
        other => panic!("{other:?}"),
    };
    let count = u32::from_be_bytes(*head[at + 8..].first_chunk().unwrap()) as usize;
    let entries = head[at + 12..].chunks(size).take(count);
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    (size, entries.map(number).collect())
}

#[test]
fn large_files_have_large_offsets() {
    let four_gib = 1 << 32;
    for (sizes, offset_size, media_head) in [
        (vec![1 << 30, 1 << 30, 5], 4, 8),
        // The head of `mdat` holds the size, and the places behind the file's head need more.
        (vec![1 << 31, (1 << 31) - 20, 3], 8, 8),
        (vec![1 << 31, 1 << 31, 7], 8, 16),
        (vec![u32::MAX; 5], 8, 16),
    ] {
        let layout = Layout::new([&index(&sizes)]).unwrap();
        let head = layout.head();
        let (size, offsets) = offsets(head);
        assert_eq!(size, offset_size, "{sizes:?}");
        let media: u64 = sizes.iter().copied().map(u64::from).sum();
        assert_eq!(layout.size(), head.len() as u64 + media);
        let mut at = head.len() as u64;
        for (offset, size) in offsets.iter().zip(&sizes) {
            assert_eq!(*offset, at);
            at += u64::from(*size);
        }
        let box_size = media + media_head;
        let tail = &head[head.len() - usize::try_from(media_head).unwrap()..];
        if media_head == 8 {
            assert!(box_size < four_gib);
            assert_eq!(tail[..4], u32::try_from(box_size).unwrap().to_be_bytes());
        } else {
            assert_eq!(tail[..4], 1_u32.to_be_bytes());
            assert_eq!(tail[8..], box_size.to_be_bytes());
        }
        assert_eq!(tail[4..8], *b"mdat");
        let last = layout.size() - 2;
        let pieces: Vec<Piece> = layout.pieces(last..u64::MAX).collect();
        let [Piece::Media { segment: 0, range }] = &pieces[..] else {
            panic!("{pieces:?}");
        };
        assert_eq!(*range, 100 + media - 2..100 + media);
    }
}

/// The last place that fits into four bytes decides.
#[test]
fn offsets_are_small_while_the_file_is() {
    let head = Layout::new([&index(&[9, 8])]).unwrap().head().len() as u64;
    let rest = u32::try_from(u64::from(u32::MAX) - head - 7).unwrap();
    let size = |sizes: &[u32]| offsets(Layout::new([&index(sizes)]).unwrap().head()).0;
    assert_eq!(size(&[rest, 7]), 4);
    assert_eq!(size(&[rest, 8]), 8);
}

#[test]
fn an_index_that_was_damaged_is_refused() {
    type Change = fn(&mut SegmentIndex);
    let changes: [(&str, Change); 10] = [
        ("two tracks of one kind", |index| {
            let again = index.tracks[0].clone();
            index.tracks.push(again);
        }),
        ("sample entry", |index| index.tracks[0].chunks[0].entry = 1),
        ("sample entry", |index| {
            index.tracks[0].entries[0] = Bytes::from_static(&[0; 32]);
        }),
        ("sample entries", |index| {
            let entry = index.tracks[0].entries[0].clone();
            index.tracks[0].entries = vec![entry; 17];
        }),
        ("without bytes", |index| {
            index.tracks[0].chunks[1].offset = u64::MAX
        }),
        ("without bytes", |index| index.size = 102),
        ("without a size", |index| {
            index.tracks[0].chunks[1].samples = 2
        }),
        ("other sizes", |index| {
            index.tracks[0].runs[0].samples = u32::MAX
        }),
        ("2^56", |index| index.tracks[0].edit.media_time = u64::MAX),
        ("composition offset", |index| {
            index.tracks[0].runs[0].timing.offset = i64::MIN
        }),
    ];
    for (words, change) in changes {
        let mut damaged = index(&[9, 8]);
        change(&mut damaged);
        let error = Layout::new([&index(&[9, 8]), &damaged]).unwrap_err();
        let LayoutError::Damaged { segment: 1, what } = error else {
            panic!("{error:?}");
        };
        assert!(what.contains(words), "{what}, but not {words}");
    }
}
