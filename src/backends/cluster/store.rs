//! Blocks: put, read, looked for, deleted.
//!
//! A block is put by `/add`: an archive of it alone, whose root is its holder, so that the
//! cluster chooses peers, gives the bytes to their Kubos and pins the holder there, all by
//! one request. Its answer says that the pin is known, and not that anybody has it: that is
//! what the peers are asked for after it.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{StreamExt, iter};
use reqwest::Method;
use serde::Deserialize;

use super::error::is_not_pinned;
use super::status::{Seen, State};
use super::{ClusterBackend, Place};
use crate::backends::kubo::{LENGTH, Pin, form, generations, is_absent};
use crate::backends::{BackendError, ErrorKind, Presence, check};
use crate::types::{Block, Cid, cid};

/// Small requests at the same time.
const AT_ONCE: usize = 16;
/// Blocks that are sent at the same time.
const SENT_AT_ONCE: usize = 8;
/// Kubo looks for a block at other peers for so long (`fetch=1`).
const FETCHED: Duration = Duration::from_secs(20);

/// A part of the answer to `/add`.
#[derive(Deserialize)]
struct Added {
    #[serde(default)]
    cid: String,
}

/// Does all of it, some at a time, and then tells the first failure: what was done need not
/// be done again.
async fn all<T, Work>(at_once: usize, work: Vec<Work>) -> Result<Vec<T>, BackendError>
where
    Work: Future<Output = Result<T, BackendError>>,
{
    let ended: Vec<_> = iter(work).buffered(at_once).collect().await;
    ended.into_iter().collect()
}

/// Whether a Kubo that is away or silent is the reason.
fn is_away(error: &BackendError) -> bool {
    matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Timeout)
}

impl ClusterBackend {
    /// What is pinned for a block. Its length is in the pin's metadata, as who looks for a
    /// block that lies at others does not know it.
    fn holder(&self, id: &Cid) -> Result<Cid, BackendError> {
        self.holders.of(id, 0)
    }

