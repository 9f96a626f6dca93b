use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::pack::Packs;
use super::segment::{Segments, sync_dir};
use super::{BlockIndex, IndexChange, Location, SealedLeaf, Staging, StoreError};
use crate::types::{Block, Cid, Ino, SegmentId, cid};

/// Blocks of an index page while verifying.
const PAGE: usize = 4096;
/// dag-pb nodes up to this size are cached; larger ones are rare.
const CACHED_NODE_BYTES: usize = 256 << 10;

/// Sizes and limits of the store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// A pack is sealed and a new one begun at this many bytes.
    pub pack_bytes: u64,
    /// Bound of the set that remembers which blocks were verified (entries of
    /// about 40 bytes).
    pub verified_entries: usize,
    /// Bound of the cache of dag-pb nodes, in bytes.
    pub cache_bytes: u64,
    /// Open segment files kept.
    pub open_files: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            pack_bytes: 64 << 20,
            verified_entries: 1 << 19,
            cache_bytes: 32 << 20,
            open_files: 256,
        }
    }
}

/// A place in the packs' stream; [`LocalStore::sync`] makes it durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PackTicket(pub u64);

/// Bytes on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Of all segments (allocated bytes).
    pub used_bytes: u64,
    /// Of the filesystem below.
    pub capacity_bytes: u64,
    /// Free for us in the filesystem below.
    pub available_bytes: u64,
}

/// Something that a verification found.
#[derive(Debug)]
pub struct VerifyProblem {
    /// The block.
    pub cid: Cid,
    /// What is wrong with it.
    pub error: StoreError,
}

#[derive(Clone)]
struct NodeWeight;

impl Weighter<Cid, Bytes> for NodeWeight {
    fn weight(&self, _: &Cid, node: &Bytes) -> u64 {
        node.len() as u64 + 128
    }
}

/// Group commit: which part of the stream is durable, and who flushes.
#[derive(Default)]
struct Flush {
    synced: u64,
    running: bool,
}

/// The local store of one volume. All methods may be called by many threads.
///
/// Lock order: `flush`, then `packs`; neither is held over a sync.
pub struct LocalStore {
    dir: PathBuf,
    index: Arc<dyn BlockIndex>,
    options: StoreOptions,
    segments: Segments,
    packs: Mutex<Packs>,
    flush: Mutex<Flush>,
    flushed: Condvar,
    verified: Cache<(SegmentId, u64), ()>,
    nodes: Cache<Cid, Bytes, NodeWeight>,
    poisoned: AtomicBool,
    used: AtomicU64,
}

impl LocalStore {
    /// Opens or makes the store in `dir` (`segments/`, `packs/`, `staging/`) and
    /// cuts unindexed pack tails. Staging files are kept until
    /// [`LocalStore::discard_staging_except`].
    ///
    /// # Errors
    /// `Io`, `Index`.
    pub fn open(
        dir: &Path,
        index: Arc<dyn BlockIndex>,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let staging = dir.join("staging");
        std::fs::create_dir_all(&staging).map_err(|e| StoreError::io(&staging, e))?;
        let (segments, ids, used) = Segments::scan(dir, options.open_files)?;
        let marks = index.marks()?;
        let mut packs = Packs::default();
        let mut newest: Option<(SegmentId, u64)> = None;
        for id in ids.into_iter().filter(|id| Segments::is_pack(*id)) {
            let path = segments.path(id);
            let Some(mark) = marks.iter().find(|mark| mark.segment == id) else {
                // Nothing of it was ever acknowledged.
                std::fs::remove_file(&path).map_err(|e| StoreError::io(&path, e))?;
                continue;
            };
            let len = std::fs::metadata(&path).map_err(|e| StoreError::io(&path, e))?.len();
            if mark.len < len {
                let file = File::options()
                    .write(true)
                    .open(&path)
                    .map_err(|e| StoreError::io(&path, e))?;
                file.set_len(mark.len)
                    .and_then(|()| file.sync_all())
                    .map_err(|e| StoreError::io(&path, e))?;
            }
            if mark.len <= len && newest.is_none_or(|(seen, _)| id > seen) {
                newest = Some((id, mark.len));
            }
        }
        if let Some((id, len)) = newest.filter(|(_, len)| *len < options.pack_bytes) {
            let path = segments.path(id);
            let file = File::options()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(|e| StoreError::io(&path, e))?;
            packs.resume(id, file, len);
        }
        let nodes_hint = (options.cache_bytes / 8192) as usize + 16;
        Ok(Self {
            dir: dir.to_owned(),
            index,
            segments,
            packs: Mutex::new(packs),
            flush: Mutex::default(),
            flushed: Condvar::new(),
            verified: Cache::new(options.verified_entries),
            nodes: Cache::with_weighter(nodes_hint, options.cache_bytes, NodeWeight),
            options,
            poisoned: AtomicBool::new(false),
            used: AtomicU64::new(used),
        })
    }

