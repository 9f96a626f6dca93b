//! A pinning service as a backend, by the Pinning Service API 1.0.0.
//!
//! A block is pinned through a holder of its own, as at a cluster (decision 0013); names
//! are pins that are called by them. The service fetches what it pins from our Kubo, which
//! has it until then, and a gateway gives it back: never our Kubo, whose word on what the
//! service has would be worth nothing. One that is open has neither files nor threads; a
//! crash leaves requests that a next put follows, and blocks at our Kubo that it lets go.

mod api;
mod error;
mod settings;
mod store;
#[cfg(test)]
mod tests;

pub use self::settings::PinningSettings;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::Method;
use reqwest::header::{ACCEPT, CACHE_CONTROL};
use tokio::sync::OnceCell;

use self::api::Which;
use super::kubo::{Address, Holders, KuboBackend, NamePin, Named, Rpc, Turns, names};
use super::peer::wire::RAW;
use super::{
    Backend, BackendError, Capabilities, ErrorKind, Layout, ListPage, PlaceOptions, Presence,
    Usage, check, web,
};
use crate::types::{Block, Cid};

/// What it takes to be asked whether it lets us in.
const HELLO: Duration = Duration::from_secs(8);
/// The longest name of a pin.
const NAME_MAX: usize = 255;
/// Names that are read, at most.
const NAMES_MAX: usize = 100_000;

/// Our Kubo, as the place where blocks lie until the service has them.
struct Staging;

impl Staging {
    /// What it says, with what it is to the service.
    fn says(error: BackendError, at: &str) -> BackendError {
        // That our Kubo lacks something is nothing that the service lacks.
        let kind = if error.kind == ErrorKind::NotFound { ErrorKind::Other } else { error.kind };
        let message = format!("{} (our Kubo, from which {at} fetches: kubo=)", error.message);
        BackendError::new(kind, message)
    }
}

/// A pinning service that stores blocks.
pub struct PinningBackend {
    rpc: Rpc,
    gateway: Rpc,
    /// Our Kubo, for what is not asked of a backend.
    peer: Rpc,
    kubo: Address,
    staging: OnceCell<Arc<KuboBackend>>,
    holders: Holders,
    options: PlaceOptions,
    domain: String,
    keep: bool,
    /// It runs on this machine, and finds ours by addresses of loopback.
    is_near: bool,
    /// When our Kubo went to the service.
    met: Mutex<Option<Instant>>,
    turns: Turns,
}

async fn hello(rpc: &Rpc) -> Result<(), BackendError> {
    let answer = rpc.request(Method::GET, "pins", &[("limit", "1")], None).await?;
    answer.json::<serde_json::Value>().await.map(drop)
}

impl PinningBackend {
    /// Opens it: reads the secrets, and asks whether it lets us in. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer, or with `create` when our Kubo does not;
    /// `Denied` by it, or without a secret; `Invalid` settings.
    pub(super) fn open(
        settings: &PinningSettings,
        options: PlaceOptions,
        create: bool,
    ) -> Result<Self, BackendError> {
        let invalid = |why: String| BackendError::new(ErrorKind::Invalid, why);
        let address = &settings.address;
        let rpc = Rpc::new(address)?;
        let again = rpc.anew(address)?;
        web::at_opening(rpc.at(), HELLO, move || async move { hello(&again).await })?;
        let kubo = settings.kubo().map_err(invalid)?;
        let gateway = Rpc::new(&settings.gateway().map_err(invalid)?)?;
        let peer = Rpc::new(&kubo)?;
        let staging = OnceCell::new();
        if create {
            let opened = KuboBackend::open(&kubo, PlaceOptions::default(), false);
            let opened = opened.map_err(|error| Staging::says(error, rpc.at()))?;
            staging.set(Arc::new(opened)).map_err(|error| invalid(error.to_string()))?;
        }
        Ok(Self {
            domain: options.domain_or(&address.failure_domain()),
            holders: Holders::at_service(&address.folder),
            keep: settings.keep,
            is_near: address.is_loopback(),
            met: Mutex::default(),
            turns: Turns::default(),
            rpc,
            gateway,
            peer,
            kubo,
            staging,
            options,
        })
    }

