//! A place that can fail in every way.

use std::collections::BTreeMap;

use cairnfs::types::{BackendId, Cid};

/// What really lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bytes {
    Good,
    Rotten,
}

/// A simulated place; the first one is the local store.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
pub struct Place {
    pub id: BackendId,
    pub domain: String,
    /// The volume has it.
    pub member: bool,
    /// What lies there while the volume does not have it.
    pub aside: BTreeMap<Cid, Bytes>,
    pub up: bool,
    /// Since when the daemon could know that it is away: the clock was not set since.
    pub away_at: u64,
    /// When it came back after its copies had been given up.
    pub doubted_at: u64,
    pub full: bool,
    /// Says yes and stores nothing.
    pub lies: bool,
    /// In percent of calls: refused, and done but reported as failed.
    pub refuses: u8,
    pub applied_then_failed: u8,
    /// Times as slow as others.
    pub slow: u64,
    /// Reading there costs: its copies are audited.
    pub audits: bool,
    pub truth: BTreeMap<Cid, Bytes>,
    /// Copies that were once read back and good: an honest proof exists.
    pub proven: BTreeMap<Cid, u64>,
    /// When a good copy was read there last, and when it said yes to one.
    pub read: BTreeMap<Cid, u64>,
    pub stored: BTreeMap<Cid, u64>,
    /// Given up, to be deleted at that time.
    pub garbage: BTreeMap<Cid, u64>,
}

impl Place {
    pub fn new(id: BackendId, domain: String) -> Self {
        Self {
            id,
            domain,
            member: true,
            aside: BTreeMap::new(),
            up: true,
            away_at: 0,
            doubted_at: 0,
            read: BTreeMap::new(),
            stored: BTreeMap::new(),
            full: false,
            lies: false,
            refuses: 0,
            applied_then_failed: 0,
            slow: 1,
            audits: false,
            truth: BTreeMap::new(),
            proven: BTreeMap::new(),
            garbage: BTreeMap::new(),
        }
    }

    pub fn is_good(&self, root: &Cid) -> bool {
        self.truth.get(root) == Some(&Bytes::Good)
    }

    /// All faults end.
    pub fn heal(&mut self) {
        (self.up, self.full, self.lies) = (true, false, false);
        (self.refuses, self.applied_then_failed, self.slow) = (0, 0, 1);
    }
}
