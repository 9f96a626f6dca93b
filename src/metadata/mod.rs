//! What the volume knows: inodes, names, xattrs, contents with their copies,
//! the queue, and their history in Parquet.
//!
//! The engine is an ordered key-value store with snapshots and atomic,
//! optimistic transactions; `Namespace` writes the POSIX rules once above it.
//! Commits are not synced one by one: [`Engine::persist`] makes all of them
//! durable. After a crash the engine holds a prefix of the commits that
//! contains everything persisted. Every change marks its row in the same
//! transaction, so that the next Parquet delta contains it.
//!
//! Not here: bytes of files, placement of copies, permissions of callers.

pub mod checkpoint;
mod conflicts;
mod embedded;
mod engine;
mod error;
mod events;
mod journal;
pub(crate) mod keys;
mod memory;
mod namespace;
mod records;
#[cfg(test)]
mod tests;

pub use self::embedded::EmbeddedEngine;
pub use self::engine::{Commit, Engine, Reader, Transaction, transact};
pub use self::error::MetadataError;
pub use self::events::{
    EventFile, EventKind, EventLog, EventPage, EventQuery, NumberedEvent, Retention, Severity,
    check_event_file, check_events_of,
};
pub use self::memory::{MemoryEngine, MemoryState};
pub use self::namespace::{
    Change, ContentCommit, Created, DirectoryPage, EventRecord, KeepStrictest, MarkToken,
    Namespace, NewNode, PinOrder, PinPage, PinRow, Problem, QuotaLimits, QuotaUsage, Removed,
    RenameMode, Risk, SetAttributes, Stats, merge_policies,
};
#[cfg(test)]
pub(crate) use self::namespace::{NoteRecord, OrphanRecord, UsageRecord};
pub use self::records::{
    BackendRecord, ContentRecord, CopyRecord, CopyState, DentryRecord, InodeRecord, MoveKind,
    MoveRecord, PinState, PolicyRecord, QueueRecord, StagedRecord, TryRecord, VerifyMethod,
};
