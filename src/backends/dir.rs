//! A directory: one file a block, sharded by CID.
//!
//! `blocks/<xx>/<cid>` with `xx` the CID text's next-to-last two characters (as
//! flatfs shards: the last ones carry fewer bits), `names/<name>` with the CID as text,
//! `tmp/` for files being written, and `cairn-backend.json`, which tells a place
//! of ours from the empty mountpoint that an unplugged disk leaves.

use std::fs::{self, File};
use std::io::{ErrorKind as IoKind, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Backend, BackendError, Capabilities, ErrorKind, Layout, ListPage, Presence, Usage,
};
use crate::types::{Block, Cid};

const MARKER: &str = "cairn-backend.json";
const FORMAT: u32 = 1;

/// The marker file of a place.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u32,
    id: uuid::Uuid,
}

/// What a directory backend is told.
#[derive(Debug, Clone, Default)]
pub struct DirOptions {
    /// Counts as this failure domain instead of the device's.
    pub domain: Option<String>,
    /// At most this many bytes of blocks.
    pub capacity: Option<u64>,
    /// Refuse writes.
    pub read_only: bool,
}

/// A directory that stores blocks.
pub struct DirBackend {
    place: Arc<Place>,
    domain: String,
}

struct Place {
    root: PathBuf,
    /// Device and inode of the root when it was opened: another directory in
    /// its place (a disk unmounted, a folder replaced) is not ours.
    identity: (u64, u64),
    options: DirOptions,
    used: AtomicU64,
    serial: AtomicU64,
}

fn explain(path: &Path, action: &str, error: std::io::Error) -> BackendError {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let (kind, hint) = match errno {
        Some(Errno::ACCESS | Errno::PERM) => {
            (ErrorKind::Denied, "check the owner and mode of the directory")
        }
        Some(Errno::ROFS) => (ErrorKind::ReadOnly, "its filesystem is mounted read-only"),
        Some(Errno::NOSPC | Errno::DQUOT) => (ErrorKind::Full, "free space there, or add a backend"),
        Some(Errno::NOENT) => (ErrorKind::NotFound, "it is not there"),
        Some(Errno::STALE | Errno::NODEV | Errno::NXIO | Errno::NOTCONN) => {
            (ErrorKind::Unavailable, "is the disk connected and mounted?")
        }
        _ => (ErrorKind::Other, "check the disk and its log"),
    };
    BackendError::new(kind, format!("cannot {action} {}: {error}; {hint}", path.display())).caused_by(error)
}

impl DirBackend {
    /// Opens the place; `create` makes it when the directory is missing or empty.
    ///
    /// # Errors
    /// `Unavailable` when there is no place and none may be made; `Invalid` for
    /// a newer format or a directory with other things in it; by errno otherwise.
    pub fn open(root: &Path, options: DirOptions, create: bool) -> Result<Self, BackendError> {
        let marker = root.join(MARKER);
        match fs::read(&marker) {
            Ok(bytes) => {
                let found: Marker = serde_json::from_slice(&bytes).map_err(|e| {
                    let text = format!("{} is damaged: {e}", marker.display());
                    BackendError::new(ErrorKind::Invalid, text)
                })?;
                if found.format > FORMAT {
                    let text = format!(
                        "{} has format {}, newer than {FORMAT}: use a newer cairn",
                        root.display(),
                        found.format
                    );
                    return Err(BackendError::new(ErrorKind::Invalid, text));
                }
            }
            Err(e) if e.kind() == IoKind::NotFound && create => Self::create(root)?,
            Err(e) if matches!(e.kind(), IoKind::NotFound | IoKind::NotADirectory) => {
                let text = format!(
                    "{} is not a cairn backend now: is the disk mounted? (`cairn backend add` makes a new one)",
                    root.display()
                );
                return Err(BackendError::new(ErrorKind::Unavailable, text));
            }
            Err(e) => return Err(explain(&marker, "read", e)),
        }
        let meta = fs::metadata(root).map_err(|e| explain(root, "open", e))?;
        let device = meta.dev();
        let domain = options.domain.as_ref().map_or_else(
            || format!("device:{}:{}", rustix::fs::major(device), rustix::fs::minor(device)),
            |name| format!("domain:{name}"),
        );
        let place = Place {
            root: root.to_owned(),
            identity: (device, meta.ino()),
            options,
            used: AtomicU64::new(0),
            serial: AtomicU64::new(0),
        };
        place.clean_tmp();
        place.used.store(place.count_bytes(), Ordering::Relaxed);
        Ok(Self { place: Arc::new(place), domain })
    }

