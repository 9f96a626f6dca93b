//! An engine in memory whose commits are a log: a power cut leaves any
//! beginning of it that has all that was persisted.

use std::ops::ControlFlow;
use std::path::Path;

use parking_lot::Mutex;

use crate::metadata::{Commit, Engine, MemoryEngine, MetadataError, Reader, Transaction};
use crate::store::sim::SimDisk;

type Writes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

#[derive(Default, Clone)]
struct Log {
    commits: Vec<Writes>,
    persisted: usize,
}

pub struct LogEngine {
    inner: MemoryEngine,
    log: Mutex<Log>,
    disk: SimDisk,
}

fn off() -> MetadataError {
    MetadataError::Storage("the power is off".into())
}

impl LogEngine {
    pub fn new(disk: SimDisk) -> Self {
        Self { inner: MemoryEngine::default(), log: Mutex::default(), disk }
    }

    /// What the machine finds when the power is back.
    pub fn after_cut(&self, random: &mut fastrand::Rng) -> Self {
        let log = self.log.lock();
        let (least, most) = (log.persisted, log.commits.len());
        let kept = match random.u8(0..4) {
            0 => least,
            1 => most,
            _ => random.usize(least..=most),
        };
        self.replay(&log.commits[..kept])
    }

    /// What the next process finds when this one was killed.
    pub fn after_kill(&self) -> Self {
        let log = self.log.lock();
        let next = self.replay(&log.commits);
        next.log.lock().persisted = log.persisted;
        next
    }

    fn replay(&self, commits: &[Writes]) -> Self {
        let next = Self::new(self.disk.clone());
        let mut tx = next.inner.begin().unwrap();
        for (key, value) in commits.iter().flatten() {
            match value {
                Some(value) => tx.put(key, value),
                None => tx.delete(key),
            }
        }
        assert_eq!(tx.commit().unwrap(), Commit::Done);
        *next.log.lock() = Log { commits: commits.to_vec(), persisted: commits.len() };
        next
    }
}

impl Engine for LogEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        self.inner.get(key)
    }

    fn snapshot(&self) -> Result<Box<dyn Reader + '_>, MetadataError> {
        self.inner.snapshot()
    }

    fn begin(&self) -> Result<Box<dyn Transaction + '_>, MetadataError> {
        Ok(Box::new(Logged { engine: self, inner: self.inner.begin()?, writes: Vec::new() }))
    }

    fn persist(&self) -> Result<(), MetadataError> {
        let commits = self.log.lock().commits.len();
        // One of the syncs at which the power may go.
        self.disk.sync(Path::new("/volume/meta")).map_err(|_| off())?;
        let mut log = self.log.lock();
        log.persisted = log.persisted.max(commits);
        Ok(())
    }
}

struct Logged<'e> {
    engine: &'e LogEngine,
    inner: Box<dyn Transaction + 'e>,
    writes: Writes,
}

impl Reader for Logged<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        self.inner.get(key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        self.inner.scan(start, end, visit)
    }
}

impl Transaction for Logged<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.writes.push((key.to_vec(), Some(value.to_vec())));
        self.inner.put(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.writes.push((key.to_vec(), None));
        self.inner.delete(key);
    }

    fn commit(self: Box<Self>) -> Result<Commit, MetadataError> {
        // The log has the order in which commits became visible.
        let mut log = self.engine.log.lock();
        if self.engine.disk.is_off() {
            return Err(off());
        }
        let done = self.inner.commit()?;
        if done == Commit::Done && !self.writes.is_empty() {
            log.commits.push(self.writes);
        }
        Ok(done)
    }
}
