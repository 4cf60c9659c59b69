//! The film of a session: what is known of its finished segments.

use serde::{Deserialize, Serialize};

use crate::ids::SessionId;
use crate::job::PromptSource;

/// The answer of `GET /v1/sessions/{id}/film`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FilmDocument {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub session_id: SessionId,
    /// The MIME type of the media, with codecs; `image/jpeg` for pictures, null before the first segment is finished.
    pub mime: Option<String>,
    /// The width in pixels.
    pub width: u32,
    /// The height in pixels.
    pub height: u32,
    /// Frames per second.
    pub fps: u32,
    /// Whether a server runs the session, or another one is expected to go on with it, so that the film may grow.
    pub live: bool,
    /// Whether the session can be resumed.
    pub resumable: bool,
    /// Where the last segment ends on the session's time line, in milliseconds.
    pub duration_ms: f64,
    /// The number of bytes of the media that are kept.
    pub bytes: u64,
    /// Until when the film is kept, RFC 3339; null while `live` is true, and when that is not known.
    pub expires_at: Option<String>,
    /// The number of spectators.
    pub spectators: u64,
    /// The segments that are known, in order.
    pub segments: Vec<FilmSegment>,
}

/// A finished segment of a film.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FilmSegment {
    pub segment_idx: u32,
    /// Where the segment begins on the session's time line, in milliseconds.
    pub start_ms: f64,
    /// How long the segment plays, in milliseconds.
    pub duration_ms: f64,
    /// The number of bytes of the media.
    pub bytes: u64,
    /// The number of binary messages, the init segment included; 0 when the media are not kept.
    pub messages: u64,
    /// The SHA-256 of the media, in lower-case hexadecimal digits.
    pub sha256: String,
    /// Whether the media are kept.
    pub kept: bool,
    /// Whether there is a thumbnail.
    pub thumbnail: bool,
    /// The prompt that was used.
    pub prompt: String,
    /// The prompt that `prompt` was made from, when that is another one.
    pub original_prompt: Option<String>,
    /// `user`, `curated`, `enhanced` or `auto_extension`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub prompt_source: PromptSource,
    pub seed: u64,
    pub num_inference_steps: u32,
    pub guidance_scale: f64,
    /// The attempt that the media came from, counted from 1.
    pub attempt: u32,
    /// Time that the generation took in the worker, in milliseconds.
    pub generation_time_ms: f64,
}

/// The query of the routes of a film. Players add parameters of their own, which are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
pub struct FilmQuery {
    /// The resume token or the watch token, where no header `Authorization: Bearer` has it.
    pub token: Option<String>,
}

/// The query of `GET /v1/sessions/{id}/index.m3u8`: the Delivery Directives of HLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
pub struct PlaylistQuery {
    /// The answer waits until the playlist has the segment with this Media Sequence Number.
    #[serde(rename = "_HLS_msn")]
    pub hls_msn: Option<u64>,
    /// It does not wait for that segment, but for this part of it, counted from 0.
    #[serde(rename = "_HLS_part")]
    pub hls_part: Option<u64>,
}

/// The query of `GET /v1/sessions/{id}/film.mp4`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[cfg_attr(feature = "openapi", into_params(parameter_in = Query))]
pub struct DownloadQuery {
    /// The name under which a browser saves the file, which it plays otherwise.
    pub download: Option<String>,
}
