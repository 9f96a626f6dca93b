use std::sync::Arc;

use crate::backends::{Backend, BackendSpec};
use crate::replication::BackendStatus;
use crate::types::BackendId;

/// The volume's backends, with their health. The local store is not in it.
/// Cheap to read; changed by `backend add|remove` while mounted.
pub struct Registry {}

#[expect(missing_docs, clippy::missing_errors_doc, reason = "documented by its owner")]
impl Registry {
    /// `local_domain`: failure domain of the local store.
    pub fn new(local_domain: String) -> Self {
        let _ = local_domain;
        todo!()
    }
    /// Adds a backend that answered, or (`None`) one that is unavailable now and is opened again by probes.
    pub fn add(&self, _spec: BackendSpec, _backend: Option<Arc<dyn Backend>>) {
        todo!()
    }
    pub fn remove(&self, _id: &BackendId) -> bool {
        todo!()
    }
    pub fn get(&self, _id: &BackendId) -> Option<Arc<dyn Backend>> {
        todo!()
    }
    pub fn specs(&self) -> Vec<BackendSpec> {
        todo!()
    }
    pub fn statuses(&self) -> Vec<BackendStatus> {
        todo!()
    }
}
