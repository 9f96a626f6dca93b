use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Around, Attempt, Operation};
use crate::backends::{BackendError, ErrorKind, ListPage};

/// Chances of each fault, in percent of calls.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaultPlan {
    /// Refused before anything happens.
    pub refused: u8,
    /// Done, and then reported as failed.
    pub applied_then_failed: u8,
    /// No answer for an hour.
    pub stalled: u8,
    /// A second late.
    pub slow: u8,
    /// The place is full.
    pub full: u8,
    /// Reads come back short.
    pub short: u8,
    /// Reads come back with a flipped bit.
    pub wrong: u8,
    /// Pages of a listing come back empty, as if nothing were there.
    pub lost_page: u8,
}

/// Makes a backend fail in ways that repeat with their seed; for tests.
pub struct Fault {
    plan: FaultPlan,
    random: Mutex<fastrand::Rng>,
}

impl Fault {
    /// Faults by `plan`, the same for the same seed and calls.
    #[must_use]
    pub fn new(plan: FaultPlan, seed: u64) -> Self {
        Self { plan, random: Mutex::new(fastrand::Rng::with_seed(seed)) }
    }

    fn happens(&self, percent: u8) -> bool {
        self.random.lock().u8(0..100) < percent
    }
}

fn fault(kind: ErrorKind) -> BackendError {
    BackendError::new(kind, "a planned fault")
}

#[async_trait]
impl Around for Fault {
    async fn around<T: Send + 'static>(
        &self,
        _: Operation,
        _: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        if self.happens(self.plan.refused) {
            return Err(fault(ErrorKind::Unavailable));
        }
        if self.happens(self.plan.full) {
            return Err(fault(ErrorKind::Full));
        }
        if self.happens(self.plan.stalled) {
            tokio::time::sleep(Duration::from_hours(1)).await;
        }
        if self.happens(self.plan.slow) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let result = attempt().await;
        if self.happens(self.plan.applied_then_failed) {
            return Err(fault(ErrorKind::Other));
        }
        result
    }

    fn received(&self, bytes: Bytes) -> Bytes {
        if self.happens(self.plan.short) && !bytes.is_empty() {
            return bytes.slice(..bytes.len() - 1);
        }
        if self.happens(self.plan.wrong) && !bytes.is_empty() {
            let mut wrong = bytes.to_vec();
            wrong[0] ^= 1;
            return Bytes::from(wrong);
        }
        bytes
    }

    fn listed(&self, page: ListPage) -> ListPage {
        if self.happens(self.plan.lost_page) {
            return ListPage { blocks: Vec::new(), next: page.next };
        }
        page
    }
}
