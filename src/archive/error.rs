use super::Report;
use crate::content::ContentError;
use crate::content::car::CarError;
use crate::metadata::MetadataError;
use crate::types::Cid;

/// What can be wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read as a CAR.
    #[error(transparent)]
    Car(CarError),
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

impl From<CarError> for ArchiveError {
    fn from(error: CarError) -> Self {
        match error {
            CarError::Io(error) => Self::Io(error),
            damage => Self::Car(damage),
        }
    }
}

impl ArchiveError {
    /// Whether the archive itself is damaged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Car(_) | Self::Faulty(_) | Self::Missing(_) | Self::Metadata(_) => true,
            Self::Content(error) => !matches!(error, ContentError::Io(_)),
            Self::Unusable(_) | Self::Io(_) => false,
        }
    }
}

/// Carries a foreign error through a content callback.
pub fn io_error(error: &impl std::fmt::Display) -> ContentError {
    ContentError::Io(std::io::Error::other(error.to_string()))
}
