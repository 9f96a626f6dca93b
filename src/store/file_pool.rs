//! Files that stay usable without a descriptor each.
//!
//! A process has a limit of descriptors, and a volume may have any number of
//! files that are being written. Of those at most a share of the limit is open;
//! the one that was idle longest is closed for the next, and opened again at its
//! next use.
//!
//! Who closes a file whose pages are not on the disk yet loses the report of a
//! write that failed (the kernel keeps it with the inode, and forgets both). So
//! bytes that were written are synced before the descriptor goes; should that
//! fail, the file is lost: every later sync of it fails, and it says so when asked.
//! Nobody else may write such a file: while it is closed, its size is remembered.
//!
//! Lock order: a file's `syncing`, its `state`, then the pool's `order` or the
//! file's `told`. No file's lock is waited for while another's is held.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile, FileStat, OpenHow, RealDisk};
use crate::runtime::{Room, descriptor_share};

/// Descriptors that are held at most, where many are allowed.
const MOST: usize = 4096;

/// The machine's own disk. The limit is the process's, so the pool is, too.
static MACHINE: LazyLock<Arc<dyn Disk>> =
    LazyLock::new(|| Arc::new(PooledDisk::new(Arc::new(RealDisk), descriptor_share(4, MOST))));

/// The machine's own disk, with a bounded number of open files.
pub(super) fn machine() -> Arc<dyn Disk> {
    Arc::clone(&MACHINE)
}

#[derive(Debug)]
struct Pool {
    limit: usize,
    open: AtomicUsize,
    /// In the order of opening; who was used since goes to the end again.
    order: Mutex<VecDeque<Weak<Slot>>>,
}

#[derive(Debug)]
struct Slot {
    state: Mutex<State>,
    /// While it is closed, and while it is being: who asks opens nothing, and does
    /// not wait for the sync.
    told: Mutex<Option<FileStat>>,
    /// Held over a sync: the kernel tells of lost bytes once, so who comes second
    /// waits for what the first is told.
    syncing: Mutex<()>,
    used: AtomicBool,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    file: Option<Arc<dyn DiskFile>>,
    /// A write has ended since the last sync began.
    dirty: bool,
    /// A sync failed: the bytes may be lost.
    failed: bool,
}

impl Pool {
    /// Closes files until there is room for one more.
    fn make_room(&self) {
        // Each is looked at twice at most: the first look takes its mark.
        let mut looks = 2 * self.order.lock().len();
        while self.open.load(Ordering::Acquire) >= self.limit && looks > 0 {
            looks -= 1;
            let Some(weak) = self.order.lock().pop_front() else { return };
            let Some(slot) = weak.upgrade() else { continue };
            if slot.used.swap(false, Ordering::AcqRel) || !slot.close(self) {
                self.order.lock().push_back(weak);
            }
        }
    }

    fn opened(&self, slot: &Arc<Slot>) {
        self.open.fetch_add(1, Ordering::AcqRel);
        let mut order = self.order.lock();
        // Slots that are gone leave their places behind.
        if order.len() > 4 * self.limit {
            order.retain(|slot| slot.strong_count() > 0);
        }
        order.push_back(Arc::downgrade(slot));
    }
}

impl Slot {
    /// False when it is at work.
    fn close(&self, pool: &Pool) -> bool {
        let Some(mut state) = self.state.try_lock() else { return false };
        let Some(file) = state.file.take() else { return true };
        if Arc::strong_count(&file) > 1 {
            state.file = Some(file);
            return false;
        }
        *self.told.lock() = file.stat().ok();
        if state.dirty {
            if let Err(error) = file.sync_data() {
                tracing::error!(%error, path = %state.path.display(), "a file cannot be synced");
                state.failed = true;
            }
            state.dirty = false;
        }
        drop(file);
        pool.open.fetch_sub(1, Ordering::AcqRel);
        true
    }
}

/// A disk whose files that may be written are open while they are used, and some
/// more. What is only read is not its concern: segments have a bounded cache.
#[derive(Debug, Clone)]
pub(super) struct PooledDisk {
    below: Arc<dyn Disk>,
    pool: Arc<Pool>,
}

impl PooledDisk {
    pub fn new(below: Arc<dyn Disk>, limit: usize) -> Self {
        let (open, order) = (AtomicUsize::new(0), Mutex::default());
        Self { below, pool: Arc::new(Pool { limit, open, order }) }
    }

