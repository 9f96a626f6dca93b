//! The rows. Each is stored as one version byte and its postcard form; the
//! golden files under `tests/fixtures/golden` pin every version for ever.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::MetadataError;
use crate::types::{BackendId, Cid, FileKind, Ino, Name, Timestamp};

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeRecord {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, setuid, setgid, sticky (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node (Linux encoding as FUSE passes it).
    pub rdev: u32,
    /// Names that lead here (directories: 2 + subdirectories).
    pub nlink: u32,
    /// Bytes of content (symlink: of the target; directory: entries' name bytes).
    pub size: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of this row that POSIX counts.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Root of the sealed content; `None` is the empty file (or not a file).
    pub content: Option<Cid>,
    /// Profile the content was built with, by name; empty is the volume's own.
    /// A foreign profile comes from an import and ends at the first change.
    pub profile: String,
    /// Bytes of a symbolic link.
    pub target: Vec<u8>,
    /// A directory's parent; of a file one of its parents (the others, when it
    /// has several links, are found by `Namespace::parents`).
    pub parent: Ino,
    /// Whether any extended attribute is stored (saves the look-up).
    pub has_xattrs: bool,
    /// The policy set on this inode, in the text form of `Policy`; empty inherits.
    pub policy: String,
    /// Directories: entries now.
    pub entries: u64,
    /// Directories: the cookie that the next entry gets. Never goes back.
    pub next_cookie: u64,
    /// Rises with each content commit; tells a sealer that it is late.
    pub version: u64,
    /// Bytes of the content that are leaves of zeros: they take no space. At
    /// most too low (rows of version 1 did not have it), never too high.
    pub holes: u64,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DentryRecord {
    /// What it names.
    pub ino: Ino,
    /// Its kind, so that readdir needs no inode.
    pub kind: FileKind,
    /// Position in the directory's order; stable while the entry lives.
    pub cookie: u64,
}

/// An entry in its directory's order; what readdir needs, in one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrderRecord {
    pub name: Name,
    pub ino: Ino,
    pub kind: FileKind,
}

/// How sure we are of one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// The backend said yes.
    Claimed = 0,
    /// Its bytes were re-hashed (at the time of the record).
    Verified = 1,
    /// Its bytes are wrong; a repair is due.
    Corrupt = 2,
    /// It was there and is not any more.
    Lost = 3,
    /// Given up: it counts for nothing, and its blocks may lie there until that
    /// place is collected.
    Released = 4,
}

/// How a copy was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyMethod {
    /// Not at all.
    None = 0,
    /// Hashed by us while it was written there, and made durable.
    Written = 1,
    /// Read back whole and hashed.
    ReadBack = 2,
    /// The backend itself checks the hash of what it stores.
    Service = 3,
    /// All blocks are there by its word; nodes, and some leaves chosen at random, were
    /// read back and hashed.
    Audit = 4,
}

/// One content at one backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRecord {
    /// Where.
    pub backend: BackendId,
    /// How sure.
    pub state: CopyState,
    /// When the state was last established.
    pub at: Timestamp,
    /// How.
    pub method: VerifyMethod,
}

/// Where a pin stands against its policy. Kept in the record so that counters
/// per state need no scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PinState {
    /// Fewer copies than min.
    BelowMin = 0,
    /// At least min, fewer than target.
    BelowTarget = 1,
    /// At target, not above max.
    AtTarget = 2,
    /// More than max.
    OverMax = 3,
}

/// A content: a root CID that files refer to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRecord {
    /// Bytes a reader gets.
    pub size: u64,
    /// Cumulative block bytes (dag-pb Tsize).
    pub tsize: u64,
    /// Blocks in the DAG, duplicates counted.
    pub blocks: u64,
    /// Inodes that refer to it. At 0 it waits for collection.
    pub refs: u64,
    /// Profile name.
    pub profile: String,
    /// Copies wanted: at least, aim, at most.
    pub min: u8,
    /// Aim.
    pub target: u8,
    /// At most.
    pub max: u8,
    /// Where it stands.
    pub pin: PinState,
    /// Its copies.
    pub copies: Vec<CopyRecord>,
    /// Bytes that are leaves of zeros, as [`InodeRecord::holes`].
    pub holes: u64,
    /// Numbers of the policies that ask for copies of it, sorted; empty is the
    /// volume's own. `src/docs/replication.md`, "Policies".
    pub policies: Vec<u32>,
    /// When it came, in seconds since 1970 (0: not known).
    pub created_s: i64,
    /// When a reader last asked for it, in seconds since 1970, at most an
    /// hour behind (0: not known).
    pub accessed_s: i64,
}

