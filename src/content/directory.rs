use bytes::Bytes;

use super::{ContentError, Link, Load, Profile, Sink};

/// One entry of a UnixFS directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The UnixFS name: UTF-8, escaped by [`super::escape_name`] where the
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
    entries: Vec<DirectoryEntry>,
    sink: &mut Sink<'_>,
) -> Result<Link, ContentError> {
    let _ = (profile, entries, sink);
    todo!()
}

/// Reads a directory, flat or sharded, entry by entry in stored order.
///
/// # Errors
/// Of `load` and `visit`; `Malformed` when `root` is no directory.
pub fn read_directory(
    root: &crate::types::Cid,
    load: &mut Load<'_>,
    visit: &mut dyn FnMut(DirectoryEntry) -> Result<(), ContentError>,
) -> Result<(), ContentError> {
    let _ = (root, load, visit);
    todo!()
}

/// Encodes a symbolic link (UnixFS type 4; always dag-pb). The target's bytes
/// are stored as they are.
#[must_use]
pub fn symlink(profile: &Profile, target: &[u8]) -> (Link, Bytes) {
    let _ = (profile, target);
    todo!()
}
