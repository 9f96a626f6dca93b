use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};

/// Bytes of all block files: counted once after opening, shard by shard and
/// behind the puts, then kept. What another process puts there meanwhile is
/// counted at the next open.
#[derive(Default)]
pub(super) struct Counter {
    used: AtomicU64,
    /// Read-locked while a file comes or goes; write-locked while one shard is
    /// counted. So each file is counted once: by the count or by its own change.
    shards: RwLock<Counted>,
    outcome: Mutex<Outcome>,
    ended: Condvar,
}

#[derive(Default)]
struct Counted {
    all: bool,
    shards: HashSet<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Outcome {
    #[default]
    Running,
    Known,
    Failed,
}

/// Held while a file of a shard comes or goes.
pub(super) struct Change<'a> {
    counter: &'a Counter,
    counts: bool,
    _guard: RwLockReadGuard<'a, Counted>,
}

impl Change<'_> {
    /// A file of `before` bytes is now one of `after` bytes.
    pub(super) fn apply(&self, before: u64, after: u64) {
        if self.counts {
            self.counter.used.fetch_add(after, Ordering::Relaxed);
            let sub = |used: u64| Some(used.saturating_sub(before));
            self.counter
                .used
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, sub)
                .unwrap_or_default();
        }
    }
}

impl Counter {
    /// Begins a change in `shard`.
    pub(super) fn change(&self, shard: &str) -> Change<'_> {
        let guard = self.shards.read();
        let counts = guard.all || guard.shards.contains(shard);
        Change { counter: self, counts, _guard: guard }
    }

    /// Runs `make`, which says whether it made `shard` new and empty: such a
    /// shard needs no counting.
    pub(super) fn create<E>(
        &self,
        shard: &str,
        make: impl FnOnce() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let mut counted = self.shards.write();
        let is_new = make()?;
        if is_new {
            counted.shards.insert(shard.to_owned());
        }
        Ok(is_new)
    }

    /// Counts one shard by `count`, unless it is counted already.
    pub(super) fn count<E>(
        &self,
        shard: &str,
        count: impl FnOnce() -> Result<u64, E>,
    ) -> Result<(), E> {
        let mut counted = self.shards.write();
        if !counted.shards.contains(shard) {
            self.used.fetch_add(count()?, Ordering::Relaxed);
            counted.shards.insert(shard.to_owned());
        }
        Ok(())
    }

    /// Ends the counting.
    pub(super) fn end(&self, complete: bool) {
        if complete {
            let mut counted = self.shards.write();
            counted.all = true;
            counted.shards = HashSet::new();
        }
        *self.outcome.lock() = if complete { Outcome::Known } else { Outcome::Failed };
        self.ended.notify_all();
    }

    /// The bytes, when the counting has come to its end.
    pub(super) fn known(&self) -> Option<u64> {
        (*self.outcome.lock() == Outcome::Known).then(|| self.used.load(Ordering::Relaxed))
    }

    /// The bytes; waits for the counting. `None` when it failed.
    pub(super) fn wait(&self) -> Option<u64> {
        let mut outcome = self.outcome.lock();
        while *outcome == Outcome::Running {
            self.ended.wait(&mut outcome);
        }
        (*outcome == Outcome::Known).then(|| self.used.load(Ordering::Relaxed))
    }
}
