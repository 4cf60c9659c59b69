//! The supervisor: worker processes, client sessions, their continuation states, and the front door.
//!
//! `http` calls `session`; `session` calls `pool` and `store`; those two do not know each other.

pub mod http;
pub mod pool;
pub mod session;
pub mod store;

/// Everything that can be configured, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub http: http::Config,
    pub pool: pool::Config,
    pub session: session::Config,
    /// How long running segments may go on after the first SIGTERM.
    pub grace: std::time::Duration,
}
