//! A connection: `ssh` as a process, and SFTP over its input and output.
//!
//! The system's own client brings keys, agents, aliases, jump hosts and certificates as
//! their owner set them, and no secret passes through here.

use std::io::{ErrorKind as IoKind, Read};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{StreamExt, TryStreamExt, iter};
use parking_lot::Mutex;
use russh_sftp::client::RawSftpSession;
use russh_sftp::client::error::Error;
use russh_sftp::client::rawsession::SftpResult;
use russh_sftp::protocol::{FileAttributes, OpenFlags, Packet, StatusCode};
use tokio::sync::Mutex as Slot;
use uuid::Uuid;

use super::address::SftpSettings;
use super::failure::Failure;

/// Connections of one backend: the server does the work of one at a time, and waits for its
/// disk in it.
const LINKS: usize = 4;
/// Seconds that an answer may take; callers have shorter deadlines of their own.
const ANSWER: u64 = 60;
/// Bytes of a request or an answer where the server names no limit of its own (the draft's
/// section 3: 34,000 with all that is around them).
const CHUNK: u64 = 32 << 10;
/// The most that is asked for at once; with its frame it fits into a packet of the library.
const CHUNK_MAX: u64 = 255 << 10;
/// Of one file at a time.
const AT_ONCE: usize = 8;
/// Entries of one folder: 100 times what 10,000,000 blocks put into one.
const ENTRIES_MAX: usize = 1_000_000;
/// What is read of what `ssh` says.
const SAID_MAX: usize = 4096;
/// Files and folders are their owner's.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// What a server can do beyond version 3 (OpenSSH's PROTOCOL, section 4).
#[expect(clippy::struct_excessive_bools, reason = "each is a separate ability")]
#[derive(Debug, Clone, Copy)]
pub(super) struct Abilities {
    pub fsync: bool,
    pub posix_rename: bool,
    pub hard_link: bool,
    pub statvfs: bool,
}

/// A connection that is up, or was.
pub(super) struct Link {
    session: RawSftpSession,
    child: Mutex<Child>,
    words: Mutex<Option<ChildStderr>>,
    chunk: u64,
    pub can: Abilities,
    is_broken: AtomicBool,
}

impl Drop for Link {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        if let Err(error) = child.kill().and_then(|()| child.wait()) {
            tracing::debug!(%error, "ssh did not end");
        }
    }
}

fn attributes(mode: u32) -> FileAttributes {
    FileAttributes { permissions: Some(mode), ..FileAttributes::empty() }
}

/// A status that is no failure here.
fn unless<T>(result: SftpResult<T>, code: StatusCode) -> SftpResult<Option<T>> {
    match result {
        Err(Error::Status(status)) if status.status_code == code => Ok(None),
        other => other.map(Some),
    }
}

impl Link {
    /// Connects, and asks what the server can do.
    pub async fn connect(settings: &SftpSettings) -> Result<Self, Failure> {
        let pair = || {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            Ok((tokio::net::UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
        };
        let none = |error: std::io::Error| Failure::Broken(format!("no ssh: {error}"));
        let (ours, theirs) = pair().map_err(none)?;
        let mut command = settings.command();
        // Ctrl-C at a mount in the foreground is for the mount, which still writes.
        command.process_group(0);
        command.stdin(Stdio::from(theirs.try_clone().map_err(none)?));
        command.stdout(Stdio::from(theirs)).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            IoKind::NotFound => Failure::NoSsh,
            _ => none(error),
        })?;
        // What holds our side of it open would keep it from ending.
        drop(command);
        let words = child.stderr.take();
        if let Some(words) = &words
            && let Err(error) = rustix::io::ioctl_fionbio(words, true)
        {
            return Err(none(error.into()));
        }
        let mut link = Self {
            session: RawSftpSession::new(ours),
            child: Mutex::new(child),
            words: Mutex::new(words),
            chunk: CHUNK,
            can: Abilities { fsync: false, posix_rename: false, hard_link: false, statvfs: false },
            is_broken: AtomicBool::new(false),
        };
        let version = link.session.init().await.map_err(|error| link.failed(error))?;
        let knows = |name: &str, version_: &str| {
            version.extensions.get(name).is_some_and(|known| known == version_)
        };
        link.can = Abilities {
            fsync: knows("fsync@openssh.com", "1"),
            posix_rename: knows("posix-rename@openssh.com", "1"),
            hard_link: knows("hardlink@openssh.com", "1"),
            statvfs: knows("statvfs@openssh.com", "2"),
        };
        if knows("limits@openssh.com", "1") {
            let limits = link.session.limits().await.map_err(|error| link.failed(error))?;
            let both = limits.max_read_len.min(limits.max_write_len);
            link.chunk = if both == 0 { CHUNK } else { both.min(CHUNK_MAX) };
        }
        link.session.set_timeout(ANSWER);
        Ok(link)
    }

