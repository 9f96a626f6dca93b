//! The kernel's requests, turned into `vfs` calls; mount and unmount.
//!
//! No logic: each operation decodes, calls one method, encodes. Several threads
//! read requests at once; what waits for backends (close, fsync, a CID) goes to
//! threads of its own and is answered from there.

mod direct;
mod filesystem;
mod reply;
mod session;
mod workers;

pub use self::direct::remount;
pub use self::session::{MountError, MountOptions, Session, clear_dead, mount, unmount};
