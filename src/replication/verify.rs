//! Reads copies back that only their backend vouches for.
//!
//! What was sent is `claimed`; behind everything else one thread reads it back
//! and makes it `verified`, or finds it bad and asks for a repair. It takes
//! turns with the lanes: while they work it does one batch a second. Its list is
//! in memory; what it loses (restart, overflow) is found by a scan of contents.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ReplicationError;
use super::core::{Core, Outcome};
use super::send::{Found, read_back};
use crate::metadata::CopyState;
use crate::telemetry;
use crate::types::{BackendId, Cid};

/// Claims that are remembered.
const CLAIMS: usize = 16_384;
/// Claims that are looked at between two looks at the lanes.
const BATCH: usize = 64;
/// Contents of one page of a scan.
const PAGE: usize = 512;
/// Bytes read back a second, at most.
const BYTES_PER_SECOND: u64 = 64 << 20;
/// Between batches.
const PAUSE: Duration = Duration::from_millis(50);
/// Between batches while the lanes work.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// Copies to be read back.
#[derive(Debug, Default)]
pub(super) struct Claims {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    remembered: VecDeque<(BackendId, Cid)>,
    /// Some are not remembered: a scan finds them.
    scan: bool,
    /// Where a scan that is under way goes on.
    after: Option<Cid>,
}

impl Default for State {
    fn default() -> Self {
        Self { remembered: VecDeque::new(), scan: true, after: None }
    }
}

impl Claims {
    pub fn add(&self, id: &BackendId, roots: &[Cid]) {
        let mut state = self.state.lock();
        for root in roots {
            if state.remembered.len() >= CLAIMS {
                state.scan = true;
                return;
            }
            state.remembered.push_back((id.clone(), *root));
        }
    }

    /// A backend came back: claims there can be looked at.
    pub fn look_again(&self) {
        self.state.lock().scan = true;
    }

    fn take(&self) -> Vec<(BackendId, Cid)> {
        let mut state = self.state.lock();
        let count = state.remembered.len().min(BATCH);
        state.remembered.drain(..count).collect()
    }
}

/// Starts the thread.
pub(super) fn start(core: &Arc<Core>) -> Result<(), ReplicationError> {
    let core = Arc::clone(core);
    std::thread::Builder::new().name("cairn-verify".into()).spawn(move || run(&core))?;
    Ok(())
}

fn run(core: &Core) {
    let mut last = Instant::now();
    while core.calls.pause(PAUSE) {
        if !core.queue.is_idle() && last.elapsed() < BUSY_PAUSE {
            continue;
        }
        match verify_some(core) {
            Ok(bytes) => {
                let due = Duration::from_millis(bytes.saturating_mul(1000) / BYTES_PER_SECOND);
                if !due.is_zero() && !core.calls.pause(due) {
                    return;
                }
            }
            Err(ReplicationError::ShuttingDown) => return,
            Err(error) => {
                tracing::error!(%error, "copies cannot be verified; it is tried again");
                core.claims.look_again();
                core.calls.pause(BUSY_PAUSE);
            }
        }
        last = Instant::now();
    }
}

/// Looks at a batch; the bytes that were read.
fn verify_some(core: &Core) -> Result<u64, ReplicationError> {
    let mut batch = core.claims.take();
    if batch.is_empty() {
        find_claims(core)?;
        batch = core.claims.take();
    }
    batch.sort();
    let mut all = 0;
    for of_one in batch.chunk_by(|a, b| a.0 == b.0) {
        let Some(id) = of_one.first().map(|(id, _)| id.clone()) else { continue };
        // A backend that is away is looked at when it is back.
        let Some(backend) = core.registry.get(&id) else { continue };
        let mut outcomes = Vec::new();
        for (_, root) in of_one {
            match read_back(&backend, &core.calls, root) {
                Ok((found, bytes)) => {
                    all += bytes;
                    outcomes.push((*root, judged(&id, root, found)));
                }
                Err(ReplicationError::Backend(error)) => {
                    core.registry.failed(&id, &error);
                    core.claims.look_again();
                    break;
                }
                Err(ReplicationError::ShuttingDown) => return Err(ReplicationError::ShuttingDown),
                Err(error) => {
                    tracing::warn!(%error, cid = %root, backend = %id, "a copy cannot be read back");
                }
            }
        }
        core.record(&id, &outcomes)?;
    }
    Ok(all)
}

fn judged(id: &BackendId, root: &Cid, found: Found) -> Outcome {
    match found {
        Found::Good => Outcome::Verified,
        Found::Wrong => {
            telemetry::metrics().replication_copies_corrupt.inc();
            tracing::error!(cid = %root, backend = %id, "a copy is corrupt; it is sent again");
            Outcome::Bad(CopyState::Corrupt)
        }
        Found::Missing => {
            tracing::error!(cid = %root, backend = %id, "a copy is gone; it is sent again");
            Outcome::Bad(CopyState::Lost)
        }
    }
}

/// One page of the scan for claims that nobody remembers.
fn find_claims(core: &Core) -> Result<(), ReplicationError> {
    let after = {
        let mut state = core.claims.state.lock();
        if state.after.is_none() && !std::mem::take(&mut state.scan) {
            return Ok(());
        }
        state.after
    };
    if core.namespace.stats().unverified == 0 {
        core.claims.state.lock().after = None;
        return Ok(());
    }
    let page = core.namespace.contents_page(after.as_ref(), PAGE)?;
    core.claims.state.lock().after = page.last().map(|(root, _)| *root);
    for (root, record) in page.iter().filter(|(_, record)| record.refs > 0) {
        let claimed = record.copies.iter().filter(|copy| copy.state == CopyState::Claimed);
        for copy in claimed.filter(|copy| core.registry.get(&copy.backend).is_some()) {
            core.claims.add(&copy.backend, &[*root]);
        }
    }
    Ok(())
}
