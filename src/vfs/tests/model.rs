//! POSIX in memory, as plainly as it can be said.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;

use crate::metadata::RenameMode;
use crate::types::{FileKind, Ino, Name, Timestamp};

#[derive(Debug, Clone)]
pub struct Node {
    pub kind: FileKind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub nlink: u32,
    /// Of directories.
    pub parent: Ino,
    /// A file's bytes, or a symlink's target.
    pub data: Arc<Vec<u8>>,
    /// When it was set, and nothing written since.
    pub mtime: Option<Timestamp>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub entries: BTreeMap<Name, Ino>,
}

/// All inodes that have a name or are open, by their numbers.
#[derive(Debug, Clone)]
pub struct Model {
    pub nodes: BTreeMap<Ino, Node>,
}

/// What a path leads to, without the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub ino: Ino,
    pub kind: FileKind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub nlink: u32,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A tree, by path.
pub type Listing = BTreeMap<Vec<u8>, Entry>;

pub fn new_node(kind: FileKind, parent: Ino) -> Node {
    Node {
        kind,
        mode: 0o755,
        owner: (0, 0),
        nlink: if kind == FileKind::Directory { 2 } else { 1 },
        parent,
        data: Arc::default(),
        mtime: None,
        xattrs: BTreeMap::new(),
        entries: BTreeMap::new(),
    }
}

fn directory(kind: FileKind) -> bool {
    kind == FileKind::Directory
}

impl Model {
    pub fn new() -> Self {
        let root = new_node(FileKind::Directory, Ino::ROOT);
        Self { nodes: BTreeMap::from([(Ino::ROOT, root)]) }
    }

    pub fn of(&self, ino: Ino) -> &Node {
        &self.nodes[&ino]
    }

