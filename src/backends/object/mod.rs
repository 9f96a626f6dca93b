//! Object stores as backends: one object a block.
//!
//! ```text
//! <prefix>/cairn-backend.json    {"format":1,"id":UUID,"created":SECONDS}
//! <prefix>/blocks/<xx>/<cid>     a block; <xx> as in a directory
//! <prefix>/names/<name>          the CID's text and a newline
//! <prefix>/tmp/probe             what a probe writes
//! ```
//!
//! The keys are a directory's paths, so any tool that copies a bucket into a folder
//! makes a directory backend, and the other way round. An object is there whole or not
//! at all, and durable when the store says so. Several processes may use one place.
//!
//! A kind is a file that makes a [`Store`] of a URL; all else is shared. The library
//! (opendal) signs, lists and parses; it tries nothing again, and [`transport`] sends.

mod azblob;
mod blocks;
mod failure;
mod gcs;
mod listing;
mod names;
mod packs;
mod place;
mod s3;
mod settings;
#[cfg(test)]
mod tests;
mod transport;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opendal::options::{ReadOptions, WriteOptions};
use opendal::{Metadata, Operator};
use uuid::Uuid;

pub(super) use self::azblob::{AZURE_GIVES, AzureSettings};
pub(super) use self::gcs::{GOOGLE_GIVES, GoogleSettings};
use self::listing::Paused;
use self::names::Known;
use self::place::settle;
pub(super) use self::s3::{GIVES, S3Settings};
use super::counted::{self, Counted, Counter};
use super::{
    Backend, BackendError, Capabilities, Layout, ListPage, PlaceOptions, Presence, Usage, web,
};
use crate::types::{Block, Cid};

/// Blocks that are sent, asked for or read at a time within one call.
const AT_ONCE: usize = 16;
/// A place that is not found in this time is not in reach.
const OPEN_DEADLINE: Duration = Duration::from_secs(9);

/// What a kind says of a place.
pub(super) struct Description {
    kind: &'static str,
    /// For people, without secrets.
    location: String,
    /// What holds the objects (`bucket`), for messages.
    container: &'static str,
    domain: String,
}

/// Operators over one place, as a kind makes them.
pub(super) struct Store {
    /// For blocks, with the storage class that the URL asks for.
    blocks: Operator,
    /// For the marker, names and probes.
    small: Operator,
    about: Description,
    /// Whether the store is asked to write only what is not there or not changed.
    conditional: bool,
    tags: Tags,
}

/// What tells two versions of an object apart, and what conditions are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tags {
    Etags,
    /// Numbers of its versions.
    Versions,
}

impl Tags {
    /// Of what was looked at or listed.
    fn of(self, found: &Metadata) -> Option<String> {
        let tag = match self {
            Self::Etags => found.etag(),
            Self::Versions => found.version(),
        };
        tag.map(str::to_owned)
    }

    /// To read this version only.
    fn read(self, tag: Option<String>) -> ReadOptions {
        match self {
            Self::Etags => ReadOptions { if_match: tag, ..ReadOptions::default() },
            Self::Versions => ReadOptions { if_version_match: tag, ..ReadOptions::default() },
        }
    }

    /// To write over this version only.
    fn write(self, tag: String) -> WriteOptions {
        match self {
            Self::Etags => WriteOptions { if_match: Some(tag), ..WriteOptions::default() },
            Self::Versions => {
                WriteOptions { if_version_match: Some(tag), ..WriteOptions::default() }
            }
        }
    }
}

/// A place that was opened.
struct Place {
    store: Store,
    /// Of the marker: the same for two ways to one place.
    id: Uuid,
    conditional: AtomicBool,
    known: Known,
    paused: Paused,
    counter: Counter,
}

/// An object store that stores blocks.
pub(super) struct ObjectBackend {
    place: Arc<Place>,
    options: PlaceOptions,
}