    fn refuse_if_poisoned(&self) -> Result<(), StoreError> {
        if self.poisoned.load(Ordering::Acquire) { Err(StoreError::Poisoned) } else { Ok(()) }
    }

    /// A failed sync tells once; what it lost is unknown, so nothing is written
    /// after it in this life.
    fn poison(&self, error: StoreError) -> StoreError {
        self.poisoned.store(true, Ordering::Release);
        self.flushed.notify_all();
        error
    }

    /// Where a block lies, durable or not yet.
    fn place(&self, id: &Cid) -> Result<Option<Location>, StoreError> {
        if let Some(place) = self.packs.lock().pending.get(id) {
            return Ok(Some(*place));
        }
        self.index.get(id)
    }

    /// Whether the block is here, without reading it.
    ///
    /// # Errors
    /// `Index`.
    pub fn contains(&self, id: &Cid) -> Result<bool, StoreError> {
        Ok(self.place(id)?.is_some())
    }

    /// Where it lies, if it is durable here.
    ///
    /// # Errors
    /// `Index`.
    pub fn locate(&self, id: &Cid) -> Result<Option<Location>, StoreError> {
        self.index.get(id)
    }

    /// The whole block, verified at first use; `None` when it is not here.
    ///
    /// # Errors
    /// `Corrupt`, `SegmentMissing`: a copy elsewhere must repair it.
    pub fn get(&self, id: &Cid) -> Result<Option<Bytes>, StoreError> {
        if let Some(node) = self.nodes.get(id) {
            return Ok(Some(node));
        }
        let Some(place) = self.place(id)? else { return Ok(None) };
        let data = Bytes::from(self.read_whole(id, place)?);
        if id.codec() == cid::DAG_PB && data.len() <= CACHED_NODE_BYTES {
            self.nodes.insert(*id, data.clone());
        }
        Ok(Some(data))
    }

    /// Part of a block into `buf` from `offset`; the whole block is verified at
    /// its first use. False when it is not here.
    ///
    /// # Errors
    /// `Corrupt`, `SegmentMissing`.
    pub fn read(&self, id: &Cid, offset: u64, buf: &mut [u8]) -> Result<bool, StoreError> {
        let Some(place) = self.place(id)? else { return Ok(false) };
        if offset + buf.len() as u64 > u64::from(place.len) {
            return Err(self.corrupt(id, place));
        }
        if self.verified.get(&(place.segment, place.offset)).is_some() {
            let file = self.segments.open(place.segment, id)?;
            return match file.read_exact_at(buf, place.offset + offset) {
                Ok(()) => Ok(true),
                Err(_) => Err(StoreError::SegmentMissing { cid: *id, segment: place.segment }),
            };
        }
        let whole = self.read_whole(id, place)?;
        buf.copy_from_slice(&whole[offset as usize..offset as usize + buf.len()]);
        Ok(true)
    }

    #[expect(clippy::unused_self, reason = "reads as the store's judgement")]
    fn corrupt(&self, id: &Cid, place: Location) -> StoreError {
        StoreError::Corrupt { cid: *id, segment: place.segment, offset: place.offset }
    }

