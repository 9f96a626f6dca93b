use std::ops::ControlFlow;

use super::{Namespace, Tx, merge_policies};
use crate::metadata::records::{Stored, damaged, decode, encode};
use crate::metadata::{
    ContentRecord, CopyRecord, CopyState, InodeRecord, MetadataError, PinState, QueueRecord, keys,
};
use crate::types::{BackendId, Cid, Ino, Timestamp};

/// Rows that one transaction of a long change touches at most.
const PAGE: usize = 512;

/// A content that a file now has.
#[derive(Debug, Clone)]
pub struct ContentCommit {
    /// The file.
    pub ino: Ino,
    /// Its [`InodeRecord::version`] when sealing began.
    pub version: u64,
    /// Root of the new content; `None` for the empty file.
    pub root: Option<Cid>,
    /// The record to insert when the root is new to the volume (with the local
    /// copy in `copies`; `refs` is set here).
    pub record: ContentRecord,
    /// The content is another file's. It must still have references then: without
    /// one it may be collected at any time.
    pub shared: bool,
    /// Whether copies are wanted elsewhere: writes the queue row in the same
    /// transaction.
    pub enqueue: bool,
    /// New size of the file.
    pub size: u64,
    /// New modification time (and ctime, when later than the row's).
    pub mtime: Timestamp,
}

/// What a change of a content sees: its record, and its queue row to set, keep
/// or clear.
pub type ContentChange<'a> = dyn FnMut(&Cid, &mut ContentRecord, &mut Option<QueueRecord>) + 'a;

