//! Pins as Kubo streams them, and blocks in pages.
//!
//! Kubo has no pages. A listing is one answer that is read as pages are asked for (Kubo
//! took a snapshot of its index, 130 bytes a pin, and holds no lock); it is kept until the
//! next page. One that was lost is begun again and read past the last page's end, which
//! needs the order of Kubo's index: of any other order it is an error.

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::KuboBackend;
use super::holder::{Holders, index_key};
use super::rpc::Answer;
use crate::backends::{BackendError, ErrorKind, ListPage};
use crate::types::Cid;

/// Blocks on a page at most, whatever was asked for.
const PAGE_MAX: usize = 10_000;
/// A listing that nobody goes on with is let go after this.
const KEPT: Duration = Duration::from_mins(1);

/// A line of `pin/ls`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Pin {
    #[serde(default)]
    pub cid: String,
    #[serde(default)]
    pub name: String,
}

/// Recursive pins, as they come.
pub(super) struct Pins(Answer);

impl Pins {
    /// The next pin of this folder's blocks: what is pinned, the block, its length.
    pub async fn next(
        &mut self,
        holders: &Holders,
    ) -> Result<Option<(Cid, Cid, u64)>, BackendError> {
        while let Some(pin) = self.0.line::<Pin>().await? {
            let Ok(holder) = pin.cid.parse::<Cid>() else { continue };
            if let Some((id, len)) = holders.block_of(&holder) {
                return Ok(Some((holder, id, len)));
            }
        }
        Ok(None)
    }
}

/// A listing between two pages.
pub(super) struct Listing {
    pins: Pins,
    /// What is pinned for the last block of the last page.
    last: Cid,
    since: Instant,
}

impl KuboBackend {
    pub(super) async fn pins(&self) -> Result<Pins, BackendError> {
        let arguments = [("type", "recursive"), ("stream", "true")];
        Ok(Pins(self.rpc.send("pin/ls", &arguments, None).await?))
    }

    /// Lets a listing go that was begun and not gone on with.
    pub(super) fn forget_listing(&self) {
        let mut kept = self.listing.lock();
        if kept.as_ref().is_some_and(|listing| listing.since.elapsed() >= KEPT) {
            *kept = None;
        }
    }

    /// A page; the cursor is the last block's holder.
    pub(super) async fn page(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> Result<ListPage, BackendError> {
        let limit = limit.clamp(1, PAGE_MAX);
        let Some(text) = from else { return self.read_page(self.pins().await?, None, limit).await };
        let not_one = || {
            let message = format!("`{}` is not where a page ends", text.escape_debug());
            BackendError::new(ErrorKind::Invalid, message)
        };
        let last = text.parse::<Cid>().map_err(|_| not_one())?;
        self.holders.block_of(&last).ok_or_else(not_one)?;
        let kept = self.listing.lock().take().filter(|listing| listing.last == last);
        if let Some(listing) = kept {
            // It may have ended long ago: Kubo was started anew.
            match self.read_page(listing.pins, None, limit).await {
                Ok(page) => return Ok(page),
                Err(error) => tracing::debug!(%error, "a listing is begun again"),
            }
        }
        self.read_page(self.pins().await?, Some(&last), limit).await
    }

    /// Reads on; after `behind`, where that is given.
    async fn read_page(
        &self,
        mut pins: Pins,
        behind: Option<&Cid>,
        limit: usize,
    ) -> Result<ListPage, BackendError> {
        let mut page = ListPage::default();
        let wanted = behind.map(index_key);
        let mut before = Vec::new();
        while let Some((holder, id, len)) = pins.next(&self.holders).await? {
            if let Some(wanted) = &wanted {
                let key = index_key(&holder);
                if before >= key {
                    let message = format!(
                        "a listing of {} was cut off, and its pins come in no order to go on by: \
                         begin again",
                        self.rpc.at()
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
                *self.listing.lock() = Some(listing);
                return Ok(page);
            }
        }
        Ok(page)
    }
}
