//! The store: records of sessions, and the continuation states from which their next segments start.
//!
//! A store has two parts: `records` are small and change in one atomic step each, `blobs` are large and named by the
//! hash of their content. There are several backends for each; `open` chooses them by the operator's URLs.
//!
//! A session that runs is held by a *lease* (`lease`). Every write is a compare-and-swap on the record's revision, and
//! the revision is the fencing token: a server whose session was resumed elsewhere can no longer write it. `writer`
//! writes one record with its blobs; `sessions` has the operations on sessions (create, hydrate, resume, snapshot,
//! drop), `lend` keeps blobs that exports refer to. Blobs are reference counted, and `upkeep` collects the garbage that
//! crashes leave. `restoring` writes sessions anew when the store has lost data, of which `losses` keeps account; `health`
//! tells whether it works, and `metrics` measures every operation. `pending_cleanup` keeps the tasks that must be done but cannot wait for the store.
//!
//! Video jobs are records of another kind, each held by a `video_lease` while a server runs it. `videos` has the
//! operations on them; how long they are kept is up to who calls it.
//!
//! `export` turns a state into its public form and back; nothing else here looks into frames or latents. `exchange`
//! does so with the store's blobs.

pub mod blobs;
mod chunks;
pub mod config;
pub mod error;
mod exchange;
pub mod export;
mod film;
pub mod handle;
mod health;
pub mod ids;
pub mod lease;
mod leased_session;
mod leased_video;
mod leases;
mod lend;
mod losses;
mod metrics;
pub mod open;
mod pending_cleanup;
pub mod records;
mod restoring;
pub mod saved_session;
pub mod sessions;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod unwritten;
pub mod upkeep;
mod video_lease;
pub mod videos;
mod writer;

pub use chunks::Chunks;
pub use error::{DataLoss, StoreError};
pub use exchange::{ExportFailed, ImportFailed, export_by_reference, export_inline, import};
pub use film::{Film, FilmView, RecordedSegment, Recording};
pub use handle::SessionStore;
pub use health::{Condition, StoreStatus};
pub use lease::{Lease, LeaseWriter};
pub use leased_video::VideoChange;
pub use records::{Order, VideoPage};
pub use saved_session::{Progress, ResumeToken, SavedSession};
pub use sessions::ResumeError;
pub use state::State;
pub use upkeep::Upkeep;
pub use video_lease::{VideoError, VideoLease};
pub use videos::{NewBlob, SurveyedVideo, VideoList, VideoRecord};
