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
mod block;
mod car;
mod error;
mod holder;
mod listing;
pub(super) mod names;
mod rpc;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod turns;

pub(super) use self::address::{Address, GIVES, KUBO, Scheme, folder};
pub(super) use self::car::{CONTENT_TYPE, Pieces, archive, form, in_form};
use self::error::is_not_pinned;
pub(super) use self::error::{Words, is_absent, of_status};
use self::holder::index_key;
pub(super) use self::holder::{Holders, NamePin, cluster_key};
pub(super) use self::listing::{LENGTH, Listings, Named, Pin, Pinned, Pins};
pub(super) use self::rpc::Rpc;
pub(super) use self::store::generations;
pub(super) use self::turns::{Room, Turns};

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

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
    listings: Listings,
    room: Room,
    /// A pin that is made twice at a time is away for a moment.
    turns: Turns,
}

/// Whether a version is before `oldest`.
pub(super) fn is_too_old(version: &str, oldest: (u64, u64)) -> bool {
    let mut parts = version.split(['.', '-']).map(str::parse::<u64>);
    let number = |part: Option<Result<u64, _>>| part.and_then(Result::ok);
    match (number(parts.next()), number(parts.next())) {
        (Some(major), Some(minor)) => (major, minor) < oldest,
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
    if is_too_old(&version, OLDEST) {
        let message =
            format!("{} is Kubo {version}: {}.{} or newer is needed", rpc.at(), OLDEST.0, OLDEST.1);
        return Err(BackendError::new(ErrorKind::Unsupported, message));
    }
    Ok(flushes(rpc).await)
}

/// Whether its datastore is set so that blocks survive a crash, as far as it tells.
pub(super) async fn flushes(rpc: &Rpc) -> bool {
    match rpc.ask::<Setting>("config", &[("arg", "Datastore.Spec")]).await {
        Ok(setting) => is_durable(&setting.value),
        Err(error) => {
            tracing::debug!(%error, "the datastore's settings cannot be asked for");
            true
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
            listings: Listings::default(),
            room: Room::default(),
            turns: Turns::default(),
        })
    }

    fn refuse_writes(&self) -> Result<(), BackendError> {
        self.options.refuse_writes(self.rpc.at())
    }

    /// Kubo itself stores above its `StorageMax`; we do not.
    async fn refuse_beyond_capacity(&self, blocks: &[&Block]) -> Result<(), BackendError> {
        let bytes: u64 = blocks.iter().map(|block| block.data.len() as u64).sum();
        if self.room.take(bytes) {
            return Ok(());
        }
        let usage = self.space().await?;
        if self.room.take(bytes) {
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
        self.room.found(left.unwrap_or(NO_LIMIT));
        // The repo is its user's, too: what of it is ours is known from the records.
        Ok(Usage { used_bytes: None, capacity_bytes: capacity, available_bytes: left })
    }
}

#[async_trait]
impl Pinned for KuboBackend {
    fn at(&self) -> &str {
        self.rpc.at()
    }

    fn order(&self, id: &Cid) -> Vec<u8> {
        index_key(id)
    }

    async fn pins(&self) -> Result<Pins, BackendError> {
        let arguments = [("type", "recursive"), ("stream", "true")];
        Ok(Pins(self.rpc.send("pin/ls", &arguments, None).await?))
    }
}

#[async_trait]
impl Named for KuboBackend {
    fn holders(&self) -> &Holders {
        &self.holders
    }

    async fn name_pins(&self, prefix: &str) -> Result<Vec<NamePin>, BackendError> {
        let filter = self.holders.pin_name(prefix);
        // Kubo finds it anywhere in a name; what else it finds is left out here.
        let arguments =
            [("type", "direct"), ("stream", "true"), ("names", "true"), ("name", filter.as_str())];
        let mut answer = self.rpc.send("pin/ls", &arguments, None).await?;
        let mut found = Vec::new();
        while let Some(pin) = answer.line::<Pin>().await? {
            found.extend(pin.as_name(&self.holders, &filter));
        }
        Ok(found)
    }

    async fn pin_name(
        &self,
        pin_name: &str,
        holder: &Cid,
        is_listed: bool,
    ) -> Result<(), BackendError> {
        if is_listed {
            return Ok(());
        }
        let holder = holder.to_string();
        let arguments = [
            ("arg", holder.as_str()),
            ("recursive", "false"),
            ("name", pin_name),
            ("fast-provide-root", "false"),
            ("fast-provide-dag", "false"),
        ];
        self.rpc.send("pin/add", &arguments, None).await?.whole(1 << 16).await.map(drop)
    }

    async fn unpin(&self, holder: &Cid) -> Result<bool, BackendError> {
        let argument = holder.to_string();
        match self.rpc.send("pin/rm", &[("arg", &argument)], None).await {
            Ok(answer) => answer.whole(1 << 16).await.map(|_| true),
            Err(error) if is_not_pinned(&error) => Ok(false),
            Err(error) => Err(error),
        }
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
        let _alone = self.turns.alone_with(blocks).await;
        self.put_all(blocks).await
    }

    async fn get(&self, cid: &Cid, range: Option<Range<u64>>) -> Result<Bytes, BackendError> {
        let bytes = self.rpc.bytes(cid).await?;
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
        self.listings.page(self, from, limit).await
    }

    async fn put_name(&self, name: &str, cid: &Cid) -> Result<(), BackendError> {
        self.refuse_writes()?;
        names::point(self, name, cid).await
    }

    async fn names(&self, prefix: &str) -> Result<Vec<(String, Cid)>, BackendError> {
        names::all(self, prefix).await
    }

    async fn delete_name(&self, name: &str) -> Result<(), BackendError> {
        self.refuse_writes()?;
        names::forget(self, name).await
    }

    async fn usage(&self) -> Result<Usage, BackendError> {
        self.space().await
    }

    async fn probe(&self) -> Result<(), BackendError> {
        self.listings.forget_old();
        self.rpc.renew().await?;
        self.rpc.ask::<Version>("version", &[]).await.map(drop)
    }
}
