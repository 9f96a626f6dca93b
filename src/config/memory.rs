//! One budget of memory, and its parts.
//!
//! Each part has a bound that its owner keeps; together they are the budget. What
//! does not fit waits (writers, commits, sends) or goes to the disk (dirty data,
//! memtables, caches).
//!
//! | part | of the budget | its owner keeps it by |
//! |---|---|---|
//! | dirty | 1/8, `mount.dirty_bytes` | files being written go to the disk |
//! | commits | 1/16 | smaller batches |
//! | requests | 1/16 | threads, and a mebibyte each; of writes that wait for a backend a quarter of it is in memory, and the rest on the disk |
//! | rows | 1/16 | rows of inodes, CIDs of directories: a cache |
//! | `node_cache` | 1/16, `store.node_cache_bytes` | a cache |
//! | verified | 1/32 | places of blocks that were hashed: a cache |
//! | `engine_cache` | 1/8, `store.engine_cache_bytes` | a cache |
//! | `engine_writes` | 3/16 | memtables are written out |
//! | sending | 3/32 | smaller batches; at least a block for each sender |
//! | ahead | 1/32 | blocks that nobody asked for yet: fewer of them, at least one |
//! | checkpoint | 1/16 | row groups of 65,536 rows |
//! | program | 3/32 | code, stacks, queues with a bound in items, the allocator's slack |

use super::Config;
use crate::types::ByteSize;

/// With less than this not every part has what it needs to work.
const LEAST: u64 = 128 << 20;
/// Memtables at most: of two keyspaces, one being filled and four that wait.
const MEMTABLES: u64 = 10;
/// What an entry of the set of verified places takes.
const VERIFIED_ENTRY: u64 = 64;
/// What a cached row of an inode takes, its strings included.
const ROW: u64 = 640;
/// And the CID of a directory.
const DIRECTORY: u64 = 192;

/// The bounds of the parts, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// In all.
    pub budget: u64,
    /// Files being written that are in memory.
    pub dirty: u64,
    /// Blocks of files that are being committed.
    pub commits: u64,
    /// Buffers of the kernel's requests.
    pub requests: u64,
    /// Rows of inodes and CIDs of directories.
    pub rows: u64,
    /// Inner nodes and small blocks.
    pub node_cache: u64,
    /// Places that were verified.
    pub verified: u64,
    /// The engine's block cache.
    pub engine_cache: u64,
    /// The engine's memtables.
    pub engine_writes: u64,
    /// Batches on their way to backends.
    pub sending: u64,
    /// Blocks on their way from backends before somebody asked for them.
    pub ahead: u64,
    /// Parquet being written.
    pub checkpoint: u64,
    /// Everything else.
    pub program: u64,
}

/// A setting of its own may be lower than its share of the budget, and higher
/// where the budget has room.
fn part(set: ByteSize, default: u64, share: u64) -> u64 {
    if set.0 > default { set.0 } else { set.0.min(share) }
}

impl MemoryPlan {
    /// Divides the budget.
    ///
    /// # Errors
    /// A budget that is too small, or parts that do not fit into it.
    pub fn of(config: &Config) -> Result<Self, String> {
        let budget = config.mount.memory_bytes.0;
        if budget < LEAST {
            return Err(format!("mount.memory_bytes is below {}", ByteSize(LEAST)));
        }
        let (of_32, default) = (|parts: u64| budget / 32 * parts, Config::default());
        let dirty = part(config.mount.dirty_bytes, default.mount.dirty_bytes.0, of_32(4));
        let engine_cache =
            part(config.store.engine_cache_bytes, default.store.engine_cache_bytes.0, of_32(4));
        let node_cache =
            part(config.store.node_cache_bytes, default.store.node_cache_bytes.0, of_32(2));
        let plan = Self {
            budget,
            dirty,
            commits: of_32(2),
            requests: of_32(2),
            rows: of_32(2),
            node_cache,
            verified: of_32(1),
            engine_cache,
            engine_writes: of_32(6),
            sending: of_32(3),
            ahead: of_32(1),
            checkpoint: of_32(2),
            program: of_32(3),
        };
        let sum: u64 = plan.parts().iter().map(|(_, bytes)| bytes).sum();
        if sum > budget {
            return Err(format!(
                "mount.dirty_bytes, store.engine_cache_bytes and store.node_cache_bytes do not fit into mount.memory_bytes: all parts take {}, the budget is {}",
                ByteSize(sum),
                ByteSize(budget)
            ));
        }
        Ok(plan)
    }

    /// Name and bound of each part.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, u64); 12] {
        [
            ("dirty", self.dirty),
            ("commits", self.commits),
            ("requests", self.requests),
            ("rows", self.rows),
            ("node_cache", self.node_cache),
            ("verified", self.verified),
            ("engine_cache", self.engine_cache),
            ("engine_writes", self.engine_writes),
            ("sending", self.sending),
            ("ahead", self.ahead),
            ("checkpoint", self.checkpoint),
            ("program", self.program),
        ]
    }

    /// Bytes of one memtable.
    #[must_use]
    pub fn memtable(&self) -> u64 {
        self.engine_writes / MEMTABLES
    }

    /// Bytes in memory of writes that wait.
    #[must_use]
    pub fn held(&self) -> usize {
        (self.requests / 4) as usize
    }

    /// Entries of the set of verified places.
    #[must_use]
    pub fn verified_entries(&self) -> usize {
        (self.verified / VERIFIED_ENTRY) as usize
    }

    /// Rows of inodes that are cached.
    #[must_use]
    pub fn cached_rows(&self) -> usize {
        (self.rows * 3 / 4 / ROW) as usize
    }

    /// CIDs of directories that are cached.
    #[must_use]
    pub fn cached_directories(&self) -> usize {
        (self.rows / 4 / DIRECTORY) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(memory: u64, dirty: u64) -> Result<MemoryPlan, String> {
        let mut config = Config::default();
        config.mount.memory_bytes = ByteSize(memory);
        config.mount.dirty_bytes = ByteSize(dirty);
        MemoryPlan::of(&config)
    }

    #[test]
    fn the_parts_are_the_budget_whatever_its_size() {
        let dirty = Config::default().mount.dirty_bytes.0;
        for mib in [128, 256, 512, 1024, 16_384] {
            let plan = plan(mib << 20, dirty).unwrap();
            let sum: u64 = plan.parts().iter().map(|(_, bytes)| bytes).sum();
            assert!(sum <= mib << 20, "{mib} MiB");
            assert!(mib > 512 || sum > (mib << 20) * 9 / 10, "{mib} MiB");
        }
        let default = MemoryPlan::of(&Config::default()).unwrap();
        assert_eq!((default.dirty, default.engine_cache), (64 << 20, 64 << 20));
        assert_eq!((default.node_cache, default.budget), (32 << 20, 512 << 20));
    }

    #[test]
    fn a_part_that_does_not_fit_is_refused() {
        assert!(plan(512 << 20, 65 << 20).unwrap_err().contains("do not fit"));
        assert_eq!(plan(2 << 30, 400 << 20).unwrap().dirty, 400 << 20);
        assert_eq!(plan(256 << 20, 8 << 20).unwrap().dirty, 8 << 20);
        assert!(plan(64 << 20, 1 << 20).unwrap_err().contains("below"));
    }
}
