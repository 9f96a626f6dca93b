//! Who puts which blocks, and how much there is room for.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::types::{Block, Cid};

/// Blocks that are being put.
#[derive(Default)]
pub(in crate::backends) struct Turns {
    putting: Mutex<HashSet<Cid>>,
    put: Notify,
}

/// Blocks that one call puts.
pub(in crate::backends) struct Turn<'t> {
    of: &'t Turns,
    cids: Vec<Cid>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut putting = self.of.putting.lock();
        self.cids.iter().for_each(|id| {
            putting.remove(id);
        });
        self.of.put.notify_waiters();
    }
}

impl Turns {
    /// Waits until nobody else puts one of these.
    pub async fn alone_with(&self, blocks: &[Block]) -> Turn<'_> {
        loop {
            // Before the look: what ends after it is heard of.
            let changed = self.put.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut putting = self.putting.lock();
                if !blocks.iter().any(|block| putting.contains(&block.cid)) {
                    let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
                    putting.extend(&cids);
                    return Turn { of: self, cids };
                }
            }
            changed.await;
        }
    }
}

/// Bytes that a place had room for when it was asked, less what was put since.
#[derive(Default)]
pub(in crate::backends) struct Room(AtomicU64);

impl Room {
    /// Takes some of it; false when there is not as much.
    pub fn take(&self, bytes: u64) -> bool {
        let take = |room: u64| room.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// It was asked for.
    pub fn found(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}
