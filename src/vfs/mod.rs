//! POSIX operations over namespace, store and replication, with no kernel in
//! sight: tests drive this API directly.
//!
//! A file being written lives in a staging; when blocks are needed (close,
//! idle, sync, a CID that is asked for) the committer hashes what changed, makes
//! the blocks durable (many files, one flush), and only then gives the inodes
//! their new roots. After a crash a file has its last committed or
//! fsync-acknowledged content, never a torn one; but bytes written into a file
//! after its fsync at `LOCAL_DURABILITY` may be there in part, as on a local
//! disk: its staging file is written in place.
//!
//! Locks: a directory's stripe, then one inode's state. Only the committer
//! holds several inodes' states, in the order of their numbers. Neither a lock
//! nor a thread is held while a backend is waited for: `near` and `steps`.

mod accessed;
mod ahead;
mod attr;
mod behind;
mod block_index;
mod bringing;
mod commit;
mod dir;
mod directory_cid;
mod error;
mod file;
mod last_read;
mod making;
mod near;
mod node;
mod policy;
mod quota;
mod read;
mod retry;
mod steps;
mod sync;
mod xattr;

pub use self::attr::{Caller, SetAttr, StatFs};
pub use self::block_index::EngineIndex;
pub use self::dir::DirEntry;
pub use self::error::{Errno, VfsError};
pub use self::file::{HandleId, OpenOptions};
pub use self::making::Making;
pub use self::near::Brought;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use self::accessed::Accessed;
use self::behind::Behind;
use self::bringing::Bringing;
use self::commit::Committer;
use self::file::Handle;
use self::last_read::LastRead;
use self::making::Makings;
use self::node::{Node, NodeTable};
use self::policy::Policies;
use crate::content::{Link, Profile, Zeros};
use crate::metadata::{ContentRecord, InodeRecord, MetadataError, Namespace, SetAttributes};
use crate::replication::{Checkpointer, Policy, Replicator, WriteResult};
use crate::runtime::{Clock, Spool};
use crate::store::LocalStore;
use crate::types::{AccessTimes, FileKind, Ino, Name, Timestamp};

/// Rows of what was removed that are kept for programs that still hold it.
const KEPT_GONE: usize = 8192;
/// Locks that directories share.
const STRIPES: usize = 256;

/// Limits and settings of one mount.
#[derive(Debug, Clone)]
pub struct VfsOptions {
    /// Profile of new contents.
    pub profile: Profile,
    /// The volume's policy (with this mount's overrides).
    pub policy: Policy,
    /// What of this mount's options says how many copies and where, as a rule before
    /// all others.
    pub mount_rule: String,
    /// No changes.
    pub read_only: bool,
    /// Of what a read moves the time of access, by the rule of relatime.
    pub access_times: AccessTimes,
    /// Bytes of dirty data held in memory; above it files go to the disk.
    pub dirty_bytes: u64,
    /// Files up to this size stay in memory until they are committed.
    pub memory_file_bytes: u64,
    /// Threads that hash a large file.
    pub hash_threads: usize,
    /// Bytes of blocks in commits that run.
    pub commit_bytes: u64,
    /// Bytes in memory of writes that wait; others are kept on the disk.
    pub held_bytes: usize,
    /// Rows of inodes that are kept beside the engine.
    pub cached_rows: usize,
    /// CIDs of directories that are kept.
    pub cached_directories: usize,
    /// Value of `user.cairn.volume` on the root: the volume's folder.
    pub volume_dir: Vec<u8>,
}

/// What the vfs stands on.
pub struct VfsParts {
    /// Metadata.
    pub namespace: Arc<Namespace>,
    /// Blocks.
    pub store: Arc<LocalStore>,
    /// Copies.
    pub replicator: Arc<Replicator>,
    /// Metadata copies.
    pub checkpointer: Arc<Checkpointer>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Settings.
    pub options: VfsOptions,
}

/// What `cairn info` shows.
#[derive(Debug, Clone)]
pub struct FileInfo {
    /// Number.
    pub ino: Ino,
    /// Row.
    pub inode: InodeRecord,
    /// CID of what is written now.
    pub link: Link,
    /// Content record (regular files with content).
    pub content: Option<ContentRecord>,
    /// The policy in force here.
    pub policy: Policy,
}

/// A content that an import has put into the store.
#[derive(Debug, Clone)]
pub struct GraftContent {
    /// Root, size, tsize.
    pub link: Link,
    /// Blocks in the DAG.
    pub blocks: u64,
    /// Profile name (empty: the volume's).
    pub profile: String,
}

/// What an import makes has a name that begins so until it is whole. No kernel
/// keeps such a name: it goes behind its back.
pub const HIDDEN: &str = ".cairn-import-";