    fn create(root: &Path) -> Result<(), BackendError> {
        fs::create_dir_all(root).map_err(|e| explain(root, "make", e))?;
        let occupied = fs::read_dir(root)
            .map_err(|e| explain(root, "read", e))?
            .filter_map(Result::ok)
            .any(|entry| !matches!(entry.file_name().to_str(), Some("lost+found" | "blocks" | "names" | "tmp")));
        if occupied {
            let text = format!("{} has other files in it: name an empty or new directory", root.display());
            return Err(BackendError::new(ErrorKind::Invalid, text));
        }
        for folder in ["blocks", "names", "tmp"] {
            fs::create_dir_all(root.join(folder)).map_err(|e| explain(root, "write in", e))?;
        }
        let marker = Marker { format: FORMAT, id: uuid::Uuid::new_v4() };
        let text = serde_json::to_vec(&marker).unwrap_or_default();
        let temporary = root.join("tmp").join(MARKER);
        write_durable(&temporary, &text).map_err(|e| explain(&temporary, "write", e))?;
        fs::rename(&temporary, root.join(MARKER)).map_err(|e| explain(root, "write in", e))?;
        sync_dir(root).map_err(|e| explain(root, "sync", e))?;
        if let Some(parent) = root.parent() {
            sync_dir(parent).map_err(|e| explain(parent, "sync", e))?;
        }
        Ok(())
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Place) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let place = Arc::clone(&self.place);
        let done = tokio::task::spawn_blocking(move || {
            place.still_there()?;
            work(&place)
        });
        done.await.map_err(|e| BackendError::new(ErrorKind::Other, format!("the worker ended: {e}")))?
    }
}

fn write_durable(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_data()
}

fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

impl Place {
    fn still_there(&self) -> Result<(), BackendError> {
        let gone = || {
            let text = format!("{} is gone or was replaced: is the disk mounted?", self.root.display());
            BackendError::new(ErrorKind::Unavailable, text)
        };
        let meta = fs::metadata(&self.root).map_err(|e| gone().caused_by(e))?;
        if (meta.dev(), meta.ino()) == self.identity { Ok(()) } else { Err(gone()) }
    }

