//! One process per GPU.
mod encode;
mod engine;
mod state;
fn main() {}
