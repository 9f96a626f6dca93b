//! A writer that knows what a crash must leave.
//!
//! It works in a directory of its own, and keeps a model outside of the volume:
//! the tree after each call that changed it, and each file's bytes after each
//! call, from the last acknowledged state on. After the death of the daemon the
//! tree must be the last one (or with the call that was cut off), and each file
//! one of its states since its last acknowledged sync. After the loss of the disk
//! both may be older, but not older than what an acknowledgement above
//! `LOCAL_DURABILITY` covered.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, XattrFlags};

use super::model::{Entry, FileModel, Found, Random, Tree};

/// What an acknowledged sync means in this life of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// It is on the local disk, and nothing is said of backends.
    Local,
    /// It is on backends, too.
    Remote,
}

/// Why a writer ended.
#[derive(Debug)]
pub enum Stop {
    /// The mount is dead.
    Dead,
    /// The mount answered what it must not.
    Wrong(String),
}

enum InFlight {
    Tree(Tree),
    Bytes(u64),
}

pub struct Writer {
    name: String,
    mount: PathBuf,
    random: Random,
    tree: Tree,
    /// Trees since the one that backends have.
    trees: Vec<Tree>,
    files: HashMap<u64, FileModel>,
    next_id: u64,
    open: Vec<(u64, File)>,
    in_flight: Option<InFlight>,
    pub ack: Ack,
    /// Synced files are written in place (`LOCAL_DURABILITY`).
    pub in_place: bool,
    pub calls: u64,
    pub acknowledged: u64,
    pub refused: u64,
    /// What was done last, for messages.
    trail: Vec<String>,
}

const FILES: usize = 24;
const DIRECTORIES: usize = 4;
const OPEN: usize = 4;

impl Writer {
    pub fn new(name: &str, seed: u64) -> Self {
        Self {
            name: name.to_owned(),
            mount: PathBuf::new(),
            random: Random::new(seed),
            tree: Tree::default(),
            trees: vec![Tree::default()],
            files: HashMap::new(),
            next_id: 1,
            open: Vec::new(),
            in_flight: None,
            ack: Ack::Local,
            in_place: true,
            calls: 0,
            acknowledged: 0,
            refused: 0,
            trail: Vec::new(),
        }
    }

    pub fn dir(&self, mount: &Path) -> PathBuf {
        mount.join(&self.name)
    }

    pub fn trail(&self) -> String {
        let from = self.trail.len().saturating_sub(40);
        self.trail[from..].join("\n  ")
    }

    fn note(&mut self, text: String) {
        if self.trail.len() > 400 {
            self.trail.drain(..200);
        }
        self.trail.push(text);
    }

    fn failed(&self, what: &str, error: &io::Error) -> Stop {
        let dead = |error: &io::Error| {
            // ENOTCONN, ECONNABORTED, ENODEV, ESHUTDOWN: the connection is gone.
            matches!(error.raw_os_error(), Some(107 | 103 | 19 | 108))
        };
        // The kernel answers EIO to some calls that the death of the mount cuts off.
        // statfs is never answered from a cache.
        let died = || rustix::fs::statvfs(&self.mount).is_err_and(|error| dead(&error.into()));
        match error.raw_os_error() {
            _ if dead(error) => Stop::Dead,
            Some(5) if died() => Stop::Dead,
            _ => Stop::Wrong(format!("{}: {what}: {error}\n  {}", self.name, self.trail())),
        }
    }

    /// One call that changes names or attributes.
    fn change(
        &mut self,
        what: String,
        next: Tree,
        act: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), Stop> {
        let next = next.tidy();
        self.in_flight = Some(InFlight::Tree(next.clone()));
        self.note(what.clone());
        act().map_err(|e| self.failed(&what, &e))?;
        self.in_flight = None;
        self.tree = next.clone();
        self.trees.push(next);
        self.calls += 1;
        Ok(())
    }

    /// One call that changes a file's bytes.
    fn write(
        &mut self,
        what: String,
        id: u64,
        next: Vec<u8>,
        act: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), Stop> {
        let in_place = self.in_place;
        let file = self.files.entry(id).or_default();
        file.states.push(Arc::new(next));
        file.mixes |= in_place;
        self.in_flight = Some(InFlight::Bytes(id));
        self.note(what.clone());
        act().map_err(|e| self.failed(&what, &e))?;
        self.in_flight = None;
        self.calls += 1;
        Ok(())
    }

