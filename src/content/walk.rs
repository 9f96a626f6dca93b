use std::collections::HashSet;
use std::ops::{ControlFlow, Range};

use bytes::Bytes;

use super::node::inline_block;
use super::{ContentError, Link, Load, Node, Zeros, parse_node};
use crate::types::{Cid, cid};

/// No builder makes deeper trees: 64 levels of files, shards and directories.
const MAX_FILE_DEPTH: usize = 64;

/// A leaf and where its content lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafSpan {
    /// The leaf's block.
    pub cid: Cid,
    /// Offset of its first content byte in the file.
    pub offset: u64,
    /// Content bytes.
    pub len: u64,
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// A leaf.
    Leaf(LeafSpan),
    /// Bytes that are zeros: one leaf, or a whole subtree of them.
    Hole(Range<u64>),
}

/// Visits, in order, the leaves of a file that overlap `range`; loads inner
/// nodes only (a leaf that is the root is not loaded when it is raw; a dag-pb
/// leaf must be loaded to be known as one). The length of a raw leaf is what its
/// parent says: compare it with the block's when that is read.
///
/// # Errors
/// Of `load` and `visit`; `Malformed` when `root` is not a file.
pub fn leaves(
    root: &Link,
    range: Range<u64>,
    load: &mut Load<'_>,
    visit: &mut dyn FnMut(LeafSpan) -> Result<(), ContentError>,
) -> Result<(), ContentError> {
    runs(root, &[range], None, load, &mut |run| match run {
        Run::Leaf(span) => visit(span).map(ControlFlow::Continue),
        Run::Hole(_) => Ok(ControlFlow::Continue(())),
    })
}

/// Like [`leaves`], of the parts that overlap one of `ranges` (in order, apart);
/// what `zeros` knows is given as holes, and not entered. Ends when `visit`
/// breaks.
///
/// # Errors
/// As [`leaves`].
pub fn runs(
    root: &Link,
    ranges: &[Range<u64>],
    zeros: Option<&Zeros>,
    load: &mut Load<'_>,
    visit: &mut dyn FnMut(Run) -> Result<ControlFlow<()>, ContentError>,
) -> Result<(), ContentError> {
    let wanted = |start: u64, end: u64| {
        let next = ranges.get(ranges.partition_point(|range| range.end <= start));
        next.is_some_and(|range| range.start < end && !range.is_empty())
    };
    let mut stack = vec![(*root, 0u64, 0usize)];
    while let Some((link, offset, depth)) = stack.pop() {
        let end = offset.saturating_add(link.size);
        // Nothing is in an empty child: visiting it would let a small DAG with
        // shared children ask for endless work.
        let empty = link.size == 0 && depth > 0;
        if empty || !wanted(offset, end) {
            continue;
        }
        if depth > MAX_FILE_DEPTH {
            return Err(ContentError::TooDeep(root.cid));
        }
        let known = if zeros.is_some_and(|zeros| zeros.covers(&link)) {
            Some(Run::Hole(offset..end))
        } else if link.cid.codec() == cid::RAW {
            Some(Run::Leaf(LeafSpan { cid: link.cid, offset, len: link.size }))
        } else {
            None
        };
        if let Some(run) = known {
            if visit(run)?.is_break() {
                return Ok(());
            }
            continue;
        }
        let block = inline_block(&link.cid).map_or_else(|| load(&link.cid), Ok)?;
        let Node::File { data, links, size, .. } = parse_node(&link.cid, &block)? else {
            let reason = "not a file".to_owned();
            return Err(ContentError::Malformed { cid: link.cid, codec: "unixfs", reason });
        };
        if size != link.size {
            let reason = format!("{size} bytes where its parent says {}", link.size);
            return Err(ContentError::Malformed { cid: link.cid, codec: "unixfs", reason });
        }
        let inline = data.len() as u64;
        if inline > 0 && wanted(offset, offset + inline) {
            let leaf = Run::Leaf(LeafSpan { cid: link.cid, offset, len: inline });
            if visit(leaf)?.is_break() {
                return Ok(());
            }
        }
        let mut at = end;
        for child in links.iter().rev() {
            at -= child.size;
            stack.push((*child, at, depth + 1));
        }
    }
    Ok(())
}

/// Visits every block below `root`, each once, children before parents.
/// `enter` says whether to go into a node at all (false prunes it and all that
/// is below it: its holder has it). Identity CIDs are not visited.
/// Memory: the nodes on the path, and a set of the CIDs that were seen.
///
/// # Errors
/// Of the callbacks; `Malformed`; `TooDeep` past 4096 levels, or when the nodes
/// on one path have more than 256 MiB.
pub fn walk_post_order(
    root: &Cid,
    enter: &mut dyn FnMut(&Cid) -> Result<bool, ContentError>,
    load: &mut Load<'_>,
    visit: &mut dyn FnMut(&Cid, &Bytes) -> Result<(), ContentError>,
) -> Result<(), ContentError> {
    // Directories nest as deep as paths allow (4095 bytes, 2 a level).
    const MAX_DEPTH: usize = 4096;
    const MAX_PATH_BYTES: usize = 256 << 20;
    struct Frame {
        cid: Cid,
        block: Bytes,
        children: std::vec::IntoIter<Cid>,
    }
    let mut seen = HashSet::new();
    let mut stack: Vec<Frame> = Vec::new();
    let mut held = 0;
    let mut next = Some(*root);
    loop {
        if let Some(id) = next.take()
            && seen.insert(id)
        {
            let inline = inline_block(&id);
            if inline.is_some() || enter(&id)? {
                let block = inline.map_or_else(|| load(&id), Ok)?;
                held += block.len();
                if stack.len() >= MAX_DEPTH || held > MAX_PATH_BYTES {
                    return Err(ContentError::TooDeep(*root));
                }
                let children = parse_node(&id, &block)?.children().into_iter();
                stack.push(Frame { cid: id, block, children });
            }
        }
        let Some(frame) = stack.last_mut() else { return Ok(()) };
        next = frame.children.next();
        if next.is_none()
            && let Some(done) = stack.pop()
        {
            held -= done.block.len();
            if done.cid.hash().code() != cid::IDENTITY {
                visit(&done.cid, &done.block)?;
            }
        }
    }
}