    fn is_up(&self) -> bool {
        !self.is_broken.load(Ordering::Relaxed)
    }

    /// What `ssh` said before it ended.
    fn last_words(&self) -> String {
        let mut said = vec![0; SAID_MAX];
        let mut words = self.words.lock();
        let read = words.as_mut().and_then(|words| words.read(&mut said).ok()).unwrap_or(0);
        String::from_utf8_lossy(&said[..read]).trim().to_owned()
    }

    fn failed(&self, error: Error) -> Failure {
        let broken = |text: String| {
            self.is_broken.store(true, Ordering::Relaxed);
            let said = self.last_words();
            Failure::Broken(if said.is_empty() { text } else { said })
        };
        match error {
            Error::Status(status) => Failure::Status(status.status_code, status.error_message),
            Error::Timeout => {
                // Nobody knows what still comes.
                self.is_broken.store(true, Ordering::Relaxed);
                Failure::Late
            }
            Error::UnexpectedBehavior(_) | Error::IO(_) => broken("the connection ended".into()),
            other => broken(other.to_string()),
        }
    }

    fn done<T>(&self, result: SftpResult<T>) -> Result<T, Failure> {
        result.map_err(|error| self.failed(error))
    }

    /// What is at a path, a link itself; `None` when nothing is.
    pub async fn look(&self, path: &str) -> Result<Option<FileAttributes>, Failure> {
        let found = unless(self.session.lstat(path).await, StatusCode::NoSuchFile);
        Ok(self.done(found)?.map(|found| found.attrs))
    }

    /// Makes a folder; one that is there is success.
    pub async fn make_dir(&self, path: &str) -> Result<(), Failure> {
        match self.session.mkdir(path, attributes(FOLDER_MODE)).await {
            // Version 3 has no word for "it exists".
            Err(Error::Status(status)) if status.status_code == StatusCode::Failure => {
                let found = self.look(path).await?;
                if found.is_some_and(|found| found.file_type().is_dir()) {
                    return Ok(());
                }
                Err(Failure::Status(status.status_code, status.error_message))
            }
            other => self.done(other).map(drop),
        }
    }

    /// Removes a file; false when there was none.
    pub async fn remove(&self, path: &str) -> Result<bool, Failure> {
        let removed = unless(self.session.remove(path).await, StatusCode::NoSuchFile);
        Ok(self.done(removed)?.is_some())
    }

