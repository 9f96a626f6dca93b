//! The scheduler, which plans and scans, and the workers, which send.
//!
//! One scheduler thread turns submitted roots and rows of the durable queue into
//! tasks in the lanes; each backend has a few worker threads for its own lane,
//! and so has the local store (they bring contents back that are only
//! elsewhere). So a slow backend delays nothing but its own copies. A worker
//! records a batch in one transaction; a crash before that repeats the batch,
//! which finds the blocks there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ReplicationError;
use super::audit::audit;
use super::calls::Calls;
use super::core::Core;
use super::machine::{Content, Job, Outcome, Taken, Task, since};
use super::send::{BATCH_BYTES, Sender, read_back};
use super::upcoming::Upcoming;
use super::verify;
use super::whole::Below;
use crate::backends::{Backend, BackendError, ErrorKind, PlaceSettings, Presence};
use crate::content::{ContentError, parse_node, walk_post_order};
use crate::metadata::{CopyState, VerifyMethod};
use crate::runtime::{Cancel, failpoint};
use crate::telemetry;
use crate::types::{BackendId, Cid};

/// How long a worker waits before it looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(250);
/// How long the scheduler waits before it looks at pauses and backends.
const TICK: Duration = Duration::from_millis(50);

/// Contents that are brought here at a time by one worker: small ones are a round trip
/// each.
const CONTENTS_AT_ONCE: usize = 8;

/// Worker threads that run, by backend.
type Served = Mutex<HashMap<BackendId, Vec<bool>>>;

/// Starts the scheduler.
pub(super) fn start(core: &Arc<Core>) -> Result<(), ReplicationError> {
    let core = Arc::clone(core);
    std::thread::Builder::new().name("cairn-plan".into()).spawn(move || schedule(&core))?;
    Ok(())
}

fn schedule(core: &Arc<Core>) {
    let served = Arc::new(Served::default());
    while !core.is_stopped() {
        let heard = core.scheduler.heard();
        serve(core, &served);
        ask_for_doubted(core);
        let more = match core.machine.turn() {
            Ok(turn) => {
                if turn.back || !turn.given_up.is_empty() {
                    core.waiters.notify_all();
                }
                for id in turn.given_up {
                    tracing::warn!(backend = %id, "away for longer than the grace period: its copies do not count, others are made");
                }
                turn.more
            }
            Err(error) => {
                tracing::error!(%error, "the queue cannot be worked on; it is tried again");
                core.request_scan(false);
                core.calls.pause(Duration::from_secs(1));
                false
            }
        };
        if !core.machine.lanes().lock().is_empty() {
            core.workers.ring();
        }
        if !more {
            core.scheduler.wait(heard, TICK);
        }
    }
}

/// Has copies read back that a reader found fault with.
fn ask_for_doubted(core: &Core) {
    let mut places = None;
    core.fetcher.doubts.settle(|root, id| {
        let places = places.get_or_insert_with(|| core.registry.places());
        match places.get(id) {
            // Removed, and its copies with it.
            None => return true,
            Some(place) if place.paused || !place.readable => return false,
            Some(_) => {}
        }
        match core.namespace.content(root) {
            Ok(Some(record))
                if record.refs > 0 && record.good_copies().any(|c| c.backend == *id) =>
            {
                let id = std::slice::from_ref(id);
                core.machine.ask_for_proofs(id, Job::Verify, (root, &record), false)
            }
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, cid = %root, "a doubted copy cannot be looked at now");
                false
            }
        }
    });
}

/// Starts workers for lanes that lack some.
fn serve(core: &Arc<Core>, served: &Arc<Served>) {
    let standard = core.options.parallel_rounds.max(2);
    let mut lanes = vec![(BackendId::local(), PlaceSettings::default())];
    lanes.extend(core.registry.settings());
    for (id, settings) in lanes {
        let workers = settings.parallel.unwrap_or(standard);
        core.machine.lanes().lock().limit(&id, &settings, core.clock.now());
        let missing: Vec<usize> = {
            let mut served = served.lock();
            let running = served.entry(id.clone()).or_default();
            running.resize(workers, false);
            let missing = (0..workers).filter(|n| !running[*n]).collect();
            running.fill(true);
            missing
        };
        for n in missing {
            let slot = Slot { id: id.clone(), n, served: Arc::clone(served) };
            let core = Arc::clone(core);
            let worker = std::thread::Builder::new().name("cairn-send".into());
            if let Err(error) = worker.spawn(move || work(&core, &slot)) {
                // The slot went with the closure; the next turn tries again.
                tracing::error!(%error, backend = %id, "no thread to send contents");
            }
        }
    }
}