impl ObjectBackend {
    /// Opens the place; `create` makes it where nothing is under its prefix. Blocks its
    /// thread for at most ten seconds.
    ///
    /// # Errors
    /// `Unavailable` when there is no place and none may be made, or no bucket;
    /// `Unsupported` for a newer format; `Invalid` for a prefix with other things in it;
    /// by what the store says otherwise.
    pub fn open(
        make: impl Fn() -> Result<Store, BackendError> + Send + 'static,
        options: PlaceOptions,
        create: bool,
    ) -> Result<Self, BackendError> {
        let writable = !options.read_only;
        let store = make()?;
        // Connections end with the runtime that they were made in: a store of its own.
        let settle = move || async move { settle(&make()?, create && writable).await };
        let id = web::at_opening(&store.about.location, OPEN_DEADLINE, settle)?;
        let conditional = AtomicBool::new(store.conditional);
        let counter = Counter::new(options.capacity);
        let (known, paused) = (Known::default(), Paused::default());
        let place = Place { store, id, conditional, known, paused, counter };
        Ok(Self { place: Arc::new(place), options })
    }

    /// Of the place's marker.
    pub fn id(&self) -> Uuid {
        self.place.id
    }

    /// Where small blocks share objects.
    pub fn packs(&self) -> Arc<packs::Packs> {
        Arc::new(packs::Packs(Arc::clone(&self.place)))
    }

    fn refuse_writes(&self) -> Result<(), BackendError> {
        self.options.refuse_writes(&self.place.store.about.location)
    }
}

impl Counted for Place {
    fn counter(&self) -> &Counter {
        &self.counter
    }

    fn at(&self) -> &str {
        &self.store.about.location
    }

    fn key(cid: &Cid) -> String {
        blocks::key_of_cid(cid)
    }

    async fn page(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        self.list(from, limit).await
    }

    async fn length_of(&self, cid: &Cid) -> Result<Option<u64>, BackendError> {
        let found = self.length(&blocks::key_of_cid(cid)).await;
        found.map_err(|error| self.fail("ask for blocks in", error))
    }
}

impl Place {
    /// Whether writes ask for what is there before.
    fn is_conditional(&self) -> bool {
        self.conditional.load(Ordering::Relaxed)
    }

    /// The store does not know conditions: the last one wins from now on.
    fn without_conditions(&self) {
        if self.conditional.swap(false, Ordering::Relaxed) {
            let place = &self.store.about.location;
            tracing::warn!(place, "the store has no conditional writes; conditional=0 says so");
        }
    }

    fn fail(&self, action: &str, error: opendal::Error) -> BackendError {
        failure::explain(&self.store.about.location, action, error)
    }
}

#[async_trait]
impl Backend for ObjectBackend {
    fn kind(&self) -> &'static str {
        self.place.store.about.kind
    }

    fn location(&self) -> String {
        self.place.store.about.location.clone()
    }

    fn id(&self) -> Option<Uuid> {
        Some(self.place.id)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            layout: Layout::Blocks,
            range_reads: true,
            list: true,
            delete: true,
            // It compares a checksum of the bytes that came, not their CID.
            verifies: false,
            durable: true,
            read_only: self.options.read_only,
            failure_domain: self.options.domain_or(&self.place.store.about.domain),
            parallel_puts: AT_ONCE,
        }
    }

    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        self.put_many(std::slice::from_ref(block)).await
    }

    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        self.refuse_writes()?;
        self.place.put_all(blocks).await
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        self.place.get(cid, range).await
    }

    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        self.place.presence(cids).await
    }

    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        self.delete_many(std::slice::from_ref(cid)).await
    }

    async fn delete_many(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.refuse_writes()?;
        self.place.delete_all(cids).await
    }

    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        let page = self.place.list(from, limit).await?;
        self.place.check().await?;
        Ok(page)
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        self.refuse_writes()?;
        self.place.put_name(name, cid).await
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        let found = self.place.names(prefix).await?;
        self.place.check().await?;
        Ok(found)
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        self.refuse_writes()?;
        self.place.delete_name(name).await
    }

    async fn usage(&self) -> Result<Usage, BackendError> {
        self.place.check().await?;
        let Some(capacity) = self.options.capacity else { return Ok(Usage::default()) };
        counted::start(&self.place);
        let used = self.place.counter.known();
        let left = used.map(|used| capacity.saturating_sub(used));
        Ok(Usage { used_bytes: used, capacity_bytes: Some(capacity), available_bytes: left })
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.place.check().await?;
        if self.options.read_only { Ok(()) } else { self.place.try_write().await }
    }
}
