//! Local reclamation: drops what a complete mark found dead.
//!
//! A mark of the metadata cannot see what is being committed beside it. Blocks
//! that were written, or found to be here, since the collection *before* this
//! one began are therefore kept: what is in flight has been touched lately. A
//! [`Hold`] stretches that for long work such as an import.
//!
//! Order: entries leave the index, the index is persisted, bytes go. The
//! reverse could leave an index, after a crash, that answers for bytes that are
//! gone.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::layout::{self, SegmentKind};
use super::pages::PAGE;
use super::{IndexChange, LocalStore, Location, MarkSet, StoreError};
use crate::types::{Cid, SegmentId};

/// Index entries looked at under one lock.
const PAGE_ROWS: usize = 4096;
/// Dropped entries whose bytes wait for one persist: bounds memory.
const DEAD_MAX: usize = 64 * 1024;
/// Bits for some 1.6 million blocks between two collections; beyond that
/// garbage stays longer.
const RECENT_BYTES: u64 = 2 << 20;

/// What was written or found lately.
pub(super) struct Recent {
    current: MarkSet,
    previous: MarkSet,
    rotated: Instant,
}

impl Recent {
    pub fn new(now: Instant) -> Self {
        let set = || MarkSet::new(u64::MAX, RECENT_BYTES);
        Self { current: set(), previous: MarkSet::new(0, 0), rotated: now }
    }

    pub fn touch(&self, cid: &Cid) {
        self.current.insert(cid);
    }

    fn contains(&self, cid: &Cid) -> bool {
        self.current.contains(cid) || self.previous.contains(cid)
    }

    fn rotate(&mut self, now: Instant) {
        let fresh = Self::new(now);
        self.previous = std::mem::replace(&mut self.current, fresh.current);
        self.rotated = now;
    }
}

/// While it lives, no block that is written or found is collected.
#[derive(Debug)]
pub struct Hold {
    holds: Arc<AtomicUsize>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// Entries dropped from the index.
    pub blocks_removed: u64,
    /// Bytes of these blocks.
    pub bytes_removed: u64,
    /// Segment files removed.
    pub segments_removed: u64,
    /// Bytes that the disk got back.
    pub bytes_freed: u64,
}

/// A collection that has begun: mark now, then [`Collection::run`].
pub struct Collection<'a> {
    store: &'a LocalStore,
    _only: MutexGuard<'a, ()>,
    /// Segments with a larger id are newer than the mark.
    newest: SegmentId,
}

impl LocalStore {
    /// Keeps what is written or found from now on until the hold is dropped.
    pub fn hold(&self) -> Hold {
        self.holds.fetch_add(1, Ordering::AcqRel);
        Hold { holds: self.holds.clone() }
    }

    /// Begins a collection; the mark must be made from metadata read after
    /// this. Waits for one that runs. `grace` is longer than any commit takes
    /// from its first block to its root (10 minutes is plenty).
    pub fn begin_collection(&self, grace: Duration) -> Collection<'_> {
        let only = self.collecting.lock();
        let mut recent = self.gate.write();
        let now = Instant::now();
        let old_enough = now.duration_since(recent.rotated) >= grace;
        if old_enough && self.holds.load(Ordering::Acquire) == 0 {
            recent.rotate(now);
        }
        drop(recent);
        Collection { store: self, _only: only, newest: layout::new_id(SegmentKind::Flat) }
    }
}

