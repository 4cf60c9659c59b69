//! Video jobs and models, as OpenAI's clients read them. Fields without a value are null.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A video job: the answer of most routes below `/v1/videos`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Video {
    /// `video_` and 32 hexadecimal digits, in the order of creation.
    pub id: String,
    /// `video`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub object: Cow<'static, str>,
    /// The name of the model.
    pub model: String,
    pub status: VideoState,
    /// The part of the frames that are made, in percent; 100 only when the content can be fetched.
    pub progress: u32,
    /// What happens to the job now.
    pub phase: VideoPhase,
    /// The number of jobs that are before this one, null unless `status` is `queued`.
    pub queue_position: Option<u64>,
    pub segments: VideoSegments,
    /// All times are in seconds since the Unix epoch.
    pub created_at: u64,
    /// When the first segment was begun.
    pub started_at: Option<u64>,
    pub completed_at: Option<u64>,
    /// When the video, or the record of one that failed, is removed; null before it has ended, and where it is kept for ever.
    pub expires_at: Option<u64>,
    pub prompt: String,
    pub negative_prompt: Option<String>,
    /// Width and height in pixels, as in `1280x720`.
    pub size: String,
    /// How long the video plays, as in `4` or `2.5`; for an extension, the video that is extended included.
    pub seconds: String,
    /// Frames per second.
    pub fps: u32,
    /// Number of frames; for an extension, those of the video that is extended included.
    pub num_frames: u64,
    /// The seed of the first segment. Each further one has the next.
    pub seed: u64,
    pub num_inference_steps: u32,
    pub guidance_scale: f64,
    /// The MIME type of the content.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub media_type: Cow<'static, str>,
    /// Whether the video has sound; null before its first segment is there.
    pub has_audio: Option<bool>,
    /// The number of bytes of the content; null before it can be fetched.
    pub bytes: Option<u64>,
    /// Time that the segments took in workers, in seconds.
    pub inference_time_s: f64,
    pub remixed_from_video_id: Option<String>,
    pub extended_from_video_id: Option<String>,
    /// What the client gave with its request.
    pub metadata: BTreeMap<String, String>,
    /// Why the job failed.
    pub error: Option<VideoFailure>,
}

/// What a client may ask for. Only `prompt` is required; `docs/videos.md` has the limits and the defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VideoRequest {
    pub prompt: String,
    pub model: Option<String>,
    /// A number or its text, such as `4` or `2.5`.
    pub seconds: Option<String>,
    /// Wins over `seconds`.
    pub num_frames: Option<u64>,
    /// Width and height in pixels, as in `1280x720`.
    pub size: Option<String>,
    pub fps: Option<u32>,
    pub seed: Option<u64>,
    pub num_inference_steps: Option<u32>,
    pub guidance_scale: Option<f64>,
    pub negative_prompt: Option<String>,
    /// An image file, or an object with an `image_url` that begins with `data:`.
    pub input_reference: Option<String>,
    /// Whether a language model writes the prompt out.
    pub enhance_prompt: Option<bool>,
    /// At most 16 pairs, which come back.
    pub metadata: Option<BTreeMap<String, String>>,
    /// An object with the `id` of the video that the new one is made of: for edits and extensions alone.
    pub video: Option<BTreeMap<String, String>>,
}

/// The place of a job on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VideoState {
    Queued,
    InProgress,
    Completed,
    Failed,
}

/// What happens to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VideoPhase {
    /// It waits for a worker.
    Waiting,
    /// A worker makes a segment of it.
    Generating,
    /// A segment is being stored.
    Storing,
    /// It has ended, well or not.
    Done,
}

/// The segments of a job, without those of a video that it extends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VideoSegments {
    /// Number of segments that are made and stored.
    pub done: u32,
    pub total: u32,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VideoFailure {
    /// A stable name of the reason, for programs: `cancelled`, `worker_failed`, …
    pub code: String,
    /// The reason in words, for people.
    pub message: String,
}

/// The answer of `GET /v1/videos`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VideoList {
    /// `list`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub object: Cow<'static, str>,
    pub data: Vec<Video>,
    pub first_id: Option<String>,
    /// What to send as `after` for the next page.
    pub last_id: Option<String>,
    pub has_more: bool,
    /// The servers whose videos are missing, by name or address. Only a router knows of some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreachable: Vec<String>,
}

/// The answer of `DELETE /v1/videos/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeletedVideo {
    pub id: String,
    /// `video.deleted`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub object: Cow<'static, str>,
    /// `true`.
    pub deleted: bool,
}

/// A model that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Model {
    pub id: String,
    /// `model`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub object: Cow<'static, str>,
    /// When the server began to serve it, in seconds since the Unix epoch.
    pub created: u64,
    /// `fastvideo-supervisor`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub owned_by: Cow<'static, str>,
}

/// The answer of `GET /v1/models`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelList {
    /// `list`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub object: Cow<'static, str>,
    pub data: Vec<Model>,
}

/// The body of every answer for videos and models that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OpenAiErrorBody {
    pub error: OpenAiError,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OpenAiError {
    /// The reason in words, for people.
    pub message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub kind: Cow<'static, str>,
    /// The field of the request that is wrong.
    pub param: Option<String>,
    /// A stable name of the reason, for programs: `video_not_found`, `invalid_value`, …
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub code: Cow<'static, str>,
}

impl VideoList {
    /// Creates a page of the list. `has_more` tells whether another one follows.
    pub fn new(data: Vec<Video>, has_more: bool) -> Self {
        let id = |video: Option<&Video>| video.map(|video| video.id.clone());
        Self {
            object: "list".into(),
            first_id: id(data.first()),
            last_id: id(data.last()),
            data,
            has_more,
            unreachable: Vec::new(),
        }
    }
}

impl DeletedVideo {
    pub fn new(id: String) -> Self {
        Self {
            id,
            object: "video.deleted".into(),
            deleted: true,
        }
    }
}

impl Model {
    /// Creates a model that is served since `created`, in seconds since the Unix epoch.
    pub fn new(id: String, created: u64) -> Self {
        Self {
            id,
            object: "model".into(),
            created,
            owned_by: "fastvideo-supervisor".into(),
        }
    }
}

impl ModelList {
    pub fn new(data: Vec<Model>) -> Self {
        Self {
            object: "list".into(),
            data,
        }
    }
}
