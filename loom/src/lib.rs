//! Every interleaving of the threads that meet at a job's slot, where outcome, news and wakers are left: the
//! engine's own sources on loom's locks, without the rest of the library, which would take minutes to build.
//! The tests are at the end of `slot.rs`.
//!
//! `cargo test --manifest-path loom/Cargo.toml`
#![allow(dead_code)] // the tests use a part of it

#[path = "../../src/engine/slot.rs"]
mod slot;
#[path = "../../src/engine/sync.rs"]
mod sync;
