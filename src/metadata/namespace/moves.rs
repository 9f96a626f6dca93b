use std::ops::ControlFlow;

use super::Namespace;
use crate::metadata::records::{damaged, decode, encode};
use crate::metadata::{InodeRecord, MetadataError, MoveRecord, keys};
use crate::types::{Cid, FileKind, Ino};

/// Entries of a page.
const PAGE: usize = 1024;

fn key(number: u32) -> Vec<u8> {
    [&[keys::MOVE], number.to_be_bytes().as_slice()].concat()
}

impl Namespace {
    /// Wishes that copies move, by number.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn move_records(&self) -> Result<Vec<(u32, MoveRecord)>, MetadataError> {
        let mut rows = Vec::new();
        let (start, end) = ([keys::MOVE], [keys::MOVE + 1]);
        self.engine.snapshot()?.scan(&start, &end, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        let row = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let number = key.get(1..).and_then(|bytes| bytes.try_into().ok());
            let number = number.ok_or_else(|| damaged(key, "it is no number"))?;
            Ok((u32::from_be_bytes(number), decode(key, value)?))
        };
        rows.iter().map(row).collect()
    }

    /// Keeps a wish; `None` forgets it.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn set_move(&self, number: u32, record: Option<&MoveRecord>) -> Result<(), MetadataError> {
        self.run(|tx| {
            match record {
                Some(record) => tx.inner.put(&key(number), &encode(record)),
                None => tx.inner.delete(&key(number)),
            }
            Ok(())
        })
    }

    /// Visits the files with a content at or below an inode, until `visit` breaks;
    /// whether it did not. Memory: the directories that are still to be read, and a
    /// page of one.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn each_file(
        &self,
        top: Ino,
        visit: &mut dyn FnMut(Ino, &Cid) -> ControlFlow<()>,
    ) -> Result<bool, MetadataError> {
        let inode = |ino: Ino| match self.inode(ino) {
            Err(MetadataError::NotFound) => Ok(None),
            other => other.map(Some),
        };
        let mut stack = Vec::new();
        match inode(top)? {
            Some(record) if record.kind == FileKind::Directory => stack.push(top),
            Some(InodeRecord { content: Some(root), .. }) => {
                return Ok(visit(top, &root).is_continue());
            }
            _ => {}
        }
        while let Some(directory) = stack.pop() {
            let mut after = 0;
            loop {
                let page = match self.read_directory(directory, after, PAGE) {
                    Err(MetadataError::NotFound) => break,
                    other => other?,
                };
                after = page.entries.last().map_or(after, |(_, dentry)| dentry.cookie);
                for (_, dentry) in &page.entries {
                    if dentry.kind == FileKind::Directory {
                        stack.push(dentry.ino);
                        continue;
                    }
                    let root = inode(dentry.ino)?.and_then(|inode| inode.content);
                    if root.is_some_and(|root| visit(dentry.ino, &root).is_break()) {
                        return Ok(false);
                    }
                }
                if page.last {
                    break;
                }
            }
        }
        Ok(true)
    }
}
