//! Lets go of what a local store that is a cache has too much of.
//!
//! A pass chooses the contents that were not used for longest, among those that
//! enough distinct, readable places were lately proven to have. It marks what all
//! others lead to: a block that one of them has, too, stays. Then the places are
//! asked, and the rows are looked at again in one transaction, as for a release; what
//! is refused there is marked as well. What is left goes as by any collection of the
//! store: what is committed meanwhile is kept by its guard, entries leave the index
//! before bytes go, and a crash leaves a block or its absence, and an index that is
//! right. Of a large content as many leaves go as are wanted, those that came first;
//! nodes go last, with the rest.
//!
//! Memory: the victims (at most [`BLOCKS_MAX`]) and the mark.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use super::collect::Mark;
use super::core::Core;
use super::machine::{Content, Dirty};
use super::{ReplicationError, Replicator};
use crate::backends::Presence;
use crate::content::{inline_block, parse_node};
use crate::metadata::ContentRecord;
use crate::runtime::failpoint;
use crate::store::{CollectReport, LocalStore, Location, StoreError};
use crate::telemetry;
use crate::types::{BackendId, Cid, Timestamp, cid};

/// Contents that one pass may let go of.
const ROOTS_MAX: usize = 16_384;
/// Blocks that one pass may let go of (some 100 bytes each while it runs).
const BLOCKS_MAX: usize = 131_072;
/// Contents whose copies are read back because of one pass.
const PROOFS_MAX: usize = 256;
/// A content up to this size goes whole.
const SMALL: u64 = 4 << 20;
/// Roots that a place is asked about in one call.
const ASKED_AT_ONCE: usize = 512;

/// What a cache has, as its last look found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheState {
    /// When, in seconds since 1970.
    pub at_s: i64,
    /// Bytes of contents that may go, those that are here in part counted whole.
    pub evictable_bytes: u64,
    /// Bytes of contents that fewer places than their policy's min have.
    pub waits_for_copies_bytes: u64,
    /// Bytes of contents whose copies were not read back lately, or cannot be now.
    pub waits_for_proof_bytes: u64,
    /// Something should go and nothing may.
    pub stuck: bool,
}

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Bytes that should have gone.
    pub wanted: u64,
    /// Blocks that are not here any more.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Another pass now lets go of more.
    pub more: bool,
}

/// Makes room in a local store that is a cache.
pub struct Evictor {
    core: Arc<Core>,
    store: Arc<LocalStore>,
    state: Mutex<CacheState>,
    /// A part of a content was not enough: the next pass takes whole ones.
    whole: Mutex<bool>,
}

/// By age; the youngest is dropped first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Aged {
    last_used_us: u64,
    root: Cid,
}

/// The oldest of many.
struct Oldest {
    heap: BinaryHeap<Aged>,
    most: usize,
}

impl Oldest {
    fn new(most: usize) -> Self {
        Self { heap: BinaryHeap::new(), most }
    }

    fn offer(&mut self, aged: Aged) {
        self.heap.push(aged);
        if self.heap.len() > self.most {
            self.heap.pop();
        }
    }

    fn sorted(self) -> Vec<Cid> {
        self.heap.into_sorted_vec().into_iter().map(|aged| aged.root).collect()
    }
}

/// What the look at all contents found.
struct Survey {
    state: CacheState,
    /// May go by their rows, the oldest first.
    clean: Vec<Cid>,
    /// Lack proofs only, the oldest first.
    unproven: Vec<Cid>,
}

/// What is to go.
#[derive(Default)]
struct Chosen {
    roots: HashSet<Cid>,
    victims: HashSet<Cid>,
    bytes: u64,
    /// The last content goes in part.
    partly: bool,
}

/// What a content has here.
#[derive(Default)]
struct Held {
    leaves: Vec<(Location, Cid)>,
    nodes: Vec<(Location, Cid)>,
}

impl Held {
    fn bytes(&self) -> u64 {
        self.leaves.iter().chain(&self.nodes).map(|(place, _)| u64::from(place.len)).sum()
    }
}

impl Evictor {
    /// Of this volume's local store.
    #[must_use]
    pub fn new(replicator: &Replicator, store: Arc<LocalStore>) -> Self {
        let core = Arc::clone(&replicator.core);
        Self { core, store, state: Mutex::default(), whole: Mutex::new(false) }
    }

    /// What the last look found.
    #[must_use]
    pub fn state(&self) -> CacheState {
        *self.state.lock()
    }

    /// Looks at what the cache has, and lets go of nothing.
    ///
    /// # Errors
    /// Of the metadata and the store.
    pub fn look(&self) -> Result<CacheState, ReplicationError> {
        let found = self.survey()?.state;
        let mut state = self.state.lock();
        *state = CacheState { stuck: state.stuck, ..found };
        Ok(*state)
    }

