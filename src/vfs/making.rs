//! What is made behind the kernel's back: until it is whole, the kernel is told to
//! keep none of its attributes. To invalidate them afterwards is not enough: an inode
//! whose first look-up is on its way is not known yet (`fuse_reverse_inval_inode`
//! finds none), and comes to be with the attributes from before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::{GraftContent, Vfs, VfsError};
use crate::metadata::{Created, NewNode, SetAttributes};
use crate::types::{FileKind, Ino, Name};

/// What is being made now.
#[derive(Default)]
pub(super) struct Makings {
    /// Begun and ended ones, ever.
    changes: AtomicU64,
    /// How many are in the list: who looks up takes no lock while there is none.
    count: AtomicU64,
    /// The directory in which each makes a name, and a number below which it makes
    /// no inode.
    under_way: RwLock<Vec<(Ino, Ino)>>,
}

/// Something is made behind the kernel's back until this is dropped.
pub struct Making {
    vfs: Arc<Vfs>,
    place: (Ino, Ino),
}

impl Drop for Making {
    fn drop(&mut self) {
        let makings = &self.vfs.makings;
        // First: who misses the entry below sees this.
        makings.changes.fetch_add(1, Ordering::SeqCst);
        let mut under_way = makings.under_way.write();
        if let Some(at) = under_way.iter().position(|place| *place == self.place) {
            under_way.swap_remove(at);
            makings.count.fetch_sub(1, Ordering::SeqCst);
        }
        drop(under_way);
        self.vfs.names_changed_behind(self.place.0);
    }
}

impl Making {
    /// Makes a node with xattrs and content. The content's blocks are in the store
    /// and durable.
    ///
    /// # Errors
    /// `Exists`; of the metadata.
    pub fn graft(
        &self,
        parent: Ino,
        name: &Name,
        node: &NewNode,
        times: &SetAttributes,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        content: Option<GraftContent>,
    ) -> Result<Ino, VfsError> {
        let vfs = &self.vfs;
        vfs.refuse_read_only()?;
        let created = vfs.namespace.create(parent, name, node)?;
        let filled = vfs.fill_graft(&created, node, xattrs, content);
        if let Err(error) = filled {
            let removed = match node.kind {
                FileKind::Directory => vfs.namespace.rmdir(parent, name, node.now)?,
                _ => vfs.namespace.unlink(parent, name, node.now)?,
            };
            vfs.namespace.reap(removed.ino)?;
            vfs.reload(&[parent, created.ino])?;
            return Err(error);
        }
        vfs.namespace.set_attributes(created.ino, times)?;
        // Who looked while it was made saw it without its content.
        vfs.reload(&[parent, created.ino])?;
        vfs.changed_below(parent)?;
        Ok(created.ino)
    }
}

impl Vfs {
    /// Begins to make something in a directory behind the kernel's back.
    pub fn begin_making(self: &Arc<Self>, parent: Ino) -> Making {
        let place = (parent, self.namespace.numbers_from());
        let mut under_way = self.makings.under_way.write();
        under_way.push(place);
        self.makings.count.fetch_add(1, Ordering::SeqCst);
        drop(under_way);
        self.makings.changes.fetch_add(1, Ordering::SeqCst);
        Making { vfs: Arc::clone(self), place }
    }

    /// To be taken before attributes are read that the kernel may keep.
    pub fn seen(&self) -> u64 {
        self.makings.changes.load(Ordering::SeqCst)
    }

    /// Whether the kernel may keep attributes that were read after `seen`.
    pub fn may_keep(&self, ino: Ino, seen: u64) -> bool {
        let makings = &self.makings;
        let made = makings.count.load(Ordering::SeqCst) > 0
            && makings
                .under_way
                .read()
                .iter()
                .any(|(parent, first)| ino == *parent || ino >= *first);
        !made && makings.changes.load(Ordering::SeqCst) == seen
    }

    fn fill_graft(
        &self,
        created: &Created,
        node: &NewNode,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        content: Option<GraftContent>,
    ) -> Result<(), VfsError> {
        for (key, value) in xattrs {
            self.namespace.set_xattr(created.ino, key, value, (false, false), node.now)?;
        }
        if let Some(content) = content.filter(|content| content.link.size > 0) {
            let commit = self.content_commit(created.ino, &created.inode, &content, node.now)?;
            let root = commit.root;
            self.namespace.commit_contents(&[commit])?;
            self.replicator.submit(root.as_slice());
        }
        Ok(())
    }
}
