use std::time::Duration;

use async_trait::async_trait;

use super::{Around, Attempt, Operation};
use crate::backends::{BackendError, ErrorKind};

/// Repeats calls that failed for a moment, with full jitter (the pause is
/// random up to a doubling bound, so that callers do not come back together).
pub struct Retry {
    /// Attempts in all.
    pub attempts: u32,
    /// The first bound of the pause.
    pub first: Duration,
    /// The last one.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 3, first: Duration::from_millis(50), longest: Duration::from_secs(2) }
    }
}

impl Retry {
    fn pause(&self, attempt: u32, error: &BackendError) -> Duration {
        let bound = self.first.saturating_mul(1 << attempt.min(16)).min(self.longest);
        let jitter = bound.mul_f64(fastrand::f64());
        error.retry_after_ms.map_or(jitter, |ms| Duration::from_millis(ms).min(self.longest) + jitter)
    }
}

#[async_trait]
impl Around for Retry {
    async fn around<T: Send + 'static>(
        &self,
        _: Operation,
        _: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        let mut tries = 0;
        loop {
            match attempt().await {
                // A place that is gone or full stays so for longer than we wait
                // here: its item goes back to the queue.
                Err(error)
                    if error.is_temporary()
                        && !matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Full)
                        && tries + 1 < self.attempts =>
                {
                    tokio::time::sleep(self.pause(tries, &error)).await;
                    tries += 1;
                }
                other => return other,
            }
        }
    }
}
