//! Watches the reads at a place, for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::BackendError;
use super::wrap::{Around, Attempt, Operation};

/// Counts the reads, and makes each take some time or for ever.
#[derive(Default)]
pub struct Watch {
    /// That run.
    pub now: AtomicUsize,
    /// That ran at a time.
    pub most: AtomicUsize,
    /// In all.
    pub all: AtomicUsize,
    /// What each takes.
    pub delay: Mutex<Duration>,
}

/// The layer that does it.
pub struct Watched(pub Arc<Watch>);

/// Ends a read, also one that is dropped.
struct End<'w>(&'w Watch);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Around for Watched {
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        _: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        if operation != Operation::Get {
            return attempt().await;
        }
        self.0.all.fetch_add(1, Ordering::SeqCst);
        let now = self.0.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(now, Ordering::SeqCst);
        let _end = End(&self.0);
        let delay = *self.0.delay.lock();
        tokio::time::sleep(delay).await;
        attempt().await
    }
}
