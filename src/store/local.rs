use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::aside::Asides;
use super::budget::Budget;
use super::cache::ReadCache;
use super::collect::Recent;
use super::disk::{Disk, DiskFile};
use super::file_pool::machine;
use super::layout::Layout;
use super::pack::PackWriter;
use super::segment::Files;
use super::{BlockIndex, IndexChange, Location, Staging, StagingOptions, StoreError};
use crate::runtime::{buffers, descriptor_share};
use crate::telemetry;
use crate::types::{Block, Cid, Ino, SegmentId, cid};

/// Sizes and limits of the store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// A pack is sealed and a new one begun at this many bytes (default 64 MiB).
    pub pack_bytes: u64,
    /// Bound of the set that remembers which blocks were verified (entries).
    pub verified_entries: usize,
    /// Bound of the cache of dag-pb nodes and small blocks, in bytes.
    pub cache_bytes: u64,
    /// Open segment files kept (default 256).
    pub open_files: usize,
    /// The store is a cache, and takes so many bytes of the disk.
    pub budget: Option<u64>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            pack_bytes: 64 << 20,
            // 1 TiB of 1 MiB leaves; some 64 bytes each.
            verified_entries: 1 << 20,
            cache_bytes: 32 << 20,
            open_files: 256,
            budget: None,
        }
    }
}

/// A place in the pack's stream; [`LocalStore::sync`] makes it durable.
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

/// The local store of one volume. All methods may be called by many threads.
///
/// Lock order: the gate, then the pack's state. Whoever looks a block up and
/// uses its place holds the gate for reading; a collection takes it for writing
/// before bytes go, so no reader is left with a place that was emptied.
pub struct LocalStore {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) layout: Layout,
    pub(super) index: Arc<dyn BlockIndex>,
    pub(super) files: Files,
    pub(super) packs: PackWriter,
    pub(super) cache: ReadCache,
    pub(super) poisoned: Arc<AtomicBool>,
    pub(super) gate: RwLock<Recent>,
    /// One collection at a time.
    pub(super) collecting: Mutex<()>,
    pub(super) holds: Arc<AtomicUsize>,
    /// Commits that run, by the generation of [`Recent`] they began in.
    pub(super) commits: [AtomicUsize; 2],
    /// Segments whose staging may still be sealed, with its file.
    pub(super) sealing: Mutex<Vec<(SegmentId, Weak<dyn DiskFile>)>>,
    pub(super) asides: Arc<Asides>,
    pub(super) used: Mutex<Option<u64>>,
    pub(super) budget: Option<Budget>,
    /// Bytes that may be written before the disk is asked for its space again.
    room: AtomicU64,
}

/// Free bytes of the disk that file data leaves alone. The metadata stops adding
/// at 64 MiB and removing at 16 MiB: a disk that file data could fill to the last
/// byte would let nobody remove a file. 8 MiB more are what a pack reserves ahead,
/// and 8 what a commit adds beside the data.
pub(super) const RESERVE_BYTES: u64 = 80 << 20;
/// Room that is taken at a time.
const ROOM_BYTES: u64 = 8 << 20;

impl LocalStore {
    /// Opens or makes the store in `dir` (`segments/`, `packs/`, `staging/`), cuts
    /// unindexed pack tails, removes half-made files. Staging files are kept until
    /// [`LocalStore::discard_staging_except`].
    ///
    /// `index` must be as a crash cannot undo: persist the engine that holds it
    /// after its own recovery and before this call.
    ///
    /// # Errors
    /// `Io`, `Index`.
    pub fn open(
        dir: &Path,
        index: Arc<dyn BlockIndex>,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        Self::open_on(machine(), dir, index, &options)
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        index: Arc<dyn BlockIndex>,
        options: &StoreOptions,
    ) -> Result<Self, StoreError> {
        let layout = Layout::new(dir);
        let poisoned = Arc::new(AtomicBool::new(false));
        let budget = options.budget.map(Budget::new);
        let pack_bytes = options.pack_bytes;
        let packs = PackWriter::new(
            disk.clone(),
            layout.clone(),
            index.clone(),
            budget.as_ref().map_or(pack_bytes, |budget| budget.pack_bytes(pack_bytes)),
            poisoned.clone(),
        );
        super::recover::recover(disk.as_ref(), &layout, index.as_ref(), &packs)?;
        Ok(Self {
            files: Files::new(
                disk.clone(),
                layout.clone(),
                descriptor_share(8, options.open_files.max(16)),
            ),
            cache: ReadCache::new(options),
            disk,
            layout,
            index,
            packs,
            poisoned,
            gate: RwLock::new(Recent::new()),
            collecting: Mutex::new(()),
            holds: Arc::default(),
            commits: Default::default(),
            sealing: Mutex::default(),
            asides: Arc::default(),
            used: Mutex::default(),
            budget,
            room: AtomicU64::new(0),
        })
    }

