//! What the replicator's threads share.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::bell::Bell;
use super::calls::Calls;
use super::fetch::Fetcher;
use super::machine::{Holds, Machine, Outcome, judge};
use super::room::Room;
use super::waiters::Waiters;
use super::whole::Whole;
use super::{Policy, PolicyBook, Registry, ReplicationError, ReplicatorOptions, Whereabouts};
use crate::metadata::{CopyRecord, CopyState, Namespace, PinState};
use crate::runtime::Clock;
use crate::types::{BackendId, Cid};

/// Shared by scheduler, workers, verifier and probes. What is decided is decided
/// by the machine; its locks and those of `waiters` and of the registry
/// are taken alone. None is held over a call of a backend.
pub(super) struct Core {
    pub namespace: Arc<Namespace>,
    pub registry: Arc<Registry>,
    pub fetcher: Arc<Fetcher>,
    pub calls: Calls,
    pub clock: Arc<dyn Clock>,
    pub options: ReplicatorOptions,
    pub machine: Machine,
    /// There may be something to plan.
    pub scheduler: Bell,
    /// There may be something to send.
    pub workers: Bell,
    pub waiters: Waiters,
    /// What the numbers in contents' records ask for.
    pub policies: Arc<PolicyBook>,
    pub bytes_sent: AtomicU64,
    /// Nodes that places hold with all below.
    pub whole: Whole,
    /// For bytes on their way.
    pub room: Room,
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
        let machine = Machine::new(
            Arc::clone(&namespace),
            Arc::clone(registry.fleet()),
            Arc::clone(&clock),
            options.machine.clone(),
            Arc::clone(&policies),
        );
        let room = Room::new(options.sending_bytes);
        Self {
            namespace,
            registry,
            fetcher,
            calls,
            clock,
            options,
            machine,
            scheduler: Bell::default(),
            workers: Bell::default(),
            waiters: Waiters::new(),
            policies,
            bytes_sent: AtomicU64::new(0),
            whole: Whole::default(),
            room,
        }
    }

    /// Ends all threads and tasks; who waits is woken.
    pub fn stop(&self) {
        self.calls.stop.cancel();
        self.machine.stop();
        self.scheduler.ring();
        self.workers.ring();
        self.waiters.notify_all();
    }

    pub fn is_stopped(&self) -> bool {
        self.calls.stop.is_cancelled()
    }

    /// These contents are to be planned soon.
    pub fn submit(&self, roots: &[Cid]) {
        self.machine.submit(roots);
        self.scheduler.ring();
    }

    /// Files were written that have these contents, or somebody waits for them.
    pub fn ask_for(&self, roots: &[Cid]) {
        self.machine.ask_for(roots);
        self.scheduler.ring();
    }

    /// The rows are to be scanned; `hurry` ends all pauses.
    pub fn request_scan(&self, hurry: bool) {
        self.machine.lanes().lock().request_scan(hurry);
        self.scheduler.ring();
    }

    /// Whether nothing is planned, sent or looked for.
    pub fn is_idle(&self) -> bool {
        self.machine.lanes().lock().is_idle() && self.machine.is_swept()
    }

    pub fn judge(&self, policy: &Policy, copies: &[CopyRecord]) -> PinState {
        let held = self.registry.places().held(copies, policy.distinct).len();
        judge(policy.min, policy.target, policy.max, held)
    }

    /// Where a content's blocks are to be looked for. One look at the metadata.
    pub fn whereabouts(&self, root: &Cid) -> Result<Whereabouts, ReplicationError> {
        let Some(record) = self.namespace.content(root)? else {
            return Ok(Whereabouts::default());
        };
        let elsewhere = record.good_copies().filter(|copy| !copy.backend.is_local());
        let copies = elsewhere.map(|copy| {
            let verified = copy.state == CopyState::Verified;
            let holds = if verified { Holds::Verified } else { Holds::Claimed };
            (copy.backend.clone(), holds)
        });
        let strategy = self.policies.of(&record.policies).strategy;
        Ok(Whereabouts::new(*root, copies.collect(), strategy))
    }

    /// Records what became of these contents at one place, and wakes who waits for
    /// them.
    pub fn record(
        &self,
        id: &BackendId,
        outcomes: &[(Cid, Outcome)],
    ) -> Result<(), ReplicationError> {
        let mut noted = self.options.events.note(id);
        self.machine.record(id, outcomes, &mut |root, before, record| {
            noted.saw(root, before, record);
        })?;
        noted.say(outcomes);
        let roots: Vec<Cid> = outcomes.iter().map(|(root, _)| *root).collect();
        self.waiters.notify(&roots);
        self.scheduler.ring();
        Ok(())
    }
}