    /// Lets go of what is too much, as far as it may go; asks for proofs of the rest.
    /// `None` beside a hold of the store.
    ///
    /// # Errors
    /// A node that cannot be read ends it; of the metadata and the store. Nothing, or
    /// a part of what may go, is gone then.
    pub fn pass(&self) -> Result<Option<Evicted>, ReplicationError> {
        let wanted = self.store.excess()?;
        if wanted == 0 || !self.core.registry.is_local_cache() {
            self.settle(CacheState { stuck: false, ..self.state() });
            return Ok(Some(Evicted::default()));
        }
        self.store.sync_kept()?;
        // What is written from here on is kept by its guard.
        let Some(collection) = self.store.begin_collection() else {
            self.settle(CacheState { stuck: true, ..self.state() });
            return Ok(None);
        };
        failpoint::reach("replication.evict.begun");
        let survey = self.survey()?;
        let mut chosen = self.choose(&survey.clean, wanted)?;
        let mut report = CollectReport::default();
        if !chosen.victims.is_empty() {
            let mut mark = self.mark(&chosen.roots)?;
            let allowed = self.decide(&chosen.roots)?;
            failpoint::reach("replication.evict.decided");
            for refused in chosen.roots.difference(&allowed) {
                self.mark_content(&mut mark, refused, true)?;
            }
            chosen.victims.retain(|id| !mark.contains(id));
            let stopped = || self.core.is_stopped();
            let live = |id: &Cid| stopped() || !chosen.victims.contains(id);
            let mut persist = || {
                let persisted = self.core.namespace.engine().persist();
                persisted.map_err(|e| StoreError::Index(e.to_string()))
            };
            report = collection.run(&live, &mut persist)?;
            self.store.recount()?;
        }
        telemetry::metrics().store_cache_evicted_bytes.inc_by(report.bytes_removed);
        *self.whole.lock() = chosen.partly && report.bytes_removed < chosen.bytes / 2;
        let left = wanted.saturating_sub(report.bytes_freed);
        if left > 0 {
            self.ask_for_proofs(&survey.unproven, left)?;
        }
        let gone = report.blocks_removed > 0 || report.segments_removed > 0;
        self.settle(CacheState { stuck: !gone && !report.more, ..survey.state });
        Ok(Some(Evicted {
            wanted,
            blocks: report.blocks_removed,
            bytes: report.bytes_removed,
            more: report.more || (gone && left > 0),
        }))
    }

    fn settle(&self, state: CacheState) {
        *self.state.lock() = state;
        self.store.looked(state.stuck);
    }

