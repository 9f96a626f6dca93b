use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::stats::Delta;
use super::{Commit, Namespace, Tx};
use crate::metadata::records::{decode, encode};
use crate::metadata::{ContentRecord, DentryRecord, InodeRecord, MetadataError, keys};
use crate::types::{Cid, FileKind, Ino, Name, Timestamp};

/// Rows that one transaction loads or clears at most.
const PAGE: usize = 1024;
/// Marks cleared under one hold of the commit lock.
const CLEARED: usize = 256;

/// One row of a checkpoint; `None` means that it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Of table `inodes`.
    Inode(Ino, Option<InodeRecord>),
    /// Of table `dentries`: the directory and the name.
    Dentry(Ino, Name, Option<DentryRecord>),
    /// Of table `xattrs`: inode, name, value.
    Xattr(Ino, Vec<u8>, Option<Vec<u8>>),
    /// Of tables `contents` and `copies`.
    Content(Cid, Option<ContentRecord>),
    /// Of table `events`.
    Event(u64, EventRecord),
}

/// Something that happened to the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// When.
    pub at: Timestamp,
    /// What: `mount`, `recover`, `backend_added`, `copy_corrupt`, ...
    pub kind: String,
    /// To what: an id, a CID, a path.
    pub subject: String,
    /// For people.
    pub detail: String,
}

/// The moment of a checkpoint's snapshot; clears the marks it has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkToken {
    epoch: u64,
    /// Events below this were taken.
    events: u64,
    /// Rows that were visited.
    pub rows: u64,
}

fn epoch_of(mark: &[u8]) -> u64 {
    mark.try_into().map_or(0, u64::from_be_bytes)
}

fn damaged(key: &[u8], reason: &str) -> MetadataError {
    MetadataError::Damaged { key: key.escape_ascii().to_string(), reason: reason.to_owned() }
}

