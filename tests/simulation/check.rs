//! What must hold after each event, and when faults have stopped.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairnfs::metadata::{ContentRecord, CopyRecord, CopyState, PinState, VerifyMethod};
use cairnfs::replication::machine::{CopyCounts, Plan, Standing, judge};
use cairnfs::replication::{Domain, Policy};
use cairnfs::types::Cid;

use crate::place::Place;
use crate::world::{GRACE, HOUR, World, short};

impl World {
    /// No acknowledged content is lost while fewer than its acknowledged copies
    /// were lost to faults since all was well.
    pub fn check(&mut self) {
        let roots: Vec<Cid> = self.contents.keys().copied().collect();
        for root in roots {
            let good = self.good_domains(&root);
            let known = &self.contents[&root];
            let Some(acked) = known.acked else { continue };
            let losses = known.losses;
            if good >= acked {
                // Rows are read where there is something to find out.
                if losses > 0
                    && self.is_as_recorded(&root)
                    && let Some(known) = self.contents.get_mut(&root)
                {
                    known.losses = 0;
                }
            } else if self.is_gone(&root) && losses < acked {
                self.fail(&format!(
                    "{} is gone: {acked} copies were acknowledged, faults took {losses}",
                    short(&root)
                ));
            }
        }
        let late = u64::try_from(GRACE.as_millis()).unwrap() + HOUR;
        let known = self.machine.places();
        for place in self.places.iter().filter(|place| !place.up) {
            let counts = known.get(&place.id).is_some_and(|known| !known.given_up);
            if counts && self.now - place.away_at > late {
                self.fail(&format!("{} is away for long, and copies there count", place.id));
            }
        }
        self.check_doubts();
        if self.machine.lanes().lock().len() > 8192 * self.places.len() {
            self.fail("the window of the queue has no bound");
        }
    }

    /// What lies at a place whose copies were given up counts again one by one, each when
    /// it was read there or sent again.
    fn check_doubts(&self) {
        let known = self.machine.places();
        let lately = |place: &&Place| {
            place.up
                && !place.audits
                && place.doubted_at > 0
                && self.now - place.doubted_at < 12 * HOUR
        };
        for place in self.places.iter().filter(lately) {
            let since = |times: &BTreeMap<Cid, u64>, root: &Cid| {
                times.get(root).is_some_and(|at| *at >= place.doubted_at)
            };
            for root in self.contents.keys() {
                let Some(record) = self.namespace.content(root).unwrap() else { continue };
                let there = |copy: &CopyRecord| copy.backend == place.id;
                let copies: Vec<CopyRecord> = record.copies.into_iter().filter(there).collect();
                let counts = !known.held(&copies, Domain::Device).is_empty();
                if counts && !since(&place.read, root) && !since(&place.stored, root) {
                    self.fail(&format!(
                        "{} counts at {}, which was away or left, and nobody looked since",
                        short(root),
                        place.id
                    ));
                }
            }
        }
    }

    /// No good bytes are left, not even in a cache.
    pub fn is_gone(&self, root: &Cid) -> bool {
        !self.places.iter().any(|place| place.is_good(root))
    }

    /// Whether it lies in a cache, where it may have gone, or at a place that the volume
    /// does not have any more.
    fn is_cached(&self, copy: &CopyRecord) -> bool {
        let left = |place: &Place| place.id == copy.backend && !place.member;
        self.cache && copy.backend == self.places[0].id || self.places.iter().any(left)
    }

    /// Every copy that is recorded as good is good.
    fn is_as_recorded(&self, root: &Cid) -> bool {
        let Some(record) = self.namespace.content(root).unwrap() else { return false };
        record.good_copies().filter(|copy| !self.is_cached(copy)).all(|copy| {
            self.places.iter().any(|place| place.id == copy.backend && place.is_good(root))
        })
    }

    /// A copy was given up, or is to be deleted: enough others were read back and found good, and are
    /// recorded so.
    pub fn check_release(&self, place: usize, root: &Cid) {
        let Some(known) = self.contents.get(root) else { return };
        let record = self.namespace.content(root).unwrap().unwrap();
        let verified = |id: &cairnfs::types::BackendId| {
            // By the rule, not by the code that is checked.
            let proof = |copy: &CopyRecord| {
                copy.state == CopyState::Verified && copy.method != VerifyMethod::Audit
            };
            record.copies.iter().any(|copy| copy.backend == *id && proof(copy))
        };
        let domains: std::collections::BTreeSet<&String> = self
            .places
            .iter()
            .enumerate()
            .filter(|(n, other)| {
                // A proof that rotted since was a proof: `damage` takes it back.
                *n != place && verified(&other.id) && other.truth.contains_key(root)
            })
            .map(|(_, other)| &other.domain)
            .collect();
        let places = self.machine.places();
        let held = places.copies(&record, &self.policy(&record));
        let min = usize::from(known.policy.0).min(held);
        if domains.len() < min {
            self.fail(&format!(
                "{} was given up at {}, and only {domains:?} of {min} others are proven",
                short(root),
                self.places[place].id
            ));
        }
    }

