//! Blocks: put, read, looked for, deleted.
//!
//! A service moves no bytes: it fetches what it is asked to pin. So a block lies at our
//! Kubo, held there, until the service says that it has it; whether it does is then what a
//! gateway gives, which is asked for nothing that it would have to fetch.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{StreamExt, iter};
use reqwest::Method;
use reqwest::header::{ACCEPT, CACHE_CONTROL};
use serde::Deserialize;

use super::api::{ORIGINS, Request, State, Which};
use super::{PinningBackend, Staging};
use crate::backends::kubo::{generations, is_absent};
use crate::backends::peer::wire::RAW;
use crate::backends::{Backend, BackendError, ErrorKind, ListPage, Presence, check};
use crate::types::{Block, Cid, cid};

/// Requests at the same time: services count them.
const AT_ONCE: usize = 8;
/// A pin that is asked for is not waited for longer; it stays asked for.
const SETTLED: Duration = Duration::from_mins(1);
/// First and longest time between two looks.
const LOOKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// Our Kubo keeps its connections to a service for so long at least.
const CONNECTED: Duration = Duration::from_secs(30);
/// To take up one.
const CONNECTING: Duration = Duration::from_secs(5);
/// Addresses of a service that our Kubo goes to, at most.
const DELEGATES: usize = 8;
/// The longest answer of a gateway.
const ANSWER_MAX: usize = Block::MAX_LEN + 1;
/// Blocks on a page at most, whatever was asked for.
const PAGE_MAX: usize = 1000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Identity {
    #[serde(default)]
    addresses: Option<Vec<String>>,
}

/// Does all of it, some at a time, and then tells the first failure.
async fn all<T, Work>(work: Vec<Work>) -> Result<Vec<T>, BackendError>
where
    Work: Future<Output = Result<T, BackendError>>,
{
    let ended: Vec<_> = iter(work).buffered(AT_ONCE).collect().await;
    ended.into_iter().collect()
}

/// The one of several requests for a pin that says most.
fn best(requests: &[Request]) -> Option<&Request> {
    let rank = |request: &&Request| match request.state() {
        State::Pinned => 2,
        State::Coming => 1,
        State::Failed => 0,
    };
    requests.iter().max_by_key(rank)
}

/// Whether it is the block without bytes.
fn is_empty(id: &Cid) -> bool {
    id.hash().code() == cid::SHA2_256 && id.hash().digest() == cid::sha256(b"")
}

fn is_pinned(requests: Option<&Vec<Request>>) -> bool {
    requests.is_some_and(|all| all.iter().any(|one| one.state() == State::Pinned))
}

impl PinningBackend {
    /// What is pinned for a block; its length is in the request's metadata. Of the empty
    /// block it is raw, and leads nowhere: no service fetches what has no bytes (bitswap of
    /// Kubo 0.41 waits for it for ever).
    fn holder(&self, id: &Cid) -> Result<Cid, BackendError> {
        let holder = self.holders.of(id, 0)?;
        Ok(if is_empty(id) { Cid::new_v1(cid::RAW, *holder.hash()) } else { holder })
    }

    /// The block that a holder is of, with the length that it tells, 0 for none.
    fn block_at(&self, holder: &Cid) -> Option<(Cid, u64)> {
        self.holders.block_of(&Cid::new_v1(cid::DAG_PB, *holder.hash()))
    }

    /// Addresses of our Kubo, where the service finds what it is asked to pin.
    pub(super) async fn origins(&self) -> Vec<String> {
        let told = async {
            let answer = self.peer.request(Method::POST, "id", &[], None).await?;
            answer.json::<Identity>().await
        };
        let known: Vec<String> = match told.await {
            Ok(told) => told.addresses.unwrap_or_default(),
            Err(error) => {
                tracing::debug!(%error, "our Kubo does not tell its addresses");
                Vec::new()
            }
        };
        let here = |address: &String| {
            ["/ip4/127.", "/ip6/::1/"].iter().any(|start| address.starts_with(start))
        };
        let reached = known.into_iter().filter(|address| self.is_near || !here(address));
        reached.take(ORIGINS).collect()
    }

