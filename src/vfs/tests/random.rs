//! Random histories beside the model: reopened, killed, cut off from power.
//! `CAIRN_MODEL_CASES` multiplies the cases, `CAIRN_MODEL_SEED` runs one.

use std::collections::HashMap;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::model::{Model, new_node};
use super::walk::Walk;
use super::world::{Ground, World};
use crate::metadata::RenameMode;
use crate::runtime::Clock;
use crate::types::{FileKind, Ino, Name, Timestamp};
use crate::vfs::{Caller, HandleId, OpenOptions, SetAttr, VfsError};

const ROOT: Caller = Caller { uid: 0, gid: 0 };
/// Longest file of a history, in bytes: some levels of nodes.
const LONGEST: u64 = 220_000;

/// An open file, as the test holds it.
pub struct Handle {
    pub id: HandleId,
    pub ino: Ino,
    options: OpenOptions,
    wrote: bool,
}

/// What a file had since it was last durable, that state first.
pub struct History {
    pub states: Vec<Arc<Vec<u8>>>,
    /// The durable state is a synced staging file that is written in place:
    /// like a local disk's, what came later may be there in part.
    pub in_place: bool,
}

pub struct Run {
    pub world: World,
    pub random: fastrand::Rng,
    pub model: Model,
    /// Since names were last durable, that state first.
    pub states: Vec<Model>,
    pub histories: HashMap<Ino, History>,
    pub handles: Vec<Handle>,
    walks: Vec<Walk>,
    /// Crashes are power cuts; else kills.
    pub power: bool,
    local: bool,
    wait_on_close: bool,
    trace: Vec<String>,
    seed: u64,
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("seed {}, power cuts: {}", self.seed, self.power);
            self.trace.iter().enumerate().for_each(|(n, line)| println!("{n:4} {line}"));
        }
    }
}

