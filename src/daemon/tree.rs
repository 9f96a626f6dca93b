//! Walks of the tree by its rows, for verbs. Memory: the directories that are still
//! to be read, and a page of one.

use std::ops::ControlFlow;

use super::volume::{Volume, failed};
use crate::api::{ErrorCode, Failure};
use crate::metadata::{InodeRecord, MetadataError};
use crate::types::{Cid, FileKind, Ino};

/// Entries of a page.
const PAGE: usize = 1024;

/// Visits the files below an inode (or itself) that have a content.
pub(super) fn each_file(
    volume: &Volume,
    top: Ino,
    visit: &mut dyn FnMut(Ino, Cid) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    let inode = |ino: Ino| -> Result<Option<InodeRecord>, Failure> {
        match volume.namespace.inode(ino) {
            Ok(inode) => Ok(Some(inode)),
            Err(MetadataError::NotFound) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    };
    let mut stack = Vec::new();
    match inode(top)? {
        Some(record) if record.kind == FileKind::Directory => stack.push(top),
        Some(InodeRecord { content: Some(root), .. }) => return visit(top, root).map(drop),
        _ => {}
    }
    while let Some(directory) = stack.pop() {
        let mut after = 0;
        loop {
            let page = match volume.namespace.read_directory(directory, after, PAGE) {
                Err(MetadataError::NotFound) => break,
                other => other.map_err(failed)?,
            };
            after = page.entries.last().map_or(after, |(_, dentry)| dentry.cookie);
            for (_, dentry) in &page.entries {
                if dentry.kind == FileKind::Directory {
                    stack.push(dentry.ino);
                    continue;
                }
                let Some(root) = inode(dentry.ino)?.and_then(|inode| inode.content) else {
                    continue;
                };
                if visit(dentry.ino, root)?.is_break() {
                    return Ok(());
                }
            }
            if volume.shutdown.is_triggered() {
                return Err(Failure::new(ErrorCode::Busy, "the volume is being unmounted"));
            }
            if page.last {
                break;
            }
        }
    }
    Ok(())
}
