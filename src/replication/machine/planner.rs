//! What is to be done for a content: desired copies against actual ones. Pure.
//!
//! Write-through, healing, draining, trimming and the way through the tiers are
//! outcomes of one comparison. Nothing is given up while anything is missing, and
//! only what enough *verified* copies elsewhere make superfluous.

use std::fmt::Write as _;
use std::time::Duration;

use super::super::{BackendState, Level, Policy, TierClock, TierRule};
use super::moves::Stage;
use super::placement::{Choice, Ranking, Wanted, choose, judge};
use super::places::{Candidate, DomainSet, Places, Standing};
use super::time::{apart, since};
use crate::backends::Scrub;
use crate::metadata::{ContentRecord, CopyRecord, CopyState, PinState};
use crate::types::{BackendId, Cid, Timestamp};

/// One piece of work at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Job {
    /// Bring what is missing there; a node that is there holds what is below it.
    Send,
    /// A copy there is known to be bad or gone: look at every block.
    Repair,
    /// Read the copy there back: it counts, or others may go, once it is proven.
    Verify,
    /// Ask whether all of the copy is there, and read some of it: its last proof is
    /// too old to stand for a content that is asked for anew.
    Audit,
    /// Give the copy there up, after a look at those that stay.
    Release,
}

impl Job {
    /// As users and programs read it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Repair => "repair",
            Self::Verify => "verify",
            Self::Audit => "audit",
            Self::Release => "release",
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: the target is reached, or every place that is configured has it.
    Satisfied,
    /// This, now. The local store is named `local`.
    Act(Vec<(BackendId, Job)>),
    /// Nothing now, for this reason: something else must come first.
    Stuck(String),
}

/// A content as it is planned for.
#[derive(Debug, Clone, Copy)]
pub struct Content<'c> {
    /// Its CID.
    pub root: &'c Cid,
    /// Its row.
    pub record: &'c ContentRecord,
    /// The policy that holds for it.
    pub policy: &'c Policy,
}

/// Where and when it is planned.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'m> {
    /// The places as they are.
    pub places: &'m Places,
    /// Now.
    pub now: Timestamp,
    /// A proof older than this lets no other copy go.
    pub proof_age: Duration,
}

/// Why a cache keeps what it has of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dirty {
    /// Fewer copies than its policy's min are elsewhere.
    Copies,
    /// They are, and were not read back lately, or cannot be now.
    Proof,
}

/// Where a content stands, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// By distinct good copies, those that leave among them.
    pub pin: PinState,
    /// How many these are.
    pub copies: usize,
    /// What is to be done.
    pub plan: Plan,
}

/// The copies of a content, sorted.
struct Sorted<'c> {
    /// Domains of all good copies.
    held: DomainSet,
    /// Those that count towards the target.
    kept: Vec<(usize, &'c CopyRecord)>,
    kept_domains: DomainSet,
    /// Good ones at places that are to have none.
    leaving: Vec<usize>,
    stale: Vec<usize>,
    damaged: Vec<usize>,
}

/// Whether a tier's rule asks for copies at this age.
pub(super) fn is_active(rule: &TierRule, record: &ContentRecord, now: Timestamp) -> bool {
    let start = match rule.by {
        TierClock::Age => record.created_s,
        TierClock::Access => record.accessed_s,
    };
    let age = since(Timestamp { seconds: start, nanoseconds: 0 }, now);
    age >= rule.after && rule.until.is_none_or(|until| age < until)
}

/// Whether a copy elsewhere was not looked at for so long. What is here is hashed when
/// it is read.
#[must_use]
pub fn is_aged(copy: &CopyRecord, age: Duration, now: Timestamp) -> bool {
    !copy.backend.is_local() && apart(copy.at, now) > age
}

pub(super) fn of_tier(place: &Candidate, tier: &str) -> bool {
    place.settings.tier.as_deref().is_some_and(|of_place| of_place == tier)
}

impl<'c> Content<'c> {
    /// No copy is to stay there.
    pub(super) fn is_unwanted(&self, place: &Candidate, now: Timestamp) -> bool {
        if place.id.is_local() {
            return false;
        }
        place.draining || self.is_untimely(place, now) || self.policy.exclude.contains(&place.id)
    }

    /// The place is of a tier that is to have no copy at this age.
    pub(super) fn is_untimely(&self, place: &Candidate, now: Timestamp) -> bool {
        let mut rules = self.policy.tiers.iter().filter(|rule| of_tier(place, &rule.tier));
        rules.clone().next().is_some() && !rules.any(|rule| is_active(rule, self.record, now))
    }

