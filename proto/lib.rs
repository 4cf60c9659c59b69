//! Messages and ids shared by the supervisor, its workers and its clients.
//!
//! [`job`] holds the words of the domain, which all others use. [`stream_v1`] is the client protocol on `/v1/stream`, [`dreamverse`] that on `/ws`, [`watch`]
//! that of spectators, [`link`] the messages between the supervisor and one worker, [`fleet`] and [`session_link`] those
//! between a router and a server, [`state`] the continuation state, [`step_snapshot`] the latents within a segment, [`checkpoint`] what a session is doing, [`stored`] what
//! a store keeps of it, [`stored_video`] what it keeps of a video job, [`adapter`] the changes of a model that clients choose, [`trace`] a span that others are below, [`api`] the HTTP answers for operators, [`check`] what `check` finds. Types only: no sockets, no
//! channels, no files. The I/O lives in one file on each side.

pub mod adapter;
pub mod api;
pub mod check;
pub mod checkpoint;
pub mod dreamverse;
pub mod fleet;
pub mod ids;
pub mod job;
pub mod link;
pub mod session_link;
pub mod state;
pub mod step_snapshot;
pub mod stored;
pub mod stored_video;
pub mod stream_v1;
pub mod trace;
pub mod untrusted_json;
pub mod watch;
