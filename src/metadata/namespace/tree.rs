use std::ops::ControlFlow;

use super::{FIRST_COOKIE, MAX_LINKS, Namespace, Tx};
use crate::metadata::records::decode;
use crate::metadata::{DentryRecord, InodeRecord, MetadataError, keys};
use crate::types::{FileKind, Ino, Name, Timestamp};

/// What a new inode starts with.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits (umask already applied).
    pub mode: u32,
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

/// renameat2's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace what is there.
    Replace,
    /// Fail when the new name exists.
    NoReplace,
    /// Swap the two names.
    Exchange,
}

/// One page of a directory in cookie order.
#[derive(Debug, Clone, Default)]
pub struct DirectoryPage {
    /// Entries with cookies above the one asked for.
    pub entries: Vec<(Name, DentryRecord)>,
    /// No entry follows.
    pub last: bool,
}

const SETGID: u32 = 0o2000;

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
    }
}

fn dentry_key(parent: Ino, name: &Name) -> Vec<u8> {
    keys::under(keys::DENTRY, parent, name.as_bytes())
}

fn order_key(parent: Ino, cookie: u64) -> Vec<u8> {
    keys::under(keys::ORDER, parent, &cookie.to_be_bytes())
}

/// Adds an entry to `directory`'s row and tables; the caller puts the row.
fn add_entry(
    tx: &mut Tx<'_>,
    (parent, directory): (Ino, &mut InodeRecord),
    name: &Name,
    (ino, kind): (Ino, FileKind),
    now: Timestamp,
) {
    let cookie = directory.next_cookie.max(FIRST_COOKIE);
    directory.next_cookie = cookie + 1;
    directory.entries += 1;
    directory.size += name.as_bytes().len() as u64;
    directory.nlink += u32::from(kind == FileKind::Directory);
    directory.mtime = now;
    directory.ctime = now;
    tx.put(dentry_key(parent, name), &DentryRecord { ino, kind, cookie });
    tx.inner.put(&order_key(parent, cookie), name.as_bytes());
}