    fn at(&self) -> String {
        self.rpc.at().to_owned()
    }

    fn refuse_writes(&self) -> Result<(), BackendError> {
        self.options.refuse_writes(self.rpc.at())
    }

    /// Our Kubo, opened when it is first written to: who only reads needs none.
    async fn staging(&self) -> Result<&Arc<KuboBackend>, BackendError> {
        let open = || async {
            let kubo = self.kubo.clone();
            let open = move || KuboBackend::open(&kubo, PlaceOptions::default(), false);
            let opened = tokio::task::spawn_blocking(open).await;
            let opened =
                opened.map_err(|cut| BackendError::new(ErrorKind::Other, cut.to_string()))?;
            opened.map(Arc::new).map_err(|error| Staging::says(error, self.rpc.at()))
        };
        self.staging.get_or_try_init(open).await
    }
}

#[async_trait]
impl Named for PinningBackend {
    fn holders(&self) -> &Holders {
        &self.holders
    }

    async fn name_pins(&self, prefix: &str) -> Result<Vec<NamePin>, BackendError> {
        let filter = self.holders.pin_name(prefix);
        // One that is asked for says already what it points to.
        let which = Which { name: &filter, matching: "partial", status: "queued,pinning,pinned" };
        let requests = self.list_from(&which, 0, NAMES_MAX, |_, _| true).await?;
        if requests.len() > NAMES_MAX {
            let message = format!("{} has more than {NAMES_MAX} names", self.rpc.at());
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        let names = requests.into_iter().filter(|(_, _, one)| one.name().starts_with(&filter));
        Ok(names.filter_map(|(_, id, one)| self.holders.name_of(one.name(), &id)).collect())
    }

    async fn pin_name(
        &self,
        pin_name: &str,
        holder: &Cid,
        is_listed: bool,
    ) -> Result<(), BackendError> {
        if pin_name.len() > NAME_MAX {
            let message = format!("`{pin_name}` is longer than a pin's name may be ({NAME_MAX})");
            return Err(BackendError::new(ErrorKind::Invalid, message));
        }
        if !is_listed {
            self.ask_for(holder, pin_name, None).await?;
        }
        self.settle(&HashMap::from([(*holder, 0)]), pin_name).await
    }

    async fn unpin(&self, holder: &Cid) -> Result<bool, BackendError> {
        self.end_all(std::slice::from_ref(holder)).await
    }
}

#[async_trait]
impl Backend for PinningBackend {
    fn kind(&self) -> &'static str {
        "pinning"
    }

    fn location(&self) -> String {
        self.at()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            layout: Layout::Blocks,
            // A range is cut out of the block that came.
            range_reads: false,
            list: true,
            delete: true,
            verifies: false,
            // What it says that it has pinned is what it is paid for.
            durable: true,
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
        self.page(from, limit).await
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

    /// No service tells how much there is; `capacity=` is for the alarms.
    async fn usage(&self) -> Result<Usage, BackendError> {
        let capacity = self.options.capacity;
        Ok(Usage { used_bytes: None, capacity_bytes: capacity, available_bytes: None })
    }

    async fn probe(&self) -> Result<(), BackendError> {
        for rpc in [&self.rpc, &self.gateway, &self.peer] {
            rpc.renew().await?;
        }
        hello(&self.rpc).await?;
        // The empty block in its own CID: what every gateway answers (Trustless Gateway,
        // dedicated probe paths). Writing tells of our Kubo.
        let headers = [(ACCEPT, RAW), (CACHE_CONTROL, "only-if-cached")];
        let path = ("ipfs/bafkqaaa", &[("format", "raw")][..]);
        self.gateway.exchange(Method::GET, path, &headers, None).await?.whole(1 << 16).await?;
        Ok(())
    }
}