    fn read_whole(&self, id: &Cid, place: Location) -> Result<Vec<u8>, StoreError> {
        let file = self.segments.open(place.segment, id)?;
        let mut data = vec![0; place.len as usize];
        file.read_exact_at(&mut data, place.offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                StoreError::SegmentMissing { cid: *id, segment: place.segment }
            }
            _ => StoreError::io(&self.segments.path(place.segment), e),
        })?;
        if self.verified.get(&(place.segment, place.offset)).is_none() {
            if cid::verify(id, &data) != cid::Verdict::Match {
                return Err(self.corrupt(id, place));
            }
            self.verified.insert((place.segment, place.offset), ());
        }
        Ok(data)
    }

    /// Appends blocks to the open pack. They can be read at once; durable and
    /// indexed after [`LocalStore::sync`]. Blocks that are here are skipped.
    /// The bytes must match their CIDs.
    ///
    /// # Errors
    /// `NoSpace`, `Poisoned`, `Io`.
    pub fn append(&self, blocks: &[Block]) -> Result<PackTicket, StoreError> {
        self.refuse_if_poisoned()?;
        let mut absent = Vec::with_capacity(blocks.len());
        for block in blocks {
            if !self.contains(&block.cid)? {
                absent.push(block);
            }
        }
        self.append_all(&mut absent)
    }

    fn append_all(&self, blocks: &mut Vec<&Block>) -> Result<PackTicket, StoreError> {
        let mut packs = self.packs.lock();
        let mut seen = std::collections::HashSet::new();
        blocks.retain(|block| seen.insert(block.cid));
        let before = packs.stream;
        if !blocks.is_empty() {
            let places = packs.append(blocks, &self.segments, self.options.pack_bytes)?;
            for place in places {
                self.verified.insert((place.segment, place.offset), ());
            }
        }
        self.used.fetch_add(packs.stream - before, Ordering::Relaxed);
        // What was skipped may be pending from another thread: the ticket covers it.
        Ok(PackTicket(packs.stream))
    }

    /// Returns when everything appended up to `ticket` is durable and indexed.
    /// One caller syncs for all that wait.
    ///
    /// # Errors
    /// `Poisoned` after any failed sync; `Io`; `Index`.
    pub fn sync(&self, ticket: PackTicket) -> Result<(), StoreError> {
        let mut flush = self.flush.lock();
        loop {
            if flush.synced >= ticket.0 {
                return Ok(());
            }
            self.refuse_if_poisoned()?;
            if flush.running {
                self.flushed.wait(&mut flush);
                continue;
            }
            flush.running = true;
            drop(flush);
            let result = self.sync_group();
            flush = self.flush.lock();
            flush.running = false;
            match result {
                Ok(up_to) => flush.synced = flush.synced.max(up_to),
                Err(error) => return Err(self.poison(error)),
            }
            self.flushed.notify_all();
        }
    }

    fn sync_group(&self) -> Result<u64, StoreError> {
        let mut group = self.packs.lock().take_group();
        for (id, file) in &group.files {
            file.sync_data().map_err(|e| StoreError::io(&self.segments.path(*id), e))?;
        }
        for change in &mut group.changes {
            if let IndexChange::Mark(id, len) = change
                && *len == u64::MAX
            {
                let path = self.segments.path(*id);
                *len = std::fs::metadata(&path).map_err(|e| StoreError::io(&path, e))?.len();
            }
        }
        if group.new_file {
            sync_dir(&self.dir.join("packs"))?;
        }
        self.index.apply(&group.changes)?;
        let mut packs = self.packs.lock();
        for change in &group.changes {
            if let IndexChange::Put(id, place) = change
                && packs.pending.get(id) == Some(place)
            {
                packs.pending.remove(id);
            }
        }
        Ok(group.up_to)
    }

    /// Replaces a bad or missing block with good bytes: appended, durable,
    /// re-indexed.
    ///
    /// # Errors
    /// `Corrupt` when the bytes do not match their CID; of `append` and `sync`.
    pub fn repair(&self, block: &Block) -> Result<(), StoreError> {
        self.refuse_if_poisoned()?;
        if !block.is_intact() {
            let place = Location { segment: SegmentId(0), offset: 0, len: 0 };
            return Err(self.corrupt(&block.cid, place));
        }
        self.nodes.remove(&block.cid);
        let ticket = self.append_all(&mut vec![block])?;
        self.sync(ticket)
    }

    /// Turns staging files into flat segments: sync, rename, directory sync,
    /// index; many share the directory sync. `leaves` are raw leaves at their
    /// natural offsets. A staging in memory is refused: its leaf goes to a pack.
    ///
    /// # Errors
    /// `NoSpace`, `Poisoned`, `Io`, `Index`.
    pub fn seal(&self, sealed: &mut [(&mut Staging, Vec<SealedLeaf>)]) -> Result<(), StoreError> {
        self.refuse_if_poisoned()?;
        let mut changes = Vec::new();
        for (staging, _) in sealed.iter_mut() {
            staging.sync()?;
        }
        for (staging, leaves) in sealed.iter_mut() {
            let id = self.segments.next_id(false);
            staging.become_segment(&self.segments.path(id))?;
            for leaf in leaves.iter() {
                let place = Location { segment: id, offset: leaf.offset, len: leaf.len };
                self.verified.insert((id, leaf.offset), ());
                changes.push(IndexChange::Put(leaf.cid, place));
            }
            let bytes: u64 = leaves.iter().map(|leaf| u64::from(leaf.len)).sum();
            self.used.fetch_add(bytes, Ordering::Relaxed);
        }
        if sealed.is_empty() {
            return Ok(());
        }
        let synced = sync_dir(&self.dir.join("segments")).and_then(|()| self.index.apply(&changes));
        synced.map_err(|error| self.poison(error))
    }

    /// The folder of staging files.
    pub fn staging_dir(&self) -> PathBuf {
        self.dir.join("staging")
    }

    /// Removes staging files of inodes that are not in `keep`.
    ///
    /// # Errors
    /// `Io`.
    pub fn discard_staging_except(&self, keep: &[Ino]) -> Result<u64, StoreError> {
        let dir = self.staging_dir();
        let mut removed = 0;
        for entry in std::fs::read_dir(&dir).map_err(|e| StoreError::io(&dir, e))? {
            let entry = entry.map_err(|e| StoreError::io(&dir, e))?;
            let kept = keep
                .iter()
                .any(|ino| entry.file_name().to_str() == Some(&Staging::file_name(*ino)));
            if !kept {
                std::fs::remove_file(entry.path()).map_err(|e| StoreError::io(&entry.path(), e))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Space used and left.
    ///
    /// # Errors
    /// `Io`.
    pub fn usage(&self) -> Result<StoreUsage, StoreError> {
        let stat =
            rustix::fs::statvfs(&self.dir).map_err(|e| StoreError::io(&self.dir, e.into()))?;
        Ok(StoreUsage {
            used_bytes: self.used.load(Ordering::Relaxed),
            capacity_bytes: stat.f_blocks * stat.f_frsize,
            available_bytes: stat.f_bavail * stat.f_frsize,
        })
    }

    /// Checks every indexed block: `deep` re-hashes it, otherwise only that its
    /// bytes are there. `progress` gets (blocks, bytes) so far.
    ///
    /// # Errors
    /// `Index`.
    pub fn verify(
        &self,
        deep: bool,
        report: &mut dyn FnMut(VerifyProblem),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        let (mut after, mut blocks, mut bytes) = (None, 0, 0);
        loop {
            let page = self.index.page(after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(*last);
            for (id, place) in &page {
                blocks += 1;
                bytes += u64::from(place.len);
                if let Err(error) = self.check_block(id, *place, deep) {
                    report(VerifyProblem { cid: *id, error });
                }
            }
            progress(blocks, bytes);
        }
    }

    fn check_block(&self, id: &Cid, place: Location, deep: bool) -> Result<(), StoreError> {
        if deep {
            self.verified.remove(&(place.segment, place.offset));
            return self.read_whole(id, place).map(drop);
        }
        let file = self.segments.open(place.segment, id)?;
        let len = file
            .metadata()
            .map_err(|e| StoreError::io(&self.segments.path(place.segment), e))?
            .len();
        if place.offset + u64::from(place.len) > len {
            return Err(StoreError::SegmentMissing { cid: *id, segment: place.segment });
        }
        Ok(())
    }

    /// Drops index entries (a damaged block that nobody can repair).
    ///
    /// # Errors
    /// `Index`.
    pub fn apply(&self, changes: &[IndexChange]) -> Result<(), StoreError> {
        for change in changes {
            if let IndexChange::Remove(id) = change {
                self.nodes.remove(id);
            }
        }
        self.index.apply(changes)
    }

    /// Closes cached descriptors of a segment that was removed by hand.
    pub fn forget_segment(&self, id: SegmentId) {
        self.segments.forget(id);
    }
}
