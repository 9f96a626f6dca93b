//! Quotas: limits on the bytes and inodes below a directory.
//!
//! A quota's limits are an extended attribute of its directory, so checkpoints
//! carry them; what is used is row `U`, written with each change of it. Bytes are
//! the lengths of regular files; the directory itself does not count.
//!
//! An inode is charged to the quotas above the directory that its row names as
//! its parent (its *chain*); one without a name to those that it was charged to
//! when it lost it, which its orphan row lists. A directory, and an inode with
//! several names, never moves between two chains. So a chain changes only when a
//! quota is set or removed, and can be cached until then.
//!
//! What is written and not committed is *staged*: held in memory alone, and moved
//! to what is used by the commit. Limits are compared under one lock, at a
//! transaction's commit and when growth is staged: writers side by side never
//! exceed them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

use super::{MAX_DEPTH, Namespace, Tx};
use crate::metadata::records::{Stored, damaged, decode, encode};
use crate::metadata::{InodeRecord, MetadataError, Reader, keys};
use crate::types::{FileKind, Ino};

/// The attribute that holds a directory's limits. Not listed, nor set by name.
pub(super) const XATTR: &[u8] = b"system.cairn.quota";
/// Quotas of a volume at most: some 200 bytes of memory each.
pub(super) const MAX_QUOTAS: usize = 16_384;
/// Directories whose chains are remembered.
const CACHED_CHAINS: usize = 16_384;

/// Upper bounds; `None` is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuotaLimits {
    /// Sum of the lengths of regular files.
    pub bytes: Option<u64>,
    /// Files, directories and all others.
    pub inodes: Option<u64>,
}

impl fmt::Display for QuotaLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("bytes", self.bytes), ("inodes", self.inodes)];
        let texts = parts.iter().filter_map(|(name, n)| n.map(|n| format!("{name}={n}")));
        f.write_str(&texts.collect::<Vec<_>>().join(","))
    }
}

impl FromStr for QuotaLimits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let bad = || format!("`{part}` is no limit");
            let (name, number) = part.split_once('=').ok_or_else(bad)?;
            let number = Some(number.parse().map_err(|_| bad())?);
            match name {
                "bytes" => limits.bytes = number,
                "inodes" => limits.inodes = number,
                _ => return Err(bad()),
            }
        }
        Ok(limits)
    }
}

/// A quota and what is used of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaUsage {
    /// Its directory.
    pub ino: Ino,
    /// Its limits.
    pub limits: QuotaLimits,
    /// Bytes below it, what is staged included.
    pub bytes: u64,
    /// Inodes below it.
    pub inodes: u64,
}

/// Row `U`: what is used of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UsageRecord {
    pub bytes: u64,
    pub inodes: u64,
    /// False from the setting of a quota until what was there is counted.
    pub counted: bool,
}

/// Row `O` of an inode without a name that is charged to quotas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrphanRecord {
    pub quotas: Vec<Ino>,
}

impl Stored for UsageRecord {}
impl Stored for OrphanRecord {}

/// The stored form of row `O`; of an inode that no quota counts, a lone byte 1.
pub(super) fn orphan_row(quotas: &[Ino]) -> Vec<u8> {
    match quotas {
        [] => vec![1],
        quotas => encode(&OrphanRecord { quotas: quotas.to_vec() }),
    }
}

pub(super) fn orphan_quotas(key: &[u8], row: &[u8]) -> Result<Vec<Ino>, MetadataError> {
    match row {
        [1] => Ok(Vec::new()),
        row => Ok(decode::<OrphanRecord>(key, row)?.quotas),
    }
}

/// The quotas that something is charged to, the nearest first.
pub(super) type Chain = Arc<[Ino]>;

/// A number of bytes and inodes, or a change of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Amount {
    pub bytes: i64,
    pub inodes: i64,
}

impl Amount {
    pub fn of(inode: &InodeRecord) -> Self {
        let file = inode.kind == FileKind::File;
        Self { bytes: if file { inode.size.cast_signed() } else { 0 }, inodes: 1 }
    }