    pub fn node(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).unwrap()
    }

    pub fn inos(&self, kind: FileKind) -> Vec<Ino> {
        let named = |node: &Node| node.kind == kind && node.nlink > 0;
        self.nodes.iter().filter(|(_, node)| named(node)).map(|(ino, _)| *ino).collect()
    }

    pub fn lookup(&self, parent: Ino, name: &Name) -> Result<Ino, Errno> {
        self.of(parent).entries.get(name).copied().ok_or(Errno::NOENT)
    }

    /// Whether a new name can be made there.
    pub fn free(&self, parent: Ino, name: &Name) -> Result<(), Errno> {
        if self.of(parent).entries.contains_key(name) { Err(Errno::EXIST) } else { Ok(()) }
    }

    pub fn add(&mut self, parent: Ino, name: &Name, ino: Ino, node: Node) {
        self.node(parent).nlink += u32::from(directory(node.kind));
        self.nodes.insert(ino, node);
        self.node(parent).entries.insert(name.clone(), ino);
    }

    pub fn link(&mut self, ino: Ino, parent: Ino, name: &Name) -> Result<(), Errno> {
        if directory(self.of(ino).kind) {
            return Err(Errno::PERM);
        }
        self.free(parent, name)?;
        self.node(ino).nlink += 1;
        self.node(parent).entries.insert(name.clone(), ino);
        Ok(())
    }

    /// One name of `ino` went away.
    fn drop_name(&mut self, ino: Ino) {
        let node = self.node(ino);
        node.nlink = if directory(node.kind) { 0 } else { node.nlink - 1 };
    }

    pub fn unlink(&mut self, parent: Ino, name: &Name) -> Result<(), Errno> {
        let ino = self.lookup(parent, name)?;
        if directory(self.of(ino).kind) {
            return Err(Errno::ISDIR);
        }
        self.node(parent).entries.remove(name);
        self.drop_name(ino);
        Ok(())
    }

    pub fn rmdir(&mut self, parent: Ino, name: &Name) -> Result<(), Errno> {
        let ino = self.lookup(parent, name)?;
        if !directory(self.of(ino).kind) {
            return Err(Errno::NOTDIR);
        }
        if !self.of(ino).entries.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.node(parent).entries.remove(name);
        self.node(parent).nlink -= 1;
        self.drop_name(ino);
        Ok(())
    }

    /// Whether `below` lies in `above`, or is it.
    fn lies_in(&self, mut below: Ino, above: Ino) -> bool {
        while below != above && below != Ino::ROOT {
            below = self.of(below).parent;
        }
        below == above
    }

    pub fn rename(
        &mut self,
        from: (Ino, &Name),
        to: (Ino, &Name),
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let source = self.lookup(from.0, from.1)?;
        let target = self.lookup(to.0, to.1).ok();
        match (target, mode) {
            (Some(_), RenameMode::NoReplace) => return Err(Errno::EXIST),
            (None, RenameMode::Exchange) => return Err(Errno::NOENT),
            (Some(target), _) if target == source => return Ok(()),
            _ => {}
        }
        let is_directory = |ino: Ino| directory(self.of(ino).kind);
        let exchanged = target.filter(|_| mode == RenameMode::Exchange);
        let inside = is_directory(source) && self.lies_in(to.0, source);
        let outside = exchanged.is_some_and(|t| is_directory(t) && self.lies_in(from.0, t));
        if inside || outside {
            return Err(Errno::INVAL);
        }
        if let (Some(target), RenameMode::Replace) = (target, mode) {
            match (is_directory(source), is_directory(target)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !self.of(target).entries.is_empty() => {
                    return Err(Errno::NOTEMPTY);
                }
                _ => {}
            }
        }
        self.take(from);
        if let Some(target) = target {
            self.take(to);
            if mode == RenameMode::Exchange {
                self.place(from, target);
            } else {
                self.drop_name(target);
            }
        }
        self.place(to, source);
        Ok(())
    }

    fn take(&mut self, (parent, name): (Ino, &Name)) {
        let ino = self.node(parent).entries.remove(name).unwrap();
        self.node(parent).nlink -= u32::from(directory(self.of(ino).kind));
    }

    fn place(&mut self, (parent, name): (Ino, &Name), ino: Ino) {
        let kind = self.of(ino).kind;
        self.node(parent).entries.insert(name.clone(), ino);
        self.node(parent).nlink += u32::from(directory(kind));
        if directory(kind) {
            self.node(ino).parent = parent;
        }
    }

    /// Changes a file's bytes.
    pub fn change(&mut self, ino: Ino, change: impl FnOnce(&mut Vec<u8>)) {
        let node = self.node(ino);
        change(Arc::make_mut(&mut node.data));
        node.mtime = None;
    }

    pub fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        self.change(ino, |data| {
            if data.len() < end {
                data.resize(end, 0);
            }
            data[offset as usize..end].copy_from_slice(bytes);
        });
    }

    pub fn zero(&mut self, ino: Ino, range: Range<u64>, keep_size: bool) {
        let end = range.end as usize;
        self.change(ino, |data| {
            if data.len() < end && !keep_size {
                data.resize(end, 0);
            }
            let stop = end.min(data.len());
            data[(range.start as usize).min(stop)..stop].fill(0);
        });
    }

    /// The tree as a reader walks it.
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::new();
        let mut stack = vec![(Vec::new(), Ino::ROOT)];
        while let Some((path, ino)) = stack.pop() {
            let node = self.of(ino);
            for (name, child) in &node.entries {
                let path = [path.as_slice(), b"/", name.as_bytes()].concat();
                stack.push((path, *child));
            }
            let target = match node.kind {
                FileKind::Symlink => node.data.to_vec(),
                _ => Vec::new(),
            };
            let entry = Entry {
                ino,
                kind: node.kind,
                mode: node.mode,
                owner: node.owner,
                nlink: node.nlink,
                target,
                xattrs: node.xattrs.clone(),
            };
            listing.insert(path, entry);
        }
        listing
    }

    /// Ends what has no name: nothing is open any more.
    pub fn drop_orphans(&mut self) {
        self.nodes.retain(|_, node| node.nlink > 0);
    }
}
