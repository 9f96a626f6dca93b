use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Around, Attempt, Operation};
use crate::backends::BackendError;
use crate::types::Cid;

/// What a place may ask money for, since it was last taken.
#[derive(Debug, Default)]
pub struct Meter {
    requests: AtomicU64,
    bytes_out: AtomicU64,
}

impl Meter {
    /// Requests and bytes that were read, and begins anew.
    #[must_use]
    pub fn take(&self) -> (u64, u64) {
        (self.requests.swap(0, Ordering::Relaxed), self.bytes_out.swap(0, Ordering::Relaxed))
    }
}

/// Counts requests (one for each block that is stored or asked for, one for any other
/// call) and bytes that are read. What a retry repeats below is not counted again.
pub struct Spending(Arc<Meter>);

impl Spending {
    /// The meter is whoever's wraps it.
    #[must_use]
    pub fn new(meter: Arc<Meter>) -> Self {
        Self(meter)
    }
}

#[async_trait]
impl Around for Spending {
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        _: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError> {
        // Of these `before` counts the blocks.
        if !matches!(operation, Operation::Put | Operation::PutMany | Operation::Presence) {
            self.0.requests.fetch_add(1, Ordering::Relaxed);
        }
        attempt().await
    }

    async fn before(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.0.requests.fetch_add(cids.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn received(&self, bytes: Bytes) -> Bytes {
        self.0.bytes_out.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::wrap::Wrapped;
    use crate::backends::{Backend, MemoryBackend};
    use crate::types::Block;

    #[tokio::test]
    async fn requests_are_counted_by_block_and_bytes_as_they_are_read() {
        let (meter, inner) = (Arc::new(Meter::default()), Arc::new(MemoryBackend::new("m")));
        let place = Wrapped::new(inner, Spending::new(Arc::clone(&meter)));
        let blocks = [Block::raw("one".into()), Block::raw("three".into())];
        place.put_many(&blocks).await.unwrap();
        assert_eq!(meter.take(), (2, 0));
        place.presence(&[blocks[0].cid, blocks[1].cid]).await.unwrap();
        place.get(&blocks[1].cid, None).await.unwrap();
        place.get(&blocks[0].cid, Some(1..3)).await.unwrap();
        assert_eq!(meter.take(), (4, 7));
        assert!(place.get(&Block::raw("none".into()).cid, None).await.is_err());
        place.names("").await.unwrap();
        place.delete(&blocks[0].cid).await.unwrap();
        assert_eq!((meter.take(), meter.take()), ((3, 0), (0, 0)));
    }
}