    /// Moves a file, over what is there.
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        let mut both = Vec::with_capacity(8 + from.len() + to.len());
        for path in [from, to] {
            both.extend_from_slice(&(path.len() as u32).to_be_bytes());
            both.extend_from_slice(path.as_bytes());
        }
        // Version 3's own fails when something has the name.
        match self.done(self.session.extended("posix-rename@openssh.com", both).await)? {
            Packet::Status(status) if status.status_code == StatusCode::Ok => Ok(()),
            Packet::Status(status) => {
                Err(Failure::Status(status.status_code, status.error_message))
            }
            _ => Err(self.failed(Error::UnexpectedPacket)),
        }
    }

    /// Gives a file another name; false when something has it.
    pub async fn link(&self, from: &str, to: &str) -> Result<bool, Failure> {
        match self.session.hardlink(from, to).await {
            Err(Error::Status(status)) if status.status_code == StatusCode::Failure => {
                if self.look(to).await?.is_some() {
                    return Ok(false);
                }
                Err(Failure::Status(status.status_code, status.error_message))
            }
            other => self.done(other).map(|_| true),
        }
    }

    /// Brings a folder's entries to the medium: a folder that is opened to be read is a
    /// file to OpenSSH's server, which flushes it.
    pub async fn sync_dir(self: &Arc<Self>, path: &str) -> Result<(), Failure> {
        let folder = self.open(path, OpenFlags::READ).await?;
        self.done(self.session.fsync(folder.id()).await)?;
        folder.close().await
    }

    /// What is in a folder, but for `.` and `..`, in order of the names; `None` when there
    /// is no folder.
    pub async fn entries(
        self: &Arc<Self>,
        path: &str,
    ) -> Result<Option<Vec<(String, FileAttributes)>>, Failure> {
        let opened = unless(self.session.opendir(path).await, StatusCode::NoSuchFile);
        let Some(opened) = self.done(opened)? else { return Ok(None) };
        let folder = Handle { link: Arc::clone(self), id: Some(opened.handle), temporary: None };
        let mut found = Vec::new();
        loop {
            let page = unless(self.session.readdir(folder.id()).await, StatusCode::Eof);
            let Some(page) = self.done(page)? else { break };
            let ours = page.files.into_iter().filter(|one| !matches!(&*one.filename, "." | ".."));
            found.extend(ours.map(|one| (one.filename, one.attrs)));
            if found.len() > ENTRIES_MAX {
                return Err(Failure::TooMany);
            }
        }
        folder.close().await?;
        found.sort_unstable_by(|one, two| one.0.cmp(&two.0));
        Ok(Some(found))
    }

    async fn open(self: &Arc<Self>, path: &str, flags: OpenFlags) -> Result<Handle, Failure> {
        let opened = self.session.open(path, flags, attributes(FILE_MODE)).await;
        let id = Some(self.done(opened)?.handle);
        Ok(Handle { link: Arc::clone(self), id, temporary: None })
    }

    /// The bytes of a file, or of a part: fewer where it ends before. `None` when there is
    /// no file; a file of more than `most` is `TooLong`.
    pub async fn read(
        self: &Arc<Self>,
        path: &str,
        range: Option<Range<u64>>,
        most: u64,
    ) -> Result<Option<(Bytes, u64)>, Failure> {
        let opened = self.open(path, OpenFlags::READ).await;
        let file = match opened {
            Err(Failure::Status(StatusCode::NoSuchFile, _)) => return Ok(None),
            other => other?,
        };
        let found = self.done(self.session.fstat(file.id()).await)?.attrs;
        let len = found.size.unwrap_or(0);
        if !found.file_type().is_file() || len > most {
            file.close().await?;
            return Err(Failure::TooLong);
        }
        let range = range.unwrap_or(0..len);
        let (start, end) = (range.start.min(len), range.end.min(len));
        let parts = (start..end).step_by(self.chunk as usize);
        let reads = parts.map(|at| self.part(file.id(), at..end.min(at + self.chunk)));
        let reads: Vec<_> = reads.collect();
        let parts: Vec<Bytes> = iter(reads).buffered(AT_ONCE).try_collect().await?;
        file.close().await?;
        let mut parts = parts;
        let bytes = if parts.len() == 1 { parts.remove(0) } else { parts.concat().into() };
        Ok(Some((bytes, len)))
    }

    async fn part(&self, handle: &str, range: Range<u64>) -> Result<Bytes, Failure> {
        let wanted = (range.end - range.start) as usize;
        let mut bytes = BytesMut::new();
        while bytes.len() < wanted {
            let (at, left) = (range.start + bytes.len() as u64, wanted - bytes.len());
            let read = unless(self.session.read(handle, at, left as u32).await, StatusCode::Eof);
            let Some(read) = self.done(read)? else { return Err(Failure::Short) };
            if read.data.is_empty() || read.data.len() > left {
                return Err(Failure::Short);
            }
            if read.data.len() == wanted {
                return Ok(read.data.into());
            }
            bytes.extend_from_slice(&read.data);
        }
        Ok(bytes.freeze())
    }

    /// Writes a new file in a folder, flushed. It goes when it is not moved.
    pub async fn write(self: &Arc<Self>, folder: &str, data: &[u8]) -> Result<Temporary, Failure> {
        let path = format!("{folder}/{}", Uuid::new_v4().simple());
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        let mut file = self.open(&path, flags).await?;
        file.temporary = Some(path.clone());
        let parts = (0..data.len()).step_by(self.chunk as usize);
        let writes = parts.map(|at| {
            let part = &data[at..data.len().min(at + self.chunk as usize)];
            let written = self.session.write(file.id(), at as u64, part.to_vec());
            async move { self.done(written.await) }
        });
        let writes: Vec<_> = writes.collect();
        iter(writes).buffered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
        self.done(self.session.fsync(file.id()).await)?;
        let temporary = Temporary { link: Arc::clone(self), path: Some(path) };
        file.temporary = None;
        file.close().await?;
        Ok(temporary)
    }

    /// Size and room of the disk that has a path.
    pub async fn disk(&self, path: &str) -> Result<Disk, Failure> {
        let told = self.done(self.session.statvfs(path).await)?;
        let bytes = |blocks: u64| blocks.saturating_mul(told.fragment_size);
        let used = told.blocks.saturating_sub(told.blocks_free);
        Ok(Disk {
            // As `df` counts, without what is kept back for root.
            capacity: bytes(used.saturating_add(told.blocks_avail)),
            available: bytes(told.blocks_avail),
            // `SSH_FXE_STATVFS_ST_RDONLY`.
            is_read_only: told.flags & 1 != 0,
        })
    }
}

