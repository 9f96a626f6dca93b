use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fjall::{
    AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot,
};
use parking_lot::{Condvar, Mutex};

use crate::runtime::{Room, descriptor_share, failpoint};
use crate::telemetry::metrics;

use super::conflicts::{Conflicts, Reads, Running};
use super::journal::{self, PERSIST_KEY, Tail};
use super::{Commit, Engine, MetadataError, Reader, Transaction, keys};

/// Bytes of each keyspace's memtable before it is written out, unless said.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// And at least: smaller ones make more tables than compaction likes.
const LEAST_MEMTABLE_BYTES: u64 = 1 << 20;
/// And at most: well below fjall's own limit, see [`EmbeddedEngine::rotate`].
const MOST_MEMTABLE_BYTES: u64 = 12 << 20;
/// Fjall's own limit; it is kept with a keyspace since its creation.
const FJALL_MEMTABLE_BYTES: u64 = 16 << 20;
/// Memtables of a keyspace that wait to be written before writers wait. At four
/// fjall lets a commit wait, and with it everybody who needs its lock.
const MOST_SEALED: usize = 3;
/// How often a writer that waits looks, and asks whether the worker has failed.
const SEALED_LOOK: Duration = Duration::from_millis(2);
const FAILED_LOOK: u32 = 500;
/// Table files that are kept open, where the limit of descriptors allows so many.
const CACHED_FILES: usize = 128;
/// Journals beyond this are folded into tables, so that opening replays little.
const JOURNAL_BYTES: u64 = 128 << 20;
/// Below this much free space nothing is added. A journal that a full disk cut
/// takes no more commits until the volume is opened again (what was committed
/// is safe): better to refuse while there is room.
const RESERVE_BYTES: u64 = 64 << 20;
/// Below this nothing is removed either: removing writes, too.
const LAST_BYTES: u64 = 16 << 20;
/// Commits between two looks at the free space.
const SPACE_EVERY: u64 = 32;

/// The default engine: an LSM tree (fjall) in the volume's `meta` folder.
///
/// Commits reach the operating system at once (they survive the death of the
/// process); [`Engine::persist`] makes them survive the machine's.
pub struct EmbeddedEngine {
    database: Database,
    /// Everything but the block index.
    rows: Keyspace,
    /// The block index: written in bulk, read by exact key.
    blocks: Keyspace,
    memtable_bytes: u64,
    conflicts: Conflicts,
    flush: Mutex<Flush>,
    flushed: Condvar,
    space: Space,
}

/// Free bytes of the disk, looked at now and then.
struct Space {
    probe: Box<dyn Fn() -> std::io::Result<u64> + Send + Sync>,
    commits: AtomicU64,
    free: AtomicU64,
}

impl Space {
    fn new(probe: impl Fn() -> std::io::Result<u64> + Send + Sync + 'static) -> Self {
        Self { probe: Box::new(probe), commits: AtomicU64::new(0), free: AtomicU64::new(u64::MAX) }
    }

    /// Whether a commit has room: one that removes something may go further.
    fn admit(&self, removes: bool) -> Result<(), MetadataError> {
        let known = self.free.load(Ordering::Relaxed);
        let due = self.commits.fetch_add(1, Ordering::Relaxed).is_multiple_of(SPACE_EVERY);
        let free = if due || known < RESERVE_BYTES {
            // A disk that does not tell is not full: the journal will say.
            let free = (self.probe)().unwrap_or(u64::MAX);
            self.free.store(free, Ordering::Relaxed);
            free
        } else {
            known
        };
        let wanted = if removes { LAST_BYTES } else { RESERVE_BYTES };
        if free < wanted { Err(MetadataError::NoSpace) } else { Ok(()) }
    }
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
    /// The newest mark in the journal.
    mark: u64,
}

fn storage(error: &fjall::Error) -> MetadataError {
    if let fjall::Error::Io(io) = error
        && io.kind() == std::io::ErrorKind::StorageFull
    {
        return MetadataError::NoSpace;
    }
    let text = match error {
        fjall::Error::Locked => "the metadata is in use by another process".into(),
        fjall::Error::Poisoned => {
            "a write or sync failed earlier, nothing more is accepted: see the log, free the disk or \
             mend it, then unmount and mount again"
                .into()
        }
        fjall::Error::InvalidVersion(found) => {
            format!("its files have another format ({found:?}) than this cairn's: use a newer cairn")
        }
        fjall::Error::JournalRecovery(reason) => format!(
            "its journal is damaged ({reason}): `cairn recover` brings the volume back from a backend"
        ),
        other => other.to_string(),
    };
    MetadataError::Storage(text)
}

