//! Messages and ids shared by the supervisor, its workers and its clients.
//!
//! [`job`] holds the words of the domain, which all others use. [`stream_v1`] is the client protocol on `/v1/stream`, [`watch`]
//! that of spectators, [`link`] the messages between the supervisor and one worker, [`fleet`] those between a router and a
//! server, [`state`] the continuation state, [`stored`] what a store keeps of a session, [`api`] the HTTP answers for
//! operators, [`check`] what `check` finds. Types only: no sockets, no channels, no files. The I/O lives in one file on
//! each side.

pub mod api;
pub mod check;
pub mod fleet;
pub mod ids;
pub mod job;
pub mod link;
pub mod state;
pub mod stored;
pub mod stream_v1;
mod untrusted_json;
pub mod watch;
