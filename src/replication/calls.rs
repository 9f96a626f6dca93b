//! Calls of backends from threads, cut short when the daemon stops.

use std::time::Duration;

use tokio::sync::watch;

use super::ReplicationError;
use crate::backends::{BackendError, ErrorKind};
use crate::runtime::Bridge;

/// Tells threads and tasks of the replicator to end.
#[derive(Debug, Clone)]
pub(super) struct Stop(watch::Sender<bool>);

impl Stop {
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    pub fn set(&self) {
        self.0.send_replace(true);
    }

    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when the end has begun.
    pub async fn wait(&self) {
        // An error says that the sender is gone, and it is in `self`.
        drop(self.0.subscribe().wait_for(|set| *set).await);
    }
}

/// The way of a thread to a backend.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    pub bridge: Bridge,
    pub stop: Stop,
    /// Deadline of one call.
    pub deadline: Duration,
}

impl Calls {
    /// Waits for a call whose backend has the standard deadlines; ours, twenty
    /// times as long, is the last resort against one that ignores them.
    pub fn wait<T>(
        &self,
        future: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, ReplicationError> {
        let stoppable = async {
            tokio::select! {
                biased;
                () = self.stop.wait() => Err(ReplicationError::ShuttingDown),
                result = future => result.map_err(ReplicationError::from),
            }
        };
        self.bridge.wait(self.deadline.saturating_mul(20), stoppable).unwrap_or_else(|late| {
            Err(BackendError::new(ErrorKind::Timeout, late.to_string()).into())
        })
    }

    /// Waits for a time; false when the end came first.
    pub fn pause(&self, time: Duration) -> bool {
        let stop = &self.stop;
        let waited = async { tokio::time::timeout(time, stop.wait()).await };
        self.bridge.wait(time + Duration::from_secs(1), waited).is_ok_and(|end| end.is_err())
    }
}
