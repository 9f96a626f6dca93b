//! A verified block from wherever it is good.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::{Registry, ReplicationError};
use crate::content::inline_block;
use crate::runtime::Bridge;
use crate::store::{LocalStore, StoreError};
use crate::telemetry;
use crate::types::{Block, Cid, cid};

/// Reads blocks: the local store first, then every backend that answers.
pub(super) struct Fetcher {
    pub store: Arc<LocalStore>,
    pub registry: Arc<Registry>,
    pub bridge: Bridge,
    pub deadline: Duration,
    /// Blocks that a thread is fetching; others wait for it.
    pub flights: Mutex<HashSet<Cid>>,
    pub landed: Condvar,
}

impl Fetcher {
    /// The block, verified. A bad or missing local copy is repaired.
    pub fn block(&self, id: &Cid) -> Result<Bytes, ReplicationError> {
        if let Some(inline) = inline_block(id) {
            return Ok(inline);
        }
        match self.store.get(id) {
            Ok(Some(data)) => return Ok(data),
            Ok(None) => {}
            Err(
                error @ (StoreError::Corrupt { .. }
                | StoreError::SegmentMissing { .. }
                | StoreError::Io { .. }),
            ) => {
                tracing::warn!(%error, "a local block is bad; reading another copy");
            }
            Err(error) => return Err(error.into()),
        }
        {
            let mut flights = self.flights.lock();
            while !flights.insert(*id) {
                self.landed.wait(&mut flights);
                if let Ok(Some(data)) = self.store.get(id) {
                    return Ok(data);
                }
            }
        }
        let result = self.from_backends(id);
        self.flights.lock().remove(id);
        self.landed.notify_all();
        result
    }

    fn from_backends(&self, id: &Cid) -> Result<Bytes, ReplicationError> {
        let mut tried = String::new();
        for (backend_id, backend) in self.registry.open_backends() {
            let answer = self.bridge.wait(self.deadline, backend.get(id, None));
            let reason = match answer {
                Ok(Ok(data)) if cid::verify(id, &data) == cid::Verdict::Match => {
                    telemetry::metrics().replication_blocks_fetched.inc();
                    let block = Block { cid: *id, data };
                    if let Err(error) = self.store.repair(&block) {
                        // The reader is served all the same; the next read tries again.
                        tracing::warn!(%error, cid = %id, "a fetched block cannot be kept");
                    }
                    return Ok(block.data);
                }
                Ok(Ok(_)) => {
                    telemetry::metrics().replication_copies_corrupt.inc();
                    tracing::error!(backend = %backend_id, cid = %id, "a copy has wrong bytes");
                    "wrong bytes".to_owned()
                }
                Ok(Err(error)) => {
                    self.registry.failed(&backend_id, &error);
                    error.message
                }
                Err(deadline) => deadline.to_string(),
            };
            // Writing to a String cannot fail.
            write!(tried, "{backend_id}: {reason}; ").unwrap_or_default();
        }
        if tried.is_empty() {
            tried.push_str("no other backend is in reach");
        }
        Err(ReplicationError::NoGoodCopy { cid: *id, tried })
    }
}
