//! Reads copies back.
//!
//! What was sent is `claimed`; behind everything else one thread reads it back and
//! makes it `verified`, or finds it bad and asks for a repair. The same thread is
//! the scrub: a copy whose last proof is older than the period is read again. Which
//! ones, the machine says. It takes turns with the lanes: while they work it does
//! one batch a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ReplicationError;
use super::audit::audit;
use super::core::Core;
use super::machine::Outcome;
use super::scrubbed::Scrubbed;
use super::send::{Found, read_back};
use crate::backends::Scrub;
use crate::metadata::{CopyRecord, CopyState, EventKind, VerifyMethod};
use crate::telemetry;
use crate::types::{BackendId, Cid};

/// Copies that are looked at between two looks at the lanes.
const BATCH: usize = 64;
/// Between batches.
const PAUSE: Duration = Duration::from_millis(50);
/// Between batches while the lanes work.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// Starts the thread.
pub(super) fn start(core: &Arc<Core>) -> Result<(), ReplicationError> {
    let core = Arc::clone(core);
    std::thread::Builder::new().name("cairn-verify".into()).spawn(move || run(&core))?;
    Ok(())
}

fn run(core: &Core) {
    let mut last = Instant::now();
    let mut scrubbed = Scrubbed::new(last);
    let rate = core.options.scrub_bytes_per_second.max(1);
    while core.calls.pause(PAUSE) {
        if !core.is_idle() && last.elapsed() < BUSY_PAUSE {
            continue;
        }
        let looked = verify_some(core, &mut scrubbed);
        for (id, text) in scrubbed.due(Instant::now()) {
            core.options.events.emit(EventKind::ScrubFinished, id.as_str(), &text);
        }
        match looked {
            Ok(bytes) => {
                let due = Duration::from_millis(bytes.saturating_mul(1000) / rate);
                if !due.is_zero() && !core.calls.pause(due) {
                    return;
                }
            }
            Err(ReplicationError::ShuttingDown) => return,
            Err(error) => {
                tracing::error!(%error, "copies cannot be verified; it is tried again");
                core.machine.request_sweep();
                core.calls.pause(BUSY_PAUSE);
            }
        }
        last = Instant::now();
    }
}

/// Looks at a batch; the bytes that were read.
fn verify_some(core: &Core, scrubbed: &mut Scrubbed) -> Result<u64, ReplicationError> {
    let mut batch = core.machine.take_proofs(BATCH);
    batch.sort();
    let mut all = 0;
    for of_one in batch.chunk_by(|a, b| a.0 == b.0) {
        let Some(id) = of_one.first().map(|(id, _)| id.clone()) else { continue };
        if core.machine.places().get(&id).is_some_and(|place| place.paused) {
            // The next look at all contents finds them.
            continue;
        }
        let roots: Vec<Cid> = of_one.iter().map(|(_, root)| *root).collect();
        let (outcomes, bytes) = if id.is_local() {
            here(core, &roots)?
        } else {
            // A backend that is away is looked at when it is back.
            let Some(backend) = core.registry.get(&id) else { continue };
            there(core, &id, &backend, &roots)?
        };
        all += bytes;
        core.record(&id, &outcomes)?;
        scrubbed.add(&id, &outcomes, bytes);
        let bad = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Bad(_)));
        let bad: Vec<&Cid> = bad.map(|(root, _)| root).collect();
        core.options.events.emit_many(EventKind::ScrubMismatch, &id, bad, "");
    }
    Ok(all)
}

fn there(
    core: &Core,
    id: &BackendId,
    backend: &Arc<dyn crate::backends::Backend>,
    roots: &[Cid],
) -> Result<(Vec<(Cid, Outcome)>, u64), ReplicationError> {
    let (mut outcomes, mut all) = (Vec::new(), 0);
    let places = core.registry.places();
    let audits = places.get(id).is_some_and(|place| place.settings.scrub == Scrub::Audit);
    for root in roots {
        let Some(before) = copy_now(core, id, root)? else { continue };
        let looked = if audits {
            audit(backend, &core.calls, root, &mut fastrand::Rng::new())
        } else {
            read_back(backend, &core.calls, root)
        };
        match looked {
            Ok((found, bytes)) => {
                all += bytes;
                if copy_now(core, id, root)?.as_ref() == Some(&before) {
                    outcomes.push((*root, judged(id, root, found)));
                }
            }
            Err(ReplicationError::Backend(error)) => {
                core.registry.unread(id, &error);
                core.machine.request_sweep();
                break;
            }
            Err(ReplicationError::ShuttingDown) => return Err(ReplicationError::ShuttingDown),
            Err(error) => {
                tracing::warn!(%error, cid = %root, backend = %id, "a copy cannot be read back");
            }
        }
    }
    Ok((outcomes, all))
}

/// The local store's copy: every block is read from the disk and hashed. A wrong
/// one is read from elsewhere and put in its place.
pub(super) fn here(
    core: &Core,
    roots: &[Cid],
) -> Result<(Vec<(Cid, Outcome)>, u64), ReplicationError> {
    let (mut outcomes, mut all) = (Vec::new(), 0);
    for root in roots {
        match core.fetcher.prove_here(root) {
            Ok((true, bytes)) => {
                all += bytes;
                outcomes.push((*root, Outcome::Verified(VerifyMethod::ReadBack)));
            }
            Ok((false, bytes)) => {
                all += bytes;
                // Else it was removed meanwhile, or is being written.
                let copy = copy_now(core, &BackendId::local(), root)?;
                let counts =
                    |c: CopyRecord| matches!(c.state, CopyState::Claimed | CopyState::Verified);
                if copy.is_some_and(counts) && !core.fetcher.is_here(root)? {
                    tracing::error!(cid = %root, "the local copy is gone; it is brought again");
                    outcomes.push((*root, Outcome::Bad(CopyState::Lost)));
                }
            }
            Err(ReplicationError::ShuttingDown) => return Err(ReplicationError::ShuttingDown),
            Err(error @ ReplicationError::NoGoodCopy { .. }) => {
                tracing::error!(cid = %root, %error, "the local copy is damaged and no other is in reach");
                outcomes.push((*root, Outcome::Bad(CopyState::Corrupt)));
            }
            Err(error) => {
                tracing::warn!(%error, cid = %root, "the local copy cannot be read back");
            }
        }
    }
    Ok((outcomes, all))
}

/// The copy that a verdict is of, as its row has it: none of a content that nobody
/// has, whose blocks may be collected while they are read, nor of one given up. When
/// it is another one after the reading, nothing is known.
pub(super) fn copy_now(
    core: &Core,
    id: &BackendId,
    root: &Cid,
) -> Result<Option<CopyRecord>, ReplicationError> {
    let record = core.namespace.content(root)?.filter(|record| record.refs > 0);
    let mut copies = record.into_iter().flat_map(|record| record.copies);
    Ok(copies.find(|copy| copy.backend == *id && copy.state != CopyState::Released))
}

pub(super) fn judged(id: &BackendId, root: &Cid, found: Found) -> Outcome {
    match found {
        Found::Good => Outcome::Verified(VerifyMethod::ReadBack),
        Found::Sound => Outcome::Audited,
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