/// What is known of a backend beyond its settings: survives a restart.
#[expect(clippy::struct_excessive_bools, reason = "each is a separate fact")]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendRecord {
    /// Out of reach since then.
    pub away_since: Option<Timestamp>,
    /// Away for longer than the grace period: copies there do not count.
    pub given_up: bool,
    /// Proofs from before do not count any more: it was away for too long, or
    /// is another disk.
    pub trusted_since: Timestamp,
    /// It leaves: copies there do not count, and others are made.
    pub draining: bool,
    /// The user lets nothing be written there.
    pub read_only: bool,
    /// The user holds the queue's work there.
    pub paused: bool,
    /// Its failure domain, as it last said; empty: not known.
    pub domain: String,
}

/// Why copies move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveKind {
    /// A backend takes the place of another one, which leaves.
    Replace = 0,
    /// What one backend holds goes to another.
    Migrate = 1,
    /// From fuller places to emptier ones.
    Rebalance = 2,
}

/// A wish that copies move; the row goes when nothing is left to move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// Why.
    pub kind: MoveKind,
    /// From where (not for `Rebalance`).
    pub from: Option<BackendId>,
    /// To where (not for `Rebalance`).
    pub to: Option<BackendId>,
    /// Only contents of files at or below it.
    pub below: Option<Ino>,
    /// When it was wished.
    pub since: Timestamp,
    /// Contents moved so far.
    pub contents: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a number among a content's policies stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// The rules from the root down, as `src/docs/format.md` has them.
    pub expression: String,
}

/// A content that waits for copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRecord {
    /// When it was first asked for.
    pub since: Timestamp,
    /// Rounds that ended without the target.
    pub attempts: u32,
    /// Not to be tried before this time.
    pub not_before: Timestamp,
    /// Why the last round failed, for people; empty when none has.
    pub last_error: String,
    /// The user wants no round before `not_before`, whatever comes.
    pub cancelled: bool,
    /// Distinct verified copies that counted when this was last looked at; 255: not
    /// looked at yet.
    pub verified: u8,
    /// Places where the last round failed, at most [`QueueRecord::TRIES`].
    pub tries: Vec<TryRecord>,
}

/// A place where the last round for a content failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TryRecord {
    /// Which.
    pub backend: BackendId,
    /// Rounds that failed there, one after another.
    pub attempts: u32,
    /// Not to be tried there before this time.
    pub not_before: Timestamp,
    /// Why the last one failed, for people.
    pub error: String,
}

/// A file whose staged bytes are durable but not sealed (`LOCAL_DURABILITY`). Its
/// bitmaps are rows of their own, so that an fsync writes those that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedRecord {
    /// Size of the file with the staged bytes.
    pub size: u64,
    /// The content below the staged bytes (`None`: nothing below).
    pub base: Option<Cid>,
    /// Size of the base that is still visible (truncation lowers it).
    pub base_size: u64,
    /// Modification time to restore.
    pub mtime: Timestamp,
    /// Per leaf index: bitmap of valid 4 KiB pages, 32 bytes for a 1 MiB leaf.
    #[serde(skip)]
    pub pages: Vec<(u64, Vec<u8>)>,
}

impl CopyRecord {
    /// Every byte of it was read and hashed when it was last looked at: what may let
    /// another copy go.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.state == CopyState::Verified && self.method != VerifyMethod::Audit
    }
}

impl QueueRecord {
    /// Places whose failures a row keeps: the latest ones.
    pub const TRIES: usize = 16;
    /// Nobody has counted the verified copies yet.
    pub const NOT_COUNTED: u8 = u8::MAX;

    /// Asked for now, for the first time.
    #[must_use]
    pub fn new(since: Timestamp) -> Self {
        Self {
            since,
            attempts: 0,
            not_before: Timestamp::default(),
            last_error: String::new(),
            cancelled: false,
            verified: Self::NOT_COUNTED,
            tries: Vec::new(),
        }
    }

    /// It is due, as if it had never been tried.
    pub fn forget_failures(&mut self) {
        (self.attempts, self.not_before) = (0, Timestamp::default());
        self.tries.clear();
    }

