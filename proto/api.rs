//! The HTTP interface of a server: the bodies of its answers, and what operators send to it.
//!
//! The supervisor's `http` makes these types from its own; routers, command line tools and tests read them. [`probes`]
//! are health and readiness, [`status`] is what `/status` answers about workers, [`prompts`] and [`sessions`] are what
//! operators see and change of these, [`workers`] are orders to single workers, [`film`] is what is known of a session's
//! film, [`tickets`] let pages in, [`reload`] is what was read again, [`videos`] are video jobs and models in the form of OpenAI's
//! clients, [`dreamverse`] is what FastVideo's web UI asks for, [`error`] is the body of every refusal of anything else.
//!
//! Readers ignore fields that they do not know, so that a newer server may add some; requests are read strictly, so that
//! a misspelt field is refused. With the feature `openapi`, the types describe themselves for `/openapi.json`.

pub mod dreamverse;
pub mod error;
pub mod film;
pub mod probes;
pub mod prompts;
pub mod reload;
pub mod router;
pub mod sessions;
pub mod status;
pub mod tickets;
pub mod videos;
pub mod workers;