/// An error while opening: damage, unless somebody else is to blame.
fn opening(error: &fjall::Error) -> MetadataError {
    use std::io::ErrorKind as Kind;
    match error {
        fjall::Error::Locked | fjall::Error::Poisoned | fjall::Error::InvalidVersion(Some(_)) => {
            storage(error)
        }
        fjall::Error::Io(io)
            if !matches!(
                io.kind(),
                Kind::NotFound | Kind::AlreadyExists | Kind::UnexpectedEof | Kind::InvalidData
            ) =>
        {
            storage(error)
        }
        other => MetadataError::Unopenable(other.to_string()),
    }
}

impl EmbeddedEngine {
    /// Opens or makes the engine in `dir`; `cache_bytes` bounds its block cache.
    ///
    /// # Errors
    /// `Unopenable` when the files are damaged; `Storage` when they are in use or
    /// of a newer format.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, MetadataError> {
        Self::open_sized(dir, cache_bytes, MEMTABLE_BYTES)
    }

    /// The same with a bound for each of the two memtables that are filled, within
    /// limits of its own; up to four of each wait to be written, then writers do.
    ///
    /// # Errors
    /// As [`EmbeddedEngine::open`].
    pub fn open_sized(
        dir: &Path,
        cache_bytes: u64,
        memtable_bytes: u64,
    ) -> Result<Self, MetadataError> {
        let place = dir.to_path_buf();
        let space = Space::new(move || Ok(Room::at(&place)?.available));
        Self::open_with(dir, cache_bytes, memtable_bytes, space)
    }

    fn open_with(
        dir: &Path,
        cache_bytes: u64,
        memtable_bytes: u64,
        space: Space,
    ) -> Result<Self, MetadataError> {
        match journal::trim(dir) {
            Ok(None) => {}
            Ok(Some(Tail::Torn { bytes, kept })) => tracing::warn!(
                bytes, kept = %kept.display(),
                "the machine stopped amid a write: what was not synced is set aside"
            ),
            Ok(Some(Tail::Damaged { path, at, bytes })) => {
                return Err(MetadataError::Unopenable(format!(
                    "{} is damaged at byte {at}: the {bytes} bytes from there on were durable once, and are not what was written",
                    path.display()
                )));
            }
            Err(error) => {
                return Err(MetadataError::Storage(format!(
                    "the journal in {} cannot be checked: {error}",
                    dir.display()
                )));
            }
        }
        let database = Database::builder(dir)
            .cache_size(cache_bytes)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(1)
            .max_cached_files(Some(descriptor_share(8, CACHED_FILES)))
            .open()
            .map_err(|e| opening(&e))?;
        let memtable_bytes = memtable_bytes.clamp(LEAST_MEMTABLE_BYTES, MOST_MEMTABLE_BYTES);
        let options = || KeyspaceCreateOptions::default().max_memtable_size(FJALL_MEMTABLE_BYTES);
        let rows = database.keyspace("rows", options).map_err(|e| opening(&e))?;
        let blocks = database.keyspace("blocks", options).map_err(|e| opening(&e))?;
        let mark = rows.get(PERSIST_KEY).map_err(|e| opening(&e))?;
        let mark = mark.and_then(|bytes| Some(u64::from_be_bytes(bytes.as_ref().try_into().ok()?)));
        let flush = Mutex::new(Flush { mark: mark.unwrap_or(0), ..Flush::default() });
        let (conflicts, flushed) = (Conflicts::default(), Condvar::new());
        Ok(Self { database, rows, blocks, memtable_bytes, conflicts, flush, flushed, space })
    }

    fn keyspace(&self, key: &[u8]) -> &Keyspace {
        match key.first() {
            Some(&(keys::BLOCK | keys::PACK)) => &self.blocks,
            _ => &self.rows,
        }
    }

    /// Gives memtables that are full to the worker, in a commit. Left to itself
    /// fjall asks its worker with each commit, through a queue of a thousand that
    /// the worker writes to as well: a busy moment fills it, the worker waits for
    /// itself for ever, and memtables and journals grow (fjall#323).
    fn rotate(&self) {
        for keyspace in [&self.rows, &self.blocks] {
            if keyspace.tree.active_memtable().size() >= self.memtable_bytes
                && let Err(error) = keyspace.rotate_memtable()
            {
                tracing::warn!(error = %storage(&error), "a memtable of the metadata stays in memory");
            }
        }
    }
}

