use std::ops::ControlFlow;
use std::path::Path;

use fjall::{
    KeyspaceCreateOptions, OptimisticTxDatabase, OptimisticTxKeyspace, OptimisticWriteTx,
    PersistMode, Readable,
};
use parking_lot::{Condvar, Mutex};

use super::{Commit, Engine, MetadataError, Reader, Transaction, keys};

/// Bytes of each keyspace's memtable before it is written out; two of them and
/// one being flushed bound what the engine holds besides its cache.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Journals beyond this are folded into tables, so that opening replays little.
const JOURNAL_BYTES: u64 = 128 << 20;

/// The default engine: an LSM tree (fjall) in the volume's `meta` folder.
///
/// Commits reach the operating system at once (they survive the death of the
/// process); [`Engine::persist`] makes them survive the machine's.
pub struct EmbeddedEngine {
    database: OptimisticTxDatabase,
    /// Everything but the block index.
    rows: OptimisticTxKeyspace,
    /// The block index: written in bulk, read by exact key.
    blocks: OptimisticTxKeyspace,
    flush: Mutex<Flush>,
    flushed: Condvar,
}

/// Group commit of [`Engine::persist`]: one caller flushes for all who came
/// before it began.
#[derive(Default)]
struct Flush {
    /// Flushes begun and ended.
    begun: u64,
    ended: u64,
    running: bool,
    failed: Option<String>,
}

fn storage(error: &fjall::Error) -> MetadataError {
    if let fjall::Error::Io(io) = error
        && io.kind() == std::io::ErrorKind::StorageFull
    {
        return MetadataError::NoSpace;
    }
    match error {
        fjall::Error::Locked => {
            MetadataError::Storage("the metadata is in use by another process".into())
        }
        other => MetadataError::Storage(other.to_string()),
    }
}

impl EmbeddedEngine {
    /// Opens or makes the engine in `dir`; `cache_bytes` bounds its block cache.
    ///
    /// # Errors
    /// `Storage` when the files are damaged or in use.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, MetadataError> {
        let database = OptimisticTxDatabase::builder(dir)
            .cache_size(cache_bytes)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(1)
            .max_cached_files(Some(128))
            .open()
            .map_err(|e| storage(&e))?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let rows = database.keyspace("rows", options).map_err(|e| storage(&e))?;
        let blocks = database.keyspace("blocks", options).map_err(|e| storage(&e))?;
        Ok(Self { database, rows, blocks, flush: Mutex::default(), flushed: Condvar::new() })
    }

    fn keyspace(&self, key: &[u8]) -> &OptimisticTxKeyspace {
        match key.first() {
            Some(&(keys::BLOCK | keys::PACK)) => &self.blocks,
            _ => &self.rows,
        }
    }
}

fn scan_in(
    reader: &impl Readable,
    keyspace: &OptimisticTxKeyspace,
    start: &[u8],
    end: &[u8],
    visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<(), MetadataError> {
    if start >= end {
        return Ok(());
    }
    for row in reader.range(keyspace, start..end) {
        let (key, value) = row.into_inner().map_err(|e| storage(&e))?;
        if visit(&key, &value).is_break() {
            break;
        }
    }
    Ok(())
}

impl Engine for EmbeddedEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        let value = self.keyspace(key).get(key).map_err(|e| storage(&e))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn snapshot(&self) -> Result<Box<dyn Reader + '_>, MetadataError> {
        Ok(Box::new(View { engine: self, snapshot: self.database.read_tx() }))
    }

    fn begin(&self) -> Result<Box<dyn Transaction + '_>, MetadataError> {
        let inner = self.database.write_tx().map_err(|e| storage(&e))?;
        Ok(Box::new(EmbeddedTransaction { engine: self, inner }))
    }

    fn persist(&self) -> Result<(), MetadataError> {
        let mut flush = self.flush.lock();
        // A flush that begins after this moment covers us.
        let mine = flush.begun + 1;
        loop {
            if let Some(reason) = &flush.failed {
                return Err(MetadataError::Storage(reason.clone()));
            }
            if flush.ended >= mine {
                return Ok(());
            }
            if flush.running {
                self.flushed.wait(&mut flush);
                continue;
            }
            flush.running = true;
            flush.begun += 1;
            let number = flush.begun;
            drop(flush);
            let result = self.database.persist(PersistMode::SyncData);
            flush = self.flush.lock();
            flush.running = false;
            match result {
                Ok(()) => flush.ended = number,
                // A failed sync tells once: what the kernel dropped is unknown.
                Err(error) => flush.failed = Some(format!("a sync failed: {error}")),
            }
            self.flushed.notify_all();
        }
    }
}

struct View<'e> {
    engine: &'e EmbeddedEngine,
    snapshot: fjall::Snapshot,
}

impl Reader for View<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        let value = self.snapshot.get(self.engine.keyspace(key), key).map_err(|e| storage(&e))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        scan_in(&self.snapshot, self.engine.keyspace(start), start, end, visit)
    }
}

struct EmbeddedTransaction<'e> {
    engine: &'e EmbeddedEngine,
    inner: OptimisticWriteTx,
}

impl Reader for EmbeddedTransaction<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        let value = self.inner.get(self.engine.keyspace(key), key).map_err(|e| storage(&e))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        scan_in(&self.inner, self.engine.keyspace(start), start, end, visit)
    }
}

impl Transaction for EmbeddedTransaction<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.inner.insert(self.engine.keyspace(key), key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.inner.remove(self.engine.keyspace(key), key);
    }

    fn commit(self: Box<Self>) -> Result<Commit, MetadataError> {
        match self.inner.commit().map_err(|e| storage(&e))? {
            Ok(()) => Ok(Commit::Done),
            Err(fjall::Conflict) => Ok(Commit::Conflict),
        }
    }
}
