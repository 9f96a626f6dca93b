//! Zeros in a file's DAG. A leaf of zeros has a CID that is known, and so has a
//! node whose children are full subtrees of them: both are told from the link,
//! and nothing below is loaded, read or visited.

use std::ops::{ControlFlow, Range};
use std::slice::from_ref;

use bytes::Bytes;
use parking_lot::Mutex;

use super::dag::{encode_inner, leaf};
use super::walk::{Run, runs};
use super::{ContentError, Link, Load, Profile};
use crate::types::{Cid, cid};

/// Levels above the leaves that are known: more than 64-bit sizes have.
const LEVELS: u32 = 6;
/// Nodes that one question may load: a file of 64 TiB has fewer.
const MOST_NODES: u64 = 65_536;

/// The full subtrees of zeros of a profile.
#[derive(Debug)]
pub struct Zeros {
    profile: Profile,
    /// By level, leaves first.
    full: Vec<Link>,
    /// The nodes of the levels above the leaves.
    nodes: Vec<Bytes>,
    /// The leaf's own block.
    leaf: Bytes,
    /// A leaf that is not full, of the length that was asked for last.
    last: Mutex<Option<Link>>,
}

impl Zeros {
    /// Hashes one leaf and one node a level.
    #[must_use]
    pub fn new(profile: &Profile) -> Self {
        let zeros = vec![0; profile.chunk_size as usize];
        let (link, block) = leaf(profile, &zeros);
        let (mut full, mut nodes) = (vec![link], Vec::new());
        for _ in 0..LEVELS {
            let Some(below) = full.last().copied() else { break };
            if below.size.checked_mul(profile.max_links as u64).is_none() {
                break;
            }
            let (link, block) = encode_inner(profile, &vec![below; profile.max_links]);
            full.push(link);
            nodes.push(block);
        }
        Self {
            profile: *profile,
            full,
            nodes,
            leaf: block.unwrap_or_else(|| zeros.into()),
            last: Mutex::default(),
        }
    }

    /// The link to a full subtree of zeros; level 0 is a leaf.
    #[must_use]
    pub fn full(&self, level: u32) -> Option<Link> {
        self.full.get(level as usize).copied()
    }

    /// The node of [`Zeros::full`]; `None` for a leaf.
    pub(super) fn node(&self, level: u32) -> Option<&Bytes> {
        self.nodes.get((level as usize).checked_sub(1)?)
    }

    /// The leaf as it is stored.
    #[must_use]
    pub fn leaf_block(&self) -> Bytes {
        self.leaf.clone()
    }

    /// Whether everything below a link is zeros, as far as can be told without
    /// loading it: it is a full subtree of this profile, or a file's last leaf.
    #[must_use]
    pub fn covers(&self, link: &Link) -> bool {
        if let Some(full) = self.full.iter().find(|full| full.size == link.size) {
            return full.cid == link.cid;
        }
        let chunk = u64::from(self.profile.chunk_size);
        if link.size == 0 || link.size > chunk || link.cid.codec() != cid::RAW {
            return false;
        }
        let mut last = self.last.lock();
        if last.is_none_or(|known| known.size != link.size) {
            *last = Some(leaf(&self.profile, &vec![0; link.size as usize]).0);
        }
        last.is_some_and(|known| known.cid == link.cid)
    }
}

/// Bytes of a file within `ranges` (in order, apart) that are leaves of zeros.
/// Only nodes that overlap a range are loaded. At most too low: a tree of more
/// nodes than any file has is not walked to its end.
///
/// # Errors
/// Of `load`; `Malformed` when `root` is not a file.
pub fn holes(
    root: &Link,
    ranges: &[Range<u64>],
    zeros: &Zeros,
    load: &mut Load<'_>,
) -> Result<u64, ContentError> {
    let (mut total, mut loaded) = (0, 0);
    let mut load = |id: &Cid| {
        loaded += 1;
        if loaded > MOST_NODES { Err(ContentError::TooDeep(*id)) } else { load(id) }
    };
    let counted = runs(root, ranges, Some(zeros), &mut load, &mut |run| {
        if let Run::Hole(hole) = run {
            let first = ranges.partition_point(|range| range.end <= hole.start);
            for range in ranges[first..].iter().take_while(|range| range.start < hole.end) {
                total += range.end.min(hole.end) - range.start.max(hole.start);
            }
        }
        Ok(ControlFlow::Continue(()))
    });
    match counted {
        Err(_) if loaded > MOST_NODES => Ok(total),
        other => other.map(|()| total),
    }
}

/// The next data, or hole, at or after `offset`; `None` when no data follows.
/// The end of the file is a hole.
///
/// # Errors
/// Of `load`; `Malformed` when `root` is not a file.
pub fn seek(
    root: &Link,
    offset: u64,
    hole: bool,
    zeros: &Zeros,
    load: &mut Load<'_>,
) -> Result<Option<u64>, ContentError> {
    if offset >= root.size {
        return Ok(None);
    }
    let (mut found, mut reached, mut loaded) = (None, offset, 0);
    let mut load = |id: &Cid| {
        loaded += 1;
        if loaded > MOST_NODES { Err(ContentError::TooDeep(*id)) } else { load(id) }
    };
    let rest = offset..root.size;
    let walked = runs(root, from_ref(&rest), Some(zeros), &mut load, &mut |run| {
        let (at, end, is_hole) = match run {
            Run::Hole(range) => (range.start, range.end, true),
            Run::Leaf(span) => (span.offset, span.offset + span.len, false),
        };
        if is_hole == hole {
            found = Some(at.max(offset));
            return Ok(ControlFlow::Break(()));
        }
        reached = end;
        Ok(ControlFlow::Continue(()))
    });
    match walked {
        // What was not looked at counts as data.
        Err(_) if loaded > MOST_NODES => Ok(Some(if hole { root.size } else { reached })),
        Err(error) => Err(error),
        Ok(()) => Ok(found.or(hole.then_some(root.size))),
    }
}
