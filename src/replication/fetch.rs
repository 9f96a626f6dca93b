//! A verified block from wherever it is good.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::calls::Calls;
use super::doubts::Doubts;
use super::fence::Fence;
use super::files::Source;
use super::hedges::Hedges;
use super::keep::Keep;
use super::race::{Race, Raced};
use super::registry::Place;
use super::send::Met;
use super::{Events, PolicyBook, Registry, ReplicationError, Strategy, Whereabouts};
use crate::backends::{Backend, ErrorKind};
use crate::content::{ContentError, inline_block, walk_post_order};
use crate::metadata::EventKind;
use crate::runtime::Bridge;
use crate::store::{LocalStore, StoreError};
use crate::telemetry;
use crate::types::{BackendId, Block, Cid, cid};

/// Of a leaf whose length is not known, and of a node.
const LEAF_BYTES: u64 = 1 << 20;
const NODE_BYTES: u64 = 48 << 10;
/// Turns of what is brought before it is asked for are of so many bytes.
const TURN_BYTES: u64 = 4 << 10;

/// Of an event.
const READER: &str = "found by a reader";

/// A block that is not here.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its name.
    pub cid: Cid,
    /// Its length, or a guess: by it the place is chosen.
    pub bytes: u64,
    /// Where its content lies.
    pub whereabouts: Whereabouts,
}

impl Wanted {
    /// A block of which nothing more is known.
    #[must_use]
    pub fn new(cid: Cid) -> Self {
        let bytes = if cid.codec() == cid::RAW { LEAF_BYTES } else { NODE_BYTES };
        Self { cid, bytes, whereabouts: Whereabouts::default() }
    }
}

/// Reads blocks: the local store first, then the other backends in the order of
/// `machine::sources`. Lock: `flights`, not while anything is read.
pub(super) struct Fetcher {
    store: Arc<LocalStore>,
    pub registry: Arc<Registry>,
    pub hedges: Hedges,
    pub keep: Arc<Keep>,
    pub doubts: Doubts,
    policies: Arc<PolicyBook>,
    events: Events,
    calls: Calls,
    /// Blocks that are on their way; who wants one of them waits for it.
    flights: Mutex<HashMap<Cid, Flight>>,
    /// Memory for blocks that come before somebody asks for them.
    turns: Arc<Semaphore>,
    /// The part of it for whole contents: it leaves some for who reads on.
    whole_turns: Arc<Semaphore>,
}

/// A block, or each backend's answer.
type Answer = Result<Bytes, String>;

#[derive(Clone)]
struct Flight {
    landed: watch::Receiver<Option<Answer>>,
    /// Set when somebody waits for it.
    urgent: Arc<watch::Sender<bool>>,
}

/// Lands a flight, also when its task is dropped or panics.
struct Pilot {
    fetcher: Arc<Fetcher>,
    wanted: Wanted,
    landed: watch::Sender<Option<Answer>>,
    answer: Answer,
    _turns: Vec<OwnedSemaphorePermit>,
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.fetcher.flights.lock().remove(&self.wanted.cid);
        self.landed.send_replace(Some(self.answer.clone()));
    }
}

fn turns_of(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(TURN_BYTES).max(1)).unwrap_or(u32::MAX)
}

impl Fetcher {
    /// `ahead_bytes`: of blocks that are brought before somebody asks for them.
    pub fn new(
        store: Arc<LocalStore>,
        registry: Arc<Registry>,
        calls: Calls,
        policies: Arc<PolicyBook>,
        events: Events,
        ahead_bytes: u64,
    ) -> Self {
        // At least one block of any length.
        let turns = |bytes: u64| {
            Arc::new(Semaphore::new(turns_of(bytes.max(Block::MAX_LEN as u64)) as usize))
        };
        Self {
            keep: Keep::new(Arc::clone(&store), calls.bridge.clone()),
            store,
            registry,
            hedges: Hedges::default(),
            doubts: Doubts::default(),
            policies,
            events,
            calls,
            flights: Mutex::default(),
            turns: turns(ahead_bytes),
            whole_turns: turns(ahead_bytes / 2),
        }
    }

    /// The block, verified. A bad or missing local copy is repaired.
    pub fn block(self: &Arc<Self>, id: &Cid) -> Result<Bytes, ReplicationError> {
        self.wanted(&Wanted::new(*id))
    }

    /// As [`Fetcher::block`], of a content whose whereabouts are known.
    pub fn wanted(self: &Arc<Self>, wanted: &Wanted) -> Result<Bytes, ReplicationError> {
        match self.here(&wanted.cid)? {
            Some(data) => Ok(data),
            None => self.calls.bridge.block_on(Arc::clone(self).bring(wanted.clone())),
        }
    }

    /// The block when it needs no backend.
    pub fn here(&self, id: &Cid) -> Result<Option<Bytes>, ReplicationError> {
        match inline_block(id) {
            Some(inline) => Ok(Some(inline)),
            None => self.local(id),
        }
    }

