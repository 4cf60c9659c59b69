//! How this program reaches a Redis or Valkey: the address that an operator gives, a connection that all callers share,
//! messages that wake who looks there, and beats by which it is known who is there. `store` keeps sessions in it, `router`
//! its line, and `discovery` the addresses of servers.

mod address;
mod beats;
mod connection;
mod messages;

pub use address::{RedisAddress, RedisAddressError};
pub(crate) use beats::{BEAT, Beats, SILENCE};
pub(crate) use connection::{Connection, FORGOTTEN};
pub(crate) use messages::hear;
