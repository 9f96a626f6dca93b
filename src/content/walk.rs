use std::ops::Range;

use bytes::Bytes;

use super::{ContentError, Link, Load};
use crate::types::Cid;

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

/// Visits, in order, the leaves of a file that overlap `range`; loads inner
/// nodes only (a leaf that is the root is not loaded when it is raw).
///
/// # Errors
/// Of `load` and `visit`; `Malformed` when `root` is not a file.
pub fn leaves(
    root: &Link,
    range: Range<u64>,
    load: &mut Load<'_>,
    visit: &mut dyn FnMut(LeafSpan) -> Result<(), ContentError>,
) -> Result<(), ContentError> {
    let _ = (root, range, load, visit);
    todo!()
}

/// Visits every block below `root`, each once, children before parents.
/// `enter` says whether to go into a node at all (false prunes it and all that
/// is below it: its holder has it). Identity CIDs are not visited.
/// Memory: the path, and a set of the CIDs that were seen.
///
/// # Errors
/// Of the callbacks; `Malformed`; `TooDeep` past 64 levels.
pub fn walk_post_order(
    root: &Cid,
    enter: &mut dyn FnMut(&Cid) -> Result<bool, ContentError>,
    load: &mut Load<'_>,
    visit: &mut dyn FnMut(&Cid, &Bytes) -> Result<(), ContentError>,
) -> Result<(), ContentError> {
    let _ = (root, enter, load, visit);
    todo!()
}
