use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Backend, BackendError, Capabilities, ErrorKind, Layout, ListPage, Operation, Presence, Usage,
    check,
};
use crate::types::{Block, Cid};

/// Blocks in memory, for tests: its place can be made slow, full, read-only,
/// unreachable, forgetful and corrupt.
#[derive(Debug)]
pub struct MemoryBackend {
    name: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By CID text, which is also the cursor of a listing.
    blocks: BTreeMap<String, (Cid, Bytes)>,
    names: BTreeMap<String, Cid>,
    /// In the order in which they were first stored.
    order: Vec<Cid>,
    capacity: Option<u64>,
    /// Bytes of what else lies there, which count as used.
    packed: u64,
    read_only: bool,
    durable: bool,
    domain: Option<String>,
    delay: Option<Duration>,
    /// Kind, and how many more times (`None`: until [`MemoryBackend::heal`]).
    faults: HashMap<Operation, (ErrorKind, Option<u64>)>,
    calls: HashMap<Operation, u64>,
}

impl State {
    fn used(&self) -> u64 {
        self.packed + self.blocks.values().map(|(_, data)| data.len() as u64).sum::<u64>()
    }
}

impl MemoryBackend {
    /// An empty place; its failure domain is `memory:NAME`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), state: Mutex::new(State::default()) }
    }

    /// Makes every operation fail with this kind, or (`None`) none.
    pub fn fail_with(&self, kind: Option<ErrorKind>) {
        match kind {
            Some(kind) => self.fail_all(kind),
            None => self.state.lock().faults.clear(),
        }
    }

    /// Makes every `operation` fail until [`Self::heal`].
    pub fn fail(&self, operation: Operation, kind: ErrorKind) {
        self.state.lock().faults.insert(operation, (kind, None));
    }

    /// Makes the next `times` calls of `operation` fail.
    pub fn fail_times(&self, operation: Operation, kind: ErrorKind, times: u64) {
        self.state.lock().faults.insert(operation, (kind, Some(times)));
    }

    /// Makes every operation fail until [`Self::heal`].
    pub fn fail_all(&self, kind: ErrorKind) {
        for operation in Operation::ALL {
            self.fail(operation, kind);
        }
    }

    /// Ends all faults, delays and limits. Lost and corrupt blocks stay so.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.faults.clear();
        state.delay = None;
        state.capacity = None;
        state.read_only = false;
    }

    /// Makes every call take at least this long (tokio's clock).
    pub fn set_delay(&self, delay: Option<Duration>) {
        self.state.lock().delay = delay;
    }

    /// So many bytes lie there beside the blocks.
    #[cfg(test)]
    pub(super) fn hold(&self, bytes: u64) {
        self.state.lock().packed = bytes;
    }

    /// The room that is left, or `None` without a capacity.
    #[cfg(test)]
    pub(super) fn room(&self) -> Option<u64> {
        let state = self.state.lock();
        state.capacity.map(|capacity| capacity.saturating_sub(state.used()))
    }

    /// Makes the place full beyond so many bytes.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Refuses writes.
    pub fn set_read_only(&self, read_only: bool) {
        self.state.lock().read_only = read_only;
    }

    /// Says that it survives: tests of replication take it for a disk.
    pub fn set_durable(&self, durable: bool) {
        self.state.lock().durable = durable;
    }

    /// Declares another failure domain.
    pub fn set_domain(&self, domain: impl Into<String>) {
        self.state.lock().domain = Some(domain.into());
    }

    /// Flips a bit of a stored block, or appends a byte to an empty one.
    /// False when it is not there.
    pub fn corrupt(&self, cid: &Cid) -> bool {
        let mut state = self.state.lock();
        let Some((_, data)) = state.blocks.get_mut(&cid.to_string()) else { return false };
        let mut bytes = data.to_vec();
        match bytes.first_mut() {
            Some(first) => *first ^= 1,
            None => bytes.push(0),
        }
        *data = bytes.into();
        true
    }

    /// Cuts a stored block to `len` bytes. False when it is not there.
    pub fn truncate(&self, cid: &Cid, len: usize) -> bool {
        let mut state = self.state.lock();
        let Some((_, data)) = state.blocks.get_mut(&cid.to_string()) else { return false };
        data.truncate(len);
        true
    }

    /// Forgets a block, as a disk that lost a file does. False when it was not there.
    pub fn lose(&self, cid: &Cid) -> bool {
        self.state.lock().blocks.remove(&cid.to_string()).is_some()
    }

    /// Forgets everything: a replaced disk.
    pub fn lose_all(&self) {
        let mut state = self.state.lock();
        state.blocks.clear();
        state.names.clear();
    }

    /// CIDs in the order in which they were first stored, lost ones included.
    pub fn stored(&self) -> Vec<Cid> {
        self.state.lock().order.clone()
    }

    /// Whether the block is stored, whatever faults are set.
    pub fn contains(&self, cid: &Cid) -> bool {
        self.state.lock().blocks.contains_key(&cid.to_string())
    }

    /// Stored blocks.
    pub fn len(&self) -> usize {
        self.state.lock().blocks.len()
    }

    /// Whether no block is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often `operation` was called, failures included.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.state.lock().calls.get(&operation).copied().unwrap_or(0)
    }

    /// Counts the call, waits the delay and fails if told to.
    async fn enter(&self, operation: Operation) -> Result<(), BackendError> {
        let delay = {
            let mut state = self.state.lock();
            *state.calls.entry(operation).or_insert(0) += 1;
            state.delay
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let mut state = self.state.lock();
        if let Some((kind, times)) = state.faults.get_mut(&operation) {
            let kind = *kind;
            match times {
                Some(0) => {}
                Some(left) => {
                    *left -= 1;
                    return Err(self.injected(operation, kind));
                }
                None => return Err(self.injected(operation, kind)),
            }
        }
        if state.read_only && operation.writes() {
            return Err(BackendError::new(
                ErrorKind::ReadOnly,
                format!("memory:{} is read-only", self.name),
            ));
        }
        Ok(())
    }

    fn injected(&self, operation: Operation, kind: ErrorKind) -> BackendError {
        let message = format!("memory:{} was told to fail {}", self.name, operation.as_str());
        BackendError::new(kind, message)
    }

    fn store(&self, block: &Block) -> Result<(), BackendError> {
        check::block(block)?;
        let mut state = self.state.lock();
        let key = block.cid.to_string();
        if state.blocks.get(&key).is_some_and(|(_, data)| data.len() == block.data.len()) {
            return Ok(());
        }
        let len = block.data.len() as u64;
        if state.capacity.is_some_and(|capacity| state.used() + len > capacity) {
            return Err(BackendError::new(
                ErrorKind::Full,
                format!("memory:{} is full", self.name),
            ));
        }
        if state.blocks.insert(key, (block.cid, block.data.clone())).is_none() {
            state.order.push(block.cid);
        }
        Ok(())
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn location(&self) -> String {
        format!("memory:{}", self.name)
    }

    fn capabilities(&self) -> Capabilities {
        let state = self.state.lock();
        Capabilities {
            layout: Layout::Blocks,
            range_reads: true,
            list: true,
            delete: true,
            verifies: false,
            durable: state.durable,
            read_only: state.read_only,
            failure_domain: state.domain.clone().unwrap_or_else(|| format!("memory:{}", self.name)),
            parallel_puts: 8,
        }
    }

    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        self.enter(Operation::Put).await?;
        self.store(block)
    }

    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        self.enter(Operation::PutMany).await?;
        blocks.iter().try_for_each(|block| self.store(block))
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        self.enter(Operation::Get).await?;
        let state = self.state.lock();
        let Some((_, data)) = state.blocks.get(&cid.to_string()) else {
            return Err(BackendError::new(
                ErrorKind::NotFound,
                format!("memory:{} has no block {cid}", self.name),
            ));
        };
        let range = check::range(cid, range, data.len() as u64)?;
        Ok(data.slice(range.start as usize..range.end as usize))
    }

    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        self.enter(Operation::Presence).await?;
        let state = self.state.lock();
        let find = |cid: &Cid| match state.blocks.get(&cid.to_string()) {
            Some((_, data)) => Presence::Present(data.len() as u64),
            None => Presence::Absent,
        };
        Ok(cids.iter().map(find).collect())
    }

    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        self.enter(Operation::Delete).await?;
        self.state.lock().blocks.remove(&cid.to_string());
        Ok(())
    }

    async fn delete_many(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.enter(Operation::DeleteMany).await?;
        let mut state = self.state.lock();
        for cid in cids {
            state.blocks.remove(&cid.to_string());
        }
        Ok(())
    }

    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        self.enter(Operation::List).await?;
        let state = self.state.lock();
        let start = from.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = state.blocks.range::<str, _>((start, Bound::Unbounded));
        let page: Vec<_> = rest.by_ref().take(limit.max(1)).collect();
        let next = match (rest.next(), page.last()) {
            (Some(_), Some((last, _))) => Some((*last).clone()),
            _ => None,
        };
        let blocks = page.iter().map(|(_, (cid, data))| (*cid, data.len() as u64)).collect();
        Ok(ListPage { blocks, next })
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        self.enter(Operation::PutName).await?;
        check::name(name)?;
        self.state.lock().names.insert(name.to_owned(), *cid);
        Ok(())
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        self.enter(Operation::Names).await?;
        let state = self.state.lock();
        let from_prefix = (Bound::Included(prefix), Bound::Unbounded);
        let found = state.names.range::<str, _>(from_prefix);
        Ok(found
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(name, cid)| (name.clone(), *cid))
            .collect())
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        self.enter(Operation::DeleteName).await?;
        check::name(name)?;
        self.state.lock().names.remove(name);
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, BackendError> {
        self.enter(Operation::Usage).await?;
        let state = self.state.lock();
        let used = state.used();
        Ok(Usage {
            used_bytes: Some(used),
            capacity_bytes: state.capacity,
            available_bytes: state.capacity.map(|capacity| capacity.saturating_sub(used)),
        })
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.enter(Operation::Probe).await
    }
}