    /// Bytes were deleted: what is recorded as verified is still at least min.
    pub fn check_above_min(&self, root: &Cid) {
        let Some(known) = self.contents.get(root) else { return };
        let good = self.good_domains(root);
        let losses = known.losses;
        if good + losses < usize::from(known.policy.0).min(known.acked.unwrap_or(0)) {
            self.fail(&format!("our own deletion left {good} copies of {}", short(root)));
        }
    }

    /// Faults have stopped for long enough: every content that has a good copy left
    /// has its copies, none has too many, nothing is queued, and counters are right.
    pub fn check_converged(&mut self) {
        let roots: Vec<Cid> = self.contents.keys().copied().collect();
        let mut by_state = [0u64; 4];
        for root in roots {
            let record = self.namespace.content(&root).unwrap().unwrap();
            by_state[record.pin as usize] += 1;
            let good = self.good_domains(&root);
            if self.is_gone(&root) {
                continue;
            }
            // Audits read some of a copy: rot in the rest is found by one of the next.
            let unseen = |copy: &&CopyRecord| {
                let place = self.places.iter().find(|place| place.id == copy.backend);
                copy.method == VerifyMethod::Audit
                    && place.is_some_and(|place| place.audits && !place.is_good(&root))
            };
            let good = good + record.good_copies().filter(unseen).count();
            let policy = self.policy(&record);
            let wanted = usize::from(policy.target).min(self.possible(&record));
            let plan = self.plan_of(&root);
            let places = self.machine.places();
            let copies = places.copies(&record, &policy);
            if good < wanted || copies > usize::from(policy.max) {
                self.fail(&format!(
                    "{} has {good} good copies, {copies} known, {wanted} to {} are wanted; \
                     {plan:?} {record:?}",
                    short(&root),
                    policy.max
                ));
            }
            if record.pin != judge(policy.min, policy.target, policy.max, copies) {
                self.fail(&format!("{} is {:?} with {copies} copies", short(&root), record.pin));
            }
            for copy in record.copies.iter().filter(|copy| !self.is_cached(copy)) {
                let place = self.places.iter().find(|place| place.id == copy.backend).unwrap();
                if copy.is_proven() && !place.is_good(&root) {
                    self.fail(&format!("{} is no good copy of {}", copy.backend, short(&root)));
                }
            }
            let row = self.namespace.queue_page(None, usize::MAX).unwrap();
            if let Some((_, row)) = row.iter().find(|(of, _)| *of == root) {
                self.fail(&format!("{} is queued: {row:?} {plan:?} {record:?}", short(&root)));
            }
        }
        self.check_copy_counts();
        if let Some(left) = self.machine.moves().first() {
            self.fail(&format!("copies are still to be moved: {left:?}"));
        }
        let stats = self.namespace.stats();
        if stats.pins_by_state != by_state {
            self.fail(&format!("{:?} is counted, {by_state:?} is there", stats.pins_by_state));
        }
        if by_state[PinState::OverMax as usize] > 0 {
            self.fail("copies beyond max are left");
        }
    }

    /// Counters of copies say what a look at all contents says.
    pub fn check_copy_counts(&mut self) {
        let places = self.machine.places();
        let mut found = CopyCounts::default();
        for root in self.contents.keys() {
            let record = self.namespace.content(root).unwrap().unwrap();
            for copy in record.copies.iter().filter(|_| record.refs > 0) {
                let draining = places.get(&copy.backend).is_some_and(|place| place.draining);
                match (places.standing(copy).map(|(_, standing)| standing), copy.state) {
                    (Some(Standing::Stale | Standing::Uncounted), _) => found.stale += 1,
                    (Some(Standing::Good), _) if draining => found.draining += 1,
                    (Some(Standing::Good), CopyState::Verified) => found.verified += 1,
                    (Some(Standing::Good), _) => found.claimed += 1,
                    _ => {}
                }
            }
        }
        let counted = places.count(&self.namespace.stats());
        if counted != found {
            self.fail(&format!("{counted:?} is counted, {found:?} is there"));
        }
    }

    pub fn plan_of(&self, root: &Cid) -> Plan {
        let record = self.namespace.content(root).unwrap().unwrap();
        let places = self.machine.places();
        self.machine.plan(root, &record, &self.machine.moment(&places)).plan
    }

    /// Domains that could have a copy.
    pub fn possible(&self, record: &ContentRecord) -> usize {
        let places = self.machine.places();
        let policy = self.machine.policy_of(record);
        places.configured(&places.held(&record.copies, Domain::Device), &policy)
    }

    pub fn policy(&self, record: &ContentRecord) -> Arc<Policy> {
        self.machine.policy_of(record)
    }
}
