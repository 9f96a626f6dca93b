//! The scheduler, which plans and scans, and the workers, which send.
//!
//! One scheduler thread turns submitted roots and rows of the durable queue into
//! tasks in the lanes; each backend has a few worker threads for its own lane,
//! and so has the local store (they bring contents back that are only
//! elsewhere). So a slow backend delays nothing but its own copies. A worker
//! records a batch in one transaction; a crash before that repeats the batch,
//! which finds the blocks there.

use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::ReplicationError;
use super::calls::Calls;
use super::core::{Core, Outcome};
use super::planner::{Job, Places, Plan, plan};
use super::queue::Task;
use super::send::{BATCH_BYTES, Sender};
use crate::backends::{Backend, BackendError, ErrorKind};
use crate::content::{ContentError, walk_post_order};
use crate::metadata::{CopyState, VerifyMethod};
use crate::runtime::{Cancel, failpoint};
use crate::telemetry;
use crate::types::{BackendId, Cid, Timestamp};

/// Roots that are planned between two looks at the rest.
const PLANNED_AT_ONCE: usize = 512;
/// Rows of one page of a scan.
const PAGE: usize = 1024;
/// How long a worker waits before it looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(250);
/// How long the scheduler waits before it looks at pauses and backends.
const TICK: Duration = Duration::from_millis(50);

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
    let mut epoch = core.registry.epoch();
    core.queue.request_scan(true);
    while !core.is_stopped() {
        serve(core, &served);
        let now = core.registry.epoch();
        if epoch != now {
            // A place came (back): what waited for one is due at once.
            epoch = now;
            core.queue.request_scan(true);
            core.claims.look_again();
        }
        if let Err(error) = plan_due(core) {
            tracing::error!(%error, "the queue cannot be worked on; it is tried again");
            core.queue.request_scan(false);
            core.queue.wait(Duration::from_secs(1));
        }
        core.queue.planned();
        core.queue.wait(TICK);
    }
}

/// One turn of the scheduler: what was submitted, then what is due.
fn plan_due(core: &Core) -> Result<(), ReplicationError> {
    let roots = core.queue.take_incoming(PLANNED_AT_ONCE);
    plan_all(core, &roots)?;
    let Some(hurry) = core.queue.begin_scan(core.clock.now()) else { return Ok(()) };
    let start = Instant::now();
    let scanned = scan(core, hurry);
    core.queue.end_scan(start.elapsed(), *scanned.as_ref().unwrap_or(&false));
    if scanned.is_err() && hurry {
        core.queue.request_scan(true);
    }
    scanned.map(drop)
}