fn remove_entry(
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

/// Counts names in `parent` of an inode that has, or had, several links.
fn count_link(tx: &mut Tx<'_>, ino: Ino, parent: Ino, by: i32) -> Result<u32, MetadataError> {
    let key = keys::under(keys::PARENT, ino, &parent.0.to_be_bytes());
    let count = tx.get::<u32>(&key)?.unwrap_or(0).saturating_add_signed(by);
    if count == 0 {
        tx.inner.delete(&key);
    } else {
        tx.inner.put(&key, &crate::metadata::records::encode(&count));
    }
    Ok(count)
}

/// Moves or ends the bookkeeping of one name of a non-directory.
fn drop_link(
    tx: &mut Tx<'_>,
    ino: Ino,
    inode: &mut InodeRecord,
    parent: Ino,
) -> Result<(), MetadataError> {
    let prefix = keys::number(keys::PARENT, ino.0);
    let several = !tx.below(&prefix)?.is_empty();
    if several && count_link(tx, ino, parent, -1)? == 0 && inode.parent == parent {
        let rest = tx.below(&prefix)?;
        if let Some(other) = rest.first().and_then(|(key, _)| key.get(9..17)?.try_into().ok()) {
            inode.parent = Ino(u64::from_be_bytes(other));
        }
    }
    Ok(())
}

/// One name of `ino` goes; the inode becomes an orphan with its last one.
fn unlink_inode(
    tx: &mut Tx<'_>,
    ino: Ino,
    parent: Ino,
    now: Timestamp,
) -> Result<Removed, MetadataError> {
    let mut inode = tx.inode(ino)?;
    inode.ctime = now;
    if inode.kind == FileKind::Directory {
        inode.nlink = 0;
    } else {
        inode.nlink = inode.nlink.saturating_sub(1);
        drop_link(tx, ino, &mut inode, parent)?;
    }
    if inode.nlink == 0 {
        tx.inner.put(&keys::number(keys::ORPHAN, ino.0), &[1]);
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
    /// `Exists`, `NotFound` (the parent is gone), `NotADirectory`.
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
            add_entry(tx, (parent, &mut directory), name, (ino, node.kind), node.now);
            tx.put_inode(parent, &directory);
            tx.put_inode(ino, &inode);
            tx.delta.files += i64::from(node.kind == FileKind::File);
            tx.delta.directories += i64::from(is_directory);
            Ok(Created { ino, inode })
        })
    }

    /// An inode without a name (`O_TMPFILE`): an orphan until `link`.
    ///
    /// # Errors
    /// `Storage`.
    pub fn create_orphan(&self, node: &NewNode) -> Result<Created, MetadataError> {
        let ino = self.next_ino()?;
        self.run(|tx| {
            let inode = InodeRecord { nlink: 0, ..new_inode(node) };
            tx.inner.put(&keys::number(keys::ORPHAN, ino.0), &[1]);
            tx.put_inode(ino, &inode);
            tx.delta.files += i64::from(node.kind == FileKind::File);
            Ok(Created { ino, inode })
        })
    }

    /// Another name for an inode.
    ///
    /// # Errors
    /// `NotPermitted` for directories, `Exists`, `TooManyLinks`, `NotFound`.
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
            if inode.nlink == 0 {
                tx.inner.delete(&keys::number(keys::ORPHAN, ino.0));
                inode.parent = parent;
            } else {
                if tx.below(&keys::number(keys::PARENT, ino.0))?.is_empty() {
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

    /// renameat2. Returns the inode that lost the new name, if any.
    ///
    /// # Errors
    /// `NotFound`, `Exists` (`NoReplace`), `NotADirectory`, `IsADirectory`,
    /// `NotEmpty`, `Invalid` (a directory into itself).
    pub fn rename(
        &self,
        from: (Ino, &Name),
        to: (Ino, &Name),
        mode: RenameMode,
        now: Timestamp,
    ) -> Result<Option<Removed>, MetadataError> {
        self.run(|tx| {
            let source: DentryRecord =
                tx.get(&dentry_key(from.0, from.1))?.ok_or(MetadataError::NotFound)?;
            let target: Option<DentryRecord> = tx.get(&dentry_key(to.0, to.1))?;
            let mut old = tx.directory(from.0)?;
            let mut new = if from.0 == to.0 { old.clone() } else { tx.directory(to.0)? };
            if new.nlink == 0 {
                return Err(MetadataError::NotFound);
            }
            match (&target, mode) {
                (Some(_), RenameMode::NoReplace) => return Err(MetadataError::Exists),
                (None, RenameMode::Exchange) => return Err(MetadataError::NotFound),
                // Two names of one inode: POSIX rename does nothing.
                (Some(there), _) if there.ino == source.ino => return Ok(None),
                _ => {}
            }
            if from.0 != to.0 {
                let directory = |kind| kind == FileKind::Directory;
                if directory(source.kind) {
                    self.refuse_loop(tx, source.ino, to.0)?;
                }
                if mode == RenameMode::Exchange
                    && let Some(there) = target.filter(|t| directory(t.kind))
                {
                    self.refuse_loop(tx, there.ino, from.0)?;
                }
            }
            if let (Some(there), RenameMode::Replace) = (&target, mode) {
                match (source.kind == FileKind::Directory, there.kind == FileKind::Directory) {
                    (true, false) => return Err(MetadataError::NotADirectory(there.ino)),
                    (false, true) => return Err(MetadataError::IsADirectory(there.ino)),
                    (true, true) if tx.directory(there.ino)?.entries > 0 => {
                        return Err(MetadataError::NotEmpty(there.ino));
                    }
                    _ => {}
                }
            }
            let same = from.0 == to.0;
            remove_entry(tx, (from.0, &mut old), from.1, &source, now);
            if same {
                new = old.clone();
            }
            if let Some(there) = &target {
                remove_entry(tx, (to.0, &mut new), to.1, there, now);
            }
            add_entry(tx, (to.0, &mut new), to.1, (source.ino, source.kind), now);
            if same {
                old = new.clone();
            }
            let mut removed = None;
            match (&target, mode) {
                (Some(there), RenameMode::Exchange) => {
                    add_entry(tx, (from.0, &mut old), from.1, (there.ino, there.kind), now);
                    if same {
                        new = old.clone();
                    }
                    move_inode(tx, there.ino, to.0, from.0, now)?;
                }
                (Some(there), _) => removed = Some(unlink_inode(tx, there.ino, to.0, now)?),
                (None, _) => {}
            }
            tx.put_inode(from.0, &old);
            if !same {
                tx.put_inode(to.0, &new);
            }
            move_inode(tx, source.ino, from.0, to.0, now)?;
            Ok(removed)
        })
    }

    /// A directory must not become its own ancestor.
    #[expect(clippy::unused_self, reason = "reads as a rule of the tree")]
    fn refuse_loop(&self, tx: &Tx<'_>, moved: Ino, into: Ino) -> Result<(), MetadataError> {
        let mut at = into;
        while at != Ino::ROOT {
            if at == moved {
                return Err(MetadataError::Invalid("a directory cannot move into itself"));
            }
            at = tx.inode(at)?.parent;
        }
        Ok(())
    }

    /// Entries with cookie > `after`, at most `limit`.
    ///
    /// # Errors
    /// `NotADirectory`, `NotFound`.
    pub fn read_directory(
        &self,
        ino: Ino,
        after: u64,
        limit: usize,
    ) -> Result<DirectoryPage, MetadataError> {
        let snapshot = self.engine.snapshot()?;
        let start = order_key(ino, after.saturating_add(1));
        let end = keys::end_of(&keys::number(keys::ORDER, ino.0));
        let mut names = Vec::new();
        snapshot.scan(&start, &end, &mut |_, value| {
            names.push(value.to_vec());
            if names.len() > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let last = names.len() <= limit;
        let mut entries = Vec::with_capacity(names.len().min(limit));
        for bytes in names.into_iter().take(limit) {
            let damaged =
                |reason: String| MetadataError::Damaged { key: format!("directory {ino}"), reason };
            let name = Name::new(bytes).map_err(|e| damaged(e.to_string()))?;
            let key = dentry_key(ino, &name);
            let value =
                snapshot.get(&key)?.ok_or_else(|| damaged(format!("{name:?} has no row")))?;
            entries.push((name, decode(&key, &value)?));
        }
        Ok(DirectoryPage { entries, last })
    }

    /// Directories that have a name for this inode, each once.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn parents(&self, ino: Ino) -> Result<Vec<Ino>, MetadataError> {
        let inode = self.inode(ino)?;
        if inode.kind == FileKind::Directory || inode.nlink <= 1 {
            return Ok(vec![inode.parent]);
        }
        let prefix = keys::number(keys::PARENT, ino.0);
        let mut parents = vec![];
        self.engine.snapshot()?.scan(&prefix, &keys::end_of(&prefix), &mut |key, _| {
            let bytes = key.get(9..17).and_then(|bytes| bytes.try_into().ok());
            parents.extend(bytes.map(|bytes| Ino(u64::from_be_bytes(bytes))));
            ControlFlow::Continue(())
        })?;
        Ok(parents)
    }

    /// A path from the root to the inode, for messages; `None` for an orphan.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn path_of(&self, ino: Ino) -> Result<Option<Vec<u8>>, MetadataError> {
        let snapshot = self.engine.snapshot()?;
        let (mut at, mut parts) = (ino, Vec::new());
        while at != Ino::ROOT {
            let inode = self.inode(at)?;
            if inode.nlink == 0 {
                return Ok(None);
            }
            let prefix = keys::number(keys::DENTRY, inode.parent.0);
            let mut found = None;
            snapshot.scan(&prefix, &keys::end_of(&prefix), &mut |key, value| match decode::<
                DentryRecord,
            >(
                key, value
            ) {
                Ok(dentry) if dentry.ino == at => {
                    found = Some(key[9..].to_vec());
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            })?;
            let Some(name) = found else { return Ok(None) };
            parts.push(name);
            at = inode.parent;
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        Ok(Some(if path.is_empty() { b"/".to_vec() } else { path }))
    }
}

/// An inode's name moves between directories.
fn move_inode(
    tx: &mut Tx<'_>,
    ino: Ino,
    from: Ino,
    to: Ino,
    now: Timestamp,
) -> Result<(), MetadataError> {
    let mut inode = tx.inode(ino)?;
    inode.ctime = now;
    if from != to {
        if inode.kind == FileKind::Directory {
            inode.parent = to;
        } else {
            let several = !tx.below(&keys::number(keys::PARENT, ino.0))?.is_empty();
            if several {
                count_link(tx, ino, to, 1)?;
                drop_link(tx, ino, &mut inode, from)?;
            } else {
                inode.parent = to;
            }
        }
    }
    tx.put_inode(ino, &inode);
    Ok(())
}
