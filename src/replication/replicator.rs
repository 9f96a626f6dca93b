//! The executor: takes up the durable queue and sends what is missing.
//!
//! The queue's rows live in the metadata, written in the transaction of the new
//! root; in memory is only a bounded window of what is due. A round takes a
//! batch of contents, sends each to the backends that placement chooses, and
//! records all results in one transaction; a crash in between repeats the
//! round, which finds the blocks there. Locks: `window`, then none.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::fetch::Fetcher;
use super::placement::{choose, domains, judge};
use super::send::Sender;
use super::{OnDegraded, Policy, Registry, ReplicationError, WriteResult};
use crate::backends::BackendError;
use crate::content::walk_post_order;
use crate::metadata::{
    ContentRecord, CopyRecord, CopyState, Namespace, PinState, QueueRecord, VerifyMethod,
};
use crate::runtime::{Bridge, Clock, Shutdown};
use crate::store::LocalStore;
use crate::telemetry;
use crate::types::{BackendId, Cid, Timestamp};

/// Contents that the window holds; more are found by the next scan.
const WINDOW: usize = 16_384;
/// Contents of one round.
const BATCH: usize = 128;
/// Bytes of one round's contents beyond the first.
const BATCH_BYTES: u64 = 16 << 20;

/// Limits and times.
#[derive(Debug, Clone)]
pub struct ReplicatorOptions {
    /// Rounds at the same time.
    pub parallel_rounds: usize,
    /// Deadline of one backend call.
    pub call_deadline: Duration,
    /// How long a close or fsync waits for its level before it is degraded.
    pub level_deadline: Duration,
    /// First and longest pause between rounds of one content.
    pub backoff: (Duration, Duration),
    /// How often backends are probed.
    pub probe_interval: Duration,
}

