//! Pins as a server streams them, and blocks in pages.
//!
//! Neither Kubo nor IPFS Cluster has pages. A listing is one answer that is read as pages
//! are asked for (Kubo took a snapshot of its index, 130 bytes a pin, and holds no lock); it
//! is kept until the next page. One that was lost is begun again and read past the last
//! page's end, which needs the order of the server's index: of any other order it is an
//! error.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::Deserialize;

use super::holder::{Holders, NamePin};
use super::rpc::Answer;
use crate::backends::{BackendError, ErrorKind, ListPage};
use crate::types::Cid;

/// Blocks on a page at most, whatever was asked for.
const PAGE_MAX: usize = 10_000;
/// A listing that nobody goes on with is let go after this.
const KEPT: Duration = Duration::from_mins(1);

/// What a pin's metadata say of the length of its block, where it has some.
pub(in crate::backends) const LENGTH: &str = "cairn-length";

/// A line of Kubo's `pin/ls`, or of Cluster's `/allocations`.
#[derive(Deserialize)]
pub(in crate::backends) struct Pin {
    #[serde(default, alias = "Cid")]
    pub cid: String,
    #[serde(default, alias = "Name")]
    pub name: String,
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
}

impl Pin {
    /// The length of its block, where its metadata have it.
    pub fn length(&self) -> Option<u64> {
        self.metadata.as_ref()?.get(LENGTH)?.parse().ok()
    }

    /// The name of this folder that it is; `None` for other pins.
    pub fn as_name(&self, holders: &Holders, prefix: &str) -> Option<NamePin> {
        if !self.name.starts_with(prefix) {
            return None;
        }
        let holder = self.cid.parse::<Cid>().ok();
        let found = holder.and_then(|holder| holders.name_of(&self.name, &holder));
        if found.is_none() {
            tracing::warn!(
                cid = self.cid,
                name = self.name,
                "a pin that is called like a name of ours is ignored"
            );
        }
        found
    }
}

/// A place that keeps names by pins.
#[async_trait]
pub(in crate::backends) trait Named: Send + Sync {
    /// Its folder's pins.
    fn holders(&self) -> &Holders;
    /// Pins of names that begin with `prefix`.
    async fn name_pins(&self, prefix: &str) -> Result<Vec<NamePin>, BackendError>;
    /// Pins what is pinned for a name, durably; of one that is listed makes sure.
    async fn pin_name(
        &self,
        pin_name: &str,
        holder: &Cid,
        is_listed: bool,
    ) -> Result<(), BackendError>;
    /// Ends a pin; false when there was none.
    async fn unpin(&self, holder: &Cid) -> Result<bool, BackendError>;
}

/// One that lists the pins of blocks as a stream.
#[async_trait]
pub(in crate::backends) trait Pinned: Named {
    /// Where it is, without secrets.
    fn at(&self) -> &str;
    /// Where its index of pins has a CID.
    fn order(&self, id: &Cid) -> Vec<u8>;
    /// Pins of blocks, and maybe others, in that order.
    async fn pins(&self) -> Result<Pins, BackendError>;
}

/// Pins, as they come.
pub(in crate::backends) struct Pins(pub(in crate::backends) Answer);

impl Pins {
    /// The next pin of this folder's blocks: what is pinned, the block, its length.
    pub async fn next(
        &mut self,
        holders: &Holders,
    ) -> Result<Option<(Cid, Cid, u64)>, BackendError> {
        while let Some(pin) = self.0.line::<Pin>().await? {
            let Ok(holder) = pin.cid.parse::<Cid>() else { continue };
            if let Some((id, len)) = holders.block_of(&holder) {
                return Ok(Some((holder, id, pin.length().unwrap_or(len))));
            }
        }
        Ok(None)
    }
}

/// A listing between two pages.
struct Listing {
    pins: Pins,
    /// What is pinned for the last block of the last page.
    last: Cid,
    since: Instant,
}

/// The listing of a place that is kept.
#[derive(Default)]
pub(in crate::backends) struct Listings(Mutex<Option<Listing>>);

impl Listings {
    /// Lets a listing go that was begun and not gone on with.
    pub fn forget_old(&self) {
        let mut kept = self.0.lock();
        if kept.as_ref().is_some_and(|listing| listing.since.elapsed() >= KEPT) {
            *kept = None;
        }
    }

    /// A page; the cursor is the last block's holder.
    pub async fn page(
        &self,
        place: &dyn Pinned,
        from: Option<&str>,
        limit: usize,
    ) -> Result<ListPage, BackendError> {
        let limit = limit.clamp(1, PAGE_MAX);
        let Some(text) = from else {
            return self.read_page(place, place.pins().await?, None, limit).await;
        };
        let not_one = || {
            let message = format!("`{}` is not where a page ends", text.escape_debug());
            BackendError::new(ErrorKind::Invalid, message)
        };
        let last = text.parse::<Cid>().map_err(|_| not_one())?;
        place.holders().block_of(&last).ok_or_else(not_one)?;
        let kept = self.0.lock().take().filter(|listing| listing.last == last);
        if let Some(listing) = kept {
            // It may have ended long ago: Kubo was started anew.
            match self.read_page(place, listing.pins, None, limit).await {
                Ok(page) => return Ok(page),
                Err(error) => tracing::debug!(%error, "a listing is begun again"),
            }
        }
        self.read_page(place, place.pins().await?, Some(&last), limit).await
    }

    /// Reads on; after `behind`, where that is given.
    async fn read_page(
        &self,
        place: &dyn Pinned,
        mut pins: Pins,
        behind: Option<&Cid>,
        limit: usize,
    ) -> Result<ListPage, BackendError> {
        let mut page = ListPage::default();
        let wanted = behind.map(|id| place.order(id));
        let mut before = Vec::new();
        while let Some((holder, id, len)) = pins.next(place.holders()).await? {
            if let Some(wanted) = &wanted {
                let key = place.order(&holder);
                if before >= key {
                    let message = format!(
                        "a listing of {} was cut off, and its pins come in no order to go on by: \
                         begin again",
                        place.at()
                    );
                    return Err(BackendError::new(ErrorKind::Other, message));
                }
                before = key;
                if before <= *wanted {
                    continue;
                }
            }
            page.blocks.push((id, len));
            if page.blocks.len() == limit {
                page.next = Some(holder.to_string());
                let listing = Listing { pins, last: holder, since: Instant::now() };
                *self.0.lock() = Some(listing);
                return Ok(page);
            }
        }
        Ok(page)
    }
}
