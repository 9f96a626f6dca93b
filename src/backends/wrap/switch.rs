use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::{Around, Attempt, Operation};
use crate::backends::{BackendError, ErrorKind};

/// While its switch is on, nothing is written or deleted there; also calls of
/// batches that are under way are refused.
pub struct ReadOnly(Arc<AtomicBool>);

impl ReadOnly {
    /// The switch is whoever's wraps it.
    #[must_use]
    pub fn new(on: Arc<AtomicBool>) -> Self {
        Self(on)
    }
}

#[async_trait]
impl Around for ReadOnly {
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        _: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        if operation.writes() && self.is_closed() {
            let message = "it was set read-only; `cairn backend read-only ID --off` ends that";
            return Err(BackendError::new(ErrorKind::ReadOnly, message));
        }
        attempt().await
    }

    fn is_closed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::wrap::Wrapped;
    use crate::backends::{Backend, MemoryBackend};
    use crate::types::Block;

    #[tokio::test]
    async fn what_is_set_read_only_is_read_and_neither_written_nor_deleted() {
        let (switch, inner) = (Arc::new(AtomicBool::new(false)), Arc::new(MemoryBackend::new("m")));
        let place = Wrapped::new(inner, ReadOnly::new(Arc::clone(&switch)));
        let block = Block::raw("kept".into());
        place.put(&block).await.unwrap();
        switch.store(true, Ordering::Release);
        assert!(place.capabilities().read_only);
        place.probe().await.unwrap();
        assert_eq!(place.get(&block.cid, None).await.unwrap(), block.data);
        let other = Block::raw("other".into());
        let refused = [
            place.put(&other).await,
            place.put_many(std::slice::from_ref(&other)).await,
            place.delete(&block.cid).await,
            place.delete_many(std::slice::from_ref(&block.cid)).await,
            place.put_name("a", &block.cid).await,
            place.delete_name("a").await,
        ];
        for answer in refused {
            assert_eq!(answer.unwrap_err().kind, ErrorKind::ReadOnly);
        }
        switch.store(false, Ordering::Release);
        assert!(!place.capabilities().read_only);
        place.delete(&block.cid).await.unwrap();
    }
}
