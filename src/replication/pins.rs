//! What is shown of pins: each copy's state with its reason, lists of pins.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::explain::missing;
use super::machine::{
    CANCELLED, Candidate, Content, Job, Moment, Plan, Standing, Verdict, Work, plan,
};
use super::outlook::Seen;
use super::{ReplicationError, ReplicationStatus, Replicator};
use crate::metadata::{
    ContentRecord, CopyRecord, CopyState, PinOrder, PinRow, PinState, QueueRecord, VerifyMethod,
};
use crate::types::{BackendId, Cid, Timestamp};

/// Rows that one page looks at.
const EXAMINED: usize = 8192;
/// Of these, pins that are planned to know what is under way.
const PLANNED: usize = 1024;
/// Pins of a page at most.
const LIMIT: usize = 1000;

/// The state of a copy, there or to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyStatus {
    /// To be made; nobody has begun.
    Wanted,
    /// In the lane of its place.
    Queued,
    /// A worker has it.
    Sending,
    /// The place said yes.
    Claimed,
    /// Its bytes were read back and hashed.
    Verified,
    /// It counts again, or at all, when it was read back.
    Stale,
    /// Its bytes are wrong.
    Corrupt,
    /// It was there and is not any more.
    Lost,
    /// Good, at a place that is to leave.
    Draining,
    /// To be made, and cannot be now.
    Blocked,
}

/// What is shown of one copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownCopy {
    /// Where; `None` where no place is left to choose.
    pub backend: Option<BackendId>,
    /// State.
    pub state: CopyStatus,
    /// Since when that is known, of a copy that is or was there.
    pub at: Option<Timestamp>,
    /// And how.
    pub method: Option<VerifyMethod>,
    /// Why, in words; may be empty.
    pub reason: String,
}

/// What pins are asked for by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinFilter {
    /// Where they stand against their policies.
    Pin(PinState),
    /// A copy that they have or should have.
    Copy(CopyStatus),
}

const PIN_STATES: [(&str, PinState); 4] = [
    ("below_min", PinState::BelowMin),
    ("below_target", PinState::BelowTarget),
    ("at_target", PinState::AtTarget),
    ("over_max", PinState::OverMax),
];
const COPY_STATES: [(&str, CopyStatus); 10] = [
    ("wanted", CopyStatus::Wanted),
    ("queued", CopyStatus::Queued),
    ("sending", CopyStatus::Sending),
    ("claimed", CopyStatus::Claimed),
    ("verified", CopyStatus::Verified),
    ("stale", CopyStatus::Stale),
    ("corrupt", CopyStatus::Corrupt),
    ("lost", CopyStatus::Lost),
    ("draining", CopyStatus::Draining),
    ("blocked", CopyStatus::Blocked),
];

impl FromStr for PinFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pin = PIN_STATES.iter().find(|(name, _)| *name == text).map(|(_, s)| Self::Pin(*s));
        let copy =
            || COPY_STATES.iter().find(|(name, _)| *name == text).map(|(_, s)| Self::Copy(*s));
        pin.or_else(copy).ok_or_else(|| {
            let pins = PIN_STATES.iter().map(|(name, _)| *name);
            let names: Vec<&str> = pins.chain(COPY_STATES.iter().map(|(name, _)| *name)).collect();
            format!("`{text}` is no state: there are {}", names.join(", "))
        })
    }
}

impl fmt::Display for CopyStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = COPY_STATES.iter().find(|(_, state)| state == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// Which pins are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PinQuery {
    /// Only in this state.
    pub state: Option<PinFilter>,
    /// Only with a copy there; with a copy's state, in that state there.
    pub backend: Option<BackendId>,
    /// Only with at least so many bytes.
    pub min_size: Option<u64>,
    /// And at most.
    pub max_size: Option<u64>,
    /// Only CIDs whose bytes are in this range.
    pub cids: Option<(Vec<u8>, Vec<u8>)>,
    /// At most so many.
    pub limit: usize,
    /// After this key.
    pub after: Option<Vec<u8>>,
}

