//! Collection on backends: what nothing needs any more goes, and nothing else.
//!
//! One pass over one backend:
//!
//! 1. From now on it is remembered what is put there or asked for ([`Tracker`]);
//!    files of the metadata that are on their way are waited for.
//! 2. A mark of everything that lives: contents with references (but for copies
//!    there that were given up and can go), all that is in hand, and what the names
//!    of this volume there lead to. A node that cannot be read ends it.
//! 3. A checkpoint without what is dead becomes whole there.
//! 4. Copies that were given up go, each after its own proof, asked just before
//!    each batch.
//! 5. All blocks are listed; an error ends it. What is not marked is condemned, or,
//!    where an earlier mark at least the grace period ago condemned it, deleted:
//!    nodes before what they link to, in batches, each only while this life of the
//!    volume holds its claim and no other volume lies there.
//!
//! A content that is wanted again meanwhile is seen: its row is looked at in the
//! transaction that takes the copy out of it, before its root goes.

mod condemned;
mod mark;
mod sweep;
mod tracker;

pub use self::condemned::Condemned;
pub use self::mark::Mark;
pub use self::tracker::Tracker;

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::sweep::Sweep;
use super::checkpointer::{Checkpointer, name_prefix};
use super::core::Core;
use super::event_files;
use super::files::Source;
use super::machine::Content;
use super::{ReplicationError, Replicator, executor};
use crate::backends::{Backend, ErrorKind};
use crate::content::{inline_block, parse_node};
use crate::metadata::checkpoint::Manifest;
use crate::metadata::{ContentRecord, CopyState};
use crate::runtime::failpoint;
use crate::types::{BackendId, Cid, VolumeId, cid};

/// Blocks on a page of a listing.
const PAGE: usize = 1000;
/// Contents with a copy to collect that one pass takes up; the others stay marked.
const RELEASED_MOST: usize = 4096;
/// How long files of the metadata on their way are waited for.
const QUIET: Duration = Duration::from_secs(30);
/// How long the checkpoint is waited for.
const CHECKPOINT: Duration = Duration::from_mins(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// What a pass over one backend found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Blocks that were listed.
    pub listed_blocks: u64,
    /// Their bytes.
    pub listed_bytes: u64,
    /// Blocks of them that nothing needs.
    pub dead_blocks: u64,
    /// Their bytes.
    pub dead_bytes: u64,
    /// Blocks whose grace period is over.
    pub due_blocks: u64,
    /// Their bytes.
    pub due_bytes: u64,
    /// Blocks that were deleted, those of copies that were given up among them.
    pub deleted_blocks: u64,
    /// Their bytes (of copies that were given up: as their contents say).
    pub deleted_bytes: u64,
    /// Blocks that are needed again, or were asked for meanwhile.
    pub kept_blocks: u64,
    /// Copies that were given up and are gone now.
    pub released_copies: u64,
    /// Copies that were given up and stay: others lack a fresh proof.
    pub waiting_copies: u64,
    /// When the next block's grace period is over, in seconds since 1970.
    pub next_due_s: Option<i64>,
    /// More is dead than one pass takes up.
    pub more: bool,
}

/// Whether a pass deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectMode {
    /// It looks only, and says what would go with such a grace period.
    Look(Duration),
    /// It condemns, and deletes what was condemned at least so long ago.
    Delete(Duration),
}

/// Collects garbage on backends.
pub struct BackendCollector {
    core: Arc<Core>,
    checkpointer: Arc<Checkpointer>,
    /// Has the lists of what is condemned.
    dir: PathBuf,
    volume: VolumeId,
}

/// What a pass works with.
struct Pass<'p> {
    core: &'p Core,
    id: &'p BackendId,
    backend: Arc<dyn Backend>,
    tracker: &'p Tracker,
    checkpointer: &'p Checkpointer,
    volume: VolumeId,
}

impl BackendCollector {
    /// For the backends of a volume; `dir` keeps what is condemned.
    #[must_use]
    pub fn new(
        replicator: &Replicator,
        checkpointer: Arc<Checkpointer>,
        dir: PathBuf,
        volume: VolumeId,
    ) -> Self {
        Self { core: Arc::clone(&replicator.core), checkpointer, dir, volume }
    }

