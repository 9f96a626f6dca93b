//! A walk of the tree in bounded steps, which a later call can go on with.

use std::collections::VecDeque;

use crate::metadata::{DentryRecord, MetadataError, Namespace};
use crate::types::{FileKind, Ino, Name};

/// Entries that are read at a time.
const ENTRIES: usize = 64;

struct Level {
    directory: Ino,
    path: Vec<u8>,
    /// Of the last entry that was passed.
    cookie: u64,
    ahead: VecDeque<(Name, DentryRecord)>,
}

/// Where a walk is: in each directory on the way, the cookie of the last entry that was
/// passed. Cookies stay while their entries live and never come twice, so what stays is
/// met once, whatever comes and goes.
pub(super) struct TreeWalk {
    levels: Vec<Level>,
}

impl TreeWalk {
    /// Of all below a directory.
    pub fn below(directory: Ino, path: Vec<u8>) -> Self {
        Self { levels: vec![Level::at(directory, path, 0)] }
    }

    /// Goes on where [`TreeWalk::position`] was; a directory that is gone is passed.
    pub fn resume(
        namespace: &Namespace,
        directory: Ino,
        path: Vec<u8>,
        position: &[u64],
    ) -> Result<Self, MetadataError> {
        let mut walk = Self::below(directory, path);
        for (depth, cookie) in position.iter().enumerate() {
            let Some(level) = walk.levels.last_mut() else { break };
            level.cookie = *cookie;
            if depth + 1 == position.len() {
                break;
            }
            let page = namespace.read_directory(level.directory, cookie.saturating_sub(1), 1)?;
            let inner = page.entries.into_iter().next();
            let inner = inner.filter(|(_, dentry)| dentry.cookie == *cookie);
            let Some((name, dentry)) = inner.filter(|(_, d)| d.kind == FileKind::Directory) else {
                break;
            };
            let path = level.path_of(&name);
            walk.levels.push(Level::at(dentry.ino, path, 0));
        }
        Ok(walk)
    }

    /// To go on from.
    pub fn position(&self) -> Vec<u64> {
        self.levels.iter().map(|level| level.cookie).collect()
    }

    /// The next entry with its path; directories come before what is in them. `None`
    /// at the end.
    pub fn next(
        &mut self,
        namespace: &Namespace,
    ) -> Result<Option<(Vec<u8>, DentryRecord)>, MetadataError> {
        while let Some(level) = self.levels.last_mut() {
            if level.ahead.is_empty() {
                let page = namespace.read_directory(level.directory, level.cookie, ENTRIES)?;
                level.ahead = page.entries.into();
            }
            let Some((name, dentry)) = level.ahead.pop_front() else {
                self.levels.pop();
                continue;
            };
            level.cookie = dentry.cookie;
            let path = level.path_of(&name);
            if dentry.kind == FileKind::Directory {
                self.levels.push(Level::at(dentry.ino, path.clone(), 0));
            }
            return Ok(Some((path, dentry)));
        }
        Ok(None)
    }
}

impl Level {
    fn at(directory: Ino, path: Vec<u8>, cookie: u64) -> Self {
        Self { directory, path, cookie, ahead: VecDeque::new() }
    }

    fn path_of(&self, name: &Name) -> Vec<u8> {
        let mut path = self.path.clone();
        if !path.is_empty() && !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        path
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metadata::{MemoryEngine, NewNode};
    use crate::types::Timestamp;

    fn make(tree: &Namespace, parent: Ino, name: &str, kind: FileKind) -> Ino {
        let now = Timestamp::default();
        let (target, umask) = (Vec::new(), None);
        let node = NewNode { kind, mode: 0o755, uid: 0, gid: 0, umask, rdev: 0, target, now };
        tree.create(parent, &Name::new(name).unwrap(), &node).unwrap().ino
    }

    fn all(tree: &Namespace, mut walk: TreeWalk) -> Vec<String> {
        let mut paths = Vec::new();
        while let Some((path, _)) = walk.next(tree).unwrap() {
            paths.push(String::from_utf8(path).unwrap());
        }
        paths
    }

    #[test]
    fn a_walk_goes_on_where_it_was_though_what_was_passed_is_gone() {
        let tree =
            Namespace::open(Arc::new(MemoryEngine::default()), Timestamp::default()).unwrap();
        let (file, directory) = (FileKind::File, FileKind::Directory);
        let outer = make(&tree, Ino::ROOT, "a", directory);
        for n in 0..150 {
            make(&tree, outer, &format!("f{n}"), file);
        }
        let deep = make(&tree, outer, "deep", directory);
        make(&tree, deep, "x", file);
        make(&tree, deep, "y", file);
        make(&tree, Ino::ROOT, "z", file);
        let whole = all(&tree, TreeWalk::below(Ino::ROOT, Vec::new()));
        assert_eq!(whole.len(), 155);
        assert_eq!(whole[151..], ["a/deep", "a/deep/x", "a/deep/y", "z"]);
        // From every place.
        for passed in 0..whole.len() {
            let mut walk = TreeWalk::below(Ino::ROOT, Vec::new());
            for _ in 0..passed {
                walk.next(&tree).unwrap();
            }
            let again = TreeWalk::resume(&tree, Ino::ROOT, Vec::new(), &walk.position()).unwrap();
            assert_eq!(all(&tree, again), whole[passed..], "{passed}");
        }
        // A position in a directory that is removed: what follows it.
        let mut walk = TreeWalk::below(Ino::ROOT, Vec::new());
        for _ in 0..153 {
            walk.next(&tree).unwrap();
        }
        let position = walk.position();
        for name in ["x", "y"] {
            tree.unlink(deep, &Name::new(name).unwrap(), Timestamp::default()).unwrap();
        }
        tree.rmdir(outer, &Name::new("deep").unwrap(), Timestamp::default()).unwrap();
        let again = TreeWalk::resume(&tree, Ino::ROOT, Vec::new(), &position).unwrap();
        assert_eq!(all(&tree, again), ["z"]);
    }
}