impl Collection<'_> {
    /// Drops every block that `live` denies and that was not touched lately,
    /// frees its bytes, and removes segment files that hold nothing any more.
    /// `persist` makes the index durable. Any error ends the collection; what
    /// was freed by then was dead.
    ///
    /// Only blocks that span whole 4 KiB pages are punched out of a file that
    /// stays; small blocks of a pack go with the pack.
    ///
    /// # Errors
    /// Of `persist`; `Index`, `Io`.
    pub fn run(
        self,
        live: &dyn Fn(&Cid) -> bool,
        persist: &mut dyn FnMut() -> Result<(), StoreError>,
    ) -> Result<CollectReport, StoreError> {
        let store = self.store;
        let mut report = CollectReport::default();
        // Taken before the index is read: what is unfinished now may enter it at any time.
        let mut busy = store.packs.active();
        busy.extend(store.sealing.lock().iter().copied());
        let mut unused = self.old_files()?;
        unused.retain(|id| !busy.contains(id));

        let mut dead: Vec<Location> = Vec::new();
        let mut after = None;
        loop {
            let page = store.index.page(after.as_ref(), PAGE_ROWS)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            let (kept, candidates): (Vec<_>, Vec<_>) = page
                .into_iter()
                .partition(|(cid, place)| busy.contains(&place.segment) || live(cid));
            for (_, place) in kept {
                unused.remove(&place.segment);
            }
            let before = dead.len();
            self.drop_entries(&candidates, &mut unused, &mut dead)?;
            report.blocks_removed += (dead.len() - before) as u64;
            report.bytes_removed += dead[before..].iter().map(|p| u64::from(p.len)).sum::<u64>();
            if dead.len() >= DEAD_MAX {
                persist()?;
                report.bytes_freed += self.empty(&mut dead, &HashSet::new())?;
            }
        }
        if dead.is_empty() && unused.is_empty() {
            return Ok(report);
        }
        let packs = unused.iter().filter(|id| layout::kind(**id) == SegmentKind::Pack);
        store.index.apply(&packs.map(|id| IndexChange::Mark(*id, 0)).collect::<Vec<_>>())?;
        persist()?;
        report.bytes_freed += self.empty(&mut dead, &unused)?;
        for id in unused {
            report.bytes_freed += self.remove_file(id)?;
            report.segments_removed += 1;
        }
        store.note_freed(report.bytes_freed);
        Ok(report)
    }

    /// Takes candidates out of the index unless they were touched or moved.
    fn drop_entries(
        &self,
        candidates: &[(Cid, Location)],
        unused: &mut HashSet<SegmentId>,
        dead: &mut Vec<Location>,
    ) -> Result<(), StoreError> {
        let store = self.store;
        let recent = store.gate.write();
        let mut changes = Vec::new();
        for (cid, place) in candidates {
            if recent.contains(cid) || store.index.get(cid)? != Some(*place) {
                unused.remove(&place.segment);
            } else {
                changes.push(IndexChange::Remove(*cid));
                store.cache.forget(cid, Some(place));
                dead.push(*place);
            }
        }
        if changes.is_empty() { Ok(()) } else { store.index.apply(&changes) }
    }

    /// Punches dead ranges out of files that stay. Neighbours go in one call.
    fn empty(
        &self,
        dead: &mut Vec<Location>,
        removed: &HashSet<SegmentId>,
    ) -> Result<u64, StoreError> {
        dead.retain(|place| !removed.contains(&place.segment));
        dead.sort_by_key(|place| (place.segment, place.offset));
        let mut freed = 0;
        for segment in dead.chunk_by(|a, b| a.segment == b.segment) {
            freed += self.punch(segment)?;
        }
        dead.clear();
        Ok(freed)
    }

    fn punch(&self, places: &[Location]) -> Result<u64, StoreError> {
        let id = places[0].segment;
        let path = self.store.layout.file(id);
        let io = |e| StoreError::io(&path, e);
        let file = match self.store.files.open_for_writing(id) {
            Ok(file) => file,
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(0);
            }
            Err(error) => return Err(error),
        };
        let before = file.stat().map_err(io)?;
        let end_of = |place: &Location| place.offset + u64::from(place.len);
        for run in places.chunk_by(|a, b| end_of(a) == b.offset) {
            let (first, last) = (&run[0], &run[run.len() - 1]);
            let start = first.offset.next_multiple_of(PAGE);
            let end = end_of(last);
            // The file's last page may go whole: nothing follows.
            let end =
                if end >= before.len { end.next_multiple_of(PAGE) } else { end / PAGE * PAGE };
            if start < end {
                file.punch(start, end - start).map_err(io)?;
            }
        }
        let after = file.stat().map_err(io)?;
        Ok(before.allocated.saturating_sub(after.allocated))
    }

    fn remove_file(&self, id: SegmentId) -> Result<u64, StoreError> {
        let store = self.store;
        let path = store.layout.file(id);
        let io = |e| StoreError::io(&path, e);
        let freed = store.files.open_for_writing(id)?.stat().map_err(io)?.allocated;
        store.disk.remove(&path).map_err(io)?;
        store.files.forget(id);
        Ok(freed)
    }

    /// All segment files older than this collection.
    fn old_files(&self) -> Result<HashSet<SegmentId>, StoreError> {
        let mut ids = HashSet::new();
        self.store.each_file(&mut |id| {
            if id < self.newest {
                ids.insert(id);
            }
            Ok(())
        })?;
        Ok(ids)
    }
}
