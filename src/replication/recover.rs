use std::sync::Arc;

use super::{Policy, ReplicationError};
use crate::backends::{Backend, BackendSpec};
use crate::metadata::Engine;
use crate::runtime::Bridge;
use crate::types::{Cid, VolumeId};

/// Where to recover from.
pub struct RecoverSource {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// Which volume, when several lie there.
    pub volume: Option<VolumeId>,
}

/// What was recovered.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The volume's id.
    pub volume: VolumeId,
    /// Of the manifest.
    pub sequence: u64,
    /// Of the manifest.
    pub cid: Cid,
    /// The volume's policy.
    pub policy: Policy,
    /// Content profile name.
    pub profile: String,
    /// Its backends, without secrets.
    pub backends: Vec<BackendSpec>,
    /// Rows loaded.
    pub rows: u64,
    /// Newer manifests that were incomplete, with the reason.
    pub skipped: Vec<String>,
}

/// Finds the newest complete manifest, verifies it, and loads base and deltas
/// into an empty engine (local copies dropped: the local disk is new).
///
/// # Errors
/// `NoCheckpoint`; of the backend and the engine.
pub fn recover(
    source: &RecoverSource,
    engine: Arc<dyn Engine>,
    bridge: &Bridge,
) -> Result<Recovered, ReplicationError> {
    let _ = (source, engine, bridge);
    todo!()
}