    /// Sorts the contents that have something here.
    fn survey(&self) -> Result<Survey, ReplicationError> {
        let machine = &self.core.machine;
        let places = machine.places();
        let moment = machine.moment(&places);
        let mut busy: HashSet<Cid> = machine.lanes().lock().all_in_hand().into_iter().collect();
        let staged = self.core.namespace.staged()?;
        busy.extend(staged.into_iter().filter_map(|(_, staged)| staged.base));
        let (mut clean, mut unproven) = (Oldest::new(ROOTS_MAX), Oldest::new(PROOFS_MAX));
        let mut state = CacheState { at_s: moment.now.seconds, ..CacheState::default() };
        let mut outcome = Ok(());
        self.core.namespace.each_content(&mut |root, record| {
            if record.refs == 0 || inline_block(root).is_some() {
                return ControlFlow::Continue(());
            }
            let last_used_us = match self.store.last_used(root) {
                Ok(Some(last)) => last,
                Ok(None) => return ControlFlow::Continue(()),
                Err(error) => {
                    outcome = Err(error.into());
                    return ControlFlow::Break(());
                }
            };
            let policy = machine.policy_of(record);
            let aged = Aged { last_used_us, root: *root };
            let bytes = record.stored_bytes();
            match (Content { root, record, policy: &policy }).dirty(&moment) {
                None => {
                    state.evictable_bytes += bytes;
                    if !busy.contains(root) {
                        clean.offer(aged);
                    }
                }
                Some(Dirty::Copies) => state.waits_for_copies_bytes += bytes,
                Some(Dirty::Proof) => {
                    state.waits_for_proof_bytes += bytes;
                    unproven.offer(aged);
                }
            }
            if self.core.is_stopped() {
                outcome = Err(ReplicationError::ShuttingDown);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        outcome?;
        Ok(Survey { state, clean: clean.sorted(), unproven: unproven.sorted() })
    }

    /// Takes what is wanted from the oldest.
    fn choose(&self, clean: &[Cid], wanted: u64) -> Result<Chosen, ReplicationError> {
        let mut chosen = Chosen::default();
        let whole = *self.whole.lock();
        for root in clean {
            if chosen.bytes >= wanted || chosen.victims.len() >= BLOCKS_MAX {
                break;
            }
            let mut held = self.held(root)?;
            let (bytes, left) = (held.bytes(), wanted - chosen.bytes);
            let room = BLOCKS_MAX - chosen.victims.len();
            chosen.roots.insert(*root);
            if held.leaves.len() <= room && (bytes <= left.max(SMALL) || whole) {
                chosen.bytes += bytes;
                chosen.victims.extend(held.leaves.iter().chain(&held.nodes).map(|(_, id)| *id));
                continue;
            }
            held.leaves.sort_by_key(|(place, _)| (place.segment, place.offset));
            for (place, id) in held.leaves.into_iter().take(room) {
                if chosen.bytes >= wanted {
                    break;
                }
                chosen.bytes += u64::from(place.len);
                chosen.victims.insert(id);
            }
            chosen.partly = true;
            break;
        }
        Ok(chosen)
    }

    /// The blocks of a content that are here, by the nodes that are here.
    fn held(&self, root: &Cid) -> Result<Held, ReplicationError> {
        let mut held = Held::default();
        let (mut stack, mut seen) = (vec![*root], HashSet::new());
        while let Some(id) = stack.pop() {
            if inline_block(&id).is_some() || !seen.insert(id) {
                continue;
            }
            let Some(place) = self.store.locate(&id)? else { continue };
            if id.codec() != cid::DAG_PB {
                if held.leaves.len() <= BLOCKS_MAX {
                    held.leaves.push((place, id));
                }
                continue;
            }
            held.nodes.push((place, id));
            if let Some(data) = self.core.fetcher.here(&id)? {
                stack.extend(parse_node(&id, &data).map_err(std::io::Error::other)?.children());
            }
        }
        Ok(held)
    }

    /// All that other contents lead to.
    fn mark(&self, chosen: &HashSet<Cid>) -> Result<Mark, ReplicationError> {
        let namespace = &self.core.namespace;
        let stats = namespace.stats();
        let mut mark = Mark::new(stats.pins.saturating_add(stats.bytes >> 18));
        for (_, staged) in namespace.staged()? {
            if let Some(base) = staged.base {
                self.mark_content(&mut mark, &base, true)?;
            }
        }
        let mut outcome = Ok(());
        namespace.each_content(&mut |root, record| {
            if record.refs > 0 && !chosen.contains(root) {
                // What only is here is known whole, or nothing goes.
                let elsewhere = record.good_copies().next().is_some();
                outcome = self.mark_content(&mut mark, root, elsewhere);
            }
            if outcome.is_ok() && self.core.is_stopped() {
                outcome = Err(ReplicationError::ShuttingDown);
            }
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        outcome?;
        Ok(mark)
    }

    /// `partial`: below a node that is not here nothing is looked for.
    fn mark_content(
        &self,
        mark: &mut Mark,
        root: &Cid,
        partial: bool,
    ) -> Result<(), ReplicationError> {
        mark.content(root, partial, &mut |id| {
            if partial && let Ok(here) = self.store.get(id) {
                return Ok(here);
            }
            self.core.fetcher.block(id).map(Some)
        })
    }

    /// Those that may go: their places were asked just now, and the rows say so in one
    /// transaction.
    fn decide(&self, roots: &HashSet<Cid>) -> Result<HashSet<Cid>, ReplicationError> {
        let core = &self.core;
        let places = core.machine.places();
        let moment = core.machine.moment(&places);
        let mut witnesses: HashMap<BackendId, Vec<Cid>> = HashMap::new();
        let mut confirmed: HashMap<Cid, Vec<BackendId>> = HashMap::new();
        for root in roots {
            let Some(record) = core.namespace.content(root)? else { continue };
            let policy = core.machine.policy_of(&record);
            for id in (Content { root, record: &record, policy: &policy }).witnesses(&moment) {
                witnesses.entry(id).or_default().push(*root);
            }
            confirmed.insert(*root, Vec::new());
        }
        for (id, asked) in witnesses {
            let Some((backend, down)) = core.registry.until_down(&id) else { continue };
            let calls = core.calls.until(down);
            for some in asked.chunks(ASKED_AT_ONCE) {
                let answers = match calls.wait(backend.presence(some)) {
                    Ok(answers) => answers,
                    Err(ReplicationError::ShuttingDown) => {
                        return Err(ReplicationError::ShuttingDown);
                    }
                    Err(ReplicationError::Backend(error)) => {
                        core.registry.failed(&id, &error);
                        break;
                    }
                    Err(_) => break,
                };
                for (root, answer) in some.iter().zip(answers) {
                    if let (Presence::Present(_), Some(by)) = (answer, confirmed.get_mut(root)) {
                        by.push(id.clone());
                    }
                }
            }
        }
        Ok(core.machine.may_evict(&confirmed)?)
    }

    /// Has copies read back that keep the oldest from going.
    fn ask_for_proofs(&self, unproven: &[Cid], wanted: u64) -> Result<(), ReplicationError> {
        let core = &self.core;
        let mut bytes = 0;
        for root in unproven {
            if bytes >= wanted {
                break;
            }
            let Some(record) = core.namespace.content(root)?.filter(|record| record.refs > 0)
            else {
                continue;
            };
            bytes += ContentRecord::stored_bytes(&record);
            if !core.machine.lanes().lock().is_busy(root) {
                core.machine.prove_to_evict(root, &record);
            }
        }
        core.workers.ring();
        Ok(())
    }
}

impl CacheState {
    /// When it was found.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        Timestamp { seconds: self.at_s, nanoseconds: 0 }
    }
}
