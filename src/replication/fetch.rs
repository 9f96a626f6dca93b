//! A verified block from wherever it is good.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::calls::Calls;
use super::send::Met;
use super::{Registry, ReplicationError};
use crate::backends::{Backend, BackendError, ErrorKind};
use crate::content::{ContentError, inline_block, walk_post_order};
use crate::store::{Kept, LocalStore, StoreError};
use crate::telemetry;
use crate::types::{BackendId, Block, Cid, cid};

/// After this long without an answer the next backend is asked, too.
const HEDGE: Duration = Duration::from_secs(1);

/// Reads blocks: the local store first, then the other backends, the quickest
/// first. Lock: `flights`, not while anything is read.
pub(super) struct Fetcher {
    store: Arc<LocalStore>,
    registry: Arc<Registry>,
    calls: Calls,
    /// Blocks that are on their way; who wants one of them waits for it.
    flights: Mutex<HashMap<Cid, watch::Receiver<Option<Answer>>>>,
}

/// A block, or each backend's answer.
type Answer = Result<Bytes, String>;

/// Lands a flight, also when its task is dropped or panics.
struct Pilot {
    fetcher: Arc<Fetcher>,
    cid: Cid,
    landed: watch::Sender<Option<Answer>>,
    answer: Answer,
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.fetcher.flights.lock().remove(&self.cid);
        self.landed.send_replace(Some(self.answer.clone()));
    }
}

impl Fetcher {
    pub fn new(store: Arc<LocalStore>, registry: Arc<Registry>, calls: Calls) -> Self {
        Self { store, registry, calls, flights: Mutex::default() }
    }

    /// The block, verified. A bad or missing local copy is repaired.
    pub fn block(self: &Arc<Self>, id: &Cid) -> Result<Bytes, ReplicationError> {
        match self.here(id)? {
            Some(data) => Ok(data),
            None => self.calls.bridge.block_on(Arc::clone(self).bring(*id)),
        }
    }

    /// The block when it needs no backend.
    pub fn here(&self, id: &Cid) -> Result<Option<Bytes>, ReplicationError> {
        match inline_block(id) {
            Some(inline) => Ok(Some(inline)),
            None => self.local(id),
        }
    }

