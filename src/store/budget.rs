//! The store as a cache: a budget of bytes on the disk, and who is told that it is
//! passed.
//!
//! The budget binds what is brought from elsewhere ([`LocalStore::keep`]): it finds
//! room or is not kept. What is written here is taken whatever there is: nobody else
//! has it yet. What goes is decided above, where it is known what lies elsewhere,
//! and goes by a [`super::Collection`], after a crash as any other.
//!
//! A content was used when its root came here (a segment's number is a time), or
//! when it was last read in this life: after a restart only the first is known.
//!
//! Lock order: after the gate and the pack's state; nothing is locked below.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{LocalStore, PackTicket, StoreError};
use crate::telemetry;
use crate::types::{Block, Cid, cid};

/// What is brought is synced when so much of it is not: until then it cannot go.
const SYNC_BYTES: u64 = 4 << 20;
/// How long what is brought waits for room while something goes.
const PATIENCE: Duration = Duration::from_millis(250);
/// Contents whose last reading is remembered, in each of two halves (some 40 bytes
/// each).
const READINGS: usize = 32_768;

/// What became of a block that was brought from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is here, in the place of a bad or missing one; durable after a sync.
    Repaired(PackTicket),
    /// It is here, in the cache.
    Cached,
    /// There is no room for it now.
    PassedBy,
}

#[derive(Default)]
struct State {
    /// The last look found nothing that may go.
    stuck: bool,
    /// Somebody waits for room.
    asked: bool,
}

/// When contents were last read, roughly: the older half is forgotten when the newer
/// one is full.
#[derive(Default)]
struct Readings {
    newer: HashMap<[u8; 16], u64>,
    older: HashMap<[u8; 16], u64>,
}

pub(super) struct Budget {
    bytes: u64,
    state: Mutex<State>,
    /// There is something to do for who makes room.
    above: Condvar,
    /// There is room, or none will come.
    below: Condvar,
    readings: Mutex<Readings>,
    unsynced: AtomicU64,
}

impl Budget {
    pub fn new(bytes: u64) -> Self {
        Self {
            bytes,
            state: Mutex::default(),
            above: Condvar::new(),
            below: Condvar::new(),
            readings: Mutex::default(),
            unsynced: AtomicU64::new(0),
        }
    }

    /// A pack is no large part of the budget: nothing leaves one that is written.
    pub fn pack_bytes(&self, wanted: u64) -> u64 {
        wanted.min((self.bytes / 16).max(1 << 20))
    }

    /// Above it something goes.
    fn high(&self) -> u64 {
        self.bytes - self.bytes / 16
    }

    /// And then as much that no more than this is left.
    fn low(&self) -> u64 {
        self.bytes - self.bytes / 8
    }

    /// So much is used now.
    pub fn note(&self, used: u64) {
        if used > self.high() {
            self.above.notify_all();
        }
    }
}

/// Half of a digest, which is random.
fn key(root: &Cid) -> [u8; 16] {
    let mut key = [0; 16];
    for (to, from) in key.iter_mut().zip(root.hash().digest()) {
        *to = *from;
    }
    key
}

fn now_us() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

impl LocalStore {
    /// Bytes that it may take as a cache; `None`: it is a replica.
    #[must_use]
    pub fn budget(&self) -> Option<u64> {
        self.budget.as_ref().map(|budget| budget.bytes)
    }

    /// Keeps a block that was brought from elsewhere because it is missing or bad
    /// here, and that the caller has just hashed: as a repair, and in a cache when there
    /// is room. A crash may take what a cache keeps.
    ///
    /// # Errors
    /// As [`LocalStore::append`] and [`LocalStore::sync`].
    pub fn keep(&self, block: &Block) -> Result<Kept, StoreError> {
        let Some(budget) = &self.budget else {
            return self.put_again(block).map(Kept::Repaired);
        };
        if self.find(&block.cid)?.is_some() {
            // Two readers may have missed it, one after the other.
            if matches!(self.get(&block.cid), Ok(Some(_))) {
                return Ok(Kept::Cached);
            }
            return self.put_again(block).map(Kept::Repaired);
        }
        let len = block.data.len() as u64;
        // Without its nodes nothing of a file can be found, and they are few: they take
        // an eighth more, and wait for nobody.
        let fits = match block.cid.codec() {
            cid::DAG_PB => self.used()?.saturating_add(len) <= budget.bytes + budget.bytes / 8,
            _ => self.find_room(budget, len)?,
        };
        if !fits || matches!(self.admit(len, 0), Err(StoreError::NoSpace)) {
            telemetry::metrics().store_cache_passed.inc();
            return Ok(Kept::PassedBy);
        }
        let ticket = {
            let recent = self.gate.read();
            self.put(&recent, &[block], false)?
        };
        if budget.unsynced.fetch_add(len, Ordering::Relaxed) + len >= SYNC_BYTES {
            budget.unsynced.store(0, Ordering::Relaxed);
            self.sync(ticket)?;
        }
        telemetry::metrics().store_cache_filled_bytes.inc_by(len);
        Ok(Kept::Cached)
    }

