//! Blocks in memory, for tests; it can be told to fail.

use std::collections::BTreeMap;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Backend, BackendError, Capabilities, ErrorKind, Layout, ListPage, Presence, Usage};
use crate::types::{Block, Cid};

/// A backend in memory.
#[derive(Default)]
pub struct MemoryBackend {
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<Vec<u8>, (Cid, Bytes)>,
    names: BTreeMap<String, Cid>,
    order: Vec<Cid>,
    failing: Option<ErrorKind>,
}

impl MemoryBackend {
    /// An empty place in a failure domain of its own.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), state: Mutex::default() }
    }

    /// Every call fails with this kind until told otherwise.
    pub fn fail_with(&self, kind: Option<ErrorKind>) {
        self.state.lock().failing = kind;
    }

    /// Changes a byte of a stored block.
    pub fn corrupt(&self, cid: &Cid) {
        if let Some((_, data)) = self.state.lock().blocks.get_mut(&cid.to_bytes()) {
            let mut bytes = data.to_vec();
            match bytes.first_mut() {
                Some(byte) => *byte ^= 1,
                None => bytes.push(1),
            }
            *data = Bytes::from(bytes);
        }
    }

    /// Drops a stored block.
    pub fn lose(&self, cid: &Cid) {
        self.state.lock().blocks.remove(&cid.to_bytes());
    }

    /// CIDs in the order in which they were first stored.
    pub fn stored(&self) -> Vec<Cid> {
        self.state.lock().order.clone()
    }

    fn state(&self) -> Result<parking_lot::MutexGuard<'_, State>, BackendError> {
        let state = self.state.lock();
        match state.failing {
            Some(kind) => Err(BackendError::new(kind, format!("memory:{} was told to fail", self.name))),
            None => Ok(state),
        }
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
        Capabilities {
            layout: Layout::Blocks,
            range_reads: true,
            list: true,
            delete: true,
            verifies: false,
            durable: false,
            read_only: false,
            failure_domain: format!("memory:{}", self.name),
            parallel_puts: 8,
        }
    }

    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        let mut state = self.state()?;
        if state.blocks.insert(block.cid.to_bytes(), (block.cid, block.data.clone())).is_none() {
            state.order.push(block.cid);
        }
        Ok(())
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let state = self.state()?;
        let missing = || BackendError::new(ErrorKind::NotFound, format!("{cid} is not in memory:{}", self.name));
        let (_, data) = state.blocks.get(&cid.to_bytes()).ok_or_else(missing)?;
        let range = range.unwrap_or(0..data.len() as u64);
        if range.start > range.end || range.end > data.len() as u64 {
            return Err(BackendError::new(ErrorKind::Invalid, format!("range {range:?} of {cid}")));
        }
        Ok(data.slice(range.start as usize..range.end as usize))
    }

    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        let state = self.state()?;
        let look = |cid: &Cid| match state.blocks.get(&cid.to_bytes()) {
            Some((_, data)) => Presence::Present(data.len() as u64),
            None => Presence::Absent,
        };
        Ok(cids.iter().map(look).collect())
    }

    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        self.state()?.blocks.remove(&cid.to_bytes());
        Ok(())
    }

    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        let state = self.state()?;
        let after = from.and_then(|text| text.parse::<Cid>().ok()).map(|cid| cid.to_bytes());
        let mut rows = state.blocks.iter().filter(|(key, _)| after.as_ref().is_none_or(|seen| *key > seen));
        let blocks: Vec<(Cid, u64)> =
            rows.by_ref().take(limit).map(|(_, (cid, data))| (*cid, data.len() as u64)).collect();
        let next = rows.next().and_then(|_| blocks.last()).map(|(cid, _)| cid.to_string());
        Ok(ListPage { blocks, next })
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        self.state()?.names.insert(super::dir::checked(name)?.to_owned(), *cid);
        Ok(())
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        let state = self.state()?;
        Ok(state.names.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(n, c)| (n.clone(), *c)).collect())
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        self.state()?.names.remove(name);
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, BackendError> {
        let used = self.state()?.blocks.values().map(|(_, data)| data.len() as u64).sum();
        Ok(Usage { used_bytes: Some(used), ..Usage::default() })
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.state().map(drop)
    }
}