    fn clean_tmp(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("tmp")) else { return };
        for entry in entries.filter_map(Result::ok) {
            // Left by a crash; one that cannot go now goes at the next open.
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::debug!(path = %entry.path().display(), %error, "stale file stays");
            }
        }
    }

    fn count_bytes(&self) -> u64 {
        let Ok(shards) = fs::read_dir(self.root.join("blocks")) else { return 0 };
        shards
            .filter_map(Result::ok)
            .filter_map(|shard| fs::read_dir(shard.path()).ok())
            .flatten()
            .filter_map(|entry| entry.ok()?.metadata().ok())
            .map(|meta| meta.len())
            .sum()
    }

    fn shard(&self, text: &str) -> PathBuf {
        let end = text.len().saturating_sub(1);
        self.root.join("blocks").join(&text[end.saturating_sub(2)..end])
    }

    fn path(&self, cid: &Cid) -> PathBuf {
        let text = cid.to_string();
        self.shard(&text).join(text)
    }

    fn refuse_writes(&self, bytes: u64) -> Result<(), BackendError> {
        if self.options.read_only {
            let text = format!("{} is set read-only (`read_only=1` in its URL)", self.root.display());
            return Err(BackendError::new(ErrorKind::ReadOnly, text));
        }
        match self.options.capacity {
            Some(limit) if self.used.load(Ordering::Relaxed) + bytes > limit => {
                let text = format!("{} has reached its capacity of {limit} bytes", self.root.display());
                Err(BackendError::new(ErrorKind::Full, text))
            }
            _ => Ok(()),
        }
    }

    /// Writes a block's file; its directory is returned for a later sync.
    fn put_file(&self, block: &Block) -> Result<Option<PathBuf>, BackendError> {
        let path = self.path(&block.cid);
        let len = block.data.len() as u64;
        if fs::metadata(&path).is_ok_and(|meta| meta.len() == len) {
            return Ok(None);
        }
        self.refuse_writes(len)?;
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let temporary = self.root.join("tmp").join(format!("{}-{serial}", std::process::id()));
        let placed = write_durable(&temporary, &block.data).and_then(|()| {
            match fs::rename(&temporary, &path) {
                Err(e) if e.kind() == IoKind::NotFound => {
                    let shard = path.parent().unwrap_or(&self.root);
                    fs::create_dir_all(shard)?;
                    sync_dir(&self.root.join("blocks"))?;
                    fs::rename(&temporary, &path)
                }
                other => other,
            }
        });
        if let Err(error) = placed {
            drop(fs::remove_file(&temporary));
            return Err(explain(&path, "write", error));
        }
        self.used.fetch_add(len, Ordering::Relaxed);
        Ok(path.parent().map(Path::to_owned))
    }

    fn put_blocks(&self, blocks: &[Block]) -> Result<(), BackendError> {
        let mut shards = std::collections::BTreeSet::new();
        for block in blocks {
            shards.extend(self.put_file(block)?);
        }
        for shard in shards {
            sync_dir(&shard).map_err(|e| explain(&shard, "sync", e))?;
        }
        Ok(())
    }

    fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let path = self.path(cid);
        let file = File::open(&path).map_err(|e| explain(&path, "read", e))?;
        let len = file.metadata().map_err(|e| explain(&path, "read", e))?.len();
        let range = range.unwrap_or(0..len);
        if range.start > range.end || range.end > len {
            let text = format!("range {range:?} of {cid}, which has {len} bytes");
            return Err(BackendError::new(ErrorKind::Invalid, text));
        }
        if range.end - range.start > Block::MAX_LEN as u64 {
            return Err(BackendError::new(ErrorKind::Corrupt, format!("{cid} has {len} bytes there")));
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start).map_err(|e| explain(&path, "read", e))?;
        Ok(Bytes::from(bytes))
    }

    fn presence(&self, cid: &Cid) -> Presence {
        match fs::metadata(self.path(cid)) {
            Ok(meta) => Presence::Present(meta.len()),
            Err(e) if e.kind() == IoKind::NotFound => Presence::Absent,
            Err(_) => Presence::Unknown,
        }
    }

    fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        // Sorted by shard, then by CID: a cursor is the last CID's text.
        let blocks = self.root.join("blocks");
        let sorted = |dir: &Path| -> Result<Vec<String>, BackendError> {
            let mut names = Vec::new();
            for entry in fs::read_dir(dir).map_err(|e| explain(dir, "list", e))? {
                let entry = entry.map_err(|e| explain(dir, "list", e))?;
                names.extend(entry.file_name().into_string().ok());
            }
            names.sort();
            Ok(names)
        };
        let after = from.map(|text| {
            let shard = self.shard(text).file_name().map(|s| s.to_string_lossy().into_owned());
            (shard.unwrap_or_default(), text.to_owned())
        });
        let mut page = ListPage::default();
        for shard in sorted(&blocks)? {
            if after.as_ref().is_some_and(|(seen, _)| shard < *seen) {
                continue;
            }
            for name in sorted(&blocks.join(&shard))? {
                if after.as_ref().is_some_and(|(seen, text)| shard == *seen && name <= *text) {
                    continue;
                }
                let Ok(cid) = name.parse::<Cid>() else { continue };
                if page.blocks.len() == limit {
                    page.next = page.blocks.last().map(|(cid, _)| cid.to_string());
                    return Ok(page);
                }
                let path = blocks.join(&shard).join(&name);
                let meta = fs::metadata(&path).map_err(|e| explain(&path, "list", e))?;
                page.blocks.push((cid, meta.len()));
            }
        }
        Ok(page)
    }

    fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        let root = self.root.join("names");
        let (mut stack, mut names) = (vec![root.clone()], Vec::new());
        while let Some(dir) = stack.pop() {
            for entry in fs::read_dir(&dir).map_err(|e| explain(&dir, "list", e))? {
                let entry = entry.map_err(|e| explain(&dir, "list", e))?;
                let path = entry.path();
                if path.is_dir() {
                    stack.push(path);
                    continue;
                }
                let name = path.strip_prefix(&root).ok().and_then(Path::to_str).unwrap_or_default();
                if !name.starts_with(prefix) {
                    continue;
                }
                let text = fs::read_to_string(&path).map_err(|e| explain(&path, "read", e))?;
                let cid = text.trim().parse().map_err(|e| {
                    let text = format!("{} does not hold a CID: {e}", path.display());
                    BackendError::new(ErrorKind::Corrupt, text)
                })?;
                names.push((name.to_owned(), cid));
            }
        }
        names.sort();
        Ok(names)
    }

    fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        self.refuse_writes(0)?;
        let path = self.root.join("names").join(checked(name)?);
        let parent = path.parent().unwrap_or(&self.root);
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let temporary = self.root.join("tmp").join(format!("{}-{serial}", std::process::id()));
        fs::create_dir_all(parent)
            .and_then(|()| write_durable(&temporary, format!("{cid}\n").as_bytes()))
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| {
                let mut dir = Some(parent);
                while let Some(at) = dir.filter(|at| at.starts_with(&self.root)) {
                    sync_dir(at)?;
                    dir = at.parent();
                }
                Ok(())
            })
            .map_err(|e| explain(&path, "write", e))
    }

    fn remove(&self, path: &Path) -> Result<u64, BackendError> {
        self.refuse_writes(0)?;
        let len = fs::metadata(path).map_or(0, |meta| meta.len());
        match fs::remove_file(path) {
            Err(e) if e.kind() == IoKind::NotFound => Ok(0),
            Err(e) => Err(explain(path, "remove", e)),
            Ok(()) => {
                let parent = path.parent().unwrap_or(&self.root);
                sync_dir(parent).map_err(|e| explain(parent, "sync", e))?;
                Ok(len)
            }
        }
    }
}

