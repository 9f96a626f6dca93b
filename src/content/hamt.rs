//! HAMT-sharded directories (ipfs/specs `src/unixfs.md`, "`HAMTDirectory`").

use std::io::Cursor;

use bytes::Bytes;

use super::dag_pb::{PbLink, TYPE_HAMT, UnixFs, encode};
use super::{ContentError, DirectoryEntry, Link, Profile, Sink};
use crate::types::{Cid, cid};

/// Multicodec of murmur3-x64-64.
pub(super) const MURMUR3_X64_64: u64 = 0x22;
/// Levels that a 64-bit hash has at 8 bits a level.
const MAX_DEPTH: usize = 8;

/// The first 64 bits of murmur3 x64 128 (seed 0), as big-endian bytes.
fn hash(name: &str) -> Result<[u8; 8], ContentError> {
    let full = murmur3::murmur3_x64_128(&mut Cursor::new(name.as_bytes()), 0)?;
    Ok((full as u64).to_be_bytes())
}

/// Builds the shards below a sorted or unsorted set of entries.
pub(super) fn build(
    profile: &Profile,
    entries: Vec<DirectoryEntry>,
    sink: &mut Sink<'_>,
) -> Result<Link, ContentError> {
    let mut hashed = Vec::with_capacity(entries.len());
    for entry in entries {
        hashed.push((hash(&entry.name)?, entry));
    }
    hashed.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.name.cmp(&b.1.name)));
    shard(profile, &hashed, 0, sink)
}

fn shard(
    profile: &Profile,
    entries: &[([u8; 8], DirectoryEntry)],
    level: usize,
    sink: &mut Sink<'_>,
) -> Result<Link, ContentError> {
    if level >= MAX_DEPTH {
        return Err(ContentError::TooDeep(Cid::default()));
    }
    let mut links = Vec::new();
    let mut bitmap = vec![0u8; profile.hamt_fanout / 8];
    let mut rest = entries;
    while let Some((first, _)) = rest.first() {
        let bucket = first[level];
        let count = rest.iter().take_while(|(h, _)| h[level] == bucket).count();
        let (group, tail) = rest.split_at(count);
        rest = tail;
        // A big-endian integer: bit 0 is the last byte's lowest.
        let place = bitmap.len() - 1 - usize::from(bucket) / 8;
        bitmap[place] |= 1 << (bucket % 8);
        links.push(if let [(_, only)] = group {
            PbLink {
                cid: only.link.cid,
                name: format!("{bucket:02X}{}", only.name).into_bytes(),
                tsize: only.link.tsize,
            }
        } else {
            let below = shard(profile, group, level + 1, sink)?;
            let name = format!("{bucket:02X}").into_bytes();
            PbLink { cid: below.cid, name, tsize: below.tsize }
        });
    }
    let zeros = bitmap.iter().take_while(|b| **b == 0).count();
    let unixfs = UnixFs {
        kind: TYPE_HAMT,
        data: Some(Bytes::from(bitmap.split_off(zeros))),
        hash_type: Some(MURMUR3_X64_64),
        fanout: Some(profile.hamt_fanout as u64),
        ..UnixFs::default()
    };
    emit(profile, &links, &unixfs, sink)
}

/// Encodes a directory node or shard, sends it, and links to it.
pub(super) fn emit(
    profile: &Profile,
    links: &[PbLink],
    unixfs: &UnixFs,
    sink: &mut Sink<'_>,
) -> Result<Link, ContentError> {
    let block = encode(links, unixfs);
    let id = node_cid(profile, &block);
    let own = block.len() as u64;
    // Sizes of foreign parts are only claims; what is too much stays too much.
    let tsize = links.iter().fold(own, |sum, link| sum.saturating_add(link.tsize));
    let link = Link { cid: id, size: 0, tsize };
    sink(id, Bytes::from(block))?;
    Ok(link)
}

/// The CID of a dag-pb block under a profile.
pub(super) fn node_cid(profile: &Profile, block: &[u8]) -> Cid {
    let digest = cid::sha256(block);
    if profile.cid_version == 0 { cid::v0(&digest) } else { cid::v1(cid::DAG_PB, &digest) }
}
