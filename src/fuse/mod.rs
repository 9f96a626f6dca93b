//! The kernel's requests, turned into `vfs` calls; mount and unmount.
//!
//! No logic: each operation decodes, calls one method, encodes. Several threads
//! read requests at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::vfs::Vfs;

/// Options of one mount.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// Shown in /proc/mounts: the volume's folder.
    pub source: String,
    /// Refuse changes in the kernel too.
    pub read_only: bool,
    /// Other users may enter (default when root mounts).
    pub allow_other: bool,
    /// `-o` words that the kernel understands (noatime, nosuid, nodev, ...).
    pub kernel_options: Vec<String>,
    /// Threads that read requests.
    pub threads: usize,
}

/// Why a mount failed, with what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount at {mountpoint}: {reason}")]
pub struct MountError {
    /// Where.
    pub mountpoint: PathBuf,
    /// Why, and what to do.
    pub reason: String,
}

/// A running mount.
pub struct Session {}

impl Session {
    /// Returns when the mount is gone (unmounted by anybody).
    pub fn wait(self) {
        todo!()
    }
}

/// Mounts; returns when the kernel has it and it answers.
///
/// # Errors
/// [`MountError`]: no /dev/fuse, no fusermount3 for an ordinary user, a bad
/// mountpoint, a dead mount in the way.
pub fn mount(
    vfs: Arc<Vfs>,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Session, MountError> {
    let _ = (vfs, mountpoint, options);
    todo!()
}

/// Unmounts; `lazy` detaches even when busy.
///
/// # Errors
/// [`MountError`]: busy (with what to do), not mounted.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let _ = (mountpoint, lazy);
    todo!()
}
