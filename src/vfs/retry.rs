//! Files whose commit failed: tried again by and by, and put on record at the
//! end, so that the next opening takes their bytes up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::node::Node;
use super::{Vfs, VfsError};
use crate::types::Ino;

/// The first pause; it doubles up to the longest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(1);
/// How often the table of nodes is swept.
const SWEEP: Duration = Duration::from_secs(5);

/// Files that are to be tried again; at most the dirty ones.
#[derive(Default)]
pub(super) struct Retries {
    files: Mutex<BTreeMap<Ino, Retry>>,
    count: AtomicUsize,
    swept: Mutex<Option<Instant>>,
}

struct Retry {
    due: Instant,
    pause: Duration,
}

impl Retries {
    pub fn failed(&self, ino: Ino) {
        let mut files = self.files.lock();
        let pause = files.get(&ino).map_or(FIRST, |retry| (retry.pause * 2).min(LONGEST));
        files.insert(ino, Retry { due: Instant::now() + pause, pause });
        self.count.store(files.len(), Ordering::Release);
    }

    pub fn ended(&self, ino: Ino) {
        if self.count.load(Ordering::Acquire) > 0 {
            let mut files = self.files.lock();
            files.remove(&ino);
            self.count.store(files.len(), Ordering::Release);
        }
    }

    /// Those that are due; each is due again after its pause.
    fn due(&self) -> Vec<Ino> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let now = Instant::now();
        let mut files = self.files.lock();
        let due = files.iter_mut().filter(|(_, retry)| retry.due <= now);
        due.map(|(ino, retry)| {
            retry.due = now + retry.pause;
            *ino
        })
        .collect()
    }
}

impl Vfs {
    /// Drops nodes that nobody needs, now and then.
    pub(super) fn sweep_due(&self) {
        if let Some(mut swept) = self.retries.swept.try_lock()
            && swept.is_none_or(|at| at.elapsed() >= SWEEP)
        {
            *swept = Some(Instant::now());
            self.nodes.sweep();
        }
    }

    /// Who waits is told at once; other handles have the file open, too.
    pub(super) fn commit_failed(&self, node: &Node, error: &VfsError) {
        tracing::error!(ino = %node.ino, %error, "a file could not be committed; its bytes are kept");
        node.failures.lock().add(error.errno(), error.to_string());
        self.retries.failed(node.ino);
    }

    pub(super) fn retry_due(&self) {
        for ino in self.retries.due() {
            match self.nodes.get(ino) {
                Some(node) => self.commit_later(&node),
                None => self.retries.ended(ino),
            }
        }
    }

    /// At the end: what could not be committed is synced and put on record.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same.
    pub(super) fn record_uncommitted(&self) -> Result<(), VfsError> {
        let mut first = Ok(());
        for node in self.nodes.all() {
            let kept = self.record_node(&node);
            if let Err(error) = &kept {
                tracing::error!(ino = %node.ino, %error, "what was written to a file is lost with this end");
            }
            first = first.and(kept);
        }
        first
    }

    fn record_node(&self, node: &Arc<Node>) -> Result<(), VfsError> {
        let mut state = node.state.write();
        if !state.dirty || state.record.nlink == 0 {
            return Ok(());
        }
        let Some(staging) = &mut state.staging else { return Ok(()) };
        staging.sync()?;
        self.record_staged(node.ino, &mut state)?;
        tracing::warn!(ino = %node.ino, "a file could not be committed: the next mount goes on with it");
        Ok(())
    }
}
