//! Local reclamation: drops what a complete mark found dead.
//!
//! A mark of the metadata cannot see what is being committed beside it. Who
//! writes blocks that no row refers to yet has a [`CommitGuard`] from before its
//! first block until its row is committed: what was written, or found to be
//! here, under a guard that a mark may not have seen is kept. Longer work (an
//! import, an export) takes a [`Hold`], beside which nothing is dropped at all.
//!
//! Order: entries leave the index, the index is persisted, bytes go. The
//! reverse could leave an index, after a crash, that answers for bytes that are
//! gone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::MutexGuard;

use super::disk::DiskFile;
use super::layout::{self, SegmentKind};
use super::pages::PAGE;
use super::{IndexChange, LocalStore, Location, MarkSet, StoreError};
use crate::runtime::failpoint;
use crate::types::{Cid, SegmentId};

/// Index entries looked at under one lock.
pub(super) const PAGE_ROWS: usize = 4096;
/// Dropped entries whose bytes wait for one persist: bounds memory.
const DEAD_MAX: usize = 64 * 1024;
/// Bits for some 1.6 million blocks between two collections; beyond that
/// garbage stays longer.
const RECENT_BYTES: u64 = 2 << 20;

/// What was written or found lately. A collection begins a new generation; the
/// one before is kept while a commit that began in it still runs.
pub(super) struct Recent {
    current: MarkSet,
    previous: Option<MarkSet>,
    generation: usize,
}

impl Recent {
    pub fn new() -> Self {
        Self { current: MarkSet::new(u64::MAX, RECENT_BYTES), previous: None, generation: 0 }
    }

    pub fn touch(&self, cid: &Cid) {
        self.current.insert(cid);
    }

    fn contains(&self, cid: &Cid) -> bool {
        self.current.contains(cid) || self.previous.as_ref().is_some_and(|set| set.contains(cid))
    }
}

/// While it lives nothing is collected.
#[derive(Debug)]
pub struct Hold {
    holds: Arc<AtomicUsize>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.fetch_sub(1, Ordering::AcqRel);
    }
}

/// While it lives, what was written or found since it was made is not
/// collected.
#[derive(Debug)]
pub struct CommitGuard<'a> {
    running: &'a AtomicUsize,
}

impl Drop for CommitGuard<'_> {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::AcqRel);
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
    /// Bytes of live blocks that were moved out of packs that were mostly dead.
    pub bytes_moved: u64,
    /// The next collection can free more: blocks were moved out of packs, or a
    /// hold cut this one short.
    pub more: bool,
}

/// What a pass over the index found in one segment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    pub blocks: u64,
    pub bytes: u64,
    /// Of them, bytes that are dead: they are in a pack that is written.
    pub dead: u64,
}

/// A collection that has begun: mark now, then [`Collection::run`].
pub struct Collection<'a> {
    store: &'a LocalStore,
    _only: MutexGuard<'a, ()>,
    /// Segments with a larger id are newer than the mark.
    newest: SegmentId,
}

impl LocalStore {
    /// Keeps everything that is here until the hold is dropped. A collection
    /// that runs drops nothing more once this returns.
    pub fn hold(&self) -> Hold {
        self.holds.fetch_add(1, Ordering::AcqRel);
        // Waits for a page that is being dropped.
        drop(self.gate.read());
        Hold { holds: self.holds.clone() }
    }

    /// For a commit, from before its first block until its row is there. Keep
    /// it short: what it covers is kept, and what the one before covered.
    pub fn begin_commit(&self) -> CommitGuard<'_> {
        let recent = self.gate.read();
        let running = &self.commits[recent.generation % 2];
        running.fetch_add(1, Ordering::AcqRel);
        CommitGuard { running }
    }

    /// Begins a collection; the mark must be made from metadata read after
    /// this. Waits for one that runs; `None` beside a [`Hold`].
    pub fn begin_collection(&self) -> Option<Collection<'_>> {
        let only = self.collecting.lock();
        let mut recent = self.gate.write();
        if self.holds.load(Ordering::Acquire) > 0 {
            return None;
        }
        let running = |generation: usize| self.commits[generation % 2].load(Ordering::Acquire) > 0;
        // The counter of the generation before is the next one's, too.
        if !running(recent.generation + 1) {
            let fresh = Recent::new();
            let last = std::mem::replace(&mut recent.current, fresh.current);
            recent.previous = running(recent.generation).then_some(last);
            recent.generation += 1;
        }
        drop(recent);
        Some(Collection { store: self, _only: only, newest: layout::new_id(SegmentKind::Flat) })
    }

    /// Blocks and bytes in the index that `live` denies.
    ///
    /// # Errors
    /// `Index`.
    pub fn unreferenced(&self, live: &dyn Fn(&Cid) -> bool) -> Result<(u64, u64), StoreError> {
        let (mut blocks, mut bytes, mut after) = (0, 0, None);
        loop {
            let page = self.index.page(after.as_ref(), PAGE_ROWS)?;
            let Some((last, _)) = page.last() else { return Ok((blocks, bytes)) };
            after = Some(*last);
            for (_, place) in page.iter().filter(|(cid, _)| !live(cid)) {
                blocks += 1;
                bytes += u64::from(place.len);
            }
        }
    }
}

