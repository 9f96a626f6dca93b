use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use uuid::Uuid;

use super::errno::{errno_of, explain};
use super::sync::Syncer;
use crate::backends::marker::{MARKER, MARKER_MAX, Marker};
use crate::backends::{BackendError, ErrorKind};

/// What stands in a place; all that an unfinished creation may have left.
const OURS: [&str; 5] = ["blocks", "names", "tmp", "packs", "lost+found"];

/// The directory that was opened. All work is relative to its descriptors, so
/// that nothing is ever written into another directory that took its path.
pub(super) struct Place {
    pub path: PathBuf,
    pub id: Uuid,
    pub device: u64,
    pub blocks: OwnedFd,
    pub names: OwnedFd,
    pub sync: Syncer,
    tmp: OwnedFd,
    root_identity: (u64, u64),
    blocks_identity: (u64, u64),
}

pub(super) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

pub(super) fn open_dir(at: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

/// Whether the directory was made by this call.
pub(super) fn make_dir(at: impl AsFd, name: &str) -> Result<bool, Errno> {
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Entries of a directory that are text, without `.` and `..`, sorted.
pub(super) fn entries(dir: impl AsFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") => {}
            Ok(name) => names.push(name.to_owned()),
            Err(_) => tracing::debug!("a file whose name is not text is ignored"),
        }
    }
    names.sort_unstable();
    Ok(names)
}

impl Place {
    /// Opens a place, or makes one.
    pub(super) fn open(path: &Path, create: bool, writable: bool) -> Result<Self, BackendError> {
        let fail = |action: &'static str| move |errno| explain(path, action, errno);
        if create && writable {
            make_path(path)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(fail("open"))?;
        let marker = match read_marker(path, &root)? {
            Some(marker) => marker,
            None if create && writable => initialise(path, &root)?,
            None => {
                let message = format!(
                    "{} has no {MARKER}: if its disk is not mounted, mount it; \
                     `cairn backend add` makes a new backend there",
                    path.display()
                );
                return Err(BackendError::new(ErrorKind::Unavailable, message));
            }
        };
        let folder = |name: &str| match open_dir(&root, name) {
            // A tool that copied the place may have left out empty folders.
            Err(Errno::NOENT) if writable => {
                make_dir(&root, name)?;
                rustix::fs::fsync(&root)?;
                open_dir(&root, name)
            }
            other => other,
        };
        let blocks = folder("blocks").map_err(fail("open the folder `blocks` of"))?;
        let names = folder("names").map_err(fail("open the folder `names` of"))?;
        // A read-only place never uses its tmp.
        let tmp = match folder("tmp") {
            Err(Errno::NOENT) if !writable => open_dir(&root, "."),
            other => other,
        }
        .map_err(fail("open the folder `tmp` of"))?;
        let stat = rustix::fs::fstat(&root).map_err(fail("stat"))?;
        let blocks_stat = rustix::fs::fstat(&blocks).map_err(fail("stat"))?;
        let place = Self {
            path: path.to_owned(),
            id: marker.id,
            device: stat.st_dev,
            sync: Syncer::new(&blocks),
            root_identity: identity(&stat),
            blocks_identity: identity(&blocks_stat),
            blocks,
            names,
            tmp,
        };
        if writable {
            place.remove_stale();
        }
        Ok(place)
    }

    /// Fails unless the path still leads to the directory that was opened: a
    /// disk that was unmounted or a folder that was replaced is not written to,
    /// and says nothing about what is absent. Two `stat` calls.
    pub(super) fn check(&self) -> Result<(), BackendError> {
        let same =
            |path: &Path, wanted| rustix::fs::stat(path).map(|stat| identity(&stat) == wanted);
        let found = same(&self.path, self.root_identity)
            .and_then(|root| Ok(root && same(&self.path.join("blocks"), self.blocks_identity)?));
        match found {
            Ok(true) => Ok(()),
            Ok(false) => {
                let message = format!(
                    "{} is not the directory that was opened: is its disk still mounted?",
                    self.path.display()
                );
                Err(BackendError::new(ErrorKind::Unavailable, message))
            }
            Err(errno) => Err(explain(&self.path, "find", errno)),
        }
    }

    pub(super) fn fail(&self, action: &str, errno: Errno) -> BackendError {
        explain(&self.path, action, errno)
    }

    /// Writes `data` into a new file in `tmp`; it is still to be synced.
    pub(super) fn write_temporary(&self, data: &[u8]) -> Result<Temporary<'_>, BackendError> {
        // Unique among processes and among several openings in one process.
        let name = Uuid::new_v4().simple().to_string();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.tmp, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| self.fail("write in", errno))?;
        let file = File::from(fd);
        let temporary = Temporary { place: self, name, file, moved: false };
        // The lock says "in use" to another process that clears `tmp`. A
        // filesystem without locks is cleared by nobody.
        if let Err(errno) =
            rustix::fs::flock(&temporary.file, FlockOperation::NonBlockingLockShared)
        {
            tracing::debug!(%errno, "no lock on a temporary file");
        }
        (&temporary.file)
            .write_all(data)
            .map_err(|error| self.fail("write in", errno_of(&error)))?;
        Ok(temporary)
    }

    /// Removes files that a crash left in `tmp`; those in use are locked.
    fn remove_stale(&self) {
        let names = entries(&self.tmp).unwrap_or_else(|errno| {
            tracing::debug!(%errno, "tmp cannot be listed");
            Vec::new()
        });
        for name in names {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let removed =
                rustix::fs::openat(&self.tmp, &name, flags, Mode::empty()).and_then(|file| {
                    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
                    rustix::fs::unlinkat(&self.tmp, &name, AtFlags::empty())
                });
            match removed {
                Ok(()) => tracing::info!(name, "removed a file that a crash left"),
                Err(errno) => tracing::debug!(name, %errno, "a temporary file stays"),
            }
        }
    }

    /// Asks the disk itself: of one that died, what the kernel has in memory can be read
    /// and written for a long time. Where nothing can be written (the kernel mounts a
    /// disk with errors read-only), a few bytes are read.
    pub(super) fn try_disk(&self, writable: bool) -> Result<(), BackendError> {
        let wrote = if writable { self.try_write() } else { Ok(()) };
        let refused = matches!(
            &wrote,
            Err(e) if matches!(e.kind, ErrorKind::Full | ErrorKind::ReadOnly | ErrorKind::Denied)
        );
        if refused || !writable {
            self.try_read()?;
        }
        wrote
    }

    /// Reads the marker from the disk.
    fn try_read(&self) -> Result<(), BackendError> {
        let fail = |errno| self.fail("read the marker of", errno);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let marker =
            rustix::fs::open(self.path.join(MARKER), flags, Mode::empty()).map_err(fail)?;
        // Out of the kernel's memory. Where that is not to be had, it is read from there.
        if let Err(errno) = rustix::fs::fadvise(&marker, 0, None, Advice::DontNeed) {
            tracing::debug!(%errno, "the marker may be read from memory");
        }
        rustix::io::read(&marker, &mut [0; 16]).map(drop).map_err(fail)
    }

    /// Writes a few bytes, durably, and takes them away again.
    fn try_write(&self) -> Result<(), BackendError> {
        let name = format!("probe-{}", Uuid::new_v4().simple());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fail = |errno| self.fail("write in", errno);
        let fd =
            rustix::fs::openat(&self.tmp, &name, flags, Mode::RUSR | Mode::WUSR).map_err(fail)?;
        let wrote = rustix::io::write(&fd, b"probe").and_then(|_| rustix::fs::fdatasync(&fd));
        rustix::fs::unlinkat(&self.tmp, &name, AtFlags::empty()).map_err(fail)?;
        wrote.map_err(fail)
    }
}

