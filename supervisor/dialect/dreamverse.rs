//! The dialect of clients of `WS /ws`, which is that of FastVideo's Dreamverse.

pub(crate) use parse::DreamverseParser;
pub(crate) use render::DreamverseRenderer;

mod close;
mod image;
mod parse;
mod render;