    /// Whether so many bytes fit into the budget; waits a little while something
    /// goes.
    fn find_room(&self, budget: &Budget, len: u64) -> Result<bool, StoreError> {
        let start = Instant::now();
        loop {
            if self.used()?.saturating_add(len) <= budget.bytes {
                return Ok(true);
            }
            let mut state = budget.state.lock();
            state.asked = true;
            budget.above.notify_all();
            let left = PATIENCE.saturating_sub(start.elapsed());
            if state.stuck || left.is_zero() {
                return Ok(false);
            }
            budget.below.wait_for(&mut state, left);
        }
    }

    /// Whether so many bytes more would be kept now. Never waits.
    pub fn has_room(&self, bytes: u64) -> bool {
        let within = self.budget.as_ref().is_none_or(|budget| {
            self.used().is_ok_and(|used| used.saturating_add(bytes) <= budget.bytes)
        });
        within && self.admit(bytes, 0).is_ok()
    }

    /// Bytes that should go now; none of a replica, or while the budget is kept.
    ///
    /// # Errors
    /// `Io`.
    pub fn excess(&self) -> Result<u64, StoreError> {
        let Some(budget) = &self.budget else { return Ok(0) };
        let used = self.used()?;
        let asked = budget.state.lock().asked;
        let above = used > budget.high() || asked;
        Ok(if above { used.saturating_sub(budget.low()) } else { 0 })
    }

    /// Waits until something should go, at most so long.
    pub fn wait_for_excess(&self, most: Duration) {
        let Some(budget) = &self.budget else { return };
        let mut state = budget.state.lock();
        if !state.asked {
            budget.above.wait_for(&mut state, most);
        }
    }

    /// A look for what may go is over: `stuck` when nothing was found. Who waits for
    /// room goes on.
    pub fn looked(&self, stuck: bool) {
        let Some(budget) = &self.budget else { return };
        let mut state = budget.state.lock();
        (state.stuck, state.asked) = (stuck, false);
        budget.below.notify_all();
    }

    /// Makes all that was brought durable, so that it can go again.
    ///
    /// # Errors
    /// As [`LocalStore::sync`].
    pub fn sync_kept(&self) -> Result<(), StoreError> {
        let Some(budget) = &self.budget else { return Ok(()) };
        if budget.unsynced.swap(0, Ordering::Relaxed) > 0 {
            let ticket = PackTicket(self.packs.appended());
            self.sync(ticket)?;
        }
        Ok(())
    }

    /// A content was read.
    pub fn note_read(&self, root: &Cid) {
        let Some(budget) = &self.budget else { return };
        let mut readings = budget.readings.lock();
        if readings.newer.len() >= READINGS {
            readings.older = std::mem::take(&mut readings.newer);
        }
        readings.newer.insert(key(root), now_us());
    }

    /// When a content whose root is here was last used, in microseconds since 1970;
    /// `None` when the root is not here.
    ///
    /// # Errors
    /// `Index`.
    pub fn last_used(&self, root: &Cid) -> Result<Option<u64>, StoreError> {
        let Some(place) = self.find(root)? else { return Ok(None) };
        let read = self.budget.as_ref().and_then(|budget| {
            let (readings, key) = (budget.readings.lock(), key(root));
            readings.newer.get(&key).or_else(|| readings.older.get(&key)).copied()
        });
        Ok(Some((place.segment.0 >> 1).max(read.unwrap_or(0))))
    }

    /// Bytes of all segments, as [`LocalStore::usage`] counts them.
    fn used(&self) -> Result<u64, StoreError> {
        let known = *self.used.lock();
        known.map_or_else(|| self.usage().map(|usage| usage.used_bytes), Ok)
    }

