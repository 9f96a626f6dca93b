use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::calls::Calls;
use super::core::Core;
use super::fetch::Fetcher;
use super::machine::{Machine, MachineOptions, Outcome};
use super::{
    Events, Policy, PolicyBook, Registry, ReplicationError, Wanted, Whereabouts, WriteResult,
};
use super::{executor, level, probe, verify};
use crate::metadata::{CopyRecord, CopyState, Namespace, PinState, VerifyMethod};
use crate::runtime::{Bridge, Cancel, Clock, Shutdown};
use crate::store::LocalStore;
use crate::types::{BackendId, Cid};

/// Limits and times.
#[derive(Debug, Clone)]
pub struct ReplicatorOptions {
    /// Batches that are sent at the same time to one backend (at least 2: large
    /// contents leave one to small ones).
    pub parallel_rounds: usize,
    /// Deadline of one backend call.
    pub call_deadline: Duration,
    /// How long a close or fsync waits for its level before it is degraded.
    pub level_deadline: Duration,
    /// Of what is decided.
    pub machine: MachineOptions,
    /// How often backends that are up are probed.
    pub probe_interval: Duration,
    /// How often those that are away are.
    pub retry_interval: Duration,
    /// Bytes on their way to all backends.
    pub sending_bytes: usize,
    /// Bytes of blocks that are brought before somebody asks for them.
    pub ahead_bytes: u64,
    /// Told what becomes of copies.
    pub events: Events,
    /// Bytes a second that are read back at most.
    pub scrub_bytes_per_second: u64,
    /// Where is kept what is known of places with packs; without it that goes with the
    /// process.
    pub places_dir: Option<PathBuf>,
}

impl Default for ReplicatorOptions {
    fn default() -> Self {
        Self {
            parallel_rounds: 4,
            call_deadline: Duration::from_secs(30),
            level_deadline: Duration::from_mins(1),
            machine: MachineOptions::default(),
            probe_interval: Duration::from_mins(5),
            retry_interval: Duration::from_secs(5),
            sending_bytes: 64 << 20,
            ahead_bytes: 16 << 20,
            events: Events::default(),
            scrub_bytes_per_second: 64 << 20,
            places_dir: None,
        }
    }
}

/// How far the queue is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Contents that still wait.
    pub pending: u64,
    /// Of these, those whose last round failed.
    pub failed: u64,
    /// Content bytes sent since the start.
    pub bytes_sent: u64,
}

/// Sends what the queue asks for; answers who waits; reads from any copy.
/// Dropped or shut down, it cuts off the calls in flight; the durable queue
/// goes on with them at the next start.
pub struct Replicator {
    pub(super) core: Arc<Core>,
}

impl Drop for Replicator {
    fn drop(&mut self) {
        self.core.stop();
    }
}

impl Replicator {
    /// Starts the executor, the verifier and the probes; takes up the durable
    /// queue.
    ///
    /// # Errors
    /// `Io` when the operating system refuses threads; of the metadata.
    pub fn start(
        namespace: Arc<Namespace>,
        store: Arc<LocalStore>,
        registry: Arc<Registry>,
        bridge: Bridge,
        clock: Arc<dyn Clock>,
        shutdown: Shutdown,
        options: ReplicatorOptions,
    ) -> Result<Arc<Self>, ReplicationError> {
        let calls =
            Calls { bridge, stop: Cancel::default(), deadline: options.call_deadline, down: None };
        let policies = Arc::new(PolicyBook::new(namespace.policy_expressions()?));
        let book = Arc::clone(&policies);
        namespace.keep_strictest_by(Box::new(move |numbers| {
            book.keep_strictest(numbers);
        }));
        let fetcher = Arc::new(Fetcher::new(
            store,
            Arc::clone(&registry),
            calls.clone(),
            Arc::clone(&policies),
            options.events.clone(),
            options.ahead_bytes,
        ));
        let core =
            Arc::new(Core::new(namespace, fetcher, registry, calls, clock, options, policies));
        core.machine.load_moves()?;
        // Made first: what is started ends when a later start fails.
        let replicator = Arc::new(Self { core: Arc::clone(&core) });
        executor::start(&core)?;
        verify::start(&core)?;
        probe::start(&core, shutdown)?;
        Ok(replicator)
    }

