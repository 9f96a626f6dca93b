use std::sync::atomic::Ordering;

use super::{Vfs, VfsError};
use crate::metadata::{Created, DentryRecord, InodeRecord, NewNode, Removed, RenameMode};
use crate::types::{FileKind, Ino, Name};

/// Cookies of `.` and `..`; real entries start at 16.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// One entry that readdir gives.
#[derive(Debug, Clone)]
pub struct DirEntry {
    /// The name's bytes.
    pub name: Vec<u8>,
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Where the next read goes on.
    pub cookie: u64,
}

impl Vfs {
    /// Finds a name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn lookup(&self, parent: Ino, name: &Name) -> Result<(Ino, InodeRecord), VfsError> {
        let dentry = self.namespace.lookup(parent, name)?;
        Ok((dentry.ino, self.attributes(dentry.ino)?))
    }

    /// Makes a file, directory, symlink or special node.
    ///
    /// # Errors
    /// `Exists`, `NotFound`; EROFS, ENOSPC.
    pub fn create(&self, parent: Ino, name: &Name, node: &NewNode) -> Result<Created, VfsError> {
        self.refuse_read_only()?;
        let _stripe = self.stripe(parent);
        let created = self.namespace.create(parent, name, node)?;
        self.reload(&[parent])?;
        self.changed_below(parent)?;
        Ok(created)
    }

    /// Makes a node with the caller's clock.
    ///
    /// # Errors
    /// As [`Vfs::create`].
    pub fn make(
        &self,
        parent: Ino,
        name: &Name,
        kind: FileKind,
        (mode, rdev): (u32, u32),
        (uid, gid): (u32, u32),
        target: &[u8],
    ) -> Result<Created, VfsError> {
        let target = target.to_vec();
        let now = self.now();
        let node = NewNode { kind, mode, umask: None, uid, gid, rdev, target, now };
        self.create(parent, name, &node)
    }

    /// Makes a node for a program: its umask, or the directory's default ACL,
    /// narrows the mode.
    ///
    /// # Errors
    /// As [`Vfs::create`].
    pub fn make_masked(
        &self,
        parent: Ino,
        name: &Name,
        kind: FileKind,
        (mode, umask, rdev): (u32, u32, u32),
        (uid, gid): (u32, u32),
        target: &[u8],
    ) -> Result<Created, VfsError> {
        let (umask, target, now) = (Some(umask), target.to_vec(), self.now());
        let node = NewNode { kind, mode, umask, uid, gid, rdev, target, now };
        self.create(parent, name, &node)
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// EINVAL when it is none.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>, VfsError> {
        let record = self.record(ino)?;
        match record.kind {
            FileKind::Symlink => {
                self.accessed(ino, &record);
                Ok(record.target)
            }
            _ => Err(rustix::io::Errno::INVAL.into()),
        }
    }

    /// Another name for a file.
    ///
    /// # Errors
    /// `Exists`, `NotPermitted`, `TooManyLinks`.
    pub fn link(&self, ino: Ino, parent: Ino, name: &Name) -> Result<InodeRecord, VfsError> {
        self.refuse_read_only()?;
        self.refuse_busy(ino)?;
        let _stripe = self.stripe(parent);
        let other = self.record(ino)?.parent;
        self.namespace.link(ino, parent, name, self.now())?;
        self.reload(&[ino, parent])?;
        self.moved(&[ino], (other, parent), false)?;
        self.changed_below(parent)?;
        self.attributes(ino)
    }

    /// Removes a name of something that is no directory.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`.
    pub fn unlink(&self, parent: Ino, name: &Name) -> Result<(), VfsError> {
        self.refuse_read_only()?;
        self.refuse_busy_name(parent, name)?;
        let _stripe = self.stripe(parent);
        let removed = self.namespace.unlink(parent, name, self.now())?;
        self.reload(&[parent])?;
        self.changed_below(parent)?;
        self.lost_name(removed)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `NotEmpty`.
    pub fn remove_directory(&self, parent: Ino, name: &Name) -> Result<(), VfsError> {
        self.refuse_read_only()?;
        let _stripe = self.stripe(parent);
        let removed = self.namespace.rmdir(parent, name, self.now())?;
        self.reload(&[parent])?;
        self.changed_below(parent)?;
        self.directories.remove(&removed.ino);
        self.lost_name(removed)
    }

    /// An inode lost a name; without one it lives while it is open.
    fn lost_name(&self, removed: Removed) -> Result<(), VfsError> {
        self.reload(&[removed.ino])?;
        if removed.inode.nlink > 0 {
            return Ok(());
        }
        self.gone.insert(removed.ino, removed.inode);
        match self.nodes.get(removed.ino) {
            Some(node) if node.opens.load(Ordering::Acquire) > 0 => Ok(()),
            Some(node) => self.end_orphan(&node),
            None => Ok(self.namespace.reap(removed.ino)?),
        }
    }

    /// renameat2.
    ///
    /// # Errors
    /// Of POSIX; see [`crate::metadata::Namespace::rename`].
    pub fn rename(
        &self,
        from: (Ino, &Name),
        to: (Ino, &Name),
        mode: RenameMode,
    ) -> Result<(), VfsError> {
        self.refuse_read_only()?;
        self.refuse_busy_name(from.0, from.1)?;
        self.refuse_busy_name(to.0, to.1)?;
        let _stripes = self.two_stripes(from.0, to.0);
        let walk = self.is_ruled_apart(from.0, to.0)?;
        let removed = self.namespace.rename_and_walk(from, to, mode, self.now(), walk)?;
        let mut changed = vec![from.0, to.0];
        for (parent, name) in [from, to] {
            if let Ok(dentry) = self.namespace.lookup(parent, name) {
                changed.push(dentry.ino);
            }
        }
        self.reload(&changed)?;
        self.moved(&changed[2..], (from.0, to.0), walk)?;
        self.changed_below(from.0)?;
        self.changed_below(to.0)?;
        match removed {
            Some(removed) => self.lost_name(removed),
            None => Ok(()),
        }
    }

    /// Entries after `cookie`, at most `limit`; an empty page is the end.
    ///
    /// # Errors
    /// `NotADirectory`.
    pub fn read_directory(
        &self,
        ino: Ino,
        cookie: u64,
        limit: usize,
    ) -> Result<Vec<DirEntry>, VfsError> {
        let mut entries = Vec::new();
        if cookie < DOT_DOT {
            let record = self.record(ino)?;
            if record.kind != FileKind::Directory {
                return Err(rustix::io::Errno::NOTDIR.into());
            }
            self.accessed(ino, &record);
            let kind = FileKind::Directory;
            if cookie < DOT {
                entries.push(DirEntry { name: b".".to_vec(), ino, kind, cookie: DOT });
            }
            entries.push(DirEntry {
                name: b"..".to_vec(),
                ino: record.parent,
                kind,
                cookie: DOT_DOT,
            });
        }
        let page = self.namespace.read_directory(ino, cookie.max(DOT_DOT), limit)?;
        entries.extend(page.entries.into_iter().map(
            |(name, DentryRecord { ino, kind, cookie })| DirEntry {
                name: name.into_bytes(),
                ino,
                kind,
                cookie,
            },
        ));
        Ok(entries)
    }
}
