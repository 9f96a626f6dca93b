use super::tree::{
    SETGID, add_entry, add_entry_at, count_link, dentry_key, new_inode, remove_entry, unlink_inode,
};
use super::{MAX_DEPTH, MAX_LINKS, Namespace, NewNode, Removed, Tx};
use crate::metadata::records::damaged;
use crate::metadata::{DentryRecord, InodeRecord, MetadataError, keys};
use crate::types::{FileKind, Ino, Name, Timestamp};

/// renameat2's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace what is there.
    Replace,
    /// Fail when the new name exists.
    NoReplace,
    /// Swap the two names.
    Exchange,
    /// Replace, and leave a device node 0:0 of this owner under the old name: what
    /// an overlay filesystem takes for "nothing is here" (renameat2(2),
    /// Documentation/filesystems/overlayfs.rst).
    Whiteout {
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

impl RenameMode {
    fn replaces(self) -> bool {
        matches!(self, Self::Replace | Self::Whiteout { .. })
    }
}

impl Namespace {
    /// renameat2. Returns the inode that lost the new name, if any.
    ///
    /// # Errors
    /// `NotFound`, `Exists` (`NoReplace`), `NotADirectory`, `IsADirectory`,
    /// `NotEmpty`, `Invalid` (a directory into itself), `TooManyLinks`,
    /// `CrossesQuota` (a directory, or one of several names), `QuotaExceeded`.
    pub fn rename(
        &self,
        from: (Ino, &Name),
        to: (Ino, &Name),
        mode: RenameMode,
        now: Timestamp,
    ) -> Result<Option<Removed>, MetadataError> {
        self.rename_and_walk(from, to, mode, now, false)
    }

    /// As [`Namespace::rename`]; with `walk`, what moved is to be brought in line with
    /// the policy of where it is now.
    ///
    /// # Errors
    /// As there.
    pub fn rename_and_walk(
        &self,
        from: (Ino, &Name),
        to: (Ino, &Name),
        mode: RenameMode,
        now: Timestamp,
        walk: bool,
    ) -> Result<Option<Removed>, MetadataError> {
        let whiteout = match mode {
            RenameMode::Whiteout { uid, gid } => Some((self.next_ino()?, whiteout(uid, gid, now))),
            _ => None,
        };
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
                    refuse_loop(tx, source.ino, to.0)?;
                }
                if mode == RenameMode::Exchange
                    && let Some(there) = target.filter(|t| directory(t.kind))
                {
                    refuse_loop(tx, there.ino, from.0)?;
                }
            }
            if let Some(there) = target.filter(|_| mode.replaces()) {
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
            if !same && tx.tree.has_quotas() {
                charge_rename(tx, (from.0, source.ino), to.0)?;
                if let (Some(there), RenameMode::Exchange) = (&target, mode) {
                    charge_rename(tx, (to.0, there.ino), from.0)?;
                }
            }
            let more = |kind, replaced: Option<FileKind>| {
                kind == FileKind::Directory && replaced != Some(FileKind::Directory) && !same
            };
            if more(source.kind, target.map(|t| t.kind)) && new.nlink >= MAX_LINKS {
                return Err(MetadataError::TooManyLinks(to.0));
            }
            if mode == RenameMode::Exchange
                && target.is_some_and(|there| more(there.kind, Some(source.kind)))
                && old.nlink >= MAX_LINKS
            {
                return Err(MetadataError::TooManyLinks(from.0));
            }
            remove_entry(tx, (from.0, &mut old), from.1, &source, now);
            if same {
                new = old.clone();
            }
            if let Some(there) = &target {
                remove_entry(tx, (to.0, &mut new), to.1, there, now);
            }
            // A name that stays, and an inode that stays in its directory, keep
            // their place: who reads the directory meanwhile meets each once, and a
            // loop that renames what it reads ends.
            let entry = (source.ino, source.kind);
            match target.map(|there| there.cookie).or(same.then_some(source.cookie)) {
                Some(place) => add_entry_at(tx, (to.0, &mut new), to.1, entry, place, now),
                None => add_entry(tx, (to.0, &mut new), to.1, entry, now),
            }
            if same {
                old = new.clone();
            }
            let mut removed = None;
            match (&target, mode) {
                (Some(there), RenameMode::Exchange) => {
                    let (entry, place) = ((there.ino, there.kind), source.cookie);
                    add_entry_at(tx, (from.0, &mut old), from.1, entry, place, now);
                    if same {
                        new = old.clone();
                    }
                    move_inode(tx, there.ino, to.0, from.0, now)?;
                }
                (Some(there), _) => removed = Some(unlink_inode(tx, there.ino, to.0, now)?),
                (None, _) => {}
            }
            if let Some((ino, node)) = &whiteout {
                let gid = if old.mode & SETGID == 0 { node.gid } else { old.gid };
                let inode = InodeRecord { parent: from.0, gid, ..new_inode(node) };
                add_entry(tx, (from.0, &mut old), from.1, (*ino, inode.kind), now);
                tx.charge_new(from.0, &inode)?;
                tx.put_inode(*ino, &inode);
                tx.delta.inode(None, Some(&inode));
            }
            tx.put_inode(from.0, &old);
            if !same {
                tx.put_inode(to.0, &new);
            }
            move_inode(tx, source.ino, from.0, to.0, now)?;
            if walk {
                tx.request_walk(source.ino);
                if let (Some(there), RenameMode::Exchange) = (&target, mode) {
                    tx.request_walk(there.ino);
                }
            }
            Ok(removed)
        })
    }
}

fn whiteout(uid: u32, gid: u32, now: Timestamp) -> NewNode {
    let (kind, target) = (FileKind::CharDevice, Vec::new());
    NewNode { kind, mode: 0, umask: None, uid, gid, rdev: 0, target, now }
}

/// A directory must not become its own ancestor.
fn refuse_loop(tx: &Tx<'_>, moved: Ino, into: Ino) -> Result<(), MetadataError> {
    let mut at = into;
    for _ in 0..MAX_DEPTH {
        if at == moved {
            return Err(MetadataError::Invalid("a directory cannot move into itself"));
        }
        if at == Ino::ROOT {
            return Ok(());
        }
        at = tx.inode(at)?.parent;
    }
    Err(damaged(&keys::inode(into), "its parents run in a circle"))
}

/// A name moves between directories: a file takes its charge along.
fn charge_rename(tx: &mut Tx<'_>, (from, ino): (Ino, Ino), to: Ino) -> Result<(), MetadataError> {
    let (old, new) = (tx.quotas_in(from)?, tx.quotas_in(to)?);
    if old == new {
        return Ok(());
    }
    let inode = tx.inode(ino)?;
    if inode.kind == FileKind::Directory || inode.nlink > 1 {
        return Err(MetadataError::CrossesQuota(ino));
    }
    tx.charge_move(ino, &inode, new, false)
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
        if inode.kind == FileKind::Directory || inode.nlink <= 1 {
            inode.parent = to;
        } else {
            count_link(tx, ino, to, 1)?;
            if count_link(tx, ino, from, -1)? == 0 && inode.parent == from {
                inode.parent = to;
            }
        }
    }
    tx.put_inode(ino, &inode);
    Ok(())
}
