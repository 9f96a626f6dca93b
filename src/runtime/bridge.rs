use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// Owns the tokio runtime and is the only way from a thread into it.
#[derive(Debug, Clone)]
pub struct Bridge {
    runtime: Arc<Owned>,
}

/// A runtime whose last owner may be one of its own tasks: it ends without
/// waiting for them.
#[derive(Debug)]
struct Owned(Option<Runtime>, Handle);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
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
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Arc::new(Owned(Some(runtime), handle)) })
    }

    /// Runs `future` to its end or to the deadline, from a thread that is not
    /// a worker of the runtime.
    ///
    /// # Errors
    /// [`BridgeError::Deadline`] when the time is over; the future is dropped.
    pub fn wait<F: Future>(&self, deadline: Duration, future: F) -> Result<F::Output, BridgeError> {
        self.runtime.1.block_on(async {
            tokio::time::timeout(deadline, future)
                .await
                .map_err(|_| BridgeError::Deadline(deadline))
        })
    }

    /// Runs `future`, whose own deadlines bound it, to its end, from a thread
    /// that is not a worker of the runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.1.block_on(future)
    }

    /// Starts a task that lives as long as it wants.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.runtime.1.spawn(future)
    }

    /// Runs `work`, which blocks on a disk or a lock, off the async workers.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.1.spawn_blocking(work)
    }
}
