//! The bytes of a film's files, which stay in the store until they are sent.

use std::iter;
use std::ops::Range;
use std::slice;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use fastvideo_mp4::{Layout, Piece};
use fastvideo_proto::stored::StoredSegment;
use fastvideo_proto::stored_video::StoredFile;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};

use crate::causes::with_causes;
use crate::store::{Chunks, DataLoss, SessionStore, StoreError};

/// The most that is read at once, and so the most that an answer holds in memory beside its layout.
const MAX_READ_BYTES: u64 = 256 << 10;

/// Where the bytes of a file are.
#[derive(Debug)]
pub(in crate::http) enum Content {
    Bytes(Bytes),
    /// A file of a video.
    Stored(StoredFile),
    /// These bytes of a segment's blob.
    Segment(Arc<StoredSegment>, Range<u64>),
    /// Several segments as one MP4 file.
    Film {
        /// The segments, as the layout counts them.
        segments: Vec<Arc<StoredSegment>>,
        layout: Layout,
    },
}

impl Content {
    /// Returns the number of bytes.
    pub(in crate::http) fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Stored(file) => file.bytes,
            Self::Segment(_, range) => range.end - range.start,
            Self::Film { layout, .. } => layout.size(),
        }
    }

    /// Reads the bytes of a range, and returns them as a body that reads the rest when the client takes it. A body whose
    /// bytes cannot be read ends with an error, which closes the connection.
    ///
    /// # Errors
    /// Returns an error when the first bytes cannot be read.
    pub(in crate::http) async fn body(
        self,
        range: Range<u64>,
        store: &SessionStore,
    ) -> Result<Body, StoreError> {
        let first = self.read(range.clone(), store).await?;
        let rest = range.start + first.len()..range.end;
        let store = store.clone();
        let rest = stream::try_unfold((self, rest), move |(content, rest)| {
            content.next(rest, store.clone())
        });
        let rest = rest.map_ok(pieces).try_flatten();
        Ok(Body::from_stream(pieces(first).chain(rest)))
    }

    /// Reads the next bytes of a body. Returns them and where it goes on, or `None` at its end.
    async fn next(
        self,
        range: Range<u64>,
        store: SessionStore,
    ) -> Result<Option<(Chunks, (Self, Range<u64>))>, StoreError> {
        if range.is_empty() {
            return Ok(None);
        }
        let bytes = self
            .read(range.clone(), &store)
            .await
            .inspect_err(|failed| {
                let error = with_causes(failed);
                tracing::debug!(error, "answer cut: its media cannot be read any more");
            })?;
        let rest = range.start + bytes.len()..range.end;
        Ok(Some((bytes, (self, rest))))
    }

    /// Reads the first bytes of a range that is not empty.
    async fn read(&self, range: Range<u64>, store: &SessionStore) -> Result<Chunks, StoreError> {
        match self {
            Self::Bytes(bytes) => Ok(Chunks::from(bytes.clone()).slice(range)),
            Self::Stored(file) => {
                let end = range.end.min(range.start + MAX_READ_BYTES);
                let bytes = store.file_range(file, range.start..end).await?;
                match bytes.is_empty() {
                    true => Err(DataLoss::MediaNotKept.into()),
                    false => Ok(bytes),
                }
            }
            Self::Segment(segment, whole) => {
                let start = whole.start + range.start;
                let end = (whole.start + range.end).min(start + MAX_READ_BYTES);
                read_parts(segment, slice::from_ref(&(start..end)), store).await
            }
            Self::Film { segments, layout } => match next_read(layout, range) {
                Read::Head(bytes) => Ok(bytes.into()),
                Read::Media { segment, parts } => {
                    read_parts(&segments[segment], &parts, store).await
                }
            },
        }
    }
}

fn pieces(chunks: Chunks) -> impl Stream<Item = Result<Bytes, StoreError>> {
    stream::iter(chunks.into_iter().map(Ok))
}

/// What is read of a film at once.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    Head(Bytes),
    /// These bytes of a segment, in order.
    Media {
        segment: usize,
        parts: Vec<Range<u64>>,
    },
}

/// Chooses what is read first of a range of a film: the head, or parts of one segment that lie close together.
fn next_read(layout: &Layout, range: Range<u64>) -> Read {
    let mut pieces = layout.pieces(range);
    let (segment, first) = match pieces.next() {
        None => return Read::Head(Bytes::new()),
        Some(Piece::Head(bytes)) => return Read::Head(bytes),
        Some(Piece::Media { segment, range }) => (segment, range),
    };
    let limit = first.start + MAX_READ_BYTES;
    let first = first.start..first.end.min(limit);
    let mut end = first.end;
    let more = pieces.map_while(|piece| match piece {
        Piece::Media { segment: of, range }
            if of == segment && range.start >= end && range.end <= limit =>
        {
            end = range.end;
            Some(range)
        }
        _ => None,
    });
    let parts = iter::once(first).chain(more).collect();
    Read::Media { segment, parts }
}

/// Reads parts of a segment's blob, with what lies between them, and returns the parts.
async fn read_parts(
    segment: &StoredSegment,
    parts: &[Range<u64>],
    store: &SessionStore,
) -> Result<Chunks, StoreError> {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        return Ok(Chunks::default());
    };
    let (start, end) = (first.start, last.end);
    let bytes = store.media_range(segment, start..end).await?;
    if bytes.len() != end - start {
        return Err(DataLoss::MediaNotKept.into());
    }
    let parts = parts.iter();
    let parts = parts.map(|part| bytes.slice(part.start - start..part.end - start));
    Ok(parts.flat_map(Chunks::into_iter).collect())
}
