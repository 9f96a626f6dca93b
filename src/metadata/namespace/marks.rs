use std::ops::ControlFlow;

use super::{EventRecord, Namespace};
use crate::metadata::records::{Stored, damaged, decode, encode};
use crate::metadata::{
    ContentRecord, DentryRecord, Engine, InodeRecord, MetadataError, Reader, keys,
};
use crate::types::{Cid, Ino, Name};

/// Marks that are held, or removed in one transaction, at most.
const PAGE: usize = 1024;

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

/// The moment of a checkpoint's snapshot; clears the marks it has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkToken {
    /// Marks of lower epochs were taken.
    epoch: u64,
    /// Events below this were taken.
    pub(super) events: u64,
    /// Rows that were visited.
    pub rows: u64,
}

/// The change that a row's key and value stand for; `None` for a table that
/// checkpoints do not record.
fn change_of(key: &[u8], value: Option<&[u8]>) -> Result<Option<Change>, MetadataError> {
    fn row<T: Stored>(key: &[u8], value: Option<&[u8]>) -> Result<Option<T>, MetadataError> {
        value.map(|value| decode(key, value)).transpose()
    }
    let short = || damaged(key, "the key is too short");
    let ino = || keys::number_in(key).map(Ino).ok_or_else(short);
    let rest = || keys::rest_of(key).ok_or_else(short);
    Ok(Some(match key.first() {
        Some(&keys::INODE) => Change::Inode(ino()?, row(key, value)?),
        Some(&keys::DENTRY) => {
            let name = Name::new(rest()?).map_err(|e| damaged(key, e.to_string()))?;
            Change::Dentry(ino()?, name, row(key, value)?)
        }
        Some(&keys::XATTR) => Change::Xattr(ino()?, rest()?.to_vec(), value.map(<[u8]>::to_vec)),
        Some(&keys::CONTENT) => {
            let cid = Cid::try_from(&key[1..]).map_err(|e| damaged(key, e.to_string()))?;
            Change::Content(cid, row(key, value)?)
        }
        _ => return Ok(None),
    }))
}

