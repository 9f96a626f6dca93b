//! What was verified in this life, and the bytes of small blocks.

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::{Location, StoreOptions};
use crate::types::{Cid, SegmentId};

/// Larger blocks are left to the kernel's page cache: most are file leaves
/// that a stream reads once.
const CACHED_BLOCK_MAX: usize = 64 * 1024;
/// What an entry takes beside its bytes, roughly.
const ENTRY_BYTES: u64 = 160;

#[derive(Clone)]
struct ByBytes;

impl Weighter<Cid, Bytes> for ByBytes {
    fn weight(&self, _: &Cid, data: &Bytes) -> u64 {
        data.len() as u64 + ENTRY_BYTES
    }
}

pub(super) struct ReadCache {
    /// By place, not by CID: a block that moved must be verified again.
    verified: Cache<(SegmentId, u64), ()>,
    blocks: Cache<Cid, Bytes, ByBytes>,
}

impl ReadCache {
    pub fn new(options: &StoreOptions) -> Self {
        let blocks = (options.cache_bytes / 4096).clamp(16, 1 << 20) as usize;
        Self {
            verified: Cache::new(options.verified_entries.max(16)),
            blocks: Cache::with_weighter(blocks, options.cache_bytes, ByBytes),
        }
    }

    /// Bytes of blocks, and entries of the set of verified places.
    pub fn held(&self) -> (u64, u64) {
        (self.blocks.weight(), self.verified.len() as u64)
    }

    pub fn is_verified(&self, location: &Location) -> bool {
        self.verified.get(&(location.segment, location.offset)).is_some()
    }

    pub fn set_verified(&self, location: &Location) {
        self.verified.insert((location.segment, location.offset), ());
    }

    pub fn get(&self, cid: &Cid) -> Option<Bytes> {
        self.blocks.get(cid)
    }

    pub fn put(&self, cid: &Cid, data: &Bytes) {
        if data.len() <= CACHED_BLOCK_MAX {
            self.blocks.insert(*cid, data.clone());
        }
    }

    pub fn forget(&self, cid: &Cid, location: Option<&Location>) {
        self.blocks.remove(cid);
        if let Some(location) = location {
            self.verified.remove(&(location.segment, location.offset));
        }
    }
}
