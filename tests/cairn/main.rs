//! The binary as a user has it: volumes, real mounts, loss and recovery.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at its first surprise")]

mod bad_input;
mod car;
mod harness;
mod lose;
mod posix;
mod readme;