    fn holders_of<'c>(
        &self,
        cids: impl IntoIterator<Item = &'c Cid>,
    ) -> Result<Vec<Cid>, BackendError> {
        cids.into_iter().map(|id| self.holder(id)).collect()
    }

    /// Stores blocks, those that others link to first.
    pub(super) async fn put_all(&self, blocks: &[Block]) -> Result<(), BackendError> {
        blocks.iter().try_for_each(check::block)?;
        for generation in generations(blocks) {
            let mut seen = HashSet::new();
            let new: Vec<&Block> =
                generation.into_iter().filter(|block| seen.insert(block.cid)).collect();
            let due = self.due(&new).await?;
            if due.is_empty() {
                continue;
            }
            self.refuse_beyond_capacity(&due).await?;
            let adds: Vec<_> = due.iter().map(|block| self.add(block)).collect();
            let holders = all(SENT_AT_ONCE, adds).await?;
            self.settle(&holders).await?;
        }
        Ok(())
    }

    /// Those of the blocks that too few peers have.
    async fn due<'b>(&self, blocks: &[&'b Block]) -> Result<Vec<&'b Block>, BackendError> {
        let holders = self.holders_of(blocks.iter().map(|block| &block.cid))?;
        let seen = self.seen(&holders).await?;
        let none = Seen::default();
        let looks: Vec<_> = blocks
            .iter()
            .zip(&holders)
            .map(|(block, holder)| self.is_due(block, seen.get(holder).unwrap_or(&none)))
            .collect();
        let due: Vec<Option<&Block>> = all(AT_ONCE, looks).await?;
        Ok(due.into_iter().flatten().collect())
    }

    async fn is_due<'b>(
        &self,
        block: &'b Block,
        seen: &Seen,
    ) -> Result<Option<&'b Block>, BackendError> {
        if seen.is_enough(self.copies.0) {
            let mut whole = true;
            for place in self.places_of(seen) {
                whole &= match place.rpc.length(&block.cid).await {
                    Ok(len) => len == Some(block.data.len() as u64),
                    Err(error) if error.kind == ErrorKind::Corrupt => false,
                    Err(error) if is_away(&error) => true,
                    Err(error) => return Err(error),
                };
            }
            if whole {
                return Ok(None);
            }
        }
        // Bytes that others brought, or that we gave up: Kubo writes over nothing.
        for place in &self.places {
            match place.rpc.make_way_for(block).await {
                Err(error) if !is_away(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(Some(block))
    }

    /// Sends a block; the pin that will be there for it.
    async fn add(&self, block: &Block) -> Result<Cid, BackendError> {
        let holder = self.holder(&block.cid)?;
        let length = (format!("meta-{LENGTH}"), block.data.len().to_string());
        let fixed = [("format", "car"), ("stream-channels", "false"), (&length.0, &length.1)];
        let options = self.options_with(self.holders.block_name(), &fixed);
        let body = form(&[holder], &[block])
            .map_err(|error| BackendError::new(ErrorKind::Other, error.to_string()))?;
        let answer = self.rpc.request(Method::POST, "add", &options, Some(body)).await?;
        let added: Option<Vec<Added>> = answer.json().await?;
        let ids = added.unwrap_or_default();
        if ids.iter().any(|added| added.cid.parse::<Cid>().is_ok_and(|id| id == holder)) {
            return Ok(holder);
        }
        let message = format!("{} did not say that it took block {}", self.rpc.at(), block.cid);
        Err(BackendError::new(ErrorKind::Other, message))
    }

    /// Kubos that are read from and belong to peers that have it.
    fn places_of<'s>(&'s self, seen: &'s Seen) -> impl Iterator<Item = &'s Place> + 's {
        let has = |place: &&Place| {
            let id = place.id();
            seen.peers
                .iter()
                .any(|peer| peer.state == State::Pinned && Some(&peer.kubo) == id.as_ref())
        };
        self.places.iter().filter(has)
    }

    /// Its bytes, from the first of the Kubos that has them right.
    pub(super) async fn bytes(&self, id: &Cid) -> Result<Bytes, BackendError> {
        let (mut wrong, mut failed) = (None, None);
        for place in &self.places {
            match place.rpc.bytes(id).await {
                // Another one may have it right: where there is none, the caller is told.
                Ok(bytes)
                    if self.places.len() > 1
                        && cid::verify(id, &bytes) == cid::Verdict::Mismatch =>
                {
                    wrong = Some(bytes);
                }
                Ok(bytes) => return Ok(bytes),
                Err(error) if is_absent(&error) => {}
                Err(error) => failed = Some(error),
            }
        }
        if let Some(bytes) = wrong {
            return Ok(bytes);
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.bytes_elsewhere(id).await
    }

    /// Of a block that none of the Kubos that are read from has.
    async fn bytes_elsewhere(&self, id: &Cid) -> Result<Bytes, BackendError> {
        self.know_places().await?;
        let seen = self.seen_one(&self.holder(id)?).await?;
        let is_read =
            |kubo: &String| self.places.iter().any(|place| place.id().as_ref() == Some(kubo));
        let elsewhere =
            seen.peers.iter().filter(|peer| peer.state == State::Pinned && !is_read(&peer.kubo));
        let names: Vec<&str> = elsewhere.map(|peer| peer.name.as_str()).collect();
        let at = self.rpc.at();
        if names.is_empty() {
            if seen.count(State::Silent) > 0 {
                let message = format!(
                    "{at}: block {id} may lie at peers that do not answer: {}",
                    seen.names(State::Silent)
                );
                return Err(BackendError::new(ErrorKind::Unavailable, message));
            }
            return Err(BackendError::new(ErrorKind::NotFound, format!("{at} has no block {id}")));
        }
        let names = names.join(", ");
        if self.fetch
            && let Some(place) = self.places.first()
        {
            return place.rpc.fetch(id, FETCHED).await.map_err(|error| {
                let kind = if is_absent(&error) { ErrorKind::Unavailable } else { error.kind };
                let message = format!("{}; block {id} lies at {names}", error.message);
                BackendError::new(kind, message)
            });
        }
        let message = format!(
            "{at}: block {id} lies at {names}, whose Kubo is not read from: name it with \
             kubo=ipfs://HOST:5001,..., or write fetch=1 to have it come over the cluster's network"
        );
        Err(BackendError::new(ErrorKind::Unavailable, message))
    }

    pub(super) async fn look(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        let holders = self.holders_of(cids)?;
        let seen = self.seen(&holders).await?;
        let none = Seen::default();
        let looks: Vec<_> = cids
            .iter()
            .zip(&holders)
            .map(|(id, holder)| self.presence_of(id, seen.get(holder).unwrap_or(&none)))
            .collect();
        all(AT_ONCE, looks).await
    }

    /// There when one peer at least has it pinned, and each Kubo of those that can be asked
    /// has its bytes or is not the only one.
    async fn presence_of(&self, id: &Cid, seen: &Seen) -> Result<Presence, BackendError> {
        let mut copies = seen.count(State::Pinned);
        let mut unsure = seen.count(State::Silent) > 0;
        let mut len = seen.len;
        if copies > 0 && len.is_none() {
            // A peer that has not heard of it yet made the others' word be forgotten.
            len = self.length_of(&self.holder(id)?).await?;
        }
        if let Some(len) = len {
            for place in self.places_of(seen) {
                match place.rpc.length(id).await {
                    Ok(found) if found == Some(len) => return Ok(Presence::Present(len)),
                    Ok(_) => copies -= 1,
                    Err(error) if matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Invalid) => {
                        tracing::debug!(%error, %id, "presence is unknown");
                        copies -= 1;
                        unsure = true;
                    }
                    // The peer says so, and its Kubo cannot be asked.
                    Err(error) if is_away(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(match len {
            Some(len) if copies > 0 => Presence::Present(len),
            _ if unsure || copies > 0 => Presence::Unknown,
            _ => Presence::Absent,
        })
    }

    /// The length that a pin of the set has in its metadata.
    async fn length_of(&self, holder: &Cid) -> Result<Option<u64>, BackendError> {
        let path = format!("allocations/{holder}");
        match self.rpc.request(Method::GET, &path, &[], None).await {
            Ok(answer) => Ok(answer.json::<Pin>().await?.length()),
            Err(error) if is_not_pinned(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ends the pins of blocks: the bytes go when the Kubos collect.
    pub(super) async fn delete_all(&self, cids: &[Cid]) -> Result<(), BackendError> {
        let holders = self.holders_of(cids)?;
        let mut seen = HashSet::new();
        let new: Vec<Cid> = holders.into_iter().filter(|holder| seen.insert(*holder)).collect();
        let ends: Vec<_> = new.iter().map(|holder| self.end(holder)).collect();
        let ended: Vec<bool> = all(AT_ONCE, ends).await?;
        let ended: Vec<Cid> =
            new.into_iter().zip(ended).filter_map(|(holder, was)| was.then_some(holder)).collect();
        if ended.is_empty() { Ok(()) } else { self.settle_gone(&ended).await }
    }

    /// Ends a pin; false when there was none.
    pub(super) async fn end(&self, holder: &Cid) -> Result<bool, BackendError> {
        let path = format!("pins/{holder}");
        match self.rpc.request(Method::DELETE, &path, &[], None).await {
            Ok(answer) => answer.whole(1 << 20).await.map(|_| true),
            Err(error) if is_not_pinned(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
