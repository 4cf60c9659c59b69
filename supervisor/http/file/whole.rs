//! Several segments as one MP4 file: a whole film, or the video of a job.

use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode};
use fastvideo_mp4::{Layout, LayoutError};
use fastvideo_proto::stored::{StoredMedia, StoredSegment};
use sha2::{Digest, Sha256};

use super::conditions::EntityTag;
use super::content::Content;
use super::{File, REVALIDATE, not_kept};
use crate::ingress::error::ApiError;

/// Lays out the segments of a film that can be a part of it, on a thread for blocking work: an hour of film takes
/// milliseconds.
///
/// # Errors
/// Returns a refusal when there is none.
pub(in crate::http) async fn whole(known: &[Arc<StoredSegment>]) -> Result<File, ApiError> {
    let segments: Vec<_> = known.iter().filter(|s| is_part(s)).cloned().collect();
    if segments.is_empty() {
        return Err(match known.iter().any(|s| s.is_pictures()) {
            true => no_video(),
            false => not_kept(),
        });
    }
    match tokio::task::spawn_blocking(|| lay_out(segments)).await {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(LayoutError::Empty)) => Err(not_kept()),
        Ok(Err(failed)) => Err(ApiError::internal(&failed)),
        Err(panic) => Err(ApiError::internal(&panic)),
    }
}

fn lay_out(segments: Vec<Arc<StoredSegment>>) -> Result<File, LayoutError> {
    let media = segments.iter().filter_map(|segment| segment.media.as_ref());
    let layout = Layout::new(media.filter_map(|media| media.samples.as_ref()))?;
    // The head says where all samples are, so that both together are a strong tag.
    let mut hash = Sha256::new_with_prefix(layout.head());
    for segment in &segments {
        hash.update(segment.sha256);
    }
    Ok(File {
        content: Content::Film { segments, layout },
        tag: EntityTag::of(hash.finalize().into()),
        mime: "video/mp4",
        caching: REVALIDATE,
    })
}

fn is_part(segment: &StoredSegment) -> bool {
    let samples = |media: &StoredMedia| media.samples.is_some();
    segment.media.as_ref().is_some_and(samples)
}

/// Lists the segments that are not in the file, as in `0-2,7`; `None` when all are.
pub(in crate::http) fn missing(known: &[Arc<StoredSegment>]) -> Option<HeaderValue> {
    let mut runs = Vec::new();
    let mut next = 0;
    let parts = known.iter().filter(|segment| is_part(segment));
    let end = known.last().map_or(0, |segment| segment.segment_idx + 1);
    for idx in parts.map(|segment| segment.segment_idx).chain([end]) {
        if next < idx {
            runs.push((next, idx));
        }
        next = idx + 1;
    }
    let runs = runs.iter().map(|&(from, until)| match until - from {
        1 => from.to_string(),
        _ => format!("{from}-{}", until - 1),
    });
    let list = runs.collect::<Vec<_>>().join(",");
    HeaderValue::try_from(list)
        .ok()
        .filter(|list| !list.is_empty())
}

/// Answers that a session whose media are pictures has no video.
pub(in crate::http) fn no_video() -> ApiError {
    let message = "the session's media are pictures, which make no video";
    ApiError::new(StatusCode::NOT_FOUND, "no_video", message)
}