/// A name that cannot leave its folder.
pub(super) fn checked(name: &str) -> Result<&str, BackendError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_./".contains(&b);
    let parts_fine = name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if name.len() <= 200 && name.bytes().all(allowed) && parts_fine {
        Ok(name)
    } else {
        Err(BackendError::new(ErrorKind::Invalid, format!("`{name}` is not a name for a pointer")))
    }
}

#[async_trait]
impl Backend for DirBackend {
    fn kind(&self) -> &'static str {
        "dir"
    }

    fn location(&self) -> String {
        self.place.root.display().to_string()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            layout: Layout::Blocks,
            range_reads: true,
            list: true,
            delete: true,
            verifies: false,
            durable: true,
            read_only: self.place.options.read_only,
            failure_domain: self.domain.clone(),
            parallel_puts: 4,
        }
    }

    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        let block = block.clone();
        self.run(move |place| place.put_blocks(&[block])).await
    }

    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        let blocks = blocks.to_vec();
        self.run(move |place| place.put_blocks(&blocks)).await
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let cid = *cid;
        self.run(move |place| place.get(&cid, range)).await
    }

    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        let cids = cids.to_vec();
        self.run(move |place| Ok(cids.iter().map(|cid| place.presence(cid)).collect())).await
    }

    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        let cid = *cid;
        self.run(move |place| {
            let freed = place.remove(&place.path(&cid))?;
            let subtract = |used: u64| Some(used.saturating_sub(freed));
            place.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract).unwrap_or_default();
            Ok(())
        })
        .await
    }

    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        let from = from.map(str::to_owned);
        self.run(move |place| place.list(from.as_deref(), limit)).await
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        let (name, cid) = (name.to_owned(), *cid);
        self.run(move |place| place.put_name(&name, &cid)).await
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        let prefix = prefix.to_owned();
        self.run(move |place| place.names(&prefix)).await
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        let name = name.to_owned();
        self.run(move |place| place.remove(&place.root.join("names").join(checked(&name)?)).map(drop)).await
    }

    async fn usage(&self) -> Result<Usage, BackendError> {
        self.run(|place| {
            let stat = rustix::fs::statvfs(&place.root).map_err(|e| explain(&place.root, "stat", e.into()))?;
            let used = place.used.load(Ordering::Relaxed);
            let (disk, free) = (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize);
            let limit = place.options.capacity;
            Ok(Usage {
                used_bytes: Some(used),
                capacity_bytes: Some(limit.map_or(disk, |limit| limit.min(disk))),
                available_bytes: Some(limit.map_or(free, |limit| limit.saturating_sub(used).min(free))),
            })
        })
        .await
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.run(|place| {
            let marker = place.root.join(MARKER);
            fs::read(&marker).map(drop).map_err(|e| explain(&marker, "read", e))
        })
        .await
    }
}
