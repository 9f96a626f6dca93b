//! A directory as a backend: one file a block.
//!
//! ```text
//! cairn-backend.json    {"format":1,"id":UUID,"created":SECONDS}
//! blocks/<xx>/<cid>     a block; <xx> as `blocks::shard_of` says
//! names/<name>          the CID's text and a newline
//! tmp/                  files being written
//! ```
//!
//! A block is written to `tmp`, synced, renamed and its directory synced, so it
//! is there whole or not at all. Files are found by CID, so the place can be
//! copied by any tool. Several processes may use one place. The open directory
//! keeps its disk busy: unmount the disk after the volume.

mod blocks;
mod errno;
mod names;
mod packs;
mod place;
mod sync;
#[cfg(test)]
mod tests;
mod usage;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::StatVfsMountFlags;
use tokio::sync::Semaphore;
use uuid::Uuid;

use self::blocks::Blocks;
pub(super) use self::blocks::shard_of;
use self::place::Place;
use super::{
    Backend, BackendError, Capabilities, ErrorKind, Layout, ListPage, PlaceOptions, Presence, Usage,
};
use crate::runtime::Room;
use crate::types::{Block, Cid};

/// Why a place may be read-only without being set so.
const MOUNTED_READ_ONLY: &str = "its filesystem is mounted read-only";

