use rustix::io::Errno as Os;

use crate::content::ContentError;
use crate::metadata::MetadataError;
use crate::replication::ReplicationError;
use crate::store::StoreError;
use crate::types::Ino;

/// An errno of Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

/// What a filesystem operation can answer instead of a result.
#[derive(Debug, thiserror::Error)]
pub enum VfsError {
    /// A plain POSIX answer.
    #[error("{0}")]
    Posix(Os),
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
    /// Text that is no policy here (EINVAL).
    #[error("{0}")]
    InvalidPolicy(String),
    /// An earlier write of this file failed in the background; told once.
    #[error("an earlier write failed: {1}")]
    Latched(Errno, String),
}

impl From<Os> for VfsError {
    fn from(errno: Os) -> Self {
        Self::Posix(errno)
    }
}

impl VfsError {
    /// The one table from meanings to errno.
    #[must_use]
    pub fn errno(&self) -> Errno {
        let os = match self {
            Self::Latched(errno, _) => return *errno,
            Self::Posix(errno) => *errno,
            Self::InvalidPolicy(_) => Os::INVAL,
            Self::Metadata(error) => of_metadata(error),
            Self::Store(error) => of_store(error),
            // Bytes that cannot be understood are damage.
            Self::Content(
                ContentError::Malformed { .. }
                | ContentError::UnsupportedCodec { .. }
                | ContentError::Missing(_)
                | ContentError::Mismatch(_)
                | ContentError::DuplicateName(_)
                | ContentError::TooDeep(_)
                | ContentError::Io(_),
            ) => Os::IO,
            Self::Replication(error) => match error {
                ReplicationError::NoGoodCopy { .. }
                | ReplicationError::BelowLevel { .. }
                | ReplicationError::Backend(_)
                | ReplicationError::WentDown
                | ReplicationError::NoCheckpoint { .. }
                | ReplicationError::Content(_)
                | ReplicationError::Fenced { .. }
                | ReplicationError::Behind { .. } => Os::IO,
                ReplicationError::NotCollected { .. } => Os::AGAIN,
                ReplicationError::Io(source) => of_io(source),
                ReplicationError::Metadata(error) => of_metadata(error),
                ReplicationError::Store(error) => of_store(error),
                ReplicationError::ShuttingDown => Os::SHUTDOWN,
                ReplicationError::TooManyPolicies(_) => Os::NOSPC,
            },
        };
        Errno(os.raw_os_error())
    }
}

fn of_io(error: &std::io::Error) -> Os {
    match error.raw_os_error().map(Os::from_raw_os_error) {
        Some(full @ (Os::NOSPC | Os::DQUOT)) => full,
        _ => Os::IO,
    }
}

fn of_metadata(error: &MetadataError) -> Os {
    match error {
        MetadataError::NotFound => Os::NOENT,
        MetadataError::Exists => Os::EXIST,
        MetadataError::NotADirectory(_) => Os::NOTDIR,
        MetadataError::IsADirectory(_) => Os::ISDIR,
        MetadataError::NotEmpty(_) => Os::NOTEMPTY,
        MetadataError::Invalid(_) => Os::INVAL,
        MetadataError::TooManyLinks(_) => Os::MLINK,
        MetadataError::NoAttribute => Os::NODATA,
        MetadataError::NotPermitted(_) => Os::PERM,
        MetadataError::Contended => Os::AGAIN,
        // The volume's own quota is as a disk of that size.
        MetadataError::QuotaExceeded(Ino::ROOT)
        | MetadataError::TooManyQuotas(_)
        | MetadataError::NoSpace => Os::NOSPC,
        MetadataError::QuotaExceeded(_) => Os::DQUOT,
        MetadataError::CrossesQuota(_) => Os::XDEV,
        MetadataError::Damaged { .. }
        | MetadataError::TooNew { .. }
        | MetadataError::Unopenable(_)
        | MetadataError::Storage(_)
        | MetadataError::Checkpoint(_) => Os::IO,
        MetadataError::Io(error) => of_io(error),
    }
}

fn of_store(error: &StoreError) -> Os {
    match error {
        StoreError::NoSpace => Os::NOSPC,
        StoreError::TooLarge => Os::FBIG,
        StoreError::Corrupt { .. }
        | StoreError::SegmentMissing { .. }
        | StoreError::Poisoned
        | StoreError::Index(_)
        | StoreError::Io { .. } => Os::IO,
    }
}
