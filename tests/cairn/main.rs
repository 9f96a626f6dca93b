//! The binary as a user has it: volumes, real mounts, loss and recovery.

mod bad_input;
mod car;
mod crash;
mod harness;
mod lose;
mod posix;
mod readme;
