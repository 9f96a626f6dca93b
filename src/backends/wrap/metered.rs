use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Around, Attempt, Operation};
use crate::backends::BackendError;
use crate::telemetry;

/// Counts of one operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperationStats {
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Time in all calls.
    pub busy: Duration,
}

/// Counts calls, bytes and time.
#[derive(Default)]
pub struct Metered {
    stats: Mutex<BTreeMap<Operation, OperationStats>>,
}

impl Metered {
    /// Counts so far.
    pub fn stats(&self) -> BTreeMap<Operation, OperationStats> {
        self.stats.lock().clone()
    }
}

#[async_trait]
impl Around for Metered {
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        bytes: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        let start = Instant::now();
        let result = attempt().await;
        let elapsed = start.elapsed();
        telemetry::metrics().backend_call(operation.as_str(), result.is_ok(), bytes, elapsed);
        let mut stats = self.stats.lock();
        let entry = stats.entry(operation).or_default();
        match &result {
            Ok(_) => entry.succeeded += 1,
            Err(_) => entry.failed += 1,
        }
        entry.bytes += bytes;
        entry.busy += elapsed;
        result
    }
}