impl Run {
    fn new(seed: u64, ground: Ground) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let (local, wait_on_close) = (random.bool(), random.bool());
        let level = if local { "LOCAL_DURABILITY" } else { "QUORUM" };
        let wait = if wait_on_close { "close" } else { "fsync" };
        let memory = [0, 6000, 16_384, 1 << 20][random.usize(0..4)];
        let dirty = [1, 40_000, 1 << 30][random.usize(0..3)];
        let power = ground == Ground::Simulated && random.u8(0..4) > 0;
        let policy = format!("level={level},wait_on={wait}");
        let mut run = Self {
            world: World::new(ground, &policy, memory, dirty),
            random,
            model: Model::new(),
            states: vec![Model::new()],
            histories: HashMap::new(),
            handles: Vec::new(),
            walks: Vec::new(),
            power,
            local,
            wait_on_close,
            trace: vec![format!("{policy} memory={memory} dirty={dirty} {ground:?}")],
            seed,
        };
        run.arm();
        run
    }

    /// Perhaps the power will go at one of the next syncs.
    pub fn arm(&mut self) {
        if self.power && self.random.bool() {
            let disk = self.world.disk().unwrap();
            disk.cut_at(disk.syncs() + self.random.u64(1..25));
        }
    }

    pub fn note(&mut self, what: impl Into<String>) {
        self.trace.push(what.into());
    }

    /// Holds a result against the expected one; `None` for errors. With the
    /// power off any error will do.
    fn agree<T>(
        &mut self,
        what: impl Into<String>,
        got: Result<T, VfsError>,
        expected: Result<(), Errno>,
    ) -> Option<T> {
        let what = what.into();
        let line = match &got {
            Ok(_) => what.clone(),
            Err(error) => format!("{what}: {error}"),
        };
        self.note(line);
        match (got, expected) {
            (Ok(value), Ok(())) => Some(value),
            (Err(_), _) if self.world.is_off() => None,
            (Err(error), Err(wanted)) if error.errno().0 == wanted.raw_os_error() => None,
            (got, wanted) => panic!("{what}: {:?}, the model says {wanted:?}", got.map(drop)),
        }
    }

    /// As [`Run::agree`]; the model goes on to `after` when that is what should
    /// happen, also when the power went in the middle.
    fn apply<T>(
        &mut self,
        what: impl Into<String>,
        got: Result<T, VfsError>,
        (expected, after): (Result<(), Errno>, Model),
    ) -> Option<T> {
        if expected.is_ok() {
            self.model = after;
        }
        self.agree(what, got, expected)
    }

    /// What happens to the model if `change` is done.
    fn after<T>(&self, change: impl FnOnce(&mut Model) -> T) -> (T, Model) {
        let mut after = self.model.clone();
        let outcome = change(&mut after);
        (outcome, after)
    }

    /// A file's bytes changed.
    fn changed(&mut self, ino: Ino) {
        let data = Arc::clone(&self.model.of(ino).data);
        let history = self.histories.entry(ino);
        let empty = || History { states: vec![Arc::default()], in_place: false };
        history.or_insert_with(empty).states.push(data);
    }

    fn durable(&mut self, ino: Ino, in_place: bool) {
        let states = vec![Arc::clone(&self.model.of(ino).data)];
        self.histories.insert(ino, History { states, in_place });
    }

    fn names_durable(&mut self) {
        self.states = vec![self.model.clone()];
    }

    fn all_durable(&mut self) {
        for ino in self.model.inos(FileKind::File) {
            self.durable(ino, false);
        }
        self.names_durable();
    }

    fn directory(&mut self) -> Ino {
        let all = self.model.inos(FileKind::Directory);
        all[self.random.usize(0..all.len())]
    }

    /// Often a name that exists.
    fn place(&mut self) -> (Ino, Name) {
        let parent = self.directory();
        let entries = &self.model.of(parent).entries;
        if !entries.is_empty() && self.random.u8(0..10) < 7 {
            let name = entries.keys().nth(self.random.usize(0..entries.len())).unwrap();
            return (parent, name.clone());
        }
        let names: [&[u8]; 7] = [b"a", b"b", b"c", b"d", b"e", b"new\nline", b"bad\xff"];
        (parent, Name::new(names[self.random.usize(0..names.len())]).unwrap())
    }

    fn file(&mut self) -> Option<Ino> {
        let all = self.model.inos(FileKind::File);
        (!all.is_empty()).then(|| all[self.random.usize(0..all.len())])
    }

    fn any(&mut self) -> Ino {
        let all: Vec<Ino> = self.model.nodes.keys().copied().collect();
        all[self.random.usize(0..all.len())]
    }

    /// Index of a handle, open for writing if asked.
    fn open_handle(&mut self, write: bool) -> Option<usize> {
        let fit: Vec<usize> = (0..self.handles.len())
            .filter(|at| !write || self.handles[*at].options.write)
            .collect();
        (!fit.is_empty()).then(|| fit[self.random.usize(0..fit.len())])
    }

    /// Offsets and lengths that like pages, leaves and small numbers.
    fn number(&mut self, most: u64) -> u64 {
        let random = &mut self.random;
        let number = match random.u8(0..6) {
            0 => random.u64(0..200),
            1 => random.u64(0..30) * 4096,
            2 => random.u64(0..10) * 16_384,
            3 => random.u64(0..12) * 16_384 + random.u64(0..3),
            _ => random.u64(0..most),
        };
        number.min(most)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = self.number(20_000).max(1) as usize;
        match self.random.u8(0..6) {
            0 => vec![0; len],
            1 => vec![7; len],
            _ => std::iter::repeat_with(|| self.random.u8(..)).take(len).collect(),
        }
    }

    fn step(&mut self) {
        let before = self.world.clock.now();
        match self.random.u8(0..100) {
            0..8 => self.create(),
            8..18 => self.open(),
            18..34 => self.write(),
            34..40 => self.read(),
            40..46 => self.truncate(),
            46..51 => self.fallocate(),
            51..55 => self.copy(),
            55..58 => self.seek(),
            58..64 => self.close(),
            64..68 => self.flush(),
            68..73 => self.fsync(),
            73..80 => self.rename(),
            80..83 => self.link(),
            83..87 => self.remove(),
            87..90 => self.attributes(before),
            90..94 => self.xattr(),
            94..96 => self.walk(),
            96 => self.sync(),
            97 => self.content_id(),
            _ => self.restart(),
        }
        for walk in &mut self.walks {
            walk.see(&self.model);
        }
        let open: Vec<Ino> = self.handles.iter().map(|handle| handle.ino).collect();
        self.model.nodes.retain(|ino, node| node.nlink > 0 || open.contains(ino));
        self.states.push(self.model.clone());
        if self.world.is_off() {
            self.crash();
        }
    }

    fn create(&mut self) {
        let (parent, name) = self.place();
        let kind = match self.random.u8(0..12) {
            0..3 => FileKind::Directory,
            3 => FileKind::Symlink,
            4 => FileKind::Fifo,
            _ => FileKind::File,
        };
        let target: &[u8] = if kind == FileKind::Symlink { b"to\xffwhere" } else { b"" };
        let mode = self.random.u32(0..0o7777) & !0o2000;
        let made = self.world.vfs().make(parent, &name, kind, (mode, 0), (3, 4), target);
        let expected = self.model.free(parent, &name);
        let what = format!("make {kind:?} {parent}/{name:?}");
        if let Some(made) = self.agree(what, made, expected) {
            let mut node = new_node(kind, parent);
            node.mode = mode;
            node.owner = (3, 4);
            let above = self.model.of(parent);
            if above.mode & 0o2000 != 0 {
                node.owner.1 = above.owner.1;
                node.mode |= if kind == FileKind::Directory { 0o2000 } else { 0 };
            }
            node.data = Arc::new(target.to_vec());
            self.model.add(parent, &name, made.ino, node);
            if kind == FileKind::File && self.random.bool() {
                self.open_file(made.ino, OpenOptions { write: true, ..OpenOptions::default() });
            }
        }
    }

    fn open(&mut self) {
        if self.handles.len() > 8 {
            return self.close();
        }
        let Some(ino) = self.file() else { return };
        let write = self.random.u8(0..4) > 0;
        let truncate = write && self.random.u8(0..6) == 0;
        let append = write && self.random.u8(0..6) == 0;
        self.open_file(ino, OpenOptions { write, truncate, append, no_access_time: false });
    }

    fn open_file(&mut self, ino: Ino, options: OpenOptions) {
        let opened = self.world.vfs().open_file(ino, options);
        if options.truncate {
            self.model.change(ino, Vec::clear);
            self.changed(ino);
        }
        if let Some(id) = self.agree(format!("open {ino} {options:?}"), opened, Ok(())) {
            self.handles.push(Handle { id, ino, options, wrote: options.truncate });
        }
    }

    fn write(&mut self) {
        let Some(at) = self.open_handle(true) else { return self.open() };
        let Handle { id, ino, options, .. } = self.handles[at];
        let size = self.model.of(ino).data.len() as u64;
        let asked = if self.random.u8(0..3) == 0 { size } else { self.number(LONGEST - 20_000) };
        let offset = if options.append { size } else { asked };
        let bytes = self.bytes();
        if offset + bytes.len() as u64 > LONGEST {
            return;
        }
        let before = self.world.clock.now();
        let got = self.world.vfs().write(id, asked, &bytes);
        self.model.write(ino, offset, &bytes);
        self.changed(ino);
        self.handles[at].wrote = true;
        let what = format!("write {ino} {offset}+{}", bytes.len());
        if let Some(size) = self.agree(what, got, Ok(())) {
            assert_eq!(size, self.model.of(ino).data.len() as u64);
            self.is_later(ino, before);
        }
    }

    /// A change moves both times.
    fn is_later(&mut self, ino: Ino, before: Timestamp) {
        let row = match self.world.vfs().attributes(ino) {
            // The power went between the two: what a staging file holds cannot be asked.
            Err(_) if self.world.is_off() => return,
            row => row.unwrap(),
        };
        assert!(row.mtime > before && row.ctime > before, "the times of {ino} stand still");
    }

    fn read(&mut self) {
        let Some(at) = self.open_handle(false) else { return };
        let Handle { id, ino, .. } = self.handles[at];
        let (offset, len) = (self.number(LONGEST), self.number(60_000) as usize);
        let mut buffer = vec![9; len];
        let got = self.world.vfs().read(id, offset, &mut buffer);
        if let Some(count) = self.agree(format!("read {ino} {offset}+{len}"), got, Ok(())) {
            let data = &self.model.of(ino).data;
            let start = (offset as usize).min(data.len());
            let expected = &data[start..(start + len).min(data.len())];
            assert!(buffer[..count] == *expected, "{ino} reads {count} bytes at {offset} wrong");
        }
    }

    fn truncate(&mut self) {
        let Some(ino) = self.file() else { return };
        let mut size = self.number(LONGEST);
        if self.random.bool() {
            size = size.min(self.model.of(ino).data.len() as u64);
        }
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        let before = self.world.clock.now();
        let got = self.world.vfs().set_attributes(ino, &set, ROOT);
        let changes = size != self.model.of(ino).data.len() as u64;
        self.model.change(ino, |data| data.resize(size as usize, 0));
        self.changed(ino);
        if self.agree(format!("truncate {ino} {size}"), got, Ok(())).is_some() && changes {
            self.is_later(ino, before);
        }
    }

    fn fallocate(&mut self) {
        use FallocateFlags as F;
        let Some(at) = self.open_handle(false) else { return };
        let Handle { id, ino, options, .. } = self.handles[at];
        let start = self.number(LONGEST - 40_000);
        let range = start..start + self.number(40_000).max(1);
        let mode = match self.random.u8(0..6) {
            0 => F::empty(),
            1 => F::KEEP_SIZE,
            2 => F::PUNCH_HOLE | F::KEEP_SIZE,
            3 => F::ZERO_RANGE,
            4 => F::ZERO_RANGE | F::KEEP_SIZE,
            _ => F::COLLAPSE_RANGE,
        };
        let got = self.world.vfs().fallocate(id, range.clone(), mode.bits().cast_signed());
        let keep = mode.contains(F::KEEP_SIZE);
        let expected = match mode {
            _ if !options.write => Err(Errno::BADF),
            F::COLLAPSE_RANGE => Err(Errno::OPNOTSUPP),
            _ => Ok(()),
        };
        if expected.is_ok() {
            if mode.intersects(F::PUNCH_HOLE | F::ZERO_RANGE) {
                self.model.zero(ino, range.clone(), keep);
            } else {
                let end = if keep { 0 } else { range.end as usize };
                self.model.change(ino, |data| data.resize(data.len().max(end), 0));
            }
            self.changed(ino);
            self.handles[at].wrote = true;
        }
        self.agree(format!("fallocate {ino} {range:?} {mode:?}"), got, expected);
    }

    fn copy(&mut self) {
        let (Some(from), Some(to)) = (self.open_handle(false), self.open_handle(false)) else {
            return;
        };
        let (source, target) = (self.handles[from].ino, self.handles[to].ino);
        let (id, to_id) = (self.handles[from].id, self.handles[to].id);
        let whole = self.random.bool();
        let offset = if whole { 0 } else { self.number(100_000) };
        let to_offset = if whole { 0 } else { self.number(100_000) };
        let len = if whole { LONGEST } else { self.number(60_000).max(1) };
        let data = Arc::clone(&self.model.of(source).data);
        let end = (offset + len).min(data.len() as u64);
        let count = end.saturating_sub(offset);
        if source == target && offset.abs_diff(to_offset) < len || to_offset + count > LONGEST {
            return;
        }
        let options = self.handles[to].options;
        let expected = if options.write && !options.append { Ok(()) } else { Err(Errno::BADF) };
        let got = self.world.vfs().copy_range((id, offset), (to_id, to_offset), len);
        if expected.is_ok() && count > 0 {
            self.model.write(target, to_offset, &data[offset as usize..end as usize]);
            self.changed(target);
            self.handles[to].wrote = true;
        }
        let what = format!("copy {source} {offset}+{len} to {target} {to_offset}");
        if let Some(copied) = self.agree(what, got, expected) {
            assert_eq!(copied, count);
        }
    }

    fn seek(&mut self) {
        let Some(at) = self.open_handle(false) else { return };
        let Handle { id, ino, .. } = self.handles[at];
        let (offset, hole) = (self.number(LONGEST), self.random.bool());
        let data = Arc::clone(&self.model.of(ino).data);
        let size = data.len() as u64;
        let found = self.world.vfs().seek(id, offset, hole);
        self.note(format!("seek {ino} {offset} hole={hole} {found:?}"));
        let zero = |from: u64, to: u64| data[from as usize..to as usize].iter().all(|b| *b == 0);
        match found {
            Ok(found) if hole => {
                assert!(offset < size && (offset..=size).contains(&found));
                assert!(found == size || data[found as usize] == 0, "data at {found} is no hole");
            }
            Ok(found) => {
                assert!((offset..size).contains(&found), "data at {found} of {size}");
                assert!(zero(offset, found), "there is data before {found}");
            }
            Err(_) if self.world.is_off() => {}
            Err(error) => {
                assert_eq!(error.errno().0, Errno::NXIO.raw_os_error());
                assert!(offset >= size || (!hole && zero(offset, size)), "there is data");
            }
        }
    }

    /// The kernel flushes before it releases; a process that died may not have.
    fn close(&mut self) {
        let Some(at) = self.open_handle(false) else { return };
        if self.random.u8(0..8) > 0 {
            self.flush_at(at);
        }
        let Handle { id, ino, .. } = self.handles.remove(at);
        let got = self.world.vfs().release(id);
        self.agree(format!("release {ino}"), got, Ok(()));
    }

    fn flush(&mut self) {
        if let Some(at) = self.open_handle(true) {
            self.flush_at(at);
        }
    }

    fn flush_at(&mut self, at: usize) {
        let Handle { id, ino, wrote, .. } = self.handles[at];
        let got = self.world.vfs().flush(id);
        let done = self.agree(format!("flush {ino}"), got, Ok(())).is_some();
        let committed = done && wrote && self.wait_on_close && self.model.of(ino).nlink > 0;
        // A commit survives the process, and the machine once it is persisted.
        if committed {
            self.handles[at].wrote = false;
            if !self.power || self.local {
                self.durable(ino, false);
            }
            if self.local {
                self.names_durable();
            }
        }
    }

    fn fsync(&mut self) {
        let Some(at) = self.open_handle(false) else { return };
        let Handle { id, ino, .. } = self.handles[at];
        let got = self.world.vfs().fsync(id);
        if self.agree(format!("fsync {ino}"), got, Ok(())).is_some() {
            self.durable(ino, self.local);
            self.names_durable();
        }
    }

    fn rename(&mut self) {
        let (from, to) = (self.place(), self.place());
        let mode = match self.random.u8(0..4) {
            0 => RenameMode::NoReplace,
            1 => RenameMode::Exchange,
            _ => RenameMode::Replace,
        };
        let after = self.after(|model| model.rename((from.0, &from.1), (to.0, &to.1), mode));
        let got = self.world.vfs().rename((from.0, &from.1), (to.0, &to.1), mode);
        self.apply(format!("rename {from:?} {to:?} {mode:?}"), got, after);
    }

    fn link(&mut self) {
        let (ino, (parent, name)) = (self.any(), self.place());
        if self.model.of(ino).nlink == 0 {
            return;
        }
        let after = self.after(|model| model.link(ino, parent, &name));
        let got = self.world.vfs().link(ino, parent, &name);
        self.apply(format!("link {ino} {parent}/{name:?}"), got, after);
    }

    fn remove(&mut self) {
        let (parent, name) = self.place();
        if self.random.bool() {
            let after = self.after(|model| model.unlink(parent, &name));
            let got = self.world.vfs().unlink(parent, &name);
            self.apply(format!("unlink {parent}/{name:?}"), got, after);
        } else {
            let after = self.after(|model| model.rmdir(parent, &name));
            let got = self.world.vfs().remove_directory(parent, &name);
            self.apply(format!("rmdir {parent}/{name:?}"), got, after);
        }
    }

    fn attributes(&mut self, now: Timestamp) {
        let ino = self.any();
        let random = &mut self.random;
        let mut some = |most: u32| random.bool().then(|| random.u32(0..most));
        let mut set =
            SetAttr { mode: some(0o7777), uid: some(9), gid: some(9), ..Default::default() };
        let seconds = some(u32::MAX).map(i64::from);
        let at = seconds.map(|s| Timestamp { seconds: s - (1 << 31), nanoseconds: 123_456_789 });
        set.mtime = at.map(Some);
        let kind = self.model.of(ino).kind;
        let mut expected = Ok(());
        if self.random.u8(0..4) == 0 {
            set.size = Some(self.number(LONGEST));
            expected = match kind {
                FileKind::File => Ok(()),
                FileKind::Directory => Err(Errno::ISDIR),
                _ => Err(Errno::INVAL),
            };
        }
        let got = self.world.vfs().set_attributes(ino, &set, ROOT);
        if expected.is_ok() {
            if let Some(size) = set.size {
                self.model.change(ino, |data| data.resize(size as usize, 0));
                self.changed(ino);
            }
            let node = self.model.node(ino);
            node.mode = set.mode.unwrap_or(node.mode);
            node.owner = (set.uid.unwrap_or(node.owner.0), set.gid.unwrap_or(node.owner.1));
            node.mtime = at.or(node.mtime).filter(|_| kind == FileKind::File);
        }
        if let Some(row) = self.agree(format!("setattr {ino} {set:?}"), got, expected) {
            let asked = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
            assert!(!asked || row.ctime > now);
        }
    }

    fn xattr(&mut self) {
        let ino = self.any();
        let names: [&[u8]; 3] = [b"user.one", b"user.two", b"security.x"];
        let name = names[self.random.usize(0..names.len())];
        let held = self.model.of(ino).xattrs.get(name).cloned();
        let missing = Err(Errno::NODATA);
        match self.random.u8(0..5) {
            0 => {
                let got = self.world.vfs().get_xattr(ino, name);
                let expected = held.as_ref().map_or(missing, |_| Ok(()));
                let value = self.agree(format!("getxattr {ino}"), got, expected);
                assert!(value.is_none() || value == held);
            }
            1 => {
                let expected = held.as_ref().map_or(missing, |_| Ok(()));
                let (_, after) = self.after(|model| model.node(ino).xattrs.remove(name));
                let got = self.world.vfs().remove_xattr(ino, name);
                self.apply(format!("removexattr {ino}"), got, (expected, after));
            }
            _ => {
                let flags = (self.random.u8(0..4) == 0, self.random.u8(0..4) == 0);
                let expected = match (&held, flags) {
                    (Some(_), (true, _)) => Err(Errno::EXIST),
                    (None, (_, true)) => missing,
                    _ => Ok(()),
                };
                let value = self.bytes();
                let (_, after) =
                    self.after(|model| model.node(ino).xattrs.insert(name.to_vec(), value.clone()));
                let got = self.world.vfs().set_xattr(ino, name, &value, flags);
                self.apply(format!("setxattr {ino} {flags:?}"), got, (expected, after));
            }
        }
    }

    /// Goes on with one of the readers of directories, or begins another.
    fn walk(&mut self) {
        if self.walks.len() < 3 {
            let directory = self.directory();
            self.walks.push(Walk::begin(directory, &self.model));
        }
        let at = self.random.usize(0..self.walks.len());
        let limit = self.random.usize(1..5);
        let mut walk = self.walks.swap_remove(at);
        if !self.model.nodes.contains_key(&walk.directory) {
            return;
        }
        let page = self.world.vfs().read_directory(walk.directory, walk.cookie, limit);
        if let Some(page) = self.agree(format!("readdir {}", walk.directory), page, Ok(())) {
            if page.is_empty() {
                walk.end();
            } else {
                walk.take(page);
                self.walks.push(walk);
            }
        }
    }

    fn sync(&mut self) {
        if self.random.bool() {
            let directory = self.directory();
            let got = self.world.vfs().sync_directory(directory);
            if self.agree("fsyncdir", got, Ok(())).is_some() {
                self.names_durable();
            }
        } else {
            let got = self.world.vfs().sync(Ino::ROOT, &mut |_, _| {});
            if self.agree("sync", got, Ok(())).is_some() {
                self.all_durable();
            }
        }
    }

    fn content_id(&mut self) {
        let ino = if self.random.bool() { self.directory() } else { self.any() };
        let expected = self.model.link_of(ino);
        let got = self.world.vfs().link_of(ino);
        let outcome = expected.map_or(Err(Errno::INVAL), |_| Ok(()));
        if let Some(link) = self.agree(format!("cid of {ino}"), got, outcome) {
            assert_eq!(Some(link), expected, "the CID of {ino}");
        }
    }

    fn restart(&mut self) {
        if self.random.u8(0..3) > 0 {
            return self.crash();
        }
        if let Some(disk) = self.world.disk() {
            disk.disarm();
        }
        self.note("reopen");
        self.check();
        if self.random.bool() {
            while let Some(handle) = self.handles.pop() {
                self.world.vfs().release(handle.id).unwrap();
            }
        }
        self.world.reopen();
        self.forget();
        self.all_durable();
        self.check();
        self.arm();
    }

    /// The processes that had files open are gone.
    pub fn forget(&mut self) {
        self.handles.clear();
        self.walks.clear();
        self.model.drop_orphans();
    }
}

fn cases(ground: Ground, cases: u64, steps: usize) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let given = number("CAIRN_MODEL_SEED");
    let count = given.map_or(cases * number("CAIRN_MODEL_CASES").unwrap_or(1), |_| 1);
    let seeds = (0..count).map(|_| given.unwrap_or_else(|| fastrand::u64(..)));
    for seed in seeds {
        println!("seed {seed}");
        let mut run = Run::new(seed, ground);
        for step in 0..steps {
            run.step();
            if step % 30 == 29 {
                run.check();
            }
        }
        run.crash();
        run.check();
    }
}

#[test]
fn a_simulated_machine_loses_nothing_that_was_synced_in_any_history() {
    cases(Ground::Simulated, 250, 150);
}

#[test]
fn the_embedded_engine_behaves_like_the_model_and_survives_kills() {
    cases(Ground::Embedded, 16, 150);
}