impl Collection<'_> {
    /// Drops every block that `live` denies and that no commit may need, frees
    /// its bytes, removes segment files that hold nothing any more, and makes
    /// room in those that hold little. `persist` makes the index durable. Any
    /// error ends the collection; what was freed by then was dead.
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
        // First the files, then what is unfinished, then the index: a segment that
        // is finished in between is in the index, one that is begun is not in the list.
        let files = self.old_files()?;
        let busy = store.unfinished();
        let mut unused: HashSet<SegmentId> = files.difference(&busy).copied().collect();
        let mut tallies: HashMap<SegmentId, Tally> = HashMap::new();
        let mut dead: Vec<Location> = Vec::new();
        let mut after = None;
        loop {
            let page = store.index.page(after.as_ref(), PAGE_ROWS)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            let (kept, candidates): (Vec<_>, Vec<_>) = page
                .into_iter()
                .partition(|(cid, place)| busy.contains(&place.segment) || live(cid));
            for (_, place) in kept.iter().filter(|(cid, _)| !live(cid)) {
                tallies.entry(place.segment).or_default().dead += u64::from(place.len);
            }
            let mut kept: Vec<Location> = kept.into_iter().map(|(_, place)| place).collect();
            let before = dead.len();
            report.more = !self.drop_entries(&candidates, &mut kept, &mut dead)?;
            for place in &kept {
                unused.remove(&place.segment);
                let tally = tallies.entry(place.segment).or_default();
                tally.blocks += 1;
                tally.bytes += u64::from(place.len);
            }
            report.blocks_removed += (dead.len() - before) as u64;
            report.bytes_removed += dead[before..].iter().map(|p| u64::from(p.len)).sum::<u64>();
            if report.more {
                // What was not looked at may be anywhere.
                unused.clear();
                break;
            }
            if dead.len() >= DEAD_MAX {
                persist()?;
                report.bytes_freed += self.empty(&mut dead, &HashSet::new())?;
            }
        }
        if !dead.is_empty() || !unused.is_empty() {
            let packs = unused.iter().filter(|id| layout::kind(**id) == SegmentKind::Pack);
            store.index.apply(&packs.map(|id| IndexChange::Mark(*id, 0)).collect::<Vec<_>>())?;
            failpoint::reach("store.collect.unmarked");
            persist()?;
            failpoint::reach("store.collect.persisted");
            report.bytes_freed += self.empty(&mut dead, &unused)?;
            for id in &unused {
                report.bytes_freed += self.remove_file(*id)?;
                report.segments_removed += 1;
            }
        }
        if !report.more {
            for (id, tally) in tallies.iter().filter(|(id, _)| busy.contains(id)) {
                if tally.dead >= super::compact::WORTH && tally.dead > tally.bytes / 2 {
                    store.packs.retire(*id);
                    report.more = true;
                }
            }
            let rest: HashSet<_> = files.difference(&unused).copied().collect();
            super::compact::compact(store, &rest, &busy, &tallies, live, &mut report)?;
        }
        store.note_freed(report.bytes_freed);
        Ok(report)
    }

    /// Takes candidates out of the index unless they were touched or moved.
    /// False, and nothing is taken, when a hold came.
    fn drop_entries(
        &self,
        candidates: &[(Cid, Location)],
        kept: &mut Vec<Location>,
        dead: &mut Vec<Location>,
    ) -> Result<bool, StoreError> {
        let store = self.store;
        let recent = store.gate.write();
        if store.holds.load(Ordering::Acquire) > 0 {
            return Ok(false);
        }
        let mut changes = Vec::new();
        for (cid, place) in candidates {
            if recent.contains(cid) || store.index.get(cid)? != Some(*place) {
                kept.push(*place);
            } else {
                changes.push(IndexChange::Remove(*cid));
                store.cache.forget(cid, Some(place));
                dead.push(*place);
            }
        }
        if !changes.is_empty() {
            store.index.apply(&changes)?;
            failpoint::reach("store.collect.dropped");
        }
        Ok(true)
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
            punch_pages(file.as_ref(), first.offset, end_of(last), before.len).map_err(io)?;
            failpoint::reach("store.collect.punched");
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
        failpoint::reach("store.collect.removed");
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

/// Punches the whole pages of `start..end` out of a file of `len` bytes.
pub(super) fn punch_pages(
    file: &dyn DiskFile,
    start: u64,
    end: u64,
    len: u64,
) -> std::io::Result<()> {
    let start = start.next_multiple_of(PAGE);
    // The file's last page may go whole: nothing follows.
    let end = if end >= len { end.next_multiple_of(PAGE) } else { end / PAGE * PAGE };
    if start < end { file.punch(start, end - start) } else { Ok(()) }
}
