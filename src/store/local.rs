use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::{BlockIndex, IndexChange, Location, SealedLeaf, Staging, StoreError};
use crate::types::{Block, Cid, SegmentId};

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
}

/// A place in the pack's stream; [`LocalStore::sync`] makes it durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
pub struct LocalStore {
    _dir: PathBuf,
}

#[expect(missing_docs, clippy::missing_errors_doc, reason = "documented by its owner")]
impl LocalStore {
    /// Opens or makes the store in `dir` (`segments/`, `packs/`, `staging/`), cuts
    /// unindexed pack tails, removes half-made files. Staging files are kept until
    /// [`LocalStore::discard_staging_except`].
    pub fn open(
        dir: &Path,
        index: Arc<dyn BlockIndex>,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let _ = (dir, index, options);
        todo!()
    }
    /// Whether the block is here (index or pending), without reading it.
    pub fn contains(&self, _cid: &Cid) -> Result<bool, StoreError> {
        todo!()
    }
    /// The whole block, verified at first use; `None` when it is not here.
    pub fn get(&self, _cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        todo!()
    }
    /// Part of a block into `buf` from `offset`; verified (whole block) at first use. False when not here.
    pub fn read(&self, _cid: &Cid, _offset: u64, _buf: &mut [u8]) -> Result<bool, StoreError> {
        todo!()
    }
    /// Where it lies, if it is durable here.
    pub fn locate(&self, _cid: &Cid) -> Result<Option<Location>, StoreError> {
        todo!()
    }
    /// Appends blocks to the open pack. They can be read at once; durable and indexed after `sync`. Blocks that are here already are skipped.
    pub fn append(&self, _blocks: &[Block]) -> Result<PackTicket, StoreError> {
        todo!()
    }
    /// Returns when everything appended up to `ticket` is on the disk, and gives the index changes to apply... (applied here; group commit).
    pub fn sync(&self, _ticket: PackTicket) -> Result<(), StoreError> {
        todo!()
    }
    /// Replaces a bad or missing block with good bytes (checked here): append, sync, re-index.
    pub fn repair(&self, _block: &Block) -> Result<(), StoreError> {
        todo!()
    }
    /// Turns a staging file into a flat segment: fdatasync, rename, directory sync, index.
    /// `leaves` are the new leaves with their offsets; raw leaves only. Many at once share syncs.
    pub fn seal(
        &self,
        _sealed: Vec<(Staging, Vec<SealedLeaf>)>,
    ) -> Result<Vec<SegmentId>, StoreError> {
        todo!()
    }
    /// Path of the staging folder.
    pub fn staging_dir(&self) -> PathBuf {
        todo!()
    }
    /// Removes staging files of inodes that are not in `keep`.
    pub fn discard_staging_except(&self, _keep: &[crate::types::Ino]) -> Result<u64, StoreError> {
        todo!()
    }
    pub fn usage(&self) -> Result<StoreUsage, StoreError> {
        todo!()
    }
    /// Re-hashes every block; `report` gets problems, `progress` (blocks, bytes) now and then. `deep=false` checks presence and length only.
    pub fn verify(
        &self,
        _deep: bool,
        _report: &mut dyn FnMut(VerifyProblem),
        _progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        todo!()
    }
    /// Drops index entries (a corrupt block nobody can repair).
    pub fn apply(&self, _changes: &[IndexChange]) -> Result<(), StoreError> {
        todo!()
    }
}
