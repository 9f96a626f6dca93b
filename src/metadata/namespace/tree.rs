use super::{FIRST_COOKIE, MAX_LINKS, Namespace, Tx};
use crate::metadata::records::{OrderRecord, decode, encode};
use crate::metadata::{DentryRecord, InodeRecord, MetadataError, keys};
use crate::types::{FileKind, Ino, Name, Timestamp};

/// What a new inode starts with.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Made by a program with this umask: it applies unless the directory has a
    /// default ACL, which is inherited then. `None`: the bits are exact.
    pub umask: Option<u32>,
    /// Owner.
    pub uid: u32,
    /// Group (the parent's when the parent is setgid; then a new directory is
    /// setgid too: [`Namespace::create`] applies that rule).
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Bytes of a symlink; empty otherwise.
    pub target: Vec<u8>,
    /// All four times.
    pub now: Timestamp,
}

/// An inode, just made.
#[derive(Debug, Clone)]
pub struct Created {
    /// Its number.
    pub ino: Ino,
    /// Its row.
    pub inode: InodeRecord,
}

/// What an unlink or a rename-over left behind.
#[derive(Debug, Clone)]
pub struct Removed {
    /// The inode that lost a name.
    pub ino: Ino,
    /// Its row after that. With `nlink == 0` it is an orphan until
    /// [`Namespace::reap`].
    pub inode: InodeRecord,
}

pub(super) const SETGID: u32 = 0o2000;

pub(super) fn new_inode(node: &NewNode) -> InodeRecord {
    let directory = node.kind == FileKind::Directory;
    InodeRecord {
        kind: node.kind,
        mode: node.mode & 0o7777,
        uid: node.uid,
        gid: node.gid,
        rdev: node.rdev,
        nlink: if directory { 2 } else { 1 },
        size: node.target.len() as u64,
        atime: node.now,
        mtime: node.now,
        ctime: node.now,
        btime: node.now,
        content: None,
        profile: String::new(),
        target: node.target.clone(),
        parent: Ino::ROOT,
        has_xattrs: false,
        policy: String::new(),
        entries: 0,
        next_cookie: if directory { FIRST_COOKIE } else { 0 },
        version: 0,
        holes: 0,
    }
}

pub(super) fn dentry_key(parent: Ino, name: &Name) -> Vec<u8> {
    keys::under(keys::DENTRY, parent, name.as_bytes())
}

pub(super) fn order_key(parent: Ino, cookie: u64) -> Vec<u8> {
    keys::under(keys::ORDER, parent, &cookie.to_be_bytes())
}

/// Adds an entry to `directory`'s row and tables, at its end; the caller puts the
/// row.
pub(super) fn add_entry(
    tx: &mut Tx<'_>,
    (parent, directory): (Ino, &mut InodeRecord),
    name: &Name,
    entry: (Ino, FileKind),
    now: Timestamp,
) {
    let cookie = directory.next_cookie.max(FIRST_COOKIE);
    directory.next_cookie = cookie + 1;
    add_entry_at(tx, (parent, directory), name, entry, cookie, now);
}

/// The same, at a place that an entry had.
pub(super) fn add_entry_at(
    tx: &mut Tx<'_>,
    (parent, directory): (Ino, &mut InodeRecord),
    name: &Name,
    (ino, kind): (Ino, FileKind),
    cookie: u64,
    now: Timestamp,
) {
    directory.entries += 1;
    directory.size += name.as_bytes().len() as u64;
    directory.nlink += u32::from(kind == FileKind::Directory);
    directory.mtime = now;
    directory.ctime = now;
    tx.put(dentry_key(parent, name), &DentryRecord { ino, kind, cookie });
    let order = OrderRecord { name: name.clone(), ino, kind };
    tx.inner.put(&order_key(parent, cookie), &encode(&order));
}

