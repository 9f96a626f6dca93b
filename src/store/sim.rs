//! A disk in memory that loses, at a power cut, what was not synced: any part
//! of it, whole, torn or not at all.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile, FileStat, OpenHow};
use crate::runtime::Room;

/// What a disk writes at once or not at all.
const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Punch(u64, u64),
}

#[derive(Debug, Clone)]
enum NameChange {
    Create(PathBuf, u64),
    Rename(PathBuf, PathBuf, u64),
    Remove(PathBuf),
}

#[derive(Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug, Default)]
struct State {
    inodes: HashMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    pending: Vec<NameChange>,
    syncs: u64,
    cut_at: Option<u64>,
    off: bool,
    failing: bool,
    full: bool,
}

/// Clones share the disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
}

fn power_off() -> io::Error {
    io::Error::other("the power is off")
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, data) => {
            let end = *at as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at as usize..end].copy_from_slice(data);
        }
        Change::SetLen(len) => bytes.resize(*len as usize, 0),
        Change::Punch(at, len) => {
            let end = ((at + len) as usize).min(bytes.len());
            bytes[(*at as usize).min(end)..end].fill(0);
        }
    }
}

fn apply_name(names: &mut BTreeMap<PathBuf, u64>, change: &NameChange) {
    match change {
        NameChange::Create(path, inode) => {
            names.insert(path.clone(), *inode);
        }
        NameChange::Rename(from, to, inode) => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
        NameChange::Remove(path) => {
            names.remove(path);
        }
    }
}

impl NameChange {
    fn touches(&self, dir: &Path) -> bool {
        let inside = |path: &Path| path.parent() == Some(dir);
        match self {
            Self::Create(path, _) | Self::Remove(path) => inside(path),
            Self::Rename(from, to, _) => inside(from) || inside(to),
        }
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        if self.off { Err(power_off()) } else { Ok(()) }
    }

    /// Whether this sync still does its work; the cut comes right after or
    /// right before it.
    fn begin_sync(&mut self) -> io::Result<bool> {
        self.check()?;
        self.syncs += 1;
        if self.failing {
            return Err(io::Error::other("the disk failed a sync"));
        }
        self.off = self.cut_at == Some(self.syncs);
        Ok(!self.off || self.syncs.is_multiple_of(2))
    }

    fn end_sync(&self) -> io::Result<()> {
        self.check()
    }
}

impl SimDisk {
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// The power goes at the `n`th sync from the beginning (1 is the first).
    pub fn cut_at(&self, n: u64) {
        self.0.lock().cut_at = Some(n);
    }

    /// The power stays.
    pub fn disarm(&self) {
        self.0.lock().cut_at = None;
    }

    /// The power goes now.
    pub fn cut(&self) {
        self.0.lock().off = true;
    }

    /// A sync of something that has no bytes here.
    pub fn sync(&self, path: &Path) -> io::Result<()> {
        self.sync_dir(path)
    }

    pub fn is_off(&self) -> bool {
        self.0.lock().off
    }

    pub fn fail_syncs(&self, failing: bool) {
        self.0.lock().failing = failing;
    }

    /// Writes find no room.
    pub fn fill(&self, full: bool) {
        self.0.lock().full = full;
    }

    pub fn exists(&self, path: &Path) -> bool {
        self.0.lock().names.contains_key(path)
    }

    pub fn names(&self) -> Vec<PathBuf> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// Power off and on: what was not synced is there in part.
    pub fn crash(&self, rng: &mut fastrand::Rng) {
        let mut state = self.0.lock();
        let state = &mut *state;
        for inode in state.inodes.values_mut() {
            for change in std::mem::take(&mut inode.pending) {
                match (rng.u8(0..3), change) {
                    (0, _) => {}
                    (1, Change::Write(at, data)) => {
                        // The length reached the disk, and some of the sectors.
                        let end = at as usize + data.len();
                        let len = inode.durable.len().max(end);
                        inode.durable.resize(len, 0);
                        for (i, part) in data.chunks(SECTOR).enumerate() {
                            if rng.bool() {
                                let at = at as usize + i * SECTOR;
                                inode.durable[at..at + part.len()].copy_from_slice(part);
                            }
                        }
                    }
                    (_, change) => apply(&mut inode.durable, &change),
                }
            }
            inode.bytes.clone_from(&inode.durable);
        }
        for change in std::mem::take(&mut state.pending) {
            match (rng.u8(0..3), &change) {
                (0, _) => {}
                (1, NameChange::Rename(_, to, inode)) => {
                    state.durable.insert(to.clone(), *inode);
                }
                _ => apply_name(&mut state.durable, &change),
            }
        }
        state.names.clone_from(&state.durable);
        state.off = false;
        state.cut_at = None;
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, how: OpenHow) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.check()?;
        let inode = match (state.names.get(path), how) {
            (Some(_), OpenHow::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => *inode,
            (None, OpenHow::CreateNew) => {
                let inode = state.inodes.len() as u64;
                state.inodes.insert(inode, Inode::default());
                state.names.insert(path.to_owned(), inode);
                state.pending.push(NameChange::Create(path.to_owned(), inode));
                inode
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(SimFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check()?;
        if state.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned(), inode);
        apply_name(&mut state.names, &change);
        state.pending.push(change);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check()?;
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        state.pending.push(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn make_dir(&self, _: &Path) -> io::Result<()> {
        self.0.lock().check()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.begin_sync()? {
            let pending = std::mem::take(&mut state.pending);
            let (now, later) = pending.into_iter().partition(|change| change.touches(path));
            state.pending = later;
            let now: Vec<NameChange> = now;
            now.iter().for_each(|change| apply_name(&mut state.durable, change));
        }
        state.end_sync()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        state.check()?;
        let mut names: Vec<String> = state
            .names
            .keys()
            .filter_map(|name| name.strip_prefix(path).ok()?.iter().next()?.to_str())
            .map(str::to_owned)
            .collect();
        names.dedup();
        Ok(names)
    }

    fn space(&self, _: &Path) -> io::Result<Room> {
        Ok(Room { capacity: 1 << 40, available: 1 << 39 })
    }
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.check()?;
        let inode = state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        apply(&mut inode.bytes, &change);
        inode.pending.push(change);
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.0.lock();
        state.check()?;
        let bytes = &state.inodes[&self.inode].bytes;
        let start = (offset as usize).min(bytes.len());
        let count = buf.len().min(bytes.len() - start);
        buf[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.disk.0.lock().full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.change(Change::Write(offset, data.to_vec()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len))
    }

    fn stat(&self) -> io::Result<FileStat> {
        let state = self.disk.0.lock();
        state.check()?;
        let len = state.inodes[&self.inode].bytes.len() as u64;
        let links = state.names.values().filter(|inode| **inode == self.inode).count() as u64;
        Ok(FileStat { len, allocated: len, links })
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        self.disk.0.lock().check()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Change::Punch(offset, len))
    }

    fn seek(&self, offset: u64, hole: bool) -> io::Result<Option<u64>> {
        let len = self.stat()?.len;
        Ok((offset < len).then_some(if hole { len } else { offset }))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let works = state.begin_sync();
        if let Some(inode) = state.inodes.get_mut(&self.inode) {
            if works.as_ref().is_ok_and(|works| *works) {
                inode.durable.clone_from(&inode.bytes);
                inode.pending.clear();
            } else if works.is_err() && !state.off {
                // A failed sync drops the dirty pages and calls them clean.
                state.inodes.entry(self.inode).or_default().pending.clear();
            }
        }
        works?;
        state.end_sync()
    }
}