/// Tells the kernel what changed behind its back (imports).
///
/// Names need no word: one that is not there is asked for each time (the kernel
/// keeps a negative dentry for as long as it was told, which is not at all), and
/// a word of it would wait for the directory's lock (`fuse_reverse_inval_entry`),
/// which a program holds that waits for us.
pub trait KernelCache: Send + Sync {
    /// Attributes changed, and no byte.
    fn invalidate_attributes(&self, ino: Ino);
    /// A directory has other names.
    fn invalidate_listing(&self, directory: Ino);
}

/// The filesystem.
pub struct Vfs {
    namespace: Arc<Namespace>,
    store: Arc<LocalStore>,
    replicator: Arc<Replicator>,
    checkpointer: Arc<Checkpointer>,
    clock: Arc<dyn Clock>,
    options: VfsOptions,
    zeros: Zeros,
    policy: RwLock<Policy>,
    policies: Policies,
    nodes: NodeTable,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    records: Cache<Ino, InodeRecord>,
    accessed: Accessed,
    last_read: LastRead,
    /// Rise after each change of a row in the engine: what was loaded across
    /// one is not kept.
    row_changes: Vec<Mutex<u64>>,
    /// Files that are being committed or synced.
    shown: AtomicUsize,
    directories: Cache<Ino, Link>,
    /// Removed while no file of ours was open: the last ones.
    gone: Cache<Ino, InodeRecord>,
    /// Rises with each change of the tree; a directory CID that was computed
    /// across a change is not kept.
    tree_version: AtomicU64,
    stripes: Vec<Mutex<()>>,
    committer: Committer,
    /// Changes when a commit is over.
    commits_ended: tokio::sync::watch::Sender<u64>,
    retries: retry::Retries,
    behind: Behind,
    memory_bytes: AtomicU64,
    owed_bytes: AtomicU64,
    hashed_bytes: AtomicU64,
    kernel: RwLock<Option<Arc<dyn KernelCache>>>,
    makings: Makings,
    /// Turns to walk a tree for its CID.
    walks: Arc<Semaphore>,
    /// The turn to keep blocks that the store has no place for.
    keepers: Arc<Semaphore>,
    spool: Arc<Spool>,
    bringing: Bringing,
}

impl Vfs {
    /// Adopts staged files and reaps orphans that a crash left.
    ///
    /// # Errors
    /// Of metadata and store.
    pub fn open(parts: VfsParts) -> Result<Arc<Self>, VfsError> {
        let spool = Spool::new(parts.store.root(), parts.options.held_bytes);
        let vfs = Arc::new(Self {
            namespace: parts.namespace,
            store: parts.store,
            replicator: parts.replicator,
            checkpointer: parts.checkpointer,
            clock: parts.clock,
            policy: RwLock::new(parts.options.policy.clone()),
            policies: Policies::default(),
            zeros: Zeros::new(&parts.options.profile),
            nodes: NodeTable::default(),
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            records: Cache::new(parts.options.cached_rows.max(16)),
            accessed: Accessed::new(parts.options.access_times),
            last_read: LastRead::default(),
            shown: AtomicUsize::new(0),
            row_changes: (0..STRIPES).map(|_| Mutex::new(0)).collect(),
            directories: Cache::new(parts.options.cached_directories.max(16)),
            gone: Cache::new(KEPT_GONE),
            tree_version: AtomicU64::new(0),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            committer: Committer::default(),
            commits_ended: tokio::sync::watch::Sender::new(0),
            retries: retry::Retries::default(),
            behind: Behind::default(),
            memory_bytes: AtomicU64::new(0),
            owed_bytes: AtomicU64::new(0),
            options: parts.options,
            hashed_bytes: AtomicU64::new(0),
            kernel: RwLock::default(),
            makings: Makings::default(),
            walks: Arc::new(Semaphore::new(directory_cid::WALKS)),
            keepers: Arc::new(Semaphore::new(1)),
            spool,
            bringing: Bringing::default(),
        });
        if !vfs.options.read_only {
            vfs.adopt_staged()?;
            for ino in vfs.namespace.orphans()? {
                vfs.namespace.reap(ino)?;
            }
        }
        Committer::start(&vfs)?;
        Behind::start(&vfs)?;
        if !vfs.options.read_only {
            Policies::start(&vfs)?;
        }
        Ok(vfs)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Whether it was opened without changes.
    pub fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    fn refuse_read_only(&self) -> Result<(), VfsError> {
        if self.options.read_only { Err(rustix::io::Errno::ROFS.into()) } else { Ok(()) }
    }

    fn stripe(&self, directory: Ino) -> parking_lot::MutexGuard<'_, ()> {
        self.stripes[(directory.0 as usize) % STRIPES].lock()
    }

