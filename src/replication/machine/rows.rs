//! The core and the rows of contents and queue.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use super::lanes::Task;
use super::outcome::{Outcome, apply};
use super::places::{Candidate, Standing};
use super::planner::{Content, Job, Moment, Plan, Verdict, plan};
use super::time::{apart, plus, since};
use super::{Machine, Places};
use crate::backends::Scrub;
use crate::metadata::{
    ContentRecord, CopyRecord, CopyState, MetadataError, QueueRecord, Risk, TryRecord,
};
use crate::types::{BackendId, Cid, Timestamp};

/// Roots that are planned between two looks at the rest.
const PLANNED_AT_ONCE: usize = 512;
/// For so long a content that was cancelled is left alone.
pub(super) const CANCELLED_FOR: Duration = Duration::from_hours(24);
/// Rows of one page of a scan.
const PAGE: usize = 1024;

/// A look at all contents: in pages, between other work.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// Asked for since the last one began.
    wanted: bool,
    running: bool,
    after: Option<Cid>,
    /// When the last one ended.
    ended: Option<Timestamp>,
}

/// What became of the work at one place, as the row of the queue keeps it.
pub(in crate::replication) struct Tried<'t> {
    id: &'t BackendId,
    error: Option<String>,
    /// Nothing is tried there again for a while.
    pause: bool,
    /// The copy there was read back and is good.
    proven: bool,
}

/// The user wants no round for it now. A clock that went back ends it, too.
pub(super) fn is_cancelled(row: &QueueRecord, now: Timestamp) -> bool {
    row.cancelled && row.not_before > now && since(now, row.not_before) <= CANCELLED_FOR
}

impl Machine {
    /// Every content is looked at again, soon.
    pub fn request_sweep(&self) {
        self.sweep.lock().wanted = true;
    }

    /// Whether every content was looked at since that was last asked for.
    #[must_use]
    pub fn is_swept(&self) -> bool {
        let sweep = self.sweep.lock();
        !sweep.wanted && !sweep.running
    }

    /// What is to be done for a content, by its row.
    #[must_use]
    pub fn plan(&self, root: &Cid, record: &ContentRecord, moment: &Moment<'_>) -> Verdict {
        let policy = self.policy_of(record);
        plan(&Content { root, record, policy: &policy }, moment)
    }

    pub(super) fn plan_due(&self) -> Result<(), MetadataError> {
        let roots = self.lanes.lock().take_incoming(PLANNED_AT_ONCE);
        self.plan_all(&roots)?;
        let start = self.clock.now();
        let Some(hurry) = self.lanes.lock().begin_scan(start) else { return Ok(()) };
        let scanned = self.scan(hurry);
        let now = self.clock.now();
        let mut lanes = self.lanes.lock();
        lanes.end_scan(now, since(start, now), *scanned.as_ref().unwrap_or(&false));
        if scanned.is_err() {
            lanes.request_scan(hurry);
        }
        scanned.map(drop)
    }

    fn plan_all(&self, roots: &[Cid]) -> Result<(), MetadataError> {
        if roots.is_empty() {
            return Ok(());
        }
        let places = self.places();
        let mut settled = Vec::new();
        for root in roots {
            if !self.plan_one(root, &places, false)? {
                settled.push(*root);
            }
        }
        self.settle_all(&settled)
    }

    /// Puts a content into lanes; false when there is nothing to be done for it. A place
    /// where it failed just now is left alone for a while, unless there is a `hurry`. One
    /// that is asked for does not wait, and has its aged copies audited.
    fn plan_one(&self, root: &Cid, places: &Places, hurry: bool) -> Result<bool, MetadataError> {
        let Some(record) = self.namespace.content(root)? else { return Ok(true) };
        if record.refs == 0 {
            return Ok(true);
        }
        let row = self.namespace.queue_row(root)?;
        if row.as_ref().is_some_and(|row| is_cancelled(row, self.clock.now())) {
            return Ok(true);
        }
        let moment = self.moment(places);
        let verdict = self.plan(root, &record, &moment);
        let (mut jobs, planned) = match verdict.plan {
            Plan::Act(jobs) => (jobs, true),
            Plan::Satisfied | Plan::Stuck(_) => (Vec::new(), false),
        };
        let asked = self.is_asked_for(root);
        if let Some(row) = row.as_ref().filter(|_| !hurry && !asked)
            && let Some(later) = self.withhold(&mut jobs, row, moment.now)
        {
            self.lanes.lock().due_at(later);
        }
        if asked {
            let policy = self.policy_of(&record);
            let content = Content { root, record: &record, policy: &policy };
            for id in content.aged(self.options.dedup_proof, &moment) {
                if jobs.iter().all(|(place, _)| *place != id) {
                    jobs.push((id, Job::Audit));
                }
            }
        }
        if !jobs.is_empty() {
            self.assign(root, &record, Risk::of(&record, row.as_ref()), jobs, places);
        }
        Ok(planned)
    }

