//! Frames and sound to media.