    pub fn add(&mut self, other: Self, sign: i64) {
        self.bytes += sign * other.bytes;
        self.inodes += sign * other.inodes;
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Quota {
    pub limits: QuotaLimits,
    pub used: Amount,
    /// Growth of files that is not committed; negative when they shrank.
    pub staged: i64,
    pub counted: bool,
}

impl Quota {
    pub fn row(&self) -> Vec<u8> {
        let unsigned = |n: i64| n.max(0).cast_unsigned();
        let (bytes, inodes) = (unsigned(self.used.bytes), unsigned(self.used.inodes));
        encode(&UsageRecord { bytes, inodes, counted: self.counted })
    }

    /// Whether so much more would exceed it. Only growth is refused.
    fn refuses(&self, bytes: i64, inodes: i64) -> bool {
        let over = |limit: Option<u64>, now: i64, more: i64| {
            more > 0 && limit.is_some_and(|limit| i128::from(now) + i128::from(more) > limit.into())
        };
        self.counted
            && (over(self.limits.bytes, self.used.bytes + self.staged, bytes)
                || over(self.limits.inodes, self.used.inodes, inodes))
    }

    fn usage(&self, ino: Ino) -> QuotaUsage {
        let unsigned = |n: i64| n.max(0).cast_unsigned();
        QuotaUsage {
            ino,
            limits: self.limits,
            bytes: unsigned(self.used.bytes + self.staged),
            inodes: unsigned(self.used.inodes),
        }
    }
}

/// Growth of a file that is not committed.
struct Staged {
    growth: i64,
    chain: Chain,
}

#[derive(Default)]
pub(super) struct Table {
    pub quotas: HashMap<Ino, Quota>,
    staged: HashMap<Ino, Staged>,
    /// Rises when an inode gets another chain.
    moves: u64,
}

/// The quotas of a volume. Lock order: the commit lock, then this table's.
pub(super) struct Quotas {
    table: Mutex<Table>,
    /// Zero while there are none and never were; rises when one is set or
    /// removed, under the commit lock.
    generation: AtomicU64,
    chains: Cache<Ino, (u64, Chain)>,
    none: Chain,
    /// One is set, counted or removed at a time.
    pub changing: Mutex<()>,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            generation: AtomicU64::new(0),
            chains: Cache::new(CACHED_CHAINS),
            none: Arc::from([]),
            changing: Mutex::default(),
        }
    }
}

impl Quotas {
    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// With the table's lock held, and the commit lock.
    pub fn renew(&self, table: &mut Table) {
        table.moves += 1;
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.chains.clear();
    }

    /// The quotas at and above a directory; `None` when it is gone.
    fn chain(&self, reader: Get<'_>, directory: Ino) -> Result<Option<Chain>, MetadataError> {
        let generation = self.generation();
        if generation == 0 {
            return Ok(Some(Arc::clone(&self.none)));
        }
        if let Some((of, chain)) = self.chains.get(&directory)
            && of == generation
        {
            return Ok(Some(chain));
        }
        let is_quota = |ino: Ino| self.table.lock().quotas.contains_key(&ino);
        let chain = climb(reader, directory, &is_quota)?;
        if let Some(chain) = &chain {
            self.chains.insert(directory, (generation, Arc::clone(chain)));
        }
        Ok(chain)
    }

    /// What a row is charged to; `None` when the directory it names is gone.
    pub fn chain_of(
        &self,
        reader: Get<'_>,
        ino: Ino,
        inode: &InodeRecord,
    ) -> Result<Option<Chain>, MetadataError> {
        if ino == Ino::ROOT || self.generation() == 0 {
            return Ok(Some(Arc::clone(&self.none)));
        }
        if inode.nlink > 0 {
            return self.chain(reader, inode.parent);
        }
        let key = keys::number(keys::ORPHAN, ino.0);
        let row = reader(&key)?.unwrap_or_else(|| vec![1]);
        Ok(Some(orphan_quotas(&key, &row)?.into()))
    }
}

/// Of a directory whose way to the root ends.
pub(super) fn adrift(directory: Ino) -> MetadataError {
    damaged(&keys::inode(directory), "a file is in it, and it or a directory above it is gone")
}

/// Reads the newest value of a key.
pub(super) type Get<'g> = &'g dyn Fn(&[u8]) -> Result<Option<Vec<u8>>, MetadataError>;

/// Climbs from a directory to the root; `None` when it is gone.
pub(super) fn climb(
    get: Get<'_>,
    directory: Ino,
    is_quota: &dyn Fn(Ino) -> bool,
) -> Result<Option<Chain>, MetadataError> {
    let (mut at, mut chain) = (directory, Vec::new());
    for _ in 0..MAX_DEPTH {
        if is_quota(at) {
            chain.push(at);
        }
        if at == Ino::ROOT {
            return Ok(Some(chain.into()));
        }
        let key = keys::inode(at);
        let Some(row) = get(&key)? else { return Ok(None) };
        at = decode::<InodeRecord>(&key, &row)?.parent;
    }
    Err(damaged(&keys::inode(directory), "its parents run in a circle"))
}

