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

/// What a read says when the disk could not bring a block (a bad sector, or what leads to
/// the file is damaged: ext4 and XFS say `EBADMSG`, `EUCLEAN`). `place` asks the place
/// itself, by a small write or read: is that well, the copy is bad; else the place is.
pub(super) fn of_block(
    error: BackendError,
    place: impl FnOnce() -> Result<(), BackendError>,
) -> BackendError {
    let errno = error.source.as_ref().and_then(|source| source.downcast_ref::<Errno>());
    if !matches!(errno, Some(&(Errno::IO | Errno::BADMSG | Errno::UCLEAN))) {
        return error;
    }
    match place() {
        // It takes no writes, and can be read.
        Err(dead)
            if !matches!(dead.kind, ErrorKind::Full | ErrorKind::ReadOnly | ErrorKind::Denied) =>
        {
            dead
        }
        _ => BackendError { kind: ErrorKind::Corrupt, ..error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_the_disk_does_not_bring_is_a_bad_copy_unless_the_whole_disk_is_dead() {
        let path = Path::new("/disk");
        for errno in [Errno::IO, Errno::BADMSG, Errno::UCLEAN] {
            let read = || explain(path, "read a block in", errno);
            assert_eq!(of_block(read(), || Ok(())).kind, ErrorKind::Corrupt);
            let full = || Err(explain(path, "write in", Errno::NOSPC));
            assert_eq!(of_block(read(), full).kind, ErrorKind::Corrupt);
            let read_only = || Err(explain(path, "write in", Errno::ROFS));
            assert_eq!(of_block(read(), read_only).kind, ErrorKind::Corrupt);
            let dead = of_block(read(), || Err(explain(path, "write in", Errno::IO)));
            assert_eq!(dead.kind, ErrorKind::Other);
            assert!(dead.message.contains("write in"), "{dead}");
        }
        let other = of_block(explain(path, "read a block in", Errno::MFILE), || Ok(()));
        assert_eq!(other.kind, ErrorKind::Other);
    }
}
