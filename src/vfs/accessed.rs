//! Times of last access, by the rule of relatime (mount(8)): a read moves atime
//! when it is not after mtime and ctime, or is a day old.
//!
//! The kernel leaves atime to us (it sets `S_NOATIME`) and asks for it again
//! after each READ, READLINK and READDIR that it sends. Reads of pages that it
//! has never reach us, so an open for reading counts as a read.
//!
//! A new time waits in memory, over the row: a read costs no transaction. It is
//! written every few minutes, when many wait, and at the end; not marked, so
//! that it goes into a checkpoint only with the next change of its row. A crash
//! loses what waits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Vfs, VfsError};
use crate::metadata::InodeRecord;
use crate::types::{AccessTimes, FileKind, Ino, Timestamp};

/// Times that wait, at most.
const WAITING: usize = 65_536;
/// Rows of one transaction.
const PAGE: usize = 512;
/// A time waits this long, in seconds.
const WAIT_S: i64 = 300;
/// An access time is moved when it is this old, in seconds, whatever else.
const DAY_S: i64 = 24 * 60 * 60;

/// Over a row whose atime is `was`: `now`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    was: Timestamp,
    now: Timestamp,
}

/// The times that wait.
#[derive(Debug)]
pub(super) struct Accessed {
    /// Whose move: what mount(8) said, at the mount or a remount.
    moving: AtomicU8,
    waiting: Mutex<HashMap<Ino, Access>>,
    /// How many: most requests need not lock for none.
    count: AtomicUsize,
    /// When the first of them came.
    since: Mutex<Option<Timestamp>>,
}

impl Accessed {
    pub fn new(moving: AccessTimes) -> Self {
        Self {
            moving: AtomicU8::new(moving as u8),
            waiting: Mutex::default(),
            count: AtomicUsize::new(0),
            since: Mutex::default(),
        }
    }

    fn is_moved_of(&self, kind: FileKind) -> bool {
        let moving = self.moving.load(Ordering::Relaxed);
        moving == AccessTimes::All as u8
            || moving == AccessTimes::NotDirectories as u8 && kind != FileKind::Directory
    }

    /// The time that waits.
    pub fn of(&self, ino: Ino) -> Option<Access> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.waiting.lock().get(&ino).copied()
    }

    /// The time is set, or the inode is gone.
    pub fn forget(&self, ino: Ino) {
        if self.count.load(Ordering::Acquire) > 0 {
            let mut waiting = self.waiting.lock();
            waiting.remove(&ino);
            self.count.store(waiting.len(), Ordering::Release);
        }
    }

    fn put(&self, ino: Ino, access: Access) -> usize {
        let mut waiting = self.waiting.lock();
        waiting.insert(ino, access);
        self.count.store(waiting.len(), Ordering::Release);
        self.since.lock().get_or_insert(access.now);
        waiting.len()
    }

    fn some(&self) -> Vec<(Ino, Access)> {
        self.waiting.lock().iter().take(PAGE).map(|(ino, access)| (*ino, *access)).collect()
    }

    fn written(&self, done: &[(Ino, Access)]) {
        let mut waiting = self.waiting.lock();
        for (ino, access) in done {
            if waiting.get(ino) == Some(access) {
                waiting.remove(ino);
            }
        }
        self.count.store(waiting.len(), Ordering::Release);
    }

    /// Whether the first has waited long enough; then the next begins to wait.
    fn is_due(&self, now: Timestamp) -> bool {
        let mut since = self.since.lock();
        let due = since.is_some_and(|since| {
            let waited = now.seconds.saturating_sub(since.seconds);
            // Also when the clock was set back.
            !(0..WAIT_S).contains(&waited)
        });
        if due {
            *since = None;
        }
        due
    }
}

/// Puts a time that waited before the row was read over it. Who set another since
/// is right.
pub(super) fn lay_over(waiting: Option<Access>, record: &mut InodeRecord) {
    if let Some(access) = waiting.filter(|access| access.was == record.atime) {
        record.atime = access.now;
    }
}

/// The kernel's `relatime_need_update` (fs/inode.c), for a row that shows `atime`.
fn moves(atime: Timestamp, record: &InodeRecord, now: Timestamp) -> bool {
    atime <= record.mtime
        || atime <= record.ctime
        || now.seconds.saturating_sub(atime.seconds) >= DAY_S
}

impl Vfs {
    /// Another wish of who mounts, from now on.
    pub fn set_access_times(&self, moving: AccessTimes) {
        self.accessed.moving.store(moving as u8, Ordering::Relaxed);
    }

    /// A read of what has this row (as it is stored, or open): moves the time of
    /// access where relatime does. True when it moved.
    pub(super) fn accessed(&self, ino: Ino, record: &InodeRecord) -> bool {
        if self.options.read_only || !self.accessed.is_moved_of(record.kind) {
            return false;
        }
        let now = self.now();
        let waiting = self.accessed.of(ino).filter(|access| access.was == record.atime);
        if !moves(waiting.map_or(record.atime, |access| access.now), record, now) {
            return false;
        }
        let waiting = self.accessed.put(ino, Access { was: record.atime, now });
        if waiting >= WAITING
            && let Err(error) = self.write_access_times(1)
        {
            tracing::warn!(%error, "times of access are not written");
        }
        true
    }

    /// Writes what has waited long.
    pub(super) fn write_due_access_times(&self) {
        if self.accessed.is_due(self.now())
            && let Err(error) = self.write_access_times(WAITING.div_ceil(PAGE))
        {
            tracing::warn!(%error, "times of access are not written; they wait on");
        }
    }

    /// Writes times that wait, at most so many pages.
    pub(super) fn write_access_times(&self, pages: usize) -> Result<(), VfsError> {
        for _ in 0..pages {
            let page = self.accessed.some();
            if page.is_empty() {
                return Ok(());
            }
            let rows: Vec<_> = page.iter().map(|(ino, a)| (*ino, a.was, a.now)).collect();
            self.namespace.set_access_times(&rows)?;
            let mut done = Vec::with_capacity(page.len());
            for (ino, access) in page {
                self.forget_record(ino);
                if let Some(node) = self.nodes.get(ino) {
                    // Who holds it is committing it: this one waits on.
                    let Some(mut state) = node.state.try_write() else { continue };
                    if state.record.atime == access.was {
                        state.record.atime = access.now;
                    }
                }
                done.push((ino, access));
            }
            if done.is_empty() {
                return Ok(());
            }
            self.accessed.written(&done);
        }
        Ok(())
    }
}
