use std::ops::ControlFlow;

use super::Namespace;
use crate::metadata::records::{decode, encode};
use crate::metadata::{InodeRecord, MetadataError, keys};
use crate::types::{FileKind, Ino, Timestamp};

/// Attributes to change; `None` keeps.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttributes {
    /// New permission bits (07777).
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New access time.
    pub atime: Option<Timestamp>,
    /// New modification time.
    pub mtime: Option<Timestamp>,
    /// New change time (set by the caller on every change that POSIX counts).
    pub ctime: Option<Timestamp>,
    /// Creation time (imports only).
    pub btime: Option<Timestamp>,
}

impl Namespace {
    /// The row of an inode, orphans included.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn inode(&self, ino: Ino) -> Result<InodeRecord, MetadataError> {
        let key = keys::inode(ino);
        let value = self.engine.get(&key)?.ok_or(MetadataError::NotFound)?;
        decode(&key, &value)
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_attributes(
        &self,
        ino: Ino,
        set: &SetAttributes,
    ) -> Result<InodeRecord, MetadataError> {
        self.update_inode(ino, &mut |inode| {
            inode.mode = set.mode.map_or(inode.mode, |mode| mode & 0o7777);
            inode.uid = set.uid.unwrap_or(inode.uid);
            inode.gid = set.gid.unwrap_or(inode.gid);
            inode.atime = set.atime.unwrap_or(inode.atime);
            inode.mtime = set.mtime.unwrap_or(inode.mtime);
            inode.ctime = set.ctime.unwrap_or(inode.ctime);
            inode.btime = set.btime.unwrap_or(inode.btime);
            Ok(())
        })
    }

    /// Applies any change to a row; `change` may run again after a conflict.
    ///
    /// # Errors
    /// `NotFound`; of `change`.
    pub fn update_inode(
        &self,
        ino: Ino,
        change: &mut dyn FnMut(&mut InodeRecord) -> Result<(), MetadataError>,
    ) -> Result<InodeRecord, MetadataError> {
        self.run(|tx| {
            let before = tx.inode(ino)?;
            let mut inode = before.clone();
            change(&mut inode)?;
            if inode != before {
                if inode.mode != before.mode && inode.has_xattrs {
                    super::acl::follow_mode(tx, ino, inode.mode)?;
                }
                tx.delta.inode(Some(&before), Some(&inode));
                tx.put_inode(ino, &inode);
            }
            Ok(inode)
        })
    }

    /// Moves times of last access, each from what it was; a row that has another
    /// by now, or is gone, is passed over. The rows are not marked: it is no
    /// change that a checkpoint is made for.
    ///
    /// # Errors
    /// `Storage`, `NoSpace`, `Contended`.
    pub fn set_access_times(
        &self,
        times: &[(Ino, Timestamp, Timestamp)],
    ) -> Result<(), MetadataError> {
        self.run(|tx| {
            for (ino, was, now) in times {
                let key = keys::inode(*ino);
                let row: Option<InodeRecord> = tx.get(&key)?;
                if let Some(inode) = row.filter(|inode| inode.atime == *was) {
                    tx.inner.put(&key, &encode(&InodeRecord { atime: *now, ..inode }));
                }
            }
            Ok(())
        })
    }

    /// Orphans (nlink 0), left by a crash or still open.
    ///
    /// # Errors
    /// `Storage`.
    pub fn orphans(&self) -> Result<Vec<Ino>, MetadataError> {
        let mut orphans = Vec::new();
        let (start, end) = ([keys::ORPHAN], [keys::ORPHAN + 1]);
        self.engine.snapshot()?.scan(&start, &end, &mut |key, _| {
            orphans.extend(keys::number_in(key).map(Ino));
            ControlFlow::Continue(())
        })?;
        Ok(orphans)
    }

    /// Ends an orphan: its rows go, its content loses a reference. An inode
    /// that has a name again, or is gone, is left alone.
    ///
    /// # Errors
    /// `Storage`.
    pub fn reap(&self, ino: Ino) -> Result<(), MetadataError> {
        self.run(|tx| {
            let inode = match tx.inode(ino) {
                Ok(inode) if inode.nlink == 0 => inode,
                Ok(_) | Err(MetadataError::NotFound) => return Ok(()),
                Err(error) => return Err(error),
            };
            if inode.has_xattrs {
                for (key, _) in tx.below(&keys::number(keys::XATTR, ino.0))? {
                    tx.remove(key);
                }
            }
            if let Some(root) = &inode.content {
                tx.release_content(root, inode.ctime.seconds)?;
            }
            if inode.kind == FileKind::File {
                tx.remove_staged(ino)?;
            }
            tx.delta.inode(Some(&inode), None);
            tx.charge_reap(ino, &inode)?;
            tx.inner.delete(&keys::number(keys::ORPHAN, ino.0));
            tx.remove(keys::inode(ino));
            Ok(())
        })
    }
}
