//! Every backend by the same tests: `contract` for the records alone, `model` for their reference counts, `store` for
//! sessions; `outage` for what happens when a backend fails, `opening` for the URLs.

mod backends;
mod contract;
mod flaky;
mod model;
mod opening;
mod outage;
mod speed;
mod store;
mod world;
