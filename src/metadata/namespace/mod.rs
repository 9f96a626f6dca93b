//! The POSIX tree over an engine: the rules are written here once.
//!
//! All methods are atomic and visible at once; durable after
//! [`Engine::persist`]. None checks a caller's permissions. Commits pass one
//! short lock, under which the counters and the marks of changed rows are added
//! to the same transaction: counters are exact after a crash, and no change can
//! slip between a checkpoint's snapshot and its marks.

mod acl;
mod backends;
mod check;
mod contents;
mod directory;
mod events;
mod inodes;
mod load;
mod marks;
mod moves;
mod pins;
mod policies;
mod problem;
mod quota;
mod quota_count;
mod rename;
mod repair;
mod staged;
mod stats;
mod tree;
mod xattrs;

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

pub use self::contents::ContentCommit;
pub use self::directory::DirectoryPage;
pub use self::events::EventRecord;
#[cfg(test)]
pub(crate) use self::events::NoteRecord;
pub use self::inodes::SetAttributes;
pub use self::marks::{Change, MarkToken};
pub use self::pins::{PinOrder, PinPage, PinRow, Risk};
pub use self::policies::{KeepStrictest, merge_policies};
pub use self::problem::Problem;
#[cfg(test)]
pub(crate) use self::quota::OrphanRecord;
pub(crate) use self::quota::UsageRecord;
pub use self::quota::{QuotaLimits, QuotaUsage};
pub use self::rename::RenameMode;
pub use self::stats::Stats;
pub use self::tree::{Created, NewNode, Removed};

use self::quota::{Charges, Quotas, adrift};
use self::stats::{Delta, TrustedSince};
use super::records::{Stored, decode, encode};
use super::{Commit, Engine, InodeRecord, MetadataError, Transaction, keys};
use crate::types::{FileKind, Ino, Timestamp};

/// The format of the keys and records of a volume. 2: `holes` in inodes and
/// contents, runs of whole leaves in staged bitmaps. 3: policies and times of
/// contents, rows of backends. 4: severity, backend and count of events, which stay
/// until a file has them. 5: indexes of pins. 6: what waits is ordered by verified
/// copies. 7: copies are counted by state. Indexes and counters are made when a tree of
/// an earlier format is opened; rows of earlier formats are read as they are.
const FORMAT: u32 = 7;
/// Inode numbers are reserved in batches, so that a create writes no counter.
const INO_BATCH: u64 = 4096;
/// Tries of a transaction before it shuts the others out.
const FREE_TRIES: usize = 8;
/// Links to one inode (as ext4).
pub(super) const MAX_LINKS: u32 = 65_000;
/// Cookies below this are the caller's, for `.` and `..`.
pub(super) const FIRST_COOKIE: u64 = 16;
/// Directories above a directory at most: a path of 4096 bytes has fewer, moves
/// can make more; beyond this the parents run in a circle.
pub(super) const MAX_DEPTH: usize = 1 << 20;

/// Numbers that only the commit lock's holder moves.
struct Sequenced {
    stats: Stats,
    /// Part of every mark's key; rises with each checkpoint's snapshot.
    epoch: u64,
    /// The first epoch whose marks are not all taken.
    marks_taken: u64,
    /// Of the next event.
    event: u64,
    /// The first event that is not taken.
    events_taken: u64,
    /// The first event that is a row and in no file.
    events_sealed: u64,
    /// How many events are rows.
    event_rows: u64,
    /// Bytes of contents that lost their last reference since the start.
    released: u64,
}

/// The POSIX tree over an engine.
pub struct Namespace {
    engine: Arc<dyn Engine>,
    sequenced: Mutex<Sequenced>,
    numbers: Mutex<std::ops::Range<u64>>,
    quotas: Quotas,
    /// Set by who knows what policies are.
    strictest: OnceLock<KeepStrictest>,
}

/// A transaction with what it will change in counters and marks.
pub(super) struct Tx<'t> {
    tree: &'t Namespace,
    inner: &'t mut dyn Transaction,
    delta: Delta,
    charges: Charges,
    marked: Vec<Vec<u8>>,
    /// Of backends with copies of contents that it changes.
    trusted_since: TrustedSince,
}

