//! Video jobs: whole videos that are made without a viewer, and kept until they are fetched.

pub mod config;
mod plan;
mod queue;

pub use config::Config;
