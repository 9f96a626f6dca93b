use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::errno::errno_of;
use super::place::{Place, Temporary, entries, make_dir, open_dir};
use super::usage::Counter;
use crate::backends::{BackendError, ErrorKind, ListPage, Presence, check};
use crate::runtime::{buffers, descriptor_share, failpoint};
use crate::types::{Block, Cid, cid};

/// Blocks on a page at most, whatever was asked for.
const PAGE_MAX: usize = 10_000;
/// Files that are written before they are synced together, where the limit of
/// descriptors allows so many.
const CHUNK_FILES: usize = 128;
/// Their bytes.
const CHUNK_BYTES: usize = 32 << 20;

/// The block files: `blocks/<shard>/<cid>`.
pub(super) struct Blocks {
    pub place: Place,
    pub counter: Counter,
    pub capacity: Option<u64>,
    /// Bytes of packs, which count as used, too.
    pub packed: AtomicU64,
    shards: Mutex<HashMap<String, ShardState>>,
    ignored: AtomicU64,
}

/// Whether a shard's entries are on the medium. A file that is only visible may
/// be gone after a power cut, so neither `put` nor `presence` claims it before
/// the directory was synced; and not at all by files that were there when a
/// sync failed (the kernel reports a failed write-back once, then forgets it).
#[derive(Default)]
struct ShardState {
    renames: u64,
    renaming: u64,
    synced: Option<u64>,
    suspect: bool,
}

/// The shard of a CID's text: the two characters before the last one, in lower
/// case, so that no two shards differ only in case (`CIDv0` is base58, and some
/// disks fold case). The last character of base32 carries fewer bits.
pub(in crate::backends) fn shard_of(text: &str) -> String {
    let end = text.len().saturating_sub(1);
    text.get(end.saturating_sub(2)..end).unwrap_or("_").to_ascii_lowercase()
}

impl Blocks {
    pub(super) fn new(place: Place, capacity: Option<u64>) -> Self {
        Self {
            place,
            counter: Counter::default(),
            capacity,
            packed: AtomicU64::new(0),
            shards: Mutex::default(),
            ignored: AtomicU64::new(0),
        }
    }

    /// Files in `blocks` that are not blocks, as the last listings met them.
    pub(super) fn ignored(&self) -> u64 {
        self.ignored.load(Ordering::Relaxed)
    }