    /// Stores blocks, those that others link to first.
    pub(super) async fn put_all(&self, blocks: &[Block]) -> Result<(), BackendError> {
        blocks.iter().try_for_each(check::block)?;
        for generation in generations(blocks) {
            let mut seen = HashSet::new();
            let new: Vec<&Block> =
                generation.into_iter().filter(|block| seen.insert(block.cid)).collect();
            self.put_generation(&new).await?;
        }
        Ok(())
    }

    async fn put_generation(&self, blocks: &[&Block]) -> Result<(), BackendError> {
        let holders: Vec<Cid> =
            blocks.iter().map(|block| self.holder(&block.cid)).collect::<Result<_, _>>()?;
        let seen = self.seen(&holders).await?;
        let (due, there): (Vec<_>, Vec<_>) = blocks
            .iter()
            .zip(holders)
            .map(|(block, holder)| (*block, holder))
            .partition(|(_, holder)| !is_pinned(seen.get(holder)));
        self.let_go(there.iter().map(|(block, _)| block.cid).collect()).await;
        if due.is_empty() {
            return Ok(());
        }
        let staging = self.staging().await?;
        let staged: Vec<Block> = due.iter().map(|(block, _)| (*block).clone()).collect();
        staging.put_many(&staged).await.map_err(|error| Staging::says(error, &self.at()))?;
        let asks: Vec<_> = due
            .iter()
            .map(|(block, holder)| {
                let known = seen.get(holder).map(Vec::as_slice).unwrap_or_default();
                self.ask_again(holder, block.data.len() as u64, best(known))
            })
            .collect();
        let requests = all(asks).await?;
        self.meet(&requests).await;
        let wanted: HashMap<Cid, u64> =
            due.iter().map(|(block, holder)| (*holder, block.data.len() as u64)).collect();
        self.settle(&wanted, self.holders.block_name()).await?;
        if !self.keep {
            let cids: Vec<Cid> = staged.iter().map(|block| block.cid).collect();
            staging.delete_many(&cids).await.map_err(|error| Staging::says(error, &self.at()))?;
        }
        Ok(())
    }

    /// What our Kubo held for a put that gave up waiting is not needed there any more.
    async fn let_go(&self, cids: Vec<Cid>) {
        let Some(staging) = self.staging.get().filter(|_| !self.keep && !cids.is_empty()) else {
            return;
        };
        if let Err(error) = staging.delete_many(&cids).await {
            tracing::debug!(%error, "what our Kubo holds stays there");
        }
    }

    /// Asks for a pin, unless it is asked for already; again for one that failed.
    async fn ask_again(
        &self,
        holder: &Cid,
        len: u64,
        known: Option<&Request>,
    ) -> Result<Request, BackendError> {
        let name = self.holders.block_name();
        match known {
            Some(request) if request.state() == State::Failed => {
                self.ask_anew(request, holder, (name, Some(len))).await
            }
            Some(request) => Ok(request.clone()),
            None => self.ask_for(holder, name, Some(len)).await,
        }
    }

    /// Has our Kubo go to the addresses that the service names, so that it finds us behind
    /// whatever is between. That it does not come about is told by pins that do not end.
    async fn meet(&self, requests: &[Request]) {
        {
            let mut last = self.met.lock();
            if last.is_some_and(|at: Instant| at.elapsed() < CONNECTED) {
                return;
            }
            *last = Some(Instant::now());
        }
        let mut seen = HashSet::new();
        let addresses = requests.iter().flat_map(|request| &request.delegates);
        let addresses: Vec<&String> =
            addresses.filter(|one| seen.insert(one.as_str())).take(DELEGATES).collect();
        let goes = addresses.into_iter().map(|address| async move {
            let arguments = [("arg", address.as_str())];
            let asked = self.peer.request(Method::POST, "swarm/connect", &arguments, None);
            let went = tokio::time::timeout(CONNECTING, asked).await;
            if !matches!(went, Ok(Ok(_))) {
                tracing::debug!(address, "our Kubo does not reach the service there");
            }
        });
        join_all(goes).await;
    }