    /// One pass over a backend.
    ///
    /// # Errors
    /// `NotCollected` with the reason; of the backend, the metadata, or a node that
    /// cannot be read: then nothing more is deleted. `Fenced`, `ShuttingDown`.
    pub fn collect(
        &self,
        id: &BackendId,
        mode: CollectMode,
    ) -> Result<Collected, ReplicationError> {
        let core = &*self.core;
        let no = |reason: &str| ReplicationError::NotCollected {
            id: id.clone(),
            reason: reason.to_owned(),
        };
        let backend = core.registry.get(id).ok_or_else(|| no("it is not in reach"))?;
        let tracker = core.registry.tracker(id).ok_or_else(|| no("it is not in reach"))?;
        let pass = Pass {
            core,
            id,
            backend,
            tracker: &tracker,
            checkpointer: &self.checkpointer,
            volume: self.volume,
        };
        pass.refuse(mode)?;
        let _watch = tracker.watch().ok_or_else(|| no("another collection runs there"))?;
        pass.until_quiet()?;
        failpoint::reach("collect.begun");
        let (mut mark, released) = pass.mark()?;
        failpoint::reach("collect.marked");
        let mut report = Collected::default();
        let grace = match mode {
            CollectMode::Delete(grace) => grace,
            CollectMode::Look(grace) => {
                pass.look_at_released(&mut mark, &released, &mut report)?;
                pass.survey(&mut mark, &self.known(id), grace, &mut report)?;
                return Ok(report);
            }
        };
        pass.hold()?;
        pass.write_checkpoint()?;
        failpoint::reach("collect.checkpointed");
        let mut sweep = Sweep { pass: &pass, mark: &mut mark };
        sweep.released(&released, &mut report)?;
        let known = self.known(id);
        let (due, mut keep) = pass.survey(&mut mark, &known, grace, &mut report)?;
        failpoint::reach("collect.listed");
        let now_s = core.clock.now().seconds;
        // Before anything goes: a crash amid it begins no grace period anew.
        let mut all = due.clone();
        all.append(&mut keep.clone());
        condemned::store(&self.dir, id, &all, now_s)?;
        failpoint::reach("collect.condemned");
        let mut sweep = Sweep { pass: &pass, mark: &mut mark };
        // A copy is whole while its root is there.
        for node in keep.iter().filter(|block| block.cid.codec() == cid::DAG_PB) {
            sweep.keep(&node.cid)?;
        }
        let left = sweep.delete(due, None, &mut report)?;
        keep.extend(left);
        condemned::store(&self.dir, id, &keep, now_s)?;
        failpoint::reach("collect.compacting");
        pass.compact()?;
        if mark.is_full() {
            tracing::warn!(backend = %id, "the mark is full: a part of what is dead stays");
        }
        Ok(report)
    }

    /// When the last pass over a backend wrote what it condemned, in seconds since
    /// 1970.
    #[must_use]
    pub fn last_pass_s(&self, id: &BackendId) -> Option<i64> {
        condemned::written_s(&self.dir, id)
    }

    fn known(&self, id: &BackendId) -> HashMap<[u8; 32], i64> {
        let all = condemned::load(&self.dir, id).unwrap_or_else(|error| {
            tracing::warn!(backend = %id, %error, "the list of what is condemned cannot be read: the grace period begins anew");
            Vec::new()
        });
        condemned::by_block(all)
    }
}

