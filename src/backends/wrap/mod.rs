//! Wrappers that implement the trait over another backend.
//!
//! Every method is forwarded once, in `Wrapped`; a wrapper is what it does
//! around a call. The usual order, outermost first: metered, retry, limit,
//! timeout.

mod fault;
mod limit;
mod metered;
mod retry;
mod spending;
mod switch;
mod timeout;

pub use self::fault::{Fault, FaultPlan};
pub use self::limit::Limit;
pub(crate) use self::limit::Rate;
pub use self::metered::{Metered, OperationStats};
pub use self::retry::Retry;
pub use self::spending::{Meter, Spending};
pub use self::switch::ReadOnly;
pub use self::timeout::Timeout;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use uuid::Uuid;

pub use super::Operation;
use super::{Backend, BackendError, Capabilities, ListPage, PlaceSettings, Presence, Usage};
use crate::types::{Block, Cid};

/// Makes one attempt of the call.
pub type Attempt<'a, T> = &'a (dyn Fn() -> BoxFuture<'a, Result<T, BackendError>> + Send + Sync);

/// What a wrapper does around each call. `bytes` is what a write sends, or what
/// a `get` brings at most.
#[async_trait]
pub trait Around: Send + Sync + 'static {
    /// Makes the call, once or more often, or not at all.
    async fn around<T: Send + 'static>(
        &self,
        operation: Operation,
        bytes: u64,
        attempt: Attempt<'_, T>,
    ) -> Result<T, BackendError>;

    /// Before a call that stores these blocks, or whose answer is relied on for their
    /// being there. What it refuses is not asked of the place.
    async fn before(&self, cids: &[Cid]) -> Result<(), BackendError> {
        let _ = cids;
        Ok(())
    }

    /// Sees the bytes that a `get` brought (and, for faults, changes them).
    fn received(&self, bytes: Bytes) -> Bytes {
        bytes
    }

    /// Sees a page of a listing (and, for faults, changes it).
    fn listed(&self, page: ListPage) -> ListPage {
        page
    }

    /// Lets nothing be written, not even by a probe.
    fn is_closed(&self) -> bool {
        false
    }
}

/// A backend with something around its calls.
pub struct Wrapped<A> {
    inner: Arc<dyn Backend>,
    around: A,
}

impl<A: Around> Wrapped<A> {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Backend>, around: A) -> Self {
        Self { inner, around }
    }

    /// What is done around the calls.
    pub fn around(&self) -> &A {
        &self.around
    }
}

#[async_trait]
impl<A: Around> Backend for Wrapped<A> {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    fn id(&self) -> Option<Uuid> {
        self.inner.id()
    }

    fn capabilities(&self) -> Capabilities {
        let inner = self.inner.capabilities();
        Capabilities { read_only: inner.read_only || self.around.is_closed(), ..inner }
    }

    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        let bytes = block.data.len() as u64;
        self.around.before(std::slice::from_ref(&block.cid)).await?;
        self.around.around(Operation::Put, bytes, &|| self.inner.put(block)).await
    }

    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        let bytes = blocks.iter().map(|block| block.data.len() as u64).sum();
        let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
        self.around.before(&cids).await?;
        self.around.around(Operation::PutMany, bytes, &|| self.inner.put_many(blocks)).await
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let most = range
            .as_ref()
            .map_or(Block::MAX_LEN as u64, |range| range.end.saturating_sub(range.start));
        let attempt = || self.inner.get(cid, range.clone());
        let got = self.around.around(Operation::Get, most, &attempt).await?;
        Ok(self.around.received(got))
    }

    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        self.around.before(cids).await?;
        self.around.around(Operation::Presence, 0, &|| self.inner.presence(cids)).await
    }

    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        self.around.around(Operation::Delete, 0, &|| self.inner.delete(cid)).await
    }

    async fn delete_many(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.around.around(Operation::DeleteMany, 0, &|| self.inner.delete_many(cids)).await
    }

    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        let attempt = || self.inner.list(from, limit);
        let page = self.around.around(Operation::List, 0, &attempt).await?;
        Ok(self.around.listed(page))
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        self.around.around(Operation::PutName, 0, &|| self.inner.put_name(name, cid)).await
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        self.around.around(Operation::Names, 0, &|| self.inner.names(prefix)).await
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        self.around.around(Operation::DeleteName, 0, &|| self.inner.delete_name(name)).await
    }

    async fn usage(&self) -> Result<Usage, BackendError> {
        self.around.around(Operation::Usage, 0, &|| self.inner.usage()).await
    }

    async fn probe(&self) -> Result<(), BackendError> {
        if self.around.is_closed() {
            return self.usage().await.map(drop);
        }
        self.around.around(Operation::Probe, 0, &|| self.inner.probe()).await
    }

    async fn compact(&self) -> Result<bool, BackendError> {
        self.around.around(Operation::Compact, 0, &|| self.inner.compact()).await
    }
}

/// The usual stack over a backend that was just opened. The deadline is inside
/// the limit, so that waiting for a turn is not taken for a slow backend. `bandwidth=`
/// holds for contents alone (`replication`): what says what the volume is goes at once.
pub fn standard(
    inner: Arc<dyn Backend>,
    call_deadline: std::time::Duration,
    settings: &PlaceSettings,
) -> Arc<dyn Backend> {
    let parallel = inner.capabilities().parallel_puts.max(1) * 2;
    let kind = inner.kind();
    let timed = Arc::new(Wrapped::new(inner, Timeout::new(call_deadline)));
    let mut limit = Limit::new(parallel);
    if let Some(requests) = settings.requests {
        limit = limit.requests_per_second(requests);
    }
    let limited = Arc::new(Wrapped::new(timed, limit));
    let retried = Arc::new(Wrapped::new(limited, Retry::default()));
    Arc::new(Wrapped::new(retried, Metered::new(kind)))
}
