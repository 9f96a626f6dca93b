//! Staging files become flat segments.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;

use super::staging::Body;
use super::{IndexChange, LocalStore, Location, SealedLeaf, Staging, StoreError};
use crate::runtime::failpoint;
use crate::telemetry;
use crate::types::{Block, Cid, SegmentId};

/// Syncs that run at once: enough for the disk's queue, few enough that a
/// thousand files do not start a thousand threads.
const PARALLEL_SYNCS: usize = 4;

/// A staging with the leaves that it brings.
type Item<'a> = (&'a mut Staging, Vec<SealedLeaf>);

impl LocalStore {
    /// Turns staging files into flat segments: fdatasync, rename, directory
    /// sync, index; many at once share the directory syncs. `leaves` are the new
    /// leaves with their offsets; raw leaves only. A staging in memory is
    /// appended to the pack instead; one whose leaves are all here already
    /// leaves no segment. All is durable and indexed when this returns.
    ///
    /// A sealed staging can still be read; a change to it goes to a copy.
    ///
    /// # Errors
    /// `Poisoned`, `NoSpace`, `Index`, `Io`. The stagings are as before then;
    /// those in memory may be in the pack.
    pub fn seal(&self, sealed: &mut [Item<'_>]) -> Result<(), StoreError> {
        self.check_poison()?;
        for (staging, leaves) in sealed.iter() {
            check_leaves(staging, leaves)?;
        }
        let mut sealing = self.sealing.lock();
        sealing.retain(|(_, file)| file.strong_count() > 0);
        for (staging, _) in sealed.iter() {
            if let Body::File { file, .. } = &staging.body {
                sealing.push((staging.id, Arc::downgrade(file)));
            }
        }
        drop(sealing);
        self.seal_all(sealed)
    }

    /// Segments that may still get entries: packs that are written, and files
    /// of stagings. A staging whose commit failed is sealed again later.
    pub(super) fn unfinished(&self) -> HashSet<SegmentId> {
        let mut busy = self.packs.active();
        let mut sealing = self.sealing.lock();
        sealing.retain(|(_, file)| file.strong_count() > 0);
        busy.extend(sealing.iter().map(|(id, _)| *id));
        busy
    }

    fn seal_all(&self, sealed: &mut [Item<'_>]) -> Result<(), StoreError> {
        let mut ticket = None;
        // What brings no new block leaves no segment.
        let mut flat = Vec::new();
        for item in sealed.iter_mut().filter(|item| !item.1.is_empty()) {
            if item.0.is_in_memory() {
                let blocks = memory_blocks(item.0, &item.1)?;
                let blocks: Vec<&Block> = blocks.iter().collect();
                let recent = self.gate.read();
                ticket = ticket.max(Some(self.put(&recent, &blocks, false)?));
            } else if !self.has_all(&item.1)? {
                flat.push(item);
            }
        }
        self.sync_files(&mut flat)?;
        self.name_and_index(&mut flat)?;
        for (staging, _) in flat {
            staging.sealed = true;
        }
        ticket.map_or(Ok(()), |ticket| self.sync(ticket))
    }

    /// Whether every leaf is here already, and was seen good in this life: an
    /// equal file was sealed before.
    fn has_all(&self, leaves: &[SealedLeaf]) -> Result<bool, StoreError> {
        let recent = self.gate.read();
        for leaf in leaves {
            let place = self.index.get(&leaf.cid)?.filter(|place| self.cache.is_verified(place));
            let here = place.map_or(Ok(false), |place| self.files.holds(&place))?;
            if !here {
                return Ok(false);
            }
            recent.touch(&leaf.cid);
        }
        Ok(true)
    }

    /// A staging whose sync failed never syncs again: the kernel tells of lost
    /// bytes once.
    fn sync_files(&self, items: &mut [&mut Item<'_>]) -> Result<(), StoreError> {
        for item in items.iter() {
            item.0.check_poison()?;
        }
        let files: Vec<_> = items
            .iter()
            .enumerate()
            .filter(|(_, item)| !item.0.synced)
            .filter_map(|(at, item)| match &item.0.body {
                Body::File { path, file } => Some((at, path.clone(), file.clone())),
                Body::Nothing | Body::Memory(_) => None,
            })
            .collect();
        let queue = Mutex::new(files.into_iter());
        let failed = Mutex::new(Vec::new());
        let work = || {
            loop {
                let Some((at, path, file)) = queue.lock().next() else { return };
                match file.sync_data() {
                    Ok(()) => drop(telemetry::metrics().store_syncs.inc()),
                    Err(error) => failed.lock().push((at, StoreError::io(&path, error))),
                }
            }
        };
        std::thread::scope(|scope| {
            let extra = items.len().min(PARALLEL_SYNCS).saturating_sub(1);
            for _ in 0..extra {
                scope.spawn(work);
            }
            work();
        });
        let mut outcome = Ok(());
        for (at, error) in failed.into_inner() {
            items[at].0.poisoned = true;
            outcome = Err(self.poison(error));
        }
        outcome?;
        if !items.is_empty() {
            failpoint::reach("store.seal.synced");
        }
        Ok(())
    }

    /// From here to the end a failure puts the names back.
    fn name_and_index(&self, items: &mut [&mut Item<'_>]) -> Result<(), StoreError> {
        let mut renamed: Vec<(usize, PathBuf)> = Vec::new();
        let result = self.name_all(items, &mut renamed).and_then(|()| self.index_all(items));
        if let Err(error) = result {
            let lost = self.poisoned.load(Ordering::Acquire);
            for (at, old) in renamed {
                // A folder's sync failed: whether the name is there is not known.
                items[at].0.poisoned |= lost;
                let Body::File { path, file } = &mut items[at].0.body else { continue };
                // Where even this fails the staging goes on under its new name.
                match self.disk.rename(path, &old) {
                    Ok(()) => {
                        file.renamed(&old);
                        *path = old;
                    }
                    Err(e) => tracing::error!(error = %e, path = %path.display(), "cannot unseal"),
                }
            }
            return Err(error);
        }
        Ok(())
    }

    fn name_all(
        &self,
        items: &mut [&mut Item<'_>],
        renamed: &mut Vec<(usize, PathBuf)>,
    ) -> Result<(), StoreError> {
        let mut folders = BTreeSet::new();
        for (at, item) in items.iter_mut().enumerate() {
            let staging = &mut *item.0;
            if staging.sealed {
                continue;
            }
            let folder = self.layout.folder(staging.id);
            let target = self.layout.file(staging.id);
            self.disk.make_dir(&folder).map_err(|e| StoreError::io(&folder, e))?;
            if let Body::File { path, file } = &mut staging.body {
                self.disk.rename(path, &target).map_err(|e| StoreError::io(&target, e))?;
                file.renamed(&target);
                renamed.push((at, std::mem::replace(path, target)));
                failpoint::reach("store.seal.renamed");
            }
            folders.insert(folder);
        }
        if folders.is_empty() {
            return Ok(());
        }
        // A new shard's own name, the names in it, and that the old ones are gone.
        folders.extend([self.layout.segments(), self.layout.staging()]);
        for folder in &folders {
            self.disk.sync_dir(folder).map_err(|e| self.poison(StoreError::io(folder, e)))?;
        }
        failpoint::reach("store.seal.named");
        Ok(())
    }

    fn index_all(&self, items: &[&mut Item<'_>]) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        let mut bytes = 0;
        let recent = self.gate.read();
        for item in items {
            let (staging, leaves) = &**item;
            for leaf in leaves {
                recent.touch(&leaf.cid);
                changes.push(IndexChange::Put(leaf.cid, place_of(staging, leaf)));
                bytes += u64::from(leaf.len);
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.index.apply(&changes)?;
        failpoint::reach("store.seal.indexed");
        for item in items {
            let (staging, leaves) = &**item;
            for leaf in leaves {
                self.cache.set_verified(&place_of(staging, leaf));
            }
        }
        telemetry::metrics().store_bytes_written.inc_by(bytes);
        self.note_used(bytes);
        Ok(())
    }

    fn poison(&self, error: StoreError) -> StoreError {
        tracing::error!(%error, "a sync failed; the store takes no more writes");
        self.poisoned.store(true, Ordering::Release);
        error
    }
}

fn place_of(staging: &Staging, leaf: &SealedLeaf) -> Location {
    Location { segment: staging.id, offset: leaf.offset, len: leaf.len }
}

fn check_leaves(staging: &Staging, leaves: &[SealedLeaf]) -> Result<(), StoreError> {
    let inside = |leaf: &SealedLeaf| {
        leaf.offset.checked_add(leaf.len.into()).is_some_and(|end| end <= staging.len())
            && leaf.len as usize <= Block::MAX_LEN
    };
    if leaves.iter().all(inside) {
        Ok(())
    } else {
        Err(StoreError::invalid(&staging.dir, "a sealed leaf lies outside of its file"))
    }
}

fn memory_blocks(staging: &Staging, leaves: &[SealedLeaf]) -> Result<Vec<Block>, StoreError> {
    let Body::Memory(bytes) = &staging.body else {
        return Err(StoreError::invalid(&staging.dir, "a leaf was sealed that was never written"));
    };
    let block = |cid: Cid, data: &[u8]| Block { cid, data: Bytes::copy_from_slice(data) };
    Ok(leaves
        .iter()
        .map(|leaf| {
            let start = leaf.offset as usize;
            block(leaf.cid, &bytes[start..start + leaf.len as usize])
        })
        .collect())
}