/// A worker's place among those of its lane; free again when it ends.
struct Slot {
    id: BackendId,
    n: usize,
    served: Arc<Served>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(running) = self.served.lock().get_mut(&self.id)
            && let Some(slot) = running.get_mut(self.n)
        {
            *slot = false;
        }
    }
}

/// Gives tasks back to the queue, also when a worker panics.
struct InHand<'c> {
    core: &'c Core,
    id: &'c BackendId,
    roots: Vec<Cid>,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        if self.core.machine.finished(self.id, &self.roots) {
            self.core.scheduler.ring();
        }
    }
}

/// The next tasks of a lane; none after a while, or when the end has begun.
fn next(core: &Core, slot: &Slot) -> Vec<Task> {
    let heard = core.workers.heard();
    let most = match core.machine.take(&slot.id, slot.n) {
        Taken::Tasks(tasks) => {
            if core.machine.lanes().lock().wants_scan() {
                core.scheduler.ring();
            }
            return tasks;
        }
        Taken::Later(until) => since(core.clock.now(), until).min(LOOK),
        Taken::Empty => LOOK,
    };
    if !core.is_stopped() {
        core.workers.wait(heard, most);
    }
    Vec::new()
}

fn work(core: &Core, slot: &Slot) {
    let id = &slot.id;
    while !core.is_stopped() && (id.is_local() || core.registry.contains(id)) {
        let tasks = next(core, slot);
        let Some(first) = tasks.first() else { continue };
        let roots: Vec<Cid> = tasks.iter().map(|task| task.root).collect();
        let taken = InHand { core, id, roots: roots.clone() };
        let start = Instant::now();
        let outcomes = match first.job {
            Job::Release => release(core, id, &tasks),
            Job::Verify | Job::Audit if id.is_local() => prove_here(core, &tasks),
            Job::Send | Job::Repair if id.is_local() => bring_here(core, &tasks),
            job => match core.registry.until_down(id) {
                Some(place) if matches!(job, Job::Verify | Job::Audit) => {
                    prove(core, (id, &place.0, place.1), &tasks)
                }
                Some(place) => send(core, (id, place.1), &tasks),
                None => Vec::new(),
            },
        };
        if !matches!(first.job, Job::Release | Job::Audit) {
            let bytes = done_bytes(&tasks, &outcomes);
            if bytes > 0 {
                core.machine.lanes().lock().moved(id, bytes, start.elapsed());
            }
        }
        failpoint::reach("replication.send.sent");
        if let Err(error) = core.record(id, &outcomes) {
            tracing::error!(%error, backend = %id, "results cannot be recorded; the work is repeated");
            core.request_scan(false);
        }
        failpoint::reach("replication.send.recorded");
        drop(taken);
        if !id.is_local() && core.registry.get(id).is_none() {
            // It is down: other places may take them at once.
            core.submit(&roots);
        }
    }
}

/// Bytes of the tasks that did not fail: what fails at once says nothing of the speed.
fn done_bytes(tasks: &[Task], outcomes: &[(Cid, Outcome)]) -> u64 {
    let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
    let done: HashSet<&Cid> =
        outcomes.iter().filter(|(_, o)| !failed(o)).map(|(root, _)| root).collect();
    tasks.iter().filter(|task| done.contains(&task.root)).map(|task| task.bytes).sum()
}

