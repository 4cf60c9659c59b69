//! Bytes from anywhere are refused in words or make a film; nothing panics.

use proptest::prelude::*;

use super::*;
use crate::index::MAX_SAMPLES;

/// Reads bytes as a server would, and asserts that what is kept of them is bounded by their length.
fn try_all(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(index) = SegmentIndex::read(bytes) else {
        return Ok(());
    };
    let kept: usize = index
        .tracks
        .iter()
        .map(|track| {
            track.entries.iter().map(Bytes::len).sum::<usize>()
                + size_of_val(&track.chunks[..])
                + size_of_val(&track.sizes[..])
                + size_of_val(&track.runs[..])
        })
        .sum();
    // A run without fields takes 20 bytes, and its samples take a byte of media each.
    prop_assert!(kept <= 64 * bytes.len(), "{kept} bytes of {}", bytes.len());
    prop_assert!(kept <= 64 * MAX_SAMPLES + bytes.len());
    try_layout(&[index.clone(), index], bytes.len() as u64)
}

/// Asserts that a film of indexes, if there is one, is made of bytes that the segments have.
fn try_layout(indexes: &[SegmentIndex], size: u64) -> Result<(), TestCaseError> {
    for count in 1..=indexes.len() {
        let Ok(layout) = Layout::new(&indexes[..count]) else {
            continue;
        };
        let mut at = layout.head().len() as u64;
        for part in layout.parts() {
            prop_assert_eq!(part.at, at);
            prop_assert!(part.range.start < part.range.end && part.range.end <= size);
            prop_assert!(part.segment < count);
            at = part.end();
        }
        prop_assert_eq!(layout.size(), at);
        prop_assert!(layout.pieces(0..u64::MAX).count() == layout.parts().len() + 1);
        layout.duration();
    }
    Ok(())
}

/// What hostile numbers look like.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        0_u32..300,
        Just(u32::MAX),
        Just(1 << 31),
        Just((1 << 31) - 1),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        try_all(&bytes)?;
    }

    /// Numbers, lengths and kinds of boxes are among what is overwritten.
    #[test]
    fn a_segment_with_other_bytes(
        changes in prop::collection::vec((any::<prop::sample::Index>(), number(), 1_usize..5), 1..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = film(1)[0].bytes().to_vec();
        for (place, number, length) in changes {
            let place = place.index(bytes.len());
            let room = length.min(bytes.len() - place);
            bytes[place..place + room].copy_from_slice(&number.to_be_bytes()[4 - room..]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        try_all(&bytes)?;
    }

    /// Each number of an index is replaced, as by a store that was damaged or by somebody.
    #[test]
    fn an_index_with_other_numbers(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0_u32..64), 1..4),
    ) {
        let bytes = film(1)[0].bytes();
        let index = SegmentIndex::read(&bytes).unwrap();
        let mut json = serde_json::to_value(&index).unwrap();
        for (place, number, shift) in changes {
            let mut numbers = Vec::new();
            numbers_of(&mut json, &mut numbers);
            let place = place.index(numbers.len());
            *numbers[place] = (number >> shift).into();
        }
        if let Ok(index) = serde_json::from_value::<SegmentIndex>(json) {
            let size = index.size();
            try_layout(&[index.clone(), index], size)?;
        }
    }
}

fn numbers_of<'a>(value: &'a mut serde_json::Value, numbers: &mut Vec<&'a mut serde_json::Value>) {
    match value {
        serde_json::Value::Array(values) => {
            values
                .iter_mut()
                .for_each(|value| numbers_of(value, numbers));
        }
        serde_json::Value::Object(values) => {
            values
                .values_mut()
                .for_each(|value| numbers_of(value, numbers));
        }
        serde_json::Value::Number(_) => numbers.push(value),
        _ => {}
    }
}
