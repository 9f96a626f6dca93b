//! Who waits for the copies of a content; no thread is held.

use std::time::Duration;

use tokio::sync::watch;

use crate::types::Cid;

/// Enough that a result wakes few who wait for another content.
const SHARDS: usize = 64;

/// One condition for a share of all contents.
#[derive(Debug, Default)]
pub(super) struct Shard(watch::Sender<u64>);

impl Shard {
    /// To be taken before the content is looked at.
    pub fn watch(&self) -> Watch {
        Watch(self.0.subscribe())
    }

    fn notify(&self) {
        self.0.send_modify(|generation| *generation = generation.wrapping_add(1));
    }
}

/// A look at a shard.
pub(super) struct Watch(watch::Receiver<u64>);

impl Watch {
    /// Returns when a content of the shard has changed since the look before, or
    /// late.
    pub async fn changed(&mut self, most: Duration) {
        // An error says that nothing changes any more: the next look finds out.
        drop(tokio::time::timeout(most, self.0.changed()).await);
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
