//! When contents were last read, for tiers that copies move between by that
//! (`by=access`). Where no policy has one, nothing is kept.
//!
//! As with times of access of files, an open for reading counts as a read. A time waits
//! in memory, one a content, and goes into its record after some minutes and at the end,
//! at most once an hour. A crash loses what waits; a checkpoint has it with the next
//! other change of the content, or the next base.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

use super::node::NodeState;
use super::{Vfs, VfsError};
use crate::types::{Cid, Timestamp};

/// Contents that wait, at most; what is read beyond them waits for the next reading.
const WAITING: usize = 16_384;
/// Rows of one transaction.
const PAGE: usize = 512;
/// A time waits this long, in seconds.
const WAIT_S: i64 = 300;
/// A record follows when it is this much older, in seconds.
const HOUR_S: i64 = 60 * 60;

/// The times that wait.
#[derive(Default)]
pub(super) struct LastRead {
    waiting: Mutex<HashMap<Cid, i64>>,
    /// When the first of them came.
    since: Mutex<Option<i64>>,
}

/// When a handle last said so, in seconds; most of its reads need not lock.
#[derive(Default)]
pub(super) struct Said(AtomicI64);

impl LastRead {
    pub(super) fn put(&self, root: Cid, now_s: i64) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < WAITING || waiting.contains_key(&root) {
            waiting.insert(root, now_s);
            self.since.lock().get_or_insert(now_s);
        }
    }

    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        let since = *self.since.lock();
        // Also when the clock was set back, or no more can wait.
        since.is_some_and(|since| {
            !(0..WAIT_S).contains(&now.seconds.saturating_sub(since))
                || self.waiting.lock().len() >= WAITING
        })
    }

    pub(super) fn some(&self) -> Vec<(Cid, i64)> {
        self.waiting.lock().iter().take(PAGE).map(|(root, at)| (*root, *at)).collect()
    }

    pub(super) fn written(&self, page: &[(Cid, i64)]) {
        let mut waiting = self.waiting.lock();
        for (root, at) in page {
            if waiting.get(root) == Some(at) {
                waiting.remove(root);
            }
        }
        if waiting.is_empty() {
            *self.since.lock() = None;
        }
    }
}

impl Vfs {
    /// A reader has this file's content.
    pub(super) fn content_read(&self, said: &Said, state: &NodeState) {
        let Some(root) = state.record.content else { return };
        let now_s = self.now().seconds;
        let before = said.0.load(Ordering::Relaxed);
        if (0..HOUR_S).contains(&now_s.saturating_sub(before)) {
            return;
        }
        said.0.store(now_s, Ordering::Relaxed);
        if !self.options.read_only && self.replicator.policies().counts_access() {
            self.last_read.put(root, now_s);
        }
    }

    /// Writes what has waited long.
    pub(super) fn write_due_reads(&self) {
        if self.last_read.is_due(self.now())
            && let Err(error) = self.write_reads()
        {
            tracing::warn!(%error, "when contents were read is not recorded; it waits on");
            *self.last_read.since.lock() = Some(self.now().seconds);
        }
    }

    /// Writes all that waits.
    ///
    /// # Errors
    /// Of the metadata.
    pub(super) fn write_reads(&self) -> Result<(), VfsError> {
        // What comes meanwhile may wait.
        for _ in 0..WAITING.div_ceil(PAGE) {
            let page = self.last_read.some();
            if page.is_empty() {
                break;
            }
            self.namespace.set_contents_read(&page, HOUR_S)?;
            self.last_read.written(&page);
        }
        Ok(())
    }
}
