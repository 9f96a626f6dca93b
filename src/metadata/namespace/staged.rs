use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::{Namespace, Tx};
use crate::metadata::records::{decode, encode};
use crate::metadata::{MetadataError, StagedRecord, keys};
use crate::types::Ino;

fn leaf_key(ino: Ino, leaf: u64) -> Vec<u8> {
    keys::under(keys::STAGED, ino, &leaf.to_be_bytes())
}

impl Tx<'_> {
    /// Removes the staged record and its bitmaps.
    pub(super) fn remove_staged(&mut self, ino: Ino) -> Result<(), MetadataError> {
        let header = keys::number(keys::STAGED, ino.0);
        // Most files have none: a look-up is cheaper than a scan.
        if self.inner.get(&header)?.is_some() {
            for (key, _) in self.below(&header)? {
                self.inner.delete(&key);
            }
        }
        Ok(())
    }
}

impl Namespace {
    /// Records staged bytes that are durable in the staging file. Replaces what
    /// was recorded; writes only the bitmaps that changed.
    ///
    /// # Errors
    /// `NotFound` when the inode is gone; `Storage`.
    pub fn put_staged(&self, ino: Ino, staged: &StagedRecord) -> Result<(), MetadataError> {
        self.run(|tx| {
            tx.inode(ino)?;
            let header = keys::number(keys::STAGED, ino.0);
            let mut old: BTreeMap<Vec<u8>, Vec<u8>> = tx.below(&header)?.into_iter().collect();
            old.remove(&header);
            tx.inner.put(&header, &encode(staged));
            for (leaf, pages) in &staged.pages {
                let key = leaf_key(ino, *leaf);
                if old.remove(&key).as_ref() != Some(pages) {
                    tx.inner.put(&key, pages);
                }
            }
            old.keys().for_each(|key| tx.inner.delete(key));
            Ok(())
        })
    }

    /// As [`Namespace::put_staged`], for the leaves in `staged.pages` only: the
    /// bitmaps of others stay as they are. For a file that did not shrink since
    /// it was last recorded; costs as much as changed, whatever the file's size.
    ///
    /// # Errors
    /// `NotFound` when the inode is gone; `Storage`.
    pub fn put_staged_pages(&self, ino: Ino, staged: &StagedRecord) -> Result<(), MetadataError> {
        self.run(|tx| {
            tx.inode(ino)?;
            tx.inner.put(&keys::number(keys::STAGED, ino.0), &encode(staged));
            for (leaf, pages) in &staged.pages {
                tx.inner.put(&leaf_key(ino, *leaf), pages);
            }
            Ok(())
        })
    }

    /// Forgets staged bytes (they were sealed, or are gone).
    ///
    /// # Errors
    /// `Storage`.
    pub fn delete_staged(&self, ino: Ino) -> Result<(), MetadataError> {
        self.run(|tx| tx.remove_staged(ino))
    }

    /// What the inode's staged record keeps under `leaf`: empty when that is
    /// nothing, `None` when there is no record.
    ///
    /// # Errors
    /// `Storage`.
    pub fn staged_page(&self, ino: Ino, leaf: u64) -> Result<Option<Vec<u8>>, MetadataError> {
        let snapshot = self.engine.snapshot()?;
        if snapshot.get(&keys::number(keys::STAGED, ino.0))?.is_none() {
            return Ok(None);
        }
        Ok(Some(snapshot.get(&leaf_key(ino, leaf))?.unwrap_or_default()))
    }

    /// All staged records, with their bitmaps.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn staged(&self) -> Result<Vec<(Ino, StagedRecord)>, MetadataError> {
        let (start, end) = ([keys::STAGED], [keys::STAGED + 1]);
        let mut records: Vec<(Ino, StagedRecord)> = Vec::new();
        let mut outcome = Ok(());
        self.engine.snapshot()?.scan(&start, &end, &mut |key, value| {
            let Some(ino) = keys::number_in(key).map(Ino) else { return ControlFlow::Continue(()) };
            match (keys::second_number_in(key), records.last_mut()) {
                (Some(leaf), Some((last, record))) if *last == ino => {
                    record.pages.push((leaf, value.to_vec()));
                }
                // A bitmap without a record says nothing.
                (Some(_), _) => {}
                (None, _) => match decode(key, value) {
                    Ok(record) => records.push((ino, record)),
                    Err(error) => {
                        outcome = Err(error);
                        return ControlFlow::Break(());
                    }
                },
            }
            ControlFlow::Continue(())
        })?;
        outcome.map(|()| records)
    }
}
