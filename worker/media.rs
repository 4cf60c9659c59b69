//! A segment's media on their way from the engine to the link.
//!
//! - `encoder_thread`: encodes frames while the engine makes the next ones.
//! - `outbox`: sends a job's media as far as the client's window allows, then the job's end.

pub(crate) mod encoder_thread;
pub(crate) mod outbox;
