//! The local store: blocks in segment files, written once, and the staging of
//! files that are being written.
//!
//! Two kinds of segment: *flat* (a sealed staging file; leaf `i` at its natural
//! offset, possibly sparse) and *pack* (small blocks and dag-pb nodes, framed
//! as `CARv1`). Blocks are found by a [`BlockIndex`] that the volume supplies.
//! A block enters the index only after its bytes are on stable storage, so
//! after a crash the index never points at bytes that are not there; a pack's
//! unindexed tail is cut at open. A block is hashed at its first use after a
//! restart, not on each read.
//!
//! Not here: which file has which content, replication, and deciding what is
//! garbage.

mod aside;
mod budget;
mod cache;
mod collect;
mod compact;
mod disk;
mod error;
mod file_pool;
mod index;
mod layout;
mod local;
mod mark_set;
mod pack;
mod pages;
mod recover;
mod seal;
mod segment;
#[cfg(test)]
pub(crate) mod sim;
mod staging;
mod staging_file;
mod verify;

pub use self::aside::Aside;
pub use self::budget::Kept;
pub use self::collect::{CollectReport, Collection, CommitGuard, Hold};
pub use self::error::StoreError;
pub use self::index::{BlockIndex, IndexChange, IndexMark, Location, MemoryIndex};
pub use self::local::{LocalStore, PackTicket, StoreOptions, StoreUsage, VerifyProblem};
pub use self::mark_set::MarkSet;
pub use self::staging::{
    BaseReader, LeafReader, SealedLeaf, StagedLeaves, Staging, StagingOptions,
};

#[cfg(test)]
mod collect_tests;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod local_tests;
#[cfg(test)]
mod staging_tests;
