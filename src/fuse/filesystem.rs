//! Decodes a request, calls one method, encodes the answer.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::reply::{attributes, file_type, kind_of_mode, set_time};
use super::requests::{Job, Requests, ended};
use crate::metadata::{Created, InodeRecord, RenameMode};
use crate::runtime::{Held, Step, failpoint};
use crate::types::{Acl, FileKind, Ino, InvalidName, Name, acl};
use crate::vfs::{Brought, Caller, HIDDEN, HandleId, OpenOptions, SetAttr, Vfs, VfsError};

/// We are the only writer: the kernel may keep what it knows, and is told of
/// changes behind its back.
const TTL: Duration = Duration::from_hours(1);
/// Inode numbers are never reused, so one generation does.
const GENERATION: Generation = Generation(0);
/// Bytes of one write request.
const MAX_WRITE: u32 = 1 << 20;
/// Entries looked up for one readdir request.
const PAGE: usize = 256;

pub(super) struct CairnFs {
    pub vfs: Arc<Vfs>,
    pub requests: Arc<Requests>,
}

fn name(name: &OsStr) -> Result<Name, Errno> {
    Name::new(name.as_bytes()).map_err(|error| match error {
        InvalidName::TooLong => Errno::ENAMETOOLONG,
        InvalidName::Malformed => Errno::EINVAL,
    })
}

/// Times one request and counts how it ended.
fn timed<T>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, VfsError>,
) -> Result<T, Errno> {
    let start = Instant::now();
    ended(operation, start, work())
}

/// How long the kernel may keep a name that it did not make.
fn ttl(keep: bool) -> &'static Duration {
    if keep { &TTL } else { &Duration::ZERO }
}

fn is_kept(name: &[u8]) -> bool {
    !name.starts_with(HIDDEN.as_bytes())
}

fn send_entry(reply: ReplyEntry, ttl: &Duration, result: Result<(Ino, InodeRecord), Errno>) {
    match result {
        Ok((ino, row)) => reply.entry(ttl, &attributes(ino, &row), GENERATION),
        Err(error) => reply.error(error),
    }
}

fn send_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn open_options(flags: OpenFlags) -> OpenOptions {
    OpenOptions {
        write: flags.acc_mode() != OpenAccMode::O_RDONLY,
        truncate: flags.0 & libc::O_TRUNC != 0,
        append: flags.0 & libc::O_APPEND != 0,
        no_access_time: flags.0 & libc::O_NOATIME != 0,
    }
}

/// The groups of a process besides its own (proc(5), `Groups` in status).
fn supplementary_groups(pid: u32) -> Vec<u32> {
    // A process that is gone has none.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

impl CairnFs {
    fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        wanted: &OsStr,
        kind: FileKind,
        (mode, umask, rdev, target): (u32, u32, u32, &[u8]),
    ) -> Result<(Ino, InodeRecord), Errno> {
        let wanted = name(wanted)?;
        let owner = (request.uid(), request.gid());
        let bits = (mode, umask, rdev);
        let made = || self.vfs.make_masked(Ino(parent.0), &wanted, kind, bits, owner, target);
        timed("create", made).map(|Created { ino, inode }| (ino, inode))
    }

    /// Serves what touches a file's state: while the file is being committed, or a
    /// block is not here, it waits holding nothing.
    fn serve<T: Send + 'static>(
        &self,
        operation: &'static str,
        request: &Request,
        mut work: impl FnMut(&Vfs) -> Result<T, VfsError> + Send + 'static,
        send: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let (vfs, brought) = (Arc::clone(&self.vfs), Brought::default());
        let step = move || vfs.near(&brought, || work(&vfs));
        self.requests.run(Job::new(operation, request, step, send));
    }

    fn send_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, Errno>) {
        match result {
            Ok(value) if size == 0 => reply.size(value.len() as u32),
            Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
            Ok(value) => reply.data(&value),
            Err(error) => reply.error(error),
        }
    }
}

