use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::behind::Hashes;
use super::{Errno, VfsError};
use crate::content::LeafSpan;
use crate::metadata::InodeRecord;
use crate::store::Staging;
use crate::types::Ino;

/// Shards of the table.
const SHARDS: usize = 64;

/// An inode that is open or dirty.
pub(super) struct Node {
    pub ino: Ino,
    pub state: RwLock<NodeState>,
    /// Open handles.
    pub opens: AtomicU32,
    /// It waits in the committer's queue.
    pub queued: AtomicBool,
    /// Bytes of holes that were told while it was dirty; `u64::MAX`: none were.
    pub told_holes: AtomicU64,
    /// Taken alone, or below the state's lock.
    pub failures: Mutex<Failures>,
    /// The row while the state is locked for as long as a disk takes. Taken alone,
    /// or below the state's lock.
    shown: Mutex<Option<InodeRecord>>,
}

impl Node {
    /// The state is locked from here on by who only commits or syncs it: what
    /// readers see stays the same, and they need not wait.
    pub fn show(&self, state: &NodeState) {
        let mut record = state.record.clone();
        if let Some(staging) = &state.staging
            && let Ok(data) = staging.data_bytes(record.holes)
        {
            record.holes = record.size.saturating_sub(data);
        }
        *self.shown.lock() = Some(record);
    }

    /// Before the state is unlocked.
    pub fn conceal(&self) {
        *self.shown.lock() = None;
    }

    /// Whether it is being committed or synced.
    pub fn is_shown(&self) -> bool {
        self.shown.lock().is_some()
    }

    /// The state to be read, or the row of one that is locked for long.
    pub fn look(&self) -> Result<RwLockReadGuard<'_, NodeState>, InodeRecord> {
        if let Some(state) = self.state.try_read() {
            return Ok(state);
        }
        let shown = self.shown.lock().clone();
        shown.map_or_else(|| Ok(self.state.read()), Err)
    }

    /// The row as readers see it.
    pub fn row(&self) -> InodeRecord {
        self.look().map_or_else(|shown| shown, |state| state.record.clone())
    }
}

/// Failures of commits. As Linux has it (`errseq_t`), each handle that was open
/// at a failure is told of it once; when none was told, the next one is.
#[derive(Default)]
pub(super) struct Failures {
    count: u64,
    last: Option<(Errno, String)>,
    told: bool,
}

impl Failures {
    pub fn add(&mut self, errno: Errno, text: String) {
        self.count += 1;
        self.last = Some((errno, text));
        self.told = false;
    }

    /// What a handle that is opened now has seen.
    pub fn seen_at_open(&self) -> u64 {
        if self.told { self.count } else { self.count.saturating_sub(1) }
    }