/// A pin, as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct ShownPin {
    /// Root.
    #[serde(serialize_with = "text")]
    pub cid: Cid,
    /// Bytes a reader gets.
    pub size: u64,
    /// Files that have it.
    pub files: u64,
    /// Where it stands.
    pub pin: PinState,
    /// The same in the design's names.
    pub status: ReplicationStatus,
    /// Distinct copies that count.
    pub have: usize,
    /// And how many are wanted.
    pub target: usize,
    /// Its copies, those to come too.
    pub copies: Vec<ShownCopy>,
    /// What is missing and why; empty when nothing is.
    pub missing: String,
    /// Its row of the queue.
    pub queue: Option<ShownRow>,
}

/// What is shown of a row of the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownRow {
    /// When it was first asked for.
    pub since: Timestamp,
    /// Rounds that ended without the target.
    pub attempts: u32,
    /// Not tried before; `None`: it is due.
    pub next_try: Option<Timestamp>,
    /// The user wants no round for now.
    pub cancelled: bool,
    /// Why the last round failed or nothing can be done, in words; may be empty.
    pub reason: String,
    /// Seconds until all of it should be done; `None` when nobody can say.
    pub eta_s: Option<u64>,
    /// Backends that must come back, be let go on or be given room before that can be said.
    pub waits_for: Vec<BackendId>,
    /// What it waits for, in words; never empty.
    pub waits: String,
}

/// Rounded up.
pub(super) fn whole_seconds(time: Duration) -> Option<u64> {
    u64::try_from(time.as_millis().div_ceil(1000)).ok()
}

fn text<S: serde::Serializer>(cid: &Cid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(cid)
}

/// A page of them.
#[derive(Debug, Clone, Default)]
pub struct ShownPins {
    /// The pins.
    pub pins: Vec<ShownPin>,
    /// Rows that were looked at.
    pub examined: usize,
    /// The key to go on after; `None` at the end.
    pub next: Option<Vec<u8>>,
}

/// The state of every copy of a content that is there, was there, or is to be made.
/// What is not stored follows from plan, row and lanes.
#[must_use]
pub(super) fn copy_statuses(
    content: &Content<'_>,
    verdict: &Verdict,
    row: Option<&QueueRecord>,
    work: &[Work],
    moment: &Moment<'_>,
) -> Vec<ShownCopy> {
    let (jobs, stuck) = match &verdict.plan {
        Plan::Act(jobs) => (jobs.as_slice(), ""),
        Plan::Stuck(reason) => (&[][..], reason.as_str()),
        Plan::Satisfied => (&[][..], ""),
    };
    let target = usize::from(content.policy.target);
    let mut shown = Vec::new();
    for place in &moment.places.all {
        let copy = content.record.copies.iter().find(|copy| copy.backend == place.id);
        let standing = copy.and_then(|copy| Some((copy, moment.places.standing(copy)?.1)));
        let at_work = work.iter().find(|work| work.place == place.id);
        let job = at_work.map(|work| work.job);
        let job = job.or_else(|| jobs.iter().find(|(id, _)| *id == place.id).map(|(_, job)| *job));
        let (state, reason) = match standing {
            None | Some((_, Standing::Released)) => match job {
                None | Some(Job::Release) => continue,
                Some(_) => to_come(at_work, place, row, moment.now),
            },
            Some((copy, standing)) => there(copy, standing, job, place.draining, stuck),
        };
        let known = standing.filter(|(_, standing)| *standing != Standing::Released);
        shown.push(ShownCopy {
            backend: Some(place.id.clone()),
            state,
            at: known.map(|(copy, _)| copy.at),
            method: known.map(|(copy, _)| copy.method),
            reason,
        });
    }
    // No place is left to choose.
    let missing = if jobs.is_empty() { target.saturating_sub(verdict.copies) } else { 0 };
    for _ in 0..missing {
        let reason = match stuck {
            "" => "every place that counts has one: add a backend",
            reason => reason,
        };
        let reason = reason.to_owned();
        shown.push(ShownCopy {
            backend: None,
            state: CopyStatus::Blocked,
            at: None,
            method: None,
            reason,
        });
    }
    shown
}

