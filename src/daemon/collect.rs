//! Gives the bytes of removed and overwritten files back to the local disk.
//!
//! A collection marks what lives and reclaims the rest of the local store; what lies
//! on backends is `gc`'s. Order: the store begins (what is committed from here on
//! is kept by its guard), one snapshot of the contents is marked, a checkpoint
//! that says the same becomes durable locally, rows without references go,
//! blocks go. So a content's bytes leave only after the newest checkpoint has
//! let go of it, and a crash anywhere leaves garbage at worst.
//!
//! A node that cannot be read ends the collection: what lies below it is not
//! known, so nothing is known to be dead.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::volume::{Volume, failed};
use crate::api::Failure;
use crate::config::ReplicationConfig;
use crate::content::ContentError;
use crate::metadata::{ContentRecord, EventKind, Namespace};
use crate::replication::{Checkpointer, Events, Mark, Replicator};
use crate::runtime::{Clock, Shutdown, failpoint};
use crate::store::{CollectReport, LocalStore, MarkSet, StoreError};
use crate::telemetry;
use crate::types::{BackendId, ByteSize, Cid};

/// Roots removed in one step.
const ROOTS_MAX: usize = 1024;
/// How often it is asked whether a collection is due.
const LOOK: Duration = Duration::from_secs(1);
/// Between two collections because of a full disk or of many bytes given up.
const REST: Duration = Duration::from_secs(10);
/// Between two because of a full disk.
const REST_FULL: Duration = Duration::from_secs(2);

/// Seconds for which contents that nobody has are remembered: two passes over a
/// backend and their grace period, and a week for one that is away.
fn trash_s(config: &ReplicationConfig) -> i64 {
    let passes = config.collect_interval_s.saturating_add(config.collect_grace_s) * 2;
    i64::try_from(passes.saturating_add(7 * 86_400)).unwrap_or(i64::MAX)
}

/// What a collection works on.
pub(super) struct Collector {
    namespace: Arc<Namespace>,
    store: Arc<LocalStore>,
    replicator: Arc<Replicator>,
    checkpointer: Arc<Checkpointer>,
    events: Events,
    shutdown: Shutdown,
    clock: Arc<dyn Clock>,
    interval: Duration,
    bytes: u64,
    /// How long a content that nobody has is remembered while it lies elsewhere.
    keep_s: i64,
}

/// Why a mark ended early.
enum Stop {
    Shutdown,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<ContentError> for Stop {
    fn from(error: ContentError) -> Self {
        Self::Failed(failed(error))
    }
}

impl Collector {
    pub fn new(volume: &Volume, shutdown: Shutdown) -> Self {
        let config = &volume.config.store;
        Self {
            namespace: Arc::clone(&volume.namespace),
            store: Arc::clone(&volume.store),
            replicator: Arc::clone(&volume.replicator),
            checkpointer: Arc::clone(&volume.checkpointer),
            events: volume.events.clone(),
            shutdown,
            clock: Arc::clone(&volume.clock),
            interval: Duration::from_secs(config.collect_interval_s.max(1)),
            bytes: config.collect_bytes.0.max(1),
            keep_s: trash_s(&volume.config.replication),
        }
    }

    /// Starts the thread, which ends with the volume.
    pub fn start(self) -> std::io::Result<()> {
        std::thread::Builder::new()
            .name("cairn-collect".into())
            .spawn(move || self.work())
            .map(drop)
    }

    fn work(self) {
        let (mut last, mut released, mut more) = (Instant::now(), 0, false);
        while !self.shutdown.wait(LOOK.min(self.interval)) {
            let now = self.namespace.released_bytes() + self.store.aside_bytes();
            let (since, given_up) = (last.elapsed(), now - released);
            let due = since >= self.interval
                || (since >= REST && (more || given_up >= self.bytes))
                || (since >= REST_FULL && (more || given_up > 0) && self.is_short(given_up))
                || (since >= REST_FULL && given_up > 0 && self.is_cache_full());
            if !due {
                continue;
            }
            more = false;
            match self.collect() {
                Ok(Some(report)) => {
                    tracing::info!(
                        blocks = report.blocks_removed,
                        freed_bytes = report.bytes_freed,
                        segments = report.segments_removed,
                        moved_bytes = report.bytes_moved,
                        "collected"
                    );
                    if report.blocks_removed > 0 {
                        let (blocks, bytes) = (report.blocks_removed, ByteSize(report.bytes_freed));
                        let detail = format!("{blocks} blocks, {bytes} given back to the disk");
                        let local = BackendId::local();
                        self.events.emit_at(EventKind::BlockCollected, &local, "store", &detail);
                    }
                    let metrics = telemetry::metrics();
                    metrics.store_collections.inc();
                    metrics.store_freed_bytes.inc_by(report.bytes_freed);
                    (released, more) = (now, report.more);
                }
                Ok(None) => {}
                Err(failure) => {
                    released = now;
                    let local = BackendId::local();
                    let why = failure.to_string();
                    self.events.emit_at(EventKind::CollectionAborted, &local, "store", &why);
                    tracing::warn!(error = %failure, "nothing more was collected; it is tried again");
                }
            }
            last = Instant::now();
        }
    }

