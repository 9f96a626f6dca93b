//! Packs in a directory: `packs/<name>`, and a head that is changed under a lock.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::blocks::Blocks;
use super::errno::{errno_of, explain, of_block};
use super::place::{entries, identity, make_dir, open_dir};
use super::{DirBackend, run};
use crate::backends::pack::{HeadNow, Shelf, Tag, is_pack};
use crate::backends::{BackendError, ErrorKind};
use crate::runtime::{buffers, failpoint};
use crate::types::cid;

const FOLDER: &str = "packs";
const HEAD: &str = "head";
const LOCK: &str = "lock";

/// The folder `packs` of a place.
pub(in crate::backends) struct Packs {
    folder: Arc<Folder>,
    threads: Arc<Semaphore>,
}

struct Folder {
    blocks: Arc<Blocks>,
    dir: OwnedFd,
    identity: (u64, u64),
    writable: bool,
    /// Packs whose names a sync failed to bring to the medium: they are not believed.
    suspect: Mutex<BTreeSet<String>>,
}

fn tag_of(head: &[u8]) -> Tag {
    Tag(cid::of_raw(head).to_string())
}

impl DirBackend {
    /// Where packs lie; the folder is made where it may be.
    pub(in crate::backends) fn packs(&self) -> Result<Packs, BackendError> {
        let place = &self.blocks.place;
        let fail = |errno| place.fail("open the folder `packs` of", errno);
        let writable = self.read_only.is_none();
        let root = open_dir(rustix::fs::CWD, &place.path.to_string_lossy());
        let root = root.map_err(fail)?;
        place.check()?;
        let dir = match open_dir(&root, FOLDER) {
            Err(Errno::NOENT) if writable => {
                make_dir(&root, FOLDER).map_err(fail)?;
                place.sync.dir(&root).map_err(fail)?;
                open_dir(&root, FOLDER)
            }
            other => other,
        }
        .map_err(fail)?;
        if writable {
            // What a crash left visible only is durable before it is believed.
            place.sync.dir(&dir).map_err(fail)?;
        }
        let identity = identity(&rustix::fs::fstat(&dir).map_err(fail)?);
        let blocks = Arc::clone(&self.blocks);
        let folder = Folder { blocks, dir, identity, writable, suspect: Mutex::default() };
        Ok(Packs { folder: Arc::new(folder), threads: Arc::clone(&self.threads) })
    }

    /// Whether archives lie there, which this kind does not read.
    pub(in crate::backends) fn has_packs(&self) -> bool {
        let folder = open_dir(rustix::fs::CWD, &self.folder().to_string_lossy());
        folder.and_then(entries).is_ok_and(|names| !names.is_empty())
    }

    fn folder(&self) -> std::path::PathBuf {
        self.blocks.place.path.join(FOLDER)
    }
}

impl Folder {
    fn fail(&self, action: &str, errno: Errno) -> BackendError {
        self.blocks.place.fail(action, errno)
    }

    /// As [`super::place::Place::check`]; and the folder is the one that was opened.
    fn check(&self) -> Result<(), BackendError> {
        let place = &self.blocks.place;
        place.check()?;
        let path = place.path.join(FOLDER);
        match rustix::fs::stat(&path) {
            Ok(stat) if identity(&stat) == self.identity => Ok(()),
            Ok(_) => {
                let text = "is not the directory that was opened: was it replaced?";
                let message = format!("{} {text}", path.display());
                Err(BackendError::new(ErrorKind::Unavailable, message))
            }
            Err(errno) => Err(explain(&path, "find", errno)),
        }
    }