    fn sorted(&self, moment: &Moment<'_>) -> Sorted<'c> {
        let places = moment.places;
        let mut sorted = Sorted {
            held: DomainSet::default(),
            kept: Vec::with_capacity(self.record.copies.len()),
            kept_domains: DomainSet::default(),
            leaving: Vec::new(),
            stale: Vec::new(),
            damaged: Vec::new(),
        };
        let moved = match self.way(moment) {
            Some((from, _, Stage::Leave)) => Some(from),
            _ => None,
        };
        for copy in &self.record.copies {
            let Some((number, standing)) = places.standing(copy) else { continue };
            match standing {
                Standing::Good => {
                    let domain = places.domain(number, self.policy.distinct);
                    sorted.held.insert(domain);
                    if moved == Some(number) || self.is_unwanted(&places.all[number], moment.now) {
                        sorted.leaving.push(number);
                    } else {
                        sorted.kept.push((number, copy));
                        sorted.kept_domains.insert(domain);
                    }
                }
                Standing::Stale => sorted.stale.push(number),
                Standing::Bad => sorted.damaged.push(number),
                Standing::Uncounted | Standing::Released => {}
            }
        }
        sorted
    }

    /// From where to where a copy is to move, and how far that is.
    fn way(&self, moment: &Moment<'_>) -> Option<(usize, usize, Stage)> {
        let places = moment.places;
        let (from, to) = places.moves.of(self.root)?;
        let stage = self.stage(from, to, moment);
        Some((places.number(from)?, places.number(to)?, stage))
    }

    /// Distinct verified copies that must stay where one goes: the target, or as
    /// many as there are. Who drains the last place keeps it until another one came;
    /// a second copy in one domain may go, however few domains there are.
    fn must_stay(&self, sorted: &Sorted<'_>) -> usize {
        usize::from(self.policy.target).min(sorted.held.len())
    }

    /// A proof that lets others go.
    fn is_proof(copy: &CopyRecord, place: &Candidate, moment: &Moment<'_>) -> bool {
        let fresh = place.id.is_local() || apart(copy.at, moment.now) <= moment.proof_age;
        copy.is_proven() && fresh && place.readable
    }

    /// Domains with a proof, without the places in `gone`.
    fn proven(&self, sorted: &Sorted<'_>, gone: &[usize], moment: &Moment<'_>) -> DomainSet {
        let mut proven = DomainSet::default();
        for (number, copy) in &sorted.kept {
            let place = &moment.places.all[*number];
            if !gone.contains(number) && Self::is_proof(copy, place, moment) {
                proven.insert(moment.places.domain(*number, self.policy.distinct));
            }
        }
        proven
    }

    /// Copies that are more than is wanted, the worst-placed first.
    fn surplus(&self, sorted: &Sorted<'_>, moment: &Moment<'_>) -> Vec<usize> {
        let places = moment.places;
        let mut surplus = sorted.leaving.clone();
        let max = usize::from(self.policy.max);
        // What is bad and not to be mended is in the way of nothing but the lists.
        surplus.extend(sorted.damaged.iter().filter(|number| {
            let place = &places.all[**number];
            let full = sorted.kept.len() >= max;
            let double =
                sorted.kept_domains.contains(places.domain(**number, self.policy.distinct));
            !place.id.is_local() && place.readable && !place.paused && (full || double)
        }));
        let mut excess = sorted.kept.len().saturating_sub(max);
        if excess == 0 {
            return surplus;
        }
        let bytes = self.record.stored_bytes();
        let ranking = Ranking::new(self.root, bytes, self.policy);
        let mut ordered: Vec<_> = sorted
            .kept
            .iter()
            .map(|(number, _)| (*number, &places.all[*number]))
            // Of what cannot be deleted, giving it up gains nothing.
            .filter(|(_, place)| !place.id.is_local() && place.state != BackendState::ReadOnly)
            .map(|(number, place)| {
                let listed = self.policy.tiers.iter().any(|rule| of_tier(place, &rule.tier));
                let best = (
                    self.policy.prefer.contains(&place.id),
                    listed,
                    place.state == BackendState::Up,
                );
                (number, best, ranking.of(place), &place.id)
            })
            .collect();
        ordered.sort_by(|a, b| a.1.cmp(&b.1).then(b.2.order(&a.2)).then(b.3.cmp(a.3)));
        // A second copy in one domain counts for nothing: it goes first.
        let domain = |number| places.domain(number, self.policy.distinct);
        let mut seen = DomainSet::default();
        for (number, _) in &sorted.kept {
            if places.all[*number].id.is_local() {
                seen.insert(domain(*number));
            }
        }
        let doubles: Vec<usize> = ordered
            .iter()
            .rev()
            .filter(|(number, ..)| !seen.insert(domain(*number)))
            .map(|(number, ..)| *number)
            .collect();
        let order = doubles.iter().rev().copied();
        let order = order.chain(ordered.iter().map(|(n, ..)| *n).filter(|n| !doubles.contains(n)));
        for number in order {
            if excess == 0 {
                break;
            }
            excess -= 1;
            surplus.push(number);
        }
        surplus
    }

    /// Whether a copy may be given up when the places in `confirmed` were just
    /// asked and still have theirs.
    #[must_use]
    pub fn may_release(
        &self,
        place: &BackendId,
        confirmed: &[BackendId],
        moment: &Moment<'_>,
    ) -> bool {
        let Verdict { plan: Plan::Act(jobs), .. } = plan(self, moment) else { return false };
        if !jobs.contains(&(place.clone(), Job::Release)) {
            return false;
        }
        let sorted = self.sorted(moment);
        let gone: Vec<usize> = (0..moment.places.all.len())
            .filter(|n| {
                let id = &moment.places.all[*n].id;
                !confirmed.contains(id) || jobs.contains(&(id.clone(), Job::Release))
            })
            .collect();
        self.proven(&sorted, &gone, moment).len() >= self.must_stay(&sorted)
    }

    /// Whether the blocks of a copy that was given up may be deleted, when the places
    /// in `confirmed` were just asked and still have theirs. Between the two the
    /// others may have gone bad, and what lies there heals them: nothing may be
    /// missing, and as much be proven as for giving it up.
    #[must_use]
    pub fn may_collect(
        &self,
        place: &BackendId,
        confirmed: &[BackendId],
        moment: &Moment<'_>,
    ) -> bool {
        let complete = match plan(self, moment).plan {
            Plan::Satisfied => true,
            Plan::Act(jobs) => jobs.iter().all(|(_, job)| *job == Job::Release),
            Plan::Stuck(_) => false,
        };
        let sorted = self.sorted(moment);
        let held = |number: &usize| moment.places.all.get(*number);
        let gone: Vec<usize> = (0..moment.places.all.len())
            .filter(|n| held(n).is_some_and(|at| at.id == *place || !confirmed.contains(&at.id)))
            .collect();
        let must_stay = self.must_stay(&sorted).max(1);
        complete && self.proven(&sorted, &gone, moment).len() >= must_stay
    }

    /// Distinct verified copies that must be elsewhere before a cache lets go of its
    /// bytes: the min, and the target or as many as there are.
    fn must_be_elsewhere(&self, sorted: &Sorted<'_>) -> usize {
        let wanted = usize::from(self.policy.target).min(sorted.kept_domains.len());
        wanted.max(usize::from(self.policy.min)).max(1)
    }

    /// Whether the local store, which is a cache, may let go of what it has of this
    /// content, when the places in `confirmed` were just asked and still have theirs.
    /// The same holds before they are asked, with all of them.
    #[must_use]
    pub fn may_evict(&self, confirmed: Option<&[BackendId]>, moment: &Moment<'_>) -> bool {
        let sorted = self.sorted(moment);
        let silent = |number: &usize| {
            let id = &moment.places.all[*number].id;
            confirmed.is_some_and(|confirmed| !confirmed.contains(id))
        };
        let gone: Vec<usize> = (0..moment.places.all.len()).filter(silent).collect();
        let proven = self.proven(&sorted, &gone, moment).len();
        moment.places.is_local_cache() && proven >= self.must_be_elsewhere(&sorted)
    }

    /// What a cache waits for before it lets go of this content.
    #[must_use]
    pub fn dirty(&self, moment: &Moment<'_>) -> Option<Dirty> {
        if self.may_evict(None, moment) {
            return None;
        }
        let sorted = self.sorted(moment);
        let short = sorted.kept_domains.len() < usize::from(self.policy.min).max(1);
        Some(if short { Dirty::Copies } else { Dirty::Proof })
    }

    /// Copies to be read back so that a cache may let go of this content: as few as
    /// will do, the quickest to answer first.
    #[must_use]
    pub fn proofs_to_evict(&self, moment: &Moment<'_>) -> Vec<BackendId> {
        let sorted = self.sorted(moment);
        let must = self.must_be_elsewhere(&sorted);
        let mut covered = self.proven(&sorted, &[], moment);
        let mut kept: Vec<_> =
            sorted.kept.iter().map(|(n, copy)| (*n, &moment.places.all[*n], copy)).collect();
        kept.retain(|(_, place, copy)| place.readable && !Self::is_proof(copy, place, moment));
        kept.sort_by(|(_, a, _), (_, b, _)| a.latency.cmp(&b.latency).then(a.id.cmp(&b.id)));
        let mut asked = Vec::new();
        for (number, place, _) in kept {
            let domain = moment.places.domain(number, self.policy.distinct);
            if covered.len() < must && covered.insert(domain) {
                asked.push(place.id.clone());
            }
        }
        asked
    }

    /// Places whose copies stay and have no fresh proof.
    #[must_use]
    pub fn unproven(&self, moment: &Moment<'_>) -> Vec<BackendId> {
        let sorted = self.sorted(moment);
        let kept = sorted.kept.iter().map(|(number, copy)| (&moment.places.all[*number], copy));
        kept.filter(|(place, copy)| place.readable && !Self::is_proof(copy, place, moment))
            .map(|(place, _)| place.id.clone())
            .collect()
    }

    /// Places whose copies counts and was not looked at for so long: it is asked for
    /// before a content that is written again relies on it.
    #[must_use]
    pub fn aged(&self, age: Duration, moment: &Moment<'_>) -> Vec<BackendId> {
        let standing = |copy: &CopyRecord| moment.places.standing(copy);
        let copies = self.record.copies.iter().filter(|copy| is_aged(copy, age, moment.now));
        copies
            .filter(|copy| {
                standing(copy).is_some_and(|(number, standing)| {
                    standing == Standing::Good && moment.places.all[number].readable
                })
            })
            .map(|copy| copy.backend.clone())
            .collect()
    }

    /// Places with a proof that may stand for a copy that goes.
    #[must_use]
    pub fn witnesses(&self, moment: &Moment<'_>) -> Vec<BackendId> {
        let sorted = self.sorted(moment);
        let surplus = self.surplus(&sorted, moment);
        let kept = sorted.kept.iter().filter(|(number, _)| !surplus.contains(number));
        kept.map(|(number, copy)| (&moment.places.all[*number], copy))
            .filter(|(place, copy)| Self::is_proof(copy, place, moment))
            .map(|(place, _)| place.id.clone())
            .collect()
    }
}

/// Plans for one content.
#[must_use]
pub fn plan(content: &Content<'_>, moment: &Moment<'_>) -> Verdict {
    let (policy, record) = (content.policy, content.record);
    let sorted = content.sorted(moment);
    let copies = sorted.held.len();
    let pin = judge(policy.min, policy.target, policy.max, copies);
    let mut work = Work::begin(content, moment, &sorted);
    work.bring_here();
    work.prove_again();
    work.move_on();
    if work.fill_tiers() {
        work.fill();
        work.mend();
    }
    let jobs = std::mem::take(&mut work.jobs);
    let plan = if !jobs.is_empty() {
        Plan::Act(jobs)
    } else if let Some(reason) = work.missing() {
        Plan::Stuck(reason)
    } else if record.refs == 0 {
        Plan::Satisfied
    } else {
        give_up(content, moment, &sorted)
    };
    Verdict { pin, copies, plan }
}

/// Why each place gets no copy of what has all that it gets now.
#[must_use]
pub fn passed_over(content: &Content<'_>, moment: &Moment<'_>) -> Vec<(usize, &'static str)> {
    let sorted = content.sorted(moment);
    let work = Work::begin(content, moment, &sorted);
    let copies = usize::from(content.policy.target).max(work.covered.len());
    work.choose(copies, None).passed_over
}

/// The part of a plan that brings copies.
struct Work<'w> {
    content: &'w Content<'w>,
    moment: &'w Moment<'w>,
    sorted: &'w Sorted<'w>,
    /// Domains that have a copy, or will by the jobs so far.
    covered: DomainSet,
    /// Places likewise.
    holding: Vec<usize>,
    jobs: Vec<(BackendId, Job)>,
    passed_over: Vec<(usize, &'static str)>,
    /// A tier lacks copies.
    short_tier: Option<String>,
}

impl<'w> Work<'w> {
    fn begin(content: &'w Content<'w>, moment: &'w Moment<'w>, sorted: &'w Sorted<'w>) -> Self {
        Self {
            content,
            moment,
            sorted,
            covered: sorted.kept_domains.clone(),
            holding: sorted.kept.iter().map(|(number, _)| *number).collect(),
            jobs: Vec::new(),
            passed_over: Vec::new(),
            short_tier: None,
        }
    }