    /// What was given up goes before what a cache could still use.
    fn is_cache_full(&self) -> bool {
        self.store.excess().is_ok_and(|excess| excess > 0)
    }

    /// Less than a tenth, or than 1 GiB of a large disk, is left; or what was
    /// given up is as much.
    fn is_short(&self, given_up: u64) -> bool {
        self.store.usage().is_ok_and(|usage| {
            let little = (usage.capacity_bytes / 10).min(1 << 30);
            usage.available_bytes < little || given_up >= little
        })
    }

    /// One collection; `None` when long work holds it off or the end has begun.
    pub fn collect(&self) -> Result<Option<CollectReport>, Failure> {
        let Some(collection) = self.store.begin_collection() else { return Ok(None) };
        failpoint::reach("daemon.collect.begun");
        let marks = match self.mark() {
            Ok(marks) => marks,
            Err(Stop::Shutdown) => return Ok(None),
            Err(Stop::Failed(failure)) => return Err(failure),
        };
        failpoint::reach("daemon.collect.marked");
        self.checkpointer.write_local().map_err(failed)?;
        failpoint::reach("daemon.collect.checkpointed");
        self.remove_rows()?;
        failpoint::reach("daemon.collect.rows_removed");
        // The end has begun: all lives, so the rest goes quickly.
        let live = |id: &Cid| marks.contains(id) || self.shutdown.is_triggered();
        let mut persist =
            || self.namespace.engine().persist().map_err(|e| StoreError::Index(e.to_string()));
        collection.run(&live, &mut persist).map(Some).map_err(failed)
    }

    /// Blocks and bytes of the local store that nothing refers to.
    pub fn survey(&self) -> Result<(u64, u64), Failure> {
        match self.mark() {
            Ok(marks) => self.store.unreferenced(&|id| marks.contains(id)).map_err(failed),
            Err(Stop::Shutdown) => Ok((0, 0)),
            Err(Stop::Failed(failure)) => Err(failure),
        }
    }

    /// Everything that a content with references leads to.
    fn mark(&self) -> Result<MarkSet, Stop> {
        let stats = self.namespace.stats();
        let blocks = stats.pins.saturating_mul(2).saturating_add(stats.bytes >> 18);
        let mut mark = Mark::new(blocks);
        // Their base is the inode's content; named all the same, in case it is not.
        for (_, staged) in self.namespace.staged().map_err(failed)? {
            if let Some(base) = staged.base {
                // In a cache a part of it is here, as of any content.
                let cached = self.store.budget().is_some();
                let record = if cached { self.namespace.content(&base) } else { Ok(None) };
                self.mark_content(&mut mark, &base, record.map_err(failed)?.as_ref())?;
            }
        }
        let mut outcome = Ok(());
        let scanned = self.namespace.each_content(&mut |root, record| {
            if record.refs > 0 {
                outcome = self.mark_content(&mut mark, root, Some(record));
            }
            if outcome.is_ok() && self.shutdown.is_triggered() {
                outcome = Err(Stop::Shutdown);
            }
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        scanned.map_err(failed)?;
        outcome?;
        if mark.is_full() {
            tracing::warn!("the mark is full: a part of what is dead stays");
        }
        Ok(mark.into_marks())
    }

    fn mark_content(
        &self,
        mark: &mut Mark,
        root: &Cid,
        record: Option<&ContentRecord>,
    ) -> Result<(), Stop> {
        // Where the copy that counts lies elsewhere, what is here is a part of it.
        let partial = record.is_some_and(|record| {
            let mut good = record.good_copies().peekable();
            good.peek().is_some() && good.all(|copy| !copy.backend.is_local())
        });
        mark.content(root, partial, &mut |id| {
            if self.shutdown.is_triggered() {
                return Err(Stop::Shutdown);
            }
            if partial && let Ok(here) = self.store.get(id) {
                return Ok(here);
            }
            Ok(Some(self.replicator.fetch(id).map_err(failed)?))
        })
    }

    fn remove_rows(&self) -> Result<(), Failure> {
        let now_s = self.clock.now().seconds;
        let times = (now_s, now_s.saturating_sub(self.keep_s));
        let mut roots = Vec::new();
        let mut outcome = Ok(());
        let scanned = self.namespace.each_content(&mut |root, record| {
            if record.refs == 0 {
                roots.push(*root);
            }
            if roots.len() >= ROOTS_MAX {
                outcome = self.namespace.remove_unreferenced(&roots, times).map(drop);
                roots.clear();
            }
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        scanned.map_err(failed)?;
        outcome.map_err(failed)?;
        self.namespace.remove_unreferenced(&roots, times).map_err(failed).map(drop)
    }
}
