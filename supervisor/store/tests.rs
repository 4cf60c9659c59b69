//! Every backend by the same tests: `contract` for the records alone, `model` for their counting, `store` for sessions.

mod backends;
mod contract;
mod model;
mod speed;
mod store;
