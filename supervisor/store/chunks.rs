//! Bytes in several pieces.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// Bytes in several pieces, none of them empty. A clone shares all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunks(Arc<[Bytes]>);

impl Chunks {
    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|chunk| chunk.len() as u64).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.0.iter()
    }

    /// Returns what lies in a range, which is cut at the end of the bytes. Nothing is copied.
    pub fn slice(&self, range: Range<u64>) -> Self {
        let mut at = 0;
        let pieces = self.0.iter().filter_map(|chunk| {
            let start = at;
            at += chunk.len() as u64;
            let within = |place: u64| in_memory(place.clamp(start, at) - start);
            let (from, to) = (within(range.start), within(range.end));
            (from < to).then(|| chunk.slice(from..to))
        });
        pieces.collect()
    }

    /// Cuts the bytes into pieces of these lengths, and leaves what is behind them. Returns `None` when there are fewer
    /// bytes. A piece is copied only where it does not lie within one chunk.
    pub fn split(&self, lengths: impl IntoIterator<Item = u32>) -> Option<Vec<Bytes>> {
        let mut at = 0;
        let pieces = lengths.into_iter().map(|length| {
            let end = at + u64::from(length);
            let piece = self.slice(at..end);
            at = end;
            (piece.len() == u64::from(length)).then(|| piece.join())
        });
        pieces.collect()
    }

    /// Returns the bytes in one piece, which is copied unless there is only one.
    pub fn join(&self) -> Bytes {
        match &*self.0 {
            [] => Bytes::new(),
            [chunk] => chunk.clone(),
            chunks => {
                let mut joined = BytesMut::with_capacity(in_memory(self.len()));
                for chunk in chunks {
                    joined.extend_from_slice(chunk);
                }
                joined.freeze()
            }
        }
    }
}

impl From<Bytes> for Chunks {
    fn from(bytes: Bytes) -> Self {
        [bytes].into_iter().collect()
    }
}

impl FromIterator<Bytes> for Chunks {
    fn from_iter<I: IntoIterator<Item = Bytes>>(chunks: I) -> Self {
        Self(chunks.into_iter().filter(|c| !c.is_empty()).collect())
    }
}

impl IntoIterator for Chunks {
    type Item = Bytes;
    type IntoIter = std::vec::IntoIter<Bytes>;

    fn into_iter(self) -> Self::IntoIter {
        let chunks: Vec<Bytes> = self.iter().cloned().collect();
        chunks.into_iter()
    }
}

/// Returns a number of bytes that are in this process's memory.
fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("no more than fit into memory")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_have_the_bytes_of_the_whole(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..6),
            start in 0_u64..60,
            length in 0_u64..60,
            lengths in prop::collection::vec(0_u32..9, 0..8),
        ) {
            let whole = pieces.concat();
            let chunks: Chunks = pieces.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(chunks.len(), whole.len() as u64);
            prop_assert_eq!(&chunks.join(), &whole);
            let end = in_memory(start + length).min(whole.len());
            let expected = whole.get(in_memory(start)..end).unwrap_or_default();
            prop_assert_eq!(&chunks.slice(start..start + length).join(), expected);
            let total: u32 = lengths.iter().sum();
            match chunks.split(lengths.iter().copied()) {
                None => prop_assert!(total as usize > whole.len()),
                Some(split) => {
                    let parts: Vec<_> = split.iter().map(Bytes::len).collect();
                    let lengths: Vec<_> = lengths.iter().map(|l| *l as usize).collect();
                    prop_assert_eq!(parts, lengths);
                    prop_assert_eq!(&split.concat(), &whole[..total as usize]);
                }
            }
        }
    }

    #[test]
    fn what_lies_within_a_chunk_is_not_copied() {
        let chunk = Bytes::from_static(b"abcdef");
        let chunks: Chunks = [Bytes::from_static(b"xy"), chunk.clone()]
            .into_iter()
            .collect();
        let split = chunks.split([2, 3]).unwrap();
        assert_eq!(split[1].as_ptr(), chunk.as_ptr());
    }
}
