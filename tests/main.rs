//! Whole-program tests: the real binaries, real sockets, real files. A file per behaviour; `harness` starts and cleans.

mod docs;
mod harness;
mod media;
mod readback;
mod smoke;
