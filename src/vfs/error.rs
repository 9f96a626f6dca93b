use crate::content::ContentError;
use crate::metadata::MetadataError;
use crate::replication::ReplicationError;
use crate::store::StoreError;

/// An errno of Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

/// What a filesystem operation can answer instead of a result.
#[derive(Debug, thiserror::Error)]
pub enum VfsError {
    /// A plain POSIX answer.
    #[error("{1}")]
    Posix(Errno, &'static str),
    /// The metadata's answer.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The store's answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Content does not decode.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Copies could not be made or read.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
}
