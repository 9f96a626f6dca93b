use super::Report;
use crate::content::ContentError;
use crate::metadata::MetadataError;
use crate::types::Cid;

/// What can be wrong with an archive. Offsets are bytes from its start.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not a CAR, or a version that does not exist.
    #[error("not a CAR archive: {0}")]
    NotACar(String),
    /// The archive ends in the middle of something.
    #[error("the archive is cut off at offset {offset}, inside {inside}")]
    Truncated {
        /// Where it ends.
        offset: u64,
        /// Inside what.
        inside: &'static str,
    },
    /// A length, varint or CID is not valid.
    #[error("damaged at offset {offset}: {reason}")]
    Malformed {
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A block's bytes are not those that its CID names.
    #[error("block {cid} at offset {offset} does not match its hash")]
    Mismatch {
        /// The block.
        cid: Cid,
        /// Of its section.
        offset: u64,
    },
    /// Read to its end and not whole: damaged or missing blocks, a wrong index.
    #[error("{0}")]
    Faulty(Box<Report>),
    /// A block is asked for that the archive does not have.
    #[error("block {0} is not in the archive")]
    Missing(Cid),
    /// The tree cannot be taken in or written out.
    #[error("the archive is not usable: {0}")]
    Unusable(String),
    /// A block does not decode.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The metadata part does not decode.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl ArchiveError {
    /// Whether the archive itself is damaged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::NotACar(_)
            | Self::Truncated { .. }
            | Self::Malformed { .. }
            | Self::Mismatch { .. }
            | Self::Faulty(_)
            | Self::Missing(_)
            | Self::Metadata(_) => true,
            Self::Content(error) => !matches!(error, ContentError::Io(_)),
            Self::Unusable(_) | Self::Io(_) => false,
        }
    }
}

/// Carries a foreign error through a content callback.
pub fn io_error(error: &impl std::fmt::Display) -> ContentError {
    ContentError::Io(std::io::Error::other(error.to_string()))
}