    /// The block from elsewhere. It goes on its way although nobody waits for it
    /// any more: each backend's calls have deadlines, so it lands.
    pub async fn bring(self: Arc<Self>, id: Cid) -> Result<Bytes, ReplicationError> {
        let mut landed = {
            let mut flights = self.flights.lock();
            if let Some(flight) = flights.get(&id) {
                flight.clone()
            } else {
                let (sender, receiver) = watch::channel(None);
                flights.insert(id, receiver.clone());
                let pilot = Pilot {
                    fetcher: Arc::clone(&self),
                    cid: id,
                    landed: sender,
                    answer: Err("the read was cut off".to_owned()),
                };
                self.calls.bridge.spawn(fly(pilot));
                receiver
            }
        };
        let answer = tokio::select! {
            biased;
            landed = landed.wait_for(Option::is_some) => landed.ok().and_then(|a| a.clone()),
            () = self.calls.stop.cancelled() => return Err(ReplicationError::ShuttingDown),
        };
        let answer = answer.unwrap_or_else(|| Err("the read was cut off".to_owned()));
        answer.map_err(|tried| ReplicationError::NoGoodCopy { cid: id, tried })
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
                    Ok(None) => self.calls.bridge.block_on(Arc::clone(self).bring(*id)),
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
            (None, Ok(())) => Ok((true, bytes)),
            (None, Err(error)) => Err(ReplicationError::Io(std::io::Error::other(error))),
        }
    }

    async fn elsewhere(&self, id: &Cid) -> Answer {
        let places = self.registry.by_speed();
        let (answer, wrong) = tokio::select! {
            biased;
            () = self.calls.stop.cancelled() => return Err("the volume is being unmounted".to_owned()),
            raced = self.race(id, places) => raced,
        };
        let data = answer?;
        telemetry::metrics().replication_blocks_fetched.inc();
        let block = Block { cid: *id, data: data.clone() };
        let (store, kept) = (Arc::clone(&self.store), block.clone());
        let kept = self.calls.bridge.spawn_blocking(move || store.keep(&kept)).await;
        match kept.map_err(std::io::Error::other) {
            Ok(Ok(Kept::Repaired)) => drop(telemetry::metrics().replication_repairs.inc()),
            Ok(Ok(Kept::Cached | Kept::PassedBy)) => {}
            // The reader is served all the same; the next read tries again.
            Ok(Err(error)) => tracing::warn!(%error, cid = %id, "a fetched block cannot be kept"),
            Err(error) => tracing::warn!(%error, cid = %id, "a fetched block is not kept"),
        }
        for (backend_id, backend) in wrong {
            let block = block.clone();
            self.calls.bridge.spawn(async move {
                match replace(backend.as_ref(), &block).await {
                    Ok(()) => {
                        telemetry::metrics().replication_repairs.inc();
                        tracing::warn!(backend = %backend_id, cid = %block.cid, "a wrong block was replaced");
                    }
                    Err(error) => tracing::error!(backend = %backend_id, cid = %block.cid, %error, "a wrong block could not be replaced"),
                }
            });
        }
        Ok(data)
    }

    /// Asks one backend after the other, the next one too when an answer is
    /// late; the first good answer wins. Also says who gave wrong bytes.
    async fn race(
        &self,
        id: &Cid,
        places: Vec<(BackendId, Arc<dyn Backend>)>,
    ) -> (Answer, Vec<(BackendId, Arc<dyn Backend>)>) {
        let (mut tried, mut wrong) = (String::new(), Vec::new());
        let mut waiting = places.into_iter();
        let mut asked = FuturesUnordered::new();
        loop {
            if asked.is_empty() {
                let Some(place) = waiting.next() else { break };
                asked.push(self.ask(id, place));
            }
            let next = tokio::select! {
                biased;
                Some(answer) = asked.next() => answer,
                () = tokio::time::sleep(HEDGE), if waiting.len() > 0 => {
                    asked.extend(waiting.next().map(|place| self.ask(id, place)));
                    continue;
                }
            };
            let ((backend_id, backend), answer) = next;
            let reason = match answer {
                Ok(data) if cid::verify(id, &data) == cid::Verdict::Match => {
                    return (Ok(data), wrong);
                }
                Ok(_) => {
                    telemetry::metrics().replication_copies_corrupt.inc();
                    tracing::error!(backend = %backend_id, cid = %id, "a copy has wrong bytes");
                    wrong.push((backend_id.clone(), backend));
                    "wrong bytes".to_owned()
                }
                Err(error) => error.message,
            };
            // Writing to a String cannot fail.
            write!(tried, "{backend_id}: {reason}; ").unwrap_or_default();
        }
        if tried.is_empty() {
            tried.push_str("no other backend is in reach");
        }
        (Err(tried.trim_end_matches("; ").to_owned()), wrong)
    }

    async fn ask(
        &self,
        id: &Cid,
        (backend_id, backend): (BackendId, Arc<dyn Backend>),
    ) -> ((BackendId, Arc<dyn Backend>), Result<Bytes, BackendError>) {
        let start = Instant::now();
        let answer = backend.get(id, None).await;
        match &answer {
            Ok(_) => self.registry.answered(&backend_id, start.elapsed()),
            Err(error) => self.registry.failed(&backend_id, error),
        }
        ((backend_id, backend), answer)
    }
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

async fn fly(mut pilot: Pilot) {
    pilot.answer = pilot.fetcher.elsewhere(&pilot.cid).await;
}

/// Puts good bytes in place of wrong ones. The wrong ones are read once more, so
/// that a fault on the way deletes nothing.
async fn replace(backend: &dyn Backend, block: &Block) -> Result<(), BackendError> {
    let again = backend.get(&block.cid, None).await;
    match again {
        Ok(data) if data == block.data => return Ok(()),
        Ok(_) => {}
        Err(error) if matches!(error.kind, ErrorKind::Corrupt | ErrorKind::NotFound) => {}
        Err(error) => return Err(error),
    }
    backend.delete(&block.cid).await?;
    backend.put(block).await
}
