//! What the replicator's threads share, and how results become rows.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;

use super::calls::Calls;
use super::events::state_at;
use super::fetch::Fetcher;
use super::placement::{domains, judge};
use super::planner::{Places, Plan, plan};
use super::queue::Queue;
use super::verify::Claims;
use super::waiters::Waiters;
use super::{PolicyBook, Registry, ReplicationError, ReplicatorOptions};
use crate::metadata::{
    ContentRecord, CopyRecord, CopyState, Namespace, PinState, QueueRecord, VerifyMethod,
};
use crate::runtime::Clock;
use crate::types::{BackendId, Cid, Timestamp};

/// Shared by scheduler, workers, verifier and probes. Lock order: `recording`,
/// then (inside the namespace) the engine's; the locks of `queue`, `waiters`,
/// `claims` and of the registry are taken alone. None is held over a call of a
/// backend.
pub(super) struct Core {
    pub namespace: Arc<Namespace>,
    pub registry: Arc<Registry>,
    pub fetcher: Arc<Fetcher>,
    pub calls: Calls,
    pub clock: Arc<dyn Clock>,
    pub options: ReplicatorOptions,
    pub queue: Queue,
    pub waiters: Waiters,
    pub claims: Claims,
    /// What the numbers in contents' records ask for.
    pub policies: Arc<PolicyBook>,
    pub bytes_sent: AtomicU64,
    /// Results are recorded one transaction at a time: two for the same
    /// contents would only conflict.
    recording: Mutex<()>,
}

/// What became of one content at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The place said yes.
    Stored(CopyState, VerifyMethod),
    /// The round failed, and why.
    Failed(String),
    /// The copy was read back.
    Verified,
    /// It was read back and is bad (`Corrupt`) or gone (`Lost`).
    Bad(CopyState),
}

impl Core {
    pub fn new(
        namespace: Arc<Namespace>,
        fetcher: Arc<Fetcher>,
        registry: Arc<Registry>,
        calls: Calls,
        clock: Arc<dyn Clock>,
        options: ReplicatorOptions,
        policies: Arc<PolicyBook>,
    ) -> Self {
        Self {
            namespace,
            registry,
            fetcher,
            calls,
            clock,
            options,
            queue: Queue::default(),
            waiters: Waiters::new(),
            claims: Claims::default(),
            policies,
            bytes_sent: AtomicU64::new(0),
            recording: Mutex::new(()),
        }
    }

    /// Ends all threads and tasks; who waits is woken.
    pub fn stop(&self) {
        self.calls.stop.cancel();
        self.queue.wake_all();
        self.waiters.notify_all();
    }

    pub fn is_stopped(&self) -> bool {
        self.calls.stop.is_cancelled()
    }

    pub fn judge(&self, min: u8, target: u8, max: u8, copies: &[CopyRecord]) -> PinState {
        judge(min, target, max, domains(copies, &|id| self.registry.domain_of(id)).len())
    }