    fn open_shard(&self, shard: &str) -> Result<Option<OwnedFd>, Errno> {
        match open_dir(&self.place.blocks, shard) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens shards that will be written; their own entries are durable then.
    fn make_shards(&self, shards: &BTreeSet<String>) -> Result<BTreeMap<String, OwnedFd>, Errno> {
        let fresh: Vec<&String> = {
            let known = self.shards.lock();
            shards.iter().filter(|shard| !known.contains_key(*shard)).collect()
        };
        for shard in &fresh {
            // Also when it was there: another process may have just made it.
            self.counter.create(shard, || make_dir(&self.place.blocks, shard))?;
        }
        if !fresh.is_empty() {
            self.place.sync.dir(&self.place.blocks)?;
            let mut known = self.shards.lock();
            for shard in fresh {
                known.entry(shard.clone()).or_default();
            }
        }
        let open = |shard: &String| {
            let dir = match open_dir(&self.place.blocks, shard) {
                // Somebody removed the empty folder.
                Err(Errno::NOENT) => {
                    make_dir(&self.place.blocks, shard)?;
                    self.place.sync.dir(&self.place.blocks)?;
                    open_dir(&self.place.blocks, shard)
                }
                other => other,
            };
            Ok((shard.clone(), dir?))
        };
        shards.iter().map(open).collect()
    }

    /// Brings shards' entries to the medium, unless they are there.
    fn sync_shards(&self, dirs: &[(&str, &OwnedFd)]) -> Result<(), Errno> {
        let mut due = Vec::new();
        for (shard, dir) in dirs {
            let mut shards = self.shards.lock();
            let state = shards.entry((*shard).to_owned()).or_default();
            if state.renaming > 0 || state.synced != Some(state.renames) {
                due.push((*shard, dir.as_fd(), state.renames));
            }
        }
        let fds: Vec<_> = due.iter().map(|(_, dir, _)| *dir).collect();
        let synced = self.place.sync.dirs(&fds);
        let mut shards = self.shards.lock();
        for (shard, _, renames) in due {
            let state = shards.entry(shard.to_owned()).or_default();
            match synced {
                Ok(()) => state.synced = state.synced.max(Some(renames)),
                Err(_) => state.suspect = true,
            }
        }
        synced
    }

    fn is_suspect(&self, shard: &str) -> bool {
        self.shards.lock().get(shard).is_some_and(|state| state.suspect)
    }

    /// The length of a block's file, when there is one.
    fn length(dir: &OwnedFd, name: &str) -> Result<Option<u64>, Errno> {
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                Ok(Some(stat.st_size.unsigned_abs()))
            }
            Ok(_) => Err(Errno::ISDIR),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Stores blocks in order: the bytes of a chunk go to the medium together,
    /// then it is made visible. Directories are synced once for a run of raw
    /// blocks, and before each other block is made visible: what a crash leaves
    /// is a prefix, but for the order of raw blocks (which link to nothing)
    /// between two nodes. Nothing is acknowledged before all is on the medium.
    pub(super) fn put_all(&self, blocks: &[Block]) -> Result<(), BackendError> {
        blocks.iter().try_for_each(check::block)?;
        self.place.check()?;
        let mut rest = blocks;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |block: &&Block| {
                bytes += block.data.len();
                bytes <= CHUNK_BYTES
            };
            let count =
                rest.iter().take(descriptor_share(32, CHUNK_FILES)).take_while(fits).count().max(1);
            self.put_chunk(&rest[..count])?;
            rest = &rest[count..];
        }
        Ok(())
    }

    fn put_chunk(&self, blocks: &[Block]) -> Result<(), BackendError> {
        let fail = |errno| self.place.fail("write a block in", errno);
        let names: Vec<(String, String)> = blocks
            .iter()
            .map(|block| block.cid.to_string())
            .map(|name| (shard_of(&name), name))
            .collect();
        let shards = names.iter().map(|(shard, _)| shard.clone()).collect();
        let dirs = self.make_shards(&shards).map_err(fail)?;
        let dir_of = |shard: &String| dirs.get(shard).ok_or(Errno::NOENT).map_err(fail);
        let (mut seen, mut bytes) = (HashSet::new(), 0);
        let mut files: Vec<Option<Temporary<'_>>> = Vec::with_capacity(blocks.len());
        for (block, (shard, name)) in blocks.iter().zip(&names) {
            let len = block.data.len() as u64;
            let before = Self::length(dir_of(shard)?, name).map_err(fail)?;
            let here = before == Some(len) && !self.is_suspect(shard);
            files.push(if here || !seen.insert(block.cid) {
                None
            } else {
                bytes += len;
                self.refuse_beyond_capacity(bytes)?;
                Some(self.place.write_temporary(&block.data)?)
            });
        }
        let written: Vec<_> = files.iter().flatten().map(Temporary::as_fd).collect();
        failpoint::reach("backend.put.written");
        self.place.sync.files(&written).map_err(fail)?;
        failpoint::reach("backend.put.synced");
        let mut unsynced = BTreeMap::new();
        for ((block, (shard, name)), file) in blocks.iter().zip(&names).zip(files) {
            if block.cid.codec() != cid::RAW {
                self.sync_all(&mut unsynced)?;
            }
            let dir = dir_of(shard)?;
            if let Some(file) = file {
                self.show(shard, dir, name, file, block.data.len() as u64).map_err(fail)?;
                failpoint::reach("backend.put.shown");
            }
            unsynced.insert(shard.as_str(), dir);
        }
        self.sync_all(&mut unsynced)
    }

