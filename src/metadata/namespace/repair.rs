use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use super::stats::{Delta, Stats};
use super::tree::add_entry;
use super::{Namespace, NewNode, backends};
use crate::metadata::records::{decode, encode};
use crate::metadata::{
    Commit, ContentRecord, DentryRecord, InodeRecord, MetadataError, QueueRecord, keys,
};
use crate::types::{FileKind, Ino, Name};

/// Rows that one transaction repairs at most.
const PAGE: usize = 512;
/// Repairs that one run collects at most; a second run does the rest.
const FIXES_MAX: usize = 1 << 20;
/// Where inodes come that have lost their names.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// What a check found out how to set right.
#[derive(Default)]
pub(super) struct Fixes {
    /// Rows as they should be; `None` removes.
    rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Inodes without a name.
    rescues: Vec<Ino>,
    /// Inodes whose names per parent are counted again.
    relinks: HashSet<Ino>,
}

impl Fixes {
    fn add(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        if self.rows.len() < FIXES_MAX {
            self.rows.push((key.to_vec(), value));
        }
    }

    pub fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.add(key, Some(value));
    }

    pub fn remove(&mut self, key: &[u8]) {
        self.add(key, None);
    }

    pub fn rescue(&mut self, ino: Ino) {
        if self.rescues.len() < FIXES_MAX {
            self.rescues.push(ino);
        }
    }

    pub fn relink(&mut self, ino: Ino, wrong: &HashMap<u64, u64>) {
        for parent in wrong.keys() {
            self.remove(&keys::under(keys::PARENT, ino, &parent.to_be_bytes()));
        }
        if self.relinks.len() < FIXES_MAX {
            self.relinks.insert(ino);
        }
    }
}

impl Namespace {
    pub(super) fn repair(&self, fixes: Fixes) -> Result<(), MetadataError> {
        for page in fixes.rows.chunks(PAGE) {
            self.run(|tx| {
                for (key, value) in page {
                    match value {
                        Some(value) => tx.inner.put(key, value),
                        None => tx.inner.delete(key),
                    }
                    if keys::is_recorded(key) {
                        tx.marked.push(key.clone());
                    }
                }
                Ok(())
            })?;
        }
        self.relink(&fixes.relinks)?;
        for ino in &fixes.rescues {
            self.rescue(*ino)?;
        }
        let next = self.engine.get(keys::NEXT_INO)?;
        if let Some(next) = next.map(|value| decode::<u64>(keys::NEXT_INO, &value)).transpose()? {
            let mut numbers = self.numbers.lock();
            if numbers.end < next {
                *numbers = next..next;
            }
        }
        self.recount()?;
        self.recount_quotas()
    }

    /// Counts the names per parent of these inodes.
    fn relink(&self, inodes: &HashSet<Ino>) -> Result<(), MetadataError> {
        if inodes.is_empty() {
            return Ok(());
        }
        let mut counts: HashMap<(Ino, u64), u32> = HashMap::new();
        let (start, end) = ([keys::DENTRY], [keys::DENTRY + 1]);
        self.engine.snapshot()?.scan(&start, &end, &mut |key, value| {
            if let (Some(parent), Ok(dentry)) =
                (keys::number_in(key), decode::<DentryRecord>(key, value))
                && inodes.contains(&dentry.ino)
            {
                *counts.entry((dentry.ino, parent)).or_default() += 1;
            }
            ControlFlow::Continue(())
        })?;
        let mut names: HashMap<Ino, u32> = HashMap::new();
        for ((ino, _), count) in &counts {
            *names.entry(*ino).or_default() += count;
        }
        counts.retain(|(ino, _), _| names.get(ino).is_some_and(|names| *names > 1));
        let rows: Vec<_> = counts.into_iter().collect();
        for page in rows.chunks(PAGE) {
            self.run(|tx| {
                for ((ino, parent), count) in page {
                    let key = keys::under(keys::PARENT, *ino, &parent.to_be_bytes());
                    tx.inner.put(&key, &encode(count));
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Gives an inode without a name one in `/lost+found`.
    fn rescue(&self, ino: Ino) -> Result<(), MetadataError> {
        let Ok(folder_name) = Name::new(LOST_AND_FOUND) else { return Ok(()) };
        let Ok(name) = Name::new(format!("#{ino}")) else { return Ok(()) };
        let root = self.inode(Ino::ROOT)?;
        let folder = match self.lookup(Ino::ROOT, &folder_name) {
            Ok(dentry) => dentry.ino,
            Err(MetadataError::NotFound) => {
                let node = NewNode {
                    kind: FileKind::Directory,
                    mode: 0o700,
                    uid: root.uid,
                    gid: root.gid,
                    umask: None,
                    rdev: 0,
                    target: Vec::new(),
                    now: root.mtime,
                };
                self.create(Ino::ROOT, &folder_name, &node)?.ino
            }
            Err(error) => return Err(error),
        };
        if self.lookup(folder, &name).is_ok() {
            return Ok(());
        }
        self.run(|tx| {
            let mut directory = tx.directory(folder)?;
            let mut inode = tx.inode(ino)?;
            inode.parent = folder;
            if inode.kind != FileKind::Directory {
                inode.nlink = 1;
            }
            let now = directory.mtime;
            add_entry(tx, (folder, &mut directory), &name, (ino, inode.kind), now);
            tx.put_inode(folder, &directory);
            tx.put_inode(ino, &inode);
            Ok(())
        })
    }

    /// Counts everything again and stores the counters.
    ///
    /// # Errors
    /// `Storage`.
    pub fn recount(&self) -> Result<(), MetadataError> {
        // Under the commit lock: no change can come between count and store.
        let mut sequenced = self.sequenced.lock();
        let snapshot = self.engine.snapshot()?;
        let since = backends::trusted_since(snapshot.as_ref())?;
        let mut delta = Delta::default();
        let mut count = |table: u8, add: &mut dyn FnMut(&mut Delta, &[u8], &[u8])| {
            snapshot.scan(&[table], &[table + 1], &mut |key, value| {
                add(&mut delta, key, value);
                ControlFlow::Continue(())
            })
        };
        // A row that does not decode counts for nothing; `check` tells of it.
        count(keys::INODE, &mut |delta, key, value| {
            if let Ok(inode) = decode::<InodeRecord>(key, value) {
                delta.inode(None, Some(&inode));
            }
        })?;
        count(keys::CONTENT, &mut |delta, key, value| {
            if let Ok(record) = decode::<ContentRecord>(key, value) {
                delta.content(None, Some(&record), &since);
            }
        })?;
        count(keys::QUEUE, &mut |delta, key, value| {
            if let Ok(row) = decode::<QueueRecord>(key, value) {
                delta.queue(None, Some(&row));
            }
        })?;
        let stats = Stats::default().plus(&delta).after(&sequenced.stats);
        let mut inner = self.engine.begin()?;
        inner.put(keys::STATS, &encode(&stats));
        match inner.commit()? {
            Commit::Done => sequenced.stats = stats,
            Commit::Conflict => return Err(MetadataError::Contended),
        }
        Ok(())
    }
}