    /// Tells a handle what it has not seen; without a handle, what nobody has.
    pub fn deliver(&mut self, seen: Option<&AtomicU64>) -> Result<(), VfsError> {
        let news = match seen {
            Some(seen) => seen.swap(self.count, Ordering::AcqRel) < self.count,
            None => self.is_untold(),
        };
        match &self.last {
            Some((errno, text)) if news => {
                self.told = true;
                Err(VfsError::Latched(*errno, text.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The handle was told by other means.
    pub fn was_told(&mut self, seen: &AtomicU64) {
        seen.store(self.count, Ordering::Release);
        self.told = true;
    }

    pub fn is_untold(&self) -> bool {
        self.last.is_some() && !self.told
    }
}

/// What changes while it is open.
pub(super) struct NodeState {
    /// The row as readers see it: sizes and times of staged bytes are in it.
    pub record: InodeRecord,
    /// Size in the stored row: the difference is what quotas have as staged.
    pub stored_size: u64,
    /// Bytes that are not committed.
    pub staging: Option<Staging>,
    /// Bytes of it in the count of dirty memory.
    pub charged: u64,
    /// Bytes of it in the count of what the disk will have to take.
    pub owed: u64,
    /// It was synced since it was opened: who syncs again will sync often.
    pub synced: bool,
    /// Hashes made behind the writer.
    pub hashes: Hashes,
    /// Size, mtime or ctime differ from the stored row.
    pub dirty: bool,
    /// Staged bytes are recorded in the engine.
    pub recorded: bool,
    /// The leaves of the committed content, once a read needed them.
    pub leaves: Option<Arc<Vec<LeafSpan>>>,
    /// Reads that met no such list.
    pub unlisted: AtomicU32,
}

impl NodeState {
    /// Whether a read should try to list the leaves: ever more seldom while nodes of a
    /// large file are not here.
    pub fn may_list(&self) -> bool {
        self.staging.is_none()
            && self.leaves.is_none()
            && self.unlisted.fetch_add(1, Ordering::Relaxed).wrapping_add(1).is_power_of_two()
    }

    /// The stored row changed; what is staged stays on top.
    pub fn take_row(&mut self, row: InodeRecord) {
        self.stored_size = row.size;
        if self.dirty {
            let (size, mtime) = (self.record.size, self.record.mtime);
            let ctime = row.ctime.max(self.record.ctime);
            self.record = InodeRecord { size, mtime, ctime, ..row };
        } else {
            self.record = row;
        }
    }
}

/// The inodes that are open or dirty.
pub(super) struct NodeTable {
    shards: Vec<Mutex<HashMap<Ino, Arc<Node>>>>,
}

impl Default for NodeTable {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl NodeTable {
    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Arc<Node>>> {
        &self.shards[(ino.0 as usize) % SHARDS]
    }

    pub fn get(&self, ino: Ino) -> Option<Arc<Node>> {
        self.shard(ino).lock().get(&ino).cloned()
    }

    pub fn get_or_load(
        &self,
        ino: Ino,
        load: impl FnOnce() -> Result<InodeRecord, VfsError>,
    ) -> Result<Arc<Node>, VfsError> {
        if let Some(node) = self.get(ino) {
            return Ok(node);
        }
        let record = load()?;
        let state = NodeState {
            stored_size: record.size,
            record,
            staging: None,
            charged: 0,
            owed: 0,
            hashes: Hashes::default(),
            synced: false,
            dirty: false,
            recorded: false,
            leaves: None,
            unlisted: AtomicU32::new(0),
        };
        let fresh = Arc::new(Node {
            ino,
            state: RwLock::new(state),
            opens: AtomicU32::new(0),
            queued: AtomicBool::new(false),
            told_holes: AtomicU64::new(u64::MAX),
            failures: Mutex::default(),
            shown: Mutex::default(),
        });
        Ok(Arc::clone(self.shard(ino).lock().entry(ino).or_insert(fresh)))
    }

    /// Drops an inode that nobody has open and that is clean.
    pub fn retire(&self, node: &Arc<Node>) {
        let mut shard = self.shard(node.ino).lock();
        let idle = node.opens.load(Ordering::Acquire) == 0 && !node.queued.load(Ordering::Acquire);
        // The table and the caller hold it, nobody else.
        if idle && Arc::strong_count(node) <= 2 {
            let clean = node.state.try_read().is_some_and(|state| !state.dirty);
            if clean && !node.failures.lock().is_untold() {
                shard.remove(&node.ino);
            }
        }
    }

    /// Drops what [`NodeTable::retire`] left because somebody else had it in hand.
    pub fn sweep(&self) {
        for shard in &self.shards {
            shard.lock().retain(|_, node| {
                let idle = node.opens.load(Ordering::Acquire) == 0
                    && !node.queued.load(Ordering::Acquire)
                    && Arc::strong_count(node) == 1;
                !idle
                    || node.state.try_read().is_none_or(|state| state.dirty)
                    || node.failures.lock().is_untold()
            });
        }
    }

    /// Drops an inode that is gone.
    pub fn remove(&self, ino: Ino) {
        self.shard(ino).lock().remove(&ino);
    }

    pub fn all(&self) -> Vec<Arc<Node>> {
        self.shards
            .iter()
            .flat_map(|shard| shard.lock().values().cloned().collect::<Vec<_>>())
            .collect()
    }

    pub fn count(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().len() as u64).sum()
    }

    pub fn dirty_count(&self) -> u64 {
        self.all()
            .iter()
            .filter(|node| node.state.try_read().is_none_or(|state| state.dirty))
            .count() as u64
    }
}
