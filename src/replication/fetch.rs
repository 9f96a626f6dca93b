//! A verified block from wherever it is good.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Condvar, Mutex};

use super::calls::Calls;
use super::{Registry, ReplicationError};
use crate::backends::{Backend, BackendError, ErrorKind};
use crate::content::inline_block;
use crate::store::{LocalStore, StoreError};
use crate::telemetry;
use crate::types::{BackendId, Block, Cid, cid};

/// After this long without an answer the next backend is asked, too.
const HEDGE: Duration = Duration::from_secs(1);

/// Reads blocks: the local store first, then the other backends, the quickest
/// first. Lock: `flights`, then that of one flight; none while anything is read.
pub(super) struct Fetcher {
    store: Arc<LocalStore>,
    registry: Arc<Registry>,
    calls: Calls,
    /// Blocks that a thread is fetching; others wait for it.
    flights: Mutex<HashMap<Cid, Arc<Flight>>>,
}

/// A block, or each backend's answer.
type Answer = Result<Bytes, String>;

#[derive(Default)]
struct Flight {
    answer: Mutex<Option<Answer>>,
    landed: Condvar,
}

/// Lands a flight, also when its thread panics.
struct Pilot<'f> {
    fetcher: &'f Fetcher,
    cid: Cid,
    flight: Arc<Flight>,
    answer: Answer,
}

impl Drop for Pilot<'_> {
    fn drop(&mut self) {
        self.fetcher.flights.lock().remove(&self.cid);
        *self.flight.answer.lock() = Some(self.answer.clone());
        self.flight.landed.notify_all();
    }
}

impl Fetcher {
    pub fn new(store: Arc<LocalStore>, registry: Arc<Registry>, calls: Calls) -> Self {
        Self { store, registry, calls, flights: Mutex::default() }
    }

    /// The block, verified. A bad or missing local copy is repaired.
    pub fn block(&self, id: &Cid) -> Result<Bytes, ReplicationError> {
        if let Some(inline) = inline_block(id) {
            return Ok(inline);
        }
        if let Some(data) = self.local(id)? {
            return Ok(data);
        }
        let (flight, mine) = {
            let mut flights = self.flights.lock();
            if let Some(flight) = flights.get(id) {
                (Arc::clone(flight), false)
            } else {
                let flight = Arc::new(Flight::default());
                flights.insert(*id, Arc::clone(&flight));
                (flight, true)
            }
        };
        let answer = if mine {
            let mut pilot = Pilot {
                fetcher: self,
                cid: *id,
                flight,
                answer: Err("the read was cut off".to_owned()),
            };
            pilot.answer = self.elsewhere(id)?;
            pilot.answer.clone()
        } else {
            // Each backend's calls have deadlines, so the flight lands.
            let mut answer = flight.answer.lock();
            while answer.is_none() {
                flight.landed.wait(&mut answer);
            }
            answer.clone().unwrap_or_else(|| Err(String::new()))
        };
        answer.map_err(|tried| ReplicationError::NoGoodCopy { cid: *id, tried })
    }

    /// The local copy, when it is good.
    fn local(&self, id: &Cid) -> Result<Option<Bytes>, ReplicationError> {
        match self.store.get(id) {
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

    fn elsewhere(&self, id: &Cid) -> Result<Answer, ReplicationError> {
        let places = self.registry.by_speed();
        let (answer, wrong) = match self.calls.wait(async { Ok(self.race(id, places).await) }) {
            Ok(raced) => raced,
            Err(error @ ReplicationError::ShuttingDown) => return Err(error),
            Err(error) => (Err(error.to_string()), Vec::new()),
        };
        let Ok(data) = answer else { return Ok(answer) };
        telemetry::metrics().replication_blocks_fetched.inc();
        let block = Block { cid: *id, data: data.clone() };
        match self.store.repair(&block) {
            Ok(()) => drop(telemetry::metrics().replication_repairs.inc()),
            // The reader is served all the same; the next read tries again.
            Err(error) => tracing::warn!(%error, cid = %id, "a fetched block cannot be kept"),
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
        Ok(Ok(data))
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