fn change_of(key: &[u8], value: Option<&[u8]>) -> Result<Option<Change>, MetadataError> {
    let ino = |key: &[u8]| keys::number_in(key).map(Ino).ok_or_else(|| damaged(key, "short key"));
    fn row<T: serde::de::DeserializeOwned>(
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<Option<T>, MetadataError> {
        value.map(|value| decode(key, value)).transpose()
    }
    Ok(Some(match key.first() {
        Some(&keys::INODE) => Change::Inode(ino(key)?, row(key, value)?),
        Some(&keys::DENTRY) => {
            let name = Name::new(&key[9..]).map_err(|e| damaged(key, &e.to_string()))?;
            Change::Dentry(ino(key)?, name, row(key, value)?)
        }
        Some(&keys::XATTR) => {
            Change::Xattr(ino(key)?, key[9..].to_vec(), value.map(<[u8]>::to_vec))
        }
        Some(&keys::CONTENT) => {
            let cid = Cid::try_from(&key[1..]).map_err(|e| damaged(key, &e.to_string()))?;
            Change::Content(cid, row(key, value)?)
        }
        _ => return Ok(None),
    }))
}

impl Namespace {
    /// Visits, from one snapshot, every row (`only_marked` false: a base) or
    /// the rows that changed since the marks were last cleared (a delta), and
    /// the events that no checkpoint has taken.
    ///
    /// # Errors
    /// Of `visit`; `Damaged`; `Storage`.
    pub fn snapshot_rows(
        &self,
        only_marked: bool,
        visit: &mut dyn FnMut(Change) -> Result<(), MetadataError>,
    ) -> Result<MarkToken, MetadataError> {
        let (snapshot, mut token) = {
            let mut sequenced = self.sequenced.lock();
            sequenced.epoch += 1;
            let token = MarkToken { epoch: sequenced.epoch, events: sequenced.event, rows: 0 };
            (self.engine.snapshot()?, token)
        };
        let mut failed = None;
        let mut offer = |key: &[u8], value: Option<&[u8]>| match change_of(key, value) {
            Ok(Some(change)) => match visit(change) {
                Ok(()) => {
                    token.rows += 1;
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            },
            Ok(None) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        };
        if only_marked {
            // One page of marks is held at a time: reads inside a scan would nest.
            let mut start = vec![keys::MARK];
            loop {
                let mut page: Vec<Vec<u8>> = Vec::new();
                snapshot.scan(&start, &[keys::MARK + 1], &mut |key, _| {
                    page.push(key[1..].to_vec());
                    if page.len() == PAGE {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })?;
                let Some(last) = page.last() else { break };
                start.truncate(1);
                start.extend_from_slice(last);
                start.push(0);
                for key in &page {
                    if offer(key, snapshot.get(key)?.as_deref()).is_break() {
                        break;
                    }
                }
                if page.len() < PAGE {
                    break;
                }
            }
        } else {
            for table in [keys::INODE, keys::DENTRY, keys::XATTR, keys::CONTENT] {
                snapshot.scan(&[table], &[table + 1], &mut |key, value| offer(key, Some(value)))?;
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let mut events = Vec::new();
        snapshot.scan(
            &[keys::EVENT],
            &keys::number(keys::EVENT, token.events),
            &mut |key, value| {
                events.push((keys::number_in(key).unwrap_or(0), decode::<EventRecord>(key, value)));
                ControlFlow::Continue(())
            },
        )?;
        for (number, event) in events {
            visit(Change::Event(number, event?))?;
            token.rows += 1;
        }
        Ok(token)
    }

    /// Removes the marks (and events) that `token`'s checkpoint has taken and
    /// that no later change renewed.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn clear_marks(&self, token: &MarkToken) -> Result<(), MetadataError> {
        let mut start = vec![keys::MARK];
        loop {
            let (mut last, mut old, mut seen) = (None, Vec::new(), 0);
            self.engine.snapshot()?.scan(&start, &[keys::MARK + 1], &mut |key, value| {
                seen += 1;
                last = Some(key.to_vec());
                if epoch_of(value) < token.epoch {
                    old.push(key.to_vec());
                }
                if seen == CLEARED { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if !old.is_empty() {
                // Under the commit lock nobody renews a mark between the look
                // and the commit, so a busy tree cannot make this lose for ever.
                let _commits_wait = self.sequenced.lock();
                let mut inner = self.engine.begin()?;
                for key in &old {
                    if inner.get(key)?.is_some_and(|value| epoch_of(&value) < token.epoch) {
                        inner.delete(key);
                    }
                }
                if inner.commit()? == Commit::Conflict {
                    return Err(MetadataError::Contended);
                }
            }
            let Some(mut last) = last.filter(|_| seen == CLEARED) else { break };
            last.push(0);
            start = last;
        }
        self.run(|tx| {
            let mut taken = Vec::new();
            tx.inner.scan(
                &[keys::EVENT],
                &keys::number(keys::EVENT, token.events),
                &mut |key, _| {
                    taken.push(key.to_vec());
                    ControlFlow::Continue(())
                },
            )?;
            for key in &taken {
                tx.inner.delete(key);
            }
            Ok(())
        })
    }

    /// Whether anything changed since the marks were cleared. O(1).
    ///
    /// # Errors
    /// `Storage`.
    pub fn has_marks(&self) -> Result<bool, MetadataError> {
        let mut any = false;
        let snapshot = self.engine.snapshot()?;
        for table in [keys::MARK, keys::EVENT] {
            snapshot.scan(&[table], &[table + 1], &mut |_, _| {
                any = true;
                ControlFlow::Break(())
            })?;
        }
        Ok(any)
    }

    /// Records an event for the next checkpoint.
    ///
    /// # Errors
    /// `Storage`.
    pub fn append_event(&self, event: &EventRecord) -> Result<(), MetadataError> {
        let number = {
            let mut sequenced = self.sequenced.lock();
            sequenced.event += 1;
            sequenced.event - 1
        };
        self.run(|tx| {
            tx.inner.put(&keys::number(keys::EVENT, number), &encode(event));
            Ok(())
        })
    }

    /// Loads rows of a recovered checkpoint into an empty tree; derived rows
    /// (order, parents, orphans, counters, numbers) are made again. Rows must
    /// come as [`Namespace::snapshot_rows`] gave them, later ones replacing
    /// earlier ones already resolved.
    ///
    /// # Errors
    /// Of the iterator; `Storage`.
    pub fn load_rows(
        &self,
        rows: &mut dyn Iterator<Item = Result<Change, MetadataError>>,
    ) -> Result<u64, MetadataError> {
        let (mut count, mut highest) = (0, Ino::ROOT.0);
        loop {
            let page: Vec<Change> = rows.take(PAGE).collect::<Result<_, _>>()?;
            if page.is_empty() {
                break;
            }
            count += page.len() as u64;
            for change in &page {
                if let Change::Inode(ino, _) = change {
                    highest = highest.max(ino.0);
                }
            }
            self.run(|tx| page.iter().try_for_each(|change| load(tx, change)))?;
        }
        self.run(|tx| {
            tx.inner.put(keys::NEXT_INO, &encode(&(highest + 1)));
            Ok(())
        })?;
        *self.numbers.lock() = highest + 1..highest + 1;
        self.link_parents()?;
        Ok(count)
    }

    /// Counts the names per parent of every inode with several links.
    fn link_parents(&self) -> Result<(), MetadataError> {
        let mut start = vec![keys::DENTRY];
        loop {
            let (mut last, mut page) = (None, Vec::new());
            self.engine.snapshot()?.scan(&start, &[keys::DENTRY + 1], &mut |key, value| {
                last = Some(key.to_vec());
                page.push((key.to_vec(), value.to_vec()));
                if page.len() == PAGE { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            self.run(|tx| {
                for (key, value) in &page {
                    let dentry: DentryRecord = decode(key, value)?;
                    let Some(parent) = keys::number_in(key) else { continue };
                    if dentry.kind != FileKind::Directory && tx.inode(dentry.ino)?.nlink > 1 {
                        let key = keys::under(keys::PARENT, dentry.ino, &parent.to_be_bytes());
                        let count = tx.get::<u32>(&key)?.unwrap_or(0);
                        tx.inner.put(&key, &encode(&(count + 1)));
                    }
                }
                Ok(())
            })?;
            let Some(mut last) = last else { return Ok(()) };
            last.push(0);
            start = last;
        }
    }
}

fn load(tx: &mut Tx<'_>, change: &Change) -> Result<(), MetadataError> {
    match change {
        Change::Inode(ino, Some(inode)) => {
            if tx.inner.get(&keys::inode(*ino))?.is_none() {
                tx.delta.directories += i64::from(inode.kind == FileKind::Directory);
            }
            if inode.kind == FileKind::File {
                tx.delta.files += 1;
                tx.delta.bytes += inode.size.cast_signed();
            }
            if inode.nlink == 0 {
                tx.inner.put(&keys::number(keys::ORPHAN, ino.0), &[1]);
            }
            tx.put_inode(*ino, inode);
        }
        Change::Dentry(parent, name, Some(dentry)) => {
            let order = keys::under(keys::ORDER, *parent, &dentry.cookie.to_be_bytes());
            tx.inner.put(&order, name.as_bytes());
            tx.put(keys::under(keys::DENTRY, *parent, name.as_bytes()), dentry);
        }
        Change::Xattr(ino, name, Some(value)) => {
            let key = keys::under(keys::XATTR, *ino, name);
            tx.inner.put(&key, value);
            tx.marked.push(key);
        }
        Change::Content(root, Some(record)) => {
            let mut delta = std::mem::take(&mut tx.delta);
            Delta::content(&mut delta, None, Some(record));
            tx.delta = delta;
            tx.put(keys::of_cid(keys::CONTENT, root), record);
        }
        // Deletions are resolved by the reader; events stay in the checkpoint.
        _ => {}
    }
    Ok(())
}