    /// Whether the block is here (index or pending), without reading it: its
    /// segment exists and is long enough. A collection that runs will keep it.
    ///
    /// # Errors
    /// `Index`, `Io`.
    pub fn contains(&self, cid: &Cid) -> Result<bool, StoreError> {
        let recent = self.gate.read();
        self.is_here(&recent, cid)
    }

    /// The whole block, verified at first use; `None` when it is not here.
    ///
    /// # Errors
    /// `Corrupt`, `SegmentMissing`, `Index`, `Io`.
    pub fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        if let Some(data) = identity(cid).or_else(|| self.cache.get(cid)) {
            return Ok(Some(data));
        }
        let _gate = self.gate.read();
        match self.find_to_read(cid)? {
            Some(location) => self.load(cid, location).map(Some),
            None => Ok(None),
        }
    }

    /// Part of a block into `buf` from `offset`; verified (whole block) at
    /// first use. False when not here.
    ///
    /// # Errors
    /// As [`LocalStore::get`]; `Io` when the block has no such bytes.
    pub fn read(&self, cid: &Cid, offset: u64, buf: &mut [u8]) -> Result<bool, StoreError> {
        if let Some(data) = identity(cid).or_else(|| self.cache.get(cid)) {
            self.copy_part(cid, &data, offset, buf)?;
            return Ok(true);
        }
        let _gate = self.gate.read();
        let Some(location) = self.find_to_read(cid)? else { return Ok(false) };
        let inside =
            offset.checked_add(buf.len() as u64).is_some_and(|end| end <= location.len.into());
        if inside && self.cache.is_verified(&location) {
            self.files.read(cid, &location, offset, buf)?;
        } else {
            self.copy_part(cid, &self.load(cid, location)?, offset, buf)?;
        }
        Ok(true)
    }

    /// Where it lies, if it is durable here.
    ///
    /// # Errors
    /// `Index`.
    pub fn locate(&self, cid: &Cid) -> Result<Option<Location>, StoreError> {
        self.index.get(cid)
    }

    /// Whether so many more bytes of file data may be written. `owed`: what was
    /// admitted before and has no place on the disk yet.
    ///
    /// # Errors
    /// `NoSpace` when the disk has little but its reserve; `Io`.
    pub fn admit(&self, bytes: u64, owed: u64) -> Result<(), StoreError> {
        let take = |room: u64| room.checked_sub(bytes);
        if self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return Ok(());
        }
        let root = self.layout.root();
        let space = self.disk.space(root).map_err(|e| StoreError::io(root, e))?;
        let free = space.available.saturating_sub(RESERVE_BYTES).saturating_sub(owed);
        let left = free.checked_sub(bytes);
        // Others write to the disk, too.
        self.room.store(left.map_or(0, |left| (left / 4).min(ROOM_BYTES)), Ordering::Relaxed);
        left.map(drop).ok_or(StoreError::NoSpace)
    }

    /// Bytes in the cache of blocks, and places known to be verified.
    #[must_use]
    pub fn cached(&self) -> (u64, u64) {
        self.cache.held()
    }

    /// Up to `limit` blocks after `after`, with their lengths, in the order of
    /// their CIDs' bytes.
    ///
    /// # Errors
    /// `Index`.
    pub fn list(&self, after: Option<&Cid>, limit: usize) -> Result<Vec<(Cid, u64)>, StoreError> {
        let page = self.index.page(after, limit)?;
        Ok(page.into_iter().map(|(cid, place)| (cid, place.len.into())).collect())
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// Path of a segment's file. Bytes read from it are not verified.
    #[must_use]
    pub fn segment_path(&self, segment: SegmentId) -> PathBuf {
        self.layout.file(segment)
    }

    /// Whether the block at this place was verified since the store was opened.
    #[must_use]
    pub fn is_verified(&self, location: &Location) -> bool {
        self.cache.is_verified(location)
    }

    /// Appends blocks to the open pack. They can be read at once; durable and
    /// indexed after `sync`. Blocks that are here already are skipped, when what is here
    /// is good: it is read once in this life. The caller has hashed its own. Who will refer to
    /// them has a [`LocalStore::begin_commit`] or a [`LocalStore::hold`].
    ///
    /// # Errors
    /// `NoSpace`, `TooLarge` (over [`Block::MAX_LEN`]), `Poisoned`, `Index`, `Io`.
    pub fn append(&self, blocks: &[Block]) -> Result<PackTicket, StoreError> {
        let recent = self.gate.read();
        let (mut fresh, mut bad) = (Vec::with_capacity(blocks.len()), Vec::new());
        for block in blocks {
            if !self.is_indexed(&recent, &block.cid)? {
                fresh.push(block);
            } else if !self.is_good(&block.cid)? {
                bad.push(block);
            }
        }
        let mut ticket = PackTicket(0);
        if !bad.is_empty() {
            ticket = self.put(&recent, &bad, true)?;
        }
        if !fresh.is_empty() {
            ticket = self.put(&recent, &fresh, false)?.max(ticket);
        }
        Ok(ticket)
    }

    /// Whether an indexed block matches its hash: what rotted is not spread to what is
    /// written now.
    fn is_good(&self, cid: &Cid) -> Result<bool, StoreError> {
        let Some(place) = self.index.get(cid)? else { return Ok(identity(cid).is_some()) };
        if self.cache.is_verified(&place) {
            return Ok(true);
        }
        match self.load(cid, place) {
            Ok(_) => Ok(true),
            Err(
                error @ (StoreError::Corrupt { .. }
                | StoreError::SegmentMissing { .. }
                | StoreError::Io { .. }),
            ) => {
                tracing::warn!(%error, "a local block is bad; it is written anew");
                self.cache.forget(cid, Some(&place));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns when everything appended up to `ticket` is on the disk and
    /// indexed; calls at the same time share one flush.
    ///
    /// # Errors
    /// `Poisoned`, `Index`, `NoSpace`, `Io`.
    pub fn sync(&self, ticket: PackTicket) -> Result<(), StoreError> {
        self.packs.sync(ticket.0)
    }

    /// Replaces a bad or missing block with good bytes (checked here): append,
    /// sync, re-index.
    ///
    /// # Errors
    /// `Io` when the bytes are not the block's; as [`LocalStore::append`] and
    /// [`LocalStore::sync`].
    pub fn repair(&self, block: &Block) -> Result<(), StoreError> {
        if !block.is_intact() {
            let reason = format!("bytes offered to repair {} do not match it", block.cid);
            return Err(StoreError::invalid(self.layout.root(), reason));
        }
        let ticket = self.put_again(block)?;
        self.sync(ticket)
    }

    /// Puts bytes that the caller has hashed in the place of a bad or missing block;
    /// durable and indexed after `sync`. Until then a crash brings back what was before.
    pub(super) fn put_again(&self, block: &Block) -> Result<PackTicket, StoreError> {
        let recent = self.gate.read();
        self.cache.forget(&block.cid, self.find(&block.cid)?.as_ref());
        self.put(&recent, &[block], true)
    }

    /// The staging of a file over a base of `base_size` bytes, on this store's disk.
    #[must_use]
    pub fn stage(&self, ino: Ino, base_size: u64, options: StagingOptions) -> Staging {
        let disk = self.disk.clone();
        let mut staging = Staging::on(disk, &self.layout.staging(), ino, base_size, options);
        staging.asides = self.asides.clone();
        staging
    }

    /// [`Staging::adopt`] on this store's disk.
    ///
    /// # Errors
    /// `Io` when there is no such file or the pages do not fit.
    pub fn adopt(
        &self,
        ino: Ino,
        sizes: (u64, u64, u64),
        pages: &[(u64, Vec<u8>)],
        options: StagingOptions,
    ) -> Result<Staging, StoreError> {
        let disk = self.disk.clone();
        let dir = self.layout.staging();
        let mut staging = Staging::adopt_on(disk, &dir, ino, sizes, pages, options)?;
        staging.asides = self.asides.clone();
        Ok(staging)
    }

    /// Path of the staging folder.
    #[must_use]
    pub fn staging_dir(&self) -> PathBuf {
        self.layout.staging()
    }

    /// Applies index changes as they are, such as dropping a corrupt block
    /// that nobody can repair.
    ///
    /// # Errors
    /// `Index`.
    pub fn apply(&self, changes: &[IndexChange]) -> Result<(), StoreError> {
        let _gate = self.gate.write();
        for change in changes {
            if let IndexChange::Remove(cid) | IndexChange::Put(cid, _) = change {
                self.cache.forget(cid, self.index.get(cid)?.as_ref());
            }
        }
        self.index.apply(changes)
    }

    /// Closes cached descriptors of a segment that was removed by hand.
    pub fn forget_segment(&self, segment: SegmentId) {
        self.files.forget(segment);
    }

    pub(super) fn put(
        &self,
        recent: &Recent,
        blocks: &[&Block],
        again: bool,
    ) -> Result<PackTicket, StoreError> {
        for block in blocks {
            recent.touch(&block.cid);
        }
        let (places, ticket) = self.packs.append(blocks, again)?;
        for (block, place) in blocks.iter().zip(&places) {
            self.cache.set_verified(place);
            self.cache.put(&block.cid, &block.data);
        }
        self.note_used(blocks.iter().map(|block| block.data.len() as u64 + 40).sum());
        Ok(PackTicket(ticket))
    }

    fn is_here(&self, recent: &Recent, cid: &Cid) -> Result<bool, StoreError> {
        if self.packs.pending(cid).is_some() {
            recent.touch(cid);
            return Ok(true);
        }
        self.is_indexed(recent, cid)
    }

    /// Pending blocks do not count: their sync is still to be waited for.
    fn is_indexed(&self, recent: &Recent, cid: &Cid) -> Result<bool, StoreError> {
        if identity(cid).is_some() {
            return Ok(true);
        }
        let here = match self.index.get(cid)? {
            Some(location) => self.files.holds(&location)?,
            None => false,
        };
        if here {
            recent.touch(cid);
        }
        Ok(here)
    }

    fn find_to_read(&self, cid: &Cid) -> Result<Option<Location>, StoreError> {
        let found = self.find(cid)?;
        let metrics = telemetry::metrics();
        let counter =
            if found.is_some() { &metrics.store_block_hits } else { &metrics.store_block_misses };
        counter.inc();
        Ok(found)
    }

    /// First what is pending: a sync moves blocks from there to the index.
    pub(super) fn find(&self, cid: &Cid) -> Result<Option<Location>, StoreError> {
        match self.packs.pending(cid) {
            Some(location) => Ok(Some(location)),
            None => self.index.get(cid),
        }
    }

    /// Reads and, at first use, hashes. When a repair moved the block in the
    /// meantime, the new place is tried.
    pub(super) fn load(&self, cid: &Cid, mut location: Location) -> Result<Bytes, StoreError> {
        loop {
            let error = match self.load_from(cid, &location) {
                Ok(data) => return Ok(data),
                Err(error) => error,
            };
            match self.find(cid)? {
                Some(moved) if moved != location => location = moved,
                _ => return Err(error),
            }
        }
    }

    pub(super) fn load_from(&self, cid: &Cid, location: &Location) -> Result<Bytes, StoreError> {
        let Location { segment, offset, len } = *location;
        let corrupt = || StoreError::Corrupt { cid: *cid, segment, offset };
        if len as usize > Block::MAX_LEN {
            return Err(corrupt());
        }
        let data = buffers::filled(len as usize, |buf| self.files.read(cid, location, 0, buf))?;
        if !self.cache.is_verified(location) {
            let metrics = telemetry::metrics();
            metrics.store_blocks_verified.inc();
            if cid::verify(cid, &data) != cid::Verdict::Match {
                metrics.store_blocks_corrupt.inc();
                return Err(corrupt());
            }
            self.cache.set_verified(location);
        }
        self.cache.put(cid, &data);
        Ok(data)
    }

    /// Reads and hashes, whatever was verified before.
    pub(super) fn rehash(&self, cid: &Cid, location: &Location) -> Result<(), StoreError> {
        self.cache.forget(cid, Some(location));
        self.load_from(cid, location).map(drop)
    }

    fn copy_part(
        &self,
        cid: &Cid,
        data: &Bytes,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), StoreError> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = start.checked_add(buf.len()).and_then(|end| data.get(start..end));
        let part = part.ok_or_else(|| {
            let reason = format!("block {cid} has no {} bytes at {offset}", buf.len());
            StoreError::invalid(self.layout.root(), reason)
        })?;
        buf.copy_from_slice(part);
        Ok(())
    }

    /// Whether it takes writes.
    ///
    /// # Errors
    /// `Poisoned` after a sync that failed.
    pub fn check_poison(&self) -> Result<(), StoreError> {
        if self.poisoned.load(Ordering::Acquire) { Err(StoreError::Poisoned) } else { Ok(()) }
    }

    pub(super) fn note_used(&self, more: u64) {
        let Some(used) = self.used.lock().as_mut().map(|used| {
            *used = used.saturating_add(more);
            *used
        }) else {
            return;
        };
        if let Some(budget) = &self.budget {
            budget.note(used);
        }
    }

    pub(super) fn note_freed(&self, less: u64) {
        if let Some(used) = self.used.lock().as_mut() {
            *used = used.saturating_sub(less);
        }
    }

    /// Removes staging files that are not in `keep`; how many.
    ///
    /// # Errors
    /// `Io`.
    pub fn discard_staging_except(&self, keep: &[SegmentId]) -> Result<u64, StoreError> {
        super::recover::discard_staging(self.disk.as_ref(), &self.layout, keep)
    }
}

/// An identity CID holds its block itself; nothing is ever stored for it.
fn identity(cid: &Cid) -> Option<Bytes> {
    (cid.hash().code() == cid::IDENTITY).then(|| Bytes::copy_from_slice(cid.hash().digest()))
}
