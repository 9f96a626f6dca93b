use std::time::Duration;

use async_trait::async_trait;

use super::{Around, Attempt, Operation};
use crate::backends::{BackendError, ErrorKind};

/// The slowest transfer that is still waited for.
const BYTES_PER_SECOND: u64 = 256 * 1024;

/// Who only asks whether a place is there waits no longer.
const PROBE: Duration = Duration::from_secs(10);

/// A piece of a repacking reads and writes 64 MiB.
const COMPACT: Duration = Duration::from_mins(10);

/// A deadline for each call; it grows with the bytes that are moved.
pub struct Timeout {
    base: Duration,
}

impl Timeout {
    /// `base` for a call that moves no block.
    #[must_use]
    pub fn new(base: Duration) -> Self {
        Self { base }
    }
}

#[async_trait]
impl Around for Timeout {
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        bytes: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        let deadline = match operation {
            Operation::Probe | Operation::Usage => self.base.min(PROBE),
            Operation::Compact => self.base + COMPACT,
            _ => self.base + Duration::from_secs(bytes / BYTES_PER_SECOND),
        };
        let ended = tokio::time::timeout(deadline, attempt()).await;
        ended.unwrap_or_else(|_| {
            let message = format!("no answer to {} within {deadline:?}", operation.as_str());
            Err(BackendError::new(ErrorKind::Timeout, message))
        })
    }
}