impl Tx<'_> {
    fn put_content(
        &mut self,
        root: &Cid,
        before: Option<&ContentRecord>,
        after: &ContentRecord,
    ) -> Result<(), MetadataError> {
        self.count_content(before, Some(after))?;
        self.put(keys::of_cid(keys::CONTENT, root), after);
        Ok(())
    }

    fn set_queue(&mut self, root: &Cid, before: Option<&QueueRecord>, after: Option<&QueueRecord>) {
        if before == after {
            return;
        }
        self.delta.queue(before, after);
        let key = keys::of_cid(keys::QUEUE, root);
        match after {
            Some(row) => self.inner.put(&key, &encode(row)),
            None => self.inner.delete(&key),
        }
    }

    /// A file stops referring to a content, about then. At zero the record stays, for
    /// collection, but is no pin any more.
    pub(super) fn release_content(&mut self, root: &Cid, at_s: i64) -> Result<(), MetadataError> {
        let Some(before) = self.get::<ContentRecord>(&keys::of_cid(keys::CONTENT, root))? else {
            return Ok(());
        };
        let mut after = before.clone();
        after.refs = after.refs.saturating_sub(1);
        if after.refs == 0 {
            // For how long it can be brought back counts from here.
            after.accessed_s = after.accessed_s.max(at_s);
        }
        self.put_content(root, Some(&before), &after)?;
        if after.refs == 0 {
            let row: Option<QueueRecord> = self.get(&keys::of_cid(keys::QUEUE, root))?;
            self.set_queue(root, row.as_ref(), None);
            self.index_pin(root, (Some(&before), row.as_ref()), (Some(&after), None));
        }
        Ok(())
    }

    /// A file has this content now (`new`: it had another before). The record
    /// of a content that the volume knows keeps its copies and takes the new
    /// ones; its limits only rise.
    fn take_content(
        &mut self,
        root: &Cid,
        commit: &ContentCommit,
        new: bool,
    ) -> Result<(), MetadataError> {
        let before: Option<ContentRecord> = self.get(&keys::of_cid(keys::CONTENT, root))?;
        let mut after =
            before.clone().unwrap_or_else(|| ContentRecord { refs: 0, ..commit.record.clone() });
        after.refs += u64::from(new);
        Namespace::merge_copies(&mut after.copies, &commit.record.copies);
        // Nobody else wants anything of a content that nobody had.
        let alone = before.as_ref().is_some_and(|record| record.refs == 0);
        let raised = alone || commit.record.target > after.target || commit.record.min > after.min;
        if alone {
            after.policies.clone_from(&commit.record.policies);
            (after.min, after.target, after.max) =
                (commit.record.min, commit.record.target, commit.record.max);
        } else {
            merge_policies(&mut after.policies, &commit.record.policies);
            if let Some(keep) = self.tree.strictest.get() {
                keep(&mut after.policies);
            }
            after.min = after.min.max(commit.record.min);
            after.target = after.target.max(commit.record.target);
            after.max = after.max.max(commit.record.max);
        }
        after.holes = after.holes.max(commit.record.holes);
        if raised {
            // Judged without the copies elsewhere: too low at worst, and the
            // queue judges again.
            after.pin = commit.record.pin;
        }
        if before.as_ref() != Some(&after) {
            self.put_content(root, before.as_ref(), &after)?;
        }
        let row: Option<QueueRecord> = match before {
            Some(_) => self.get(&keys::of_cid(keys::QUEUE, root))?,
            // What is new to the volume waits for nothing yet.
            None => None,
        };
        let short = matches!(after.pin, PinState::BelowMin | PinState::BelowTarget);
        // What was cancelled is asked for anew by a file that is written.
        let asks = row.as_ref().is_none_or(|row| row.cancelled);
        // The time of the commit; a file's own time is its user's to choose.
        let since = match commit.record.created_s {
            0 => commit.mtime,
            seconds => Timestamp { seconds, nanoseconds: 0 },
        };
        let new = (commit.enqueue && short && asks).then(|| QueueRecord::new(since));
        let new = new.or_else(|| row.clone());
        self.set_queue(root, row.as_ref(), new.as_ref());
        self.index_pin(root, (before.as_ref(), row.as_ref()), (Some(&after), new.as_ref()));
        Ok(())
    }

    fn commit_content(&mut self, commit: &ContentCommit) -> Result<bool, MetadataError> {
        let before: InodeRecord = match self.inode(commit.ino) {
            Ok(inode) if inode.version == commit.version => inode,
            Ok(_) | Err(MetadataError::NotFound) => return Ok(false),
            Err(error) => return Err(error),
        };
        let changed = before.content != commit.root;
        if let Some(root) = &commit.root {
            if changed && commit.shared {
                let shared: Option<ContentRecord> = self.get(&keys::of_cid(keys::CONTENT, root))?;
                if shared.is_none_or(|record| record.refs == 0) {
                    return Ok(false);
                }
            }
            self.take_content(root, commit, changed)?;
        }
        if let Some(root) = before.content.as_ref().filter(|_| changed) {
            self.release_content(root, before.ctime.max(commit.mtime).seconds)?;
        }
        let mut inode = before.clone();
        inode.content = commit.root;
        inode.profile.clone_from(&commit.record.profile);
        inode.size = commit.size;
        inode.holes = commit.record.holes;
        inode.mtime = commit.mtime;
        inode.ctime = inode.ctime.max(commit.mtime);
        inode.version += 1;
        self.delta.inode(Some(&before), Some(&inode));
        self.charge_resize(commit.ino, &before, &inode)?;
        self.put_inode(commit.ino, &inode);
        self.remove_staged(commit.ino)?;
        Ok(true)
    }
}

impl Namespace {
    /// Gives files their new contents, in one transaction a few hundred; one
    /// flag each: false when the inode's version had moved on or it is gone, or
    /// when a content to share has lost its last reference.
    ///
    /// # Errors
    /// `Storage`, `NoSpace`, `Contended`; `QuotaExceeded` for growth that was not
    /// staged before. Then a prefix of pages is committed.
    pub fn commit_contents(&self, commits: &[ContentCommit]) -> Result<Vec<bool>, MetadataError> {
        let mut done = Vec::with_capacity(commits.len());
        for page in commits.chunks(PAGE) {
            let flags: Result<Vec<bool>, _> =
                self.run(|tx| page.iter().map(|commit| tx.commit_content(commit)).collect());
            done.extend(flags?);
        }
        Ok(done)
    }