    fn add(&mut self, number: usize, job: Job) {
        let places = self.moment.places;
        self.covered.insert(places.domain(number, self.content.policy.distinct));
        self.holding.push(number);
        self.jobs.push((places.all[number].id.clone(), job));
    }

    /// Without a good copy anywhere there is nothing to bring here; a bad one may be
    /// better than it seemed.
    fn bring_here(&mut self) {
        let Some(local) = self.moment.places.local_replica() else { return };
        let known = !self.sorted.held.is_empty();
        if !self.holding.contains(&local) && (known || self.sorted.damaged.contains(&local)) {
            self.add(local, if known { Job::Send } else { Job::Verify });
        }
    }

    /// A copy that only lacks a proof is nearer than a new one.
    fn prove_again(&mut self) {
        let places = self.moment.places;
        for number in &self.sorted.stale {
            let place = &places.all[*number];
            if self.covered.len() < usize::from(self.content.policy.target)
                && place.readable
                && !self.content.is_unwanted(place, self.moment.now)
                && !self.covered.contains(places.domain(*number, self.content.policy.distinct))
            {
                let audit = place.settings.scrub == Scrub::Audit;
                self.add(*number, if audit { Job::Audit } else { Job::Verify });
            }
        }
    }

    /// A copy that is to move is made at its new place first.
    fn move_on(&mut self) {
        let Some((_, to, Stage::Send)) = self.content.way(self.moment) else { return };
        if self.holding.contains(&to) {
            return;
        }
        let stale = self.sorted.stale.contains(&to);
        let job = match self.sorted.damaged.contains(&to) {
            true => Job::Repair,
            false if stale => Job::Verify,
            false => Job::Send,
        };
        self.add(to, job);
    }