/// Of a copy that is to be made.
fn to_come(
    at_work: Option<&Work>,
    place: &Candidate,
    row: Option<&QueueRecord>,
    now: Timestamp,
) -> (CopyStatus, String) {
    match at_work {
        Some(work) if work.in_hand => return (CopyStatus::Sending, String::new()),
        Some(_) => return (CopyStatus::Queued, String::new()),
        None => {}
    }
    if place.paused {
        return (CopyStatus::Blocked, "paused (`cairn queue resume`)".into());
    }
    let failed = row.and_then(|row| row.tried(&place.id)).filter(|one| one.not_before > now);
    if let Some(one) = failed.filter(|_| row.is_some_and(|row| !row.cancelled)) {
        return (CopyStatus::Blocked, one.error.clone());
    }
    match row.filter(|row| row.not_before > now) {
        Some(row) if row.cancelled => {
            (CopyStatus::Blocked, format!("{CANCELLED} (`cairn queue retry`)"))
        }
        Some(row) if !row.last_error.is_empty() => (CopyStatus::Blocked, row.last_error.clone()),
        _ => (CopyStatus::Wanted, String::new()),
    }
}

/// Of a copy that is or was there.
fn there(
    copy: &CopyRecord,
    standing: Standing,
    job: Option<Job>,
    draining: bool,
    stuck: &str,
) -> (CopyStatus, String) {
    let doing = match job {
        Some(Job::Verify) => "it is to be read back",
        Some(Job::Audit) => "it is to be audited",
        Some(Job::Send | Job::Repair) => "it is to be made again",
        Some(Job::Release) => "it is to be given up",
        None => "",
    };
    match (standing, copy.state) {
        (Standing::Stale, _) => {
            let text = "its place was away for too long: it counts again when it was read back";
            (CopyStatus::Stale, text.into())
        }
        (Standing::Uncounted, _) => {
            let text = "its place is away for too long, or does not survive a crash";
            (CopyStatus::Stale, text.into())
        }
        (_, CopyState::Corrupt) => (CopyStatus::Corrupt, doing.into()),
        (_, CopyState::Lost) => (CopyStatus::Lost, doing.into()),
        (_, CopyState::Claimed | CopyState::Verified | CopyState::Released) if draining => {
            let reason = if doing.is_empty() { stuck } else { doing };
            (CopyStatus::Draining, reason.into())
        }
        (_, CopyState::Verified) => (CopyStatus::Verified, doing.into()),
        (_, CopyState::Claimed | CopyState::Released) => (CopyStatus::Claimed, doing.into()),
    }
}

impl PinQuery {
    /// The index that finds them best.
    fn order(&self) -> PinOrder {
        use CopyStatus as Copy;
        if let Some((from, to)) = &self.cids {
            return PinOrder::ByCid(from.clone(), to.clone());
        }
        match self.state {
            Some(PinFilter::Pin(PinState::AtTarget)) | None => PinOrder::all(),
            Some(PinFilter::Pin(state)) => PinOrder::InState(state),
            Some(PinFilter::Copy(state)) => match state {
                Copy::Queued | Copy::Sending => PinOrder::Waiting,
                Copy::Wanted | Copy::Blocked => PinOrder::ByRisk,
                Copy::Corrupt => PinOrder::Damaged(CopyState::Corrupt, self.backend.clone()),
                Copy::Lost => PinOrder::Damaged(CopyState::Lost, self.backend.clone()),
                Copy::Claimed | Copy::Verified | Copy::Stale | Copy::Draining => PinOrder::all(),
            },
        }
    }

    /// Whether a list that was asked for so can go on after `key`.
    #[must_use]
    pub fn has(&self, key: &[u8]) -> bool {
        self.order().has(key)
    }

