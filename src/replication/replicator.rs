use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Policy, Registry, ReplicationError, WriteResult};
use crate::metadata::{CopyRecord, Namespace, PinState};
use crate::runtime::{Bridge, Clock, Shutdown};
use crate::store::LocalStore;
use crate::types::Cid;

/// Limits and times.
#[derive(Debug, Clone)]
pub struct ReplicatorOptions {
    /// Contents sent at the same time (all backends).
    pub parallel_contents: usize,
    /// Deadline of one backend call.
    pub call_deadline: Duration,
    /// How long a close or fsync waits for its level before it is degraded.
    pub level_deadline: Duration,
    /// First and longest pause between rounds of one content.
    pub backoff: (Duration, Duration),
    /// How often a backend that is down is probed.
    pub probe_interval: Duration,
}

/// How far the queue is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Contents that still wait.
    pub pending: u64,
    /// Of these, those whose last round failed.
    pub failed: u64,
    /// Bytes sent since the start.
    pub bytes_sent: u64,
}

/// Sends what the queue asks for; answers who waits; reads from any copy.
pub struct Replicator {}

#[expect(missing_docs, clippy::missing_errors_doc, reason = "documented by its owner")]
impl Replicator {
    /// Starts the executor and the probes; takes up the durable queue.
    pub fn start(
        namespace: Arc<Namespace>,
        store: Arc<LocalStore>,
        registry: Arc<Registry>,
        bridge: Bridge,
        clock: Arc<dyn Clock>,
        shutdown: Shutdown,
        options: ReplicatorOptions,
    ) -> Result<Arc<Self>, ReplicationError> {
        let _ = (namespace, store, registry, bridge, clock, shutdown, options);
        todo!()
    }
    pub fn registry(&self) -> &Arc<Registry> {
        todo!()
    }
    /// Where a content with these copies stands under this policy (distinct failure domains counted).
    pub fn judge(&self, _min: u8, _target: u8, _max: u8, _copies: &[CopyRecord]) -> PinState {
        todo!()
    }
    /// Whether copies beyond the local one are wanted at all under `policy` (min/target > 1 and a backend is configured).
    pub fn wants_copies(&self, _policy: &Policy) -> bool {
        todo!()
    }
    /// These contents were just committed with queue rows.
    pub fn submit(&self, _roots: &[Cid]) {
        todo!()
    }
    /// Waits until `root` has the copies of `policy`'s level. `Ok` with what was reached when the policy queues; `BelowLevel` when it says fail.
    pub fn wait(&self, _root: &Cid, _policy: &Policy) -> Result<WriteResult, ReplicationError> {
        todo!()
    }
    /// Waits until the queue is empty or `deadline` passed; false when some remain.
    pub fn drain(&self, _deadline: Option<Duration>, _progress: &mut dyn FnMut(Progress)) -> bool {
        todo!()
    }
    pub fn progress(&self) -> Progress {
        todo!()
    }
    /// A verified block: local store first, else other backends, and then repaired locally.
    pub fn fetch(&self, _cid: &Cid) -> Result<Bytes, ReplicationError> {
        todo!()
    }
    /// Brings every block of a content into the local store.
    pub fn fetch_all(&self, _root: &Cid) -> Result<u64, ReplicationError> {
        todo!()
    }
    /// Policy or backends changed: re-judge all contents and queue what is missing.
    pub fn replan(&self) -> Result<u64, ReplicationError> {
        todo!()
    }
}
