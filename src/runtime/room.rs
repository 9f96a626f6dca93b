//! What a disk holds for those who have no privileges on it.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::StatVfs;

/// Bytes, as `df` counts them for its `Use%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What is used and what is left, without what is kept back for root (statvfs(3):
    /// `f_bfree - f_bavail`): a disk is full for us before those blocks are touched.
    pub capacity: u64,
    /// What is left.
    pub available: u64,
}

impl Room {
    /// The room at a path.
    ///
    /// # Errors
    /// Those of statvfs(3).
    pub fn at(path: &Path) -> rustix::io::Result<Self> {
        Ok(Self::of(&rustix::fs::statvfs(path)?))
    }

    /// The room at an open file or directory.
    ///
    /// # Errors
    /// Those of fstatvfs(3).
    pub fn under(file: impl AsFd) -> rustix::io::Result<Self> {
        Ok(Self::of(&rustix::fs::fstatvfs(file)?))
    }

    fn of(disk: &StatVfs) -> Self {
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        let used = disk.f_blocks.saturating_sub(disk.f_bfree);
        Self {
            capacity: bytes(used.saturating_add(disk.f_bavail)),
            available: bytes(disk.f_bavail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(blocks: u64, free: u64, available: u64) -> StatVfs {
        StatVfs {
            f_blocks: blocks,
            f_bfree: free,
            f_bavail: available,
            f_frsize: 4096,
            ..rustix::fs::statvfs("/").unwrap()
        }
    }

    #[test]
    fn what_is_kept_back_for_root_is_no_room_and_is_not_used() {
        let half_kept = Room::of(&disk(100, 90, 40));
        assert_eq!(half_kept, Room { capacity: 50 * 4096, available: 40 * 4096 });
        let plain = Room::of(&disk(100, 90, 90));
        assert_eq!(plain, Room { capacity: 100 * 4096, available: 90 * 4096 });
    }

    #[test]
    fn an_absurd_answer_is_no_panic() {
        let more_free_than_there = Room::of(&disk(10, 20, u64::MAX));
        assert_eq!(more_free_than_there.capacity, u64::MAX);
    }
}