    /// Takes the work out that failed at its place just now; until when the first of it
    /// waits.
    fn withhold(
        &self,
        jobs: &mut Vec<(BackendId, Job)>,
        row: &QueueRecord,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let mut first: Option<Timestamp> = None;
        jobs.retain(|(id, _)| {
            let until = self.waits_until(row, id, now);
            first = first.into_iter().chain(until).min();
            until.is_none()
        });
        first
    }

    /// Until when nothing is tried for a content at a place that failed. A clock that went
    /// back ends it.
    #[must_use]
    pub fn waits_until(
        &self,
        row: &QueueRecord,
        id: &BackendId,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let until = row.tried(id)?.not_before;
        (until > now && since(now, until) <= self.options.backoff.1).then_some(until)
    }

    /// Whether somebody asked for it since it was last planned. What is in hand is
    /// planned again after that.
    fn is_asked_for(&self, root: &Cid) -> bool {
        let mut asked = self.asked.lock();
        !asked.is_empty() && self.lanes.lock().in_hand(root) == 0 && asked.remove(root)
    }

    /// Has copies of a content read back whose proofs are too old to stand for one
    /// that is to be collected.
    pub(in crate::replication) fn prove_others(&self, root: &Cid, record: &ContentRecord) {
        let (places, policy) = (self.places(), self.policy_of(record));
        let content = Content { root, record, policy: &policy };
        let unproven = content.unproven(&self.moment(&places));
        let jobs = unproven.into_iter().map(|id| (id, Job::Verify)).collect();
        self.assign(root, record, Risk::of(record, None), jobs, &places);
    }

    /// Of these contents, whose places in the map were just asked and have theirs: those
    /// that a cache may let go of by the rows as they are now.
    pub(in crate::replication) fn may_evict(
        &self,
        confirmed: &HashMap<Cid, Vec<BackendId>>,
    ) -> Result<HashSet<Cid>, MetadataError> {
        let roots: Vec<Cid> = confirmed.keys().copied().collect();
        let places = self.places();
        let moment = self.moment(&places);
        let mut may = HashSet::new();
        let _one = self.recording.lock();
        self.namespace.update_contents(&roots, &mut |root, record, _| {
            let policy = self.policy_of(record);
            let content = Content { root, record, policy: &policy };
            let by = confirmed.get(root).map_or(&[][..], Vec::as_slice);
            if record.refs > 0 && content.may_evict(Some(by), &moment) {
                may.insert(*root);
            } else {
                may.remove(root);
            }
        })?;
        Ok(may)
    }

    /// Has as many copies of a content read back as a cache needs to let go of it.
    pub(in crate::replication) fn prove_to_evict(&self, root: &Cid, record: &ContentRecord) {
        let (places, policy) = (self.places(), self.policy_of(record));
        let content = Content { root, record, policy: &policy };
        let jobs: Vec<_> = content
            .proofs_to_evict(&self.moment(&places))
            .into_iter()
            .map(|id| (id, Job::Verify))
            .collect();
        if !jobs.is_empty() {
            self.assign(root, record, Risk::of(record, None), jobs, &places);
        }
    }

    fn assign(
        &self,
        root: &Cid,
        record: &ContentRecord,
        risk: Risk,
        jobs: Vec<(BackendId, Job)>,
        places: &Places,
    ) {
        let bytes = record.stored_bytes();
        let held = |id: &BackendId| places.get(id).is_some_and(|place| place.paused);
        let jobs = jobs.into_iter().filter(|(id, _)| !held(id));
        let tasks: Vec<(BackendId, Task)> =
            jobs.map(|(id, job)| (id, Task { root: *root, bytes, job })).collect();
        self.lanes.lock().assign(risk, &tasks);
    }

