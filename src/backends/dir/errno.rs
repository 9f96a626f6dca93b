use std::path::Path;

use rustix::io::Errno;

use crate::backends::{BackendError, ErrorKind};

/// What an errno means for the place, and what its owner can do. A missing
/// block or name is the caller's to tell; `NOENT` here means the place itself.
pub(super) fn explain(path: &Path, action: &str, errno: Errno) -> BackendError {
    let (kind, hint) = match errno {
        Errno::ACCESS | Errno::PERM => {
            (ErrorKind::Denied, "check the owner and the mode of the directory")
        }
        Errno::ROFS => (ErrorKind::ReadOnly, "its filesystem is mounted read-only"),
        Errno::NOSPC | Errno::DQUOT => (ErrorKind::Full, "free space there, or add a backend"),
        Errno::NOENT
        | Errno::NOTDIR
        | Errno::STALE
        | Errno::NODEV
        | Errno::NXIO
        | Errno::NOTCONN
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH => {
            (ErrorKind::Unavailable, "the directory is gone: is the disk mounted?")
        }
        Errno::TIMEDOUT => (ErrorKind::Timeout, "the filesystem there does not answer in time"),
        Errno::ISDIR | Errno::NAMETOOLONG | Errno::LOOP | Errno::INVAL => {
            (ErrorKind::Invalid, "something else has that name there")
        }
        Errno::MFILE | Errno::NFILE => {
            (ErrorKind::Other, "too many files are open: raise the limit (`ulimit -n`)")
        }
        Errno::IO => (ErrorKind::Other, "the disk failed: look at the kernel's log (`dmesg`)"),
        _ => (ErrorKind::Other, "look at the disk and the kernel's log (`dmesg`)"),
    };
    let message = format!("cannot {action} {}: {errno}; {hint}", path.display());
    BackendError::new(kind, message).caused_by(errno)
}

/// The errno in an error of `std`, or EIO when it has none (a short write).
pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
