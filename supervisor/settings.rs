//! Typed configuration keys and the reading of their values.
//!
//! Each module declares its keys beside the `Config` that they fill, as constants of the type [`Key`], and builds that
//! `Config` with a [`Reader`]. The program merges the layers (defaults, file, environment, flags) into [`Settings`];
//! nothing here reads a file or an environment variable.
//!
//! - `key`: what a key is, and how it is declared;
//! - `kind`: the values that a key accepts, and how they are read from text and from the file;
//! - `value`: a value as it is kept and shown;
//! - `types`: the types of keys;
//! - `merged`: the values of all keys, each with its origin;
//! - `reader`: the reader that modules build their `Config` with; it collects all errors;
//! - `web_address`: addresses of services on the web.

mod key;
mod kind;
mod merged;
mod reader;
mod types;
mod value;
mod web_address;

pub use key::{Key, KeySpec, Reload};
pub use kind::{Kind, TimeUnit};
pub use merged::{Origin, Reloaded, Setting, SettingError, Settings};
pub use reader::{Reader, Surroundings};
pub use types::KeyType;
pub use value::{DefaultValue, Value};
pub(crate) use web_address::{WEB_ADDRESS, web_address};

/// Lengths of time in seconds, for the limits of keys.
pub const MINUTE: f64 = 60.0;
pub const HOUR: f64 = 60.0 * MINUTE;
pub const DAY: f64 = 24.0 * HOUR;
