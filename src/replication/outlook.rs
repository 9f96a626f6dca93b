//! What a content in the queue waits for, and how long. Pure.

use std::collections::HashMap;
use std::time::Duration;

use super::BackendState;
use super::machine::{CANCELLED, Candidate, Content, Job, Moment, Pace, Plan, Standing};
use super::machine::{Verdict, Work, since};
use crate::metadata::{QueueRecord, TryRecord};
use crate::types::{BackendId, Timestamp};

/// What is said of a row of the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outlook {
    /// Until its last piece of work should be done; `None` when nobody can say.
    pub eta: Option<Duration>,
    /// Places that must come back, be let go on or be given room first.
    pub waits_for: Vec<BackendId>,
    /// In words; never empty.
    pub waits: String,
}

/// All that an outlook is made of.
pub(super) struct Seen<'s> {
    pub content: &'s Content<'s>,
    pub verdict: &'s Verdict,
    pub row: &'s QueueRecord,
    /// What is in lanes.
    pub work: &'s [Work],
    /// How fast the lanes are.
    pub paces: &'s HashMap<BackendId, Pace>,
    pub moment: &'s Moment<'s>,
    pub cancelled: bool,
}

fn noun(job: Job) -> &'static str {
    match job {
        Job::Send => "the copy",
        Job::Repair => "the repair",
        Job::Verify => "the proof",
        Job::Audit => "the audit",
        Job::Release => "the release",
    }
}

/// How long until then; nothing when it has passed.
fn later(now: Timestamp, then: Timestamp) -> Duration {
    if then > now { since(now, then) } else { Duration::ZERO }
}

/// Why a place that could have a copy takes none now; `None` for one that never will.
fn away(place: &Candidate, bytes: u64) -> Option<&'static str> {
    if place.draining || !place.durable || place.state == BackendState::ReadOnly {
        return None;
    }
    match place.state {
        _ if place.paused => Some("paused, `cairn queue resume`"),
        BackendState::Down => Some("down"),
        BackendState::Full => Some("full"),
        _ if place.stopped => Some("above its stop threshold"),
        _ if !place.available => Some("not open"),
        _ if place.space.is_some_and(|(_, free)| free < bytes) => Some("too little space"),
        _ => None,
    }
}

/// A piece of work: how long it takes yet, and what it does or waits for.
type Piece = (Option<Duration>, String);

impl Seen<'_> {
    fn bytes(&self) -> u64 {
        self.content.record.stored_bytes()
    }

    /// What a place needs for this after all that waits there.
    fn behind(&self, id: &BackendId) -> Option<Duration> {
        self.paces.get(id).and_then(|pace| pace.until(self.bytes()))
    }

    /// In a lane.
    fn of_work(work: &Work) -> Piece {
        let (what, place) = (noun(work.job), &work.place);
        let text = match (work.in_hand, work.eta) {
            (true, _) => format!("{what} at {place} is under way"),
            (false, Some(_)) => format!("{what} at {place} is queued"),
            (false, None) => format!("{what} at {place} is queued, nothing was measured there yet"),
        };
        (work.eta, text)
    }

    fn of_failed(&self, job: Job, one: &TryRecord) -> Piece {
        let pause = later(self.moment.now, one.not_before);
        let eta = self.behind(&one.backend).map(|behind| behind + pause);
        let (what, at, seconds) = (noun(job), &one.backend, pause.as_secs() + 1);
        let times = if one.attempts == 1 { "once" } else { "repeatedly" };
        (eta, format!("{what} at {at} failed {times}, the next try is in {seconds} s"))
    }

    /// Of work that is planned and in no lane.
    fn of_job(&self, id: &BackendId, job: Job) -> Piece {
        let now = self.moment.now;
        if self.moment.places.get(id).is_some_and(|place| place.paused) {
            return (None, format!("{} waits for backend {id}: paused", noun(job)));
        }
        if let Some(one) = self.row.tried(id).filter(|one| one.not_before > now) {
            return self.of_failed(job, one);
        }
        let pause = later(now, self.row.not_before);
        let eta = self.behind(id).map(|behind| behind + pause);
        let measured = if eta.is_none() { ", nothing was measured there yet" } else { "" };
        (eta, format!("{} at {id} waits for its turn{measured}", noun(job)))
    }

    /// Places that could have the copies that no work is planned for.
    fn awaited(&self, jobs: &[(BackendId, Job)]) -> Vec<(BackendId, &'static str)> {
        let (places, policy) = (self.moment.places, self.content.policy);
        let coming = jobs.iter().filter(|(_, job)| *job != Job::Release).count();
        let enough = self.verdict.copies + coming >= usize::from(policy.target);
        if enough && !matches!(self.verdict.plan, Plan::Stuck(_)) {
            return Vec::new();
        }
        let held = places.held(&self.content.record.copies, policy.distinct);
        let mut awaited = Vec::new();
        for (number, place) in places.all.iter().enumerate() {
            let copy = self.content.record.copies.iter().find(|copy| copy.backend == place.id);
            let good = copy.and_then(|copy| places.standing(copy));
            let free = !held.contains(places.domain(number, policy.distinct))
                && !matches!(good, Some((_, Standing::Good)))
                && !place.id.is_local()
                && !policy.exclude.contains(&place.id)
                && jobs.iter().all(|(id, _)| *id != place.id);
            if let Some(why) = away(place, self.bytes()).filter(|_| free) {
                awaited.push((place.id.clone(), why));
            }
        }
        awaited
    }

    /// When it should be done, and what it waits for.
    pub fn outlook(&self) -> Outlook {
        if self.cancelled {
            let waits = format!("{CANCELLED} (`cairn queue retry`)");
            return Outlook { waits, ..Outlook::default() };
        }
        let jobs = match &self.verdict.plan {
            Plan::Act(jobs) => jobs.as_slice(),
            Plan::Satisfied | Plan::Stuck(_) => &[],
        };
        let mut pieces: Vec<Piece> = self.work.iter().map(Self::of_work).collect();
        for (id, job) in jobs {
            if self.work.iter().all(|work| work.place != *id) {
                pieces.push(self.of_job(id, *job));
            }
        }
        let awaited = self.awaited(jobs);
        if !awaited.is_empty() {
            let named: Vec<String> =
                awaited.iter().map(|(id, why)| format!("{id} ({why})")).collect();
            let backends = if named.len() == 1 { "backend" } else { "one of the backends" };
            pieces.push((None, format!("waits for {backends} {}", named.join(", "))));
        } else if let Plan::Stuck(reason) = &self.verdict.plan {
            pieces.push((None, reason.clone()));
        }
        if pieces.is_empty() {
            // The next look at the row removes it.
            let eta = Some(later(self.moment.now, self.row.not_before));
            let waits = "nothing is missing any more".to_owned();
            return Outlook { eta, waits, ..Outlook::default() };
        }
        let known = pieces.iter().all(|(eta, _)| eta.is_some());
        let eta = pieces.iter().filter_map(|(eta, _)| *eta).max().filter(|_| known);
        let texts: Vec<String> = pieces.into_iter().map(|(_, text)| text).collect();
        Outlook {
            eta,
            waits_for: awaited.into_iter().map(|(id, _)| id).collect(),
            waits: texts.join("; "),
        }
    }
}
