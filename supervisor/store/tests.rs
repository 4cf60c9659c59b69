//! Every backend by the same tests: `contract` for the records alone, `model` for their reference counts, `store` for
//! sessions; `outage` for what happens when a backend fails, `connection` when a connection to Redis does, `lost_data` when Redis has
//! lost data; `opening` for the URLs, `tenants` for who sees what; `video_records` for the records of video jobs, `videos` for the
//! operations on them.

mod backends;
mod connection;
mod contract;
mod film;
pub(crate) mod flaky;
mod lost_data;
mod model;
mod opening;
mod outage;
mod speed;
mod store;
mod tenants;
mod video_records;
mod videos;
pub(crate) mod world;