    fn sync_all(&self, unsynced: &mut BTreeMap<&str, &OwnedFd>) -> Result<(), BackendError> {
        let dirs: Vec<_> = std::mem::take(unsynced).into_iter().collect();
        self.sync_shards(&dirs).map_err(|errno| self.place.fail("sync", errno))
    }

    /// Gives a file its name.
    fn show(
        &self,
        shard: &str,
        dir: &OwnedFd,
        name: &str,
        file: Temporary<'_>,
        len: u64,
    ) -> Result<(), Errno> {
        let change = self.counter.change(shard);
        self.shards.lock().entry(shard.to_owned()).or_default().renaming += 1;
        // Again, under the lock: another put may have been first.
        let moved = Self::length(dir, name).and_then(|before| {
            file.move_to(dir.as_fd(), name)?;
            change.apply(before.unwrap_or(0), len);
            Ok(())
        });
        let mut shards = self.shards.lock();
        let state = shards.entry(shard.to_owned()).or_default();
        state.renaming -= 1;
        state.renames += 1;
        moved
    }

    /// Blocks, and packs.
    pub(super) fn used(&self, blocks: Option<u64>) -> Option<u64> {
        blocks.map(|used| used.saturating_add(self.packed.load(Ordering::Relaxed)))
    }

    pub(super) fn refuse_beyond_capacity(&self, len: u64) -> Result<(), BackendError> {
        let Some(capacity) = self.capacity else { return Ok(()) };
        let Some(used) = self.used(self.counter.wait()) else {
            let message = format!(
                "the blocks in {} could not be counted, so its capacity cannot be kept: see the log",
                self.place.path.display()
            );
            return Err(BackendError::new(ErrorKind::Unavailable, message));
        };
        if used.saturating_add(len) <= capacity {
            return Ok(());
        }
        let message = format!(
            "{} holds {used} of the {capacity} bytes that its setting `capacity` allows",
            self.place.path.display()
        );
        Err(BackendError::new(ErrorKind::Full, message))
    }