    fn open_pooled(&self, path: &Path, how: OpenHow) -> io::Result<PooledFile> {
        self.pool.make_room();
        let file = Some(self.below.open(path, how)?);
        let state = State { path: path.to_owned(), file, dirty: false, failed: false };
        let slot = Arc::new(Slot {
            state: Mutex::new(state),
            told: Mutex::default(),
            syncing: Mutex::default(),
            used: AtomicBool::new(true),
        });
        self.pool.opened(&slot);
        Ok(PooledFile { disk: self.clone(), slot })
    }
}

impl Disk for PooledDisk {
    fn open(&self, path: &Path, how: OpenHow) -> io::Result<Arc<dyn DiskFile>> {
        match how {
            OpenHow::Read => self.below.open(path, how),
            OpenHow::ReadWrite | OpenHow::CreateNew => Ok(Arc::new(self.open_pooled(path, how)?)),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.below.remove(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.below.make_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.below.sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.below.list(path)
    }

    fn space(&self, path: &Path) -> io::Result<Room> {
        self.below.space(path)
    }
}

/// A file for reading and writing.
#[derive(Debug)]
struct PooledFile {
    disk: PooledDisk,
    slot: Arc<Slot>,
}

impl PooledFile {
    /// The open file, for one operation: it stays open while that holds it.
    fn file(&self) -> io::Result<Arc<dyn DiskFile>> {
        self.slot.used.store(true, Ordering::Release);
        loop {
            if let Some(file) = &self.slot.state.lock().file {
                return Ok(Arc::clone(file));
            }
            // Another's lock is taken there: not under this one's.
            self.disk.pool.make_room();
            let mut state = self.slot.state.lock();
            if state.file.is_none() {
                state.file = Some(self.disk.below.open(&state.path, OpenHow::ReadWrite)?);
                *self.slot.told.lock() = None;
                self.disk.pool.opened(&self.slot);
            }
        }
    }

    /// A sync that runs beside a write may have missed its bytes. So the file is
    /// dirty from the write's end on, which comes before it can be closed.
    fn change<T>(&self, write: impl FnOnce(&dyn DiskFile) -> io::Result<T>) -> io::Result<T> {
        let file = self.file()?;
        let done = write(file.as_ref());
        self.slot.state.lock().dirty = true;
        drop(file);
        done
    }
}

impl DiskFile for PooledFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file()?.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(|file| file.write_at(offset, data))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|file| file.set_len(len))
    }

    fn stat(&self) -> io::Result<FileStat> {
        let told = *self.slot.told.lock();
        told.map_or_else(|| self.file()?.stat(), Ok)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|file| file.reserve(offset, len))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|file| file.punch(offset, len))
    }

    fn seek(&self, offset: u64, hole: bool) -> io::Result<Option<u64>> {
        self.file()?.seek(offset, hole)
    }

    fn sync_data(&self) -> io::Result<()> {
        let _one = self.slot.syncing.lock();
        let file = {
            let mut state = self.slot.state.lock();
            if state.failed {
                return Err(io::Error::other("an earlier sync of this file failed"));
            }
            // Closed: it was synced then.
            let Some(file) = state.file.clone() else { return Ok(()) };
            state.dirty = false;
            file
        };
        let synced = file.sync_data();
        if synced.is_err() {
            self.slot.state.lock().failed = true;
        }
        synced
    }

    fn is_lost(&self) -> bool {
        self.slot.state.lock().failed
    }

    fn renamed(&self, to: &Path) {
        to.clone_into(&mut self.slot.state.lock().path);
    }
}

