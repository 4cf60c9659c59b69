//! How this program reaches a Redis or Valkey: the address that an operator gives, a connection that all callers share,
//! and messages that wake who looks there. `store` keeps sessions in it, `router` its line.

mod address;
mod connection;
mod messages;

pub use address::{RedisAddress, RedisAddressError};
pub(crate) use connection::{Connection, FORGOTTEN};
pub(crate) use messages::hear;
