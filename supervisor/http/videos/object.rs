//! What clients see of a video job.

use fastvideo_proto::api::videos::{Video, VideoFailure, VideoPhase, VideoSegments, VideoState};
use fastvideo_proto::ids::VideoId;
use fastvideo_proto::stored_video::{StoredVideo, VideoStatus};

/// The progress of a job whose frames are all made, but whose content cannot be fetched yet.
const ALMOST: u32 = 99;

/// What only the server that runs a job knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct Live {
    /// It has no effect on a job that has ended.
    pub(in crate::http) phase: VideoPhase,
    /// From 0 to 99.
    pub(in crate::http) progress: u32,
    /// The number of jobs before this one. It has no effect on one that does not wait for its first segment.
    pub(in crate::http) queue_position: Option<u64>,
}

/// Returns what clients see of a job. `bytes` is the size of its content, where that can be fetched.
pub(in crate::http) fn video(
    id: VideoId,
    stored: &StoredVideo,
    live: Live,
    bytes: Option<u64>,
) -> Video {
    let (status, error) = match &stored.status {
        VideoStatus::Queued => (VideoState::Queued, None),
        VideoStatus::InProgress => (VideoState::InProgress, None),
        VideoStatus::Completed => (VideoState::Completed, None),
        VideoStatus::Failed { code, message } => {
            let (code, message) = (code.clone(), message.clone());
            (VideoState::Failed, Some(VideoFailure { code, message }))
        }
    };
    let is_completed = status == VideoState::Completed;
    let plan = &stored.plan;
    let total = u32::try_from(plan.segments.len()).unwrap_or(u32::MAX);
    let request = &stored.request;
    let (width, height) = plan.shown;
    Video {
        id: id.to_string(),
        object: "video".into(),
        model: stored.model.clone(),
        status,
        progress: match is_completed {
            true => 100,
            false => live.progress.min(ALMOST),
        },
        phase: match stored.status.is_end() {
            true => VideoPhase::Done,
            false => live.phase,
        },
        queue_position: live.queue_position.filter(|_| status == VideoState::Queued),
        segments: VideoSegments {
            done: match is_completed {
                true => total,
                false => stored.segments_done(),
            },
            total,
        },
        created_at: stored.created_at_ms / 1000,
        started_at: stored.started_at_ms.map(|ms| ms / 1000),
        completed_at: stored
            .ended_at_ms
            .filter(|_| is_completed)
            .map(|ms| ms / 1000),
        expires_at: stored.expires_at_ms.map(|ms| ms / 1000),
        prompt: request.prompt.clone(),
        negative_prompt: request.negative_prompt.clone(),
        size: format!("{width}x{height}"),
        seconds: seconds(plan.frames(), plan.fps),
        fps: plan.fps,
        num_frames: plan.frames(),
        seed: request.seed,
        num_inference_steps: request.num_inference_steps,
        guidance_scale: request.guidance_scale,
        media_type: "video/mp4".into(),
        has_audio: stored.has_audio,
        bytes: bytes.filter(|_| is_completed),
        inference_time_s: stored.inference.as_secs_f64(),
        remixed_from_video_id: stored.remixed_from.map(|id| id.to_string()),
        extended_from_video_id: stored.extended_from.map(|id| id.to_string()),
        metadata: stored.metadata.clone(),
        error,
    }
}

