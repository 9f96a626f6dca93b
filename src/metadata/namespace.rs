use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    ContentRecord, CopyRecord, DentryRecord, Engine, InodeRecord, MetadataError, PinState,
    QueueRecord, StagedRecord,
};
use crate::types::{BackendId, Cid, FileKind, Ino, Name, Timestamp};

/// What a new inode starts with.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits (umask already applied).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group (the parent's when the parent is setgid; then a new directory is
    /// setgid too: `Namespace::create` applies that rule).
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Bytes of a symlink; empty otherwise.
    pub target: Vec<u8>,
    /// All four times.
    pub now: Timestamp,
}

/// A name and its inode, just made.
#[derive(Debug, Clone)]
pub struct Created {
    /// Its number.
    pub ino: Ino,
    /// Its row.
    pub inode: InodeRecord,
}

/// What an unlink or a rename-over left behind.
#[derive(Debug, Clone)]
pub struct Removed {
    /// The inode that lost a name.
    pub ino: Ino,
    /// Its row after that. With `nlink == 0` it is an orphan until
    /// [`Namespace::reap`].
    pub inode: InodeRecord,
}

/// Alias that reads better where a name is removed.
pub type Unlinked = Removed;

/// renameat2's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace what is there.
    Replace,
    /// Fail when the new name exists.
    NoReplace,
    /// Swap the two names.
    Exchange,
}

/// Attributes to change; `None` keeps.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttributes {
    /// New permission bits (07777).
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size of the row (content is the vfs's business).
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<Timestamp>,
    /// New modification time.
    pub mtime: Option<Timestamp>,
    /// New change time (set by the caller on every change that POSIX counts).
    pub ctime: Option<Timestamp>,
}

/// One page of a directory in cookie order.
#[derive(Debug, Clone, Default)]
pub struct DirectoryPage {
    /// Entries with cookies above the one asked for.
    pub entries: Vec<(Name, DentryRecord)>,
    /// No entry follows.
    pub last: bool,
}

/// A content that a file now has.
#[derive(Debug, Clone)]
pub struct ContentCommit {
    /// The file.
    pub ino: Ino,
    /// Its `InodeRecord::version` when sealing began; a commit whose version is
    /// behind is still applied only if equal (else `Ok(false)` for it).
    pub version: u64,
    /// Root of the new content; `None` for the empty file.
    pub root: Option<Cid>,
    /// The record to insert when the root is new to the volume (with the local
    /// copy in `copies` and `refs` ignored).
    pub record: ContentRecord,
    /// Whether copies are wanted elsewhere: writes the queue row in the same
    /// transaction.
    pub enqueue: bool,
    /// New size of the file.
    pub size: u64,
    /// New modification time (and ctime, when later than the row's).
    pub mtime: Timestamp,
}

/// Counters of the whole volume; kept up to date in each transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Sum of file sizes.
    pub bytes: u64,
    /// Contents with refs > 0.
    pub pins: u64,
    /// Pins by state: below_min, below_target, at_target, over_max.
    pub pins_by_state: [u64; 4],
    /// Pins with no verified copy beside the local one or with any claimed-only copy.
    pub unverified: u64,
    /// Rows in the queue.
    pub queued: u64,
    /// Rows in the queue whose last round failed.
    pub failed: u64,
    /// Per backend: copies and bytes (content size) of pins.
    pub backends: BTreeMap<BackendId, (u64, u64)>,
}

/// The POSIX tree over an engine. All methods are atomic, and visible at once;
/// durable after [`Engine::persist`]. None checks a caller's permissions.
pub struct Namespace {
    _engine: Arc<dyn Engine>,
}

