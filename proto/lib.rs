//! Messages and ids shared by the supervisor, its workers and its clients.
//!
//! [`client`] is what travels on `/v1/stream`, [`link`] what travels between the supervisor and one worker, [`state`]
//! the continuation state as both keep it, [`stored`] what a store keeps of a session. Types only: no sockets, no channels, no files. The I/O lives in one file
//! on each side.

pub mod client;
pub mod ids;
pub mod link;
pub mod state;
pub mod stored;