    /// What its record says already; the rest says [`PinQuery::matches`].
    #[must_use]
    pub fn may_match(&self, record: &ContentRecord, moment: &Moment<'_>) -> bool {
        let size = self.min_size.is_none_or(|least| record.size >= least)
            && self.max_size.is_none_or(|most| record.size <= most);
        if !size {
            return false;
        }
        let at = |id: &BackendId| self.backend.as_ref().is_none_or(|wanted| wanted == id);
        let mut copies = record.copies.iter().filter(|copy| at(&copy.backend));
        let stands = |copy: &CopyRecord| moment.places.standing(copy);
        match self.state {
            None => self.backend.is_none() || copies.any(|c| c.state != CopyState::Released),
            Some(PinFilter::Pin(state)) => {
                record.pin == state
                    && (self.backend.is_none() || copies.any(|c| c.state != CopyState::Released))
            }
            Some(PinFilter::Copy(state)) => match state {
                CopyStatus::Claimed => copies.any(|copy| copy.state == CopyState::Claimed),
                CopyStatus::Verified => copies.any(|copy| copy.state == CopyState::Verified),
                CopyStatus::Corrupt => copies.any(|copy| copy.state == CopyState::Corrupt),
                CopyStatus::Lost => copies.any(|copy| copy.state == CopyState::Lost),
                CopyStatus::Stale => copies.any(|copy| {
                    matches!(stands(copy), Some((_, Standing::Stale | Standing::Uncounted)))
                }),
                CopyStatus::Draining => copies.any(|copy| {
                    let place = stands(copy).and_then(|(number, _)| moment.places.all.get(number));
                    place.is_some_and(|place| place.draining)
                }),
                CopyStatus::Wanted
                | CopyStatus::Queued
                | CopyStatus::Sending
                | CopyStatus::Blocked => true,
            },
        }
    }

    /// Whether it is asked for.
    #[must_use]
    pub fn matches(&self, pin: &ShownPin) -> bool {
        let at = |copy: &ShownCopy| self.backend.is_none() || copy.backend == self.backend;
        let size = self.min_size.is_none_or(|least| pin.size >= least)
            && self.max_size.is_none_or(|most| pin.size <= most);
        let is_there = |copy: &ShownCopy| copy.at.is_some() && at(copy);
        size && match self.state {
            None => self.backend.is_none() || pin.copies.iter().any(is_there),
            Some(PinFilter::Pin(state)) => {
                pin.pin == state && (self.backend.is_none() || pin.copies.iter().any(is_there))
            }
            Some(PinFilter::Copy(state)) => {
                pin.copies.iter().any(|copy| copy.state == state && at(copy))
            }
        }
    }
}

