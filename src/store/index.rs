use std::collections::BTreeMap;
use std::ops::Bound;

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
    /// A pack's bytes up to here are indexed; 0 forgets the pack.
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
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the CID's bytes, the order of [`BlockIndex::page`].
    blocks: BTreeMap<Vec<u8>, (Cid, Location)>,
    marks: BTreeMap<u64, u64>,
}

impl BlockIndex for MemoryIndex {
    fn get(&self, cid: &Cid) -> Result<Option<Location>, StoreError> {
        Ok(self.state.read().blocks.get(&cid.to_bytes()).map(|(_, location)| *location))
    }

    fn apply(&self, changes: &[IndexChange]) -> Result<(), StoreError> {
        let mut state = self.state.write();
        for change in changes {
            match change {
                IndexChange::Put(cid, location) => {
                    state.blocks.insert(cid.to_bytes(), (*cid, *location));
                }
                IndexChange::Remove(cid) => {
                    state.blocks.remove(&cid.to_bytes());
                }
                IndexChange::Mark(segment, 0) => {
                    state.marks.remove(&segment.0);
                }
                IndexChange::Mark(segment, len) => {
                    state.marks.insert(segment.0, *len);
                }
            }
        }
        Ok(())
    }

    fn page(&self, after: Option<&Cid>, limit: usize) -> Result<Vec<(Cid, Location)>, StoreError> {
        let state = self.state.read();
        let start = after.map_or(Bound::Unbounded, |cid| Bound::Excluded(cid.to_bytes()));
        let rows = state.blocks.range((start, Bound::Unbounded)).take(limit);
        Ok(rows.map(|(_, entry)| *entry).collect())
    }

    fn marks(&self) -> Result<Vec<IndexMark>, StoreError> {
        let state = self.state.read();
        let mark =
            |(segment, len): (&u64, &u64)| IndexMark { segment: SegmentId(*segment), len: *len };
        Ok(state.marks.iter().map(mark).collect())
    }
}