    /// Two directories' stripes, in a fixed order.
    fn two_stripes(
        &self,
        a: Ino,
        b: Ino,
    ) -> (parking_lot::MutexGuard<'_, ()>, Option<parking_lot::MutexGuard<'_, ()>>) {
        let (x, y) = ((a.0 as usize) % STRIPES, (b.0 as usize) % STRIPES);
        match x.cmp(&y) {
            std::cmp::Ordering::Equal => (self.stripes[x].lock(), None),
            std::cmp::Ordering::Less => (self.stripes[x].lock(), Some(self.stripes[y].lock())),
            std::cmp::Ordering::Greater => {
                let first = self.stripes[y].lock();
                (self.stripes[x].lock(), Some(first))
            }
        }
    }

    /// Tells the kernel about changes from now on.
    pub fn set_kernel_cache(&self, cache: Arc<dyn KernelCache>) {
        *self.kernel.write() = Some(cache);
    }

    /// The kernel asks for the attributes again.
    pub fn changed_behind(&self, ino: Ino) {
        if let Some(kernel) = self.kernel.read().as_ref() {
            kernel.invalidate_attributes(ino);
        }
    }

    /// The kernel lists a directory anew.
    pub fn names_changed_behind(&self, directory: Ino) {
        if let Some(kernel) = self.kernel.read().as_ref() {
            kernel.invalidate_listing(directory);
        }
    }

    /// The tree below.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// Walks a path of names from the root; follows no symlink.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`.
    pub fn resolve(&self, path: &[Name]) -> Result<Ino, VfsError> {
        let mut at = Ino::ROOT;
        for name in path {
            at = self.namespace.lookup(at, name)?.ino;
        }
        Ok(at)
    }

    /// What is known of a file or directory.
    ///
    /// # Errors
    /// Of sealing and metadata.
    pub fn info(self: &Arc<Self>, ino: Ino) -> Result<FileInfo, VfsError> {
        let link = self.link_of(ino)?;
        let inode = self.record(ino)?;
        let content = match &inode.content {
            Some(root) => self.namespace.content(root)?,
            None => None,
        };
        Ok(FileInfo { ino, inode, link, content, policy: self.policy_of(ino)? })
    }

    /// Commits everything that is dirty and waits until all below `ino` has its
    /// policy's level, names included. `progress` gets (done, known).
    ///
    /// # Errors
    /// Of committing; `BelowLevel` when a policy says fail.
    pub fn sync(
        &self,
        ino: Ino,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<WriteResult, VfsError> {
        self.commit_all()?;
        let mut worst = WriteResult::TargetAchieved;
        let (mut stack, mut done) = (vec![ino], 0);
        while let Some(at) = stack.pop() {
            let inode = self.record(at)?;
            if inode.kind == FileKind::Directory {
                let mut after = 0;
                loop {
                    let page = self.namespace.read_directory(at, after, 1024)?;
                    stack.extend(page.entries.iter().map(|(_, dentry)| dentry.ino));
                    after = page.entries.last().map_or(after, |(_, dentry)| dentry.cookie);
                    if page.last {
                        break;
                    }
                }
            } else if let Some(root) = &inode.content {
                let reached = self.replicator.wait(root, &self.policy_of(at)?)?;
                worst = worst.max(reached);
            }
            done += 1;
            progress(done, done + stack.len() as u64);
        }
        self.checkpointer.acknowledge(&self.policy_of(ino)?)?;
        Ok(worst)
    }

    /// After an import has filled a directory: sets its times, and the kernel lists
    /// it anew.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_times(&self, ino: Ino, times: &SetAttributes) -> Result<(), VfsError> {
        self.namespace.set_attributes(ino, times)?;
        self.names_changed_behind(ino);
        self.reload(&[ino])
    }

    /// Open handles.
    pub fn open_handles(&self) -> u64 {
        self.handles.read().len() as u64
    }

    /// Inodes in memory: open, or not committed. A look-up alone adds none, so the
    /// kernel's FORGET has nothing to free.
    pub fn nodes_held(&self) -> u64 {
        self.nodes.count()
    }

    /// Rows of inodes and CIDs of directories in the caches.
    pub fn cached(&self) -> (u64, u64) {
        (self.records.len() as u64, self.directories.len() as u64)
    }

