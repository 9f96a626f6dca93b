//! Kubo, the IPFS daemon, as a backend, by its RPC.
//!
//! A block lies there as Kubo's own, so `ipfs cat` of a content's CID gives it; what
//! keeps it there is the pin of a holder of its own (`holder`, decision 0013), which no
//! pin of the user's meets. A name is a direct pin that is called by it. A deletion ends
//! pins; bytes go when Kubo collects (`ipfs repo gc`). Nothing is ever fetched from the
//! network. What Kubo says of a block that is there already is not proven: copies are
//! read back like any other.
//!
//! Several volumes may use one Kubo, each with a folder of its own in the URL.

mod address;
mod car;
mod error;
mod holder;
mod listing;
mod names;
mod rpc;
mod store;
#[cfg(test)]
mod tests;

pub(super) use self::address::{Address, GIVES};

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;

use self::holder::Holders;
use self::listing::Listing;
use self::rpc::Rpc;
use super::{
    Backend, BackendError, Capabilities, ErrorKind, Layout, ListPage, PlaceOptions, Presence,
    Usage, check, web,
};
use crate::types::{Block, Cid};

/// The oldest Kubo: before it, a listing kept its pins locked while it was read.
const OLDEST: (u64, u64) = (0, 41);
/// What it takes to be asked who it is.
const HELLO: Duration = Duration::from_secs(4);
/// Kubo's word for no limit, and what nobody reaches.
const NO_LIMIT: u64 = 1 << 62;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    repo_size: u64,
    storage_max: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Setting {
    value: Value,
}

/// A Kubo that stores blocks.
pub struct KuboBackend {
    rpc: Rpc,
    holders: Holders,
    options: PlaceOptions,
    domain: String,
    durable: bool,
    listing: Mutex<Option<Listing>>,
    /// Bytes that it had room for when it was asked, less what was put since.
    room: AtomicU64,
    /// Blocks that are being put: a pin that is made twice at a time is away for a moment.
    putting: Mutex<HashSet<Cid>>,
    put: Notify,
}

/// Blocks that one call puts.
struct Putting<'k> {
    of: &'k KuboBackend,
    cids: Vec<Cid>,
}

impl Drop for Putting<'_> {
    fn drop(&mut self) {
        let mut putting = self.of.putting.lock();
        self.cids.iter().for_each(|id| {
            putting.remove(id);
        });
        self.of.put.notify_waiters();
    }
}

fn is_too_old(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(str::parse::<u64>);
    let number = |part: Option<Result<u64, _>>| part.and_then(Result::ok);
    match (number(parts.next()), number(parts.next())) {
        (Some(major), Some(minor)) => (major, minor) < OLDEST,
        // What calls itself otherwise is taken at its word.
        _ => false,
    }
}

/// Whether blocks that were acknowledged are on the disk: `"sync": false` of a flatfs.
fn is_durable(spec: &Value) -> bool {
    match spec {
        Value::Object(map) => {
            let loses = map.get("type").is_some_and(|kind| kind == "flatfs")
                && map.get("sync") == Some(&Value::Bool(false));
            !loses && map.values().all(is_durable)
        }
        Value::Array(list) => list.iter().all(is_durable),
        _ => true,
    }
}

/// Whether its blocks survive a crash. A token that may not ask is no reason to doubt.
async fn hello(rpc: &Rpc) -> Result<bool, BackendError> {
    let Version { version } = rpc.ask("version", &[]).await?;
    if is_too_old(&version) {
        let message =
            format!("{} is Kubo {version}: {}.{} or newer is needed", rpc.at(), OLDEST.0, OLDEST.1);
        return Err(BackendError::new(ErrorKind::Unsupported, message));
    }
    match rpc.ask::<Setting>("config", &[("arg", "Datastore.Spec")]).await {
        Ok(setting) => Ok(is_durable(&setting.value)),
        Err(error) => {
            tracing::debug!(%error, "the datastore's settings cannot be asked for");
            Ok(true)
        }
    }
}

impl KuboBackend {
    /// Opens it: reads the secret, and asks it for its version. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer; `Denied` by it, or without the
    /// secret; `Unsupported` for an old version; `Invalid` settings, also its own: with
    /// `create` one that does not flush what it acknowledges.
    pub(super) fn open(
        address: &Address,
        options: PlaceOptions,
        create: bool,
    ) -> Result<Self, BackendError> {
        let rpc = Rpc::new(address)?;
        let again = rpc.anew(address)?;
        let flushes = web::at_opening(rpc.at(), HELLO, move || async move { hello(&again).await })?;
        let durable = flushes || address.durable;
        if !durable {
            let message = format!(
                "{}: its flatfs has `sync: false`, Kubo's default, so a power cut may take what it \
                 acknowledged. With Kubo stopped: ipfs config --json Datastore.Spec \"$(ipfs config \
                 Datastore.Spec | sed 's/\"sync\": false/\"sync\": true/')\". Or write durable=1 in \
                 the URL if its copies are to count all the same",
                rpc.at()
            );
            if create {
                return Err(BackendError::new(ErrorKind::Invalid, message));
            }
            tracing::warn!("{message}: they do not count now");
        }
        let domain = options.domain_or(&address.failure_domain());
        Ok(Self {
            holders: Holders::new(&address.folder),
            rpc,
            options,
            domain,
            durable,
            listing: Mutex::new(None),
            room: AtomicU64::new(0),
            putting: Mutex::default(),
            put: Notify::new(),
        })
    }