    /// Writes a file whole, durably, under its name.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), BackendError> {
        self.check()?;
        let place = &self.blocks.place;
        let fail = |errno| place.fail("write a pack in", errno);
        let file = place.write_temporary(bytes)?;
        failpoint::reach("backend.pack.written");
        place.sync.files(&[file.as_fd()]).map_err(fail)?;
        failpoint::reach("backend.pack.synced");
        file.move_to(std::os::fd::AsFd::as_fd(&self.dir), name).map_err(fail)?;
        failpoint::reach("backend.pack.shown");
        match place.sync.dir(&self.dir) {
            Ok(()) => {
                self.suspect.lock().remove(name);
                Ok(())
            }
            Err(errno) => {
                self.suspect.lock().insert(name.to_owned());
                Err(place.fail("sync", errno))
            }
        }
    }

    fn open(&self, name: &str) -> Result<Option<File>, BackendError> {
        // Not blocking: what has the name might be a FIFO.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            // Absent only when the place itself is there.
            Err(Errno::NOENT) => self.check().map(|()| None),
            Err(errno) => Err(self.fail("read a pack in", errno)),
        }
    }

    fn read(&self, name: &str, range: Option<Range<u64>>) -> Result<Option<Bytes>, BackendError> {
        let Some(file) = self.open(name)? else { return Ok(None) };
        let fail = |error: std::io::Error| {
            let failed = self.fail("read a pack in", errno_of(&error));
            of_block(failed, || {
                self.check().and_then(|()| self.blocks.place.try_disk(self.writable))
            })
        };
        let len = file.metadata().map_err(fail)?.len();
        let range = range.unwrap_or(0..len);
        let (start, end) = (range.start.min(len), range.end.min(len));
        let size = end.saturating_sub(start) as usize;
        buffers::filled(size, |buf| file.read_exact_at(buf, start)).map(Some).map_err(fail)
    }

    fn length(&self, name: &str) -> Result<Option<u64>, BackendError> {
        if self.suspect.lock().contains(name) {
            return Ok(None);
        }
        match rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                Ok(Some(stat.st_size.unsigned_abs()))
            }
            Ok(_) | Err(Errno::NOENT) => self.check().map(|()| None),
            Err(errno) => Err(self.fail("look at a pack in", errno)),
        }
    }

    fn list(&self, after: &str, limit: usize) -> Result<Vec<(String, u64)>, BackendError> {
        // Another description of it: a directory is read from its beginning.
        let dir = open_dir(&self.dir, ".").map_err(|errno| self.fail("list", errno))?;
        let names = entries(dir).map_err(|errno| self.fail("list", errno))?;
        let mut found = Vec::new();
        for name in names.into_iter().filter(|name| name.as_str() > after && is_pack(name)) {
            if found.len() == limit {
                break;
            }
            if let Some(len) = self.length(&name)? {
                found.push((name, len));
            }
        }
        self.check()?;
        Ok(found)
    }

    fn delete(&self, names: &[String]) -> Result<(), BackendError> {
        self.check()?;
        for name in names {
            match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.fail("remove a pack from", errno)),
            }
        }
        self.blocks.place.sync.dir(&self.dir).map_err(|errno| self.fail("sync", errno))
    }

    fn swap(&self, before: Option<&Tag>, head: &[u8]) -> Result<bool, BackendError> {
        let fail = |errno| self.fail("lock the head of", errno);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&self.dir, LOCK, flags, Mode::RUSR | Mode::WUSR);
        let lock = lock.map_err(fail)?;
        match rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
            // A filesystem without locks: the fence of names has to do.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK) => {}
            Err(errno) => return Err(fail(errno)),
        }
        let now = self.read(HEAD, None)?.map(|bytes| tag_of(&bytes));
        if now.as_ref() != before {
            return Ok(false);
        }
        self.write(HEAD, head).map(|()| true)
    }
}

impl Packs {
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        run(&self.threads, &self.folder, work).await
    }
}

#[async_trait]
impl Shelf for Packs {
    fn location(&self) -> String {
        self.folder.blocks.place.path.join(FOLDER).display().to_string()
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), BackendError> {
        let name = name.to_owned();
        self.run(move |folder| folder.write(&name, &bytes)).await
    }

    async fn read(
        &self,
        name: &str,
        range: Option<Range<u64>>,
    ) -> Result<Option<Bytes>, BackendError> {
        let name = name.to_owned();
        self.run(move |folder| folder.read(&name, range)).await
    }

    async fn length(&self, name: &str) -> Result<Option<u64>, BackendError> {
        let name = name.to_owned();
        self.run(move |folder| folder.length(&name)).await
    }

    async fn list(&self, after: &str, limit: usize) -> Result<Vec<(String, u64)>, BackendError> {
        let after = after.to_owned();
        self.run(move |folder| folder.list(&after, limit)).await
    }

    async fn delete(&self, names: &[String]) -> Result<(), BackendError> {
        if names.is_empty() {
            return Ok(());
        }
        let names = names.to_vec();
        self.run(move |folder| folder.delete(&names)).await
    }

    async fn head(&self, known: Option<&Tag>) -> Result<HeadNow, BackendError> {
        let Some(head) = self.run(|folder| folder.read(HEAD, None)).await? else {
            return Ok(HeadNow::None);
        };
        let tag = tag_of(&head);
        Ok(if known == Some(&tag) { HeadNow::Same } else { HeadNow::Is(head, tag) })
    }

    async fn swap(&self, before: Option<&Tag>, head: Bytes) -> Result<bool, BackendError> {
        let before = before.cloned();
        self.run(move |folder| folder.swap(before.as_ref(), &head)).await
    }

    fn hold(&self, bytes: u64) {
        self.folder.blocks.packed.store(bytes, Ordering::Relaxed);
    }

    async fn refuse_beyond_capacity(&self, more: u64) -> Result<(), BackendError> {
        if self.folder.blocks.capacity.is_none() {
            return Ok(());
        }
        self.run(move |folder| folder.blocks.refuse_beyond_capacity(more)).await
    }
}
