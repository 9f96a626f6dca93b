use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Level, Policy, Registry, ReplicationError};
use crate::metadata::Namespace;
use crate::runtime::{Bridge, Clock, Shutdown};
use crate::store::LocalStore;
use crate::types::{Cid, VolumeId, WriterId};

/// Times and limits of checkpoints.
#[derive(Debug, Clone)]
pub struct CheckpointerOptions {
    /// The volume's `checkpoints` folder (plain Parquet files for people and DuckDB).
    pub dir: PathBuf,
    /// Whose metadata this is.
    pub volume: VolumeId,
    /// Which life of the volume writes.
    pub writer: WriterId,
    /// Content profile name, for the manifest.
    pub profile: String,
    /// A delta at least this often while there are changes (default 30 s).
    pub delta_interval: Duration,
    /// A new base after this long with changes (default 5 min).
    pub base_interval: Duration,
    /// A new base when the deltas exceed this many bytes or half the base.
    pub base_bytes: u64,
    /// A new base when there are this many deltas.
    pub max_deltas: usize,
    /// Copies of the metadata itself (default 3/4/5).
    pub policy: Policy,
}

/// The last checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// Rises by one with each manifest.
    pub sequence: u64,
    /// CID of the manifest.
    pub cid: Option<Cid>,
    /// Seconds since it was written.
    pub age_s: u64,
    /// Places that hold it whole, the local one included.
    pub copies: u32,
}

/// Writes base and deltas, and replicates them.
pub struct Checkpointer {}

#[expect(missing_docs, clippy::missing_errors_doc, reason = "documented by its owner")]
impl Checkpointer {
    /// Reads the local manifest chain and starts the interval thread.
    pub fn start(
        namespace: Arc<Namespace>,
        store: Arc<LocalStore>,
        registry: Arc<Registry>,
        volume_policy: Policy,
        bridge: Bridge,
        clock: Arc<dyn Clock>,
        shutdown: Shutdown,
        options: CheckpointerOptions,
    ) -> Result<Arc<Self>, ReplicationError> {
        let _ = (namespace, store, registry, volume_policy, bridge, clock, shutdown, options);
        todo!()
    }
    /// Returns when all changes committed before the call are in a delta that is durable at `level` (LOCAL_DURABILITY: engine persisted only, no delta). Calls at the same time share one delta.
    pub fn acknowledge(&self, _policy: &Policy) -> Result<(), ReplicationError> {
        let _ = Level::Quorum;
        todo!()
    }
    /// Writes a delta now (`base`: a new base), and waits for as many copies as can be had.
    pub fn checkpoint(&self, _base: bool) -> Result<CheckpointStatus, ReplicationError> {
        todo!()
    }
    pub fn status(&self) -> CheckpointStatus {
        todo!()
    }
    /// The volume's policy changed (it is in the manifest).
    pub fn set_policy(&self, _policy: Policy) {
        todo!()
    }
}
