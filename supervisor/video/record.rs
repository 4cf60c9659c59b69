//! Parts of a job's record: its files, and its end.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fastvideo_proto::stored_video::{StoredFile, StoredVideo, VideoStatus};

use super::failure::Failure;
use crate::store::NewBlob;

/// Adds a file to the blobs of a version. Returns how the record names it.
pub(super) fn add_file(bytes: Bytes, blobs: &mut Vec<NewBlob>) -> StoredFile {
    let (file, blob) = NewBlob::file(bytes.into());
    blobs.push(blob);
    file
}

/// Makes a job a failed one, of which nothing but the record stays, for as long as `retention` says.
pub(super) fn fail(video: &mut StoredVideo, failure: &Failure, retention: Option<Duration>) {
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
    end(video, status, retention);
}

/// Ends a job.
pub(super) fn end(video: &mut StoredVideo, status: VideoStatus, retention: Option<Duration>) {
    let now = unix_ms();
    video.status = status;
    video.ended_at_ms = Some(now);
    video.expires_at_ms = retention.map(|time| now.saturating_add(millis(time)));
}

/// Returns the time in milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, millis)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
