use std::io;
use std::path::{Path, PathBuf};

use crate::types::{Cid, SegmentId};

/// What the local store can answer instead of a result.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The block's bytes here are wrong: a copy elsewhere must repair it.
    #[error("block {cid} is corrupt in segment {segment} at offset {offset}")]
    Corrupt {
        /// The block.
        cid: Cid,
        /// Where.
        segment: SegmentId,
        /// Byte offset in the segment file.
        offset: u64,
    },
    /// The index names a segment file that is not there, or is too short.
    #[error("segment {segment} does not hold block {cid}")]
    SegmentMissing {
        /// The block.
        cid: Cid,
        /// The file that should hold it.
        segment: SegmentId,
    },
    /// The disk is full (ENOSPC).
    #[error("no space left in the local store")]
    NoSpace,
    /// The file would exceed what the disk allows (EFBIG).
    #[error("the file is larger than the disk below allows")]
    TooLarge,
    /// An earlier fsync failed: nothing written since can be trusted here.
    #[error("an earlier sync of the store failed; remount the volume")]
    Poisoned,
    /// The index failed.
    #[error("block index: {0}")]
    Index(String),
    /// A file operation failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StoreError {
    /// Gives a failed file operation its meaning.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            io::ErrorKind::FileTooLarge => Self::TooLarge,
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// A caller or a file broke a rule of the store.
    pub(crate) fn invalid(path: &Path, reason: impl Into<String>) -> Self {
        let source = io::Error::new(io::ErrorKind::InvalidData, reason.into());
        Self::Io { path: path.to_owned(), source }
    }
}