impl Tx<'_> {
    fn get<T: Stored>(&self, key: &[u8]) -> Result<Option<T>, MetadataError> {
        self.inner.get(key)?.map(|value| decode(key, &value)).transpose()
    }

    /// Sets a row that checkpoints record.
    fn put<T: Stored>(&mut self, key: Vec<u8>, row: &T) {
        self.inner.put(&key, &encode(row));
        self.marked.push(key);
    }

    /// Removes a row that checkpoints record.
    fn remove(&mut self, key: Vec<u8>) {
        self.inner.delete(&key);
        self.marked.push(key);
    }

    fn inode(&self, ino: Ino) -> Result<InodeRecord, MetadataError> {
        self.get(&keys::inode(ino))?.ok_or(MetadataError::NotFound)
    }

    fn directory(&self, ino: Ino) -> Result<InodeRecord, MetadataError> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::Directory => Ok(inode),
            _ => Err(MetadataError::NotADirectory(ino)),
        }
    }

    fn put_inode(&mut self, ino: Ino, inode: &InodeRecord) {
        self.put(keys::inode(ino), inode);
    }

    /// The first key below `prefix`.
    fn first_below(&self, prefix: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        let mut first = None;
        self.inner.scan(prefix, &keys::end_of(prefix), &mut |key, _| {
            first = Some(key.to_vec());
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    /// All keys and values below `prefix`.
    fn below(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>, MetadataError> {
        let mut rows = Vec::new();
        self.inner.scan(prefix, &keys::end_of(prefix), &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }
}

impl Namespace {
    /// Opens the tree; makes the root directory in an empty engine.
    ///
    /// # Errors
    /// `TooNew` for a newer format; `Damaged`; `Storage`.
    pub fn open(engine: Arc<dyn Engine>, now: Timestamp) -> Result<Self, MetadataError> {
        let format = match engine.get(keys::FORMAT)? {
            Some(value) => decode::<u32>(keys::FORMAT, &value)?,
            None => 0,
        };
        if format > FORMAT {
            return Err(MetadataError::TooNew { found: format, supported: FORMAT });
        }
        let stats = match engine.get(keys::STATS)? {
            Some(value) => decode(keys::STATS, &value)?,
            None => Stats::default(),
        };
        let next = match engine.get(keys::NEXT_INO)? {
            Some(value) => decode(keys::NEXT_INO, &value)?,
            None => Ino::ROOT.0 + 1,
        };
        let number = |key: &[u8]| engine.get(key)?.map_or(Ok(0), |value| decode(key, &value));
        let (marks_taken, events_taken) = (number(keys::MARKS_TAKEN)?, number(keys::EVENTS_TAKEN)?);
        // Before format 4 an event's row went when a checkpoint had it.
        let of_old = if format < 4 { events_taken } else { 0 };
        let events_sealed = number(keys::EVENTS_SEALED)?.max(of_old).max(1);
        let last_epoch = marks::last_epoch(engine.as_ref(), marks_taken)?;
        let (event, event_rows) = events::rows_from(engine.as_ref(), events_sealed, events_taken)?;
        let sequenced = Sequenced {
            stats,
            epoch: last_epoch + 1,
            marks_taken,
            event,
            events_taken,
            events_sealed,
            event_rows,
            released: 0,
        };
        let tree = Self {
            engine,
            sequenced: Mutex::new(sequenced),
            numbers: Mutex::new(next..next),
            quotas: Quotas::default(),
            strictest: OnceLock::new(),
        };
        if format == 0 {
            tree.initialise(now)?;
        } else if format < FORMAT {
            let mut counted = tree.build_pin_indexes()?;
            if format >= 5 {
                (counted.corrupt, counted.lost) = (0, 0);
            }
            // A program that knows less must not meet rows that it cannot read.
            tree.run(|tx| {
                (tx.delta.corrupt, tx.delta.lost) = (counted.corrupt, counted.lost);
                tx.delta.count_anew(&counted);
                tx.delta.touched = true;
                tx.inner.put(keys::FORMAT, &encode(&FORMAT));
                tx.inner.put(keys::EVENTS_SEALED, &encode(&events_sealed));
                Ok(())
            })?;
        }
        tree.open_quotas()?;
        Ok(tree)
    }

    fn initialise(&self, now: Timestamp) -> Result<(), MetadataError> {
        self.run(|tx| {
            tx.inner.put(keys::FORMAT, &encode(&FORMAT));
            let root = tree::new_inode(&NewNode {
                kind: FileKind::Directory,
                mode: 0o755,
                // Who makes the volume owns its root.
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                umask: None,
                rdev: 0,
                target: Vec::new(),
                now,
            });
            tx.delta.inode(None, Some(&root));
            tx.put_inode(Ino::ROOT, &root);
            Ok(())
        })
    }

    /// The engine below, for persisting and for the block index.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Counters of the whole volume.
    pub fn stats(&self) -> Stats {
        self.sequenced.lock().stats.clone()
    }

    /// Bytes of contents that lost their last reference since the start: what a
    /// collection may give back.
    pub fn released_bytes(&self) -> u64 {
        self.sequenced.lock().released
    }

    /// Runs `body` in a transaction until it commits. One that keeps losing
    /// takes the commit lock before it begins: then nobody else can commit. Waits
    /// for the engine before, never under the lock.
    fn run<T>(
        &self,
        mut body: impl FnMut(&mut Tx<'_>) -> Result<T, MetadataError>,
    ) -> Result<T, MetadataError> {
        for _ in 0..FREE_TRIES {
            self.engine.admit()?;
            let mut begun = self.begin()?;
            let (value, changes) = self.attempt(&mut begun, &mut body)?;
            if self.commit(&mut self.sequenced.lock(), begun, &changes)? == Commit::Done {
                return Ok(value);
            }
        }
        self.engine.admit()?;
        let mut sequenced = self.sequenced.lock();
        let mut begun = self.begin()?;
        let (value, changes) = self.attempt(&mut begun, &mut body)?;
        // Nobody else commits now: what is gone was gone before.
        if let Some(directory) = changes.charges.stale {
            return Err(adrift(directory));
        }
        match self.commit(&mut sequenced, begun, &changes)? {
            Commit::Done => Ok(value),
            // Somebody changes rows of the tree beside the tree.
            Commit::Conflict => Err(MetadataError::Contended),
        }
    }

    fn begin(&self) -> Result<Begun<'_>, MetadataError> {
        let generation = self.quotas.generation();
        Ok(Begun { inner: self.engine.begin()?, generation })
    }

    fn attempt<T>(
        &self,
        begun: &mut Begun<'_>,
        body: &mut impl FnMut(&mut Tx<'_>) -> Result<T, MetadataError>,
    ) -> Result<(T, Changes), MetadataError> {
        let mut tx = Tx {
            tree: self,
            inner: begun.inner.as_mut(),
            delta: Delta::default(),
            charges: Charges::default(),
            marked: Vec::new(),
            trusted_since: TrustedSince::new(),
        };
        let value = body(&mut tx)?;
        let Tx { delta, charges, marked, .. } = tx;
        Ok((value, Changes { delta, charges, marked }))
    }

    fn commit(
        &self,
        sequenced: &mut Sequenced,
        begun: Begun<'_>,
        changes: &Changes,
    ) -> Result<Commit, MetadataError> {
        let Begun { mut inner, generation } = begun;
        let Changes { delta, charges, marked } = changes;
        if self.quotas.is_stale(generation, charges) {
            return Ok(Commit::Conflict);
        }
        let mut mark = keys::number(keys::MARK, sequenced.epoch);
        for key in marked {
            mark.truncate(9);
            mark.extend_from_slice(key);
            inner.put(&mark, &[]);
        }
        let pending = self.quotas.prepare(charges, &mut |key, row| inner.put(key, row))?;
        // Never read in the transaction, so that two changes of it do not conflict.
        let stats = (!delta.is_nothing()).then(|| sequenced.stats.plus(delta));
        if let Some(stats) = &stats {
            inner.put(keys::STATS, &encode(stats));
        }
        let commit = inner.commit()?;
        if commit == Commit::Done {
            if let Some(stats) = stats {
                sequenced.stats = stats;
                sequenced.released += delta.released;
            }
            if let Some(pending) = pending {
                pending.done(charges);
            }
        }
        Ok(commit)
    }

    /// No inode that is made from now on has a lower number.
    pub fn numbers_from(&self) -> Ino {
        Ino(self.numbers.lock().start)
    }

    /// A number that no inode of this volume has had.
    fn next_ino(&self) -> Result<Ino, MetadataError> {
        let mut numbers = self.numbers.lock();
        if numbers.is_empty() {
            let end = numbers.end + INO_BATCH;
            let mut inner = self.engine.begin()?;
            inner.put(keys::NEXT_INO, &encode(&end));
            if inner.commit()? == Commit::Conflict {
                return Err(MetadataError::Contended);
            }
            *numbers = numbers.end..end;
        }
        let number = numbers.start;
        numbers.start += 1;
        Ok(Ino(number))
    }
}

/// A transaction and the quotas' generation that it began in.
struct Begun<'e> {
    inner: Box<dyn Transaction + 'e>,
    generation: u64,
}

/// What a body changes beside its rows.
struct Changes {
    delta: Delta,
    charges: Charges,
    marked: Vec<Vec<u8>>,
}