/// Starts workers for lanes that lack some.
fn serve(core: &Arc<Core>, served: &Arc<Served>) {
    let workers = core.options.parallel_rounds.max(2);
    let remote = core.registry.specs().into_iter().map(|spec| spec.id);
    for id in remote.chain([BackendId::local()]) {
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

fn plan_all(core: &Core, roots: &[Cid]) -> Result<(), ReplicationError> {
    let places = core.registry.places();
    let mut settled = Vec::new();
    for root in roots {
        if !plan_one(core, root, &places)? {
            settled.push(*root);
        }
    }
    if settled.is_empty() { Ok(()) } else { core.settle_all(&settled) }
}

/// Puts a content into lanes; false when there is nothing to be done for it.
fn plan_one(core: &Core, root: &Cid, places: &Places) -> Result<bool, ReplicationError> {
    let Some(record) = core.namespace.content(root)? else { return Ok(true) };
    if record.refs == 0 {
        return Ok(true);
    }
    let Plan::Act(jobs) = plan(root, &record, places) else { return Ok(false) };
    let bytes = record.stored_bytes();
    let tasks: Vec<(BackendId, Task)> =
        jobs.into_iter().map(|(id, job)| (id, Task { root: *root, bytes, job })).collect();
    core.queue.assign(places.held(&record).len(), &tasks);
    Ok(true)
}

/// Looks through the durable rows and takes up the riskiest that are due.
/// Memory: as many roots as a lane has room for. True when some were left out.
fn scan(core: &Core, hurry: bool) -> Result<bool, ReplicationError> {
    let (places, room, now) = (core.registry.places(), core.queue.room(), core.clock.now());
    // The last to be sent on top, to be dropped first.
    let mut due: BinaryHeap<(usize, Timestamp, Cid)> = BinaryHeap::new();
    let (mut after, mut incomplete) = (None, false);
    loop {
        let page = core.namespace.queue_page(after.as_ref(), PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        let mut settled = Vec::new();
        for (root, row) in page {
            if core.is_stopped() {
                return Ok(false);
            }
            if core.queue.is_busy(&root) {
                continue;
            }
            if !hurry && row.not_before > now {
                core.queue.due_at(row.not_before);
                continue;
            }
            let Some(record) = core.namespace.content(&root)? else { continue };
            match plan(&root, &record, &places) {
                Plan::Satisfied => settled.push(root),
                Plan::Stuck(reason) if row.last_error != reason => settled.push(root),
                Plan::Stuck(_) => {}
                Plan::Act(_) => due.push((places.held(&record).len(), row.since, root)),
            }
            if due.len() > room {
                due.pop();
                incomplete = true;
            }
        }
        if !settled.is_empty() {
            core.settle_all(&settled)?;
        }
    }
    for (_, _, root) in due.into_sorted_vec() {
        plan_one(core, &root, &places)?;
    }
    Ok(incomplete)
}

/// Gives tasks back to the queue, also when a worker panics.
struct Taken<'c> {
    core: &'c Core,
    roots: Vec<Cid>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.core.queue.finished(&self.roots);
    }
}

fn work(core: &Core, slot: &Slot) {
    let id = &slot.id;
    while !core.is_stopped() && (id.is_local() || core.registry.contains(id)) {
        let tasks = core.queue.take(id, slot.n, &core.calls.stop, LOOK);
        if tasks.is_empty() {
            continue;
        }
        let roots: Vec<Cid> = tasks.iter().map(|task| task.root).collect();
        let taken = Taken { core, roots: roots.clone() };
        let outcomes = if id.is_local() {
            bring_here(core, &tasks)
        } else if let Some((backend, down)) = core.registry.until_down(id) {
            send(core, (id, &backend, down), &tasks)
        } else {
            Vec::new()
        };
        failpoint::reach("replication.send.sent");
        if let Err(error) = core.record(id, &outcomes) {
            tracing::error!(%error, backend = %id, "results cannot be recorded; the work is repeated");
            core.queue.request_scan(false);
        }
        failpoint::reach("replication.send.recorded");
        drop(taken);
        if !id.is_local() && core.registry.get(id).is_none() {
            // It is down: other places may take them at once.
            core.queue.submit(&roots);
        }
    }
}

/// Heals the local copy (after a recovery, or a lost disk).
fn bring_here(core: &Core, tasks: &[Task]) -> Vec<(Cid, Outcome)> {
    let mut outcomes = Vec::new();
    for task in tasks {
        let outcome = match fetch_all(core, &task.root) {
            Ok(_) => Outcome::Stored(CopyState::Verified, VerifyMethod::ReadBack),
            Err(ReplicationError::ShuttingDown) => break,
            Err(error) => {
                tracing::warn!(%error, cid = %task.root, "a content cannot be brought here");
                Outcome::Failed(error.to_string())
            }
        };
        outcomes.push((task.root, outcome));
    }
    outcomes
}

/// Brings every block of a content into the local store; how many.
pub(super) fn fetch_all(core: &Core, root: &Cid) -> Result<u64, ReplicationError> {
    let (mut count, mut failure) = (0, None);
    let walked = walk_post_order(
        root,
        &mut |_| Ok(true),
        &mut |id| {
            core.fetcher.block(id).map_err(|error| {
                failure = Some(error);
                ContentError::Missing(*id)
            })
        },
        &mut |_, _| {
            count += 1;
            Ok(())
        },
    );
    match (failure, walked) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(ReplicationError::Io(std::io::Error::other(error))),
        (None, Ok(())) => Ok(count),
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

fn send(
    core: &Core,
    (id, backend, down): (&BackendId, &Arc<dyn Backend>, Cancel),
    tasks: &[Task],
) -> Vec<(Cid, Outcome)> {
    let calls = core.calls.until(down);
    let verifies = backend.capabilities().verifies;
    let stored = if verifies {
        Outcome::Stored(CopyState::Verified, VerifyMethod::Service)
    } else {
        Outcome::Stored(CopyState::Claimed, VerifyMethod::Written)
    };
    let (mut outcomes, mut sent, mut blamed) = (Vec::new(), Vec::new(), false);
    for (task, result) in tasks.iter().zip(send_together(core, (backend, &calls), tasks)) {
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
    if !verifies {
        core.claims.add(id, &sent);
    }
    outcomes
}

/// Sends all in as few puts as can be. When these fail for a reason that may
/// lie in one content, each is sent by itself.
fn send_together(
    core: &Core,
    (backend, calls): (&Arc<dyn Backend>, &Calls),
    tasks: &[Task],
) -> Vec<Result<(), Failure>> {
    let workers = core.registry.specs().len().max(1) * core.options.parallel_rounds.max(2);
    let most = backend.capabilities().parallel_puts.clamp(1, 4);
    // Each worker fills one batch while others are on their way.
    let share = core.options.sending_bytes / workers;
    let in_flight = (share / BATCH_BYTES).saturating_sub(1).clamp(1, most);
    let batch_bytes = BATCH_BYTES.min(share / (in_flight + 1));
    let sender = || Sender::new(backend, calls, &core.fetcher, (in_flight, batch_bytes));
    let alone = |task: &Task| -> Result<(), Failure> {
        let mut sender = sender();
        let result = match task.job {
            Job::Repair => sender.repair(&task.root).inspect(|()| {
                telemetry::metrics().replication_repairs.inc();
            }),
            Job::Send => sender.add(&task.root).and_then(|()| sender.finish()),
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