    /// The bytes of a block, or of a part.
    pub(super) fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let fail = |errno| self.place.fail(&format!("read block {cid} in"), errno);
        let name = cid.to_string();
        let path = format!("{}/{name}", shard_of(&name));
        // Not blocking: what has the name might be a FIFO.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.place.blocks, &path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                // Absent only when the place itself is there.
                self.place.check()?;
                let message = format!("{} has no block {cid}", self.place.path.display());
                return Err(BackendError::new(ErrorKind::NotFound, message));
            }
            other => File::from(other.map_err(fail)?),
        };
        let meta = file.metadata().map_err(|error| fail(errno_of(&error)))?;
        let corrupt = |what: &str| {
            let message = format!("block {cid} in {} {what}", self.place.path.display());
            BackendError::new(ErrorKind::Corrupt, message)
        };
        if !meta.is_file() || meta.len() > Block::MAX_LEN as u64 {
            return Err(corrupt("is larger than any block, or not a file"));
        }
        let range = check::range(cid, range, meta.len())?;
        let len = (range.end - range.start) as usize;
        match buffers::filled(len, |buf| file.read_exact_at(buf, range.start)) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(corrupt("became shorter while it was read"))
            }
            Err(error) => Err(fail(errno_of(&error))),
        }
    }

    /// Whether each is there, durably.
    pub(super) fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        let found = cids.iter().map(|cid| {
            self.presence_of(cid).unwrap_or_else(|errno| {
                tracing::debug!(%errno, %cid, "presence is unknown");
                Presence::Unknown
            })
        });
        let found: Vec<Presence> = found.collect();
        // After the look-ups: what they say holds if the place is there now.
        self.place.check()?;
        Ok(found)
    }

    fn presence_of(&self, cid: &Cid) -> Result<Presence, Errno> {
        let name = cid.to_string();
        let shard = shard_of(&name);
        let Some(dir) = self.open_shard(&shard)? else { return Ok(Presence::Absent) };
        let Some(len) = Self::length(&dir, &name)? else { return Ok(Presence::Absent) };
        self.sync_shards(&[(&shard, &dir)])?;
        Ok(if self.is_suspect(&shard) { Presence::Unknown } else { Presence::Present(len) })
    }

    /// Removes blocks, durably.
    pub(super) fn delete_all(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.place.check()?;
        for chunk in cids.chunks(descriptor_share(32, CHUNK_FILES)) {
            let mut dirs = BTreeMap::new();
            for cid in chunk {
                let fail = |errno| self.place.fail(&format!("remove block {cid} from"), errno);
                let name = cid.to_string();
                let shard = shard_of(&name);
                let Some(dir) = self.open_shard(&shard).map_err(fail)? else { continue };
                {
                    let change = self.counter.change(&shard);
                    let len = Self::length(&dir, &name).map_err(fail)?;
                    match rustix::fs::unlinkat(&dir, &name, AtFlags::empty()) {
                        Ok(()) => change.apply(len.unwrap_or(0), 0),
                        Err(Errno::NOENT) => {}
                        Err(errno) => return Err(fail(errno)),
                    }
                }
                // Also when it was not there: its removal may not be durable yet.
                dirs.insert(shard, dir);
            }
            let dirs: Vec<_> = dirs.values().map(AsFd::as_fd).collect();
            let synced = self.place.sync.dirs(&dirs);
            synced.map_err(|errno| self.place.fail("sync", errno))?;
        }
        Ok(())
    }

    /// A page of the listing, in order of shard and then of CID text; the cursor
    /// is the last CID's text.
    pub(super) fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        let fail = |errno| self.place.fail("list the blocks of", errno);
        let limit = limit.clamp(1, PAGE_MAX);
        if let Some(text) = from.filter(|text| text.parse::<Cid>().is_err()) {
            let message = format!("`{}` is not where a page ends", text.escape_debug());
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        let after = from.map(|text| (shard_of(text), text));
        let mut page = ListPage::default();
        for shard in self.shard_names().map_err(fail)? {
            if after.as_ref().is_some_and(|(start, _)| shard < *start) {
                continue;
            }
            // Taken away meanwhile: nothing is in it.
            let Some(dir) = self.open_shard(&shard).map_err(fail)? else { continue };
            for name in entries(&dir).map_err(fail)? {
                if after.as_ref().is_some_and(|(start, last)| shard == *start && *name <= **last) {
                    continue;
                }
                let cid = name
                    .parse::<Cid>()
                    .ok()
                    .filter(|cid| shard_of(&name) == shard && cid.to_string() == name);
                let Some(cid) = cid else {
                    self.ignored.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(name, shard, "a file that is not a block is ignored");
                    continue;
                };
                match Self::length(&dir, &name) {
                    Ok(Some(len)) => page.blocks.push((cid, len)),
                    Ok(None) => continue,
                    Err(errno) => return Err(fail(errno)),
                }
                if page.blocks.len() == limit {
                    page.next = Some(name);
                    self.place.check()?;
                    return Ok(page);
                }
            }
        }
        self.place.check()?;
        Ok(page)
    }

    /// Counts the bytes of all shards; ends early when `wanted` says no.
    pub(super) fn count(&self, wanted: impl Fn() -> bool) -> Result<bool, Errno> {
        for shard in self.shard_names()? {
            if !wanted() {
                return Ok(false);
            }
            self.counter.count(&shard, || {
                let Some(dir) = self.open_shard(&shard)? else { return Ok(0) };
                let mut sum = 0;
                for name in entries(&dir)? {
                    // What is no regular file is no block.
                    sum += Self::length(&dir, &name).ok().flatten().unwrap_or(0);
                }
                Ok::<u64, Errno>(sum)
            })?;
        }
        Ok(true)
    }

    fn shard_names(&self) -> Result<Vec<String>, Errno> {
        let mut names = entries(&self.place.blocks)?;
        names.retain(|name| name.len() <= 2 && name.bytes().all(|b| b.is_ascii_alphanumeric()));
        Ok(names)
    }
}