/// Reads copies back that something waits for. One that is bad still is mended all the
/// same: no good copy is known then, but a cache may have its blocks, or several bad
/// copies all of them together.
fn prove(
    core: &Core,
    (id, backend, down): (&BackendId, &Arc<dyn Backend>, Cancel),
    tasks: &[Task],
) -> Vec<(Cid, Outcome)> {
    let calls = core.calls.until(down.clone());
    let mut outcomes = Vec::new();
    for task in tasks {
        let Ok(Some(before)) = verify::copy_now(core, id, &task.root) else { continue };
        let looked = if task.job == Job::Audit {
            audit(backend, &calls, &task.root, &mut fastrand::Rng::new())
        } else {
            read_back(backend, &calls, &task.root)
        };
        let outcome = match looked {
            Ok((found, _)) => match verify::copy_now(core, id, &task.root) {
                Ok(now) if now.as_ref() == Some(&before) => verify::judged(id, &task.root, found),
                _ => continue,
            },
            Err(ReplicationError::ShuttingDown) => break,
            Err(error) => {
                if let ReplicationError::Backend(error) = &error {
                    core.registry.unread(id, error);
                }
                Outcome::Failed(format!("the copy could not be read back: {error}"))
            }
        };
        let takes = || core.registry.places().get(id).is_some_and(|place| place.takes(task.bytes));
        if matches!(outcome, Outcome::Bad(_))
            && matches!(before.state, CopyState::Corrupt | CopyState::Lost)
            && takes()
        {
            let mend = Task { job: Job::Repair, ..*task };
            let mended = send(core, (id, down.clone()), &[mend]);
            if let Some((_, stored @ Outcome::Stored(..))) = mended.into_iter().next() {
                outcomes.push((task.root, stored));
                continue;
            }
        }
        outcomes.push((task.root, outcome));
    }
    outcomes
}

/// Asks the places whose copies stay whether they have them. Nothing is deleted
/// here: a copy that was given up is garbage for that place's collection.
fn release(core: &Core, id: &BackendId, tasks: &[Task]) -> Vec<(Cid, Outcome)> {
    let mut outcomes = Vec::new();
    for task in tasks {
        let outcome = match confirm(core, id, &task.root) {
            Ok(confirmed) => Outcome::Released(confirmed),
            Err(ReplicationError::ShuttingDown) => break,
            Err(error) => Outcome::Failed(format!("the copy stays: {error}")),
        };
        outcomes.push((task.root, outcome));
    }
    outcomes
}

/// Places other than `id` that have the content at this moment.
pub(super) fn confirm(
    core: &Core,
    id: &BackendId,
    root: &Cid,
) -> Result<Vec<BackendId>, ReplicationError> {
    let Some(record) = core.namespace.content(root)? else { return Ok(Vec::new()) };
    let places = core.registry.places();
    let policy = core.machine.policy_of(&record);
    let content = Content { root, record: &record, policy: &policy };
    let witnesses = content.witnesses(&core.machine.moment(&places));
    let mut confirmed = Vec::new();
    for witness in witnesses.into_iter().filter(|witness| witness != id) {
        let there = if witness.is_local() {
            core.fetcher.here(root)?.is_some()
        } else if let Some((backend, down)) = core.registry.until_down(&witness) {
            let answer = core.calls.until(down).wait(backend.presence(&[*root]));
            matches!(answer.as_deref(), Ok([Presence::Present(_)]))
        } else {
            false
        };
        if there {
            confirmed.push(witness);
        }
    }
    Ok(confirmed)
}

/// Reads the local copy back from the disk; what is not here is brought.
fn prove_here(core: &Core, tasks: &[Task]) -> Vec<(Cid, Outcome)> {
    let mut outcomes = Vec::new();
    for task in tasks {
        match verify::here(core, &[task.root]) {
            Ok((proven, _))
                if matches!(proven.first(), None | Some((_, Outcome::Bad(CopyState::Lost)))) =>
            {
                match bring_here(core, std::slice::from_ref(task)).pop() {
                    // It is known to be gone, whatever became of the bringing.
                    Some((_, Outcome::Failed(_))) if !proven.is_empty() => outcomes.extend(proven),
                    brought => outcomes.extend(brought),
                }
            }
            Ok((proven, _)) => outcomes.extend(proven),
            Err(ReplicationError::ShuttingDown) => break,
            Err(error) => outcomes.push((task.root, Outcome::Failed(error.to_string()))),
        }
    }
    outcomes
}

