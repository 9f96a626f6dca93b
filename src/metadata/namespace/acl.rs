//! ACLs keep step with permission bits, in the transaction that changes either.

use super::{Namespace, Tx};
use crate::metadata::{InodeRecord, MetadataError, keys};
use crate::types::{Acl, FileKind, Ino, Timestamp, acl};

const SETGID: u32 = 0o2000;

fn stored(tx: &Tx<'_>, ino: Ino, name: &[u8]) -> Result<Option<Acl>, MetadataError> {
    let key = keys::under(keys::XATTR, ino, name);
    let value = tx.inner.get(&key)?;
    // What does not parse was put there by no `set_acl`; it grants nothing.
    Ok(value.and_then(|value| Acl::parse(&value)).filter(|acl| !acl.is_empty()))
}

fn put(tx: &mut Tx<'_>, ino: Ino, name: &[u8], acl: &Acl) {
    let key = keys::under(keys::XATTR, ino, name);
    tx.inner.put(&key, &acl.to_bytes());
    tx.marked.push(key);
}

/// Bits and lists of something that is made: by the directory's default list, or
/// by the umask.
pub(super) fn inherit(
    tx: &mut Tx<'_>,
    (parent, directory): (Ino, &InodeRecord),
    (ino, inode): (Ino, &mut InodeRecord),
    umask: u32,
) -> Result<(), MetadataError> {
    let default = if directory.has_xattrs { stored(tx, parent, acl::DEFAULT)? } else { None };
    let Some(default) = default else {
        inode.mode &= !(umask & 0o777);
        return Ok(());
    };
    let access = default.inherited(inode.mode);
    inode.mode = inode.mode & !0o777 | access.mode();
    if !access.is_minimal() {
        put(tx, ino, acl::ACCESS, &access);
        inode.has_xattrs = true;
    }
    if inode.kind == FileKind::Directory {
        put(tx, ino, acl::DEFAULT, &default);
        inode.has_xattrs = true;
    }
    Ok(())
}

/// A chmod changes the list, too.
pub(super) fn follow_mode(tx: &mut Tx<'_>, ino: Ino, mode: u32) -> Result<(), MetadataError> {
    if let Some(mut access) = stored(tx, ino, acl::ACCESS)? {
        access.set_mode(mode);
        put(tx, ino, acl::ACCESS, &access);
    }
    Ok(())
}

impl Namespace {
    /// Sets (or with an empty list removes) an ACL: `name` is
    /// [`acl::ACCESS`] or [`acl::DEFAULT`]. An access list sets the permission
    /// bits and is kept only when they do not say it all. `drop_setgid`: the
    /// caller is not of the file's group.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_acl(
        &self,
        ino: Ino,
        name: &[u8],
        list: &Acl,
        drop_setgid: bool,
        now: Timestamp,
    ) -> Result<(), MetadataError> {
        self.run(|tx| {
            let mut inode = tx.inode(ino)?;
            let access = name == acl::ACCESS;
            if access && !list.is_empty() {
                inode.mode = inode.mode & !0o777 | list.mode();
                if drop_setgid {
                    inode.mode &= !SETGID;
                }
            }
            if list.is_empty() || (access && list.is_minimal()) {
                let key = keys::under(keys::XATTR, ino, name);
                if tx.inner.get(&key)?.is_some() {
                    tx.remove(key);
                }
            } else {
                put(tx, ino, name, list);
            }
            inode.has_xattrs = tx.first_below(&keys::number(keys::XATTR, ino.0))?.is_some();
            inode.ctime = now;
            tx.put_inode(ino, &inode);
            Ok(())
        })
    }
}