impl Default for ReplicatorOptions {
    fn default() -> Self {
        Self {
            parallel_rounds: 2,
            call_deadline: Duration::from_secs(30),
            level_deadline: Duration::from_secs(60),
            backoff: (Duration::from_secs(1), Duration::from_secs(300)),
            probe_interval: Duration::from_secs(5),
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

#[derive(Default)]
struct Window {
    due: VecDeque<Cid>,
    known: HashSet<Cid>,
    /// Sent, and to be read back: contents and where.
    unverified: VecDeque<(Cid, BackendId)>,
}

/// Sends what the queue asks for; answers who waits; reads from any copy.
pub struct Replicator {
    namespace: Arc<Namespace>,
    registry: Arc<Registry>,
    fetcher: Arc<Fetcher>,
    bridge: Bridge,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
    options: ReplicatorOptions,
    window: Mutex<Window>,
    /// The queue has rows that the window does not know.
    rescan: AtomicBool,
    /// A backend came back: pauses are over.
    hurry: AtomicBool,
    wake: Notify,
    round_ended: (Mutex<u64>, Condvar),
    bytes_sent: AtomicU64,
}

/// What a round found out about one content at one backend.
type Outcomes = BTreeMap<Cid, Vec<(BackendId, Result<(), String>)>>;

impl Replicator {
    /// Starts the executor and the probes; takes up the durable queue.
    ///
    /// # Errors
    /// None today; the engine's, when its first read fails.
    pub fn start(
        namespace: Arc<Namespace>,
        store: Arc<LocalStore>,
        registry: Arc<Registry>,
        bridge: Bridge,
        clock: Arc<dyn Clock>,
        shutdown: Shutdown,
        options: ReplicatorOptions,
    ) -> Result<Arc<Self>, ReplicationError> {
        let fetcher = Arc::new(Fetcher {
            store,
            registry: Arc::clone(&registry),
            bridge: bridge.clone(),
            deadline: options.call_deadline,
            flights: Mutex::default(),
            landed: Condvar::new(),
        });
        let replicator = Arc::new(Self {
            namespace,
            registry,
            fetcher,
            bridge: bridge.clone(),
            clock,
            shutdown,
            options,
            window: Mutex::default(),
            rescan: AtomicBool::new(true),
            hurry: AtomicBool::new(true),
            wake: Notify::new(),
            round_ended: (Mutex::new(0), Condvar::new()),
            bytes_sent: AtomicU64::new(0),
        });
        for _ in 0..replicator.options.parallel_rounds.max(1) {
            bridge.spawn(Arc::clone(&replicator).work());
        }
        bridge.spawn(Arc::clone(&replicator).probe());
        Ok(replicator)
    }

    /// The volume's backends.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    fn distinct(&self, copies: &[CopyRecord]) -> usize {
        domains(copies, &|id| self.registry.domain_of(id)).len()
    }

    /// Where a content with these copies stands (distinct failure domains count).
    pub fn judge(&self, min: u8, target: u8, max: u8, copies: &[CopyRecord]) -> PinState {
        judge(min, target, max, self.distinct(copies))
    }

    /// Whether copies beyond the local one are wanted at all.
    pub fn wants_copies(&self, policy: &Policy) -> bool {
        policy.target > 1 && !self.registry.is_empty()
    }

    /// These contents were just committed with queue rows.
    pub fn submit(&self, roots: &[Cid]) {
        {
            let mut window = self.window.lock();
            for root in roots {
                if window.due.len() >= WINDOW {
                    self.rescan.store(true, Ordering::Release);
                    break;
                }
                if window.known.insert(*root) {
                    window.due.push_back(*root);
                }
            }
        }
        self.wake.notify_waiters();
        self.wake.notify_one();
    }

    /// Waits until `root` has the copies of `policy`'s level. `Ok` with what
    /// was reached when the policy queues.
    ///
    /// # Errors
    /// `BelowLevel` when the policy says fail; `ShuttingDown`.
    pub fn wait(&self, root: &Cid, policy: &Policy) -> Result<WriteResult, ReplicationError> {
        let start = Instant::now();
        loop {
            // Taken before the look, so that a round that ends in between is seen.
            let seen = *self.round_ended.0.lock();
            let Some(record) = self.namespace.content(root)? else {
                return Ok(WriteResult::TargetAchieved);
            };
            let have = self.distinct(&record.copies);
            let places = self.registry.places_now();
            let selected = places.min(usize::from(policy.target)).max(have);
            let want = policy.copies_to_wait_for(selected);
            if have >= usize::from(policy.target) {
                return Ok(WriteResult::TargetAchieved);
            }
            if have >= want {
                return Ok(WriteResult::QuorumAchieved);
            }
            let failed_all = places.max(have) < want;
            if failed_all
                || start.elapsed() >= self.options.level_deadline
                || self.shutdown.is_triggered()
            {
                return self.degraded(policy, (have, want), failed_all);
            }
            let (round, ended) = (&self.round_ended.0, &self.round_ended.1);
            let mut number = round.lock();
            if *number == seen {
                ended.wait_for(&mut number, Duration::from_millis(500));
            }
        }
    }

    fn degraded(
        &self,
        policy: &Policy,
        (have, want): (usize, usize),
        no_place: bool,
    ) -> Result<WriteResult, ReplicationError> {
        if policy.on_degraded == OnDegraded::Fail {
            let reason = if no_place {
                let down: Vec<String> = self
                    .registry
                    .statuses()
                    .into_iter()
                    .filter(|status| !status.last_error.is_empty())
                    .map(|status| format!("{}: {}", status.id, status.last_error))
                    .collect();
                format!(
                    "too few backends in distinct failure domains are in reach ({})",
                    down.join("; ")
                )
            } else {
                "the backends are too slow".to_owned()
            };
            return Err(ReplicationError::BelowLevel { have, want, reason });
        }
        Ok(if have > 1 { WriteResult::BelowQuorum } else { WriteResult::NoReplication })
    }

    /// Waits until the queue is empty; false when some remain because the
    /// deadline passed or no backend in reach can take them.
    pub fn drain(&self, deadline: Option<Duration>, progress: &mut dyn FnMut(Progress)) -> bool {
        let start = Instant::now();
        self.hurry.store(true, Ordering::Release);
        self.rescan.store(true, Ordering::Release);
        self.wake.notify_waiters();
        let mut rounds_without_change = 0;
        let mut last = u64::MAX;
        loop {
            let now = self.progress();
            progress(now);
            if now.pending == 0 {
                return true;
            }
            rounds_without_change = if now.pending == last { rounds_without_change + 1 } else { 0 };
            last = now.pending;
            // All that is left has failed, and no probe in the meantime helped:
            // only somebody with a deadline waits longer.
            let stuck =
                deadline.is_none() && now.failed >= now.pending && rounds_without_change > 60;
            if stuck || deadline.is_some_and(|limit| start.elapsed() >= limit) {
                return false;
            }
            let mut number = self.round_ended.0.lock();
            self.round_ended.1.wait_for(&mut number, Duration::from_millis(200));
        }
    }

    /// How far the queue is.
    pub fn progress(&self) -> Progress {
        let stats = self.namespace.stats();
        Progress {
            pending: stats.queued,
            failed: stats.failed,
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
        }
    }

    /// A verified block: the local store first, else other backends, and then
    /// repaired locally.
    ///
    /// # Errors
    /// `NoGoodCopy` with each backend's answer.
    pub fn fetch(&self, id: &Cid) -> Result<Bytes, ReplicationError> {
        self.fetcher.block(id)
    }

    /// Brings every block of a content into the local store; how many blocks.
    ///
    /// # Errors
    /// `NoGoodCopy`.
    pub fn fetch_all(&self, root: &Cid) -> Result<u64, ReplicationError> {
        let (mut count, mut failure) = (0, None);
        let walked = walk_post_order(
            root,
            &mut |_| Ok(true),
            &mut |id| {
                self.fetcher.block(id).map_err(|error| {
                    failure = Some(error);
                    crate::content::ContentError::Missing(*id)
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
            (None, Ok(())) => {
                let now = self.clock.now();
                self.namespace.update_contents(&[*root], &mut |_, record, row| {
                    self.add_copy(
                        record,
                        &BackendId::local(),
                        CopyState::Verified,
                        VerifyMethod::ReadBack,
                        now,
                    );
                    if record.pin >= PinState::AtTarget {
                        *row = None;
                    }
                })?;
                Ok(count)
            }
        }
    }

    /// Policy or backends changed: judges all contents again and queues what
    /// is missing. Returns the number of contents.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn replan(&self) -> Result<u64, ReplicationError> {
        let now = self.clock.now();
        let any = !self.registry.is_empty();
        let count = self.namespace.update_all_contents(&mut |_, record, row| {
            record.pin = self.judge(record.min, record.target, record.max, &record.copies);
            let reachable = self.registry.places_configured();
            let wanted =
                any && record.pin < PinState::AtTarget && self.distinct(&record.copies) < reachable;
            if wanted && row.is_none() {
                *row = Some(QueueRecord {
                    since: now,
                    attempts: 0,
                    not_before: Timestamp::default(),
                    last_error: String::new(),
                });
            } else if !wanted {
                *row = None;
            }
        })?;
        self.hurry.store(true, Ordering::Release);
        self.rescan.store(true, Ordering::Release);
        self.wake.notify_waiters();
        self.wake.notify_one();
        Ok(count)
    }

    fn add_copy(
        &self,
        record: &mut ContentRecord,
        backend: &BackendId,
        state: CopyState,
        method: VerifyMethod,
        at: Timestamp,
    ) {
        record.copies.retain(|copy| copy.backend != *backend);
        record.copies.push(CopyRecord { backend: backend.clone(), state, at, method });
        record.pin = self.judge(record.min, record.target, record.max, &record.copies);
    }

    async fn work(self: Arc<Self>) {
        while !self.shutdown.is_triggered() {
            let worker = Arc::clone(&self);
            let done = self.bridge.spawn_blocking(move || worker.round()).await;
            match done {
                Ok(true) => {}
                Ok(false) => {
                    // Nothing is due: a submit or a probe wakes us, or the next pause ends.
                    let idle =
                        tokio::time::timeout(Duration::from_millis(500), self.wake.notified())
                            .await;
                    drop(idle);
                }
                Err(error) => {
                    tracing::error!(%error, "a replication round ended badly; it is repeated");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        self.end_round();
    }

    fn end_round(&self) {
        *self.round_ended.0.lock() += 1;
        self.round_ended.1.notify_all();
    }

    /// One round on a blocking thread. False when nothing was due.
    fn round(&self) -> bool {
        if self.shutdown.is_triggered() {
            return false;
        }
        let result = match self.take_batch() {
            Ok(batch) if batch.is_empty() => return self.verify_some(),
            Ok(batch) => {
                let result = self.send_batch(&batch);
                let mut window = self.window.lock();
                for (root, _) in &batch {
                    window.known.remove(root);
                }
                result
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::error!(%error, "the queue cannot be worked on; it is tried again");
            self.rescan.store(true, Ordering::Release);
            self.end_round();
            return false;
        }
        self.end_round();
        true
    }

    /// Due contents, the newly committed first, then the queue's by risk.
    fn take_batch(&self) -> Result<Vec<(Cid, ContentRecord)>, ReplicationError> {
        if self.window.lock().due.is_empty() && self.rescan.swap(false, Ordering::AcqRel) {
            self.fill_window()?;
        }
        let roots: Vec<Cid> = {
            let mut window = self.window.lock();
            let count = window.due.len().min(BATCH);
            window.due.drain(..count).collect()
        };
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut back = Vec::new();
        for root in roots {
            match self.namespace.content(&root)? {
                Some(record) if batch.is_empty() || bytes + record.size <= BATCH_BYTES => {
                    bytes += record.size;
                    batch.push((root, record));
                }
                Some(_) => back.push(root),
                None => drop(self.window.lock().known.remove(&root)),
            }
        }
        let mut window = self.window.lock();
        for root in back.into_iter().rev() {
            window.due.push_front(root);
        }
        Ok(batch)
    }

    fn fill_window(&self) -> Result<(), ReplicationError> {
        let now = self.clock.now();
        let hurry = self.hurry.swap(false, Ordering::AcqRel);
        let (mut after, mut risky, mut others, mut waiting) = (None, Vec::new(), Vec::new(), false);
        'pages: loop {
            let page = self.namespace.queue_page(after.as_ref(), 1024)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (root, row) in page {
                if !hurry && row.not_before > now {
                    waiting = true;
                    continue;
                }
                match self.namespace.content(&root)? {
                    Some(record) if record.pin == PinState::BelowMin => {
                        risky.push((row.since, root))
                    }
                    _ => others.push((row.since, root)),
                }
                if risky.len() + others.len() >= WINDOW {
                    self.rescan.store(true, Ordering::Release);
                    break 'pages;
                }
            }
        }
        risky.sort();
        others.sort();
        let mut window = self.window.lock();
        for (_, root) in risky.into_iter().chain(others) {
            if window.known.insert(root) {
                window.due.push_back(root);
            }
        }
        if waiting {
            self.rescan.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn send_batch(&self, batch: &[(Cid, ContentRecord)]) -> Result<(), ReplicationError> {
        let candidates = self.registry.candidates();
        let mut plan: BTreeMap<BackendId, Vec<&(Cid, ContentRecord)>> = BTreeMap::new();
        for content in batch {
            let held = domains(&content.1.copies, &|id| self.registry.domain_of(id));
            for id in choose(&content.0, content.1.target, &held, &candidates) {
                plan.entry(id).or_default().push(content);
            }
        }
        // Healing of the local copy (after a recovery, or a lost disk).
        for (root, record) in batch {
            let here = record.good_copies().any(|copy| copy.backend.is_local());
            if !here && record.good_copies().next().is_some() {
                if let Err(error) = self.fetch_all(root) {
                    tracing::warn!(%error, cid = %root, "a content cannot be brought here");
                }
            }
        }
        let outcomes = Mutex::new(Outcomes::new());
        std::thread::scope(|scope| {
            for (id, contents) in &plan {
                let outcomes = &outcomes;
                scope.spawn(move || self.send_to(id, contents, outcomes));
            }
        });
        let outcomes = outcomes.into_inner();
        let now = self.clock.now();
        let roots: Vec<Cid> = batch.iter().map(|(root, _)| *root).collect();
        let places = self.registry.places_now();
        let configured = self.registry.places_configured();
        let mut again = false;
        self.namespace.update_contents(&roots, &mut |root, record, row| {
            let mut error = String::new();
            for (backend, outcome) in outcomes.get(root).into_iter().flatten() {
                match outcome {
                    Ok(()) => self.add_copy(
                        record,
                        backend,
                        CopyState::Claimed,
                        VerifyMethod::Written,
                        now,
                    ),
                    Err(reason) => error = format!("{backend}: {reason}"),
                }
            }
            record.pin = self.judge(record.min, record.target, record.max, &record.copies);
            // Every place that is configured has it: more is asked for when one
            // is added (`replan`).
            let covered = self.distinct(&record.copies) >= configured && error.is_empty();
            if record.pin >= PinState::AtTarget || covered {
                *row = None;
                return;
            }
            if error.is_empty() {
                error =
                    format!("{places} distinct places are in reach, {} are wanted", record.target);
            }
            let attempts = row.as_ref().map_or(0, |row| row.attempts) + 1;
            let pause = self.pause(attempts);
            let since = row.as_ref().map_or(now, |row| row.since);
            *row = Some(QueueRecord {
                since,
                attempts,
                not_before: plus(now, pause),
                last_error: error,
            });
            again = true;
        })?;
        if again {
            self.rescan.store(true, Ordering::Release);
        }
        let mut window = self.window.lock();
        for (root, sent) in &outcomes {
            for (backend, outcome) in sent {
                if outcome.is_ok() && window.unverified.len() < WINDOW {
                    window.unverified.push_back((*root, backend.clone()));
                }
            }
        }
        Ok(())
    }

    fn pause(&self, attempts: u32) -> Duration {
        let (first, longest) = self.options.backoff;
        let bound = first.saturating_mul(1 << attempts.min(16)).min(longest);
        bound.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn sender<'s>(&'s self, backend: &'s Arc<dyn crate::backends::Backend>) -> Sender<'s> {
        Sender {
            backend,
            bridge: &self.bridge,
            fetcher: &self.fetcher,
            deadline: self.options.call_deadline,
        }
    }

    fn send_to(
        &self,
        id: &BackendId,
        contents: &[&(Cid, ContentRecord)],
        outcomes: &Mutex<Outcomes>,
    ) {
        let Some(backend) = self.registry.get(id) else { return };
        let sender = self.sender(&backend);
        let (single, dags): (Vec<&&(Cid, ContentRecord)>, Vec<_>) = contents
            .iter()
            .partition(|(_, record)| record.blocks == 1 && !is_corrupt_at(record, id));
        let singles: Vec<Cid> = single.iter().map(|(root, _)| *root).collect();
        let mut results: Vec<(Cid, u64, Result<(), ReplicationError>)> = Vec::new();
        match sender.send_single_blocks(&singles) {
            Ok(()) => {
                results.extend(single.iter().map(|(root, record)| (*root, record.size, Ok(()))))
            }
            // One of them failed the batch: each is sent by itself to find which.
            Err(ReplicationError::Backend(error))
                if error.kind != crate::backends::ErrorKind::Invalid =>
            {
                self.registry.failed(id, &error);
                let text = error.message;
                results.extend(single.iter().map(|(root, record)| {
                    (
                        *root,
                        record.size,
                        Err(ReplicationError::Io(std::io::Error::other(text.clone()))),
                    )
                }));
            }
            Err(_) => {
                for (root, record) in single {
                    results.push((*root, record.size, sender.send_single_blocks(&[*root])));
                }
            }
        }
        for (root, record) in dags {
            let result =
                if is_corrupt_at(record, id) { sender.repair(root) } else { sender.send_dag(root) };
            results.push((*root, record.size, result));
        }
        let mut outcomes = outcomes.lock();
        for (root, size, result) in results {
            let outcome = match result {
                Ok(()) => {
                    self.registry.succeeded(id, None);
                    self.bytes_sent.fetch_add(size, Ordering::Relaxed);
                    telemetry::metrics().replication_contents_sent.inc();
                    Ok(())
                }
                Err(error) => {
                    telemetry::metrics().replication_rounds_failed.inc();
                    if let ReplicationError::Backend(backend_error) = &error {
                        self.registry.failed(id, backend_error);
                    }
                    Err(error.to_string())
                }
            };
            outcomes.entry(root).or_default().push((id.clone(), outcome));
        }
    }

    /// Reads some sent contents back. Runs when nothing is due to be sent.
    fn verify_some(&self) -> bool {
        let batch: Vec<(Cid, BackendId)> = {
            let mut window = self.window.lock();
            let count = window.unverified.len().min(BATCH);
            window.unverified.drain(..count).collect()
        };
        if batch.is_empty() {
            return false;
        }
        let mut verdicts: BTreeMap<Cid, Vec<(BackendId, bool)>> = BTreeMap::new();
        for (root, id) in &batch {
            if self.shutdown.is_triggered() {
                return false;
            }
            let Some(backend) = self.registry.get(id) else { continue };
            match self.sender(&backend).verify(root) {
                Ok(good) => verdicts.entry(*root).or_default().push((id.clone(), good)),
                Err(ReplicationError::Backend(error)) => self.registry.failed(id, &error),
                Err(error) => {
                    tracing::warn!(%error, cid = %root, backend = %id, "a copy cannot be read back")
                }
            }
        }
        let now = self.clock.now();
        let roots: Vec<Cid> = verdicts.keys().copied().collect();
        let recorded = self.namespace.update_contents(&roots, &mut |root, record, row| {
            for (backend, good) in verdicts.get(root).into_iter().flatten() {
                let state = if *good { CopyState::Verified } else { CopyState::Corrupt };
                self.add_copy(record, backend, state, VerifyMethod::ReadBack, now);
                if !*good {
                    tracing::error!(cid = %root, backend = %backend, "a copy is corrupt; it is sent again");
                    *row = Some(QueueRecord {
                        since: now,
                        attempts: 0,
                        not_before: Timestamp::default(),
                        last_error: format!("{backend}: the copy read back wrong"),
                    });
                    self.rescan.store(true, Ordering::Release);
                }
            }
        });
        if let Err(error) = recorded {
            tracing::error!(%error, "verified copies cannot be recorded");
        }
        self.end_round();
        true
    }

    async fn probe(self: Arc<Self>) {
        let mut rounds = 0u32;
        while !self.shutdown.is_triggered() {
            for (spec, backend) in self.registry.to_probe(rounds.is_multiple_of(6)) {
                let back = match backend {
                    Some(backend) => match backend.probe().await {
                        Ok(()) => {
                            if let Ok(usage) = backend.usage().await {
                                self.registry.set_usage(&spec.id, usage);
                            }
                            self.registry.succeeded(&spec.id, None)
                        }
                        Err(error) if error.kind == crate::backends::ErrorKind::Unavailable => {
                            self.registry.failed(&spec.id, &error);
                            // A disk that was mounted again is another directory: open it anew.
                            self.reopen(&spec).await
                        }
                        Err(error) => {
                            self.registry.failed(&spec.id, &error);
                            false
                        }
                    },
                    None => self.reopen(&spec).await,
                };
                if back {
                    self.hurry.store(true, Ordering::Release);
                    self.rescan.store(true, Ordering::Release);
                    self.wake.notify_waiters();
                    self.wake.notify_one();
                }
            }
            rounds += 1;
            let mut waited = Duration::ZERO;
            while waited < self.options.probe_interval && !self.shutdown.is_triggered() {
                tokio::time::sleep(Duration::from_millis(250)).await;
                waited += Duration::from_millis(250);
            }
        }
    }

    async fn reopen(&self, spec: &crate::backends::BackendSpec) -> bool {
        let wanted = spec.clone();
        let opened =
            self.bridge.spawn_blocking(move || crate::backends::open(&wanted, false)).await;
        match opened {
            Ok(Ok(backend)) => {
                let wrapped = crate::backends::wrap::standard(backend, self.options.call_deadline);
                self.registry.succeeded(&spec.id, Some(wrapped))
            }
            Ok(Err(error)) => {
                self.registry.failed(&spec.id, &error);
                false
            }
            Err(error) => {
                let error = BackendError::new(crate::backends::ErrorKind::Other, error.to_string());
                self.registry.failed(&spec.id, &error);
                false
            }
        }
    }
}

fn is_corrupt_at(record: &ContentRecord, backend: &BackendId) -> bool {
    record.copies.iter().any(|copy| copy.backend == *backend && copy.state == CopyState::Corrupt)
}

fn plus(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_nanos(
        time.as_nanos().saturating_add(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX)),
    )
}