fn is_mounted_read_only(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Calls at a time, and threads that hang when the disk never answers. A call
/// that is given up keeps its thread; the others wait for one, and are late.
const THREADS: usize = 16;

/// Where a block may lie in a folder whose files are named by their CID: flat, in
/// folders as a backend has them, or in a backend's place itself.
#[must_use]
pub fn block_paths(folder: &Path, cid: &Cid) -> [PathBuf; 3] {
    let text = cid.to_string();
    let shard = shard_of(&text);
    let sharded = Path::new(&shard).join(&text);
    [folder.join(&text), folder.join(&sharded), folder.join("blocks").join(&sharded)]
}

/// A directory that stores blocks.
pub struct DirBackend {
    blocks: Arc<Blocks>,
    domain: String,
    read_only: Option<&'static str>,
    threads: Arc<Semaphore>,
}

impl DirBackend {
    /// Opens the place; `create` makes it when the directory is missing or empty.
    ///
    /// # Errors
    /// `Unavailable` when there is no place and none may be made; `Unsupported`
    /// for a newer format; `Invalid` for a directory with other things in it;
    /// by errno otherwise.
    pub fn open(root: &Path, options: PlaceOptions, create: bool) -> Result<Self, BackendError> {
        let path = std::path::absolute(root)
            .map_err(|error| errno::explain(root, "find", errno::errno_of(&error)))?;
        let read_only = match (options.read_only, is_mounted_read_only(&path)) {
            (true, _) => Some("it is set so (`read_only=1` in its URL)"),
            (false, true) => Some(MOUNTED_READ_ONLY),
            (false, false) => None,
        };
        let place = Place::open(&path, create, read_only.is_none())?;
        let (major, minor) = (rustix::fs::major(place.device), rustix::fs::minor(place.device));
        let domain = options
            .domain
            .map_or_else(|| format!("device:{major}:{minor}"), |name| format!("domain:{name}"));
        let blocks = Arc::new(Blocks::new(place, options.capacity));
        count_in_background(&blocks);
        Ok(Self { blocks, domain, read_only, threads: Arc::new(Semaphore::new(THREADS)) })
    }

    /// The id in the place's marker: the same for two paths to one place.
    pub fn id(&self) -> Uuid {
        self.blocks.place.id
    }

    /// Files among the blocks that are not blocks, as listings met them.
    pub fn ignored_files(&self) -> u64 {
        self.blocks.ignored()
    }

    fn refuse_writes(&self) -> Result<(), BackendError> {
        match self.read_only {
            None => Ok(()),
            Some(why) => {
                let message = format!("{} is read-only: {why}", self.location());
                Err(BackendError::new(ErrorKind::ReadOnly, message))
            }
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Blocks) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        run(&self.threads, &self.blocks, work).await
    }
}

/// Work that blocks, on one of a place's threads.
async fn run<S: Send + Sync + 'static, T: Send + 'static>(
    threads: &Arc<Semaphore>,
    state: &Arc<S>,
    work: impl FnOnce(&S) -> Result<T, BackendError> + Send + 'static,
) -> Result<T, BackendError> {
    let cut = |error: &dyn std::fmt::Display| {
        let message = format!("the work on a directory was cut off: {error}");
        BackendError::new(ErrorKind::Other, message)
    };
    let thread = Arc::clone(threads).acquire_owned().await.map_err(|e| cut(&e))?;
    let state = Arc::clone(state);
    let run = move || {
        let result = work(&state);
        drop(thread);
        result
    };
    tokio::task::spawn_blocking(run).await.map_err(|e| cut(&e))?
}

/// Counts what is there, behind everything else, until the backend is dropped.
fn count_in_background(blocks: &Arc<Blocks>) {
    let weak = Arc::downgrade(blocks);
    let work = move || {
        // Only borrowed for the count: the last owner may be this thread.
        let Some(blocks) = weak.upgrade() else { return };
        let counted = blocks.count(|| Arc::strong_count(&blocks) > 1);
        if let Err(errno) = &counted {
            let path = blocks.place.path.display();
            tracing::warn!(%path, %errno, "the blocks of a backend could not be counted");
        }
        blocks.counter.end(counted.unwrap_or(false));
    };
    if let Err(error) = std::thread::Builder::new().name("cairn-count".into()).spawn(work) {
        tracing::warn!(%error, "no thread to count the blocks of a backend");
        blocks.counter.end(false);
    }
}

#[async_trait]
impl Backend for DirBackend {
    fn kind(&self) -> &'static str {
        "dir"
    }

    fn location(&self) -> String {
        self.blocks.place.path.display().to_string()
    }

    fn id(&self) -> Option<Uuid> {
        Some(self.blocks.place.id)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            layout: Layout::Blocks,
            range_reads: true,
            list: true,
            delete: true,
            verifies: false,
            durable: true,
            read_only: self.read_only.is_some(),
            failure_domain: self.domain.clone(),
            // Enough for a disk's journal to commit several syncs together.
            parallel_puts: 8,
        }
    }

    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        self.put_many(std::slice::from_ref(block)).await
    }

    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        self.refuse_writes()?;
        let given = blocks.to_vec();
        self.run(move |blocks| blocks.put_all(&given)).await
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let cid = *cid;
        let writable = self.read_only.is_none();
        self.run(move |blocks| {
            let place = || {
                blocks.place.check()?;
                blocks.place.try_disk(writable)
            };
            blocks.get(&cid, range).map_err(|error| errno::of_block(error, place))
        })
        .await
    }

    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        let cids = cids.to_vec();
        self.run(move |blocks| blocks.presence(&cids)).await
    }

    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        self.delete_many(std::slice::from_ref(cid)).await
    }

    async fn delete_many(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.refuse_writes()?;
        let cids = cids.to_vec();
        self.run(move |blocks| blocks.delete_all(&cids)).await
    }

    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        let from = from.map(str::to_owned);
        self.run(move |blocks| blocks.list(from.as_deref(), limit)).await
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        self.refuse_writes()?;
        let (name, cid) = (name.to_owned(), *cid);
        self.run(move |blocks| {
            blocks.place.check()?;
            names::put(&blocks.place, &name, &cid)
        })
        .await
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        let prefix = prefix.to_owned();
        self.run(move |blocks| {
            let found = names::list(&blocks.place, &prefix)?;
            blocks.place.check()?;
            Ok(found)
        })
        .await
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        self.refuse_writes()?;
        let name = name.to_owned();
        self.run(move |blocks| {
            blocks.place.check()?;
            names::delete(&blocks.place, &name)
        })
        .await
    }

    async fn usage(&self) -> Result<Usage, BackendError> {
        self.run(|blocks| {
            blocks.place.check()?;
            let Room { capacity: size, available: free } = Room::under(&blocks.place.blocks)
                .map_err(|errno| blocks.place.fail("ask for the free space of", errno))?;
            let used = blocks.used(blocks.counter.known());
            let left = |limit: u64| used.map(|used| limit.saturating_sub(used).min(free));
            Ok(Usage {
                used_bytes: used,
                capacity_bytes: Some(blocks.capacity.map_or(size, |limit| limit.min(size))),
                available_bytes: blocks.capacity.map_or(Some(free), left),
            })
        })
        .await
    }

    async fn probe(&self) -> Result<(), BackendError> {
        let writable = self.read_only.is_none();
        let was_mounted_so = self.read_only == Some(MOUNTED_READ_ONLY);
        self.run(move |blocks| {
            blocks.place.check()?;
            if was_mounted_so && !is_mounted_read_only(&blocks.place.path) {
                let message = format!(
                    "{} can be written again: it has to be opened anew",
                    blocks.place.path.display()
                );
                return Err(BackendError::new(ErrorKind::Unavailable, message));
            }
            blocks.place.try_disk(writable)
        })
        .await
    }
}
