use std::ops::ControlFlow;

use super::stats::Delta;
use super::{Change, Namespace, Tx};
use crate::metadata::records::{OrderRecord, decode, encode};
use crate::metadata::{DentryRecord, InodeRecord, MetadataError, keys};
use crate::types::{FileKind, Ino};

/// Rows that one transaction loads at most.
const PAGE: usize = 1024;
/// Numbers passed over after a recovery: what was made and removed again, or made
/// since the checkpoint, left no row, and no number comes twice.
const GAP: u64 = 1 << 32;

impl Namespace {
    /// Loads rows of a recovered checkpoint into an empty tree; derived rows
    /// (order, parents, orphans, counters, numbers) are made again. Each row
    /// comes once, as it last was. Loaded rows are marked: the first checkpoint
    /// of the new tree is a base, and takes them all.
    ///
    /// # Errors
    /// Of the iterator; `Storage`. Then the tree is not to be used.
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
        let next = highest.saturating_add(GAP);
        self.run(|tx| {
            tx.inner.put(keys::NEXT_INO, &encode(&next));
            Ok(())
        })?;
        *self.numbers.lock() = next..next;
        self.count_links()?;
        self.recount_quotas()?;
        Ok(count)
    }

    /// Counts the names per parent of every inode with several links.
    fn count_links(&self) -> Result<(), MetadataError> {
        let mut start = vec![keys::DENTRY];
        loop {
            let mut page = Vec::new();
            self.engine.snapshot()?.scan(&start, &[keys::DENTRY + 1], &mut |key, value| {
                page.push((key.to_vec(), value.to_vec()));
                if page.len() == PAGE { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            self.run(|tx| {
                for (key, value) in &page {
                    let dentry: DentryRecord = decode(key, value)?;
                    let Some(parent) = keys::number_in(key) else { continue };
                    // A name without an inode is a finding of `check`, not a
                    // reason to recover nothing.
                    let inode: Option<InodeRecord> = match dentry.kind {
                        FileKind::Directory => None,
                        _ => tx.get(&keys::inode(dentry.ino))?,
                    };
                    if inode.is_some_and(|inode| inode.nlink > 1) {
                        let key = keys::under(keys::PARENT, dentry.ino, &parent.to_be_bytes());
                        let count = tx.get::<u32>(&key)?.unwrap_or(0);
                        tx.inner.put(&key, &encode(&(count + 1)));
                    }
                }
                Ok(())
            })?;
            let Some((last, _)) = page.pop() else { return Ok(()) };
            start = last;
            start.push(0);
        }
    }
}

fn load(tx: &mut Tx<'_>, change: &Change) -> Result<(), MetadataError> {
    match change {
        Change::Inode(ino, Some(inode)) => {
            // The root of an empty tree is replaced.
            let before: Option<InodeRecord> = tx.get(&keys::inode(*ino))?;
            Delta::inode(&mut tx.delta, before.as_ref(), Some(inode));
            if inode.nlink == 0 {
                tx.inner.put(&keys::number(keys::ORPHAN, ino.0), &[1]);
            }
            tx.put_inode(*ino, inode);
        }
        Change::Dentry(parent, name, Some(dentry)) => {
            let order = keys::under(keys::ORDER, *parent, &dentry.cookie.to_be_bytes());
            let row = OrderRecord { name: name.clone(), ino: dentry.ino, kind: dentry.kind };
            tx.inner.put(&order, &encode(&row));
            tx.put(keys::under(keys::DENTRY, *parent, name.as_bytes()), dentry);
        }
        Change::Xattr(ino, name, Some(value)) => {
            let key = keys::under(keys::XATTR, *ino, name);
            tx.inner.put(&key, value);
            tx.marked.push(key);
        }
        Change::Content(root, Some(record)) => {
            tx.count_content(None, Some(record))?;
            tx.index_pin(root, (None, None), (Some(record), None));
            tx.put(keys::of_cid(keys::CONTENT, root), record);
        }
        // Deletions are resolved by the reader; events have `load_events`.
        _ => {}
    }
    Ok(())
}
