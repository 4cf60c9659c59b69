//! Jobs for tests.

use std::time::Duration;

use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::EncoderSpec;
use fastvideo_proto::stored_video::{PlannedSegment, StoredVideo, StoredVideoRequest, VideoPlan};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::plan::Model;
use super::{Config, Parts, Videos};
use crate::current::Current;
use crate::engines::Shapes;
use crate::pool::Pool;
use crate::prompt::{self, Prompts};
use crate::session::Drain;
use crate::session::log::Logs;
use crate::store::SessionStore;

/// Returns the configuration of jobs of a model that makes segments of 8 frames.
pub(crate) fn config() -> Config {
    Config {
        enabled: true,
        model: "synthetic".to_owned(),
        model_aliases: vec!["sora-2".to_owned()],
        max_seconds: 60.0,
        max_total_seconds: 600.0,
        max_pixels: 2_088_960,
        sizes: Vec::new(),
        format: VideoFormat {
            width: 64,
            height: 64,
            num_frames: 8,
            fps: 24,
        },
        num_inference_steps: 2,
        guidance_scale: 1.0,
        negative_prompt: None,
        max_prompt_chars: 4000,
        max_inference_steps: 200,
        max_image_pixels: 64 << 20,
        image_patience: Duration::from_secs(30),
        max_parallel: 1,
        max_queued: 1000,
        max_queued_per_tenant: 1000,
        retention: Some(Duration::from_secs(86_400)),
        keep_state: true,
        max_stored_bytes: None,
        webhook: None,
        max_attempts: 5,
        refine_steps: 0,
        segments: Model {
            segment_frames: 8,
            repeated_frames: 0,
            shapes: Shapes::ANY,
        },
    }
}

/// Returns all jobs of a server, with [`config`].
pub(crate) fn videos(
    pool: &Pool,
    store: &SessionStore,
    drain: &watch::Receiver<Drain>,
    writes: &TaskTracker,
) -> Videos {
    Videos::new(Parts {
        config: Current::new(config()),
        encoder: EncoderSpec::default(),
        pool: pool.clone(),
        prompts: Prompts::open(prompt::Config::default()).unwrap(),
        store: store.clone(),
        drain: drain.clone(),
        logs: Logs::default(),
        writes: writes.clone(),
    })
}

/// Returns a job that waits, of segments of so many frames.
pub(crate) fn video(frames: &[u32]) -> StoredVideo {
    let segment = |frames: &u32| PlannedSegment {
        made_frames: *frames,
        frames: *frames,
    };
    StoredVideo::queued(
        1_800_000_000_000,
        "synthetic".to_owned(),
        StoredVideoRequest {
            prompt: "a fox".to_owned(),
            negative_prompt: None,
            seed: 7,
            num_inference_steps: 8,
            guidance_scale: 1.0,
            enhance_prompt: false,
        },
        VideoPlan {
            made: (64, 64),
            shown: (64, 64),
            fps: 24,
            segments: frames.iter().map(segment).collect(),
            extended_frames: 0,
        },
    )
}
