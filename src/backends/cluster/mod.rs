//! IPFS Cluster as a backend, by its REST API.
//!
//! A block is pinned by the cluster through a holder of its own, as at a single Kubo
//! (decision 0013); names are pins that are called by them. It counts as put when enough
//! peers say that they have it pinned. The API gives no bytes: they are read from the Kubo
//! of the peer, by the proxy beside its API, or from Kubos that the URL names, and never
//! over the network unless the URL says so. One that is open has neither files nor threads;
//! a crash leaves pins that a next put makes sure of.

mod error;
mod settings;
mod space;
mod status;
mod store;
#[cfg(test)]
mod tests;

pub use self::settings::ClusterSettings;

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use reqwest::Method;
use serde::Deserialize;

use super::kubo::{
    Address, Holders, Listings, NamePin, Named, Pin, Pinned, Pins, Room, Rpc, Turns, cluster_key,
    flushes, is_too_old, names,
};
use super::{
    Backend, BackendError, Capabilities, ErrorKind, Layout, ListPage, PlaceOptions, Presence,
    Usage, check, web,
};
use crate::types::{Block, Cid};

/// The oldest Cluster: before it, listings were no streams.
const OLDEST: (u64, u64) = (1, 0);
/// What it takes to be asked who it is.
const HELLO: Duration = Duration::from_secs(8);

#[derive(Debug, Default, Deserialize)]
struct Identity {
    #[serde(default)]
    version: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    cluster_peers: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct KuboIdentity {
    #[serde(rename = "ID")]
    id: String,
}

/// A Kubo that is read from.
struct Place {
    rpc: Rpc,
    /// Its id, once it said it.
    id: Mutex<Option<String>>,
}

impl Place {
    fn id(&self) -> Option<String> {
        self.id.lock().clone()
    }

    async fn learn(&self) -> Result<(), BackendError> {
        if self.id().is_none() {
            let KuboIdentity { id } = self.rpc.ask("id", &[]).await?;
            *self.id.lock() = Some(id);
        }
        Ok(())
    }
}

/// An IPFS Cluster that stores blocks.
pub struct ClusterBackend {
    rpc: Rpc,
    places: Vec<Place>,
    holders: Holders,
    options: PlaceOptions,
    /// What each pin is asked for with.
    pin_options: Vec<(String, String)>,
    /// The least and the greatest number of copies; see [`ClusterSettings`].
    copies: (i64, i64),
    fetch: bool,
    domain: String,
    durable: bool,
    listings: Listings,
    room: Room,
    turns: Turns,
    /// Those of the last probe.
    alerts: Mutex<Vec<String>>,
}

/// What is found out when it is opened.
struct Found {
    peers: usize,
    /// Of each Kubo that is read from: its id, and whether it flushes; or why it is not known.
    kubos: Vec<Result<(String, bool), BackendError>>,
}

async fn hello(rpc: &Rpc, kubos: &[Rpc]) -> Result<Found, BackendError> {
    let answer = rpc.request(Method::GET, "id", &[], None).await?;
    let told: Identity = answer.json().await?;
    if !told.error.is_empty() {
        return Err(error::of_message(rpc.at(), &told.error));
    }
    if is_too_old(&told.version, OLDEST) {
        let message =
            format!("{} is IPFS Cluster {}: 1.0 or newer is needed", rpc.at(), told.version);
        return Err(BackendError::new(ErrorKind::Unsupported, message));
    }
    let asks = kubos.iter().map(|kubo| async move {
        let KuboIdentity { id } = kubo.ask("id", &[]).await?;
        Ok((id, flushes(kubo).await))
    });
    Ok(Found { peers: told.cluster_peers.unwrap_or_default().len(), kubos: join_all(asks).await })
}

impl ClusterBackend {
    /// Opens it: reads the secrets, and asks it and its Kubos who they are. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when it, or none of the Kubos, answers; `Denied` by it, or without a
    /// secret; `Unsupported` for an old version; `Invalid` settings, also its own: with
    /// `create` what does not survive a crash, or peers from which nothing could be read.
    pub(super) fn open(
        settings: &ClusterSettings,
        options: PlaceOptions,
        create: bool,
    ) -> Result<Self, BackendError> {
        let address = &settings.address;
        let kubos = settings.kubos();
        let rpc = Rpc::new(address)?;
        let reads = kubos.iter().map(Rpc::new).collect::<Result<Vec<Rpc>, _>>()?;
        let again = rpc.anew(address)?;
        let anew = |(kubo, address): (&Rpc, &Address)| kubo.anew(address);
        let all = reads.iter().zip(&kubos).map(anew).collect::<Result<Vec<Rpc>, _>>()?;
        let ask = move || async move { hello(&again, &all).await };
        let found = web::at_opening(rpc.at(), HELLO, ask)?;
        let copies = settings.copies();
        if create && !settings.fetch && copies.1 > 0 && found.peers > kubos.len() {
            let message = format!(
                "{}: it has {} peers, and blocks would lie at {} of them, but {} Kubo is read from: \
                 name all of theirs with kubo=ipfs://HOST:5001,..., or write fetch=1 to have blocks \
                 come over the cluster's network, or replication_max=-1 to have them everywhere",
                rpc.at(),
                found.peers,
                copies.1,
                kubos.len()
            );
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        let loses = found.kubos.iter().flatten().any(|(_, flushes)| !flushes);
        let mut places = Vec::new();
        let mut failed = None;
        for (rpc, known) in reads.into_iter().zip(found.kubos) {
            let id = match known {
                Ok((id, _)) => Some(id),
                Err(error) => {
                    tracing::warn!(%error, "a Kubo of a cluster does not answer");
                    failed = Some(error);
                    None
                }
            };
            places.push(Place { rpc, id: Mutex::new(id) });
        }
        if let Some(error) = failed.filter(|_| places.iter().all(|place| place.id().is_none())) {
            let message = format!(
                "{}; blocks are read from there: name the Kubos of the peers with \
                 kubo=ipfs://HOST:5001, or start the peer's IPFS proxy (port 9095)",
                error.message
            );
            return Err(BackendError::new(error.kind, message));
        }
        let durable = address.durable || Self::keeps(loses, copies.0, rpc.at(), create)?;
        Ok(Self {
            domain: options.domain_or(&address.failure_domain()),
            holders: Holders::at_cluster(&address.folder),
            pin_options: settings.pin_options(),
            // What ends by itself counts for nothing that has to stay.
            durable: durable && !settings.expires(),
            fetch: settings.fetch,
            rpc,
            places,
            options,
            copies,
            listings: Listings::default(),
            room: Room::default(),
            turns: Turns::default(),
            alerts: Mutex::default(),
        })
    }

    /// Whether what was put survives a crash, as far as is known.
    fn keeps(loses: bool, least: i64, at: &str, create: bool) -> Result<bool, BackendError> {
        let why = if loses {
            "the flatfs of a Kubo has `sync: false`, Kubo's default, so a power cut may take what \
             it acknowledged: set it to true in Datastore.Spec and datastore_spec"
        } else if least < 2 {
            "the cluster's own set of pins is not flushed, so what a single peer acknowledged may \
             be lost with it: write replication_min=2 or more (with replication_max=-1 for copies \
             at all peers)"
        } else {
            return Ok(true);
        };
        let message =
            format!("{at}: {why}; or write durable=1 if its copies are to count all the same");
        if create {
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        tracing::warn!("{message}: they do not count now");
        Ok(false)
    }

    fn refuse_writes(&self) -> Result<(), BackendError> {
        self.options.refuse_writes(self.rpc.at())
    }

    /// Learns the ids of Kubos that did not answer before.
    async fn know_places(&self) -> Result<(), BackendError> {
        for place in &self.places {
            place.learn().await?;
        }
        Ok(())
    }

    /// The parameters of a request that pins.
    fn options_with<'o>(
        &'o self,
        name: &'o str,
        more: &[(&'o str, &'o str)],
    ) -> Vec<(&'o str, &'o str)> {
        let ours = self.pin_options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        ours.chain([("name", name)]).chain(more.iter().copied()).collect()
    }
}

#[async_trait]
impl Pinned for ClusterBackend {
    fn at(&self) -> &str {
        self.rpc.at()
    }

