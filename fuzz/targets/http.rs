//! The readers of requests for videos, from the supervisor's own files (`http/videos/` is a link to them), without all that the
//! supervisor links for other purposes.

pub mod videos;
