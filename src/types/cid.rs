//! Content identifiers, and the two codecs and two hash functions that Cairn
//! reads and writes (multiformats table; CID spec v1).

use sha2::{Digest, Sha256};

pub use ::cid::Cid;
use multihash::Multihash;

/// Multicodec of a raw block.
pub const RAW: u64 = 0x55;
/// Multicodec of a dag-pb node.
pub const DAG_PB: u64 = 0x70;
/// Multicodec of dag-cbor, used by the CAR header only.
pub const DAG_CBOR: u64 = 0x71;
/// Multihash code of sha2-256.
pub const SHA2_256: u64 = 0x12;
/// Multihash code of the identity function: the digest is the block.
pub const IDENTITY: u64 = 0x00;

/// The sha2-256 digest of `data`.
#[must_use]
pub fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

/// The `CIDv1` of a block with this codec and sha2-256 digest.
#[must_use]
pub fn v1(codec: u64, digest: &[u8; 32]) -> Cid {
    // 32 bytes always fit a 64-byte multihash, so the fallback is unreachable.
    let hash = Multihash::wrap(SHA2_256, digest).unwrap_or_default();
    Cid::new_v1(codec, hash)
}

/// The `CIDv0` (dag-pb, sha2-256) of a block with this digest.
#[must_use]
pub fn v0(digest: &[u8; 32]) -> Cid {
    let hash = Multihash::wrap(SHA2_256, digest).unwrap_or_default();
    // Only a multihash that is not sha2-256 of 32 bytes is refused.
    Cid::new_v0(hash).unwrap_or_default()
}

/// Hashes `data` into the `CIDv1` of a raw block.
#[must_use]
pub fn of_raw(data: &[u8]) -> Cid {
    v1(RAW, &sha256(data))
}

/// Hashes `data` into the `CIDv1` of a dag-pb node.
#[must_use]
pub fn of_dag_pb(data: &[u8]) -> Cid {
    v1(DAG_PB, &sha256(data))
}

/// What a comparison of bytes with their CID found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The bytes are the block that the CID names.
    Match,
    /// The bytes are something else.
    Mismatch,
    /// The hash function is not one that Cairn computes.
    UnknownHash,
}

/// Appends a CID's bytes; into room that is there already, unlike `Cid::to_bytes`,
/// which grows a vector three times.
pub fn append(cid: &Cid, out: &mut Vec<u8>) {
    let written = cid.write_bytes(out);
    debug_assert!(written.is_ok(), "a vector takes all");
}

/// Compares `data` with the digest in `cid`.
#[must_use]
pub fn verify(cid: &Cid, data: &[u8]) -> Verdict {
    match cid.hash().code() {
        SHA2_256 if cid.hash().digest() == sha256(data) => Verdict::Match,
        IDENTITY if cid.hash().digest() == data => Verdict::Match,
        SHA2_256 | IDENTITY => Verdict::Mismatch,
        _ => Verdict::UnknownHash,
    }
}