/// A file in `tmp`; goes when it was not moved to its place.
pub(super) struct Temporary<'a> {
    place: &'a Place,
    name: String,
    file: File,
    moved: bool,
}

impl Temporary<'_> {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Moves it to `name` in `dir`, over what is there. Not durable before
    /// `dir` is synced.
    pub(super) fn move_to(mut self, dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
        rustix::fs::renameat(&self.place.tmp, &self.name, dir, name)?;
        self.moved = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if self.moved {
            return;
        }
        if let Err(errno) = rustix::fs::unlinkat(&self.place.tmp, &self.name, AtFlags::empty()) {
            tracing::debug!(%errno, "a temporary file stays until the next open");
        }
    }
}

/// Makes the directory and what leads to it, durably.
fn make_path(path: &Path) -> Result<(), BackendError> {
    if path.exists() {
        return Ok(());
    }
    let fail = |error: std::io::Error| explain(path, "make", errno_of(&error));
    if let Some(parent) = path.parent() {
        make_path(parent)?;
        // It holds every file's bytes, whatever the modes of the files.
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(fail(error));
            }
            _ => {}
        }
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail)?;
    }
    Ok(())
}

fn read_marker(path: &Path, root: &OwnedFd) -> Result<Option<Marker>, BackendError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = match rustix::fs::openat(root, MARKER, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.map_err(|errno| explain(path, "read the marker of", errno))?,
    };
    let mut bytes = Vec::new();
    File::from(fd)
        .take(MARKER_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| explain(path, "read the marker of", errno_of(&error)))?;
    Marker::decode(&bytes, &path.display().to_string()).map(Some)
}

/// Makes a place in an empty directory, or in one whose creation was cut short;
/// the marker is the last step.
fn initialise(path: &Path, root: &OwnedFd) -> Result<Marker, BackendError> {
    let fail = |errno| explain(path, "make a backend in", errno);
    let strange =
        entries(root).map_err(fail)?.into_iter().find(|name| !OURS.contains(&name.as_str()));
    if let Some(name) = strange {
        let message = format!(
            "{} is not a backend and not empty (it has `{}`): name an empty or a new directory",
            path.display(),
            name.escape_debug()
        );
        return Err(BackendError::new(ErrorKind::Invalid, message));
    }
    for folder in &OURS[..3] {
        make_dir(root, folder).map_err(fail)?;
    }
    let marker = Marker::new();
    let text = marker.encode()?;
    let tmp = open_dir(root, "tmp").map_err(fail)?;
    let name = Uuid::new_v4().simple().to_string();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file =
        File::from(rustix::fs::openat(&tmp, &name, flags, Mode::RUSR | Mode::WUSR).map_err(fail)?);
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(|error| fail(errno_of(&error)))?;
    // Two that create at once must agree on one id: the second link fails, and
    // its maker reads the first one's marker.
    let linked = rustix::fs::linkat(&tmp, &name, root, MARKER, AtFlags::empty());
    let placed = match linked {
        // No hard links there (FAT): a rename, for which the last one wins.
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
            rustix::fs::renameat(&tmp, &name, root, MARKER).map(|()| false)
        }
        Ok(()) | Err(Errno::EXIST) => {
            rustix::fs::unlinkat(&tmp, &name, AtFlags::empty()).map_err(fail)?;
            Ok(linked.is_err())
        }
        Err(errno) => Err(errno),
    };
    let was_there = placed.map_err(fail)?;
    rustix::fs::fsync(root).map_err(fail)?;
    if was_there && let Some(first) = read_marker(path, root)? {
        return Ok(first);
    }
    Ok(marker)
}