    fn order(&self, id: &Cid) -> Vec<u8> {
        cluster_key(id)
    }

    async fn pins(&self) -> Result<Pins, BackendError> {
        let only = [("filter", "pin")];
        Ok(Pins(self.rpc.request(Method::GET, "allocations", &only, None).await?))
    }
}

#[async_trait]
impl Named for ClusterBackend {
    fn holders(&self) -> &Holders {
        &self.holders
    }

    async fn name_pins(&self, prefix: &str) -> Result<Vec<NamePin>, BackendError> {
        let filter = self.holders.pin_name(prefix);
        let Pins(mut answer) = self.pins().await?;
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
        if !is_listed {
            let options = self.options_with(pin_name, &[]);
            let path = format!("pins/{holder}");
            let answer = self.rpc.request(Method::POST, &path, &options, None).await?;
            answer.whole(1 << 20).await?;
        }
        self.settle(std::slice::from_ref(holder)).await
    }

    async fn unpin(&self, holder: &Cid) -> Result<bool, BackendError> {
        let was = self.end(holder).await?;
        if was {
            self.settle_gone(std::slice::from_ref(holder)).await?;
        }
        Ok(was)
    }
}

#[async_trait]
impl Backend for ClusterBackend {
    fn kind(&self) -> &'static str {
        "cluster"
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
        let mut failed = None;
        for place in &self.places {
            place.rpc.renew().await?;
            match place.rpc.ask::<KuboIdentity>("id", &[]).await {
                Ok(KuboIdentity { id }) => *place.id.lock() = Some(id),
                Err(error) => failed = Some(error),
            }
        }
        // Away when there is nothing to read from; what it costs to write is told by writing.
        if self.places.len() == 1
            && let Some(error) = failed
        {
            return Err(error);
        }
        self.health().await
    }
}