    /// Records what became of these contents at one place, in one transaction,
    /// and wakes who waits for them. What is decided is decided from the rows as
    /// they are now, so results of several places and new commits come in any
    /// order.
    pub fn record(
        &self,
        id: &BackendId,
        outcomes: &[(Cid, Outcome)],
    ) -> Result<(), ReplicationError> {
        if outcomes.is_empty() {
            return Ok(());
        }
        let by_root: HashMap<&Cid, &Outcome> = outcomes.iter().map(|(root, o)| (root, o)).collect();
        let roots: Vec<Cid> = outcomes.iter().map(|(root, _)| *root).collect();
        let places = self.registry.places();
        let known = places.domain_of(id).is_some();
        let now = self.clock.now();
        let mut first_due: Option<Timestamp> = None;
        let mut again = Vec::new();
        let mut noted = self.options.events.note(id);
        {
            let _one = self.recording.lock();
            self.namespace.update_contents(&roots, &mut |root, record, row| {
                let Some(outcome) = by_root.get(root) else { return };
                let (had_row, before) = (row.is_some(), state_at(record, id));
                if known {
                    apply(record, id, outcome, now);
                }
                let error = match outcome {
                    Outcome::Failed(reason) => Some(format!("{id}: {reason}")),
                    Outcome::Bad(_) => Some(format!("{id}: the copy read back wrong")),
                    Outcome::Stored(..) | Outcome::Verified => None,
                };
                let pause = matches!(outcome, Outcome::Failed(_));
                self.settle(root, record, row, &places, error, pause);
                noted.saw(root, before, record);
                if let Some(row) = row {
                    if row.not_before > now {
                        let due = first_due.map_or(row.not_before, |due| due.min(row.not_before));
                        first_due = Some(due);
                    } else if !had_row {
                        again.push(*root);
                    }
                }
            })?;
        }
        noted.say(outcomes);
        if let Some(due) = first_due {
            self.queue.due_at(due);
        }
        if !again.is_empty() {
            self.queue.submit(&again);
        }
        self.waiters.notify(&roots);
        Ok(())
    }

    /// Brings a record's numbers, pin and queue row in line with its policies and
    /// copies. With an
    /// error, the row says so; with `pause`, it is left alone for a while.
    pub fn settle(
        &self,
        root: &Cid,
        record: &mut ContentRecord,
        row: &mut Option<QueueRecord>,
        places: &Places,
        error: Option<String>,
        pause: bool,
    ) {
        let policy = self.policies.of(&record.policies);
        (record.min, record.target, record.max) = (policy.min, policy.target, policy.max);
        record.pin = judge(record.min, record.target, record.max, places.held(record).len());
        if plan(root, record, places) == Plan::Satisfied {
            *row = None;
            return;
        }
        let now = self.clock.now();
        let row = row.get_or_insert_with(|| QueueRecord {
            since: now,
            attempts: 0,
            not_before: Timestamp::default(),
            last_error: String::new(),
        });
        if let Some(error) = error {
            row.last_error = error;
        }
        if pause {
            row.attempts = row.attempts.saturating_add(1);
            row.not_before = plus(now, self.pause(row.attempts));
        }
    }

    /// Rows of contents that nothing can be done for now say why; rows of
    /// satisfied ones go.
    pub fn settle_all(&self, roots: &[Cid]) -> Result<(), ReplicationError> {
        let places = self.registry.places();
        {
            let _one = self.recording.lock();
            self.namespace.update_contents(roots, &mut |root, record, row| {
                let reason = match plan(root, record, &places) {
                    Plan::Stuck(reason) => Some(reason),
                    Plan::Satisfied | Plan::Act(_) => None,
                };
                self.settle(root, record, row, &places, reason, false);
            })?;
        }
        self.waiters.notify(roots);
        Ok(())
    }

    /// Doubles with each attempt, to a limit, with jitter.
    fn pause(&self, attempts: u32) -> Duration {
        let (first, longest) = self.options.backoff;
        let bound = first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(longest);
        bound.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

fn apply(record: &mut ContentRecord, id: &BackendId, outcome: &Outcome, now: Timestamp) {
    let (state, method) = match outcome {
        Outcome::Failed(_) => return,
        Outcome::Stored(state, method) => (*state, *method),
        Outcome::Verified => (CopyState::Verified, VerifyMethod::ReadBack),
        Outcome::Bad(state) => (*state, VerifyMethod::ReadBack),
    };
    // A verdict about a copy that was dropped meanwhile makes no copy.
    let verdict = matches!(outcome, Outcome::Verified | Outcome::Bad(_));
    if verdict && !record.copies.iter().any(|copy| copy.backend == *id) {
        return;
    }
    record.copies.retain(|copy| copy.backend != *id);
    record.copies.push(CopyRecord { backend: id.clone(), state, at: now, method });
}

fn plus(time: Timestamp, by: Duration) -> Timestamp {
    let by = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
    Timestamp::from_nanos(time.as_nanos().saturating_add(by))
}
