use std::ops::ControlFlow;

use super::tree::order_key;
use super::{MAX_DEPTH, Namespace};
use crate::metadata::records::{OrderRecord, damaged, decode};
use crate::metadata::{DentryRecord, MetadataError, keys};
use crate::types::{FileKind, Ino, Name};

/// One page of a directory in cookie order.
#[derive(Debug, Clone, Default)]
pub struct DirectoryPage {
    /// Entries with cookies above the one asked for.
    pub entries: Vec<(Name, DentryRecord)>,
    /// No entry follows.
    pub last: bool,
}

impl Namespace {
    /// Entries with cookie > `after`, at most `limit`, in the order of their
    /// cookies: an entry that stays is met once, whatever comes and goes between
    /// two pages (POSIX readdir). A directory that is gone, or none, is empty.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn read_directory(
        &self,
        ino: Ino,
        after: u64,
        limit: usize,
    ) -> Result<DirectoryPage, MetadataError> {
        let start = order_key(ino, after.saturating_add(1));
        let end = keys::end_of(&keys::number(keys::ORDER, ino.0));
        let mut page = DirectoryPage { entries: Vec::new(), last: true };
        let mut outcome = Ok(());
        self.engine.snapshot()?.scan(&start, &end, &mut |key, value| {
            if page.entries.len() == limit {
                page.last = false;
                return ControlFlow::Break(());
            }
            let cookie = keys::second_number_in(key);
            match (cookie, decode::<OrderRecord>(key, value)) {
                (Some(cookie), Ok(row)) => {
                    let dentry = DentryRecord { ino: row.ino, kind: row.kind, cookie };
                    page.entries.push((row.name, dentry));
                    ControlFlow::Continue(())
                }
                (None, _) => {
                    outcome = Err(damaged(key, "the key is too short"));
                    ControlFlow::Break(())
                }
                (_, Err(error)) => {
                    outcome = Err(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        outcome.map(|()| page)
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
            parents.extend(keys::second_number_in(key).map(Ino));
            ControlFlow::Continue(())
        })?;
        Ok(parents)
    }

    /// A path from the root to the inode, for messages; `None` for an orphan.
    /// Looks through each directory on the way.
    ///
    /// # Errors
    /// `NotFound`; `Damaged` when the parents run in a circle.
    pub fn path_of(&self, ino: Ino) -> Result<Option<Vec<u8>>, MetadataError> {
        self.path_within(ino, u64::MAX)
    }

    /// As [`Namespace::path_of`]; `None`, too, when more than `names` would have to be
    /// looked at, for who cannot wait for a large directory.
    ///
    /// # Errors
    /// As there.
    pub fn path_within(&self, ino: Ino, names: u64) -> Result<Option<Vec<u8>>, MetadataError> {
        let snapshot = self.engine.snapshot()?;
        let (mut at, mut parts, mut left) = (ino, Vec::new(), names);
        while at != Ino::ROOT {
            if parts.len() == MAX_DEPTH {
                return Err(damaged(&keys::inode(ino), "its parents run in a circle"));
            }
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
                    found = keys::rest_of(key).map(<[u8]>::to_vec);
                    ControlFlow::Break(())
                }
                _ if left == 0 => ControlFlow::Break(()),
                _ => {
                    left -= 1;
                    ControlFlow::Continue(())
                }
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