/// What a transaction changes in quotas.
#[derive(Default)]
pub(super) struct Charges {
    amounts: BTreeMap<Ino, Amount>,
    /// Compared with no limit: what cannot be refused.
    forced: bool,
    /// Files whose staged growth is committed, or gone.
    settled: Vec<Ino>,
    /// Files that are charged to other quotas now.
    moved: Vec<(Ino, Chain)>,
    /// Quotas whose directory is gone.
    gone: Vec<Ino>,
    /// A directory vanished while it was looked at: the transaction will not hold.
    pub stale: Option<Ino>,
}

impl Charges {
    fn is_nothing(&self) -> bool {
        self.amounts.is_empty()
            && self.settled.is_empty()
            && self.moved.is_empty()
            && self.gone.is_empty()
    }

    fn charge(&mut self, chain: &[Ino], amount: Amount, sign: i64) {
        for ino in chain {
            self.amounts.entry(*ino).or_default().add(amount, sign);
        }
    }
}

impl Tx<'_> {
    fn counts(&self) -> bool {
        self.tree.quotas.generation() > 0
    }

    fn chain_or_stale(&mut self, chain: Option<Chain>, directory: Ino) -> Chain {
        chain.unwrap_or_else(|| {
            self.charges.stale = Some(directory);
            Arc::clone(&self.tree.quotas.none)
        })
    }

    /// The quotas that hold in a directory.
    pub(super) fn quotas_in(&mut self, directory: Ino) -> Result<Chain, MetadataError> {
        let tree = self.tree;
        let chain = tree.quotas.chain(&|key| tree.engine.get(key), directory)?;
        Ok(self.chain_or_stale(chain, directory))
    }

    /// The quotas that an inode is charged to.
    pub(super) fn quotas_of(
        &mut self,
        ino: Ino,
        inode: &InodeRecord,
    ) -> Result<Chain, MetadataError> {
        let tree = self.tree;
        let chain = tree.quotas.chain_of(&|key| tree.engine.get(key), ino, inode)?;
        Ok(self.chain_or_stale(chain, inode.parent))
    }

    /// An inode is made in a directory.
    pub(super) fn charge_new(
        &mut self,
        directory: Ino,
        inode: &InodeRecord,
    ) -> Result<(), MetadataError> {
        if self.counts() {
            let chain = self.quotas_in(directory)?;
            self.charges.charge(&chain, Amount::of(inode), 1);
        }
        Ok(())
    }

    /// A file's row gets another length; what was staged of it is committed.
    pub(super) fn charge_resize(
        &mut self,
        ino: Ino,
        before: &InodeRecord,
        after: &InodeRecord,
    ) -> Result<(), MetadataError> {
        if self.counts() {
            let chain = self.quotas_of(ino, before)?;
            let bytes = after.size.cast_signed() - before.size.cast_signed();
            self.charges.charge(&chain, Amount { bytes, inodes: 0 }, 1);
            self.charges.settled.push(ino);
        }
        Ok(())
    }

    /// An inode is charged to `chain` instead of what its row, as it is stored,
    /// says. `forced`: it cannot be refused.
    pub(super) fn charge_move(
        &mut self,
        ino: Ino,
        stored: &InodeRecord,
        chain: Chain,
        forced: bool,
    ) -> Result<(), MetadataError> {
        let old = self.quotas_of(ino, stored)?;
        if old != chain {
            self.charges.charge(&old, Amount::of(stored), -1);
            self.charges.charge(&chain, Amount::of(stored), 1);
            self.charges.forced |= forced;
            self.charges.moved.push((ino, chain));
        }
        Ok(())
    }

    /// An inode's last name goes: its orphan row remembers the charge.
    pub(super) fn charge_orphan(
        &mut self,
        ino: Ino,
        stored: &InodeRecord,
    ) -> Result<(), MetadataError> {
        let chain = if self.counts() { self.quotas_of(ino, stored)?.to_vec() } else { Vec::new() };
        self.inner.put(&keys::number(keys::ORPHAN, ino.0), &orphan_row(&chain));
        Ok(())
    }

    /// An orphan ends, and a quota of its own.
    pub(super) fn charge_reap(
        &mut self,
        ino: Ino,
        stored: &InodeRecord,
    ) -> Result<(), MetadataError> {
        if self.counts() {
            let chain = self.quotas_of(ino, stored)?;
            self.charges.charge(&chain, Amount::of(stored), -1);
            self.charges.settled.push(ino);
            if stored.kind == FileKind::Directory {
                self.inner.delete(&keys::number(keys::USAGE, ino.0));
                self.charges.gone.push(ino);
            }
        }
        Ok(())
    }
}

