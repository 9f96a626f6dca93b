use crate::types::Cid;

/// What can be wrong with a CAR. Offsets are bytes from its start.
#[derive(Debug, thiserror::Error)]
pub enum CarError {
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
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