    /// Counts anew what the segments take: what is added up meanwhile is rough.
    ///
    /// # Errors
    /// `Io`.
    pub fn recount(&self) -> Result<(), StoreError> {
        *self.used.lock() = None;
        self.usage().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::{MemoryIndex, StoreOptions};
    use super::*;

    fn block(n: u32, len: usize) -> Block {
        Block::raw(Bytes::from(n.to_le_bytes().repeat(len / 4)))
    }

    fn open(dir: &std::path::Path, index: &Arc<MemoryIndex>, budget: u64) -> LocalStore {
        let options = StoreOptions { budget: Some(budget), ..StoreOptions::default() };
        LocalStore::open(dir, Arc::clone(index) as Arc<_>, options).unwrap()
    }

    /// Lets go of all that `may` says; the bytes that came back.
    fn evict(store: &LocalStore, may: &dyn Fn(&Cid) -> bool) -> u64 {
        store.sync_kept().unwrap();
        let collection = store.begin_collection().unwrap();
        let report = collection.run(&|cid| !may(cid), &mut || Ok(())).unwrap();
        store.recount().unwrap();
        store.looked(report.blocks_removed == 0);
        report.bytes_freed
    }

    #[test]
    fn what_is_brought_is_kept_within_the_budget_and_passed_by_above_it() {
        let (dir, index) = (tempfile::tempdir().unwrap(), Arc::new(MemoryIndex::default()));
        let store = open(dir.path(), &index, 16 << 20);
        // Nobody makes room, and says so: nothing waits.
        store.looked(true);
        let kept: Vec<Kept> = (0..24).map(|n| store.keep(&block(n, 1 << 20)).unwrap()).collect();
        let cached = kept.iter().filter(|kept| **kept == Kept::Cached).count();
        assert!((12..=16).contains(&cached), "{kept:?}");
        assert_eq!(kept[cached..], vec![Kept::PassedBy; 24 - cached]);
        assert!(store.usage().unwrap().used_bytes <= 16 << 20);
        assert!(store.excess().unwrap() >= 1 << 20, "who passes by asks for room");
        // Nodes are kept all the same, and so is what is written here.
        let node = Block { cid: cid::of_dag_pb(b"node"), data: Bytes::from_static(b"node") };
        assert_eq!(store.keep(&node).unwrap(), Kept::Cached);
        store.sync(store.append(&[block(99, 1 << 20)]).unwrap()).unwrap();
        assert!(store.get(&block(99, 1 << 20).cid).unwrap().is_some());
        let old: Vec<Cid> = (0..8).map(|n| block(n, 1 << 20).cid).collect();
        while store.excess().unwrap() > 0 {
            assert!(evict(&store, &|cid| old.contains(cid)) > 0);
        }
        assert_eq!(store.keep(&block(50, 1 << 20)).unwrap(), Kept::Cached);
        assert!(store.get(&block(99, 1 << 20).cid).unwrap().is_some());
    }

    #[test]
    fn a_crash_takes_what_was_brought_at_worst_and_bad_blocks_are_repaired() {
        let (dir, index) = (tempfile::tempdir().unwrap(), Arc::new(MemoryIndex::default()));
        let store = open(dir.path(), &index, 16 << 20);
        store.sync(store.append(&[block(1, 4096)]).unwrap()).unwrap();
        let place = store.locate(&block(1, 4096).cid).unwrap();
        assert_eq!(store.keep(&block(1, 4096)).unwrap(), Kept::Cached);
        assert_eq!(store.locate(&block(1, 4096).cid).unwrap(), place, "not written once more");
        assert_eq!(store.keep(&block(2, 4096)).unwrap(), Kept::Cached);
        assert_eq!(store.get(&block(2, 4096).cid).unwrap(), Some(block(2, 4096).data));
        drop(store);
        let (place, mut damaged) = (place.unwrap(), 0);
        for pack in std::fs::read_dir(dir.path().join("packs")).unwrap() {
            let path = pack.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[place.offset as usize + 5] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
        assert_eq!(damaged, 1);
        let store = open(dir.path(), &index, 16 << 20);
        assert!(!store.contains(&block(2, 4096).cid).unwrap());
        assert!(store.get(&block(1, 4096).cid).is_err());
        assert!(matches!(store.keep(&block(1, 4096)).unwrap(), Kept::Repaired(_)));
        assert_eq!(store.get(&block(1, 4096).cid).unwrap(), Some(block(1, 4096).data));
    }

    #[test]
    fn what_was_read_last_is_the_youngest_and_after_a_restart_what_came_last() {
        let (dir, index) = (tempfile::tempdir().unwrap(), Arc::new(MemoryIndex::default()));
        let store = open(dir.path(), &index, 16 << 20);
        let roots: Vec<Cid> = (0..3).map(|n| block(n, 2 << 20).cid).collect();
        for n in 0..3 {
            assert_eq!(store.keep(&block(n, 2 << 20)).unwrap(), Kept::Cached);
        }
        store.sync_kept().unwrap();
        store.note_read(&roots[0]);
        let used = |store: &LocalStore| -> Vec<u64> {
            roots.iter().map(|root| store.last_used(root).unwrap().unwrap()).collect()
        };
        let all = used(&store);
        assert!(all[0] > all[1] && all[0] > all[2] && all[1] <= all[2], "{all:?}");
        assert_eq!(store.last_used(&block(9, 4).cid).unwrap(), None);
        drop(store);
        let all = used(&open(dir.path(), &index, 16 << 20));
        assert!(all[0] < all[2], "{all:?}");
    }
}