pub(super) fn remove_entry(
    tx: &mut Tx<'_>,
    (parent, directory): (Ino, &mut InodeRecord),
    name: &Name,
    dentry: &DentryRecord,
    now: Timestamp,
) {
    directory.entries = directory.entries.saturating_sub(1);
    directory.size = directory.size.saturating_sub(name.as_bytes().len() as u64);
    directory.nlink -= u32::from(dentry.kind == FileKind::Directory && directory.nlink > 2);
    directory.mtime = now;
    directory.ctime = now;
    tx.remove(dentry_key(parent, name));
    tx.inner.delete(&order_key(parent, dentry.cookie));
}

/// Counts names in `parent` of an inode that has, or had, several links; only
/// such an inode has these rows.
pub(super) fn count_link(
    tx: &mut Tx<'_>,
    ino: Ino,
    parent: Ino,
    by: i32,
) -> Result<u32, MetadataError> {
    let key = keys::under(keys::PARENT, ino, &parent.0.to_be_bytes());
    let count = tx.get::<u32>(&key)?.unwrap_or(0).saturating_add_signed(by);
    if count == 0 {
        tx.inner.delete(&key);
    } else {
        tx.inner.put(&key, &encode(&count));
    }
    Ok(count)
}

/// One name of `ino` goes; the inode becomes an orphan with its last one.
pub(super) fn unlink_inode(
    tx: &mut Tx<'_>,
    ino: Ino,
    parent: Ino,
    now: Timestamp,
) -> Result<Removed, MetadataError> {
    let mut inode = tx.inode(ino)?;
    let stored = inode.clone();
    inode.ctime = now;
    if inode.kind == FileKind::Directory || inode.nlink <= 1 {
        inode.nlink = 0;
        tx.charge_orphan(ino, &stored)?;
    } else {
        inode.nlink -= 1;
        let left = count_link(tx, ino, parent, -1)?;
        let other = tx.first_below(&keys::number(keys::PARENT, ino.0))?;
        if let Some(key) = other.filter(|_| left == 0 || inode.nlink == 1) {
            inode.parent = keys::second_number_in(&key).map_or(inode.parent, Ino);
            if inode.nlink == 1 {
                tx.inner.delete(&key);
            }
        }
    }
    if inode.parent != stored.parent && tx.tree.has_quotas() {
        // Its names lay under different quotas before those were set.
        let chain = tx.quotas_in(inode.parent)?;
        tx.charge_move(ino, &stored, chain, true)?;
    }
    tx.put_inode(ino, &inode);
    Ok(Removed { ino, inode })
}

