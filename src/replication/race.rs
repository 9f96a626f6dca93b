//! One block from several places: the best first, the next one when an answer fails,
//! is wrong or is late, and the first good answer wins.
//!
//! An answer is *late* when it takes longer than four deviations above what is usual
//! there; then the next place is asked, too, as long as such hedges are few. It *hangs*
//! after twice that and at least a second; then the next is asked in any case. What
//! nobody waits for yet (read-ahead) is not hedged, and takes a part of a place's calls
//! only.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use super::fetch::{Fetcher, Wanted};
use super::machine::Misled;
use super::registry::Place;
use crate::backends::{BackendError, ErrorKind};
use crate::telemetry;

/// Who won, or what each said; and who gave wrong bytes.
pub(super) struct Raced {
    pub answer: Result<Bytes, String>,
    pub wrong: Vec<Place>,
}

/// A place that was asked.
struct Asked {
    place: Place,
    since: Instant,
}

pub(super) struct Race<'r> {
    fetcher: &'r Fetcher,
    wanted: &'r Wanted,
    /// Set once somebody waits for the block.
    urgent: watch::Receiver<bool>,
    /// Asked and not answered yet.
    pending: Vec<Asked>,
    /// What each answered.
    tried: String,
    wrong: Vec<Place>,
}

async fn ask(place: Place, wanted: &Wanted) -> (Place, Result<Bytes, BackendError>, Duration) {
    let (start, busy) = (Instant::now(), place.enter());
    let answer = place.backend.get(&wanted.cid, None).await;
    let took = start.elapsed();
    drop(busy);
    (place, answer, took)
}

/// Returns when somebody waits; never, when nobody can any more.
async fn told(urgent: &mut watch::Receiver<bool>) {
    if urgent.wait_for(|urgent| *urgent).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl<'r> Race<'r> {
    pub fn new(fetcher: &'r Fetcher, wanted: &'r Wanted, urgent: watch::Receiver<bool>) -> Self {
        let (pending, tried, wrong) = (Vec::new(), String::new(), Vec::new());
        Self { fetcher, wanted, urgent, pending, tried, wrong }
    }

    /// Asks `places` in their order. Each call has a deadline of its own.
    pub async fn run(mut self, places: Vec<Place>) -> Raced {
        let metrics = telemetry::metrics();
        let mut waiting = places.into_iter();
        let mut asked = FuturesUnordered::new();
        let (mut may_hedge, mut hedges, mut turn) = (true, 0u32, None);
        let mut urgent = self.urgent.clone();
        self.fetcher.hedges.earn();
        loop {
            if asked.is_empty() {
                let Some(place) = waiting.next() else { break };
                if self.tried.is_empty() {
                    turn = self.turn(&place).await;
                } else {
                    metrics.replication_read_failovers.inc();
                }
                asked.push(ask(self.asks(place), self.wanted));
            }
            let Some(last) = self.pending.last() else { break };
            let (late_at, hangs_at) =
                (last.since + last.place.hedge_after, last.since + last.place.patience);
            let (more, is_urgent) = (waiting.len() > 0, *urgent.borrow());
            let answered = tokio::select! {
                biased;
                Some(answered) = asked.next() => answered,
                () = told(&mut urgent), if !is_urgent => {
                    // The place's calls for read-ahead are for others again.
                    drop(turn.take());
                    continue;
                }
                () = sleep_until(late_at), if more && is_urgent && may_hedge => {
                    may_hedge = self.fetcher.hedges.spend();
                    if may_hedge && let Some(place) = waiting.next() {
                        metrics.replication_hedges_sent.inc();
                        hedges += 1;
                        asked.push(ask(self.asks(place), self.wanted));
                    }
                    continue;
                }
                () = sleep_until(hangs_at), if more => {
                    if let Some(place) = waiting.next() {
                        metrics.replication_read_failovers.inc();
                        asked.push(ask(self.asks(place), self.wanted));
                    }
                    continue;
                }
            };
            let (place, answer, took) = answered;
            let earlier = self.answered(&place);
            if let Some(data) = self.judge(place, answer, took).await {
                if hedges > 0 && earlier {
                    metrics.replication_hedges_won.inc();
                }
                for asked in &self.pending {
                    let waited = asked.since.elapsed();
                    self.fetcher.registry.late(&asked.place.id, self.wanted.bytes, waited);
                }
                return Raced { answer: Ok(data), wrong: self.wrong };
            }
        }
        if self.tried.is_empty() {
            self.tried.push_str("no other backend is in reach");
        }
        let tried = self.tried.trim_end_matches("; ").to_owned();
        Raced { answer: Err(tried), wrong: self.wrong }
    }

    /// A turn of what nobody waits for; none is needed once somebody does.
    async fn turn(&self, place: &Place) -> Option<OwnedSemaphorePermit> {
        let mut urgent = self.urgent.clone();
        tokio::select! {
            biased;
            () = told(&mut urgent) => None,
            turn = place.ahead.clone().acquire_owned() => turn.ok(),
        }
    }

    fn asks(&mut self, place: Place) -> Place {
        self.pending.push(Asked { place: place.clone(), since: Instant::now() });
        place
    }

    /// A place answered. True when others that were asked before it have not.
    fn answered(&mut self, place: &Place) -> bool {
        let Some(at) = self.pending.iter().position(|asked| asked.place.id == place.id) else {
            return false;
        };
        self.pending.remove(at);
        at > 0
    }

    /// The bytes, when they are good: then they are kept here.
    async fn judge(
        &mut self,
        place: Place,
        answer: Result<Bytes, BackendError>,
        took: Duration,
    ) -> Option<Bytes> {
        let (registry, id) = (&self.fetcher.registry, &self.wanted.cid);
        let doubted = self.wanted.whereabouts.root_at(&place.id);
        let (reason, wrong) = match answer {
            Ok(data) if self.fetcher.keep.check(id, &data).await => {
                registry.answered(&place.id, data.len() as u64, took);
                telemetry::metrics().backend_read(place.id.as_str(), data.len() as u64);
                return Some(data);
            }
            Ok(_) => ("wrong bytes".to_owned(), true),
            Err(error) => {
                registry.failed(&place.id, &error);
                if error.kind == ErrorKind::NotFound && place.should_have {
                    registry.misled(&place.id, Misled::Missing);
                    if let Some(root) = doubted {
                        self.fetcher.doubts.add(root, &place.id);
                    }
                }
                (error.message, error.kind == ErrorKind::Corrupt)
            }
        };
        // Writing to a String cannot fail.
        write!(self.tried, "{}: {reason}; ", place.id).unwrap_or_default();
        if wrong {
            telemetry::metrics().replication_copies_corrupt.inc();
            tracing::error!(backend = %place.id, cid = %id, "a copy has wrong bytes");
            registry.misled(&place.id, Misled::WrongBytes);
            // Of a content the whole copy is read back, recorded as bad and mended by the
            // queue; a block that no row knows is mended at once.
            match doubted {
                Some(root) => self.fetcher.doubts.add(root, &place.id),
                None => self.wrong.push(place),
            }
        }
        None
    }
}
