//! An engine in memory that fails, or is behind, when it is told to.

use std::ops::ControlFlow;

use parking_lot::{Condvar, Mutex};

use super::super::{Commit, Engine, MemoryEngine, MetadataError, Reader, Transaction};

/// What fails next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fails {
    /// The commit after so many others.
    Commit(u32),
    Snapshot,
    /// Reading this key in a snapshot.
    Read(Vec<u8>),
}

#[derive(Default)]
struct Plan {
    fails: Option<Fails>,
    /// Until it is healed; else once.
    lasting: bool,
    behind: bool,
    waiting: u32,
}

#[derive(Default)]
pub(super) struct FailingEngine {
    below: MemoryEngine,
    plan: Mutex<Plan>,
    changed: Condvar,
}

impl FailingEngine {
    pub fn fail(&self, fails: Fails, lasting: bool) {
        let mut plan = self.plan.lock();
        (plan.fails, plan.lasting) = (Some(fails), lasting);
    }

    pub fn heal(&self) {
        self.plan.lock().fails = None;
    }

    /// Who asks for admission waits until this is taken back.
    pub fn behind(&self, behind: bool) {
        self.plan.lock().behind = behind;
        self.changed.notify_all();
    }

    pub fn wait_for_waiting(&self, count: u32) {
        let mut plan = self.plan.lock();
        self.changed.wait_while(&mut plan, |plan| plan.waiting < count);
    }

    fn check(&self, now: &Fails) -> Result<(), MetadataError> {
        let mut plan = self.plan.lock();
        if plan.fails.as_ref() != Some(now) {
            return Ok(());
        }
        if !plan.lasting {
            plan.fails = None;
        }
        Err(MetadataError::Storage("told to fail".into()))
    }

    fn check_commit(&self) -> Result<(), MetadataError> {
        if let Some(Fails::Commit(left @ 1..)) = &mut self.plan.lock().fails {
            *left -= 1;
            return Ok(());
        }
        self.check(&Fails::Commit(0))
    }
}

impl Engine for FailingEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        self.below.get(key)
    }

    fn snapshot(&self) -> Result<Box<dyn Reader + '_>, MetadataError> {
        self.check(&Fails::Snapshot)?;
        Ok(Box::new(FailingReader { engine: self, below: self.below.snapshot()? }))
    }

    fn begin(&self) -> Result<Box<dyn Transaction + '_>, MetadataError> {
        Ok(Box::new(FailingTransaction { engine: self, below: self.below.begin()? }))
    }

    fn persist(&self) -> Result<(), MetadataError> {
        self.below.persist()
    }

    fn admit(&self) -> Result<(), MetadataError> {
        let mut plan = self.plan.lock();
        plan.waiting += 1;
        self.changed.notify_all();
        self.changed.wait_while(&mut plan, |plan| plan.behind);
        plan.waiting -= 1;
        Ok(())
    }
}

struct FailingReader<'e> {
    engine: &'e FailingEngine,
    below: Box<dyn Reader + 'e>,
}

impl Reader for FailingReader<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        self.engine.check(&Fails::Read(key.to_vec()))?;
        self.below.get(key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        self.below.scan(start, end, visit)
    }
}

struct FailingTransaction<'e> {
    engine: &'e FailingEngine,
    below: Box<dyn Transaction + 'e>,
}

impl Reader for FailingTransaction<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        self.below.get(key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        self.below.scan(start, end, visit)
    }
}

impl Transaction for FailingTransaction<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.below.put(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.below.delete(key);
    }

    fn commit(self: Box<Self>) -> Result<Commit, MetadataError> {
        self.engine.check_commit()?;
        self.below.commit()
    }
}
