//! Rows and errors in the kernel's form.

use std::time::SystemTime;

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

use crate::metadata::InodeRecord;
use crate::types::{FileKind, Ino, Timestamp};
use crate::vfs::VfsError;

pub(super) fn errno(error: &VfsError) -> Errno {
    Errno::from_i32(error.errno().0)
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind in the type bits of a mode; mknod without them makes a file.
pub(super) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    use rustix::fs::FileType as F;
    match F::from_raw_mode(mode) {
        F::RegularFile => Some(FileKind::File),
        F::Fifo => Some(FileKind::Fifo),
        F::Socket => Some(FileKind::Socket),
        F::CharacterDevice => Some(FileKind::CharDevice),
        F::BlockDevice => Some(FileKind::BlockDevice),
        F::Unknown if mode & 0o170_000 == 0 => Some(FileKind::File),
        _ => None,
    }
}

pub(super) fn attributes(ino: Ino, row: &InodeRecord) -> FileAttr {
    let time = |at: Timestamp| -> SystemTime { at.to_system() };
    FileAttr {
        ino: INodeNo(ino.0),
        size: row.size,
        blocks: match row.kind {
            FileKind::File => row.size.saturating_sub(row.holes).div_ceil(512),
            _ => 0,
        },
        atime: time(row.atime),
        mtime: time(row.mtime),
        ctime: time(row.ctime),
        crtime: time(row.btime),
        kind: file_type(row.kind),
        perm: (row.mode & 0o7777) as u16,
        nlink: row.nlink,
        uid: row.uid,
        gid: row.gid,
        rdev: row.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// `Some(None)` is now, by our clock.
#[expect(clippy::option_option, reason = "unset, now, or a time")]
pub(super) fn set_time(time: Option<TimeOrNow>) -> Option<Option<Timestamp>> {
    time.map(|time| match time {
        TimeOrNow::SpecificTime(at) => Some(asked_time(at)),
        TimeOrNow::Now => None,
    })
}

/// The time that the kernel asked for. Before 1970 `fuser` (0.18, `time.rs`)
/// subtracts the nanoseconds where they count forward; that is undone here.
fn asked_time(at: std::time::SystemTime) -> Timestamp {
    match std::time::UNIX_EPOCH.duration_since(at) {
        Ok(before) if !before.is_zero() => Timestamp {
            seconds: i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds),
            nanoseconds: before.subsec_nanos(),
        },
        _ => Timestamp::from_system(at),
    }
}
