//! Parts of a job's record: its files, and its end.

use bytes::Bytes;
use fastvideo_proto::stored_video::{PendingWebhook, StoredFile, StoredVideo, VideoStatus};

use super::clock::{millis, unix_ms};
use super::config::Config;
use super::failure::Failure;
use crate::store::NewBlob;

/// Adds a file to the blobs of a version. Returns how the record names it.
pub(super) fn add_file(bytes: Bytes, blobs: &mut Vec<NewBlob>) -> StoredFile {
    let (file, blob) = NewBlob::file(bytes.into());
    blobs.push(blob);
    file
}

/// Makes a job a failed one, of which nothing but the record stays.
pub(super) fn fail(video: &mut StoredVideo, failure: &Failure, config: &Config) {
    let status = VideoStatus::Failed {
        code: failure.code.to_owned(),
        message: failure.message.clone(),
    };
    video.film.clear();
    video.extended_segments = 0;
    video.image = None;
    video.state = None;
    video.tiles = None;
    video.thumbnail = None;
    video.spritesheet = None;
    end(video, status, config);
}

/// Ends a job. It is kept for as long as the operator says, and the operator's webhook is to be told.
pub(super) fn end(video: &mut StoredVideo, status: VideoStatus, config: &Config) {
    let now = unix_ms();
    video.status = status;
    video.ended_at_ms = Some(now);
    let retention = config.retention.map(millis);
    video.expires_at_ms = retention.map(|time| now.saturating_add(time));
    video.webhook = config.webhook.as_ref().map(|_| pending(now));
}

/// Makes the message about the end of a job that ends now.
fn pending(now_ms: u64) -> PendingWebhook {
    PendingWebhook {
        event: format!("evt_{:032x}", rand::random::<u128>()),
        created_at_ms: now_ms,
    }
}