    /// A content's record.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn content(&self, root: &Cid) -> Result<Option<ContentRecord>, MetadataError> {
        let key = keys::of_cid(keys::CONTENT, root);
        self.engine.get(&key)?.map(|value| decode(&key, &value)).transpose()
    }

    /// A content's row of the queue.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn queue_row(&self, root: &Cid) -> Result<Option<QueueRecord>, MetadataError> {
        let key = keys::of_cid(keys::QUEUE, root);
        self.engine.get(&key)?.map(|value| decode(&key, &value)).transpose()
    }

    /// Contents in the order of their CIDs' bytes, after `after`.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn contents_page(
        &self,
        after: Option<&Cid>,
        limit: usize,
    ) -> Result<Vec<(Cid, ContentRecord)>, MetadataError> {
        self.cid_page(keys::CONTENT, after, limit)
    }

    /// Queue rows in the order of their CIDs' bytes, after `after`.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn queue_page(
        &self,
        after: Option<&Cid>,
        limit: usize,
    ) -> Result<Vec<(Cid, QueueRecord)>, MetadataError> {
        self.cid_page(keys::QUEUE, after, limit)
    }

    fn cid_page<T: Stored>(
        &self,
        table: u8,
        after: Option<&Cid>,
        limit: usize,
    ) -> Result<Vec<(Cid, T)>, MetadataError> {
        let start = after.map_or_else(
            || vec![table],
            |cid| {
                let mut key = keys::of_cid(table, cid);
                key.push(0);
                key
            },
        );
        let mut rows = Vec::new();
        self.engine.snapshot()?.scan(&start, &[table + 1], &mut |key, value| {
            if rows.len() == limit {
                return ControlFlow::Break(());
            }
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        rows.iter()
            .map(|(key, value)| {
                let cid = Cid::try_from(&key[1..]).map_err(|e| MetadataError::Damaged {
                    key: key.escape_ascii().to_string(),
                    reason: e.to_string(),
                })?;
                Ok((cid, decode(key, value)?))
            })
            .collect()
    }

    /// Changes contents' copies, pins or limits and their queue rows, many in
    /// one transaction. Contents that are gone are passed over; `refs` stays as
    /// it is; a content without references has no queue row. `change` may run
    /// again for a content after a conflict, from the rows as they are then.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn update_contents(
        &self,
        roots: &[Cid],
        change: &mut ContentChange<'_>,
    ) -> Result<(), MetadataError> {
        for page in roots.chunks(PAGE) {
            self.run(|tx| {
                for root in page {
                    let Some(before) =
                        tx.get::<ContentRecord>(&keys::of_cid(keys::CONTENT, root))?
                    else {
                        continue;
                    };
                    let row: Option<QueueRecord> = tx.get(&keys::of_cid(keys::QUEUE, root))?;
                    let (mut after, mut new_row) = (before.clone(), row.clone());
                    change(root, &mut after, &mut new_row);
                    after.refs = before.refs;
                    if after.refs == 0 {
                        new_row = None;
                    }
                    if after != before {
                        tx.put_content(root, Some(&before), &after)?;
                    }
                    tx.set_queue(root, row.as_ref(), new_row.as_ref());
                    let was = (Some(&before), row.as_ref());
                    tx.index_pin(root, was, (Some(&after), new_row.as_ref()));
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Applies `change` to every content, page by page; returns how many.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn update_all_contents(
        &self,
        change: &mut ContentChange<'_>,
    ) -> Result<u64, MetadataError> {
        let (mut after, mut count) = (None, 0);
        loop {
            let page = self.contents_page(after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(count) };
            after = Some(*last);
            count += page.len() as u64;
            let roots: Vec<Cid> = page.into_iter().map(|(root, _)| root).collect();
            self.update_contents(&roots, change)?;
        }
    }

    /// Visits all contents as they are at one moment, until `visit` breaks.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn each_content(
        &self,
        visit: &mut dyn FnMut(&Cid, &ContentRecord) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        let mut outcome = Ok(());
        let row = |key: &[u8], value: &[u8]| {
            let cid = Cid::try_from(&key[1..]).map_err(|e| damaged(key, e.to_string()))?;
            Ok::<_, MetadataError>((cid, decode::<ContentRecord>(key, value)?))
        };
        let (start, end) = ([keys::CONTENT], [keys::CONTENT + 1]);
        self.engine.snapshot()?.scan(&start, &end, &mut |key, value| match row(key, value) {
            Ok((cid, record)) => visit(&cid, &record),
            Err(error) => {
                outcome = Err(error);
                ControlFlow::Break(())
            }
        })?;
        outcome
    }

    /// The local copies of these contents that have no reference go (now, in the
    /// transaction that looks): a record without a copy elsewhere, or without
    /// one since before `oldest_s`, is removed; how many.
    ///
    /// # Errors
    /// `Storage`, `Contended`; then a prefix of pages is done.
    pub fn remove_unreferenced(
        &self,
        roots: &[Cid],
        (now_s, oldest_s): (i64, i64),
    ) -> Result<u64, MetadataError> {
        let mut removed = 0;
        for page in roots.chunks(PAGE) {
            removed += self.run(|tx| {
                let mut count = 0;
                for root in page {
                    let key = keys::of_cid(keys::CONTENT, root);
                    let record: Option<ContentRecord> = tx.get(&key)?;
                    let Some(record) = record.filter(|record| record.refs == 0) else { continue };
                    let here = record.copies.iter().any(|copy| copy.backend.is_local());
                    let elsewhere = record.good_copies().any(|copy| !copy.backend.is_local());
                    if !elsewhere || (!here && record.accessed_s < oldest_s) {
                        tx.remove(key);
                        count += 1;
                    } else if here {
                        // Its bytes here go; those elsewhere can bring it back for a while.
                        let mut after = record.clone();
                        after.copies.retain(|copy| !copy.backend.is_local());
                        after.accessed_s = now_s;
                        tx.put_content(root, Some(&record), &after)?;
                    }
                }
                Ok(count)
            })?;
        }
        Ok(removed)
    }

    /// These contents were read then, in seconds; records that are `apart_s` behind
    /// follow. They are not marked: it is no change that a checkpoint is made for.
    ///
    /// # Errors
    /// `Storage`, `NoSpace`, `Contended`.
    pub fn set_contents_read(
        &self,
        times: &[(Cid, i64)],
        apart_s: i64,
    ) -> Result<(), MetadataError> {
        self.run(|tx| {
            for (root, at_s) in times {
                let key = keys::of_cid(keys::CONTENT, root);
                let record: Option<ContentRecord> = tx.get(&key)?;
                let behind = |record: &ContentRecord| {
                    record.refs > 0 && at_s.saturating_sub(record.accessed_s) >= apart_s
                };
                if let Some(mut record) = record.filter(behind) {
                    record.accessed_s = *at_s;
                    tx.inner.put(&key, &encode(&record));
                }
            }
            Ok(())
        })
    }

    /// Removes the copies of a backend everywhere (it left).
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn forget_backend(&self, backend: &BackendId) -> Result<u64, MetadataError> {
        self.update_all_contents(&mut |_, record, _| {
            record.copies.retain(|copy| copy.backend != *backend);
        })
    }

    /// Adds copies to a record. One of the same backend is replaced when it is
    /// bad, or was only claimed and is verified now.
    pub fn merge_copies(into: &mut Vec<CopyRecord>, new: &[CopyRecord]) {
        for copy in new {
            match into.iter_mut().find(|held| held.backend == copy.backend) {
                None => into.push(copy.clone()),
                Some(held) => {
                    let better = match held.state {
                        CopyState::Lost | CopyState::Corrupt | CopyState::Released => true,
                        CopyState::Claimed => copy.state == CopyState::Verified,
                        CopyState::Verified => false,
                    };
                    if better {
                        held.clone_from(copy);
                    }
                }
            }
        }
    }
}
