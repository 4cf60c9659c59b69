//! Video jobs: whole videos that are made without a viewer, and kept until they are fetched.
//!
//! A job makes segments as a session does, and is none: it has no client, no seat at a worker and no prompts but its own.
//!
//! - `library` lets jobs run and `known` has what it knows of them, `queue` says in which order; `create` takes a job in.
//! - `job` runs one: `plan` says of which segments it consists, `record_writer` writes its record, `record` the end of it,
//!   `failure` why it has failed; `live` is what clients see of it meanwhile, with its `progress`.
//! - `telling` tells the operator of the ends of jobs, by a `webhook`; `reports` writes the session log, `metrics` counts, and `gauges`
//!   count what there is.
//!
//! What is written before it is told: the job when it is taken in, that a segment is begun, that it is finished, and the
//! job's end. So a server that is killed goes on with its jobs when it is started again.

mod clock;
pub mod config;
mod create;
mod failure;
mod gauges;
mod job;
mod known;
mod library;
mod live;
mod metrics;
mod plan;
mod progress;
mod queue;
mod record;
mod record_writer;
mod reports;
mod telling;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod webhook;

pub use config::Config;
pub(crate) use create::{Claim, Created, NewVideo, NotCreated, Source};
pub(crate) use library::Parts;
pub use library::Videos;
pub(crate) use live::{Live, Phase};
