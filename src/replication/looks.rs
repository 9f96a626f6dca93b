//! Whether backends still have the checkpoint that was brought to them.
//!
//! A disk may be replaced by an empty one, or emptied under the daemon. Contents are
//! found missing by their proofs; of a checkpoint only deltas would come there, on a
//! base that is gone, until the next base.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::files::Source;
use super::machine::apart;
use super::{Registry, ReplicationError};
use crate::backends::Presence;
use crate::metadata::checkpoint::Manifest;
use crate::runtime::Bridge;
use crate::types::{BackendId, Cid, Timestamp};

/// Until a backend that was in reach all the time is asked again.
const AGAIN: Duration = Duration::from_hours(1);

/// When each was asked last; `None`: it is to be asked as soon as it answers.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<BTreeMap<BackendId, Option<Timestamp>>>);

impl Looks {
    /// It was away, or somebody brought it back.
    pub fn doubt(&self, id: &BackendId) {
        self.0.lock().insert(id.clone(), None);
    }

    /// Who was never asked was looked at when the checkpoint came there.
    fn is_due(&self, id: &BackendId, now: Timestamp) -> bool {
        match self.0.lock().entry(id.clone()).or_insert(Some(now)) {
            None => true,
            Some(at) => apart(*at, now) >= AGAIN,
        }
    }

    /// Whether a backend that had a checkpoint lacks some of it; asked when that is due.
    pub fn is_lost(
        &self,
        id: &BackendId,
        (registry, bridge): (&Registry, &Bridge),
        (manifest, manifest_cid): (&Manifest, &Cid),
        now: Timestamp,
    ) -> bool {
        let Some(backend) = registry.get(id) else {
            self.doubt(id);
            return false;
        };
        if !self.is_due(id, now) {
            return false;
        }
        match has(&Source { backend: &backend, bridge }, manifest, manifest_cid) {
            Ok(whole) => {
                self.0.lock().insert(id.clone(), Some(now));
                if !whole {
                    tracing::warn!(backend = %id, "the checkpoint is not there any more; it is brought again");
                }
                !whole
            }
            Err(error) => {
                tracing::debug!(%error, backend = %id, "it cannot be asked for its checkpoint");
                if let ReplicationError::Backend(error) = &error {
                    registry.failed(id, error);
                }
                false
            }
        }
    }
}

/// Whether a backend has the roots of all files of a checkpoint, and its name. What is
/// below a root came before it.
fn has(
    source: &Source<'_>,
    manifest: &Manifest,
    manifest_cid: &Cid,
) -> Result<bool, ReplicationError> {
    let mut roots = vec![*manifest_cid];
    for file in manifest.files() {
        let root = file.cid.parse().map_err(std::io::Error::other)?;
        roots.push(root);
    }
    let there = source.call(source.backend.presence(&roots))?;
    if !there.iter().all(|presence| matches!(presence, Presence::Present(_))) {
        return Ok(false);
    }
    let names =
        source.call(source.backend.names(&super::checkpointer::name_prefix(&manifest.volume)))?;
    Ok(names.iter().any(|(_, id)| id == manifest_cid))
}
