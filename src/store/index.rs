use std::collections::HashMap;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::types::{Cid, SegmentId};

/// Where a block's bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The file.
    pub segment: SegmentId,
    /// Of the first byte of block data.
    pub offset: u64,
    /// Bytes of block data.
    pub len: u32,
}

/// One change of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexChange {
    /// The block lies here now (replaces an older place).
    Put(Cid, Location),
    /// The block is gone.
    Remove(Cid),
    /// A pack's bytes up to here are indexed.
    Mark(SegmentId, u64),
}

/// A pack's indexed length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexMark {
    /// The pack.
    pub segment: SegmentId,
    /// Bytes from its start that are indexed.
    pub len: u64,
}

/// Finds blocks. Need not be durable by itself: the volume persists it together
/// with the metadata that refers to the blocks.
pub trait BlockIndex: Send + Sync + 'static {
    /// The block's place.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    fn get(&self, cid: &Cid) -> Result<Option<Location>, StoreError>;

    /// Applies all changes or none.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    fn apply(&self, changes: &[IndexChange]) -> Result<(), StoreError>;

    /// Up to `limit` blocks after `after`, in the order of the CID's bytes.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    fn page(&self, after: Option<&Cid>, limit: usize) -> Result<Vec<(Cid, Location)>, StoreError>;

    /// The indexed lengths of all packs.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    fn marks(&self) -> Result<Vec<IndexMark>, StoreError>;
}

/// An index in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    _blocks: RwLock<HashMap<Cid, Location>>,
}
