//! Video jobs over HTTP, in the shape that OpenAI's clients know.
//!
//! `request` receives a body, which is read in three steps: `form` makes fields of it, whichever of its two forms it has; `ask`
//! gives them names and types, with `names` and `image`; `check` holds them to the operator's limits and fills in what is left out.
//! `query` reads what follows the path, `object` is what clients see of a job, and `error` is every refusal. `routes` has the handlers.

mod ask;
mod check;
mod error;
mod form;
mod image;
mod names;
mod object;
mod query;
mod request;
pub(super) mod routes;
#[cfg(test)]
mod tests;

pub(super) use routes::routes;