    fn take(&mut self, choice: Choice) {
        for number in choice.selected {
            // No good copy is known: what may lie there all the same (a recovery knows
            // an earlier state of the rows) is found by sending, and a bad copy is
            // looked at again, in case the fault was on the way.
            let nothing_known = self.sorted.held.is_empty() && self.sorted.stale.is_empty();
            let job = match self.sorted.damaged.contains(&number) {
                true if nothing_known => Job::Verify,
                true => Job::Repair,
                false => Job::Send,
            };
            self.add(number, job);
        }
        self.passed_over = choice.passed_over;
    }

    fn choose(&self, copies: usize, tier: Option<&str>) -> Choice {
        let (content, now) = (self.content, self.moment.now);
        // What would be given up at once is not made.
        let all = self.moment.places.all.iter().enumerate();
        let untimely: Vec<usize> = if content.policy.tiers.is_empty() {
            Vec::new()
        } else {
            all.filter(|(_, p)| content.is_untimely(p, now)).map(|(n, _)| n).collect()
        };
        let wanted = Wanted {
            root: self.content.root,
            bytes: self.content.record.stored_bytes(),
            policy: self.content.policy,
            copies,
            tier,
            successor: self.successor(),
            untimely: &untimely,
        };
        choose(&wanted, &self.covered, &self.sorted.damaged, self.moment.places)
    }