#[expect(missing_docs, clippy::missing_errors_doc, reason = "documented by its owner")]
impl Namespace {
    /// Opens the tree; makes the root directory in an empty engine.
    pub fn open(engine: Arc<dyn Engine>, now: Timestamp) -> Result<Self, MetadataError> {
        let _ = (engine, now);
        todo!()
    }
    pub fn engine(&self) -> &Arc<dyn Engine> {
        todo!()
    }
    pub fn stats(&self) -> Stats {
        todo!()
    }
    pub fn inode(&self, _ino: Ino) -> Result<InodeRecord, MetadataError> {
        todo!()
    }
    pub fn lookup(&self, _parent: Ino, _name: &Name) -> Result<DentryRecord, MetadataError> {
        todo!()
    }
    pub fn create(
        &self,
        _parent: Ino,
        _name: &Name,
        _node: &NewNode,
    ) -> Result<Created, MetadataError> {
        todo!()
    }
    /// An inode without a name (O_TMPFILE): an orphan until `link`.
    pub fn create_orphan(&self, _node: &NewNode) -> Result<Created, MetadataError> {
        todo!()
    }
    pub fn link(
        &self,
        _ino: Ino,
        _parent: Ino,
        _name: &Name,
        _now: Timestamp,
    ) -> Result<InodeRecord, MetadataError> {
        todo!()
    }
    pub fn unlink(
        &self,
        _parent: Ino,
        _name: &Name,
        _now: Timestamp,
    ) -> Result<Removed, MetadataError> {
        todo!()
    }
    pub fn rmdir(
        &self,
        _parent: Ino,
        _name: &Name,
        _now: Timestamp,
    ) -> Result<Removed, MetadataError> {
        todo!()
    }
    /// The inode that the new name replaced, if any.
    pub fn rename(
        &self,
        _from: (Ino, &Name),
        _to: (Ino, &Name),
        _mode: RenameMode,
        _now: Timestamp,
    ) -> Result<Option<Removed>, MetadataError> {
        todo!()
    }
    /// Entries with cookie > `after`, at most `limit`.
    pub fn read_directory(
        &self,
        _ino: Ino,
        _after: u64,
        _limit: usize,
    ) -> Result<DirectoryPage, MetadataError> {
        todo!()
    }
    pub fn set_attributes(
        &self,
        _ino: Ino,
        _set: &SetAttributes,
    ) -> Result<InodeRecord, MetadataError> {
        todo!()
    }
    /// Applies any change to a row (policy, profile, ...); `change` may run again after a conflict.
    pub fn update_inode(
        &self,
        _ino: Ino,
        _change: &mut dyn FnMut(&mut InodeRecord) -> Result<(), MetadataError>,
    ) -> Result<InodeRecord, MetadataError> {
        todo!()
    }
    /// Directories that have a name for this inode, each once.
    pub fn parents(&self, _ino: Ino) -> Result<Vec<Ino>, MetadataError> {
        todo!()
    }
    /// Path from the root by `parent` pointers, for messages; `None` for an orphan.
    pub fn path_of(&self, _ino: Ino) -> Result<Option<Vec<u8>>, MetadataError> {
        todo!()
    }

    pub fn get_xattr(&self, _ino: Ino, _name: &[u8]) -> Result<Vec<u8>, MetadataError> {
        todo!()
    }
    /// `create`/`replace` as XATTR_CREATE/XATTR_REPLACE.
    pub fn set_xattr(
        &self,
        _ino: Ino,
        _name: &[u8],
        _value: &[u8],
        _create: bool,
        _replace: bool,
        _now: Timestamp,
    ) -> Result<(), MetadataError> {
        todo!()
    }
    pub fn list_xattrs(&self, _ino: Ino) -> Result<Vec<Vec<u8>>, MetadataError> {
        todo!()
    }
    pub fn remove_xattr(
        &self,
        _ino: Ino,
        _name: &[u8],
        _now: Timestamp,
    ) -> Result<(), MetadataError> {
        todo!()
    }

    /// Orphans (nlink 0), left by a crash or still open.
    pub fn orphans(&self) -> Result<Vec<Ino>, MetadataError> {
        todo!()
    }
    /// Ends an orphan: its rows go, its content loses a reference.
    pub fn reap(&self, _ino: Ino) -> Result<(), MetadataError> {
        todo!()
    }

    /// Gives files their new contents, all in one transaction where possible;
    /// one flag each: false when the inode's version had moved on or it is gone.
    pub fn commit_contents(&self, _commits: &[ContentCommit]) -> Result<Vec<bool>, MetadataError> {
        todo!()
    }
    pub fn content(&self, _root: &Cid) -> Result<Option<ContentRecord>, MetadataError> {
        todo!()
    }
    /// Inodes that have this content are not indexed; contents are listed by CID.
    pub fn contents_page(
        &self,
        _after: Option<&Cid>,
        _limit: usize,
    ) -> Result<Vec<(Cid, ContentRecord)>, MetadataError> {
        todo!()
    }
    /// Changes a content's copies, pin state or limits and its queue row, in one transaction.
    /// `change` gets the record and the queue row (to set, keep or clear).
    pub fn update_content(
        &self,
        _root: &Cid,
        _change: &mut dyn FnMut(&mut ContentRecord, &mut Option<QueueRecord>),
    ) -> Result<bool, MetadataError> {
        todo!()
    }
    /// Recomputes every content's pin with `judge`, page by page (policy or backends changed).
    pub fn rejudge(
        &self,
        _judge: &mut dyn FnMut(&Cid, &mut ContentRecord) -> Option<PinState>,
    ) -> Result<u64, MetadataError> {
        todo!()
    }
    /// Removes a copy record of a backend everywhere (the backend left).
    pub fn forget_backend(&self, _backend: &BackendId) -> Result<u64, MetadataError> {
        todo!()
    }
    pub fn queue_page(
        &self,
        _after: Option<&Cid>,
        _limit: usize,
    ) -> Result<Vec<(Cid, QueueRecord)>, MetadataError> {
        todo!()
    }

    pub fn put_staged(&self, _ino: Ino, _staged: &StagedRecord) -> Result<(), MetadataError> {
        todo!()
    }
    pub fn delete_staged(&self, _ino: Ino) -> Result<(), MetadataError> {
        todo!()
    }
    pub fn staged(&self) -> Result<Vec<(Ino, StagedRecord)>, MetadataError> {
        todo!()
    }

    /// Adds copies to a record, replacing those of the same backend.
    pub fn merge_copies(into: &mut Vec<CopyRecord>, new: &[CopyRecord]) {
        let _ = (into, new);
        todo!()
    }
}