/// A transaction's changes of quotas, compared with the limits and held until it
/// is known whether it commits.
pub(super) struct Pending<'q> {
    quotas: &'q Quotas,
    table: MutexGuard<'q, Table>,
    /// New amounts by quota.
    after: Vec<(Ino, Quota)>,
}

impl Quotas {
    /// Compares with the limits and writes the rows. `Ok(None)`: nothing to do.
    /// A stale transaction is the caller's conflict; see [`Quotas::is_stale`].
    pub fn prepare(
        &self,
        charges: &Charges,
        put: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<Pending<'_>>, MetadataError> {
        if charges.is_nothing() {
            return Ok(None);
        }
        let table = self.table.lock();
        let mut staged: BTreeMap<Ino, i64> = BTreeMap::new();
        let mut shift = |chain: &[Ino], growth: i64| {
            for ino in chain {
                *staged.entry(*ino).or_default() += growth;
            }
        };
        for ino in &charges.settled {
            if let Some(entry) = table.staged.get(ino) {
                shift(&entry.chain, -entry.growth);
            }
        }
        for (ino, chain) in &charges.moved {
            if let Some(entry) = table.staged.get(ino) {
                shift(&entry.chain, -entry.growth);
                shift(chain, entry.growth);
            }
        }
        let touched: BTreeSet<&Ino> = charges.amounts.keys().chain(staged.keys()).collect();
        let mut after: Vec<(Ino, Quota)> = Vec::new();
        for ino in touched {
            let Some(quota) = table.quotas.get(ino).filter(|_| !charges.gone.contains(ino)) else {
                continue;
            };
            let amount = charges.amounts.get(ino).copied().unwrap_or_default();
            let moved = staged.get(ino).copied().unwrap_or_default();
            if !charges.forced && quota.refuses(amount.bytes + moved, amount.inodes) {
                return Err(MetadataError::QuotaExceeded(*ino));
            }
            let mut new = *quota;
            new.used.add(amount, 1);
            new.staged += moved;
            if amount != Amount::default() {
                put(&keys::number(keys::USAGE, ino.0), &new.row());
            }
            after.push((*ino, new));
        }
        Ok(Some(Pending { quotas: self, table, after }))
    }

    /// Whether a transaction that began in this generation saw quotas that are
    /// others now. Under the commit lock.
    pub fn is_stale(&self, generation: u64, charges: &Charges) -> bool {
        charges.stale.is_some() || generation != self.generation()
    }
}

impl Pending<'_> {
    /// The transaction has committed.
    pub fn done(mut self, charges: &Charges) {
        for (ino, quota) in std::mem::take(&mut self.after) {
            self.table.quotas.insert(ino, quota);
        }
        for ino in &charges.settled {
            self.table.staged.remove(ino);
        }
        for (ino, chain) in &charges.moved {
            self.table.moves += 1;
            if let Some(entry) = self.table.staged.get_mut(ino) {
                entry.chain = Arc::clone(chain);
            }
        }
        for ino in &charges.gone {
            if self.table.drop_quota(*ino) {
                self.quotas.renew(&mut self.table);
            }
        }
    }
}

impl Table {
    /// True when there was one.
    pub fn drop_quota(&mut self, ino: Ino) -> bool {
        if self.quotas.remove(&ino).is_none() {
            return false;
        }
        for entry in self.staged.values_mut().filter(|entry| entry.chain.contains(&ino)) {
            entry.chain = entry.chain.iter().copied().filter(|at| *at != ino).collect();
        }
        true
    }

    /// A new quota counts what is staged below it. Nothing, on an error.
    pub fn take_staged(
        &mut self,
        ino: Ino,
        is_below: &dyn Fn(Ino) -> Result<bool, MetadataError>,
    ) -> Result<(), MetadataError> {
        let mut below = Vec::new();
        for (file, entry) in &self.staged {
            if !entry.chain.contains(&ino) && is_below(*file)? {
                below.push(*file);
            }
        }
        let mut growth = 0;
        for file in below {
            if let Some(entry) = self.staged.get_mut(&file) {
                // The order within a chain says nothing here.
                entry.chain = entry.chain.iter().copied().chain([ino]).collect();
                growth += entry.growth;
            }
        }
        if let Some(quota) = self.quotas.get_mut(&ino) {
            quota.staged += growth;
        }
        Ok(())
    }
}

impl Namespace {
    /// Whether any quota is set: else nothing need be staged.
    pub fn has_quotas(&self) -> bool {
        self.quotas.generation() > 0
    }

