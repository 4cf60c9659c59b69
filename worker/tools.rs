//! What the worker does when a person starts it: look at a model, or make a video, without a supervisor.

pub(crate) mod bench;
pub(crate) mod generate;
pub(crate) mod inspect;
