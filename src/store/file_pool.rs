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
//! fail, every later sync of the file fails.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

use crate::runtime::descriptor_share;

/// Descriptors that are held at most, where many are allowed.
const MOST: usize = 4096;

/// The limit is the process's, so the pool is, too.
static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::new(descriptor_share(4, MOST)));

struct Pool {
    limit: usize,
    open: AtomicUsize,
    /// In the order of opening; who was used since goes to the end again.
    order: Mutex<VecDeque<Weak<Slot>>>,
}

#[derive(Debug)]
struct Slot {
    state: Mutex<State>,
    used: AtomicBool,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    file: Option<Arc<File>>,
    /// Bytes were written since the last sync.
    dirty: bool,
    /// A sync failed: the bytes may be lost.
    failed: bool,
}

impl Pool {
    const fn new(limit: usize) -> Self {
        Self { limit, open: AtomicUsize::new(0), order: Mutex::new(VecDeque::new()) }
    }

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
        if state.dirty {
            if let Err(error) = file.sync_data() {
                tracing::error!(%error, path = %state.path.display(), "a staged file cannot be synced");
                state.failed = true;
            }
            state.dirty = false;
        }
        drop(file);
        pool.open.fetch_sub(1, Ordering::AcqRel);
        true
    }
}

/// A file for reading and writing.
pub(super) struct PooledFile {
    pool: &'static Pool,
    slot: Arc<Slot>,
}

impl fmt::Debug for PooledFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledFile").field("slot", &self.slot).finish_non_exhaustive()
    }
}

fn open(path: &Path, new: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(new).open(path)
}

impl PooledFile {
    /// Opens a file; `new`: it must not exist.
    pub fn open(path: &Path, new: bool) -> io::Result<Self> {
        Self::open_in(&POOL, path, new)
    }

    fn open_in(pool: &'static Pool, path: &Path, new: bool) -> io::Result<Self> {
        pool.make_room();
        let file = Some(Arc::new(open(path, new)?));
        let state = State { path: path.to_owned(), file, dirty: false, failed: false };
        let slot = Arc::new(Slot { state: Mutex::new(state), used: AtomicBool::new(true) });
        pool.opened(&slot);
        Ok(Self { pool, slot })
    }

    /// The open file, for one operation. `writes`: it will be dirty.
    pub fn get(&self, writes: bool) -> io::Result<Arc<File>> {
        self.slot.used.store(true, Ordering::Release);
        loop {
            {
                let mut state = self.slot.state.lock();
                if let Some(file) = &state.file {
                    let file = Arc::clone(file);
                    state.dirty |= writes;
                    return Ok(file);
                }
            }
            // Another's lock is taken there: not under this one's.
            self.pool.make_room();
            let mut state = self.slot.state.lock();
            if state.file.is_none() {
                state.file = Some(Arc::new(open(&state.path, false)?));
                self.pool.opened(&self.slot);
            }
        }
    }

    /// The file has another name now.
    pub fn renamed(&self, path: &Path) {
        path.clone_into(&mut self.slot.state.lock().path);
    }

    pub fn sync_data(&self) -> io::Result<()> {
        let file = {
            let mut state = self.slot.state.lock();
            if state.failed {
                return Err(io::Error::other("an earlier sync of this file failed"));
            }
            match &state.file {
                // Closed: it was synced then.
                None => return Ok(()),
                Some(file) => {
                    let file = Arc::clone(file);
                    state.dirty = false;
                    file
                }
            }
        };
        let synced = file.sync_data();
        if synced.is_err() {
            self.slot.state.lock().failed = true;
        }
        synced
    }
}

impl Drop for PooledFile {
    fn drop(&mut self) {
        if self.slot.state.lock().file.take().is_some() {
            self.pool.open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn pool(limit: usize) -> &'static Pool {
        Box::leak(Box::new(Pool::new(limit)))
    }

    #[test]
    fn a_thousand_files_are_written_with_sixteen_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(16);
        let path = |n: usize| dir.path().join(n.to_string());
        let files: Vec<PooledFile> =
            (0..1000).map(|n| PooledFile::open_in(pool, &path(n), true).unwrap()).collect();
        for round in 0..2u64 {
            for (n, file) in files.iter().enumerate() {
                let text = format!("{n:08}");
                file.get(true).unwrap().write_all_at(text.as_bytes(), round * 8).unwrap();
                assert!(pool.open.load(Ordering::Acquire) <= 16);
            }
        }
        for (n, file) in files.iter().enumerate() {
            let mut bytes = [0; 16];
            file.get(false).unwrap().read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes.to_vec(), format!("{n:08}{n:08}").into_bytes());
        }
        drop(files);
        assert_eq!(pool.open.load(Ordering::Acquire), 0);
    }

    #[test]
    fn threads_share_few_descriptors_and_each_reads_what_it_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(4);
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let dir = dir.path();
                scope.spawn(move || {
                    let files: Vec<PooledFile> = (0..20)
                        .map(|n| {
                            let path = dir.join(format!("{thread}-{n}"));
                            PooledFile::open_in(pool, &path, true).unwrap()
                        })
                        .collect();
                    for round in 0..10u64 {
                        for file in &files {
                            let bytes = (thread * 100 + round).to_le_bytes();
                            file.get(true).unwrap().write_all_at(&bytes, 0).unwrap();
                        }
                        for file in &files {
                            let mut bytes = [0; 8];
                            file.get(false).unwrap().read_exact_at(&mut bytes, 0).unwrap();
                            assert_eq!(u64::from_le_bytes(bytes), thread * 100 + round);
                        }
                    }
                });
            }
        });
        // Each thread may hold one beyond the limit while all others are at work.
        assert_eq!(pool.open.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_renamed_file_is_found_again_and_a_failed_sync_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(1);
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let file = PooledFile::open_in(pool, &one, true).unwrap();
        file.get(true).unwrap().write_all_at(b"bytes", 0).unwrap();
        std::fs::rename(&one, &two).unwrap();
        file.renamed(&two);
        file.slot.used.store(false, Ordering::Release);
        let other = PooledFile::open_in(pool, &one, true).unwrap();
        assert!(file.slot.state.lock().file.is_none(), "closed for the other");
        file.sync_data().unwrap();
        let mut bytes = [0; 5];
        file.get(false).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"bytes");
        drop(other);
        file.slot.state.lock().failed = true;
        file.sync_data().unwrap_err();
        file.sync_data().unwrap_err();
    }
}
