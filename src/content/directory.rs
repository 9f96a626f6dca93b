use bytes::Bytes;

use super::dag_pb::{PbLink, TYPE_DIRECTORY, TYPE_SYMLINK, UnixFs, encode, link_field_len};
use super::hamt::{self, node_cid};
use super::node::inline_block;
use super::{ContentError, DirectoryEstimate, Link, Load, Node, Profile, Sink, parse_node};
use crate::types::Cid;

/// One entry of a `UnixFS` directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The `UnixFS` name: UTF-8, escaped by [`super::escape_name`] where the
    /// file's name is not.
    pub name: String,
    /// What it names. `size` is not used in a directory.
    pub link: Link,
}

/// Builds a directory, flat or sharded as the profile says; a pure function of
/// the set of entries. Entries may come in any order. `Link::size` is 0.
///
/// # Errors
/// [`ContentError::DuplicateName`]; what `sink` returns.
pub fn build_directory(
    profile: &Profile,
    mut entries: Vec<DirectoryEntry>,
    sink: &mut Sink<'_>,
) -> Result<Link, ContentError> {
    entries.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(ContentError::DuplicateName(pair[0].name.clone()));
    }
    if estimate(profile, &entries) > profile.hamt_threshold {
        return hamt::build(profile, entries, sink);
    }
    let links: Vec<PbLink> = entries
        .into_iter()
        .map(|e| PbLink { cid: e.link.cid, name: e.name.into_bytes(), tsize: e.link.tsize })
        .collect();
    let unixfs = UnixFs { kind: TYPE_DIRECTORY, ..UnixFs::default() };
    hamt::emit(profile, &links, &unixfs, sink)
}

fn estimate(profile: &Profile, entries: &[DirectoryEntry]) -> u64 {
    let lens = entries
        .iter()
        .map(|e| (e.link.cid.encoded_len() as u64, e.name.len() as u64, e.link.tsize));
    match profile.estimate {
        // 4 bytes: the data field of a directory without metadata.
        DirectoryEstimate::Block => 4 + lens.map(|(c, n, t)| link_field_len(c, n, t)).sum::<u64>(),
        DirectoryEstimate::Links => lens.map(|(c, n, _)| c + n).sum(),
    }
}

/// Reads a directory, flat or sharded, entry by entry in stored order.
///
/// # Errors
/// Of `load` and `visit`; `Malformed` when `root` is no directory.
pub fn read_directory(
    root: &Cid,
    load: &mut Load<'_>,
    visit: &mut dyn FnMut(DirectoryEntry) -> Result<(), ContentError>,
) -> Result<(), ContentError> {
    let mut stack = vec![(*root, 0usize)];
    while let Some((id, depth)) = stack.pop() {
        if depth > 16 {
            return Err(ContentError::TooDeep(*root));
        }
        let block = inline_block(&id).map_or_else(|| load(&id), Ok)?;
        match parse_node(&id, &block)? {
            Node::Directory { entries, .. } if depth == 0 => {
                for entry in entries {
                    visit(entry)?;
                }
            }
            Node::Shard { entries, shards, .. } => {
                for entry in entries {
                    visit(entry)?;
                }
                stack.extend(shards.iter().rev().map(|s| (s.cid, depth + 1)));
            }
            _ => {
                let reason = "not a directory".to_owned();
                return Err(ContentError::Malformed { cid: id, codec: "unixfs", reason });
            }
        }
    }
    Ok(())
}

/// Encodes a symbolic link (`UnixFS` type 4; always dag-pb). The target's bytes
/// are stored as they are.
#[must_use]
pub fn symlink(profile: &Profile, target: &[u8]) -> (Link, Bytes) {
    let unixfs = UnixFs {
        kind: TYPE_SYMLINK,
        data: Some(Bytes::copy_from_slice(target)),
        ..UnixFs::default()
    };
    let block = encode(&[], &unixfs);
    let link = Link {
        cid: node_cid(profile, &block),
        size: target.len() as u64,
        tsize: block.len() as u64,
    };
    (link, Bytes::from(block))
}
