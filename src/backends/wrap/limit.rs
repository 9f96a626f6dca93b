use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{Around, Attempt, Operation};
use crate::backends::{BackendError, ErrorKind};

/// At most so many calls at a time, requests a second and bytes a second; the
/// others wait their turn, in order.
pub struct Limit {
    places: Semaphore,
    requests: Option<Rate>,
    bytes: Option<Rate>,
}

impl Limit {
    /// `calls` at a time (at least one).
    #[must_use]
    pub fn new(calls: usize) -> Self {
        Self { places: Semaphore::new(calls.max(1)), requests: None, bytes: None }
    }

    /// At most so many requests a second.
    #[must_use]
    pub fn requests_per_second(mut self, requests: u32) -> Self {
        self.requests = Some(Rate::new(u64::from(requests)));
        self
    }

    /// At most so many bytes a second, both directions together.
    #[must_use]
    pub fn bytes_per_second(mut self, bytes: u64) -> Self {
        self.bytes = Some(Rate::new(bytes));
        self
    }
}

/// Something that may be used up at one speed. A use larger than what a second
/// allows goes at once, and what comes after it waits for longer.
pub(crate) struct Rate {
    per_second: u64,
    next: Mutex<Option<Instant>>,
}

/// A reservation that is given back unless its time came.
struct Reserved<'r> {
    rate: &'r Rate,
    takes: Duration,
    came: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.came {
            let mut next = self.rate.next.lock();
            *next = next.and_then(|next| next.checked_sub(self.takes));
        }
    }
}

impl Rate {
    pub(crate) fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1), next: Mutex::new(None) }
    }

    /// Waits until `amount` may be used. Who is cut off before that has used nothing.
    pub(crate) async fn turn(&self, amount: u64) {
        let mut reserved = Reserved { rate: self, takes: self.takes(amount), came: false };
        tokio::time::sleep_until(self.reserve(amount)).await;
        reserved.came = true;
    }

    fn takes(&self, amount: u64) -> Duration {
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(self.per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Reserves `amount`; the reservation may be used at the given time.
    fn reserve(&self, amount: u64) -> Instant {
        let (now, takes) = (Instant::now(), self.takes(amount));
        let mut next = self.next.lock();
        let start = next.map_or(now, |next| next.max(now));
        *next = Some(start.checked_add(takes).unwrap_or(start));
        start
    }
}

#[async_trait]
impl Around for Limit {
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        bytes: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        // Before the place: who waits for a rate holds up no others.
        if let Some(requests) = &self.requests {
            requests.turn(1).await;
        }
        if let Some(rate) = &self.bytes {
            // What a read brings is known, and charged, when it is here.
            let sends = if operation == Operation::Get { 0 } else { bytes };
            rate.turn(sends).await;
        }
        let _place = self.places.acquire().await.map_err(|error| {
            BackendError::new(ErrorKind::Unavailable, "the backend was closed").caused_by(error)
        })?;
        attempt().await
    }

    fn received(&self, bytes: Bytes) -> Bytes {
        if let Some(rate) = &self.bytes {
            rate.reserve(bytes.len() as u64);
        }
        bytes
    }
}
