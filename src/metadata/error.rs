use crate::types::Ino;

/// What a metadata operation can answer instead of a result. Each POSIX
/// meaning is its own variant; `vfs::error` turns them into errno.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// No such name or inode (ENOENT).
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken (EEXIST).
    #[error("the name exists already")]
    Exists,
    /// A directory is needed and this is none (ENOTDIR).
    #[error("inode {0} is not a directory")]
    NotADirectory(Ino),
    /// A directory is in the way (EISDIR).
    #[error("inode {0} is a directory")]
    IsADirectory(Ino),
    /// The directory still has entries (ENOTEMPTY).
    #[error("directory {0} is not empty")]
    NotEmpty(Ino),
    /// A directory would become its own ancestor, or flags exclude each other (EINVAL).
    #[error("invalid operation: {0}")]
    Invalid(&'static str),
    /// Too many links to one inode (EMLINK).
    #[error("inode {0} has too many links")]
    TooManyLinks(Ino),
    /// No such extended attribute (ENODATA).
    #[error("no such extended attribute")]
    NoAttribute,
    /// The operation is not allowed on this kind of inode (EPERM).
    #[error("operation not permitted: {0}")]
    NotPermitted(&'static str),
    /// The quota of this directory does not allow it (EDQUOT; of the root ENOSPC).
    #[error("the quota of directory {0} is used up")]
    QuotaExceeded(Ino),
    /// A directory, or one of several names, would come under other quotas (EXDEV).
    #[error("inode {0} cannot move between quotas; copy it")]
    CrossesQuota(Ino),
    /// More quotas than a volume may have (ENOSPC).
    #[error("a volume has at most {0} quotas")]
    TooManyQuotas(usize),
    /// Other transactions kept winning (EAGAIN after many tries).
    #[error("the metadata is too contended; try again")]
    Contended,
    /// A stored record does not decode: the volume is damaged here (EIO).
    #[error("record {key} is damaged: {reason}; run `cairn fsck`")]
    Damaged {
        /// The key, escaped.
        key: String,
        /// What does not decode.
        reason: String,
    },
    /// Made by a newer Cairn (refused at open).
    #[error("this volume's metadata has format {found}, newer than {supported}: use a newer cairn")]
    TooNew {
        /// The format found.
        found: u32,
        /// The newest this binary reads.
        supported: u32,
    },
    /// The engine's files are damaged (refused at open).
    #[error(
        "the metadata cannot be opened ({0}): `cairn recover --from` a backend brings the volume \
         back in a new folder"
    )]
    Unopenable(String),
    /// The engine's storage failed (EIO; the engine is poisoned for writing).
    #[error("metadata storage failed: {0}")]
    Storage(String),
    /// The disk is full (ENOSPC).
    #[error("no space left for metadata")]
    NoSpace,
    /// A Parquet checkpoint could not be written or read.
    #[error("checkpoint: {0}")]
    Checkpoint(String),
    /// A file operation of a checkpoint failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