fn scan_in(
    reader: &impl Readable,
    keyspace: &Keyspace,
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
    fn write_buffer_bytes(&self) -> u64 {
        self.database.write_buffer_size()
    }

    #[expect(clippy::disallowed_methods, reason = "fjall tells nobody that a table is written")]
    fn admit(&self) -> Result<(), MetadataError> {
        let behind = |keyspace: &Keyspace| keyspace.tree.sealed_memtable_count() >= MOST_SEALED;
        let mut looks = 0u32;
        while behind(&self.rows) || behind(&self.blocks) {
            std::thread::sleep(SEALED_LOOK);
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(FAILED_LOOK) {
                // It fails when the worker has.
                self.database.persist(PersistMode::Buffer).map_err(|e| storage(&e))?;
            }
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        let value = self.keyspace(key).get(key).map_err(|e| storage(&e))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn snapshot(&self) -> Result<Box<dyn Reader + '_>, MetadataError> {
        let snapshot = self.conflicts.between_commits(|| self.database.snapshot());
        Ok(Box::new(View { engine: self, snapshot }))
    }

    fn begin(&self) -> Result<Box<dyn Transaction + '_>, MetadataError> {
        let (running, snapshot) = self.conflicts.begin(|| self.database.snapshot());
        let view = View { engine: self, snapshot };
        let (writes, reads) = (BTreeMap::new(), Mutex::default());
        Ok(Box::new(EmbeddedTransaction { running, view, writes, reads }))
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
            // A full disk must not cut the journal for the sake of a mark.
            let mark = self.space.admit(true).is_ok().then_some(flush.mark + 1);
            flush.mark = mark.unwrap_or(flush.mark);
            let number = flush.begun;
            drop(flush);
            failpoint::reach("metadata.persist.begun");
            // The flush before this one has ended: see the journal.
            let marked = match mark {
                Some(mark) => self.rows.insert(PERSIST_KEY, mark.to_be_bytes()),
                None => Ok(()),
            };
            let result = marked.and_then(|()| self.database.persist(PersistMode::SyncData));
            failpoint::reach("metadata.persist.ended");
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
    snapshot: Snapshot,
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

/// Sees the moment of its beginning and its own writes.
struct EmbeddedTransaction<'e> {
    running: Running<'e>,
    view: View<'e>,
    /// `None` removes.
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    reads: Mutex<Reads>,
}

impl Reader for EmbeddedTransaction<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        if let Some(written) = self.writes.get(key) {
            return Ok(written.clone());
        }
        self.reads.lock().keys.push(key.to_vec());
        self.view.get(key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        if start >= end {
            return Ok(());
        }
        self.reads.lock().ranges.push((start.to_vec(), end.to_vec()));
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let mut own = self.writes.range::<[u8], _>(bounds).peekable();
        let mut ended = false;
        self.view.scan(start, end, &mut |key, value| {
            while let Some((mine, value)) = own.next_if(|(mine, _)| mine.as_slice() < key) {
                if let Some(value) = value
                    && visit(mine, value).is_break()
                {
                    ended = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match own.next_if(|(mine, _)| mine.as_slice() == key) {
                Some((_, Some(value))) => visit(key, value),
                Some((_, None)) => ControlFlow::Continue(()),
                None => visit(key, value),
            };
            ended = flow.is_break();
            flow
        })?;
        for (mine, value) in own {
            if let Some(value) = value.as_ref().filter(|_| !ended) {
                ended = visit(mine, value).is_break();
            }
        }
        Ok(())
    }
}

impl Transaction for EmbeddedTransaction<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.writes.insert(key.to_vec(), Some(value.to_vec()));
    }

    fn delete(&mut self, key: &[u8]) {
        self.writes.insert(key.to_vec(), None);
    }

    fn commit(self: Box<Self>) -> Result<Commit, MetadataError> {
        let Self { running, view, writes, reads } = *self;
        let engine = view.engine;
        // It would hold back what may be forgotten.
        drop(view);
        if writes.is_empty() {
            return Ok(Commit::Done);
        }
        engine.space.admit(writes.values().any(Option::is_none))?;
        let mut reads = reads.into_inner();
        reads.sort();
        let keys = writes.keys().cloned().collect();
        let mut batch = engine.database.batch();
        for (key, value) in writes {
            let keyspace = engine.keyspace(&key);
            match value {
                Some(value) => batch.insert(keyspace, key, value),
                None => batch.remove(keyspace, key),
            }
        }
        let done = running.commit(&reads, keys, || {
            batch.commit()?;
            engine.rotate();
            Ok::<(), fjall::Error>(())
        });
        if done.map_err(|e| storage(&e))?.is_none() {
            metrics().metadata_conflicts.inc();
            return Ok(Commit::Conflict);
        }
        Ok(Commit::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn put(engine: &EmbeddedEngine, key: &[u8]) -> Result<Commit, MetadataError> {
        let mut tx = engine.begin()?;
        tx.put(key, b"value");
        tx.commit()
    }

    #[test]
    fn a_full_disk_refuses_what_adds_lets_remove_and_recovers_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(u64::MAX));
        let probe = Arc::clone(&free);
        let space = Space::new(move || Ok(probe.load(Ordering::Relaxed)));
        let engine = EmbeddedEngine::open_with(dir.path(), 1 << 20, MEMTABLE_BYTES, space).unwrap();
        assert_eq!(put(&engine, b"a").unwrap(), Commit::Done);
        free.store(RESERVE_BYTES - 1, Ordering::Relaxed);
        let full = (0..=SPACE_EVERY).find_map(|_| put(&engine, b"b").err());
        assert!(matches!(full, Some(MetadataError::NoSpace)), "{full:?}");
        assert!(matches!(put(&engine, b"c"), Err(MetadataError::NoSpace)));
        let mut tx = engine.begin().unwrap();
        tx.delete(b"a");
        assert_eq!(tx.commit().unwrap(), Commit::Done);
        free.store(LAST_BYTES - 1, Ordering::Relaxed);
        let mut tx = engine.begin().unwrap();
        tx.delete(b"b");
        assert!(matches!(tx.commit(), Err(MetadataError::NoSpace)));
        assert_eq!(engine.get(b"c").unwrap(), None, "a refused commit is not visible");
        free.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(put(&engine, b"c").unwrap(), Commit::Done);
        engine.persist().unwrap();
    }

    #[test]
    fn a_second_opening_says_that_the_metadata_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let _first = EmbeddedEngine::open(dir.path(), 1 << 20).unwrap();
        let second = EmbeddedEngine::open(dir.path(), 1 << 20).err().unwrap();
        assert!(second.to_string().contains("in use"), "{second}");
    }

    #[test]
    fn memtables_stay_within_their_bound_however_fast_rows_come() {
        const MEMTABLE: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let engine = EmbeddedEngine::open_sized(dir.path(), 1 << 20, MEMTABLE).unwrap();
        let most = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for writer in 0..4u16 {
                let (engine, most) = (&engine, &most);
                scope.spawn(move || {
                    for n in 0..12_000u16 {
                        engine.admit().unwrap();
                        let mut tx = engine.begin().unwrap();
                        for prefix in [b'k', keys::BLOCK] {
                            let number = u32::from(n.wrapping_mul(7919)) << 16 | u32::from(writer);
                            let key = [&[prefix][..], &number.to_be_bytes()].concat();
                            tx.put(&key, &[prefix; 600]);
                        }
                        assert_eq!(tx.commit().unwrap(), Commit::Done);
                        most.fetch_max(engine.write_buffer_bytes(), Ordering::Relaxed);
                    }
                });
            }
        });
        let most = most.into_inner();
        assert!(most > MEMTABLE && most <= 11 * MEMTABLE, "{most} bytes of 57 MiB");
    }
}
