use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::ReplicationError;
use crate::runtime::Bridge;
use crate::store::{Kept, LocalStore, PackTicket};
use crate::telemetry;
use crate::types::{Block, Cid, cid};

/// Checks blocks that come from elsewhere, and keeps the good ones in the local store.
/// They are made durable behind the reader, many with one flush: a crash before that
/// loses nothing that is not elsewhere. Lock: `state`, alone.
pub(super) struct Keep {
    store: Arc<LocalStore>,
    bridge: Bridge,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    newest: PackTicket,
    synced: PackTicket,
    /// A thread makes them durable.
    syncing: bool,
}

impl Keep {
    pub fn new(store: Arc<LocalStore>, bridge: Bridge) -> Arc<Self> {
        Arc::new(Self { store, bridge, state: Mutex::default() })
    }

    /// Whether the bytes are the block's; then they are kept, if they can be.
    pub async fn check(self: &Arc<Self>, id: &Cid, data: &Bytes) -> bool {
        let (keep, block) = (Arc::clone(self), Block { cid: *id, data: data.clone() });
        // Hashing a mebibyte takes a millisecond: not on a thread that others wait for.
        let checked = self.bridge.spawn_blocking(move || {
            if cid::verify(&block.cid, &block.data) != cid::Verdict::Match {
                return false;
            }
            match keep.store.keep(&block) {
                Ok(Kept::Repaired(ticket)) => {
                    telemetry::metrics().replication_repairs.inc();
                    keep.sync_later(ticket);
                }
                Ok(Kept::Cached | Kept::PassedBy) => {}
                // The reader is served all the same; the next read tries again.
                Err(error) => {
                    tracing::warn!(%error, cid = %block.cid, "a fetched block cannot be kept");
                }
            }
            true
        });
        checked.await.unwrap_or_else(|error| {
            tracing::warn!(%error, cid = %id, "a fetched block was not checked");
            false
        })
    }

    fn sync_later(self: &Arc<Self>, ticket: PackTicket) {
        let mut state = self.state.lock();
        state.newest = state.newest.max(ticket);
        if !std::mem::replace(&mut state.syncing, true) {
            let keep = Arc::clone(self);
            self.bridge.spawn_blocking(move || keep.sync());
        }
    }

    /// Until nothing is left: what comes meanwhile shares the next flush.
    fn sync(&self) {
        loop {
            let newest = {
                let mut state = self.state.lock();
                if state.synced >= state.newest {
                    state.syncing = false;
                    return;
                }
                state.newest
            };
            if let Err(error) = self.store.sync(newest) {
                tracing::warn!(%error, "fetched blocks are not durable here; they are elsewhere");
            }
            self.state.lock().synced = newest;
        }
    }

    /// Returns when all that was kept until now is durable.
    pub fn settle(&self) -> Result<(), ReplicationError> {
        let newest = self.state.lock().newest;
        Ok(self.store.sync(newest)?)
    }
}