impl Filesystem for CairnFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // The writeback cache is off: it would hide when bytes are written, and
        // a full disk from the writer. Nor is O_TRUNC left to `open`: the kernel
        // would ask for it before it finds that the file is being executed, and
        // pull the code away from a running program; and an ordinary user's
        // would leave setuid on the file. Nor is asynchronous direct I/O wanted: the
        // kernel (6.18, fs/fuse/file.c) does not drop the pages that a reader brought
        // in while such a write was on its way, and they stay stale.
        for wanted in [
            // The kernel enforces ACLs; what is made inherits them here, so the
            // umask is applied here, too.
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPORT_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        ] {
            if config.add_capabilities(wanted).is_err() {
                tracing::debug!(?wanted, "the kernel lacks a capability");
            }
        }
        if let Err(most) = config.set_max_write(MAX_WRITE) {
            tracing::debug!(most, "the kernel takes smaller writes");
        }
        if let Err(most) = config.set_max_readahead(MAX_WRITE) {
            tracing::debug!(most, "the kernel reads ahead less");
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, wanted: &OsStr, reply: ReplyEntry) {
        let (ino, seen) = (Ino(parent.0), self.vfs.seen());
        let found = match wanted.as_bytes() {
            // open_by_handle_at and NFS servers: an inode by its number, and its
            // directory (Documentation/filesystems/nfs/exporting.rst).
            b"." => timed("lookup", || self.vfs.by_number(ino)),
            b".." => timed("lookup", || {
                let (_, row) = self.vfs.by_number(ino)?;
                self.vfs.by_number(row.parent)
            }),
            _ => name(wanted).and_then(|wanted| timed("lookup", || self.vfs.lookup(ino, &wanted))),
        };
        let keep = found.as_ref().is_ok_and(|(ino, _)| self.vfs.may_keep(*ino, seen));
        send_entry(reply, ttl(keep && is_kept(wanted.as_bytes())), found);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        failpoint::reach("fuse.getattr.taken");
        let (ino, seen) = (Ino(ino.0), self.vfs.seen());
        match timed("getattr", || self.vfs.attributes(ino)) {
            Ok(row) => reply.attr(ttl(self.vfs.may_keep(ino, seen)), &attributes(ino, &row)),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (atime, mtime) = (set_time(atime), set_time(mtime));
        let handle = handle.map(|handle| HandleId(handle.0));
        let set = SetAttr { mode, uid, gid, size, handle, atime, mtime };
        let caller = Caller { uid: request.uid(), gid: request.gid() };
        let (ino, seen) = (Ino(ino.0), self.vfs.seen());
        let work = move |vfs: &Vfs| {
            let row = vfs.set_attributes(ino, &set, caller)?;
            Ok((ttl(vfs.may_keep(ino, seen)), row))
        };
        self.serve("setattr", request, work, move |set| match set {
            Ok((ttl, row)) => reply.attr(ttl, &attributes(ino, &row)),
            Err(error) => reply.error(error),
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match timed("readlink", || self.vfs.read_link(Ino(ino.0))) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        wanted: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = kind_of_mode(mode)
            .ok_or(Errno::EINVAL)
            .and_then(|kind| self.make(request, parent, wanted, kind, (mode, umask, rdev, &[])));
        send_entry(reply, &TTL, made);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        wanted: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        send_entry(
            reply,
            &TTL,
            self.make(request, parent, wanted, FileKind::Directory, (mode, umask, 0, &[])),
        );
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        wanted: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        send_entry(
            reply,
            &TTL,
            self.make(request, parent, wanted, FileKind::Symlink, (0o777, 0, 0, target)),
        );
    }

    fn unlink(&self, request: &Request, parent: INodeNo, wanted: &OsStr, reply: ReplyEmpty) {
        let wanted = match name(wanted) {
            Ok(wanted) => wanted,
            Err(error) => return reply.error(error),
        };
        let work = move |vfs: &Vfs| vfs.unlink(Ino(parent.0), &wanted);
        self.serve("unlink", request, work, |done| send_empty(reply, done));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, wanted: &OsStr, reply: ReplyEmpty) {
        let done = name(wanted).and_then(|wanted| {
            timed("rmdir", || self.vfs.remove_directory(Ino(parent.0), &wanted))
        });
        send_empty(reply, done);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        old: &OsStr,
        new_parent: INodeNo,
        new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            f if f.is_empty() => RenameMode::Replace,
            f if f == RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            f if f == RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            f if f == RenameFlags::RENAME_WHITEOUT => {
                RenameMode::Whiteout { uid: request.uid(), gid: request.gid() }
            }
            _ => return reply.error(Errno::EINVAL),
        };
        let (old, new) = match (name(old), name(new)) {
            (Ok(old), Ok(new)) => (old, new),
            (Err(error), _) | (_, Err(error)) => return reply.error(error),
        };
        let work =
            move |vfs: &Vfs| vfs.rename((Ino(parent.0), &old), (Ino(new_parent.0), &new), mode);
        self.serve("rename", request, work, |done| send_empty(reply, done));
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        parent: INodeNo,
        wanted: &OsStr,
        reply: ReplyEntry,
    ) {
        let (ino, parent, seen) = (Ino(ino.0), Ino(parent.0), self.vfs.seen());
        let wanted = match name(wanted) {
            Ok(wanted) => wanted,
            Err(error) => return reply.error(error),
        };
        let work = move |vfs: &Vfs| {
            let row = vfs.link(ino, parent, &wanted)?;
            Ok((ttl(vfs.may_keep(ino, seen)), row))
        };
        self.serve("link", request, work, move |linked| match linked {
            Ok((ttl, row)) => send_entry(reply, ttl, Ok((ino, row))),
            Err(error) => reply.error(error),
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match timed("open", || self.vfs.open_file(Ino(ino.0), open_options(flags))) {
            // All changes go through this kernel, so its pages stay right.
            Ok(id) => reply.opened(FileHandle(id.0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        wanted: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make(request, parent, wanted, FileKind::File, (mode, umask, 0, &[]));
        let opened = made.and_then(|(ino, row)| {
            let options = OpenOptions { truncate: false, ..open_options(OpenFlags(flags)) };
            timed("open", || self.vfs.open_file(ino, options)).map(|id| (ino, row, id))
        });
        match opened {
            Ok((ino, row, id)) => {
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&TTL, &attributes(ino, &row), GENERATION, FileHandle(id.0), flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let work = move |vfs: &Vfs| {
            let mut buffer = vec![0; size as usize];
            let n = vfs.read(HandleId(handle.0), offset, &mut buffer)?;
            buffer.truncate(n);
            Ok(buffer)
        };
        self.serve("read", request, work, |read| match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        });
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let start = Instant::now();
        let (vfs, brought, id) = (Arc::clone(&self.vfs), Brought::default(), HandleId(handle.0));
        let mapped = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = move |vfs: &Vfs, data: &[u8]| {
            if mapped { vfs.write_mapped(id, offset, data) } else { vfs.write(id, offset, data) }
        };
        let mut held = None;
        // The bytes are the kernel's buffer: who has to wait takes them along.
        let first = match vfs.near(&brought, || write(&vfs, data)) {
            Ok(Step::Wait(wait)) => vfs.hold(data).map(|bytes| {
                held = Some(bytes);
                Step::Wait(wait)
            }),
            ended => ended,
        };
        let len = data.len() as u32;
        let send = move |written: Result<u64, Errno>| match written {
            Ok(_) => reply.written(len),
            Err(error) => reply.error(error),
        };
        let step = move || {
            let bytes = held.as_ref().map_or(Ok(Cow::Borrowed(&[][..])), Held::bytes);
            let bytes = bytes.map_err(|error| VfsError::Replication(error.into()))?;
            vfs.near(&brought, || write(&vfs, &bytes))
        };
        self.requests.go_on(Job::new("write", request, step, send).since(start), first);
    }

    fn flush(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        let (vfs, id) = (Arc::clone(&self.vfs), HandleId(handle.0));
        let waits = vfs.flush_waits(id);
        let job = Job::new("flush", request, vfs.flush_steps(id), |done| send_empty(reply, done))
            .when_cut(move || vfs.interrupted(id));
        // Without a wait it only hands the file on.
        if waits { self.requests.begin(job) } else { self.requests.run(job) }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        send_empty(reply, timed("release", || self.vfs.release(HandleId(handle.0))));
    }

    fn fsync(&self, request: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let (vfs, id) = (Arc::clone(&self.vfs), HandleId(handle.0));
        let job = Job::new("fsync", request, vfs.fsync_steps(id), |done| send_empty(reply, done));
        self.requests.begin(job.when_cut(move || vfs.interrupted(id)));
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let steps = self.vfs.sync_directory_steps(Ino(ino.0));
        self.requests.begin(Job::new("fsyncdir", request, steps, |done| send_empty(reply, done)));
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Directories need no handle: ENOSYS once tells the kernel so.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match timed("readdir", || self.vfs.read_directory(Ino(ino.0), offset, PAGE)) {
            Ok(entries) => {
                for entry in entries {
                    let wanted = OsStr::from_bytes(&entry.name);
                    if reply.add(INodeNo(entry.ino.0), entry.cookie, file_type(entry.kind), wanted)
                    {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        match timed("readdirplus", || self.vfs.read_directory(Ino(ino.0), offset, PAGE)) {
            Ok(entries) => {
                for entry in entries {
                    let seen = self.vfs.seen();
                    // Removed since the page was read: the next lookup says so.
                    let Ok(row) = self.vfs.attributes(entry.ino) else { continue };
                    let wanted = OsStr::from_bytes(&entry.name);
                    let attr = attributes(entry.ino, &row);
                    let keep = is_kept(&entry.name) && self.vfs.may_keep(entry.ino, seen);
                    if reply.add(
                        INodeNo(entry.ino.0),
                        entry.cookie,
                        wanted,
                        ttl(keep),
                        &attr,
                        GENERATION,
                    ) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u64 = 4096;
        match timed("statfs", || self.vfs.stat_fs(Ino(ino.0))) {
            Ok(stat) => {
                reply.statfs(
                    stat.capacity / BLOCK,
                    stat.free / BLOCK,
                    stat.available / BLOCK,
                    stat.inodes + stat.free_inodes,
                    stat.free_inodes,
                    4096,
                    255,
                    4096,
                );
            }
            Err(error) => reply.error(error),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        key: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let (ino, key) = (Ino(ino.0), key.as_bytes());
        let modes = (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0);
        let (uid, gid, pid) = (request.uid(), request.gid(), request.pid());
        let (key, value) = (key.to_vec(), value.to_vec());
        let work = move |vfs: &Vfs| {
            if key != acl::ACCESS && key != acl::DEFAULT {
                return vfs.set_xattr(ino, &key, &value, modes);
            }
            let list = Acl::parse(&value).ok_or(VfsError::Posix(rustix::io::Errno::INVAL))?;
            // `fuser` 0.18 does not pass FUSE_SETXATTR_ACL_KILL_SGID on: asked here.
            let group = vfs.attributes(ino)?.gid;
            let member = uid == 0 || gid == group || supplementary_groups(pid).contains(&group);
            vfs.set_acl(ino, &key, &list, !member)
        };
        self.serve("setxattr", request, work, |done| send_empty(reply, done));
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, key: &OsStr, size: u32, reply: ReplyXattr) {
        let (ino, key) = (Ino(ino.0), key.as_bytes());
        if !key.starts_with(b"user.cairn.") {
            let value = timed("getxattr", || self.vfs.get_xattr(ino, key));
            return Self::send_xattr(reply, size, value);
        }
        // A CID that is asked for may have to be made first.
        let steps = self.vfs.get_xattr_steps(ino, key);
        let send = move |value| Self::send_xattr(reply, size, value);
        self.requests.begin(Job::new("getxattr", request, steps, send));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let listed = timed("listxattr", || self.vfs.list_xattrs(Ino(ino.0))).map(|names| {
            names
                .into_iter()
                .flat_map(|mut name| {
                    name.push(0);
                    name
                })
                .collect()
        });
        Self::send_xattr(reply, size, listed);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, key: &OsStr, reply: ReplyEmpty) {
        let key = key.as_bytes().to_vec();
        let work = move |vfs: &Vfs| vfs.remove_xattr(Ino(ino.0), &key);
        self.serve("removexattr", request, work, |done| send_empty(reply, done));
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // default_permissions: the kernel checks by itself and need not ask.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let range = offset..offset.saturating_add(length);
        let work = move |vfs: &Vfs| vfs.fallocate(HandleId(handle.0), range.clone(), mode);
        self.serve("fallocate", request, work, |done| send_empty(reply, done));
    }

    fn lseek(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(from) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let work = move |vfs: &Vfs| vfs.seek(HandleId(handle.0), from, hole);
        self.serve("lseek", request, work, |found| match found {
            Ok(at) => reply.offset(at.cast_signed()),
            Err(error) => reply.error(error),
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _: INodeNo,
        to: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The answer has 32 bits; the caller asks for the rest again.
        let len = len.min(u64::from(u32::MAX));
        let (from, to) = ((HandleId(from.0), from_offset), (HandleId(to.0), to_offset));
        let send = |copied: Result<u64, Errno>| match copied {
            Ok(copied) => reply.written(copied as u32),
            Err(error) => reply.error(error),
        };
        let steps = self.vfs.copy_steps(from, to, len);
        self.requests.begin(Job::new("copy_file_range", request, steps, send));
    }
}
