//! Many files and directories to the medium at once.
//!
//! Measured on ext4 (20 KB files, one disk): 512 files one after the other 421
//! ms, by eight threads 80 ms, by one `syncfs` 19 ms; 16 files 16 ms each way.
//! `syncfs` also writes what others left unwritten on that disk, so its cost is
//! watched and weighed against the rest.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

/// Syncs at once: more make a disk's journal commit no larger groups.
const THREADS: usize = 8;
/// Fewer are never worth a `syncfs`.
const WHOLE_MIN: usize = 32;
/// What one sync and a `syncfs` take until it is known.
const GUESS: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(10));

/// Syncs for one place.
pub(super) struct Syncer {
    /// Whether `syncfs` there writes file data and says when that failed.
    whole: bool,
    /// Of one sync among many, and of one `syncfs`: moving averages.
    costs: Mutex<(Duration, Duration)>,
    warned: AtomicBool,
}

impl Syncer {
    pub fn new(at: impl AsFd) -> Self {
        let whole = knows_syncfs(at) && kernel_is_new();
        Self { whole, costs: Mutex::new(GUESS), warned: AtomicBool::new(false) }
    }

    /// Files with their bytes. They were opened before they were written, so
    /// that a failed write-back is told to their descriptors.
    pub fn files(&self, files: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        self.all(files, &|file| rustix::fs::fsync(file))
    }

    /// Directories with their entries.
    pub fn dirs(&self, dirs: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        self.all(dirs, &|dir| self.dir(dir))
    }

    /// A directory with its entries. Some filesystems (FUSE, CIFS, 9p) cannot
    /// sync a directory: then everything of that filesystem is synced.
    pub fn dir(&self, dir: impl AsFd) -> Result<(), Errno> {
        match rustix::fs::fsync(&dir) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "this filesystem cannot sync a directory; all of it is synced instead, and names are as durable as it makes them"
                    );
                }
                match rustix::fs::syncfs(&dir) {
                    Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
                    other => other,
                }
            }
            other => other,
        }
    }

    fn all(
        &self,
        files: &[BorrowedFd<'_>],
        one: &(dyn Fn(BorrowedFd<'_>) -> Result<(), Errno> + Sync),
    ) -> Result<(), Errno> {
        let Some(first) = files.first() else { return Ok(()) };
        let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
        let start = Instant::now();
        if self.is_whole_cheaper(count) {
            // After an error of somebody else's file each says for itself.
            if rustix::fs::syncfs(first).is_ok() {
                let costs = &mut *self.costs.lock();
                costs.1 = (costs.1 * 3 + start.elapsed()) / 4;
                return Ok(());
            }
        }
        let result = in_parallel(files, one);
        if files.len() >= WHOLE_MIN {
            let costs = &mut *self.costs.lock();
            costs.0 = (costs.0 * 3 + start.elapsed() / count) / 4;
            // So that it is tried again some time.
            costs.1 = costs.1 * 15 / 16;
        }
        result
    }

    fn is_whole_cheaper(&self, count: u32) -> bool {
        let (one, whole) = *self.costs.lock();
        self.whole && count as usize >= WHOLE_MIN && whole < one * count
    }
}

fn in_parallel(
    files: &[BorrowedFd<'_>],
    one: &(dyn Fn(BorrowedFd<'_>) -> Result<(), Errno> + Sync),
) -> Result<(), Errno> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Ok(()));
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(errno) = one(*file) {
                *failed.lock() = Err(errno);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..files.len().min(THREADS) {
            scope.spawn(work);
        }
        work();
    });
    failed.into_inner()
}

/// Filesystems that are known to write everything on `syncfs`. FUSE does not.
fn knows_syncfs(at: impl AsFd) -> bool {
    const EXT: u32 = 0xef53;
    const XFS: u32 = 0x5846_5342;
    const BTRFS: u32 = 0x9123_683e;
    const F2FS: u32 = 0xf2f5_2010;
    // The magic numbers have 32 bits, whatever the field has.
    rustix::fs::fstatfs(at)
        .is_ok_and(|stat| [EXT, XFS, BTRFS, F2FS].contains(&(stat.f_type.cast_unsigned() as u32)))
}

/// Since Linux 5.8 `syncfs` says when a write-back failed.
fn kernel_is_new() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|part| part.trim().parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 8)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_directory_that_cannot_be_synced_is_no_failure() {
        let syncer = Syncer::new(tempfile::tempfile().unwrap());
        // A pipe answers EINVAL, as the directories of some filesystems do.
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(rustix::fs::fsync(&reader), Err(Errno::INVAL));
        assert_eq!(syncer.dir(&reader), Ok(()));
        assert!(syncer.warned.load(Ordering::Relaxed));
        assert_eq!(syncer.files(&[reader.as_fd()]), Err(Errno::INVAL));
    }

    #[test]
    fn one_file_or_many_are_synced_and_the_cheaper_way_is_found() {
        let files: Vec<_> = (0..100).map(|_| tempfile::tempfile().unwrap()).collect();
        for mut file in &files {
            file.write_all(b"bytes").unwrap();
        }
        let all: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        for count in [0, 1, 2, 31, 32, 100] {
            Syncer::new(&files[0]).files(&all[..count]).unwrap();
        }
        let syncer = Syncer { whole: true, ..Syncer::new(&files[0]) };
        assert!(!syncer.is_whole_cheaper(16));
        assert!(syncer.is_whole_cheaper(512));
        syncer.costs.lock().1 = Duration::from_secs(1);
        assert!(!syncer.is_whole_cheaper(512));
        // It does not stay out for ever.
        for _ in 0..200 {
            syncer.files(&all).unwrap();
        }
        assert!(syncer.costs.lock().1 < Duration::from_millis(500));
    }
}
