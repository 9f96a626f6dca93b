//! Staging files that were let go of while the record of a sync may still name
//! them: they lie among the segments, unindexed, until the metadata that names
//! them no more is durable. Who persists it asks for them before and removes them
//! afterwards. After a crash, or beyond [`FILES_MAX`], a collection finds them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::staging_file::parse_header;
use super::{LocalStore, StoreError};
use crate::types::{Ino, SegmentId};

/// Most files that are kept in mind.
const FILES_MAX: usize = 4096;
/// Looked at beside one persist: it is to stay a small part of it.
const LOOK_MAX: usize = 64;

/// A staging file that was let go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aside {
    /// The inode whose record may name it.
    pub ino: Ino,
    id: SegmentId,
}

impl Aside {
    /// Whether the page that [`super::Staging::pages`] keeps under
    /// [`super::Staging::HEADER_LEAF`] names it. One that is not understood may.
    #[must_use]
    pub fn is_named_by(&self, header: &[u8]) -> bool {
        parse_header(header).is_none_or(|(id, _)| id == self.id)
    }
}

/// Those of one store.
#[derive(Debug, Default)]
pub(super) struct Asides {
    files: Mutex<VecDeque<Aside>>,
    bytes: AtomicU64,
}

impl Asides {
    pub fn add(&self, ino: Ino, id: SegmentId, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.keep(Aside { ino, id });
    }

    fn keep(&self, aside: Aside) {
        let mut files = self.files.lock();
        if files.len() < FILES_MAX {
            files.push_back(aside);
        }
    }
}

impl LocalStore {
    /// Bytes of the disk that were set aside since the opening.
    pub fn aside_bytes(&self) -> u64 {
        self.asides.bytes.load(Ordering::Relaxed)
    }

    /// Some of the files that are set aside, to be given back by
    /// [`LocalStore::keep_aside`] or removed by [`LocalStore::remove_aside`].
    pub fn take_aside(&self) -> Vec<Aside> {
        let mut files = self.asides.files.lock();
        let count = files.len().min(LOOK_MAX);
        files.drain(..count).collect()
    }

    /// The record of `aside` still names it.
    pub fn keep_aside(&self, aside: Aside) {
        self.asides.keep(aside);
    }

    /// Removes it: no durable record names it, nor will one after a crash.
    ///
    /// # Errors
    /// `Io`. A collection tries again.
    pub fn remove_aside(&self, aside: Aside) -> Result<(), StoreError> {
        let path = self.layout.file(aside.id);
        match self.disk.remove(&path) {
            // A collection may have been here before.
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io(&path, e)),
            _ => Ok(()),
        }
    }
}