/// Returns how long that many frames play, in seconds, rounded to thousandths, without zeros at the end.
fn seconds(frames: u64, fps: u32) -> String {
    let fps = u128::from(fps.max(1));
    let ms = (u128::from(frames) * 1000 + fps / 2) / fps;
    let text = format!("{}.{:03}", ms / 1000, ms % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use fastvideo_proto::stored_video::{PlannedSegment, StoredVideoRequest, VideoPlan};
    use serde_json::json;

    use super::*;

    const LIVE: Live = Live {
        phase: VideoPhase::Generating,
        progress: 42,
        queue_position: Some(3),
    };

    /// A job of 15 frames.
    pub(in crate::http::videos) fn stored(status: VideoStatus) -> StoredVideo {
        let segment = |frames| PlannedSegment {
            made_frames: 9,
            frames,
        };
        StoredVideo {
            started_at_ms: Some(1_800_000_002_001),
            ended_at_ms: Some(1_800_000_009_500),
            expires_at_ms: Some(1_800_086_409_500),
            status,
            inference: Duration::from_millis(1500),
            has_audio: Some(true),
            metadata: [("shot".to_owned(), "7".to_owned())].into(),
            ..StoredVideo::queued(
                1_800_000_000_999,
                "synthetic".to_owned(),
                StoredVideoRequest {
                    prompt: "a fox".to_owned(),
                    negative_prompt: None,
                    seed: u64::MAX,
                    num_inference_steps: 8,
                    guidance_scale: 1.5,
                    enhance_prompt: false,
                },
                VideoPlan {
                    made: (1280, 768),
                    shown: (1280, 720),
                    fps: 6,
                    segments: vec![segment(9), segment(6)],
                    extended_frames: 0,
                },
            )
        }
    }

    fn id() -> VideoId {
        VideoId::parse("video_0123456789ab7fffbfffffffffffffff").unwrap()
    }

    #[test]
    fn a_completed_video_has_all_of_its_fields() {
        let mut stored = stored(VideoStatus::Completed);
        stored.remixed_from = Some(id());
        let expected = json!({
            "id": "video_0123456789ab7fffbfffffffffffffff",
            "object": "video",
            "model": "synthetic",
            "status": "completed",
            "progress": 100,
            "phase": "done",
            "queue_position": null,
            "segments": {"done": 2, "total": 2},
            "created_at": 1_800_000_000,
            "started_at": 1_800_000_002,
            "completed_at": 1_800_000_009,
            "expires_at": 1_800_086_409,
            "prompt": "a fox",
            "negative_prompt": null,
            "size": "1280x720",
            "seconds": "2.5",
            "fps": 6,
            "num_frames": 15,
            "seed": u64::MAX,
            "num_inference_steps": 8,
            "guidance_scale": 1.5,
            "media_type": "video/mp4",
            "has_audio": true,
            "bytes": 12345,
            "inference_time_s": 1.5,
            "remixed_from_video_id": "video_0123456789ab7fffbfffffffffffffff",
            "extended_from_video_id": null,
            "metadata": {"shot": "7"},
            "error": null,
        });
        let video = video(id(), &stored, LIVE, Some(12345));
        assert_eq!(serde_json::to_value(video).unwrap(), expected);
    }

    #[test]
    fn only_the_facts_of_its_state_are_shown_of_a_job() {
        let queued = video(id(), &stored(VideoStatus::Queued), LIVE, Some(5));
        assert_eq!(queued.queue_position, Some(3));
        assert_eq!(
            (queued.progress, queued.phase),
            (42, VideoPhase::Generating)
        );
        assert_eq!((queued.completed_at, queued.bytes), (None, None));
        let running = video(id(), &stored(VideoStatus::InProgress), LIVE, None);
        assert_eq!(running.queue_position, None);
        assert_eq!(running.segments, VideoSegments { done: 0, total: 2 });
        let failed = VideoStatus::Failed {
            code: "cancelled".to_owned(),
            message: "the video was cancelled".to_owned(),
        };
        let all = Live {
            progress: 100,
            ..LIVE
        };
        let failed = video(id(), &stored(failed), all, None);
        assert_eq!(failed.error.unwrap().code, "cancelled");
        assert_eq!((failed.progress, failed.phase), (99, VideoPhase::Done));
        assert_eq!(failed.completed_at, None);
        assert_eq!(failed.expires_at, Some(1_800_086_409));
    }

    #[test]
    fn an_extension_has_the_length_of_the_whole() {
        let mut stored = stored(VideoStatus::InProgress);
        stored.plan.extended_frames = 9;
        stored.extended_from = Some(id());
        let video = video(id(), &stored, LIVE, None);
        assert_eq!((video.seconds.as_str(), video.num_frames), ("4", 24));
        assert_eq!(video.segments.total, 2);
        assert_eq!(video.extended_from_video_id, Some(id().to_string()));
    }

    #[test]
    fn seconds_have_no_zeros_at_the_end() {
        let check = |frames, fps, expected: &str| assert_eq!(seconds(frames, fps), expected);
        check(96, 24, "4");
        check(60, 24, "2.5");
        check(240, 24, "10");
        check(1, 24, "0.042");
        check(1, 60, "0.017");
        check(121, 24, "5.042");
        check(1, 3, "0.333");
        check(2, 3, "0.667");
        check(u64::MAX, 1, &u64::MAX.to_string());
    }
}