impl Pass<'_> {
    fn source(&self) -> Source<'_> {
        Source { backend: &self.backend, bridge: &self.core.calls.bridge }
    }

    fn no(&self, reason: impl Into<String>) -> ReplicationError {
        ReplicationError::NotCollected { id: self.id.clone(), reason: reason.into() }
    }

    fn check_running(&self) -> Result<(), ReplicationError> {
        if self.core.is_stopped() { Err(ReplicationError::ShuttingDown) } else { Ok(()) }
    }

    /// What was deleted gives its room back, where that is work of its own.
    fn compact(&self) -> Result<(), ReplicationError> {
        loop {
            self.hold()?;
            if !self.core.calls.wait(self.backend.compact())? {
                return Ok(());
            }
        }
    }

    /// What rules a pass out from the start.
    fn refuse(&self, mode: CollectMode) -> Result<(), ReplicationError> {
        let can = self.backend.capabilities();
        let others_write = {
            let fleet = self.core.registry.fleet().read();
            fleet.get(self.id).is_some_and(|member| !member.settings.collect)
        };
        if others_write {
            return Err(self.no("`collect=0` in its URL says so"));
        }
        if !can.list || !can.delete {
            return Err(self.no("it cannot list or delete blocks"));
        }
        let set_so = {
            let fleet = self.core.registry.fleet().read();
            fleet.get(self.id).is_some_and(|member| member.record.read_only)
        };
        if matches!(mode, CollectMode::Delete(_)) && (can.read_only || set_so) {
            return Err(self.no("it is read-only"));
        }
        if let Some(why) = self.checkpointer.refusal_of(self.id) {
            return Err(self.no(why));
        }
        self.refuse_others()
    }

    /// Another volume's blocks are not known here.
    fn refuse_others(&self) -> Result<(), ReplicationError> {
        let names = self.source().call(self.backend.names("volumes/"))?;
        let own = self.volume.to_string();
        let other = names.iter().find_map(|(name, _)| {
            name.split('/').nth(1).filter(|volume| *volume != own).map(str::to_owned)
        });
        match other {
            None => Ok(()),
            Some(other) => Err(self.no(format!(
                "volume {other} has its data there, too, and what that one needs is not known \
                 here: give each volume a folder or bucket of its own to get space back"
            ))),
        }
    }

    /// This life may still change the place, and no other volume came there.
    fn hold(&self) -> Result<(), ReplicationError> {
        self.check_running()?;
        self.checkpointer.fence().hold(self.id, &self.source())?;
        self.refuse_others()
    }

    fn until_quiet(&self) -> Result<(), ReplicationError> {
        let start = Instant::now();
        while !self.tracker.is_quiet() {
            self.check_running()?;
            if start.elapsed() >= QUIET {
                return Err(self.no("the metadata is on its way there all the time; try again"));
            }
            self.core.calls.pause(LOOK);
        }
        Ok(())
    }

    /// Waits until the newest checkpoint there names nothing that the mark found dead.
    fn write_checkpoint(&self) -> Result<(), ReplicationError> {
        let sequence = self.checkpointer.write_local()?;
        let start = Instant::now();
        while self.checkpointer.held_by(self.id) < sequence {
            self.check_running()?;
            if let Some(why) = self.checkpointer.refusal_of(self.id) {
                return Err(self.no(why));
            }
            if start.elapsed() >= CHECKPOINT {
                return Err(self.no("its newest checkpoint still leads to what would go"));
            }
            self.core.calls.pause(LOOK);
        }
        Ok(())
    }

    /// Everything that lives there, and the contents whose copy there was given up
    /// and can go now.
    fn mark(&self) -> Result<(Mark, Vec<(Cid, ContentRecord)>), ReplicationError> {
        let namespace = &self.core.namespace;
        let stats = namespace.stats();
        let blocks = stats.pins.saturating_mul(2).saturating_add(stats.bytes >> 18);
        let mut mark = Mark::new(blocks);
        self.mark_names(&mut mark)?;
        let in_hand: HashSet<Cid> =
            self.core.machine.lanes().lock().all_in_hand().into_iter().collect();
        for root in &in_hand {
            self.mark_content(&mut mark, root)?;
        }
        for (_, staged) in namespace.staged()? {
            if let Some(base) = staged.base {
                self.mark_content(&mut mark, &base)?;
            }
        }
        let (mut released, mut outcome) = (Vec::new(), Ok(()));
        namespace.each_content(&mut |root, record| {
            if record.refs == 0 {
                return ControlFlow::Continue(());
            }
            let given_up = record
                .copies
                .iter()
                .any(|copy| copy.backend == *self.id && copy.state == CopyState::Released);
            if given_up && !in_hand.contains(root) && released.len() < RELEASED_MOST {
                released.push((*root, record.clone()));
            } else {
                outcome = self.mark_content(&mut mark, root);
            }
            if outcome.is_ok() && self.core.is_stopped() {
                outcome = Err(ReplicationError::ShuttingDown);
            }
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        outcome?;
        Ok((mark, released))
    }

    fn mark_content(&self, mark: &mut Mark, root: &Cid) -> Result<(), ReplicationError> {
        mark.content(root, false, &mut |id| self.core.fetcher.block(id).map(Some))
    }

    /// Whether a block that is there stays; then all below it is marked. A node that
    /// is marked by chance (the mark is a Bloom filter) is known by what it links
    /// to: that of a node that lives is marked, too.
    fn is_needed(&self, mark: &mut Mark, id: &Cid) -> Result<bool, ReplicationError> {
        let is_node = id.codec() == cid::DAG_PB;
        if self.tracker.is_touched(id) {
            if is_node && !mark.is_walked(id) {
                self.keep(mark, id)?;
            }
            return Ok(true);
        }
        if !mark.contains(id) {
            return Ok(false);
        }
        if !is_node || mark.is_walked(id) {
            return Ok(true);
        }
        Ok(self.links(id)?.iter().all(|child| mark.contains(child)))
    }

    /// What a node links to; nothing when the place has no good bytes of it: nobody
    /// comes to anything through it.
    fn links(&self, id: &Cid) -> Result<Vec<Cid>, ReplicationError> {
        let data = match self.core.fetcher.here(id)? {
            Some(data) => data,
            None => match self.source().block(id) {
                Ok(data) => data,
                Err(ReplicationError::Backend(error))
                    if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Corrupt) =>
                {
                    return Ok(Vec::new());
                }
                Err(error) => return Err(error),
            },
        };
        let links = parse_node(id, &data).map(|node| node.children()).unwrap_or_default();
        Ok(links.into_iter().filter(|child| inline_block(child).is_none()).collect())
    }

    /// All below a node that stays there is needed, too.
    fn keep(&self, mark: &mut Mark, id: &Cid) -> Result<(), ReplicationError> {
        let source = self.source();
        mark.content(id, false, &mut |id| match self.core.fetcher.here(id)? {
            Some(data) => Ok(Some(data)),
            None => source.block(id).map(Some),
        })
    }

    /// What the volume's names there lead to: checkpoints and event files.
    fn mark_names(&self, mark: &mut Mark) -> Result<(), ReplicationError> {
        let source = self.source();
        let lost = |what: &str, error: &dyn std::fmt::Display| {
            self.no(format!("{what} there does not lead to what it should: {error}"))
        };
        let mut files: HashMap<Cid, String> = HashMap::new();
        for (name, id) in source.call(self.backend.names(&name_prefix(&self.volume)))? {
            mark.block(&id);
            let block = source.block(&id).map_err(|error| lost(&name, &error))?;
            for file in Manifest::decode(&block).map_err(|error| lost(&name, &error))?.files() {
                let root = file.cid.parse().map_err(|error| lost(&name, &error))?;
                files.insert(root, name.clone());
            }
        }
        let events = source.call(self.backend.names(&event_files::prefix(&self.volume)))?;
        files.extend(events.into_iter().map(|(name, id)| (id, name)));
        for (root, name) in files {
            self.check_running()?;
            mark.content(&root, false, &mut |id| source.block(id).map(Some))
                .map_err(|error| lost(&name, &error))?;
        }
        Ok(())
    }

    /// Copies that were given up and cannot go yet are needed.
    fn look_at_released(
        &self,
        mark: &mut Mark,
        released: &[(Cid, ContentRecord)],
        report: &mut Collected,
    ) -> Result<(), ReplicationError> {
        for (root, _) in released {
            if self.may_collect(root)? {
                report.released_copies += 1;
            } else {
                self.mark_content(mark, root)?;
                report.waiting_copies += 1;
            }
        }
        Ok(())
    }

    /// Lists all; what is dead and due, and what is dead and not.
    fn survey(
        &self,
        mark: &mut Mark,
        known: &HashMap<[u8; 32], i64>,
        grace: Duration,
        report: &mut Collected,
    ) -> Result<(Vec<Condemned>, Vec<Condemned>), ReplicationError> {
        let now_s = self.core.clock.now().seconds;
        let grace_s = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let (mut due, mut keep) = (Vec::new(), Vec::new());
        let mut from: Option<String> = None;
        loop {
            self.check_running()?;
            let page = self.core.calls.wait(self.backend.list(from.as_deref(), PAGE))?;
            for (cid, bytes) in page.blocks {
                report.listed_blocks += 1;
                report.listed_bytes += bytes;
                if self.is_needed(mark, &cid)? {
                    continue;
                }
                report.dead_blocks += 1;
                report.dead_bytes += bytes;
                // A time to come is of a clock that was set back.
                let since = known.get(&condemned::key(&cid)).copied().filter(|at| *at <= now_s);
                let block = Condemned { cid, bytes, since_s: since.unwrap_or(now_s) };
                if since.is_some_and(|since| now_s.saturating_sub(since) >= grace_s) {
                    report.due_blocks += 1;
                    report.due_bytes += bytes;
                    due.push(block);
                } else if due.len() + keep.len() < condemned::MOST {
                    let at = block.since_s.saturating_add(grace_s);
                    report.next_due_s = Some(report.next_due_s.map_or(at, |next| next.min(at)));
                    keep.push(block);
                } else {
                    report.more = true;
                    self.keep(mark, &cid)?;
                }
            }
            match page.next {
                None => return Ok((due, keep)),
                Some(next) if from.as_ref() == Some(&next) => {
                    return Err(self.no("its listing does not go on"));
                }
                Some(next) => from = Some(next),
            }
        }
    }

    /// Whether the copy of a content that was given up may be deleted now.
    fn may_collect(&self, root: &Cid) -> Result<bool, ReplicationError> {
        let Some(record) = self.core.namespace.content(root)? else { return Ok(false) };
        let confirmed = executor::confirm(self.core, self.id, root)?;
        let (places, policy) = (self.core.registry.places(), self.core.machine.policy_of(&record));
        let content = Content { root, record: &record, policy: &policy };
        let given_up = record
            .copies
            .iter()
            .any(|copy| copy.backend == *self.id && copy.state == CopyState::Released);
        let moment = self.core.machine.moment(&places);
        Ok(given_up && content.may_collect(self.id, &confirmed, &moment))
    }
}
