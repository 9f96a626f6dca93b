use bytes::Bytes;

use super::dag_pb::{self, PbNode, UnixFs};
use super::{ContentError, DirectoryEntry, Link};
use crate::types::{Cid, Timestamp, cid};

/// Longest digest of an identity CID that readers accept (ipfs/specs,
/// CVE-2023-25568). `Cid` holds 64 bytes, so longer ones fail to decode before.
const MAX_IDENTITY: usize = 128;
/// Largest HAMT fanout that is read (CVE-2023-23625).
const MAX_FANOUT: u64 = 1024;

/// Optional POSIX metadata of `UnixFS` 1.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnixFsMetadata {
    /// Permission bits (and unknown high bits, kept).
    pub mode: Option<u32>,
    /// Modification time.
    pub mtime: Option<Timestamp>,
}

/// A decoded block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A raw leaf; the bytes are the content.
    Raw(Bytes),
    /// A file: inline bytes (a leaf) or links to children with their sizes.
    File {
        /// Content bytes held in the node itself (before its children's).
        data: Bytes,
        /// Children in order; `Link::size` is the child's content size.
        links: Vec<Link>,
        /// Content bytes of the whole sub-DAG.
        size: u64,
        /// `UnixFS` 1.5 metadata.
        metadata: UnixFsMetadata,
    },
    /// A flat directory.
    Directory {
        /// In stored order.
        entries: Vec<DirectoryEntry>,
        /// `UnixFS` 1.5 metadata.
        metadata: UnixFsMetadata,
    },
    /// One shard of a sharded directory.
    Shard {
        /// Entries of buckets with one entry.
        entries: Vec<DirectoryEntry>,
        /// Deeper shards.
        shards: Vec<Link>,
        /// The CIDs of both, in stored order.
        order: Vec<Cid>,
        /// `UnixFS` 1.5 metadata (root shard only).
        metadata: UnixFsMetadata,
    },
    /// A symbolic link.
    Symlink {
        /// The target's bytes.
        target: Bytes,
        /// `UnixFS` 1.5 metadata.
        metadata: UnixFsMetadata,
    },
}

impl Node {
    /// The CIDs of all children, in stored order.
    #[must_use]
    pub fn children(&self) -> Vec<Cid> {
        match self {
            Self::Raw(_) | Self::Symlink { .. } => Vec::new(),
            Self::File { links, .. } => links.iter().map(|link| link.cid).collect(),
            Self::Directory { entries, .. } => entries.iter().map(|e| e.link.cid).collect(),
            Self::Shard { order, .. } => order.clone(),
        }
    }

    /// `UnixFS` 1.5 metadata; a raw block has none.
    #[must_use]
    pub fn metadata(&self) -> UnixFsMetadata {
        match self {
            Self::Raw(_) => UnixFsMetadata::default(),
            Self::File { metadata, .. }
            | Self::Directory { metadata, .. }
            | Self::Shard { metadata, .. }
            | Self::Symlink { metadata, .. } => *metadata,
        }
    }
}

/// The block of an identity CID; `None` for any other CID.
#[must_use]
pub fn inline_block(id: &Cid) -> Option<Bytes> {
    (id.hash().code() == cid::IDENTITY).then(|| Bytes::copy_from_slice(id.hash().digest()))
}

/// Decodes a block whose hash is already checked.
///
/// # Errors
/// `Malformed` when the bytes break dag-pb, `UnixFS` or HAMT rules
/// (block sizes not matching links, fanout over 1024, ...); `UnsupportedCodec`.
pub fn parse_node(id: &Cid, data: &Bytes) -> Result<Node, ContentError> {
    let malformed = |codec, reason: String| ContentError::Malformed { cid: *id, codec, reason };
    if id.hash().code() == cid::IDENTITY && data.len() > MAX_IDENTITY {
        return Err(malformed("unixfs", format!("an identity CID of {} bytes", data.len())));
    }
    match id.codec() {
        cid::RAW => return Ok(Node::Raw(data.clone())),
        cid::DAG_PB => {}
        codec => return Err(ContentError::UnsupportedCodec { cid: *id, codec }),
    }
    let node = dag_pb::decode(data).map_err(|reason| malformed("dag-pb", reason))?;
    let unixfs = match &node.data {
        Some(data) => dag_pb::decode_unixfs(data).map_err(|reason| malformed("unixfs", reason))?,
        None => return Err(malformed("unixfs", "a node without data".into())),
    };
    let metadata = UnixFsMetadata {
        mode: unixfs.mode,
        mtime: unixfs.mtime.map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds }),
    };
    match unixfs.kind {
        dag_pb::TYPE_RAW | dag_pb::TYPE_FILE => file(node, unixfs, metadata),
        dag_pb::TYPE_DIRECTORY => {
            let entries =
                node.links.into_iter().map(|link| entry(link, 0)).collect::<Result<_, _>>();
            entries.map(|entries| Node::Directory { entries, metadata })
        }
        dag_pb::TYPE_SYMLINK if node.links.is_empty() => {
            Ok(Node::Symlink { target: unixfs.data.unwrap_or_default(), metadata })
        }
        dag_pb::TYPE_SYMLINK => Err("a symlink with links".into()),
        dag_pb::TYPE_HAMT => shard(node, &unixfs, metadata),
        kind => Err(format!("type {kind} is not a file, directory, symlink or shard")),
    }
    .map_err(|reason| malformed("unixfs", reason))
}

