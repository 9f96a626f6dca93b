//! What is stored at a place, or relied on for being there, while its garbage is
//! collected.
//!
//! A mark of the metadata cannot see what is being sent beside it. Who sends asks
//! for what is there and leaves it out: what was asked for or put since the
//! collection began is not deleted, and while a batch is being deleted nobody asks.
//! A deletion without an answer may still happen: for a while the place takes
//! nothing of the sort for there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::backends::wrap::{Around, Attempt, Operation, Wrapped};
use crate::backends::{Backend, BackendError, ErrorKind};
use crate::store::MarkSet;
use crate::types::Cid;

/// For some 800,000 blocks during one collection; beyond that garbage stays.
const TOUCHED_BYTES: u64 = 1 << 20;
/// How long after a deletion without an answer it may still be carried out.
const LIMBO: Duration = Duration::from_mins(15);
/// Deletions without an answer that are remembered; a collection ends at the first.
const LIMBO_MAX: usize = 4096;

/// Of one backend, over its reopenings.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Taken alone by who deletes a batch.
    gate: tokio::sync::RwLock<()>,
    state: Mutex<State>,
    uploads: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// While a collection runs.
    touched: Option<MarkSet>,
    limbo: HashMap<Cid, Instant>,
}

/// Around a backend's calls.
pub struct Tracked(Arc<Tracker>);

/// While it lives, blocks are sent that nothing names yet, or that were found there
/// before a collection began.
#[derive(Debug)]
pub struct Upload<'t>(&'t Tracker);

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        self.0.uploads.fetch_sub(1, Ordering::AcqRel);
    }
}

/// While it lives, what is touched is remembered.
#[derive(Debug)]
pub struct Watch<'t>(&'t Tracker);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.state.lock().touched = None;
    }
}

impl Tracker {
    /// A backend whose calls are seen here.
    pub fn wrap(self: &Arc<Self>, backend: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(Wrapped::new(backend, Tracked(Arc::clone(self))))
    }

    /// Files of the metadata are being sent; a collection waits for their names.
    pub fn upload(&self) -> Upload<'_> {
        self.uploads.fetch_add(1, Ordering::AcqRel);
        Upload(self)
    }

    /// A collection begins; `None` when one runs already.
    pub fn watch(&self) -> Option<Watch<'_>> {
        let mut state = self.state.lock();
        if state.touched.is_some() {
            return None;
        }
        state.touched = Some(MarkSet::new(u64::MAX, TOUCHED_BYTES));
        Some(Watch(self))
    }

    /// Whether no files of the metadata are being sent.
    pub fn is_quiet(&self) -> bool {
        self.uploads.load(Ordering::Acquire) == 0
    }

    /// Whether a block was asked for or put since the collection began.
    pub fn is_touched(&self, cid: &Cid) -> bool {
        self.state.lock().touched.as_ref().is_none_or(|touched| touched.contains(cid))
    }

    /// Deletes those that were not touched; they come back.
    ///
    /// # Errors
    /// Of the place: which of them are gone is not known then.
    pub async fn delete(
        &self,
        backend: &dyn Backend,
        cids: &[Cid],
    ) -> Result<Vec<Cid>, BackendError> {
        let _alone = self.gate.write().await;
        let due: Vec<Cid> = {
            let state = self.state.lock();
            // Without a watch nothing is known, and nothing goes.
            let touched = |cid: &Cid| state.touched.as_ref().is_none_or(|set| set.contains(cid));
            cids.iter().filter(|cid| !touched(cid)).copied().collect()
        };
        if due.is_empty() {
            return Ok(due);
        }
        // Also when this future is dropped: the call may be on its way.
        let until = Instant::now() + LIMBO;
        self.in_limbo(&due, until);
        backend.delete_many(&due).await?;
        let mut state = self.state.lock();
        for cid in &due {
            state.limbo.remove(cid);
        }
        Ok(due)
    }

    fn in_limbo(&self, cids: &[Cid], until: Instant) {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.limbo.retain(|_, until| *until > now);
        for cid in cids.iter().take(LIMBO_MAX) {
            state.limbo.insert(*cid, until);
        }
    }

    async fn touch(&self, cids: &[Cid]) -> Result<(), BackendError> {
        let _together = self.gate.read().await;
        let state = self.state.lock();
        if let Some(touched) = &state.touched {
            cids.iter().for_each(|cid| touched.insert(cid));
        }
        let now = Instant::now();
        let gone = |cid: &&Cid| state.limbo.get(cid).is_some_and(|until| *until > now);
        match cids.iter().find(gone) {
            None => Ok(()),
            Some(cid) => {
                let message = format!(
                    "block {cid} was to be deleted there, and no answer came: it is sent again \
                     when that cannot happen any more"
                );
                Err(BackendError::new(ErrorKind::Throttled, message))
            }
        }
    }
}

#[async_trait]
impl Around for Tracked {
    async fn around<T: Send + 'static>(
        &self,
        _: Operation,
        _: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        attempt().await
    }

    async fn before(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.0.touch(cids).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::{MemoryBackend, Presence};
    use crate::types::Block;

    fn block(n: u8) -> Block {
        Block::raw(vec![n; 10].into())
    }

    #[tokio::test]
    async fn what_is_asked_for_or_put_while_a_collection_runs_is_not_deleted() {
        let inner = Arc::new(MemoryBackend::new("m"));
        let tracker = Arc::new(Tracker::default());
        let place = tracker.wrap(Arc::clone(&inner) as Arc<dyn Backend>);
        let [asked, put, known, dead] = [1, 2, 3, 4].map(block);
        let all = [asked.clone(), put.clone(), known.clone(), dead.clone()];
        place.put_many(&all).await.unwrap();
        let cids = all.each_ref().map(|block| block.cid);
        assert_eq!(tracker.delete(&*place, &cids).await.unwrap(), [], "nobody watches");
        let watch = tracker.watch().unwrap();
        assert!(tracker.watch().is_none(), "one at a time");
        place.presence(&[asked.cid]).await.unwrap();
        place.put(&put).await.unwrap();
        place.put_many(std::slice::from_ref(&known)).await.unwrap();
        assert_eq!(tracker.delete(&*place, &cids).await.unwrap(), [dead.cid]);
        let left = [true, true, true, false];
        assert_eq!(cids.map(|cid| inner.contains(&cid)), left);
        drop(watch);
        assert!(tracker.watch().is_some());
    }

    #[tokio::test]
    async fn after_a_deletion_without_an_answer_nothing_of_it_is_taken_for_there() {
        let inner = Arc::new(MemoryBackend::new("m"));
        let tracker = Arc::new(Tracker::default());
        let place = tracker.wrap(Arc::clone(&inner) as Arc<dyn Backend>);
        let (late, other) = (block(1), block(2));
        place.put(&late).await.unwrap();
        let watch = tracker.watch().unwrap();
        inner.fail(Operation::DeleteMany, ErrorKind::Timeout);
        assert!(tracker.delete(&*place, &[late.cid]).await.is_err());
        inner.heal();
        drop(watch);
        assert!(place.put(&late).await.is_err(), "it may still be deleted");
        assert!(place.presence(&[late.cid]).await.is_err());
        place.put(&other).await.unwrap();
        assert_eq!(place.presence(&[other.cid]).await.unwrap(), [Presence::Present(10)]);
        // A later deletion that is answered settles it.
        let _watch = tracker.watch().unwrap();
        assert_eq!(tracker.delete(&*place, &[late.cid]).await.unwrap(), [late.cid]);
        place.put(&late).await.unwrap();
    }
}
