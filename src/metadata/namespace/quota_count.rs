//! Setting and removing quotas, and counting what lies below them.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use super::quota::{
    Amount, Chain, Get, MAX_QUOTAS, Quota, QuotaLimits, UsageRecord, XATTR, climb, get_of,
    orphan_quotas,
};
use super::{Namespace, Sequenced};
use crate::metadata::records::decode;
use crate::metadata::{Commit, InodeRecord, MetadataError, Reader, keys};
use crate::types::{FileKind, Ino, Timestamp};

/// Chains that a count remembers; beyond it they are found again.
const REMEMBERED: usize = 1 << 16;

/// What a count found, by quota.
pub(super) type Counts = BTreeMap<Ino, Amount>;

/// Counts, in one pass over all inodes, what is charged to each of `quotas`.
pub(super) fn count(
    reader: &dyn Reader,
    is_quota: &dyn Fn(Ino) -> bool,
) -> Result<Counts, MetadataError> {
    let get = get_of(reader);
    let get: Get<'_> = &get;
    let mut known: HashMap<Ino, Option<Chain>> = HashMap::new();
    let mut counts = Counts::new();
    let mut one = |key: &[u8], value: &[u8]| -> Result<(), MetadataError> {
        // A row that does not decode counts for nothing; `check` tells of it.
        let (Some(ino), Ok(inode)) =
            (keys::number_in(key).map(Ino), decode::<InodeRecord>(key, value))
        else {
            return Ok(());
        };
        if ino == Ino::ROOT {
            return Ok(());
        }
        let chain = if inode.nlink == 0 {
            let key = keys::number(keys::ORPHAN, ino.0);
            let row = get(&key)?.unwrap_or_else(|| vec![1]);
            Some(orphan_quotas(&key, &row)?.into())
        } else if let Some(chain) = known.get(&inode.parent) {
            chain.clone()
        } else {
            if known.len() == REMEMBERED {
                known.clear();
            }
            let chain = match climb(get, inode.parent, is_quota) {
                // Parents that lead nowhere are damage; `check` tells of it.
                Err(MetadataError::Damaged { .. }) => None,
                found => found?,
            };
            known.insert(inode.parent, chain.clone());
            chain
        };
        for at in chain.iter().flat_map(|chain| chain.iter()).filter(|at| is_quota(**at)) {
            counts.entry(*at).or_default().add(Amount::of(&inode), 1);
        }
        Ok(())
    };
    let mut outcome = Ok(());
    reader.scan(&[keys::INODE], &[keys::INODE + 1], &mut |key, value| {
        outcome = one(key, value);
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    outcome.map(|()| counts)
}

/// The quotas that directories' attributes say.
fn all_limits(reader: &dyn Reader) -> Result<BTreeMap<Ino, QuotaLimits>, MetadataError> {
    let mut all = BTreeMap::new();
    reader.scan(&[keys::XATTR], &[keys::XATTR + 1], &mut |key, value| {
        if keys::rest_of(key) == Some(XATTR)
            && let (Some(ino), Some(limits)) = (keys::number_in(key), parse(key, value))
        {
            all.insert(Ino(ino), limits);
        }
        if all.len() < MAX_QUOTAS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(all)
}

fn parse(key: &[u8], value: &[u8]) -> Option<QuotaLimits> {
    let limits = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    if limits.is_none() {
        tracing::warn!(key = %key.escape_ascii(), "a quota does not decode and does not hold");
    }
    limits
}

fn limits_key(ino: Ino) -> Vec<u8> {
    keys::under(keys::XATTR, ino, XATTR)
}

pub(super) fn usage_key(ino: Ino) -> Vec<u8> {
    keys::number(keys::USAGE, ino.0)
}

impl Namespace {
    /// Loads the quotas; counts again what a crash interrupted.
    pub(super) fn open_quotas(&self) -> Result<(), MetadataError> {
        let mut rows = Vec::new();
        self.engine.snapshot()?.scan(&[keys::USAGE], &[keys::USAGE + 1], &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        let mut again = false;
        let mut found: HashMap<Ino, Quota> = HashMap::new();
        for (key, value) in &rows {
            let Some(ino) = keys::number_in(key).map(Ino) else { continue };
            let limits_key = limits_key(ino);
            let limits = self.engine.get(&limits_key)?.and_then(|text| parse(&limits_key, &text));
            match (limits, decode::<UsageRecord>(key, value)) {
                (Some(limits), Ok(usage)) if usage.counted => {
                    let used = Amount {
                        bytes: usage.bytes.cast_signed(),
                        inodes: usage.inodes.cast_signed(),
                    };
                    found.insert(ino, Quota { limits, used, staged: 0, counted: true });
                }
                _ => again = true,
            }
        }
        if again {
            return self.recount_quotas();
        }
        if !found.is_empty() {
            let mut table = self.quotas.table();
            table.quotas = found;
            self.quotas.renew(&mut table);
        }
        Ok(())
    }

    /// Counts what is used of every quota again and stores it. Nothing may be
    /// staged: for trees that nobody has open for writing.
    ///
    /// # Errors
    /// `Storage`.
    pub fn recount_quotas(&self) -> Result<(), MetadataError> {
        let _one = self.quotas.changing.lock();
        self.engine.admit()?;
        let _sequenced = self.sequenced.lock();
        let snapshot = self.engine.snapshot()?;
        let reader = snapshot.as_ref();
        let all = all_limits(reader)?;
        let counts = if all.is_empty() {
            Counts::new()
        } else {
            count(reader, &|ino| all.contains_key(&ino))?
        };
        let mut inner = self.engine.begin()?;
        reader.scan(&[keys::USAGE], &[keys::USAGE + 1], &mut |key, _| {
            inner.delete(key);
            ControlFlow::Continue(())
        })?;
        let mut found = HashMap::new();
        for (ino, limits) in all {
            let used = counts.get(&ino).copied().unwrap_or_default();
            let quota = Quota { limits, used, staged: 0, counted: true };
            inner.put(&usage_key(ino), &quota.row());
            found.insert(ino, quota);
        }
        if inner.commit()? == Commit::Conflict {
            return Err(MetadataError::Contended);
        }
        let mut table = self.quotas.table();
        let had = !table.quotas.is_empty();
        table.quotas = found;
        if had || !table.quotas.is_empty() {
            self.quotas.renew(&mut table);
        }
        Ok(())
    }

    /// Sets a directory's quota, or other limits for it. What lies there already
    /// is counted before this returns; until then nothing is refused. It may be
    /// more than the limits: then only growth is refused. `stage` is called once
    /// the quota counts changes, to stage what is written and not committed.
    ///
    /// # Errors
    /// `NotADirectory`, `NotFound`, `TooManyQuotas`; of `stage`; `Storage`,
    /// `NoSpace`. Then all is as it was; where even that cannot be written, the
    /// quota refuses nothing until it is set again or the tree is opened again.
    pub fn set_quota(
        &self,
        ino: Ino,
        limits: QuotaLimits,
        now: Timestamp,
        stage: &mut dyn FnMut() -> Result<(), MetadataError>,
    ) -> Result<(), MetadataError> {
        let _one = self.quotas.changing.lock();
        self.engine.admit()?;
        let snapshot = {
            // No change comes between the quota and the snapshot that it counts.
            let mut sequenced = self.sequenced.lock();
            let (known, quotas) = {
                let table = self.quotas.table();
                (table.quotas.get(&ino).copied(), table.quotas.len())
            };
            if known.is_none() && quotas >= MAX_QUOTAS {
                return Err(MetadataError::TooManyQuotas(MAX_QUOTAS));
            }
            if let Some(counted) = known.filter(|known| known.counted) {
                let quota = Quota { limits, ..counted };
                return self.put_quota(&mut sequenced, ino, Some(quota), now);
            }
            // One that is known was left by a count that failed: from the beginning.
            let staged = known.map_or(0, |known| known.staged);
            let quota = Quota { limits, used: Amount::default(), staged, counted: false };
            self.put_quota(&mut sequenced, ino, Some(quota), now)
                .and_then(|()| self.engine.snapshot())
        };
        let counted = snapshot.and_then(|snapshot| {
            stage()?;
            self.count_quota(ino, snapshot.as_ref())
        });
        if counted.is_err() {
            let mut sequenced = self.sequenced.lock();
            let left = self.quotas.table().quotas.get(&ino).is_some_and(|quota| !quota.counted);
            if left && let Err(error) = self.put_quota(&mut sequenced, ino, None, now) {
                tracing::warn!(%error, %ino, "a quota that could not be counted holds nothing back");
            }
        }
        counted
    }

    /// Adds what a snapshot has below a new quota: from now on it holds.
    fn count_quota(&self, ino: Ino, reader: &dyn Reader) -> Result<(), MetadataError> {
        let counted = count(reader, &|at| at == ino)?.remove(&ino).unwrap_or_default();
        self.engine.admit()?;
        let _sequenced = self.sequenced.lock();
        let mut table = self.quotas.table();
        // Its directory may be gone.
        let Some(quota) = table.quotas.get_mut(&ino) else { return Ok(()) };
        let mut new = *quota;
        new.used.add(counted, 1);
        new.counted = true;
        let mut inner = self.engine.begin()?;
        inner.put(&usage_key(ino), &new.row());
        if inner.commit()? == Commit::Conflict {
            return Err(MetadataError::Contended);
        }
        *quota = new;
        Ok(())
    }

    /// Removes a directory's quota.
    ///
    /// # Errors
    /// `NoAttribute` when it has none; `Storage`.
    pub fn remove_quota(&self, ino: Ino, now: Timestamp) -> Result<(), MetadataError> {
        let _one = self.quotas.changing.lock();
        self.engine.admit()?;
        let mut sequenced = self.sequenced.lock();
        if !self.quotas.table().quotas.contains_key(&ino) {
            return Err(MetadataError::NoAttribute);
        }
        self.put_quota(&mut sequenced, ino, None, now)
    }

    /// Writes a quota's rows, and takes it into the table or out of it.
    fn put_quota(
        &self,
        sequenced: &mut Sequenced,
        ino: Ino,
        quota: Option<Quota>,
        now: Timestamp,
    ) -> Result<(), MetadataError> {
        let mut begun = self.begin()?;
        let ((), changes) = self.attempt(&mut begun, &mut |tx| {
            let mut inode = tx.directory(ino)?;
            let key = limits_key(ino);
            if let Some(quota) = quota {
                if inode.nlink == 0 {
                    return Err(MetadataError::NotFound);
                }
                tx.inner.put(&key, quota.limits.to_string().as_bytes());
                tx.inner.put(&usage_key(ino), &quota.row());
                tx.marked.push(key);
                inode.has_xattrs = true;
            } else {
                tx.remove(key);
                tx.inner.delete(&usage_key(ino));
                inode.has_xattrs = tx.first_below(&keys::number(keys::XATTR, ino.0))?.is_some();
            }
            inode.ctime = now;
            tx.put_inode(ino, &inode);
            Ok(())
        })?;
        // Under the commit lock: nobody else can have changed what it read.
        if self.commit(sequenced, begun, &changes)? == Commit::Conflict {
            return Err(MetadataError::Contended);
        }
        let mut table = self.quotas.table();
        let Some(quota) = quota else {
            table.drop_quota(ino);
            self.quotas.renew(&mut table);
            return Ok(());
        };
        if table.quotas.insert(ino, quota).is_none() {
            self.quotas.renew(&mut table);
        }
        if !quota.counted {
            let get: Get<'_> = &|key| self.engine.get(key);
            table.take_staged(ino, &|file| {
                let key = keys::inode(file);
                let Some(row) = get(&key)? else { return Ok(false) };
                let inode: InodeRecord = decode(&key, &row)?;
                if inode.kind == FileKind::Directory {
                    return Ok(false);
                }
                if inode.nlink == 0 {
                    // As `count` has it: what charged it when it lost its name.
                    let key = keys::number(keys::ORPHAN, file.0);
                    let Some(row) = get(&key)? else { return Ok(false) };
                    return Ok(orphan_quotas(&key, &row)?.contains(&ino));
                }
                let chain = climb(get, inode.parent, &|at| at == ino)?;
                Ok(chain.is_some_and(|chain| !chain.is_empty()))
            })?;
        }
        Ok(())
    }
}

/// The rows `U` that a tree should have, and those that it has.
pub(super) type Compared = BTreeMap<Ino, (Option<UsageRecord>, Option<UsageRecord>)>;

/// For `check`: counts and rows of one snapshot.
pub(super) fn compare(reader: &dyn Reader) -> Result<Compared, MetadataError> {
    let mut compared = Compared::new();
    reader.scan(&[keys::USAGE], &[keys::USAGE + 1], &mut |key, value| {
        if let Some(ino) = keys::number_in(key) {
            compared.insert(Ino(ino), (None, decode(key, value).ok()));
        }
        ControlFlow::Continue(())
    })?;
    let all = all_limits(reader)?;
    if all.is_empty() {
        return Ok(compared);
    }
    let counts = count(reader, &|ino| all.contains_key(&ino))?;
    for ino in all.keys() {
        let used = counts.get(ino).copied().unwrap_or_default();
        let (bytes, inodes) = (used.bytes.cast_unsigned(), used.inodes.cast_unsigned());
        let wanted = UsageRecord { bytes, inodes, counted: true };
        compared.entry(*ino).or_default().0 = Some(wanted);
    }
    Ok(compared)
}