/// What the disk there says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    pub capacity: u64,
    pub available: u64,
    pub is_read_only: bool,
}

/// Something open there. When whoever has it is cancelled it is closed all the same: a
/// server has few.
struct Handle {
    link: Arc<Link>,
    id: Option<String>,
    /// A file that nobody needs then.
    temporary: Option<String>,
}

impl Handle {
    fn id(&self) -> &str {
        self.id.as_deref().unwrap_or_default()
    }

    async fn close(mut self) -> Result<(), Failure> {
        let Some(id) = self.id.take() else { return Ok(()) };
        self.link.done(self.link.session.close(id).await).map(drop)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let (id, path) = (self.id.take(), self.temporary.take());
        if id.is_none() && path.is_none() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let link = Arc::clone(&self.link);
        runtime.spawn(async move {
            if let Some(id) = id
                && let Err(error) = link.session.close(id).await
            {
                tracing::debug!(%error, "a handle stays open until its connection ends");
            }
            if let Some(path) = path {
                drop(Temporary { link, path: Some(path) });
            }
        });
    }
}

/// A file in `tmp`; goes when it was not moved to its place.
pub(super) struct Temporary {
    link: Arc<Link>,
    path: Option<String>,
}

impl Temporary {
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or_default()
    }

    /// Moves it, over what is there. Not durable before the folder is synced.
    pub async fn move_to(mut self, path: &str) -> Result<(), (Self, Failure)> {
        match self.link.rename(self.path(), path).await {
            Ok(()) => {
                self.path = None;
                Ok(())
            }
            Err(failure) => Err((self, failure)),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let link = Arc::clone(&self.link);
        runtime.spawn(async move {
            if let Err(error) = link.remove(&path).await {
                tracing::debug!(%error, "a temporary file stays until a day has passed");
            }
        });
    }
}

/// Room for a connection.
#[derive(Default)]
struct Line {
    link: Option<Arc<Link>>,
    /// When the last try to make one failed, and why.
    failed: Option<(Instant, Failure)>,
}

/// The connections of a place, made when they are needed.
pub(super) struct Links {
    settings: SftpSettings,
    lines: [Slot<Line>; LINKS],
    next: AtomicUsize,
}

impl Links {
    pub fn new(settings: SftpSettings) -> Self {
        Self { settings, lines: Default::default(), next: AtomicUsize::new(0) }
    }

    /// Does it over a connection; once more over another one when that had ended while
    /// nobody used it, as all have when the server was away. What is asked may be done twice.
    pub async fn on<T, Doing>(&self, work: impl Fn(Arc<Link>) -> Doing) -> Result<T, Failure>
    where
        Doing: Future<Output = Result<T, Failure>>,
    {
        for _ in 0..LINKS {
            let (link, is_new) = self.link().await?;
            match work(link).await {
                Err(Failure::Broken(_)) if !is_new => {}
                other => return other,
            }
        }
        work(self.link().await?.0).await
    }

    async fn link(&self) -> Result<(Arc<Link>, bool), Failure> {
        let (asked, at) = (Instant::now(), self.next.fetch_add(1, Ordering::Relaxed) % LINKS);
        let mut line = self.lines[at].lock().await;
        if let Some(link) = line.link.as_ref().filter(|link| link.is_up()) {
            return Ok((Arc::clone(link), false));
        }
        // Who waited for a try that failed does not make another one.
        if let Some((_, failure)) = line.failed.as_ref().filter(|(when, _)| *when >= asked) {
            return Err(failure.clone());
        }
        // Not before: two at a time would be one more than there are lines.
        line.link = None;
        match Link::connect(&self.settings).await {
            Ok(link) => {
                let link = Arc::new(link);
                line.link = Some(Arc::clone(&link));
                Ok((link, true))
            }
            Err(failure) => {
                line.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }
}