/// The first epoch from `from` on that has marks.
fn next_epoch(reader: &dyn Reader, from: u64) -> Result<Option<u64>, MetadataError> {
    let mut found = None;
    reader.scan(&keys::number(keys::MARK, from), &[keys::MARK + 1], &mut |key, _| {
        found = keys::number_in(key);
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// Epochs with marks; few: one, and one more for each checkpoint that failed.
fn epochs(reader: &dyn Reader, from: u64) -> Result<Vec<u64>, MetadataError> {
    let (mut epochs, mut at) = (Vec::new(), from);
    while let Some(epoch) = next_epoch(reader, at)? {
        epochs.push(epoch);
        at = epoch.saturating_add(1);
    }
    Ok(epochs)
}

/// The highest epoch that was ever used, as far as marks tell.
pub(super) fn last_epoch(engine: &dyn Engine, taken: u64) -> Result<u64, MetadataError> {
    Ok(epochs(engine.snapshot()?.as_ref(), taken)?.last().copied().unwrap_or(taken))
}

/// Visits every row that checkpoints record.
fn visit_all(
    reader: &dyn Reader,
    visit: &mut dyn FnMut(Change) -> Result<(), MetadataError>,
) -> Result<(), MetadataError> {
    for table in [keys::INODE, keys::DENTRY, keys::XATTR, keys::CONTENT] {
        let mut outcome = Ok(());
        reader.scan(&[table], &[table + 1], &mut |key, value| {
            outcome =
                change_of(key, Some(value)).and_then(|change| change.map_or(Ok(()), &mut *visit));
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        outcome?;
    }
    Ok(())
}

/// Visits, once each, the rows that are marked in `epochs`.
fn visit_marked(
    reader: &dyn Reader,
    epochs: &[u64],
    visit: &mut dyn FnMut(Change) -> Result<(), MetadataError>,
) -> Result<(), MetadataError> {
    for (index, epoch) in epochs.iter().enumerate() {
        let later = &epochs[index + 1..];
        let end = keys::end_of(&keys::number(keys::MARK, *epoch));
        let mut start = keys::number(keys::MARK, *epoch);
        loop {
            let mut page: Vec<Vec<u8>> = Vec::new();
            reader.scan(&start, &end, &mut |mark, _| {
                page.push(mark.to_vec());
                if page.len() == PAGE { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            for mark in &page {
                let key =
                    keys::rest_of(mark).ok_or_else(|| damaged(mark, "the key is too short"))?;
                let marked = |epoch: &u64| {
                    let mut mark = keys::number(keys::MARK, *epoch);
                    mark.extend_from_slice(key);
                    reader.get(&mark).map(|found| found.is_some())
                };
                let mut again = false;
                for epoch in later {
                    again |= marked(epoch)?;
                }
                if !again && let Some(change) = change_of(key, reader.get(key)?.as_deref())? {
                    visit(change)?;
                }
            }
            match page.pop() {
                Some(last) if page.len() + 1 == PAGE => start = last,
                _ => break,
            }
            start.push(0);
        }
    }
    Ok(())
}

impl Namespace {
    /// Visits, from one snapshot, every row (`only_marked` false: a base) or
    /// the rows that changed since the marks were last cleared (a delta), and
    /// the events that no checkpoint has taken (a base: that no file has). What was visited is durable in
    /// the engine when this returns: a checkpoint must not know of changes that
    /// the tree could still lose, for no later delta would take them back.
    ///
    /// # Errors
    /// Of `visit`, which is then not called again; `Damaged`; `Storage`.
    pub fn snapshot_rows(
        &self,
        only_marked: bool,
        visit: &mut dyn FnMut(Change) -> Result<(), MetadataError>,
    ) -> Result<MarkToken, MetadataError> {
        let (snapshot, taken, events_from, mut token) = {
            let mut sequenced = self.sequenced.lock();
            // Changes after this snapshot are marks of the next epoch.
            sequenced.epoch += 1;
            let token = MarkToken { epoch: sequenced.epoch, events: sequenced.event, rows: 0 };
            // A base folds the deltas before it: their events, too.
            let events = if only_marked {
                sequenced.events_taken.max(sequenced.events_sealed)
            } else {
                sequenced.events_sealed
            };
            (self.engine.snapshot()?, sequenced.marks_taken, events, token)
        };
        let reader = snapshot.as_ref();
        let mut rows = 0;
        let mut count = |change| {
            rows += 1;
            visit(change)
        };
        if only_marked {
            visit_marked(reader, &epochs(reader, taken)?, &mut count)?;
        } else {
            visit_all(reader, &mut count)?;
        }
        super::events::between(reader, events_from, token.events, &mut |number, event| {
            count(Change::Event(number, event))
        })?;
        token.rows = rows;
        drop(snapshot);
        self.engine.persist()?;
        Ok(token)
    }

    /// Notes that a checkpoint is about to be written. [`Namespace::snapshot_rows`]
    /// makes the note durable, so no checkpoint exists whose number the tree
    /// does not know, unless the tree lost what it had acknowledged.
    ///
    /// # Errors
    /// `Storage`.
    pub fn note_checkpoint(&self, sequence: u64) -> Result<(), MetadataError> {
        self.run(|tx| {
            let known = tx.get::<u64>(keys::CHECKPOINT)?.unwrap_or(0);
            tx.inner.put(keys::CHECKPOINT, &encode(&known.max(sequence)));
            Ok(())
        })
    }

    /// The newest checkpoint that was begun; 0 when none was.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn noted_checkpoint(&self) -> Result<u64, MetadataError> {
        let value = self.engine.get(keys::CHECKPOINT)?;
        value.map_or(Ok(0), |value| decode(keys::CHECKPOINT, &value))
    }

    /// Removes the marks that `token`'s checkpoint has taken;
    /// those that a later change renewed are of a later epoch and stay. To be
    /// called when the checkpoint is durable.
    ///
    /// # Errors
    /// `Storage`; then some are left, and the next checkpoint takes them again.
    pub fn clear_marks(&self, token: &MarkToken) -> Result<(), MetadataError> {
        let taken = self.sequenced.lock().marks_taken;
        let end = keys::number(keys::MARK, token.epoch);
        let mut start = keys::number(keys::MARK, taken);
        loop {
            let mut page: Vec<Vec<u8>> = Vec::new();
            self.engine.snapshot()?.scan(&start, &end, &mut |mark, _| {
                page.push(mark.to_vec());
                if page.len() == PAGE { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            // Nobody writes marks of a past epoch: these removals never conflict.
            self.run(|tx| {
                page.iter().for_each(|mark| tx.inner.delete(mark));
                Ok(())
            })?;
            match page.pop() {
                Some(last) if page.len() + 1 == PAGE => start = last,
                _ => break,
            }
        }
        self.run(|tx| {
            tx.inner.put(keys::MARKS_TAKEN, &encode(&token.epoch));
            tx.inner.put(keys::EVENTS_TAKEN, &encode(&token.events));
            Ok(())
        })?;
        let mut sequenced = self.sequenced.lock();
        sequenced.marks_taken = sequenced.marks_taken.max(token.epoch);
        sequenced.events_taken = sequenced.events_taken.max(token.events);
        Ok(())
    }

    /// Whether anything changed since the marks were cleared. O(1).
    ///
    /// # Errors
    /// `Storage`.
    pub fn has_marks(&self) -> Result<bool, MetadataError> {
        let (taken, events) = {
            let sequenced = self.sequenced.lock();
            (sequenced.marks_taken, sequenced.event > sequenced.events_taken)
        };
        Ok(events || next_epoch(self.engine.snapshot()?.as_ref(), taken)?.is_some())
    }

    /// Rows that the next delta would hold, counted by a scan.
    ///
    /// # Errors
    /// `Storage`.
    pub fn mark_count(&self) -> Result<u64, MetadataError> {
        let taken = self.sequenced.lock().marks_taken;
        let mut count = 0;
        let start = keys::number(keys::MARK, taken);
        self.engine.snapshot()?.scan(&start, &[keys::MARK + 1], &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        Ok(count)
    }
}