impl Namespace {
    /// The entry of that name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn lookup(&self, parent: Ino, name: &Name) -> Result<DentryRecord, MetadataError> {
        let key = dentry_key(parent, name);
        let value = self.engine.get(&key)?.ok_or(MetadataError::NotFound)?;
        decode(&key, &value)
    }

    /// Makes an inode with a name.
    ///
    /// # Errors
    /// `Exists`, `NotFound` (the parent is gone), `NotADirectory`, `QuotaExceeded`.
    pub fn create(
        &self,
        parent: Ino,
        name: &Name,
        node: &NewNode,
    ) -> Result<Created, MetadataError> {
        let ino = self.next_ino()?;
        self.run(|tx| {
            let mut directory = tx.directory(parent)?;
            if directory.nlink == 0 {
                return Err(MetadataError::NotFound);
            }
            if tx.get::<DentryRecord>(&dentry_key(parent, name))?.is_some() {
                return Err(MetadataError::Exists);
            }
            let is_directory = node.kind == FileKind::Directory;
            if is_directory && directory.nlink >= MAX_LINKS {
                return Err(MetadataError::TooManyLinks(parent));
            }
            let mut inode = new_inode(node);
            inode.parent = parent;
            if directory.mode & SETGID != 0 {
                inode.gid = directory.gid;
                inode.mode |= if is_directory { SETGID } else { 0 };
            }
            if let Some(umask) = node.umask.filter(|_| node.kind != FileKind::Symlink) {
                super::acl::inherit(tx, (parent, &directory), (ino, &mut inode), umask)?;
            }
            add_entry(tx, (parent, &mut directory), name, (ino, node.kind), node.now);
            tx.charge_new(parent, &inode)?;
            tx.put_inode(parent, &directory);
            tx.put_inode(ino, &inode);
            tx.delta.inode(None, Some(&inode));
            Ok(Created { ino, inode })
        })
    }

    /// An inode without a name (`O_TMPFILE`): an orphan until `link`, which no
    /// quota counts before.
    ///
    /// # Errors
    /// `Storage`.
    pub fn create_orphan(&self, node: &NewNode) -> Result<Created, MetadataError> {
        let ino = self.next_ino()?;
        self.run(|tx| {
            let inode = InodeRecord { nlink: 0, ..new_inode(node) };
            tx.inner.put(&keys::number(keys::ORPHAN, ino.0), &[1]);
            tx.put_inode(ino, &inode);
            tx.delta.inode(None, Some(&inode));
            Ok(Created { ino, inode })
        })
    }

    /// Another name for an inode.
    ///
    /// # Errors
    /// `NotPermitted` for directories, `Exists`, `TooManyLinks`, `NotFound`,
    /// `CrossesQuota`; `QuotaExceeded` for an orphan.
    pub fn link(
        &self,
        ino: Ino,
        parent: Ino,
        name: &Name,
        now: Timestamp,
    ) -> Result<InodeRecord, MetadataError> {
        self.run(|tx| {
            let mut inode = tx.inode(ino)?;
            if inode.kind == FileKind::Directory {
                return Err(MetadataError::NotPermitted("a directory cannot be linked"));
            }
            let mut directory = tx.directory(parent)?;
            if directory.nlink == 0 {
                return Err(MetadataError::NotFound);
            }
            if tx.get::<DentryRecord>(&dentry_key(parent, name))?.is_some() {
                return Err(MetadataError::Exists);
            }
            if inode.nlink >= MAX_LINKS {
                return Err(MetadataError::TooManyLinks(ino));
            }
            if tx.tree.has_quotas() {
                let chain = tx.quotas_in(parent)?;
                if inode.nlink == 0 {
                    tx.charge_move(ino, &inode, chain, false)?;
                } else if chain != tx.quotas_of(ino, &inode)? {
                    return Err(MetadataError::CrossesQuota(ino));
                }
            }
            if inode.nlink == 0 {
                tx.inner.delete(&keys::number(keys::ORPHAN, ino.0));
                inode.parent = parent;
            } else {
                if inode.nlink == 1 {
                    count_link(tx, ino, inode.parent, 1)?;
                }
                count_link(tx, ino, parent, 1)?;
            }
            inode.nlink += 1;
            inode.ctime = now;
            add_entry(tx, (parent, &mut directory), name, (ino, inode.kind), now);
            tx.put_inode(parent, &directory);
            tx.put_inode(ino, &inode);
            Ok(inode)
        })
    }

    /// Removes a name of something that is no directory.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`.
    pub fn unlink(
        &self,
        parent: Ino,
        name: &Name,
        now: Timestamp,
    ) -> Result<Removed, MetadataError> {
        self.run(|tx| {
            let mut directory = tx.directory(parent)?;
            let dentry: DentryRecord =
                tx.get(&dentry_key(parent, name))?.ok_or(MetadataError::NotFound)?;
            if dentry.kind == FileKind::Directory {
                return Err(MetadataError::IsADirectory(dentry.ino));
            }
            remove_entry(tx, (parent, &mut directory), name, &dentry, now);
            tx.put_inode(parent, &directory);
            unlink_inode(tx, dentry.ino, parent, now)
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `NotEmpty`.
    pub fn rmdir(
        &self,
        parent: Ino,
        name: &Name,
        now: Timestamp,
    ) -> Result<Removed, MetadataError> {
        self.run(|tx| {
            let mut directory = tx.directory(parent)?;
            let dentry: DentryRecord =
                tx.get(&dentry_key(parent, name))?.ok_or(MetadataError::NotFound)?;
            if tx.directory(dentry.ino)?.entries > 0 {
                return Err(MetadataError::NotEmpty(dentry.ino));
            }
            remove_entry(tx, (parent, &mut directory), name, &dentry, now);
            tx.put_inode(parent, &directory);
            unlink_inode(tx, dentry.ino, parent, now)
        })
    }
}