    #[cfg(test)]
    pub(super) fn core_for_tests(&self) -> &Arc<Core> {
        &self.core
    }

    /// The volume's backends.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.core.registry
    }

    /// Where a content with these copies stands (distinct failure domains count).
    pub fn judge(&self, policy: &Policy, copies: &[CopyRecord]) -> PinState {
        self.core.judge(policy, copies)
    }

    /// What happens is told here.
    pub fn events(&self) -> &Events {
        &self.core.options.events
    }

    /// Whether nothing is planned, sent or looked for.
    pub fn is_idle(&self) -> bool {
        self.core.is_idle()
    }

    /// What decides.
    pub fn machine(&self) -> &Machine {
        &self.core.machine
    }

    /// Whether copies beyond the local one are wanted at all.
    pub fn wants_copies(&self, policy: &Policy) -> bool {
        let registry = &self.core.registry;
        let beyond = policy.target > 1 || !policy.tiers.is_empty() || registry.is_local_cache();
        beyond && !registry.is_empty()
    }

    /// These contents were just committed with queue rows.
    pub fn submit(&self, roots: &[Cid]) {
        self.core.ask_for(roots);
    }

    /// Waits as [`Replicator::level`] does, on this thread.
    ///
    /// # Errors
    /// As there.
    pub fn wait(&self, root: &Cid, policy: &Policy) -> Result<WriteResult, ReplicationError> {
        self.block_on(self.level(root, policy))
    }

    /// Runs a wait of this layer on the caller's thread.
    pub fn block_on<T>(&self, wait: impl Future<Output = T>) -> T {
        self.core.calls.bridge.block_on(wait)
    }

    /// Waits until `root` has the copies of `policy`'s level, in distinct failure
    /// domains. When it cannot (too few places are in reach, or the deadline
    /// passed): `Ok` with what was reached, when the policy queues; then it
    /// waits for the places that are in reach all the same. Holds no thread.
    ///
    /// # Errors
    /// `BelowLevel` when the policy says fail; `ShuttingDown` then, too.
    pub fn level(
        &self,
        root: &Cid,
        policy: &Policy,
    ) -> impl Future<Output = Result<WriteResult, ReplicationError>> + Send + use<> {
        level::wait(Arc::clone(&self.core), *root, policy.clone())
    }

    /// The way to tasks.
    pub fn bridge(&self) -> &Bridge {
        &self.core.calls.bridge
    }

    /// Ends all waits: the volume is being closed.
    pub fn stop(&self) {
        self.core.stop();
    }

    /// Waits until the queue is empty; false when some remain: the deadline
    /// passed, or (without one) nothing moves any more, since what is left keeps
    /// failing or no backend in reach can take it.
    pub fn drain(&self, deadline: Option<Duration>, progress: &mut dyn FnMut(Progress)) -> bool {
        let core = &self.core;
        let start = Instant::now();
        core.request_scan(true);
        let (mut last, mut moved) = (self.progress(), Instant::now());
        // Two probes and two rounds have had their chance.
        let patience = core.options.retry_interval * 2 + core.options.machine.backoff.0 * 3;
        // Unless the user wants none.
        let paused = core.registry.fleet().read().is_paused();
        let patience = if paused { Duration::ZERO } else { patience };
        loop {
            let now = self.progress();
            progress(now);
            // A copy that should go and cannot yet is nobody's loss.
            if now.pending == 0 || (core.is_idle() && self.lacks_nothing()) {
                return true;
            }
            if now != last || !core.is_idle() {
                (last, moved) = (now, Instant::now());
            }
            let over = match deadline {
                Some(limit) => start.elapsed() >= limit,
                None => moved.elapsed() >= patience,
            };
            if over || !core.calls.pause(Duration::from_millis(20)) {
                return self.progress().pending == 0 || self.lacks_nothing();
            }
        }
    }

    /// Every content has its target's copies.
    fn lacks_nothing(&self) -> bool {
        let [below_min, below_target, ..] = self.core.namespace.stats().pins_by_state;
        below_min == 0 && below_target == 0
    }

    /// How far the queue is.
    pub fn progress(&self) -> Progress {
        let stats = self.core.namespace.stats();
        Progress {
            pending: stats.queued,
            failed: stats.failed,
            bytes_sent: self.core.bytes_sent.load(Ordering::Relaxed),
        }
    }

    /// A verified block: the local store first, else other backends, and then
    /// repaired locally.
    ///
    /// # Errors
    /// `NoGoodCopy` with each backend's answer.
    pub fn fetch(&self, id: &Cid) -> Result<Bytes, ReplicationError> {
        self.core.fetcher.block(id)
    }

    /// The block when it is here and good; asks no backend.
    ///
    /// # Errors
    /// Of the store.
    pub fn here(&self, id: &Cid) -> Result<Option<Bytes>, ReplicationError> {
        self.core.fetcher.here(id)
    }

    /// Whether a block is here, without reading it.
    ///
    /// # Errors
    /// Of the store.
    pub fn is_here(&self, id: &Cid) -> Result<bool, ReplicationError> {
        self.core.fetcher.is_here(id)
    }

    /// A block that is not here, from the other backends; kept here, too. Holds
    /// no thread.
    ///
    /// # Errors
    /// `NoGoodCopy` with each backend's answer.
    pub fn bring(
        &self,
        wanted: Wanted,
    ) -> impl Future<Output = Result<Bytes, ReplicationError>> + Send + use<> {
        Arc::clone(&self.core.fetcher).bring(wanted)
    }

    /// Sends for a block that somebody will wait for. Never waits.
    pub fn begin(&self, wanted: Wanted) {
        self.core.fetcher.begin(wanted);
    }

    /// Sends for a block that somebody may ask for soon; `whole`: for a walk of a whole
    /// content. False when memory or the disk has no room for it now. Never waits.
    pub fn ahead(&self, wanted: &Wanted, whole: bool) -> bool {
        self.core.fetcher.ahead(wanted, whole)
    }

    /// Whether any block is on its way here.
    #[cfg(test)]
    pub(crate) fn is_bringing(&self) -> bool {
        self.core.fetcher.is_bringing()
    }

    /// Where a content's blocks are to be looked for.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn whereabouts(&self, root: &Cid) -> Result<Whereabouts, ReplicationError> {
        self.core.whereabouts(root)
    }

    /// Brings every block of these contents into the local store; how many blocks.
    ///
    /// # Errors
    /// `NoGoodCopy`, of the first that cannot be brought; the others are brought.
    pub fn fetch_all(&self, roots: &[Cid]) -> Result<u64, ReplicationError> {
        let (mut count, mut first, mut brought) = (0, Ok(()), Vec::new());
        for (root, result) in roots.iter().zip(executor::fetch_each(&self.core, roots)) {
            match result {
                Ok(blocks) => {
                    let here = Outcome::Stored(CopyState::Verified, VerifyMethod::ReadBack);
                    brought.push((*root, here));
                    count += blocks;
                }
                Err(error) => first = first.and(Err(error)),
            }
        }
        self.core.record(&BackendId::local(), &brought)?;
        first.map(|()| count)
    }

    /// Policy or backends changed: judges all contents again and queues what
    /// is missing. Returns the number of contents.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn replan(&self) -> Result<u64, ReplicationError> {
        let places = self.core.registry.places();
        let moment = self.core.machine.moment(&places);
        let count = self.core.namespace.update_all_contents(&mut |root, record, row| {
            self.core.machine.settle(root, record, row, &moment, None);
        })?;
        self.core.request_scan(true);
        self.core.machine.request_sweep();
        self.core.waiters.notify_all();
        Ok(count)
    }
}
