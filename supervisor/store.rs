//! Continuation states.
