//! The dialect of `WS /v1/stream`, described for client authors in `docs/protocol.md`: JSON text messages both ways,
//! media as binary messages to the client.

pub(crate) use close::{refused, violated};
pub(crate) use parse::StreamParser;
pub(crate) use render::StreamRenderer;

mod close;
mod parse;
mod render;
