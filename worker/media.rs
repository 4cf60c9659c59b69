//! Moves a segment's media from the engine to the link.
//!
//! - `encoder_thread`: encodes frames while the engine generates the next ones.
//! - `ready_encoders`: encoders that are opened before their segments begin.
//! - `video_pictures`: the pictures of a video job's segment.
//! - `outbox`: sends a job's media as far as the client's window allows (flow control), then the job's end.

pub(crate) mod encoder_thread;
pub(crate) mod outbox;
mod ready_encoders;
mod video_pictures;
