use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{Around, Attempt, Operation};
use crate::backends::{BackendError, ErrorKind};

/// At most so many calls at a time; the others wait their turn.
pub struct Limit {
    places: Semaphore,
}

impl Limit {
    /// `calls` at a time.
    #[must_use]
    pub fn new(calls: usize) -> Self {
        Self { places: Semaphore::new(calls) }
    }
}

#[async_trait]
impl Around for Limit {
    async fn around<T: Send + 'static>(
        &self,
        _: Operation,
        _: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        let _place = self
            .places
            .acquire()
            .await
            .map_err(|e| BackendError::new(ErrorKind::Unavailable, "the backend was closed").caused_by(e))?;
        attempt().await
    }
}