    /// Looks through the durable rows and takes up the riskiest that are due.
    /// Memory: as many roots as a lane has room for. True when some were left out.
    fn scan(&self, hurry: bool) -> Result<bool, MetadataError> {
        let (places, room, now) = (self.places(), self.lanes.lock().room(), self.clock.now());
        let moment = self.moment(&places);
        // The last to be sent on top, to be dropped first.
        let mut due: BinaryHeap<(Risk, Cid)> = BinaryHeap::new();
        let (mut after, mut incomplete) = (None, false);
        loop {
            let page = self.namespace.queue_page(after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            let mut settled = Vec::new();
            for (root, row) in page {
                if self.is_stopped() {
                    return Ok(false);
                }
                if self.lanes.lock().is_busy(&root) {
                    continue;
                }
                if (!hurry && row.not_before > now) || is_cancelled(&row, now) {
                    self.lanes.lock().due_at(row.not_before);
                    continue;
                }
                let Some(record) = self.namespace.content(&root)? else { continue };
                let verdict = self.plan(&root, &record, &moment);
                match verdict.plan {
                    Plan::Satisfied => settled.push(root),
                    Plan::Stuck(reason) if row.last_error != reason => settled.push(root),
                    Plan::Stuck(_) => {}
                    Plan::Act(mut jobs) => {
                        let later = (!hurry).then(|| self.withhold(&mut jobs, &row, now)).flatten();
                        if let Some(later) = later {
                            self.lanes.lock().due_at(later);
                        }
                        if !jobs.is_empty() {
                            due.push((Risk::of(&record, Some(&row)), root));
                        }
                    }
                }
                if due.len() > room {
                    due.pop();
                    incomplete = true;
                }
            }
            self.settle_all(&settled)?;
        }
        for (_, root) in due.into_sorted_vec() {
            self.plan_one(&root, &places, hurry)?;
        }
        Ok(incomplete)
    }

    /// A page of the look at all contents, when one is due: rows and pins are
    /// brought in line with the places as they are now. True when there is more.
    pub(super) fn sweep_some(&self) -> Result<bool, MetadataError> {
        let now = self.clock.now();
        let after = {
            let mut sweep = self.sweep.lock();
            if !sweep.running {
                let late = sweep.ended.is_none_or(|ended| {
                    ended > now || since(ended, now) >= self.options.check_interval
                });
                if !sweep.wanted && !late {
                    return Ok(false);
                }
                sweep.wanted = false;
                sweep.running = true;
                sweep.after = None;
            }
            sweep.after
        };
        let page = self.namespace.contents_page(after.as_ref(), PAGE)?;
        let places = self.places();
        let moment = self.moment(&places);
        let mut changed = Vec::new();
        let mut newest: HashMap<&BackendId, Timestamp> = HashMap::new();
        for (root, record) in &page {
            for copy in &record.copies {
                let at = newest.entry(&copy.backend).or_insert(copy.at);
                *at = copy.at.max(*at);
            }
            if record.refs == 0 {
                continue;
            }
            self.note_proofs(root, record, &places);
            if self.lanes.lock().is_busy(root) {
                continue;
            }
            let verdict = self.plan(root, record, &moment);
            if verdict.pin != record.pin || verdict.plan != Plan::Satisfied {
                changed.push(*root);
            }
        }
        {
            let mut fleet = self.fleet.write();
            newest.iter().for_each(|(id, at)| fleet.proven(id, *at));
        }
        self.settle_all(&changed)?;
        // Rows that were there already are the scan's; new ones are found by it.
        if !changed.is_empty() {
            self.lanes.lock().request_scan(false);
        }
        let mut sweep = self.sweep.lock();
        sweep.after = page.last().map(|(root, _)| *root);
        if sweep.after.is_none() {
            sweep.running = false;
            sweep.ended = Some(now);
        }
        Ok(sweep.running)
    }

    /// Records what became of these contents at one place, in one transaction.
    /// What is decided is decided from the rows as they are now, so results of
    /// several places and new commits come in any order. `seen` gets each content's
    /// copy there as it was, and the record as it is, perhaps again after a conflict.
    ///
    /// # Errors
    /// Of the metadata: nothing is recorded then, and the work is repeated.
    pub fn record(
        &self,
        id: &BackendId,
        outcomes: &[(Cid, Outcome)],
        seen: &mut dyn FnMut(&Cid, Option<CopyState>, &ContentRecord),
    ) -> Result<(), MetadataError> {
        if outcomes.is_empty() {
            return Ok(());
        }
        let by_root: HashMap<&Cid, &Outcome> = outcomes.iter().map(|(root, o)| (root, o)).collect();
        let roots: Vec<Cid> = outcomes.iter().map(|(root, _)| *root).collect();
        let places = self.places();
        // Proofs are counted from when their place is trusted: that is written before them.
        self.save_backends()?;
        let moment = self.moment(&places);
        let known = places.get(id).is_some_and(Candidate::holds_copies);
        let mut first_due: Option<Timestamp> = None;
        let mut due: HashMap<Cid, bool> = HashMap::new();
        let mut outproved: HashSet<Cid> = HashSet::new();
        let fresh = self.options.dedup_proof.min(self.options.scrub_period);
        {
            let _one = self.recording.lock();
            self.namespace.update_contents(&roots, &mut |root, record, row| {
                let Some(outcome) = by_root.get(root) else { return };
                let policy = self.policy_of(record);
                let held = |copy: &&CopyRecord| copy.backend == *id;
                let before = record.copies.iter().find(held).map(|copy| copy.state);
                // A full proof that is not old says more than an audit does.
                let less = **outcome == Outcome::Audited
                    && record.copies.iter().find(held).is_some_and(|copy| {
                        let standing = moment.places.standing(copy);
                        standing.is_some_and(|(_, standing)| standing == Standing::Good)
                            && copy.is_proven()
                            && apart(copy.at, moment.now) < fresh
                    });
                if less {
                    outproved.insert(*root);
                } else {
                    outproved.remove(root);
                }
                let mut refused = false;
                if known && !less {
                    let applied = apply(root, record, &policy, (id, outcome), &moment);
                    refused = !applied && matches!(outcome, Outcome::Released(_));
                }
                let error = match outcome {
                    Outcome::Failed(reason) => Some(format!("{id}: {reason}")),
                    Outcome::Bad(_) => Some(format!("{id}: the copy read back wrong")),
                    Outcome::Released(_) if refused => {
                        Some(format!("{id}: the copy stays, too few others could be confirmed"))
                    }
                    Outcome::Stored(..)
                    | Outcome::Verified(_)
                    | Outcome::Audited
                    | Outcome::Released(_) => None,
                };
                // A copy that is still bad is looked at ever more seldom.
                let still_bad = matches!(outcome, Outcome::Bad(_))
                    && matches!(before, Some(CopyState::Corrupt | CopyState::Lost));
                let pause = refused || still_bad || matches!(outcome, Outcome::Failed(_));
                let proven = matches!(outcome, Outcome::Verified(_));
                self.settle(root, record, row, &moment, Some(Tried { id, error, pause, proven }));
                seen(root, before, record);
                let waits = row.as_ref().map(|row| row.not_before).filter(|at| *at > moment.now);
                if let Some(until) = waits {
                    first_due = Some(first_due.map_or(until, |first| first.min(until)));
                }
                due.insert(*root, row.is_some() && waits.is_none());
            })?;
            // What follows from a result (the next tier, a release) does not wait.
            let mut lanes = self.lanes.lock();
            for (root, _) in outcomes {
                lanes.follows(root, due.get(root).copied().unwrap_or(false));
            }
        }
        self.tell_watchers(id, outcomes);
        {
            let mut fleet = self.fleet.write();
            fleet.proven(id, moment.now);
            let read = |(_, outcome): &(Cid, Outcome)| {
                matches!(outcome, Outcome::Verified(_) | Outcome::Audited | Outcome::Bad(_))
            };
            if outcomes.iter().any(read) {
                fleet.read(id);
            }
        }
        let audits = places.get(id).is_some_and(|place| place.settings.scrub == Scrub::Audit);
        let mut proofs = self.proofs.lock();
        for (root, outcome) in outcomes {
            if matches!(outcome, Outcome::Stored(CopyState::Claimed, _))
                || (*outcome == Outcome::Audited && !audits && !outproved.contains(root))
            {
                proofs.add(id, root);
            }
        }
        drop(proofs);
        let mut lanes = self.lanes.lock();
        if let Some(due) = first_due {
            lanes.due_at(due);
        }
        Ok(())
    }

    /// Brings a record's numbers, pin and queue row in line with its policies and copies,
    /// and with what was just tried at a place. After a failure nothing is tried there for
    /// a while; the row waits only when there is no work elsewhere.
    pub(in crate::replication) fn settle(
        &self,
        root: &Cid,
        record: &mut ContentRecord,
        row: &mut Option<QueueRecord>,
        moment: &Moment<'_>,
        tried: Option<Tried<'_>>,
    ) {
        let policy = self.policy_of(record);
        (record.min, record.target, record.max) = (policy.min, policy.target, policy.max);
        let verdict = self.plan(root, record, moment);
        record.pin = verdict.pin;
        let (mut jobs, stuck) = match verdict.plan {
            Plan::Satisfied => {
                *row = None;
                return;
            }
            Plan::Stuck(reason) => (Vec::new(), Some(reason)),
            Plan::Act(jobs) => (jobs, None),
        };
        let now = moment.now;
        let row = row.get_or_insert_with(|| QueueRecord::new(now));
        let verified = u8::try_from(moment.places.verified(record, &policy));
        row.verified = verified.unwrap_or(u8::MAX).min(QueueRecord::NOT_COUNTED - 1);
        self.lanes.lock().reorder(root, Risk::of(record, Some(row)));
        if is_cancelled(row, now) {
            return;
        }
        row.cancelled = false;
        row.tries.retain(|one| moment.places.get(&one.backend).is_some());
        let paused = tried.and_then(|tried| self.note(row, tried, &jobs, now));
        if let Some(reason) = stuck.filter(|_| paused.is_none()) {
            row.last_error = reason;
        }
        if jobs.is_empty() {
            row.not_before = paused.unwrap_or(row.not_before);
        } else {
            let later = self.withhold(&mut jobs, row, now).filter(|_| jobs.is_empty());
            row.not_before = later.unwrap_or_default();
        }
    }

    /// Keeps what became of the work at a place; until when nothing is tried there.
    fn note(
        &self,
        row: &mut QueueRecord,
        tried: Tried<'_>,
        jobs: &[(BackendId, Job)],
        now: Timestamp,
    ) -> Option<Timestamp> {
        let Tried { id, error, pause, proven } = tried;
        // A proof that counts for nothing: the clock was set back.
        let again = proven && jobs.iter().any(|(at, job)| at == id && *job == Job::Verify);
        let known = row.tries.iter().position(|one| one.backend == *id);
        if let Some(error) = &error {
            row.last_error.clone_from(error);
        } else if !again && let Some(known) = known {
            // It went well there: others' failures are left to be told.
            row.tries.remove(known);
            let left = row.tries.iter().max_by_key(|one| one.not_before);
            row.last_error = left.map(|one| one.error.clone()).unwrap_or_default();
        }
        if !pause && !again {
            return None;
        }
        row.attempts = row.attempts.saturating_add(1);
        let known = known.unwrap_or_else(|| {
            if row.tries.len() >= QueueRecord::TRIES
                && let Some(first) = (0..row.tries.len()).min_by_key(|n| row.tries[*n].not_before)
            {
                row.tries.remove(first);
            }
            row.tries.push(TryRecord {
                backend: id.clone(),
                attempts: 0,
                not_before: now,
                error: String::new(),
            });
            row.tries.len() - 1
        });
        let one = row.tries.get_mut(known)?;
        one.attempts = one.attempts.saturating_add(1);
        one.not_before = plus(now, self.pause(one.attempts));
        one.error = error.unwrap_or_default();
        Some(one.not_before)
    }

    /// Rows of contents that nothing can be done for now say why; rows of
    /// satisfied ones go.
    pub(in crate::replication) fn settle_all(&self, roots: &[Cid]) -> Result<(), MetadataError> {
        if roots.is_empty() {
            return Ok(());
        }
        let places = self.places();
        let moment = self.moment(&places);
        let _one = self.recording.lock();
        self.namespace.update_contents(roots, &mut |root, record, row| {
            self.settle(root, record, row, &moment, None);
        })
    }
}