    /// A file is so much longer (or shorter) than its row says, by bytes that are
    /// not committed. `forced`: it happened already.
    ///
    /// # Errors
    /// `QuotaExceeded`, then it is as it was; `Damaged` when it hangs in a
    /// directory that is gone; `Storage`.
    pub fn stage_growth(&self, ino: Ino, growth: i64, forced: bool) -> Result<(), MetadataError> {
        if !self.has_quotas() {
            return Ok(());
        }
        loop {
            let moves = {
                let mut table = self.quotas.table();
                if let Some(entry) = table.staged.get(&ino) {
                    let (chain, old) = (Arc::clone(&entry.chain), entry.growth);
                    return table.stage(ino, chain, growth - old, growth, forced);
                }
                table.moves
            };
            if growth == 0 {
                return Ok(());
            }
            let inode = match self.inode(ino) {
                Err(MetadataError::NotFound) if forced => return Ok(()),
                other => other?,
            };
            let chain = self.quotas.chain_of(&|key| self.engine.get(key), ino, &inode)?;
            let Some(chain) = chain else {
                // What moves between the looks is found at the next.
                self.refuse_adrift(ino)?;
                continue;
            };
            let mut table = self.quotas.table();
            // Else another chain may be its own by now.
            if table.moves == moves {
                return table.stage(ino, chain, growth, growth, forced);
            }
        }
    }

    /// Fails for what hangs, at one moment, in a directory that does not exist.
    fn refuse_adrift(&self, ino: Ino) -> Result<(), MetadataError> {
        let snapshot = self.engine.snapshot()?;
        let (get, key) = (get_of(snapshot.as_ref()), keys::inode(ino));
        let Some(row) = get(&key)? else { return Ok(()) };
        let inode: InodeRecord = decode(&key, &row)?;
        if inode.nlink > 0 && climb(&get, inode.parent, &|_| false)?.is_none() {
            return Err(adrift(inode.parent));
        }
        Ok(())
    }

    /// The quotas that hold at an inode, the nearest first.
    ///
    /// # Errors
    /// `NotFound`, `Storage`.
    pub fn quotas_at(&self, ino: Ino) -> Result<Vec<QuotaUsage>, MetadataError> {
        if !self.has_quotas() {
            return Ok(Vec::new());
        }
        let inode = self.inode(ino)?;
        let get: Get<'_> = &|key| self.engine.get(key);
        let chain = match inode.kind {
            FileKind::Directory => self.quotas.chain(get, ino)?,
            _ => self.quotas.chain_of(get, ino, &inode)?,
        };
        let table = self.quotas.table();
        let usage = |at: &Ino| table.quotas.get(at).map(|quota| quota.usage(*at));
        Ok(chain.iter().flat_map(|chain| chain.iter()).filter_map(usage).collect())
    }

    /// All quotas at and below a directory.
    ///
    /// # Errors
    /// `Storage`.
    pub fn quotas_below(&self, ino: Ino) -> Result<Vec<QuotaUsage>, MetadataError> {
        let mut all: Vec<QuotaUsage> =
            self.quotas.table().quotas.iter().map(|(at, quota)| quota.usage(*at)).collect();
        all.sort_by_key(|quota| quota.ino);
        let mut below = Vec::new();
        for quota in all {
            let get: Get<'_> = &|key| self.engine.get(key);
            let path = climb(get, quota.ino, &|at| at == ino)?;
            if path.is_some_and(|path| !path.is_empty()) {
                below.push(quota);
            }
        }
        Ok(below)
    }
}

impl Table {
    fn stage(
        &mut self,
        ino: Ino,
        chain: Chain,
        more: i64,
        growth: i64,
        forced: bool,
    ) -> Result<(), MetadataError> {
        // An orphan's row names quotas that were removed since. What is held of it here
        // names none: one that is set again takes what does not name it.
        let chain = if chain.iter().all(|at| self.quotas.contains_key(at)) {
            chain
        } else {
            chain.iter().copied().filter(|at| self.quotas.contains_key(at)).collect()
        };
        let full = |at: &&Ino| self.quotas.get(at).is_some_and(|quota| quota.refuses(more, 0));
        if let Some(full) = chain.iter().find(full).filter(|_| !forced) {
            return Err(MetadataError::QuotaExceeded(*full));
        }
        for at in chain.iter() {
            if let Some(quota) = self.quotas.get_mut(at) {
                quota.staged += more;
            }
        }
        if growth == 0 {
            self.staged.remove(&ino);
        } else {
            self.staged.insert(ino, Staged { growth, chain });
        }
        Ok(())
    }
}

/// A snapshot's values, as [`climb`] reads them.
pub(super) fn get_of(
    reader: &dyn Reader,
) -> impl Fn(&[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
    |key| reader.get(key)
}