    /// What stands in for a place that is replaced and has, or had, a copy.
    fn successor(&self) -> Option<usize> {
        let places = self.moment.places;
        let had = self.content.record.copies.iter();
        let had = had.filter(|copy| copy.state != CopyState::Released);
        had.filter_map(|copy| places.moves.successor(&copy.backend))
            .find_map(|id| places.number(id))
    }

    /// The copies of each tier, in order; false when the next ones must wait.
    fn fill_tiers(&mut self) -> bool {
        let policy = self.content.policy;
        let in_order = matches!(policy.level, Level::Tiered | Level::Progressive);
        for rule in &policy.tiers {
            if !is_active(rule, self.content.record, self.moment.now) {
                continue;
            }
            let places = self.moment.places;
            let mut have = DomainSet::default();
            for number in &self.holding {
                if of_tier(&places.all[*number], &rule.tier) {
                    have.insert(places.domain(*number, policy.distinct));
                }
            }
            let lacks = usize::from(rule.copies).saturating_sub(have.len());
            if lacks == 0 {
                continue;
            }
            let choice = self.choose(self.covered.len() + lacks, Some(&rule.tier));
            let found = choice.selected.len();
            self.take(choice);
            if found < lacks && self.is_to_come(&rule.tier, &have) {
                let have = usize::from(rule.copies) - lacks;
                self.short_tier =
                    Some(format!("tier {} has {have} of {} copies", rule.tier, rule.copies));
            }
            if in_order && found > 0 {
                return false;
            }
        }
        true
    }