    /// Whether a block needs no backend, as far as can be told without reading it.
    pub fn is_here(&self, id: &Cid) -> Result<bool, ReplicationError> {
        Ok(inline_block(id).is_some() || self.store.contains(id)?)
    }

    /// Sends for a block, for somebody who will wait for it.
    pub fn begin(self: &Arc<Self>, wanted: Wanted) {
        self.fly(wanted, Vec::new(), true);
    }

    /// The block from elsewhere. It goes on its way although nobody waits for it
    /// any more: each backend's calls have deadlines, so it lands.
    pub async fn bring(self: Arc<Self>, wanted: Wanted) -> Result<Bytes, ReplicationError> {
        let id = wanted.cid;
        let mut landed = self.fly(wanted, Vec::new(), true).landed;
        let answer = tokio::select! {
            biased;
            landed = landed.wait_for(Option::is_some) => landed.ok().and_then(|a| a.clone()),
            () = self.calls.stop.cancelled() => return Err(ReplicationError::ShuttingDown),
        };
        let answer = answer.unwrap_or_else(|| Err("the read was cut off".to_owned()));
        answer.map_err(|tried| ReplicationError::NoGoodCopy { cid: id, tried })
    }

    /// Whether any block is on its way.
    #[cfg(test)]
    pub fn is_bringing(&self) -> bool {
        !self.flights.lock().is_empty()
    }

    /// Sends for a block that somebody may ask for soon. False, and nothing is sent
    /// for, when memory or the disk has no room for it now. Never waits.
    pub fn ahead(self: &Arc<Self>, wanted: &Wanted, whole: bool) -> bool {
        if self.flights.lock().contains_key(&wanted.cid) {
            return true;
        }
        let mut turns = Vec::with_capacity(2);
        let most = turns_of(Block::MAX_LEN as u64);
        for from in [Some(&self.turns), whole.then_some(&self.whole_turns)].into_iter().flatten() {
            let count = turns_of(wanted.bytes).min(most);
            let Ok(turn) = Arc::clone(from).try_acquire_many_owned(count) else { return false };
            turns.push(turn);
        }
        // A block that cannot be kept would come twice.
        if self.calls.stop.is_cancelled() || !self.store.has_room(wanted.bytes) {
            return false;
        }
        self.fly(wanted.clone(), turns, false);
        telemetry::metrics().replication_blocks_ahead.inc();
        true
    }

    /// Joins the block's flight, or begins it.
    fn fly(
        self: &Arc<Self>,
        wanted: Wanted,
        turns: Vec<OwnedSemaphorePermit>,
        urgent: bool,
    ) -> Flight {
        let mut flights = self.flights.lock();
        match flights.entry(wanted.cid) {
            Entry::Occupied(flight) => {
                if urgent {
                    flight.get().urgent.send_replace(true);
                }
                flight.get().clone()
            }
            Entry::Vacant(none) => {
                let (sender, landed) = watch::channel(None);
                let urgent = Arc::new(watch::Sender::new(urgent));
                let told = urgent.subscribe();
                let pilot = Pilot {
                    fetcher: Arc::clone(self),
                    wanted,
                    landed: sender,
                    answer: Err("the read was cut off".to_owned()),
                    _turns: turns,
                };
                let flight = none.insert(Flight { landed, urgent }).clone();
                self.calls.bridge.spawn(fly(pilot, told));
                flight
            }
        }
    }

    /// The local copy, when it is good.
    fn local(&self, id: &Cid) -> Result<Option<Bytes>, ReplicationError> {
        checked(self.store.get(id))
    }

