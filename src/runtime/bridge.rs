use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Owns the tokio runtime and is the only way from a thread into it.
#[derive(Debug, Clone)]
pub struct Bridge {
    runtime: Arc<Runtime>,
}

/// A crossing that did not come back.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The deadline passed first.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
}

impl Bridge {
    /// Starts a runtime with `threads` workers.
    ///
    /// # Errors
    /// When the operating system refuses threads or an epoll descriptor.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("cairn-async")
            .enable_all()
            .build()?;
        Ok(Self { runtime: Arc::new(runtime) })
    }

    /// Runs `future` to its end or to the deadline, from a thread that is not
    /// a worker of the runtime.
    ///
    /// # Errors
    /// [`BridgeError::Deadline`] when the time is over; the future is dropped.
    pub fn wait<F: Future>(&self, deadline: Duration, future: F) -> Result<F::Output, BridgeError> {
        self.runtime.block_on(async {
            tokio::time::timeout(deadline, future)
                .await
                .map_err(|_| BridgeError::Deadline(deadline))
        })
    }

    /// Starts a task that lives as long as it wants.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.runtime.spawn(future)
    }

    /// Runs `work`, which blocks on a disk or a lock, off the async workers.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.spawn_blocking(work)
    }
}