/// Heals the local copy (after a recovery, or a lost disk).
fn bring_here(core: &Core, tasks: &[Task]) -> Vec<(Cid, Outcome)> {
    let roots: Vec<Cid> = tasks.iter().map(|task| task.root).collect();
    let mut outcomes = Vec::new();
    for (root, result) in roots.iter().zip(fetch_each(core, &roots)) {
        let outcome = match result {
            Ok(_) => Outcome::Stored(CopyState::Verified, VerifyMethod::ReadBack),
            Err(ReplicationError::ShuttingDown) => continue,
            Err(error) => {
                tracing::warn!(%error, cid = %root, "a content cannot be brought here");
                Outcome::Failed(error.to_string())
            }
        };
        outcomes.push((*root, outcome));
    }
    outcomes
}

/// Brings contents here, some at a time; in their order, how many blocks each has.
pub(super) fn fetch_each(core: &Core, roots: &[Cid]) -> Vec<Result<u64, ReplicationError>> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((n, root)) = {
            let n = next.fetch_add(1, Ordering::Relaxed);
            roots.get(n).map(|root| (n, root))
        } {
            let result = fetch_all(core, root);
            results.lock().push((n, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..roots.len().min(CONTENTS_AT_ONCE) {
            let helper = std::thread::Builder::new().name("cairn-fetch".into());
            if let Err(error) = helper.spawn_scoped(scope, work) {
                tracing::warn!(%error, "contents are brought by fewer threads");
            }
        }
        work();
    });
    let mut results = results.into_inner();
    results.sort_by_key(|(n, _)| *n);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Brings every block of a content into the local store, where it is durable then; how
/// many.
pub(super) fn fetch_all(core: &Core, root: &Cid) -> Result<u64, ReplicationError> {
    let (mut count, mut failure) = (0, None);
    let mut upcoming = Upcoming::new(&core.fetcher, core.whereabouts(root)?);
    let walked = walk_post_order(
        root,
        &mut |_| Ok(!core.is_stopped()),
        &mut |id| {
            let loaded = core.fetcher.wanted(&upcoming.wanted(id)).and_then(|data| {
                let node = parse_node(id, &data);
                upcoming.loaded(id, &node.map_err(ReplicationError::Content)?)?;
                Ok(data)
            });
            loaded.map_err(|error| {
                failure = Some(error);
                ContentError::Missing(*id)
            })
        },
        &mut |_, _| {
            count += 1;
            Ok(())
        },
    );
    if core.is_stopped() {
        return Err(ReplicationError::ShuttingDown);
    }
    match (failure, walked) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(ReplicationError::Io(std::io::Error::other(error))),
        (None, Ok(())) => core.fetcher.keep.settle().map(|()| count),
    }
}

/// Why a content was not sent.
#[derive(Debug, Default)]
struct Failure {
    reason: String,
    /// The place's own answer.
    place: Option<BackendError>,
    stopped: bool,
}

impl From<ReplicationError> for Failure {
    fn from(error: ReplicationError) -> Self {
        let reason = error.to_string();
        match error {
            ReplicationError::ShuttingDown => Self { reason, stopped: true, place: None },
            ReplicationError::Backend(place) => Self { reason, place: Some(place), stopped: false },
            _ => Self { reason, ..Self::default() },
        }
    }
}