    /// Waits until all are pinned; one that fails is asked for once more.
    pub(super) async fn settle(
        &self,
        wanted: &HashMap<Cid, u64>,
        name: &str,
    ) -> Result<(), BackendError> {
        let mut left: Vec<Cid> = wanted.keys().copied().collect();
        left.sort_by_key(Cid::to_bytes);
        let (mut again, since, mut pause) = (HashSet::new(), Instant::now(), LOOKS.0);
        loop {
            let seen = self.seen(&left).await?;
            left.retain(|holder| !is_pinned(seen.get(holder)));
            if left.is_empty() {
                return Ok(());
            }
            for holder in &left {
                let Some(request) = seen.get(holder).and_then(|all| best(all)) else { continue };
                if request.state() != State::Failed {
                    continue;
                }
                if !again.insert(*holder) {
                    let message = format!(
                        "{} could not pin a block: {}; it fetches from our Kubo: can it be \
                         reached from there?",
                        self.at(),
                        crate::backends::web::said(&request.details())
                    );
                    return Err(BackendError::new(ErrorKind::Other, message));
                }
                let len = wanted.get(holder).copied().filter(|_| name == self.holders.block_name());
                self.ask_anew(request, holder, (name, len)).await?;
            }
            if since.elapsed() >= SETTLED {
                let message = format!(
                    "{}: after {} s it has not pinned {} of {} yet; what is asked for stays so, \
                     and is looked for again (it fetches from our Kubo: can it be reached from \
                     there?)",
                    self.at(),
                    SETTLED.as_secs(),
                    left.len(),
                    wanted.len()
                );
                return Err(BackendError::new(ErrorKind::Timeout, message));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    /// Its bytes, as the gateway has them.
    pub(super) async fn bytes(&self, id: &Cid) -> Result<Bytes, BackendError> {
        if is_empty(id) {
            let holder = self.holder(id)?;
            let is_there = is_pinned(self.seen(&[holder]).await?.get(&holder));
            return if is_there { Ok(Bytes::new()) } else { Err(self.lacks(id)) };
        }
        let path = format!("ipfs/{id}");
        // Trustless Gateway: what it would have to fetch, from us maybe, proves nothing.
        let headers = [(ACCEPT, RAW), (CACHE_CONTROL, "only-if-cached")];
        let arguments = [("format", "raw")];
        let answer = self.gateway.exchange(Method::GET, (&path, &arguments), &headers, None).await;
        let gone = match answer {
            Ok(answer) => return answer.whole(ANSWER_MAX).await,
            Err(error) if is_absent(&error) => error,
            Err(error) => return Err(error),
        };
        let holder = self.holder(id)?;
        if !is_pinned(self.seen(&[holder]).await?.get(&holder)) {
            return Err(self.lacks(id));
        }
        let message = format!(
            "{} says that it has block {id} pinned, and the gateway does not have it ({}): is \
             gateway= one of this service?",
            self.at(),
            gone.message
        );
        Err(BackendError::new(ErrorKind::Unavailable, message))
    }

    fn lacks(&self, id: &Cid) -> BackendError {
        BackendError::new(ErrorKind::NotFound, format!("{} has no block {id}", self.at()))
    }

    pub(super) async fn look(&self, cids: &[Cid]) -> Result<Vec<Presence>, BackendError> {
        let holders: Vec<Cid> = cids.iter().map(|id| self.holder(id)).collect::<Result<_, _>>()?;
        let mut distinct = HashSet::new();
        let asked: Vec<Cid> =
            holders.iter().filter(|holder| distinct.insert(**holder)).copied().collect();
        let seen = self.seen(&asked).await?;
        let looks: Vec<_> = cids
            .iter()
            .zip(&holders)
            .map(|(id, holder)| self.presence_of(id, seen.get(holder).and_then(|all| best(all))))
            .collect();
        all(looks).await
    }

    async fn presence_of(
        &self,
        id: &Cid,
        known: Option<&Request>,
    ) -> Result<Presence, BackendError> {
        let Some(request) = known else { return Ok(Presence::Absent) };
        match (request.state(), request.length()) {
            (State::Pinned, Some(len)) => Ok(Presence::Present(len)),
            // A service that keeps no metadata.
            (State::Pinned, None) => match self.bytes(id).await {
                Ok(bytes) => Ok(Presence::Present(bytes.len() as u64)),
                Err(error) if error.kind == ErrorKind::NotFound => Ok(Presence::Absent),
                Err(error) => Err(error),
            },
            (State::Coming, _) => Ok(Presence::Unknown),
            (State::Failed, _) => Ok(Presence::Absent),
        }
    }

    /// Ends the requests of blocks, and what our Kubo holds for those that never came there.
    pub(super) async fn delete_all(&self, cids: &[Cid]) -> Result<(), BackendError> {
        let mut distinct = HashSet::new();
        let new: Vec<Cid> = cids.iter().filter(|id| distinct.insert(**id)).copied().collect();
        let holders: Vec<Cid> = new.iter().map(|id| self.holder(id)).collect::<Result<_, _>>()?;
        self.end_all(&holders).await?;
        match self.staging().await {
            Ok(staging) => {
                staging.delete_many(&new).await.map_err(|e| Staging::says(e, &self.at()))
            }
            Err(error) => {
                tracing::debug!(%error, "what our Kubo holds stays there");
                Ok(())
            }
        }
    }

    /// Ends all requests of these; true when there was one.
    pub(super) async fn end_all(&self, holders: &[Cid]) -> Result<bool, BackendError> {
        let (since, mut pause, mut was) = (Instant::now(), LOOKS.0, false);
        loop {
            let seen = self.seen(holders).await?;
            let requests: Vec<&Request> = seen.values().flatten().collect();
            if requests.is_empty() {
                return Ok(was);
            }
            was = true;
            all(requests.into_iter().map(|request| self.end(request)).collect()).await?;
            if since.elapsed() >= SETTLED {
                let message = format!("{}: {} pins did not end in time", self.at(), seen.len());
                return Err(BackendError::new(ErrorKind::Timeout, message));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    /// A page of blocks; the cursor is the last one's time and holder.
    pub(super) async fn page(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> Result<ListPage, BackendError> {
        let limit = limit.clamp(1, PAGE_MAX);
        let last = from.map(cursor).transpose()?;
        let which = Which { name: self.holders.block_name(), matching: "exact", status: "pinned" };
        let since = last.as_ref().map_or(0, |(at, _)| *at);
        // Those of one moment, thousands maybe, come with each page that begins within it: one
        // that was on a page before does not count, or the end would seem to be reached.
        let mut distinct = HashSet::new();
        let is_new = |at: i64, holder: &Cid| {
            let is_past = last.as_ref().is_none_or(|last| (at, holder.to_bytes()) > *last);
            is_past && self.block_at(holder).is_some() && distinct.insert(*holder)
        };
        let found = self.list_from(&which, since, limit, is_new).await?;
        let mut page = ListPage::default();
        for (at, holder, request) in found {
            let Some((id, len)) = self.block_at(&holder) else { continue };
            if page.blocks.len() == limit {
                return Ok(page);
            }
            let len = match request.length() {
                Some(len) => len,
                None if len > 0 => len,
                None => self.bytes(&id).await?.len() as u64,
            };
            page.blocks.push((id, len));
            page.next = Some(format!("{at}.{holder}"));
        }
        page.next = None;
        Ok(page)
    }
}

/// What [`PinningBackend::page`] ends with.
fn cursor(text: &str) -> Result<(i64, Vec<u8>), BackendError> {
    let read = || {
        let (at, holder) = text.split_once('.')?;
        Some((at.parse().ok()?, holder.parse::<Cid>().ok()?.to_bytes()))
    };
    read().ok_or_else(|| {
        let message = format!("`{}` is not where a page ends", text.escape_debug());
        BackendError::new(ErrorKind::Invalid, message)
    })
}
