//! The CID of what is written now, of files and of whole directories.

use std::sync::atomic::Ordering;

use super::{Vfs, VfsError};
use crate::content::{DirectoryEntry, Link, build_directory, escape_name, leaf, symlink};
use crate::metadata::{DentryRecord, MetadataError};
use crate::types::{Block, FileKind, Ino, Name};

/// Entries read at a time.
const PAGE: usize = 1024;

/// What was removed since its name was read is passed over.
fn is_gone(error: VfsError) -> Result<(), VfsError> {
    match error {
        VfsError::Metadata(MetadataError::NotFound) => Ok(()),
        other => Err(other),
    }
}

struct Frame {
    ino: Ino,
    name: String,
    children: std::vec::IntoIter<(Name, DentryRecord)>,
    built: Vec<DirectoryEntry>,
}

impl Vfs {
    /// CID of what is written now; a dirty file is committed first; the nodes
    /// of directories go to the store. Devices, pipes and sockets are not part
    /// of the `UnixFS` view.
    ///
    /// # Errors
    /// Of committing; EINVAL for a special node itself.
    pub fn link_of(&self, ino: Ino) -> Result<Link, VfsError> {
        let record = self.record(ino)?;
        if record.kind != FileKind::Directory {
            return self.leaf_link(ino)?.ok_or_else(|| rustix::io::Errno::INVAL.into());
        }
        if let Some(link) = self.directories.get(&ino)
            && self.nodes.dirty_count() == 0
        {
            return Ok(link);
        }
        if !self.options.read_only {
            self.commit_all()?;
        }
        self.build_tree(ino)
    }

    /// The link of anything but a directory; `None` for special nodes.
    fn leaf_link(&self, ino: Ino) -> Result<Option<Link>, VfsError> {
        if let Some(node) = self.nodes.get(ino) {
            self.commit_now(&node)?;
        }
        let record = self.record(ino)?;
        let profile = &self.options.profile;
        Ok(match record.kind {
            FileKind::File => Some(if let Some(root) = &record.content {
                let content = self.namespace.content(root)?;
                Link {
                    cid: *root,
                    size: record.size,
                    tsize: content.map_or(record.size, |c| c.tsize),
                }
            } else {
                let (link, block) = leaf(profile, &[]);
                self.store.append(&[Block { cid: link.cid, data: block.unwrap_or_default() }])?;
                link
            }),
            FileKind::Symlink => {
                let (link, data) = symlink(profile, &record.target);
                self.store.append(&[Block { cid: link.cid, data }])?;
                Some(link)
            }
            _ => None,
        })
    }

    fn frame(&self, ino: Ino, name: String) -> Result<Frame, VfsError> {
        let (mut after, mut children) = (0, Vec::new());
        loop {
            let page = self.namespace.read_directory(ino, after, PAGE)?;
            after = page.entries.last().map_or(after, |(_, dentry)| dentry.cookie);
            children.extend(page.entries);
            if page.last {
                return Ok(Frame { ino, name, children: children.into_iter(), built: Vec::new() });
            }
        }
    }

    /// Builds directories bottom-up with a stack of its own: trees may be deeper
    /// than a thread's.
    fn build_tree(&self, root: Ino) -> Result<Link, VfsError> {
        let version = self.tree_version.load(Ordering::Acquire);
        let mut stack = vec![self.frame(root, String::new())?];
        loop {
            let Some(frame) = stack.last_mut() else { return Err(rustix::io::Errno::IO.into()) };
            if let Some((name, dentry)) = frame.children.next() {
                let name = escape_name(name.as_bytes());
                if dentry.kind == FileKind::Directory {
                    match self.directories.get(&dentry.ino) {
                        Some(link) => frame.built.push(DirectoryEntry { name, link }),
                        None => match self.frame(dentry.ino, name) {
                            Ok(frame) => stack.push(frame),
                            Err(error) => is_gone(error)?,
                        },
                    }
                } else {
                    match self.leaf_link(dentry.ino) {
                        Ok(link) => {
                            frame.built.extend(link.map(|link| DirectoryEntry { name, link }));
                        }
                        Err(error) => is_gone(error)?,
                    }
                }
                continue;
            }
            let Some(done) = stack.pop() else { return Err(rustix::io::Errno::IO.into()) };
            let mut nodes = Vec::new();
            let link = build_directory(&self.options.profile, done.built, &mut |cid, data| {
                nodes.push(Block { cid, data });
                Ok(())
            })?;
            self.store.append(&nodes)?;
            if self.tree_version.load(Ordering::Acquire) == version {
                self.directories.insert(done.ino, link);
            }
            match stack.last_mut() {
                Some(parent) => parent.built.push(DirectoryEntry { name: done.name, link }),
                None => return Ok(link),
            }
        }
    }
}