    fn sync(
        &mut self,
        what: String,
        id: Option<u64>,
        act: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), Stop> {
        self.note(what.clone());
        self.calls += 1;
        match act() {
            Ok(()) => self.acknowledge(id),
            // Too few copies: nothing was acknowledged.
            Err(error) if error.raw_os_error() == Some(5) => self.refused += 1,
            Err(error) => return Err(self.failed(&what, &error)),
        }
        Ok(())
    }

    fn acknowledge(&mut self, id: Option<u64>) {
        self.acknowledged += 1;
        let named = id.is_none_or(|id| self.tree.ids().contains(&id));
        let remote = self.ack == Ack::Remote && named;
        if let Some(file) = id.and_then(|id| self.files.get_mut(&id)) {
            file.local = file.states.len().saturating_sub(1);
            if remote {
                file.remote = file.local;
                file.mixes = false;
                file.on_backends = true;
            }
            file.forget_old();
        }
        if remote {
            self.trees = vec![self.tree.clone()];
        }
    }

    fn paths(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<String> {
        let found = self.tree.entries.iter().filter(|(_, entry)| wanted(entry));
        found.map(|(path, _)| path.clone()).collect()
    }

    fn any_file(&mut self) -> Option<(String, u64)> {
        let paths = self.paths(|entry| matches!(entry, Entry::File(_)));
        let path = paths.get(self.random.below(paths.len()))?.clone();
        match self.tree.entries.get(&path) {
            Some(Entry::File(id)) => Some((path, *id)),
            _ => None,
        }
    }

    fn any_name(&mut self, prefix: &str, of: usize) -> String {
        let mut directories = self.paths(|entry| *entry == Entry::Directory);
        directories.push(String::new());
        let directory = &directories[self.random.below(directories.len())];
        let name = format!("{prefix}{}", self.random.below(of));
        if directory.is_empty() { name } else { format!("{directory}/{name}") }
    }

    fn handle(&mut self, mount: &Path) -> Result<Option<(u64, File)>, Stop> {
        if !self.open.is_empty() && (self.open.len() >= OPEN || self.random.below(3) > 0) {
            let at = self.random.below(self.open.len());
            let (id, file) = &self.open[at];
            let id = *id;
            let file = file.try_clone().map_err(|e| self.failed("dup", &e))?;
            return Ok(Some((id, file)));
        }
        let Some((path, id)) = self.any_file() else { return Ok(None) };
        self.note(format!("open {path}"));
        let file = File::options().read(true).write(true).open(self.dir(mount).join(&path));
        let file = file.map_err(|e| self.failed("open", &e))?;
        let copy = file.try_clone().map_err(|e| self.failed("dup", &e))?;
        self.open.push((id, copy));
        Ok(Some((id, file)))
    }

    /// Makes the directory that it works in.
    pub fn begin(&mut self, mount: &Path) -> Result<(), Stop> {
        mount.clone_into(&mut self.mount);
        match fs::create_dir(self.dir(mount)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(self.failed("mkdir", &e)),
            _ => Ok(()),
        }
    }

    /// Closes all that it has open.
    pub fn close(&mut self) {
        self.open.clear();
    }

    /// One random thing.
    pub fn step(&mut self, mount: &Path) -> Result<(), Stop> {
        match self.random.below(100) {
            0..16 => self.create(mount),
            16..40 => self.write_somewhere(mount),
            40..46 => self.resize(mount),
            46..50 => self.punch(mount),
            50..66 => self.sync_file(mount),
            66..69 => {
                let dir = self.dir(mount);
                self.sync("fsync .".into(), None, || File::open(dir)?.sync_all())
            }
            69..75 => self.rename(mount),
            75..78 => self.rename_directory(mount),
            78..81 => self.link(mount),
            81..86 => self.unlink(mount),
            86..89 => self.directory(mount),
            89..92 => self.attribute(mount),
            92..95 => self.copy(mount),
            95..97 => {
                // Closed: it is committed, sooner or later.
                if !self.open.is_empty() {
                    let at = self.random.below(self.open.len());
                    let (id, _file) = self.open.swap_remove(at);
                    self.note(format!("close #{id}"));
                }
                Ok(())
            }
            _ => self.read(mount),
        }
    }

    fn create(&mut self, mount: &Path) -> Result<(), Stop> {
        let path = self.any_name("f", FILES);
        let place = self.dir(mount).join(&path);
        if let Some(Entry::File(id)) = self.tree.entries.get(&path) {
            let id = *id;
            return self.write(format!("truncate {path} #{id} by O_TRUNC"), id, Vec::new(), || {
                File::create(place).map(drop)
            });
        }
        let id = self.next_id;
        self.next_id += 1;
        let mut next = self.tree.clone();
        next.entries.insert(path.clone(), Entry::File(id));
        let first = FileModel { states: vec![Arc::default()], ..FileModel::default() };
        self.files.insert(id, first);
        let mut made = None;
        self.change(format!("create {path} #{id}"), next, || {
            made = Some(File::options().read(true).write(true).create_new(true).open(place)?);
            Ok(())
        })?;
        if let Some(file) = made {
            if self.open.len() >= OPEN {
                self.open.swap_remove(0);
            }
            let copy = file.try_clone().map_err(|e| self.failed("dup", &e))?;
            self.open.push((id, copy));
            self.write_to(id, &file)?;
        }
        Ok(())
    }

    fn write_somewhere(&mut self, mount: &Path) -> Result<(), Stop> {
        let Some((id, file)) = self.handle(mount)? else { return Ok(()) };
        self.write_to(id, &file)
    }

    fn write_to(&mut self, id: u64, file: &File) -> Result<(), Stop> {
        let before = self.files.entry(id).or_default().now();
        let len = match self.random.below(40) {
            0 => 1_500_000 + self.random.below(1_500_000),
            1..5 => 120_000 + self.random.below(200_000),
            _ => 1 + self.random.below(20_000),
        };
        let at = match self.random.below(3) {
            0 => 0,
            1 => before.len(),
            _ => self.random.below(before.len() + 6000),
        };
        // Bounded: models are kept for many states.
        let at = at.min(4_000_000);
        let data = self.random.bytes(len);
        let mut next = before.as_ref().clone();
        next.resize(next.len().max(at + len), 0);
        next[at..at + len].copy_from_slice(&data);
        self.write(format!("write #{id} {at}+{len}"), id, next, || {
            file.write_all_at(&data, at as u64)
        })
    }

    fn resize(&mut self, mount: &Path) -> Result<(), Stop> {
        let Some((id, file)) = self.handle(mount)? else { return Ok(()) };
        let mut next = self.files.entry(id).or_default().now().as_ref().clone();
        let len = self.random.below(next.len() + 5000);
        next.resize(len, 0);
        self.write(format!("truncate #{id} {len}"), id, next, || file.set_len(len as u64))
    }

    fn punch(&mut self, mount: &Path) -> Result<(), Stop> {
        let Some((id, file)) = self.handle(mount)? else { return Ok(()) };
        let mut next = self.files.entry(id).or_default().now().as_ref().clone();
        if next.is_empty() {
            return Ok(());
        }
        let start = self.random.below(next.len());
        let end = (start + 1 + self.random.below(50_000)).min(next.len());
        next[start..end].fill(0);
        let flags = if self.random.below(2) == 0 {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        self.write(format!("zero #{id} {start}..{end}"), id, next, || {
            Ok(rustix::fs::fallocate(&file, flags, start as u64, (end - start) as u64)?)
        })
    }

    fn sync_file(&mut self, mount: &Path) -> Result<(), Stop> {
        let Some((id, file)) = self.handle(mount)? else { return Ok(()) };
        if self.random.below(2) == 0 {
            self.sync(format!("fsync #{id}"), Some(id), || file.sync_all())
        } else {
            self.sync(format!("fdatasync #{id}"), Some(id), || file.sync_data())
        }
    }

    fn rename(&mut self, mount: &Path) -> Result<(), Stop> {
        let Some((from, id)) = self.any_file() else { return Ok(()) };
        let to = self.any_name("f", FILES);
        // Two names of one file: rename(2) does nothing.
        if self.tree.entries.get(&to) == Some(&Entry::File(id)) {
            return Ok(());
        }
        let mut next = self.tree.clone();
        next.entries.remove(&from);
        next.entries.insert(to.clone(), Entry::File(id));
        let dir = self.dir(mount);
        self.change(format!("rename {from} {to}"), next, || {
            fs::rename(dir.join(&from), dir.join(&to))
        })
    }

    fn rename_directory(&mut self, mount: &Path) -> Result<(), Stop> {
        let directories = self.paths(|entry| *entry == Entry::Directory);
        let Some(from) = directories.get(self.random.below(directories.len())).cloned() else {
            return Ok(());
        };
        let to = format!("d{}", self.random.below(DIRECTORIES));
        if self.tree.entries.contains_key(&to) {
            return Ok(());
        }
        let below = format!("{from}/");
        let mut next = self.tree.clone();
        next.entries = std::mem::take(&mut next.entries)
            .into_iter()
            .map(|(path, entry)| match path.strip_prefix(&below) {
                Some(rest) => (format!("{to}/{rest}"), entry),
                None if path == from => (to.clone(), entry),
                None => (path, entry),
            })
            .collect();
        let dir = self.dir(mount);
        self.change(format!("rename {from}/ {to}/"), next, || {
            fs::rename(dir.join(&from), dir.join(&to))
        })
    }

    fn link(&mut self, mount: &Path) -> Result<(), Stop> {
        let dir = self.dir(mount);
        let to = self.any_name("l", FILES);
        if self.tree.entries.contains_key(&to) {
            return Ok(());
        }
        let mut next = self.tree.clone();
        if self.random.below(3) == 0 {
            let target = format!("target-{}", self.random.next());
            next.entries.insert(to.clone(), Entry::Link(target.clone()));
            return self.change(format!("symlink {to}"), next, || {
                std::os::unix::fs::symlink(target, dir.join(&to))
            });
        }
        let Some((from, id)) = self.any_file() else { return Ok(()) };
        next.entries.insert(to.clone(), Entry::File(id));
        self.change(format!("link {from} {to} #{id}"), next, || {
            fs::hard_link(dir.join(&from), dir.join(&to))
        })
    }

    fn unlink(&mut self, mount: &Path) -> Result<(), Stop> {
        let paths = self.paths(|entry| *entry != Entry::Directory);
        let Some(path) = paths.get(self.random.below(paths.len())).cloned() else { return Ok(()) };
        let mut next = self.tree.clone();
        next.entries.remove(&path);
        let place = self.dir(mount).join(&path);
        self.change(format!("unlink {path}"), next, || fs::remove_file(place))
    }

    fn directory(&mut self, mount: &Path) -> Result<(), Stop> {
        let path = format!("d{}", self.random.below(DIRECTORIES));
        let place = self.dir(mount).join(&path);
        let mut next = self.tree.clone();
        if next.entries.remove(&path).is_none() {
            next.entries.insert(path.clone(), Entry::Directory);
            return self.change(format!("mkdir {path}"), next, || fs::create_dir(place));
        }
        let below = format!("{path}/");
        if next.entries.keys().any(|other| other.starts_with(&below)) {
            return Ok(());
        }
        self.change(format!("rmdir {path}"), next, || fs::remove_dir(place))
    }

    fn attribute(&mut self, mount: &Path) -> Result<(), Stop> {
        let Some((path, id)) = self.any_file() else { return Ok(()) };
        let name = format!("user.k{}", self.random.below(3));
        let place = self.dir(mount).join(&path);
        let mut next = self.tree.clone();
        let names = next.xattrs.entry(id).or_default();
        if names.contains_key(&name) && self.random.below(3) == 0 {
            names.remove(&name);
            let key = CString::new(name.clone()).unwrap();
            return self.change(format!("removexattr {path} {name}"), next, || {
                Ok(rustix::fs::lremovexattr(place, key)?)
            });
        }
        let len = self.random.below(300);
        let value = self.random.bytes(len);
        names.insert(name.clone(), value.clone());
        self.change(format!("setxattr {path} {name}"), next, || {
            Ok(rustix::fs::lsetxattr(place, name, &value, XattrFlags::empty())?)
        })
    }

    fn copy(&mut self, mount: &Path) -> Result<(), Stop> {
        let (Some((path, from)), Some((to, target))) = (self.any_file(), self.handle(mount)?)
        else {
            return Ok(());
        };
        if from == to {
            return Ok(());
        }
        let bytes = self.files.entry(from).or_default().now();
        let mut next = self.files.entry(to).or_default().now().as_ref().clone();
        let at = if self.random.below(2) == 0 { 0 } else { self.random.below(next.len() + 1) };
        next.resize(next.len().max(at + bytes.len()), 0);
        next[at..at + bytes.len()].copy_from_slice(&bytes);
        let source = File::open(self.dir(mount).join(&path));
        let source = source.map_err(|e| self.failed("open", &e))?;
        self.write(format!("copy_file_range {path} #{to} at {at}"), to, next, || {
            let (mut done, mut there) = (0, at as u64);
            while done < bytes.len() as u64 {
                let left = bytes.len() - done as usize;
                let n = rustix::fs::copy_file_range(
                    &source,
                    Some(&mut done),
                    &target,
                    Some(&mut there),
                    left,
                )?;
                if n == 0 {
                    return Err(io::Error::other("the source ended early"));
                }
            }
            Ok(())
        })
    }

    fn read(&mut self, mount: &Path) -> Result<(), Stop> {
        let Some((path, id)) = self.any_file() else { return Ok(()) };
        self.note(format!("read {path}"));
        let bytes = fs::read(self.dir(mount).join(&path)).map_err(|e| self.failed("read", &e))?;
        let now = self.files.entry(id).or_default().now();
        if bytes == *now {
            return Ok(());
        }
        let first = bytes.iter().zip(now.iter()).position(|(a, b)| a != b);
        Err(Stop::Wrong(format!(
            "{}/{path} #{id} is not what was written: {} bytes for {}, first difference {first:?}\n  {}",
            self.name,
            bytes.len(),
            now.len(),
            self.trail()
        )))
    }

    /// Changes part of a file through a shared mapping, with msync.
    pub fn map(
        &mut self,
        mount: &Path,
        python: &dyn Fn(&[String]) -> Option<bool>,
    ) -> Result<(), Stop> {
        let Some((path, id)) = self.any_file() else { return Ok(()) };
        let mut next = self.files.entry(id).or_default().now().as_ref().clone();
        if next.is_empty() {
            return Ok(());
        }
        let start = self.random.below(next.len());
        let end = (start + 1 + self.random.below(9000)).min(next.len());
        let byte = self.random.next() as u8;
        next[start..end].fill(byte);
        let file = self.files.entry(id).or_default();
        file.states.push(Arc::new(next));
        file.mixes = true;
        self.in_flight = Some(InFlight::Bytes(id));
        self.note(format!("map and msync {path} #{id} {start}..{end}"));
        let place = self.dir(mount).join(&path).to_str().unwrap().to_owned();
        let words = [place, start.to_string(), end.to_string(), byte.to_string()];
        match python(&words) {
            Some(true) => self.acknowledge(Some(id)),
            Some(false) => {}
            None => return Err(Stop::Dead),
        }
        self.in_flight = None;
        Ok(())
    }

    /// After the death of the daemon: compares what is there, and goes on from it.
    pub fn check_after_crash(&mut self, mount: &Path) -> Result<(), String> {
        self.open.clear();
        let mut trees = vec![self.tree.clone()];
        let mut cut_off = None;
        match self.in_flight.take() {
            Some(InFlight::Tree(next)) => trees.push(next),
            Some(InFlight::Bytes(id)) => cut_off = Some(id),
            None => {}
        }
        let found = Found::read(&self.dir(mount))?;
        let ids = self.matching(&found, &trees)?;
        if let Some(reason) = found.unreadable.values().next() {
            return Err(format!("{}/{reason}\n  {}", self.name, self.trail()));
        }
        for (id, ino) in &ids {
            let bytes = &found.bytes[ino];
            let file = self.files.entry(*id).or_default();
            let mixes = file.mixes || cut_off == Some(*id);
            if !file.allows(bytes, file.local, mixes) {
                let text = self.torn(*id, bytes);
                return Err(text);
            }
            // It was found, so it stays.
            if *file.now() != *bytes {
                file.states.push(Arc::new(bytes.clone()));
            }
            file.local = file.states.len().saturating_sub(1);
            file.mixes = file.mixes && file.remote < file.local;
            file.forget_old();
        }
        self.trees.push(self.tree.clone());
        Ok(())
    }

    /// After the loss of the disk and a recovery.
    pub fn check_after_loss(&mut self, mount: &Path) -> Result<(), String> {
        self.open.clear();
        let mut cut_off = None;
        match self.in_flight.take() {
            Some(InFlight::Tree(next)) => self.trees.push(next),
            Some(InFlight::Bytes(id)) => cut_off = Some(id),
            None => {}
        }
        let found = Found::read(&self.dir(mount))?;
        // The newest first: of two that fit, the one with more is meant. Two trees may
        // have the same names for other files (one was replaced, one made anew).
        let trees: Vec<Tree> = self.trees.iter().rev().cloned().collect();
        let fitting = trees.iter().filter(|tree| {
            let ids = found.is(tree).unwrap_or_default();
            ids.iter().all(|(id, ino)| {
                let mixes = cut_off == Some(*id);
                let bytes = found.bytes.get(ino);
                bytes.is_none_or(|bytes| {
                    self.files.get(id).is_some_and(|f| f.allows(bytes, f.remote, f.mixes || mixes))
                })
            })
        });
        let fitting: Vec<Tree> = fitting.cloned().collect();
        let trees = if fitting.is_empty() { trees } else { fitting };
        let ids = self.matching(&found, &trees)?;
        for (id, ino) in &ids {
            let file = self.files.entry(*id).or_default();
            let Some(bytes) = found.bytes.get(ino) else {
                let reason = &found.unreadable[ino];
                if file.on_backends {
                    return Err(format!("{}/{reason}\n  {}", self.name, self.trail()));
                }
                self.remove_lost(mount, *id)?;
                continue;
            };
            let mixes = file.mixes || cut_off == Some(*id);
            if !file.allows(bytes, file.remote, mixes) {
                return Err(self.torn(*id, bytes));
            }
            let on_backends = file.on_backends;
            let states = vec![Arc::new(bytes.clone())];
            *file = FileModel { states, on_backends, ..FileModel::default() };
        }
        self.trees = vec![self.tree.clone()];
        Ok(())
    }

    /// Nobody promised its bytes, and they are gone: so are its names.
    fn remove_lost(&mut self, mount: &Path, id: u64) -> Result<(), String> {
        for path in self.paths(|entry| *entry == Entry::File(id)) {
            let place = self.dir(mount).join(&path);
            fs::remove_file(&place).map_err(|e| format!("{}: {e}", place.display()))?;
            self.tree.entries.remove(&path);
        }
        self.tree = std::mem::take(&mut self.tree).tidy();
        Ok(())
    }

    fn torn(&self, id: u64, bytes: &[u8]) -> String {
        let file = &self.files[&id];
        let lens: Vec<usize> = file.states.iter().map(|state| state.len()).collect();
        let differs = |state: &Arc<Vec<u8>>| {
            let first = state.iter().zip(bytes).position(|(a, b)| a != b);
            let count = state.iter().zip(bytes).filter(|(a, b)| a != b).count();
            format!("{first:?} ({count} bytes)")
        };
        let differences: Vec<String> = file.states.iter().map(differs).collect();
        format!(
            "{} #{id}: {} bytes are none of its states (lengths {lens:?}, local {}, remote {}, mixes {}); first differences {differences:?}\n  {}",
            self.name,
            bytes.len(),
            file.local,
            file.remote,
            file.mixes,
            self.trail()
        )
    }

    /// Finds the tree that is there; which inode each file is.
    fn matching(&mut self, found: &Found, trees: &[Tree]) -> Result<BTreeMap<u64, u64>, String> {
        let mut reasons = Vec::new();
        for tree in trees {
            match found.is(tree) {
                Ok(ids) => {
                    self.tree = tree.clone();
                    return Ok(ids);
                }
                Err(reason) => reasons.push(reason),
            }
        }
        reasons.truncate(4);
        Err(format!(
            "{}: the tree is none of {} that it may be: {}\n  {}",
            self.name,
            trees.len(),
            reasons.join("\n    or "),
            self.trail()
        ))
    }
}
