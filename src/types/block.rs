use bytes::Bytes;

use super::{Cid, cid};

/// Bytes with the CID that names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The name: codec and hash of `data`.
    pub cid: Cid,
    /// At most 2 MiB (the limit that readers of IPFS blocks share).
    pub data: Bytes,
}

impl Block {
    /// The largest block that is read or written, in bytes.
    pub const MAX_LEN: usize = 2 * 1024 * 1024;

    /// A raw block of `data`, hashed here.
    #[must_use]
    pub fn raw(data: Bytes) -> Self {
        Self { cid: cid::of_raw(&data), data }
    }

    /// Whether the bytes hash to the CID.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        cid::verify(&self.cid, &self.data) == cid::Verdict::Match
    }
}