impl Drop for PooledFile {
    fn drop(&mut self) {
        if self.slot.state.lock().file.take().is_some() {
            self.disk.pool.open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimDisk;
    use super::*;

    fn real(limit: usize) -> PooledDisk {
        PooledDisk::new(Arc::new(RealDisk), limit)
    }

    fn create(disk: &PooledDisk, path: &Path) -> PooledFile {
        disk.open_pooled(path, OpenHow::CreateNew).unwrap()
    }

    fn open_files(disk: &PooledDisk) -> usize {
        disk.pool.open.load(Ordering::Acquire)
    }

    fn is_open(file: &PooledFile) -> bool {
        file.slot.state.lock().file.is_some()
    }

    /// Takes the only place of the pool from `file`.
    fn evict(disk: &PooledDisk, file: &PooledFile) -> PooledFile {
        let other = create(disk, &PathBuf::from(format!("/other{}", fastrand::u64(..))));
        assert!(!is_open(file), "closed for the other");
        other
    }

    #[test]
    fn a_thousand_files_are_written_with_sixteen_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let disk = real(16);
        let path = |n: usize| dir.path().join(n.to_string());
        let files: Vec<PooledFile> = (0..1000).map(|n| create(&disk, &path(n))).collect();
        for round in 0..2u64 {
            for (n, file) in files.iter().enumerate() {
                let text = format!("{n:08}");
                file.write_at(round * 8, text.as_bytes()).unwrap();
                assert!(open_files(&disk) <= 16);
            }
        }
        for (n, file) in files.iter().enumerate() {
            let mut bytes = [0; 16];
            assert_eq!(file.read_at(0, &mut bytes).unwrap(), 16);
            assert_eq!(bytes.to_vec(), format!("{n:08}{n:08}").into_bytes());
        }
        drop(files);
        assert_eq!(open_files(&disk), 0);
    }

    #[test]
    fn threads_share_few_descriptors_and_each_reads_what_it_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let disk = real(4);
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let (dir, disk) = (dir.path(), &disk);
                scope.spawn(move || {
                    let files: Vec<PooledFile> =
                        (0..20).map(|n| create(disk, &dir.join(format!("{thread}-{n}")))).collect();
                    for round in 0..10u64 {
                        for file in &files {
                            let bytes = (thread * 100 + round).to_le_bytes();
                            file.write_at(0, &bytes).unwrap();
                        }
                        for file in &files {
                            let mut bytes = [0; 8];
                            assert_eq!(file.read_at(0, &mut bytes).unwrap(), 8);
                            assert_eq!(u64::from_le_bytes(bytes), thread * 100 + round);
                        }
                    }
                });
            }
        });
        // Each thread may hold one beyond the limit while all others are at work.
        assert_eq!(open_files(&disk), 0);
    }

    #[test]
    fn a_renamed_file_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = real(1);
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let file = create(&disk, &one);
        file.write_at(0, b"bytes").unwrap();
        disk.rename(&one, &two).unwrap();
        file.renamed(&two);
        let other = create(&disk, &one);
        assert!(!is_open(&file), "closed for the other");
        file.sync_data().unwrap();
        let mut bytes = [0; 5];
        file.read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"bytes");
        drop(other);
    }

    #[test]
    fn what_is_written_beside_a_sync_is_synced_before_the_file_is_closed() {
        let sim = SimDisk::default();
        let disk = PooledDisk::new(Arc::new(sim.clone()), 1);
        let path = Path::new("/pack");
        let file = create(&disk, path);
        file.write_at(0, b"old").unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        // A writer has the file; another's sync begins and ends; it writes.
        file.change(|below| {
            file.sync_data()?;
            below.write_at(0, b"new")
        })
        .unwrap();
        drop(evict(&disk, &file));
        file.sync_data().unwrap();
        for seed in 0..8 {
            sim.crash(&mut fastrand::Rng::with_seed(seed));
            let mut bytes = [0; 3];
            sim.open(path, OpenHow::Read).unwrap().read_at(0, &mut bytes).unwrap();
            assert_eq!(&bytes, b"new", "seed {seed}");
        }
    }

    #[test]
    fn a_file_whose_sync_fails_when_it_is_closed_is_lost_for_ever() {
        let sim = SimDisk::default();
        let disk = PooledDisk::new(Arc::new(sim.clone()), 1);
        let file = create(&disk, Path::new("/one"));
        file.write_at(0, b"bytes").unwrap();
        assert!(!file.is_lost());
        sim.fail_syncs(true);
        drop(evict(&disk, &file));
        sim.fail_syncs(false);
        assert!(file.is_lost());
        file.sync_data().unwrap_err();
        file.write_at(0, b"again").unwrap();
        file.sync_data().unwrap_err();
        assert!(file.is_lost());
    }

    #[test]
    fn the_size_of_a_closed_file_is_told_without_opening_it() {
        let sim = SimDisk::default();
        let disk = PooledDisk::new(Arc::new(sim.clone()), 1);
        let file = create(&disk, Path::new("/one"));
        file.write_at(0, &[1; 5000]).unwrap();
        let other = evict(&disk, &file);
        other.write_at(0, &[2; 10]).unwrap();
        let syncs = sim.syncs();
        for _ in 0..3 {
            assert_eq!((file.stat().unwrap().len, file.stat().unwrap().allocated), (5000, 5000));
        }
        assert!(is_open(&other) && !is_open(&file));
        assert_eq!(sim.syncs(), syncs, "nobody was closed for it");
        file.set_len(6000).unwrap();
        assert_eq!(file.stat().unwrap().len, 6000);
        drop(other);
        drop(evict(&disk, &file));
        assert_eq!(file.stat().unwrap().len, 6000);
    }
}