    /// Bytes that are written and not committed, and how many of them are in
    /// memory.
    pub fn dirty_bytes(&self) -> (u64, u64) {
        let leaf = u64::from(self.options.profile.chunk_size);
        let staged = |node: &Arc<node::Node>| {
            // Who holds the lock is committing it.
            let state = node.state.try_read()?;
            let staging = state.staging.as_ref()?;
            let leaves: u64 = staging.dirty_runs().iter().map(|run| run.end - run.start).sum();
            Some(staging.len().min(leaves.saturating_mul(leaf)))
        };
        let dirty = self.nodes.all().iter().filter_map(staged).sum();
        (dirty, self.memory_bytes.load(Ordering::Relaxed))
    }

    /// Files that wait to be committed.
    pub fn dirty_files(&self) -> u64 {
        self.nodes.dirty_count()
    }

    /// Bytes of leaves and nodes hashed since the opening.
    pub fn hashed_bytes(&self) -> u64 {
        self.hashed_bytes.load(Ordering::Relaxed)
    }

    fn count_hashed(&self, bytes: u64) {
        self.hashed_bytes.fetch_add(bytes, Ordering::Relaxed);
        crate::telemetry::metrics().vfs_hashed_bytes.inc_by(bytes);
    }

    /// Stops the committer's threads after a last commit.
    ///
    /// # Errors
    /// Of that commit.
    pub fn close(&self) -> Result<(), VfsError> {
        let committed = self.commit_all();
        self.committer.stop();
        self.policies.stop();
        let kept = if committed.is_err() { self.record_uncommitted() } else { Ok(()) };
        let result = committed.and(kept);
        // More than can wait, so that none is left.
        let written = self.write_access_times(usize::MAX);
        result.and(written).and(self.write_reads())?;
        self.persist()
    }

    fn node(&self, ino: Ino) -> Result<Arc<Node>, VfsError> {
        if let Some(node) = self.nodes.get(ino) {
            return Ok(node);
        }
        loop {
            let seen = *self.changes_of(ino);
            let record = self.record(ino)?;
            // Under the lock: nobody meets a row that is another by now.
            let changes = self.changes_of(ino);
            if *changes == seen {
                return self.nodes.get_or_load(ino, || Ok(record));
            }
        }
    }

    fn changes_of(&self, ino: Ino) -> MutexGuard<'_, u64> {
        self.row_changes[(ino.0 as usize) % STRIPES].lock()
    }

    /// Keeps a row that was read after `seen` was taken, unless it changed.
    fn keep_record(&self, ino: Ino, record: InodeRecord, seen: u64) {
        let changes = self.changes_of(ino);
        if *changes == seen {
            self.records.insert(ino, record);
        }
    }

    /// The row in the engine is another now.
    fn forget_record(&self, ino: Ino) {
        let mut changes = self.changes_of(ino);
        *changes += 1;
        self.records.remove(&ino);
    }

    /// The row as readers see it: what is written counts.
    fn record(&self, ino: Ino) -> Result<InodeRecord, VfsError> {
        if let Some(node) = self.nodes.get(ino) {
            return Ok(node.row());
        }
        if let Some(record) = self.records.get(&ino) {
            return Ok(record);
        }
        let seen = *self.changes_of(ino);
        let record = self.namespace.inode(ino)?;
        self.keep_record(ino, record.clone(), seen);
        Ok(record)
    }

    /// The rows of these inodes changed in the engine: caches and open state
    /// follow. The row is read under the state's lock: a commit that runs at the
    /// same time is in it, or comes after it.
    fn reload(&self, inos: &[Ino]) -> Result<(), VfsError> {
        for ino in inos {
            self.forget_record(*ino);
            if let Some(node) = self.nodes.get(*ino) {
                let mut state = node.state.write();
                match self.namespace.inode(*ino) {
                    Ok(row) => state.take_row(row),
                    Err(MetadataError::NotFound) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Forgets the CIDs of a directory and of all above it.
    fn changed_below(&self, directory: Ino) -> Result<(), VfsError> {
        self.tree_version.fetch_add(1, Ordering::AcqRel);
        if self.directories.is_empty() {
            return Ok(());
        }
        let mut at = directory;
        loop {
            self.directories.remove(&at);
            if at == Ino::ROOT {
                return Ok(());
            }
            at = self.record(at)?.parent;
        }
    }

    /// Directories' CIDs are worked out again when they are asked for, and
    /// their nodes are put into the store again: no row keeps them there.
    pub fn forget_directory_cids(&self) {
        self.tree_version.fetch_add(1, Ordering::AcqRel);
        self.directories.clear();
    }

    /// A file's content changed: the directories with a name for it change too.
    fn content_changed(&self, ino: Ino) -> Result<(), VfsError> {
        self.tree_version.fetch_add(1, Ordering::AcqRel);
        if !self.directories.is_empty() {
            for parent in self.namespace.parents(ino)? {
                self.changed_below(parent)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