fn file(node: PbNode, unixfs: UnixFs, metadata: UnixFsMetadata) -> Result<Node, String> {
    if node.links.len() != unixfs.block_sizes.len() {
        return Err(format!(
            "{} links, {} block sizes",
            node.links.len(),
            unixfs.block_sizes.len()
        ));
    }
    let data = unixfs.data.unwrap_or_default();
    let mut size = data.len() as u64;
    let mut links = Vec::with_capacity(node.links.len());
    for (link, block) in node.links.into_iter().zip(unixfs.block_sizes) {
        size = size.checked_add(block).ok_or("sizes over 64 bits")?;
        links.push(Link { cid: link.cid, size: block, tsize: link.tsize });
    }
    match unixfs.file_size {
        Some(said) if said != size => Err(format!("file size {said}, its parts have {size}")),
        _ => Ok(Node::File { data, links, size, metadata }),
    }
}

fn entry(link: dag_pb::PbLink, prefix: usize) -> Result<DirectoryEntry, String> {
    let name = String::from_utf8(link.name).map_err(|_| "a name that is not UTF-8".to_owned())?;
    let name = name.get(prefix..).ok_or("a shard link with a short name")?.to_owned();
    Ok(DirectoryEntry { name, link: Link { cid: link.cid, size: 0, tsize: link.tsize } })
}

fn shard(node: PbNode, unixfs: &UnixFs, metadata: UnixFsMetadata) -> Result<Node, String> {
    let fanout = unixfs.fanout.ok_or("a shard without a fanout")?;
    if !fanout.is_power_of_two() || !(8..=MAX_FANOUT).contains(&fanout) {
        return Err(format!("a fanout of {fanout}"));
    }
    if unixfs.hash_type != Some(super::hamt::MURMUR3_X64_64) {
        return Err("a shard hashed with something other than murmur3-x64-64".into());
    }
    let prefix = format!("{:X}", fanout - 1).len();
    let bitmap = unixfs.data.as_deref().unwrap_or_default();
    if bitmap.len() as u64 > fanout / 8 {
        return Err(format!("a bitmap of {} bytes", bitmap.len()));
    }
    let bits: u32 = bitmap.iter().map(|byte| byte.count_ones()).sum();
    if bits as usize != node.links.len() {
        return Err(format!("{} links, {bits} bits", node.links.len()));
    }
    let (mut entries, mut shards) = (Vec::new(), Vec::new());
    let order = node.links.iter().map(|link| link.cid).collect();
    let mut last = None;
    for link in node.links {
        let slot = bucket(&link.name, prefix).ok_or("a shard link without a bucket")?;
        if last.is_some_and(|last| slot <= last) {
            return Err(format!("bucket {slot:X} out of order"));
        }
        last = Some(slot);
        // A big-endian integer whose leading zero bytes may be absent.
        let byte = bitmap.len().checked_sub(slot / 8 + 1).and_then(|at| bitmap.get(at));
        if byte.is_none_or(|byte| byte >> (slot % 8) & 1 == 0) {
            return Err(format!("bucket {slot:X} is not in the bitmap"));
        }
        if link.name.len() == prefix {
            shards.push(Link { cid: link.cid, size: 0, tsize: link.tsize });
        } else {
            entries.push(entry(link, prefix)?);
        }
    }
    Ok(Node::Shard { entries, shards, order, metadata })
}

/// The bucket that a shard link's name begins with: upper-case hexadecimal.
fn bucket(name: &[u8], digits: usize) -> Option<usize> {
    let digits = std::str::from_utf8(name.get(..digits)?).ok()?;
    if !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')) {
        return None;
    }
    usize::from_str_radix(digits, 16).ok()
}
