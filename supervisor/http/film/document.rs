//! What is known of a film, as its JSON document.

use std::time::Duration;

use fastvideo_proto::api::film::{FilmDocument, FilmSegment};
use fastvideo_proto::ids::SessionId;
use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::stored::StoredSegment;

use crate::http::file::conditions::hex;
use crate::ingress::timestamp::rfc3339;
use crate::store::FilmView;

/// Describes a film that is kept for `ttl` after its session has ended.
pub(super) fn document(
    session_id: SessionId,
    view: &FilmView,
    format: VideoFormat,
    ttl: Duration,
    spectators: usize,
) -> FilmDocument {
    let segments = view.film.segments();
    let last = segments.last();
    let end = last.map(|segment| segment.start + segment.duration);
    let kept = segments.iter().filter(|segment| segment.media.is_some());
    let released = view.released.filter(|_| !view.goes_on());
    FilmDocument {
        session_id,
        mime: last.map(|segment| segment.mime.clone()),
        width: format.width,
        height: format.height,
        fps: format.fps,
        live: view.goes_on(),
        resumable: view.is_resumable,
        duration_ms: milliseconds(end.unwrap_or_default()),
        bytes: kept.map(|segment| segment.bytes).sum(),
        expires_at: released
            .and_then(|released| released.checked_add(ttl))
            .map(rfc3339),
        spectators: spectators as u64,
        segments: segments
            .iter()
            .map(|segment| film_segment(segment))
            .collect(),
    }
}

/// Describes a segment.
pub(in crate::http) fn film_segment(segment: &StoredSegment) -> FilmSegment {
    let media = segment.media.as_ref();
    FilmSegment {
        segment_idx: segment.segment_idx,
        start_ms: milliseconds(segment.start),
        duration_ms: milliseconds(segment.duration),
        bytes: segment.bytes,
        messages: media.map_or(0, |media| media.messages.len() as u64),
        sha256: hex(segment.sha256),
        kept: media.is_some(),
        thumbnail: media.is_some_and(|media| media.thumbnail_bytes > 0),
        prompt: segment.prompt.clone(),
        original_prompt: segment.original_prompt.clone(),
        prompt_source: segment.source,
        seed: segment.seed,
        num_inference_steps: segment.num_inference_steps,
        guidance_scale: segment.guidance_scale,
        attempt: segment.attempt,
        generation_time_ms: milliseconds(segment.generation),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
