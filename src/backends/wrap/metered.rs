use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
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
    /// Calls that the caller gave up.
    pub cancelled: u64,
    /// Bytes sent or received by calls that succeeded.
    pub bytes: u64,
    /// Time in all calls.
    pub busy: Duration,
}

/// Counts calls, bytes and time: here, and in the metrics of the process.
pub struct Metered {
    kind: &'static str,
    stats: Mutex<BTreeMap<Operation, OperationStats>>,
}

impl Metered {
    /// `kind` is the backend's kind, a label of the metrics.
    #[must_use]
    pub fn new(kind: &'static str) -> Self {
        Self { kind, stats: Mutex::default() }
    }

    /// Counts so far.
    pub fn stats(&self) -> BTreeMap<Operation, OperationStats> {
        self.stats.lock().clone()
    }

    fn ended(&self, operation: Operation, outcome: &'static str, sent: u64, elapsed: Duration) {
        let metrics = telemetry::metrics();
        metrics.backend_call(self.kind, operation.as_str(), outcome, elapsed);
        metrics.backend_sent(self.kind, sent);
        let mut stats = self.stats.lock();
        let entry = stats.entry(operation).or_default();
        match outcome {
            "ok" => entry.succeeded += 1,
            "cancelled" => entry.cancelled += 1,
            _ => entry.failed += 1,
        }
        entry.bytes += sent;
        entry.busy += elapsed;
    }
}

/// Counts a call as given up unless it came to its end.
struct Running<'a> {
    metered: &'a Metered,
    operation: Operation,
    start: Instant,
    ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.metered.ended(self.operation, "cancelled", 0, self.start.elapsed());
        }
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
        let mut running = Running { metered: self, operation, start: Instant::now(), ended: false };
        let result = attempt().await;
        running.ended = true;
        let (outcome, sent) = match &result {
            Ok(_) if operation == Operation::Get => ("ok", 0),
            Ok(_) => ("ok", bytes),
            Err(error) => (error.kind.as_str(), 0),
        };
        self.ended(operation, outcome, sent, running.start.elapsed());
        result
    }

    fn received(&self, bytes: Bytes) -> Bytes {
        telemetry::metrics().backend_received(self.kind, bytes.len() as u64);
        self.stats.lock().entry(Operation::Get).or_default().bytes += bytes.len() as u64;
        bytes
    }
}