    /// The tier has a place that could have a copy, were it in reach.
    fn is_to_come(&self, tier: &str, have: &DomainSet) -> bool {
        let (places, policy) = (self.moment.places, self.content.policy);
        places.all.iter().enumerate().any(|(number, place)| {
            of_tier(place, tier)
                && place.state != BackendState::ReadOnly
                && !place.draining
                && !policy.exclude.contains(&place.id)
                && !have.contains(places.domain(number, policy.distinct))
                && !self.covered.contains(places.domain(number, policy.distinct))
        })
    }

    fn fill(&mut self) {
        let target = usize::from(self.content.policy.target);
        if self.covered.len() < target {
            let choice = self.choose(target, None);
            self.take(choice);
        }
    }

    /// A copy that is bad although there are enough is mended where it lies, as long as
    /// there are fewer than the most: that costs no more than its bad blocks.
    fn mend(&mut self) {
        let (policy, places) = (self.content.policy, self.moment.places);
        for number in &self.sorted.damaged {
            let place = &places.all[*number];
            if self.holding.len() < usize::from(policy.max)
                && !self.sorted.held.is_empty()
                && !place.id.is_local()
                && place.readable
                && place.takes(0)
                && !self.content.is_unwanted(place, self.moment.now)
                && !self.covered.contains(places.domain(*number, policy.distinct))
            {
                self.add(*number, Job::Repair);
            }
        }
    }

    /// Why nothing can be done, when something should.
    fn missing(&self) -> Option<String> {
        let (policy, places) = (self.content.policy, self.moment.places);
        let (have, target) = (self.sorted.kept_domains.len(), usize::from(policy.target));
        let short = have < target && have < places.configured(&self.sorted.kept_domains, policy);
        if !short && self.short_tier.is_none() {
            return None;
        }
        let mut reason = format!("{have} of {target} copies");
        if let Some(tier) = &self.short_tier {
            write!(reason, "; {tier}").unwrap_or_default();
        }
        for (number, why) in &self.passed_over {
            // Writing to a String cannot fail.
            write!(reason, "; {}: {why}", places.all[*number].id).unwrap_or_default();
        }
        Some(reason)
    }
}

/// The part of a plan that takes copies away.
fn give_up(content: &Content<'_>, moment: &Moment<'_>, sorted: &Sorted<'_>) -> Plan {
    let places = moment.places;
    let surplus = content.surplus(sorted, moment);
    if surplus.is_empty() {
        return Plan::Satisfied;
    }
    let id = |number: usize| places.all[number].id.clone();
    let must_stay = content.must_stay(sorted);
    let proven = content.proven(sorted, &surplus, moment);
    if proven.len() >= must_stay {
        return Plan::Act(surplus.into_iter().map(|number| (id(number), Job::Release)).collect());
    }
    let mut covered = proven.clone();
    let mut jobs = Vec::new();
    for (number, copy) in sorted.kept.iter().filter(|(number, _)| !surplus.contains(number)) {
        let place = &places.all[*number];
        let proof = Content::is_proof(copy, place, moment);
        if covered.len() < must_stay
            && !proof
            && place.readable
            && covered.insert(places.domain(*number, content.policy.distinct))
        {
            jobs.push((place.id.clone(), Job::Verify));
        }
    }
    if !jobs.is_empty() {
        return Plan::Act(jobs);
    }
    let names: Vec<String> = surplus.into_iter().map(|number| id(number).to_string()).collect();
    Plan::Stuck(format!(
        "the copy at {} is not wanted any more and stays: {} of {must_stay} others are proven; \
         another place is needed, or a lower target",
        names.join(", "),
        proven.len(),
    ))
}
