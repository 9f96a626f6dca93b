//! The thread that keeps a cache within its budget, and what is shown of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::volume::{Volume, failed};
use crate::api::Failure;
use crate::replication::{CacheState, Evictor};
use crate::runtime::Shutdown;
use crate::store::LocalStore;
use crate::telemetry::metrics;
use crate::types::ByteSize;

/// How often it is asked whether there is too much, when nobody says so.
const LOOK: Duration = Duration::from_secs(1);
/// Between two passes at least; as long as a pass took, up to the second: who reads waits
/// for room.
const REST: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));
/// After a pass that found nothing that may go, at least; doubled each time.
const STUCK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// What is shown is looked at this often, and not more than a fifth of the time.
const SHOWN: Duration = Duration::from_secs(30);

/// Makes room in a cache until the volume ends.
pub(super) struct Keeper {
    evictor: Arc<Evictor>,
    store: Arc<LocalStore>,
    shutdown: Shutdown,
}

impl Keeper {
    pub fn new(volume: &Volume) -> Self {
        Self {
            evictor: Arc::clone(&volume.evictor),
            store: Arc::clone(&volume.store),
            shutdown: volume.shutdown.clone(),
        }
    }

    /// Starts the thread; none for a replica.
    pub fn start(self) -> std::io::Result<()> {
        if self.store.budget().is_none() {
            return Ok(());
        }
        std::thread::Builder::new().name("cairn-evict".into()).spawn(move || self.work()).map(drop)
    }

    fn work(self) {
        let (mut stuck, mut shown): (Duration, Option<(Instant, Duration)>) = (STUCK.0, None);
        while !self.shutdown.is_triggered() {
            let start = Instant::now();
            let rest = match self.evictor.pass() {
                Ok(Some(done)) if done.wanted == 0 => {
                    stuck = STUCK.0;
                    let due = |(at, took): (Instant, Duration)| at.elapsed() >= SHOWN.max(took * 5);
                    if shown.is_none_or(due) {
                        let start = Instant::now();
                        if let Err(error) = self.evictor.look() {
                            tracing::warn!(%error, "what the cache has is not known");
                        }
                        shown = Some((Instant::now(), start.elapsed()));
                    }
                    self.store.wait_for_excess(LOOK);
                    Duration::ZERO
                }
                Ok(Some(done)) => {
                    tracing::debug!(
                        wanted_bytes = done.wanted,
                        blocks = done.blocks,
                        bytes = done.bytes,
                        "evicted"
                    );
                    if done.blocks > 0 || done.more {
                        stuck = STUCK.0;
                        start.elapsed().clamp(REST.0, REST.1)
                    } else {
                        stuck = (stuck * 2).min(STUCK.1);
                        (stuck / 2).max(start.elapsed() * 4)
                    }
                }
                // A hold: an import or an export.
                Ok(None) => LOOK,
                Err(error) => {
                    if self.shutdown.is_triggered() {
                        return;
                    }
                    tracing::warn!(%error, "the cache lets go of nothing more; it is tried again");
                    self.store.looked(true);
                    stuck = (stuck * 2).min(STUCK.1);
                    stuck
                }
            };
            if self.shutdown.wait(rest) {
                return;
            }
        }
    }
}

/// `cache` of the local store in `cairn status`; null for a replica.
pub(super) fn cache_json(volume: &Volume) -> Value {
    let Some(budget) = volume.store.budget() else { return Value::Null };
    let state = volume.evictor.state();
    let said = waits(volume.store.usage().map_or(0, |usage| usage.used_bytes), budget, &state);
    json!({
        "budget_bytes": budget,
        "evictable_bytes": state.evictable_bytes,
        "waits_for_copies_bytes": state.waits_for_copies_bytes,
        "waits_for_proof_bytes": state.waits_for_proof_bytes,
        "looked_s": state.at_s, "stuck": state.stuck, "above_budget": said,
    })
}

/// Why a cache is above its budget; `None` when it is not.
pub(super) fn waits(used: u64, budget: u64, state: &CacheState) -> Option<String> {
    if used <= budget || !state.stuck {
        return None;
    }
    let mut why = Vec::new();
    for (bytes, what) in [
        (state.waits_for_copies_bytes, "wait for copies at backends"),
        (state.waits_for_proof_bytes, "wait for a proof at a backend"),
    ] {
        if bytes > 0 {
            why.push(format!("{} {what}", ByteSize(bytes)));
        }
    }
    if why.is_empty() {
        why.push("the rest is in use".to_owned());
    }
    let (used, budget) = (ByteSize(used), ByteSize(budget));
    Some(format!("the cache takes {used}, its budget is {budget}: {}", why.join(", ")))
}

/// Sets the gauges.
pub(super) fn gauges(volume: &Volume) {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let Some(budget) = volume.store.budget() else { return };
    let state = volume.evictor.state();
    metrics().store_cache_budget_bytes.set(number(budget));
    metrics().cache_dirty("copies", number(state.waits_for_copies_bytes));
    metrics().cache_dirty("proof", number(state.waits_for_proof_bytes));
}

/// `cairn gc --backend local --run` of a cache also makes room now.
pub(super) fn make_room(volume: &Volume) -> Result<u64, Failure> {
    let done = volume.evictor.pass().map_err(failed)?;
    Ok(done.map_or(0, |done| done.bytes))
}