    /// What is known of failures at a place.
    #[must_use]
    pub fn tried(&self, id: &BackendId) -> Option<&TryRecord> {
        self.tries.iter().find(|one| one.backend == *id)
    }
}

impl ContentRecord {
    /// Whether a backend's word is all we have for one of the copies.
    #[must_use]
    pub fn is_unverified(&self) -> bool {
        self.copies.iter().any(|copy| copy.state == CopyState::Claimed)
    }

    /// Whether one of its copies is in this state.
    #[must_use]
    pub fn has_copy(&self, state: CopyState) -> bool {
        self.copies.iter().any(|copy| copy.state == state)
    }

    /// Bytes that a place needs for it at most: holes are one block everywhere.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.tsize.max(self.size).saturating_sub(self.holes)
    }

    /// The copies that count: claimed or verified.
    pub fn good_copies(&self) -> impl Iterator<Item = &CopyRecord> {
        self.copies
            .iter()
            .filter(|copy| matches!(copy.state, CopyState::Claimed | CopyState::Verified))
    }

    /// Whether the local store has all of it, as a copy.
    pub fn is_here(&self) -> bool {
        self.good_copies().any(|copy| copy.backend.is_local())
    }
}

/// What a row can be: how it is stored, and how older forms are read.
pub(crate) trait Stored: Serialize + DeserializeOwned {
    /// The version that is written. A change of a field raises it.
    const VERSION: u8 = 1;
    /// What the rows of each version lack at their end against the next one, in
    /// postcard's form.
    const ADDED: &'static [&'static [u8]] = &[];
}

impl Stored for InodeRecord {
    const VERSION: u8 = 2;
    /// `holes`: none are known.
    const ADDED: &'static [&'static [u8]] = &[&[0]];
}

impl Stored for ContentRecord {
    const VERSION: u8 = 3;
    /// `holes`: none are known; then `policies`, `created_s`, `accessed_s`: the
    /// volume's own, and no time.
    const ADDED: &'static [&'static [u8]] = &[&[0], &[0, 0, 0]];
}

impl Stored for BackendRecord {
    const VERSION: u8 = 3;
    /// `paused`: it was not. `domain`: not known.
    const ADDED: &'static [&'static [u8]] = &[&[0], &[0]];
}

impl Stored for QueueRecord {
    const VERSION: u8 = 3;
    /// `cancelled`: it was not. `verified`: not counted; `tries`: none.
    const ADDED: &'static [&'static [u8]] = &[&[0], &[Self::NOT_COUNTED, 0]];
}

impl Stored for MoveRecord {}
impl Stored for PolicyRecord {}

impl Stored for DentryRecord {}
impl Stored for OrderRecord {}
impl Stored for StagedRecord {}
impl Stored for u32 {}
impl Stored for u64 {}

/// The stored form: a version byte, then postcard.
pub(crate) fn encode<T: Stored>(record: &T) -> Vec<u8> {
    // Postcard refuses only sequences of unknown length and formatted text, of
    // which no record has any. Should one come: no value decodes from no bytes.
    postcard::to_extend(record, vec![T::VERSION]).unwrap_or_default()
}

/// Reads what [`encode`] wrote, now or in an earlier version; bytes that are
/// left over are damage, too.
pub(crate) fn decode<T: Stored>(key: &[u8], value: &[u8]) -> Result<T, MetadataError> {
    let Some((&version, rest)) = value.split_first() else {
        return Err(damaged(key, "it is empty"));
    };
    if version > T::VERSION {
        return Err(MetadataError::TooNew { found: version.into(), supported: T::VERSION.into() });
    }
    let completed;
    let rest = if version == T::VERSION {
        rest
    } else {
        let lacks = usize::from(version).checked_sub(1).and_then(|n| T::ADDED.get(n..));
        let lacks = lacks.filter(|lacks| !lacks.is_empty());
        let lacks =
            lacks.ok_or_else(|| damaged(key, format!("version {version} was never written")))?;
        completed = [rest, &lacks.concat()].concat();
        &completed
    };
    match postcard::take_from_bytes(rest) {
        Ok((record, [])) => Ok(record),
        Ok((_, left)) => Err(damaged(key, format!("{} bytes too many", left.len()))),
        Err(error) => Err(damaged(key, error.to_string())),
    }
}

/// The row of `key` is not what was written there.
pub(crate) fn damaged(key: &[u8], reason: impl Into<String>) -> MetadataError {
    MetadataError::Damaged { key: key.escape_ascii().to_string(), reason: reason.into() }
}
