//! A folder behind SFTP as a backend: one file a block, as in a directory.
//!
//! The layout is a directory's (`cairn-backend.json`, `blocks/<xx>/<cid>`, `names/<name>`,
//! `tmp/`), so the same place can be named from the machine that has it. A block is
//! written to `tmp`, flushed (fsync@openssh.com), renamed (posix-rename@openssh.com) and
//! its folder flushed. Protocol: draft-ietf-secsh-filexfer-02 (version 3), with the
//! extensions of OpenSSH's PROTOCOL, section 4.

mod address;
mod blocks;
mod failure;
mod link;
mod names;
mod place;
#[cfg(test)]
mod tests;

pub(super) use self::address::{GIVES, SftpSettings};

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use self::failure::explain;
use self::link::{Link, Links};
use self::place::{Place, settle};
use super::counted::{self, Counted, Counter};
use super::{
    Backend, BackendError, Capabilities, Layout, ListPage, PlaceOptions, Presence, Usage, web,
};
use crate::types::{Block, Cid};

/// Blocks that are sent, asked for or read at a time within one call.
const AT_ONCE: usize = 16;
/// A place that is not found in this time is not in reach.
const OPEN_DEADLINE: Duration = Duration::from_secs(9);

/// A folder behind SFTP that stores blocks.
pub(super) struct SftpBackend {
    place: Arc<Place>,
    options: PlaceOptions,
    domain: String,
}

impl SftpBackend {
    /// Opens the place; `create` makes it where the folder is missing or empty. Blocks its
    /// thread for at most ten seconds.
    ///
    /// # Errors
    /// `Unavailable` when nobody answers, or when there is no place and none may be made;
    /// `Denied` by the server; `Unsupported` for a server that cannot flush, a newer format
    /// or archives; `Invalid` for a folder with other things in it.
    pub fn open(
        settings: SftpSettings,
        options: PlaceOptions,
        create: bool,
    ) -> Result<Self, BackendError> {
        let (at, root) = (settings.shown(), settings.folder().to_owned());
        let domain = options.domain_or(&settings.failure_domain());
        let counter = Counter::new(options.capacity);
        let (first, name, folder) = (settings.clone(), at.clone(), root.clone());
        let writable = !options.read_only;
        // A connection ends with the runtime that it was made in: this is one of its own.
        let ask = move || async move {
            let link = Link::connect(&first).await;
            let link = Arc::new(link.map_err(|failure| explain(&name, "reach", failure))?);
            settle(&link, (&name, &folder), create, writable).await
        };
        let id = web::at_opening(&at, OPEN_DEADLINE, ask)?;
        let place = Place::new(Links::new(settings), (at, root), id, counter);
        Ok(Self { place: Arc::new(place), options, domain })
    }

    fn refuse_writes(&self) -> Result<(), BackendError> {
        self.options.refuse_writes(&self.place.at)
    }
}

impl Counted for Place {
    fn counter(&self) -> &Counter {
        &self.counter
    }

    fn at(&self) -> &str {
        &self.at
    }

    fn key(cid: &Cid) -> String {
        blocks::key_of(cid)
    }

    async fn page(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        self.list(from, limit).await
    }

    async fn length_of(&self, cid: &Cid) -> Result<Option<u64>, BackendError> {
        let found = self.length_at(cid).await;
        found.map_err(|failure| self.fail("ask for blocks in", failure))
    }
}

#[async_trait]
impl Backend for SftpBackend {
    fn kind(&self) -> &'static str {
        "sftp"
    }

    fn location(&self) -> String {
        self.place.at.clone()
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
            verifies: false,
            durable: true,
            read_only: self.options.read_only,
            failure_domain: self.domain.clone(),
            parallel_puts: 8,
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
        self.place.list(from, limit).await
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
        let root = &self.place.root;
        let ask = |link: Arc<Link>| async move {
            if link.can.statvfs { link.disk(root).await.map(Some) } else { Ok(None) }
        };
        let disk = self.place.links.on(ask).await;
        let disk = disk.map_err(|f| self.place.fail("ask for the free space of", f))?;
        let Some(capacity) = self.options.capacity else {
            let (size, free) = (disk.map(|d| d.capacity), disk.map(|d| d.available));
            return Ok(Usage { used_bytes: None, capacity_bytes: size, available_bytes: free });
        };
        counted::start(&self.place);
        let used = self.place.counter.known();
        let least = |limit: u64, there: Option<u64>| there.map_or(limit, |bytes| limit.min(bytes));
        let left = used.map(|used| capacity.saturating_sub(used));
        Ok(Usage {
            used_bytes: used,
            capacity_bytes: Some(least(capacity, disk.map(|d| d.capacity))),
            available_bytes: left.map(|left| least(left, disk.map(|d| d.available))),
        })
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.place.check().await?;
        if self.options.read_only {
            return Ok(());
        }
        let tmp = &self.place.path("tmp");
        // It goes with the answer.
        let write = |link: Arc<Link>| async move { link.write(tmp, b"probe\n").await.map(drop) };
        match self.place.links.on(write).await {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.place.explain_write("write in", failure, 0).await),
        }
    }
}
