use crate::types::Cid;

/// What can be wrong with content.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// A block's bytes are not what a decoder of its codec accepts.
    #[error("block {cid} is not valid {codec}: {reason}")]
    Malformed {
        /// The block.
        cid: Cid,
        /// `dag-pb`, `unixfs` or `hamt`.
        codec: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The codec is neither raw nor dag-pb.
    #[error("block {cid} has codec 0x{codec:x}; only raw (0x55) and dag-pb (0x70) hold files")]
    UnsupportedCodec {
        /// The block.
        cid: Cid,
        /// Its multicodec.
        codec: u64,
    },
    /// The loader has no such block.
    #[error("block {0} is missing")]
    Missing(Cid),
    /// The bytes are not those that the CID names.
    #[error("block {0} does not match its hash")]
    Mismatch(Cid),
    /// A directory was given two entries of one name.
    #[error("a directory has two entries named `{0}`")]
    DuplicateName(String),
    /// The DAG is deeper than any builder makes it.
    #[error("the DAG below {0} is too deep")]
    TooDeep(Cid),
    /// A sink, loader or reader failed for its own reasons.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
