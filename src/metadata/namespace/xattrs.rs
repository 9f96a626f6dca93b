use std::ops::ControlFlow;

use super::Namespace;
use crate::metadata::{MetadataError, keys};
use crate::types::{Ino, Timestamp};

impl Namespace {
    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, MetadataError> {
        if name == super::quota::XATTR {
            return Err(MetadataError::NoAttribute);
        }
        let key = keys::under(keys::XATTR, ino, name);
        self.engine.get(&key)?.ok_or(MetadataError::NoAttribute)
    }

    /// Sets an extended attribute; `create`/`replace` as `XATTR_CREATE/REPLACE`.
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
        if name == super::quota::XATTR {
            return Err(MetadataError::NotPermitted("a quota is no attribute to set"));
        }
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

    /// Names of all extended attributes; a quota is not shown as one.
    ///
    /// # Errors
    /// `Storage`.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>, MetadataError> {
        let prefix = keys::number(keys::XATTR, ino.0);
        let mut names = Vec::new();
        self.engine.snapshot()?.scan(&prefix, &keys::end_of(&prefix), &mut |key, _| {
            if key[9..] != *super::quota::XATTR {
                names.push(key[9..].to_vec());
            }
            ControlFlow::Continue(())
        })?;
        Ok(names)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8], now: Timestamp) -> Result<(), MetadataError> {
        if name == super::quota::XATTR {
            return Err(MetadataError::NoAttribute);
        }
        self.run(|tx| {
            let mut inode = tx.inode(ino)?;
            let key = keys::under(keys::XATTR, ino, name);
            if tx.inner.get(&key)?.is_none() {
                return Err(MetadataError::NoAttribute);
            }
            tx.remove(key);
            inode.has_xattrs = tx.first_below(&keys::number(keys::XATTR, ino.0))?.is_some();
            inode.ctime = now;
            tx.put_inode(ino, &inode);
            Ok(())
        })
    }
}
