use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;

use super::{ContentError, Link, Load, Profile, Sink};

/// Encodes one leaf of `data` (at most `chunk_size` bytes). The block is `data`
/// itself under raw leaves; otherwise the encoded node is in the second field.
#[must_use]
pub fn leaf(profile: &Profile, data: &[u8]) -> (Link, Option<Bytes>) {
    let _ = (profile, data);
    todo!()
}

/// Builds a balanced file DAG from its leaves, in order, holding at most one
/// node a level.
pub struct FileBuilder {
    _profile: Profile,
}

impl FileBuilder {
    /// A builder that has no leaf yet.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self { _profile: profile }
    }

    /// Adds the next leaf; inner nodes that become full go to `sink`.
    ///
    /// # Errors
    /// What `sink` returns.
    pub fn push(&mut self, leaf: Link, sink: &mut Sink<'_>) -> Result<(), ContentError> {
        let _ = (leaf, sink);
        todo!()
    }

    /// Finishes the tree; a file without leaves is the empty file.
    ///
    /// # Errors
    /// What `sink` returns.
    pub fn finish(self, sink: &mut Sink<'_>) -> Result<Link, ContentError> {
        let _ = sink;
        todo!()
    }
}

/// Chunks all of `reader` and sends every block, leaves too, to `sink`.
/// Memory: one chunk and one node a level.
///
/// # Errors
/// What `reader` or `sink` return.
pub fn import_file(
    profile: &Profile,
    reader: &mut dyn Read,
    sink: &mut Sink<'_>,
) -> Result<Link, ContentError> {
    let _ = (profile, reader, sink);
    todo!()
}

/// What [`rebuild`] made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// The new root.
    pub root: Link,
    /// Inner nodes that were encoded and hashed.
    pub nodes_hashed: u64,
    /// Inner nodes of the old tree that were loaded.
    pub nodes_loaded: u64,
    /// Blocks in the new DAG, leaves included, duplicates counted each time.
    pub blocks: u64,
}

/// Makes the DAG of a changed file from the DAG of its former state: only the
/// paths from changed leaves to the root are loaded, encoded and hashed.
///
/// `old` is the former root with its size (`None`: there was no content), built
/// under the same profile; `new_size` is the size now; `changed` has each leaf
/// (by index, offset / chunk_size) whose bytes differ. The caller must include:
/// every leaf beyond the old size, and the old last leaf when its length
/// changes (growth over a partial leaf, or truncation into a leaf).
///
/// # Errors
/// [`ContentError::Missing`] and the like from `load`; what `sink` returns;
/// `Malformed` when the old tree is not a balanced one of this profile (import
/// such a file anew).
pub fn rebuild(
    profile: &Profile,
    old: Option<&Link>,
    new_size: u64,
    changed: &BTreeMap<u64, Link>,
    load: &mut Load<'_>,
    sink: &mut Sink<'_>,
) -> Result<Rebuilt, ContentError> {
    let _ = (profile, old, new_size, changed, load, sink);
    todo!()
}
