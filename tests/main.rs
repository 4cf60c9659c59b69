//! Whole-program tests: the real binaries, real sockets, real files. A file per behaviour; `harness` starts and cleans.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails; clippy allows it in test functions only, not in what they call"
)]

mod activation;
mod admin;
mod auth;
mod check;
mod cli;
mod client;
mod client_job;
mod continuation;
mod cuts;
mod deployment;
mod docs;
mod drain;
mod dreamverse;
mod dreamverse_http;
mod durable;
mod faults;
mod film;
mod fleet_page;
mod garbage;
mod handoff;
mod harness;
mod http;
mod initial_image;
mod interleaving;
mod lifecycle;
mod line;
mod log;
mod ltx2;
mod media;
mod metrics;
mod moves;
mod notify;
mod page;
mod previews;
mod probe;
mod prompts;
mod protocol;
#[expect(
    dead_code,
    reason = "the tests of the supervisor's library use the rest"
)]
mod provider;
mod readback;
mod reload;
mod replay;
mod requests;
mod resume;
mod router;
mod router_videos;
mod safety;
mod seats;
mod session;
mod session_log;
mod sharing;
mod site;
mod slow_reader;
#[path = "../supervisor/small_disk.rs"]
mod small_disk;
mod smoke;
mod step_snapshots;
mod strangers;
mod tls;
mod traces;
mod videos;
mod watch;