    /// Reads every block of the local copy again and hashes it; what is wrong or
    /// missing is brought from elsewhere. False when there is no local copy at all;
    /// also says how many bytes were read.
    pub fn prove_here(self: &Arc<Self>, root: &Cid) -> Result<(bool, u64), ReplicationError> {
        if inline_block(root).is_none() && !self.store.contains(root)? {
            return Ok((false, 0));
        }
        let (mut bytes, mut failure, mut met) = (0, None, Met::default());
        let walked = walk_post_order(
            root,
            &mut |id| Ok(!self.calls.stop.is_cancelled() && met.first(id)),
            &mut |id| {
                let read = match inline_block(id) {
                    Some(inline) => Ok(Some(inline)),
                    None => checked(self.store.reread(id)),
                };
                let data = match read {
                    Ok(Some(data)) => Ok(data),
                    Ok(None) => {
                        self.calls.bridge.block_on(Arc::clone(self).bring(Wanted::new(*id)))
                    }
                    Err(error) => Err(error),
                };
                match data {
                    Ok(data) => {
                        bytes += data.len() as u64;
                        Ok(data)
                    }
                    Err(error) => {
                        failure = Some(error);
                        Err(ContentError::Missing(*id))
                    }
                }
            },
            &mut |_, _| Ok(()),
        );
        if self.calls.stop.is_cancelled() {
            return Err(ReplicationError::ShuttingDown);
        }
        match (failure, walked) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => self.keep.settle().map(|()| (true, bytes)),
            (None, Err(error)) => Err(ReplicationError::Io(std::io::Error::other(error))),
        }
    }

    async fn elsewhere(&self, wanted: &Wanted, urgent: watch::Receiver<bool>) -> Answer {
        // An earlier flight may have landed after somebody saw that it was not here.
        let (store, id) = (Arc::clone(&self.store), wanted.cid);
        let here = self.calls.bridge.spawn_blocking(move || match store.contains(&id) {
            Ok(true) => store.get(&id),
            _ => Ok(None),
        });
        let rotten = match here.await {
            Ok(Ok(Some(data))) => return Ok(data),
            Ok(Err(StoreError::Corrupt { .. } | StoreError::SegmentMissing { .. })) => true,
            _ => false,
        };
        let whereabouts = &wanted.whereabouts;
        let by_cost = whereabouts.strategy().unwrap_or_else(|| self.policies.base().strategy);
        let by_cost = by_cost == Strategy::Cost;
        let places = self.registry.sources(wanted.bytes, whereabouts, by_cost);
        let raced = tokio::select! {
            biased;
            () = self.calls.stop.cancelled() => return Err("the volume is being unmounted".to_owned()),
            raced = Race::new(self, wanted, urgent).run(places) => raced,
        };
        let Raced { answer, wrong } = raced;
        let data = answer?;
        telemetry::metrics().replication_blocks_fetched.inc();
        if rotten {
            let (store, events, id) = (Arc::clone(&self.store), self.events.clone(), wanted.cid);
            self.calls.bridge.spawn_blocking(move || {
                // What could not be kept is bad still.
                if matches!(store.get(&id), Ok(Some(_))) {
                    events.emit_many(EventKind::BlockRepaired, &BackendId::local(), [&id], READER);
                }
            });
        }
        let block = Block { cid: wanted.cid, data: data.clone() };
        for place in wrong {
            let mend = self.mend(place, block.clone());
            self.calls.bridge.spawn(mend);
        }
        Ok(data)
    }

    /// Puts good bytes in the place of wrong ones that no row knows.
    fn mend(&self, place: Place, block: Block) -> impl Future<Output = ()> + use<> {
        let (bridge, fence) = (self.calls.bridge.clone(), self.registry.fence());
        let (events, Place { id, backend, .. }) = (self.events.clone(), place);
        async move {
            let cid = block.cid;
            match replace(&bridge, (&id, &backend), fence, &block).await {
                Ok(Mended::Replaced) => {
                    telemetry::metrics().replication_repairs.inc();
                    tracing::warn!(backend = %id, %cid, "a wrong block was replaced");
                    events.emit_many(EventKind::BlockRepaired, &id, [&cid], READER);
                }
                Ok(Mended::WasGood) => {
                    tracing::info!(backend = %id, %cid, "a block was wrong on its way only");
                }
                Ok(Mended::NotOurs) => {
                    tracing::warn!(backend = %id, %cid, "a wrong block stays: this life of the volume has no claim there (yet), and deletes nothing");
                }
                Err(error) => {
                    tracing::error!(backend = %id, %cid, %error, "a wrong block could not be replaced");
                }
            }
        }
    }
}

/// What became of a wrong block.
enum Mended {
    Replaced,
    /// It was read once more, and is right.
    WasGood,
    /// Another life of the volume writes there, or this one has not begun to.
    NotOurs,
}

/// A bad block is none.
fn checked(read: Result<Option<Bytes>, StoreError>) -> Result<Option<Bytes>, ReplicationError> {
    match read {
        Ok(found) => Ok(found),
        Err(
            error @ (StoreError::Corrupt { .. }
            | StoreError::SegmentMissing { .. }
            | StoreError::Io { .. }),
        ) => {
            tracing::warn!(%error, "a local block is bad; reading another copy");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

async fn fly(mut pilot: Pilot, urgent: watch::Receiver<bool>) {
    pilot.answer = pilot.fetcher.elsewhere(&pilot.wanted, urgent).await;
}

/// Puts good bytes in place of wrong ones. The wrong ones are read once more, so
/// that a fault on the way deletes nothing.
async fn replace(
    bridge: &Bridge,
    (id, backend): (&BackendId, &Arc<dyn Backend>),
    fence: Option<Arc<Fence>>,
    block: &Block,
) -> Result<Mended, ReplicationError> {
    let again = backend.get(&block.cid, None).await;
    match again {
        Ok(data) if data == block.data => return Ok(Mended::WasGood),
        Ok(_) => {}
        Err(error) if matches!(error.kind, ErrorKind::Corrupt | ErrorKind::NotFound) => {}
        Err(error) => return Err(error.into()),
    }
    let Some(fence) = fence else { return Ok(Mended::NotOurs) };
    let (with, id, at) = (bridge.clone(), id.clone(), Arc::clone(backend));
    let claim =
        bridge.spawn_blocking(move || fence.holds(&id, &Source { backend: &at, bridge: &with }));
    if !claim.await.map_err(|error| ReplicationError::Io(std::io::Error::other(error)))?? {
        return Ok(Mended::NotOurs);
    }
    backend.delete(&block.cid).await?;
    backend.put(block).await?;
    Ok(Mended::Replaced)
}
