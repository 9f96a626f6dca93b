//! Calls of backends from threads, cut short when the daemon stops.

use std::time::Duration;

use super::ReplicationError;
use crate::backends::{BackendError, ErrorKind};
use crate::runtime::{Bridge, Cancel};

/// The way of a thread to a backend.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    pub bridge: Bridge,
    /// Set when the replicator is to end.
    pub stop: Cancel,
    /// Deadline of one call.
    pub deadline: Duration,
    /// Set when the backend that these calls are for went down.
    pub down: Option<Cancel>,
}

impl Calls {
    /// The way to one backend, which ends when `down` is set.
    pub fn until(&self, down: Cancel) -> Self {
        Self { down: Some(down), ..self.clone() }
    }

    /// Waits for a call whose backend has the standard deadlines; ours, twenty
    /// times as long, is the last resort against one that ignores them.
    pub fn wait<T>(
        &self,
        future: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, ReplicationError> {
        let stoppable = async {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(ReplicationError::ShuttingDown),
                () = went_down(self.down.as_ref()) => Err(ReplicationError::WentDown),
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
        let waited = async { tokio::time::timeout(time, stop.cancelled()).await };
        self.bridge.wait(time + Duration::from_secs(1), waited).is_ok_and(|end| end.is_err())
    }
}

async fn went_down(down: Option<&Cancel>) {
    match down {
        Some(down) => down.cancelled().await,
        None => std::future::pending().await,
    }
}
