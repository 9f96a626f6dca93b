use super::TooManyPolicies;
use crate::backends::BackendError;
use crate::content::ContentError;
use crate::metadata::MetadataError;
use crate::store::StoreError;
use crate::types::{BackendId, Cid};

/// What replication can answer instead of a result.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// No copy in reach is good (EIO). `tried` says each backend's answer.
    #[error("block {cid} cannot be read from any backend: {tried}")]
    NoGoodCopy {
        /// The block.
        cid: Cid,
        /// `id: reason; id: reason`.
        tried: String,
    },
    /// The level was not reached and the policy says fail (EIO).
    #[error("{have} of {want} copies are written; {reason}")]
    BelowLevel {
        /// Durable copies now.
        have: usize,
        /// Copies that the level asks for.
        want: usize,
        /// Why there are no more.
        reason: String,
    },
    /// A backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The backend went down while a call was under way: nothing is known of
    /// what was sent.
    #[error("the backend went down, and the call was given up")]
    WentDown,
    /// The metadata failed.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A block is no node, or a tree of them is none.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// No complete checkpoint was found there.
    #[error("no complete checkpoint at {location}: {reason}")]
    NoCheckpoint {
        /// Where was looked.
        location: String,
        /// What was found instead.
        reason: String,
    },
    /// The tree does not know a checkpoint that it wrote (EIO): it is not the
    /// newest state of the volume, and must not be taken for it.
    #[error(
        "{location} has checkpoint {found}, which this volume's metadata does not know (it is at \
         {known}): `meta` lost changes or is an old copy, or another life of the volume writes \
         there; `cairn recover --from` a backend brings the newest state into a new folder"
    )]
    Behind {
        /// The newest checkpoint that the tree knows.
        known: u64,
        /// The newest one that is there.
        found: u64,
        /// Where.
        location: String,
    },
    /// Another life of the volume took the backend over: nothing more is written or
    /// deleted there (EIO).
    #[error(
        "another life of this volume (claim {epoch}) writes to {location}, and this one does not \
         any more: unmount one of them; the one that is mounted next takes it over, if it knows \
         the newest checkpoint"
    )]
    Fenced {
        /// Where.
        location: String,
        /// The other's claim.
        epoch: u64,
    },
    /// Blocks of a backend cannot be collected now, and why (EAGAIN).
    #[error("nothing is collected at {id}: {reason}")]
    NotCollected {
        /// The backend.
        id: BackendId,
        /// What is in the way, and what to do.
        reason: String,
    },
    /// No number is left for one more policy (ENOSPC).
    #[error(transparent)]
    TooManyPolicies(#[from] TooManyPolicies),
    /// The daemon is stopping (ESHUTDOWN).
    #[error("the volume is being unmounted")]
    ShuttingDown,
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
