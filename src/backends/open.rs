use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Backend, BackendError};
use crate::types::BackendId;

/// A backend as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendSpec {
    /// Its id in the volume.
    pub id: BackendId,
    /// `file:///path`, a plain absolute path, `memory:name`; later `s3://...`.
    /// Query parameters are settings (`domain=`, `capacity=`, `read_only=`, `id=`).
    pub url: String,
}

/// A URL that names no backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backend `{url}`: {reason}")]
pub struct InvalidBackendUrl {
    /// As given (without secrets).
    pub url: String,
    /// What is wrong, and what to write instead.
    pub reason: String,
}

impl BackendSpec {
    /// Reads what a user typed; derives an id from the URL unless `id=` names
    /// one; `taken` ids are avoided by a number at the end. Relative paths are
    /// made absolute.
    ///
    /// # Errors
    /// [`InvalidBackendUrl`] for an unknown scheme, a bad parameter or id.
    pub fn parse(text: &str, taken: &[BackendId]) -> Result<Self, InvalidBackendUrl> {
        let _ = (text, taken);
        todo!()
    }
}

/// Opens a backend. `create` makes an empty place (a directory) when there is
/// none; without it a missing place is `Unavailable` (an unplugged disk must
/// not be replaced by an empty folder on the disk below).
///
/// # Errors
/// `Invalid` for a bad spec, else what the place says.
pub fn open(spec: &BackendSpec, create: bool) -> Result<Arc<dyn Backend>, BackendError> {
    let _ = (spec, create);
    todo!()
}
