//! Threads that wait for the copies of a content.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::types::Cid;

/// Enough that a result wakes few who wait for another content.
const SHARDS: usize = 64;

/// One condition for a share of all contents.
#[derive(Debug, Default)]
pub(super) struct Shard {
    generation: Mutex<u64>,
    changed: Condvar,
}

impl Shard {
    /// To be taken before the content is looked at.
    pub fn generation(&self) -> u64 {
        *self.generation.lock()
    }

    /// Returns when a content of this shard has changed since `seen`, or late.
    pub fn wait(&self, seen: u64, most: Duration) {
        let mut generation = self.generation.lock();
        if *generation == seen {
            self.changed.wait_for(&mut generation, most);
        }
    }

    fn notify(&self) {
        *self.generation.lock() += 1;
        self.changed.notify_all();
    }
}

/// All shards.
#[derive(Debug)]
pub(super) struct Waiters(Vec<Shard>);

impl Waiters {
    pub fn new() -> Self {
        Self((0..SHARDS).map(|_| Shard::default()).collect())
    }

    pub fn of(&self, root: &Cid) -> &Shard {
        let byte = root.hash().digest().last().copied().unwrap_or(0);
        // The index is below SHARDS by the remainder.
        &self.0[usize::from(byte) % SHARDS]
    }

    pub fn notify(&self, roots: &[Cid]) {
        for root in roots {
            self.of(root).notify();
        }
    }

    pub fn notify_all(&self) {
        self.0.iter().for_each(Shard::notify);
    }
}
