//! Records the media of the running segment, for a film.

use std::sync::Arc;

use bytes::Bytes;
use fastvideo_mp4::SegmentIndex;
use fastvideo_proto::job::MediaKind;
use fastvideo_proto::stored::{JPEG, StoredMedia, StoredSegment};

use super::AttemptId;
use crate::causes::with_causes;
use crate::store::RecordedSegment;

/// The media of a segment that were handed out. They are the bytes that the client gets, and no copy.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    messages: Vec<Bytes>,
    mime: Option<String>,
    /// The attempt that the first media came from.
    first: Option<AttemptId>,
    blob: blake3::Hasher,
}

impl Recorder {
    /// Adds a message.
    pub(crate) fn add(&mut self, at: AttemptId, kind: &MediaKind, bytes: &Bytes) {
        self.first.get_or_insert(at);
        if let MediaKind::InitSegment { mime } = kind {
            self.mime.get_or_insert_with(|| mime.clone());
        }
        self.blob.update(bytes);
        self.messages.push(bytes.clone());
    }

    /// Ends the recording. `segment` has all that is known of it but its media.
    pub(crate) fn finish(
        mut self,
        segment: StoredSegment,
        thumbnail: Option<Bytes>,
    ) -> RecordedSegment {
        let samples = self.mime.is_some().then(|| {
            let messages = self.messages.iter().map(|message| &message[..]);
            SegmentIndex::read_messages(messages)
        });
        let samples = match samples.transpose() {
            Ok(samples) => samples,
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(error, "the segment cannot be a part of a film in one file");
                None
            }
        };
        let thumbnail = thumbnail.unwrap_or_default();
        self.blob.update(&thumbnail);
        let length = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let media = StoredMedia {
            blob: *self.blob.finalize().as_bytes(),
            messages: self.messages.iter().map(length).collect(),
            thumbnail_bytes: length(&thumbnail),
            samples,
        };
        let segment = StoredSegment {
            attempt: self.first.map_or(segment.attempt, |at| at.attempt),
            mime: self.mime.unwrap_or_else(|| JPEG.to_owned()),
            bytes: self.messages.iter().map(|bytes| bytes.len() as u64).sum(),
            media: Some(media),
            ..segment
        };
        let content = self.messages.into_iter().chain([thumbnail]).collect();
        RecordedSegment {
            segment: Arc::new(segment),
            content,
        }
    }
}