    fn refuse_writes(&self) -> Result<(), BackendError> {
        self.options.refuse_writes(self.rpc.at())
    }

    /// Waits until nobody else puts one of these.
    async fn alone_with(&self, blocks: &[Block]) -> Putting<'_> {
        loop {
            // Before the look: what ends after it is heard of.
            let changed = self.put.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut putting = self.putting.lock();
                if !blocks.iter().any(|block| putting.contains(&block.cid)) {
                    let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
                    putting.extend(&cids);
                    return Putting { of: self, cids };
                }
            }
            changed.await;
        }
    }

    /// Kubo itself stores above its `StorageMax`; we do not.
    async fn refuse_beyond_capacity(&self, blocks: &[&Block]) -> Result<(), BackendError> {
        let bytes: u64 = blocks.iter().map(|block| block.data.len() as u64).sum();
        let take = |room: u64| room.checked_sub(bytes);
        let relaxed = Ordering::Relaxed;
        if self.room.fetch_update(relaxed, relaxed, take).is_ok() {
            return Ok(());
        }
        let usage = self.space().await?;
        if self.room.fetch_update(relaxed, relaxed, take).is_ok() {
            return Ok(());
        }
        let message = format!(
            "{} has {} of {} bytes left: raise Datastore.StorageMax there (or capacity= in its \
             URL), or run `ipfs repo gc`",
            self.rpc.at(),
            usage.available_bytes.unwrap_or_default(),
            usage.capacity_bytes.unwrap_or_default()
        );
        Err(BackendError::new(ErrorKind::Full, message))
    }

    async fn space(&self) -> Result<Usage, BackendError> {
        let size: Size = self.rpc.ask("repo/stat", &[("size-only", "true")]).await?;
        let most = self.options.capacity.unwrap_or(size.storage_max);
        let capacity = (most < NO_LIMIT).then_some(most);
        let left = capacity.map(|capacity| capacity.saturating_sub(size.repo_size));
        self.room.store(left.unwrap_or(NO_LIMIT), Ordering::Relaxed);
        // The repo is its user's, too: what of it is ours is known from the records.
        Ok(Usage { used_bytes: None, capacity_bytes: capacity, available_bytes: left })
    }
}

#[async_trait]
impl Backend for KuboBackend {
    fn kind(&self) -> &'static str {
        "kubo"
    }

    fn location(&self) -> String {
        self.rpc.at().to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            layout: Layout::Blocks,
            // A range is cut out of the block that came.
            range_reads: false,
            list: true,
            delete: true,
            verifies: false,
            durable: self.durable,
            read_only: self.options.read_only,
            failure_domain: self.domain.clone(),
            // Its pins are made one at a time; the blocks of others are written meanwhile.
            parallel_puts: 4,
        }
    }

    async fn put(&self, block: &Block) -> Result<(), BackendError> {
        self.put_many(std::slice::from_ref(block)).await
    }

    async fn put_many(&self, blocks: &[Block]) -> Result<(), BackendError> {
        self.refuse_writes()?;
        let _alone = self.alone_with(blocks).await;
        self.put_all(blocks).await
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let bytes = self.bytes(cid).await?;
        let range = check::range(cid, range, bytes.len() as u64)?;
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn presence(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        self.look(cids).await
    }

    async fn delete(&self, cid: &Cid) -> Result<(), BackendError> {
        self.delete_many(std::slice::from_ref(cid)).await
    }

    async fn delete_many(&self, cids: &[Cid]) -> Result<(), BackendError> {
        self.refuse_writes()?;
        self.delete_all(cids).await
    }

    async fn list(&self, from: Option<&str>, limit: usize) -> Result<ListPage, BackendError> {
        self.page(from, limit).await
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        self.refuse_writes()?;
        self.point(name, cid).await
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        self.all_names(prefix).await
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        self.refuse_writes()?;
        self.forget(name).await
    }

    async fn usage(&self) -> Result<Usage, BackendError> {
        self.space().await
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.forget_listing();
        self.rpc.renew().await?;
        self.rpc.ask::<Version>("version", &[]).await.map(drop)
    }
}
