//! Places that store blocks, one file a kind, behind one trait.
//!
//! A backend stores blocks by CID and a few small *names* (pointers to manifest
//! CIDs). What it says is a claim until the bytes were re-hashed. It never
//! decides what is stored, moved or deleted: `replication` does. Every wrapper
//! in `wrap/` forwards every method. `conformance` is the suite that each
//! implementation passes.

mod bundle;
pub(crate) mod check;
mod cluster;
pub mod conformance;
mod counted;
mod dir;
mod error;
mod kubo;
mod marker;
mod memory;
mod object;
mod open;
mod operation;
mod overlap;
mod pack;
pub mod peer;
mod pinata;
mod pinning;
mod settings;
mod sftp;
mod web;
pub mod wrap;

pub use self::cluster::ClusterBackend;
pub use self::dir::{DirBackend, block_paths};
pub use self::error::{BackendError, ErrorKind};
pub use self::kubo::KuboBackend;
pub use self::memory::MemoryBackend;
pub use self::open::{BackendSpec, InvalidBackendUrl, kind_of, open, open_in};
pub use self::operation::Operation;
pub use self::overlap::{overlaps, refuse_overlap};
pub use self::pinning::PinningBackend;
pub use self::settings::{Micros, PlaceOptions, PlaceSettings, Price, Scrub};

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::types::{Block, Cid};

/// How blocks lie there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One object a block.
    Blocks,
    /// Archives of many blocks with an index.
    Packs,
}

/// What a backend can do and promises.
#[expect(clippy::struct_excessive_bools, reason = "each is a separate ability")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// How blocks lie there.
    pub layout: Layout,
    /// `get` honours a range without moving the whole block.
    pub range_reads: bool,
    /// `list` works.
    pub list: bool,
    /// `delete` works.
    pub delete: bool,
    /// It checks hashes itself when it stores (a claim is then a proof by service).
    pub verifies: bool,
    /// A `put` that returned survives a crash of that place.
    pub durable: bool,
    /// Nothing can be written now (read-only mount, permission, setting).
    pub read_only: bool,
    /// Copies in one failure domain count once: device, host, bucket or account.
    pub failure_domain: String,
    /// Puts at the same time that it takes well.
    pub parallel_puts: usize,
}

/// Whether a block is there. Unknown changes nothing (promise 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// There, with this many bytes.
    Present(u64),
    /// Certainly not there.
    Absent,
    /// Could not be found out.
    Unknown,
}

/// Space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes that we use there, when known.
    pub used_bytes: Option<u64>,
    /// Bytes in all, when known.
    pub capacity_bytes: Option<u64>,
    /// Bytes still free for us, when known.
    pub available_bytes: Option<u64>,
}

/// One page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Blocks with their lengths.
    pub blocks: Vec<(Cid, u64)>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<String>,
}

/// A place that stores blocks. Calls may run at the same time; each is safe to
/// repeat; dropping a future cancels it and leaves nothing half-visible.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// `local`, `dir`, `memory`, `s3`, ...
    fn kind(&self) -> &'static str;

    /// Where it is, without secrets.
    fn location(&self) -> String;

    /// Of the place: the same for two ways to one. `None` where it has none.
    fn id(&self) -> Option<Uuid> {
        None
    }

    /// What it can do, as found when it was opened.
    fn capabilities(&self) -> Capabilities;

    /// Stores a block; returns when it is durable there. A block that is there
    /// already (with the right length) is success: a wrong copy is deleted
    /// before it is put again. The block's bytes match its CID (the caller's duty).
    async fn put(&self, block: &Block) -> Result<(), BackendError>;

    /// Stores several; pack layouts write them together. A crash leaves no node without
    /// those before it that it links to; others may come in any order. Success means that
    /// all are durable.
    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        for block in blocks {
            self.put(block).await?;
        }
        Ok(())
    }

    /// The bytes, not verified. `range` is within the block.
    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError>;

    /// Whether each is there, in the order asked.
    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError>;

    /// Removes a block; one that is not there is success.
    async fn delete(&self, cid: &Cid) -> Result<(), BackendError>;

    /// Removes several, in any order. After an error nothing is known of them.
    async fn delete_many(&self, cids: &[Cid]) -> Result<(), BackendError> {
        for cid in cids {
            self.delete(cid).await?;
        }
        Ok(())
    }

    /// Lists blocks in pages. An error means that nothing is known of the rest.
    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError>;

    /// Points `name` (of `a-z0-9-_./`, at most 200 bytes) at a CID, durably.
    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError>;

    /// Names that begin with `prefix`, sorted, with their CIDs.
    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError>;

    /// Removes a name; one that is not there is success.
    async fn delete_name(&self, name: &str) -> Result<(), BackendError>;

    /// Space there.
    async fn usage(&self) -> Result<Usage, BackendError>;

    /// Whether it answers and takes writes, as cheaply as can be.
    async fn probe(&self) -> Result<(), BackendError>;

    /// Gives back room of what was deleted, where that is work of its own: a piece of it.
    /// Whether there is more to do.
    async fn compact(&self) -> Result<bool, BackendError> {
        Ok(false)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod watched;