impl Replicator {
    /// These pins, as they are shown.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn show_pins(
        &self,
        pins: &[(Cid, ContentRecord)],
    ) -> Result<Vec<ShownPin>, ReplicationError> {
        let core = &self.core;
        let places = core.registry.places();
        let moment = core.machine.moment(&places);
        let roots: Vec<Cid> = pins.iter().map(|(root, _)| *root).collect();
        let (work, paces) = {
            let lanes = core.machine.lanes().lock();
            (lanes.work(&roots), lanes.paces())
        };
        let mut shown = Vec::with_capacity(pins.len());
        for (root, record) in pins {
            let row = core.namespace.queue_row(root)?;
            let policy = core.machine.policy_of(record);
            let content = Content { root, record, policy: &policy };
            let verdict = plan(&content, &moment);
            let work = work.get(root).map_or(&[][..], Vec::as_slice);
            let target = usize::from(policy.target);
            shown.push(ShownPin {
                cid: *root,
                size: record.size,
                files: record.refs,
                pin: record.pin,
                status: ReplicationStatus::of(record, row.as_ref(), !work.is_empty()),
                have: verdict.copies,
                target,
                copies: copy_statuses(&content, &verdict, row.as_ref(), work, &moment),
                missing: missing(verdict.copies, target, row.as_ref()),
                queue: row.map(|row| {
                    let cancelled = core.machine.is_cancelled(&row);
                    let seen = Seen {
                        content: &content,
                        verdict: &verdict,
                        row: &row,
                        work,
                        paces: &paces,
                        moment: &moment,
                        cancelled,
                    };
                    let outlook = seen.outlook();
                    ShownRow {
                        since: row.since,
                        attempts: row.attempts,
                        next_try: Some(row.not_before).filter(|at| *at > moment.now),
                        cancelled,
                        eta_s: outlook.eta.and_then(whole_seconds),
                        waits_for: outlook.waits_for,
                        waits: outlook.waits,
                        reason: row.last_error,
                    }
                }),
            });
        }
        Ok(shown)
    }

    /// A page of pins: looks at a bounded number of rows, so it may have fewer than
    /// asked for, or none, and not be the last.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn list_pins(&self, query: &PinQuery) -> Result<ShownPins, ReplicationError> {
        let core = &self.core;
        let mut list = ShownPins::default();
        if self.has_none(query) {
            return Ok(list);
        }
        let places = core.registry.places();
        let moment = core.machine.moment(&places);
        let (order, mut after) = (query.order(), query.after.clone());
        let (limit, mut planned) = (query.limit.clamp(1, LIMIT), 0);
        loop {
            let room = (limit - list.pins.len()).min(PLANNED - planned);
            let bounds = (room, EXAMINED - list.examined);
            let mut wanted = |_: &Cid, record: &ContentRecord| query.may_match(record, &moment);
            let page = core.namespace.pins_page(&order, after.as_deref(), bounds, &mut wanted)?;
            list.examined += page.examined;
            planned += page.pins.len();
            let pins: Vec<(Cid, ContentRecord)> = page
                .pins
                .into_iter()
                .filter(|pin| is_first(pin, &order))
                .map(|pin| (pin.root, pin.record))
                .collect();
            list.pins.extend(self.show_pins(&pins)?.into_iter().filter(|pin| query.matches(pin)));
            list.next = page.next;
            if list.next.is_none()
                || list.pins.len() >= limit
                || list.examined >= EXAMINED
                || planned >= PLANNED
            {
                return Ok(list);
            }
            after.clone_from(&list.next);
        }
    }

    /// The counters say so already: an index that was emptied just now is slow to read
    /// until its storage is compacted.
    fn has_none(&self, query: &PinQuery) -> bool {
        let stats = self.core.namespace.stats();
        let to_come = matches!(
            query.state,
            Some(PinFilter::Copy(
                CopyStatus::Wanted | CopyStatus::Queued | CopyStatus::Sending | CopyStatus::Blocked
            ))
        );
        let counted = query.backend.as_ref().filter(|_| !to_come);
        let at_backend = |id: &BackendId| stats.backends.get(id).map_or(0, |(copies, _)| *copies);
        // Copies that are bad count at no backend.
        if counted.is_some_and(|id| at_backend(id) == 0) && stats.corrupt + stats.lost == 0 {
            return true;
        }
        let counts = || self.core.registry.places().count(&stats);
        match query.state {
            Some(PinFilter::Pin(state)) => stats.pins_by_state[state as usize] == 0,
            Some(PinFilter::Copy(CopyStatus::Corrupt)) => stats.corrupt == 0,
            Some(PinFilter::Copy(CopyStatus::Lost)) => stats.lost == 0,
            Some(PinFilter::Copy(CopyStatus::Claimed)) => counts().claimed == 0,
            Some(PinFilter::Copy(CopyStatus::Verified)) => counts().verified == 0,
            Some(PinFilter::Copy(CopyStatus::Draining)) => counts().draining == 0,
            Some(PinFilter::Copy(CopyStatus::Stale)) => counts().stale == 0,
            Some(PinFilter::Copy(_)) | None => stats.pins == 0,
        }
    }
}

/// A pin with bad copies at several places is listed where the first of them is.
fn is_first(pin: &PinRow, order: &PinOrder) -> bool {
    let PinOrder::Damaged(state, None) = order else { return true };
    let bad = pin.record.copies.iter().filter(|copy| copy.state == *state);
    let first = bad.map(|copy| copy.backend.as_str()).min().unwrap_or_default();
    pin.key.get(2..2 + first.len()).is_some_and(|id| id == first.as_bytes())
        && pin.key.get(2 + first.len()) == Some(&0)
}
