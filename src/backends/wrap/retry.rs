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
    /// How long to pause before the next attempt; `None`: give up. A place that
    /// asks for more time than we wait here gets it: the caller's queue has the
    /// longer patience.
    fn pause(&self, attempt: u32, error: &BackendError) -> Option<Duration> {
        let bound = self.first.saturating_mul(1 << attempt.min(16)).min(self.longest);
        let jitter = bound.mul_f64(fastrand::f64());
        match error.retry_after_ms.map(Duration::from_millis) {
            Some(asked) if asked > self.longest => None,
            Some(asked) => Some(asked + jitter),
            None => Some(jitter),
        }
    }

    fn worth_it(error: &BackendError) -> bool {
        // A place that is gone, full or hangs stays so for longer than we wait
        // here: its item goes back to the queue.
        error.is_temporary()
            && !matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Full | ErrorKind::Timeout)
    }
}

#[async_trait]
impl Around for Retry {
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        _: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        let mut tries = 0;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let pause = (Self::worth_it(&error) && tries + 1 < self.attempts)
                .then(|| self.pause(tries, &error))
                .flatten();
            let Some(pause) = pause else { return Err(error) };
            tracing::debug!(operation = operation.as_str(), %error, tries, ?pause, "trying again");
            tokio::time::sleep(pause).await;
            tries += 1;
        }
    }
}
