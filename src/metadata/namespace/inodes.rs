use std::ops::ControlFlow;

use super::Namespace;
use crate::metadata::records::{decode, encode};
use crate::metadata::{InodeRecord, MetadataError, StagedRecord, keys};
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
                if inode.kind == FileKind::File {
                    tx.delta.bytes += inode.size.cast_signed() - before.size.cast_signed();
                }
                tx.put_inode(ino, &inode);
            }
            Ok(inode)
        })
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, MetadataError> {
        let key = keys::under(keys::XATTR, ino, name);
        self.engine.get(&key)?.ok_or(MetadataError::NoAttribute)
    }

    /// Sets an extended attribute; `create`/`replace` as XATTR_CREATE/REPLACE.
    ///
    /// # Errors
    /// `Exists` (create), `NoAttribute` (replace), `NotFound`.
    pub fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        (create, replace): (bool, bool),
        now: Timestamp,
    ) -> Result<(), MetadataError> {
        self.run(|tx| {
            let mut inode = tx.inode(ino)?;
            let key = keys::under(keys::XATTR, ino, name);
            match tx.inner.get(&key)? {
                Some(_) if create => return Err(MetadataError::Exists),
                None if replace => return Err(MetadataError::NoAttribute),
                _ => {}
            }
            inode.has_xattrs = true;
            inode.ctime = now;
            tx.inner.put(&key, value);
            tx.marked.push(key);
            tx.put_inode(ino, &inode);
            Ok(())
        })
    }

    /// Names of all extended attributes.
    ///
    /// # Errors
    /// `Storage`.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>, MetadataError> {
        let prefix = keys::number(keys::XATTR, ino.0);
        let mut names = Vec::new();
        self.engine.snapshot()?.scan(&prefix, &keys::end_of(&prefix), &mut |key, _| {
            names.push(key[9..].to_vec());
            ControlFlow::Continue(())
        })?;
        Ok(names)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8], now: Timestamp) -> Result<(), MetadataError> {
        self.run(|tx| {
            let mut inode = tx.inode(ino)?;
            let key = keys::under(keys::XATTR, ino, name);
            if tx.inner.get(&key)?.is_none() {
                return Err(MetadataError::NoAttribute);
            }
            tx.remove(key);
            inode.has_xattrs = !tx.below(&keys::number(keys::XATTR, ino.0))?.is_empty();
            inode.ctime = now;
            tx.put_inode(ino, &inode);
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
                tx.release_content(root)?;
            }
            if inode.kind == FileKind::File {
                tx.delta.files -= 1;
                tx.delta.bytes -= inode.size.cast_signed();
                tx.inner.delete(&keys::number(keys::STAGED, ino.0));
            } else if inode.kind == FileKind::Directory {
                tx.delta.directories -= 1;
            }
            tx.inner.delete(&keys::number(keys::ORPHAN, ino.0));
            tx.remove(keys::inode(ino));
            Ok(())
        })
    }

    /// Records staged bytes that are durable in the staging file, and the row
    /// that goes with them.
    ///
    /// # Errors
    /// `Storage`.
    pub fn put_staged(&self, ino: Ino, staged: &StagedRecord) -> Result<(), MetadataError> {
        self.run(|tx| {
            tx.inner.put(&keys::number(keys::STAGED, ino.0), &encode(staged));
            Ok(())
        })
    }

    /// Forgets staged bytes (they were sealed, or are gone).
    ///
    /// # Errors
    /// `Storage`.
    pub fn delete_staged(&self, ino: Ino) -> Result<(), MetadataError> {
        self.run(|tx| {
            tx.inner.delete(&keys::number(keys::STAGED, ino.0));
            Ok(())
        })
    }

    /// All staged records.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn staged(&self) -> Result<Vec<(Ino, StagedRecord)>, MetadataError> {
        let (start, end) = ([keys::STAGED], [keys::STAGED + 1]);
        let mut rows = Vec::new();
        self.engine.snapshot()?.scan(&start, &end, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        rows.iter()
            .filter_map(|(key, value)| Some((Ino(keys::number_in(key)?), decode(key, value))))
            .map(|(ino, record)| record.map(|record| (ino, record)))
            .collect()
    }
}