fn send(core: &Core, (id, down): (&BackendId, Cancel), tasks: &[Task]) -> Vec<(Cid, Outcome)> {
    let Some(backend) = core.registry.paced(id) else { return Vec::new() };
    let calls = core.calls.until(down);
    let verifies = backend.capabilities().verifies;
    let stored = if verifies {
        Outcome::Stored(CopyState::Verified, VerifyMethod::Service)
    } else {
        Outcome::Stored(CopyState::Claimed, VerifyMethod::Written)
    };
    let (mut outcomes, mut sent, mut blamed) = (Vec::new(), Vec::new(), false);
    for (task, result) in tasks.iter().zip(send_together(core, (id, &backend, &calls), tasks)) {
        let outcome = match result {
            Ok(()) => {
                core.bytes_sent.fetch_add(task.bytes, Ordering::Relaxed);
                telemetry::metrics().replication_contents_sent.inc();
                sent.push(task.root);
                stored.clone()
            }
            // Nothing is known of it; the row stays as it is.
            Err(failure) if failure.stopped => continue,
            Err(failure) => {
                telemetry::metrics().replication_rounds_failed.inc();
                if let Some(error) = failure.place {
                    blamed = true;
                    core.registry.failed(id, &error);
                }
                Outcome::Failed(failure.reason)
            }
        };
        outcomes.push((task.root, outcome));
    }
    if !blamed && !sent.is_empty() {
        core.registry.succeeded(id, None);
    }
    outcomes
}

/// Sends all in as few puts as can be. When these fail for a reason that may
/// lie in one content, each is sent by itself.
fn send_together(
    core: &Core,
    (id, backend, calls): (&BackendId, &Arc<dyn Backend>, &Calls),
    tasks: &[Task],
) -> Vec<Result<(), Failure>> {
    let workers = core.registry.specs().len().max(1) * core.options.parallel_rounds.max(2);
    let most = backend.capabilities().parallel_puts.clamp(1, 4);
    // Each worker fills one batch while others are on their way.
    let large = tasks.iter().any(|task| task.bytes > BATCH_BYTES as u64);
    let lent = core.room.share(workers, large);
    let share = lent.bytes;
    let in_flight = (share / BATCH_BYTES).saturating_sub(1).clamp(1, most);
    let batch_bytes = BATCH_BYTES.min(share / (in_flight + 1));
    let age = core.options.machine.dedup_proof;
    let below = Below { id, backend, whole: &core.whole, age };
    let sender = || Sender::new(backend, calls, &core.fetcher, &below, (in_flight, batch_bytes));
    let alone = |task: &Task| -> Result<(), Failure> {
        let mut sender = sender();
        let result = match task.job {
            Job::Repair => sender.repair(&task.root).inspect(|()| {
                telemetry::metrics().replication_repairs.inc();
            }),
            Job::Send | Job::Verify | Job::Audit | Job::Release => {
                sender.add(&task.root).and_then(|()| sender.finish())
            }
        };
        result.map_err(Failure::from)
    };
    if tasks.len() == 1 || tasks.iter().any(|task| task.job == Job::Repair) {
        return tasks.iter().map(alone).collect();
    }
    let mut together = sender();
    let (mut results, mut failed) = (Vec::new(), None);
    for task in tasks {
        match together.add(&task.root) {
            Ok(()) => results.push(Ok(())),
            // A call failed, and with it what else was in flight.
            Err(
                error @ (ReplicationError::Backend(_)
                | ReplicationError::WentDown
                | ReplicationError::ShuttingDown),
            ) => {
                failed = Some(error);
                break;
            }
            // It cannot be read here: the others go on.
            Err(error) => results.push(Err(error.into())),
        }
    }
    match failed.or_else(|| together.finish().err()) {
        None => results,
        Some(ReplicationError::Backend(error)) if may_be_of_one(error.kind) => {
            tasks.iter().map(alone).collect()
        }
        Some(error) => {
            // One call failed, however many contents were in it: one blame.
            let Failure { reason, mut place, stopped } = error.into();
            let failure = |_| Err(Failure { reason: reason.clone(), place: place.take(), stopped });
            tasks.iter().map(failure).collect()
        }
    }
}

/// Whether a failure may come from what was sent, and not from the place.
fn may_be_of_one(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::NotFound
        | ErrorKind::Corrupt
        | ErrorKind::Invalid
        | ErrorKind::Unsupported
        | ErrorKind::Other => true,
        ErrorKind::Denied
        | ErrorKind::ReadOnly
        | ErrorKind::Full
        | ErrorKind::Unavailable
        | ErrorKind::Timeout
        | ErrorKind::Throttled => false,
    }
}
