//! The kernel's requests, turned into `vfs` calls; mount and unmount.
//!
//! No logic: each operation decodes, calls one method, encodes. Several threads
//! read requests at once and never wait for a backend: what has to (close, fsync,
//! a CID, a block that is not here) goes on without a thread, and ends with EINTR
//! when its caller is signalled (decision 0005).

mod direct;
mod filesystem;
mod reply;
mod requests;
mod session;
mod workers;

pub use self::direct::remount;
pub use self::session::{MountError, MountOptions, Session, clear_dead, mount, unmount};
