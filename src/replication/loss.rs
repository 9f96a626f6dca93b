//! What the loss of places would mean. Pure: over rows, one at a time.
//!
//! The places that stay are as they are now, the local store's would be an empty disk.
//! What would be copied where is what the planner does, with the room that it uses up.

use std::collections::BTreeMap;
use std::time::Duration;

use super::machine::{Candidate, Content, Job, Moment, Places, Standing, forecast};
use super::{BackendState, Policy};
use crate::backends::Price;
use crate::metadata::{ContentRecord, CopyState};
use crate::types::{BackendId, Cid, Timestamp};

/// CIDs that are kept of what is affected, the worst first.
const NAMED: usize = 4096;
/// Millionths of the prices' money, times bytes of a gigabyte.
const GB: u128 = 1_000_000_000;

/// Contents and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub contents: u64,
    /// Bytes that a reader gets.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, record: &ContentRecord) {
        self.contents += 1;
        self.bytes = self.bytes.saturating_add(record.size);
    }
}

/// What one place would get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Healed {
    /// Copies.
    pub copies: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their blocks: requests at most.
    pub blocks: u64,
}

/// How fast a place takes bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    /// Measured, bytes a second; `None`: nothing was sent there yet.
    pub measured: Option<f64>,
    /// Set as a limit.
    pub limit: Option<u64>,
}

/// How bad it is for one content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// No copy of it is left anywhere.
    Lost,
    /// What is left was never read back, or lies at a place that is away.
    Uncertain,
    /// Fewer copies than its min are left.
    BelowMin,
    /// At least min, fewer than the target.
    BelowTarget,
}

/// The loss of some places at once.
#[derive(Debug)]
pub struct Loss {
    gone: Vec<BackendId>,
    before: Places,
    after: Places,
    now: Timestamp,
    proof_age: Duration,
    /// Contents that were looked at.
    pub contents: u64,
    /// Nothing is left of them.
    pub lost: Tally,
    /// What is left of them is not proven, or out of reach.
    pub uncertain: Tally,
    /// Had no good copy before, either.
    pub lost_before: Tally,
    /// Fall below their min, the lost ones among them.
    pub below_min: Tally,
    /// Fall below their target, all above among them.
    pub below_target: Tally,
    /// What would be copied where.
    pub healed: BTreeMap<BackendId, Healed>,
    /// Copies that no place could take.
    pub unplaced: Healed,
    /// Why places could not: how often.
    pub passed_over: BTreeMap<(BackendId, &'static str), u64>,
    /// Bytes that would be read from each place to make them.
    pub read_from: BTreeMap<BackendId, u64>,
    /// What is affected, by harm.
    affected: BTreeMap<Harm, Vec<Cid>>,
}

/// The places without those that are gone; an empty local store stays one.
fn without(places: &Places, gone: &[BackendId]) -> Places {
    let kept = places.all.iter().filter(|place| place.id.is_local() || !gone.contains(&place.id));
    let mut left = Places::new(kept.cloned().collect());
    (left.moves, left.thrifty) = (places.moves.clone(), places.thrifty);
    left
}

impl Loss {
    /// Of these places.
    #[must_use]
    pub fn new(gone: &[BackendId], moment: &Moment<'_>) -> Self {
        let places = moment.places;
        Self {
            gone: gone.to_vec(),
            now: moment.now,
            proof_age: moment.proof_age,
            before: places.clone(),
            after: without(places, gone),
            contents: 0,
            lost: Tally::default(),
            uncertain: Tally::default(),
            lost_before: Tally::default(),
            below_min: Tally::default(),
            below_target: Tally::default(),
            healed: BTreeMap::new(),
            unplaced: Healed::default(),
            passed_over: BTreeMap::new(),
            read_from: BTreeMap::new(),
            affected: BTreeMap::new(),
        }
    }

    /// Looks at a content that is wanted.
    pub fn add(&mut self, root: &Cid, record: &ContentRecord, policy: &Policy) {
        self.contents += 1;
        let (min, target) = (usize::from(policy.min), usize::from(policy.target));
        let had = self.before.held(&record.copies, policy.distinct).len();
        if had == 0 {
            // What only a cache has goes with it.
            if self.gone.iter().any(BackendId::is_local) && self.before.is_local_cache() {
                self.lost.add(record);
                self.name(Harm::Lost, root);
            } else {
                self.lost_before.add(record);
            }
            return;
        }
        let kept = ContentRecord {
            copies: record
                .copies
                .iter()
                .filter(|copy| !self.gone.contains(&copy.backend))
                .cloned()
                .collect(),
            ..record.clone()
        };
        if kept.copies.len() == record.copies.len() {
            return;
        }
        let held = self.after.held(&kept.copies, policy.distinct);
        let certain = kept.copies.iter().any(|copy| {
            copy.state == CopyState::Verified
                && matches!(self.after.standing(copy), Some((n, Standing::Good)) if self.after.all[n].readable)
        });
        let harm = if kept.good_copies().next().is_none() {
            self.lost.add(record);
            Some(Harm::Lost)
        } else if !certain {
            self.uncertain.add(record);
            Some(Harm::Uncertain)
        } else if held.len() < min && had >= min {
            Some(Harm::BelowMin)
        } else if held.len() < target && had >= target {
            Some(Harm::BelowTarget)
        } else {
            None
        };
        if held.len() < min && had >= min {
            self.below_min.add(record);
        }
        if held.len() < target && had >= target {
            self.below_target.add(record);
        }
        if let Some(harm) = harm {
            self.name(harm, root);
        }
        if !held.is_empty() {
            self.heal(root, &kept, policy);
        }
    }

    fn name(&mut self, harm: Harm, root: &Cid) {
        let known: usize = self.affected.range(..=harm).map(|(_, named)| named.len()).sum();
        if known < NAMED {
            self.affected.entry(harm).or_default().push(*root);
        }
    }

    /// What would be copied where.
    fn heal(&mut self, root: &Cid, kept: &ContentRecord, policy: &Policy) {
        let (bytes, target) = (kept.stored_bytes(), usize::from(policy.target));
        let content = Content { root, record: kept, policy };
        let moment = Moment { places: &self.after, now: self.now, proof_age: self.proof_age };
        let coming = forecast(&content, &moment);
        let made = coming.steps.iter().filter(|step| matches!(step.job, Job::Send | Job::Repair));
        let mut to: Vec<usize> = made.filter_map(|step| self.after.number(&step.place)).collect();
        to.sort_unstable();
        to.dedup();
        let lacks = target.saturating_sub(coming.end.copies) as u64;
        if lacks > 0 {
            self.unplaced.copies += lacks;
            self.unplaced.bytes = self.unplaced.bytes.saturating_add(bytes * lacks);
            for (number, why) in coming.passed_over {
                let id = self.after.all[number].id.clone();
                *self.passed_over.entry((id, why)).or_default() += 1;
            }
        }
        if to.is_empty() {
            return;
        }
        if let Some(source) = self.source(kept) {
            // It is brought to the local store once, and sent from there.
            *self.read_from.entry(source).or_default() += bytes;
        }
        for number in to {
            let place = &mut self.after.all[number];
            if let Some((_, free)) = &mut place.space {
                *free = free.saturating_sub(bytes);
            }
            let healed = self.healed.entry(place.id.clone()).or_default();
            healed.copies += 1;
            healed.bytes = healed.bytes.saturating_add(bytes);
            healed.blocks = healed.blocks.saturating_add(kept.blocks.max(1));
        }
    }

    /// From where it would be read: here, or the cheapest.
    fn source(&self, kept: &ContentRecord) -> Option<BackendId> {
        let place = |copy: &crate::metadata::CopyRecord| match self.after.standing(copy) {
            Some((number, Standing::Good)) => Some(&self.after.all[number]),
            _ => None,
        };
        let good = kept.copies.iter().filter_map(place);
        let best = good.min_by_key(|place| (!place.id.is_local(), place.settings.price.gb_out));
        best.map(|place| place.id.clone())
    }

    /// What is affected, the worst first, at most so many.
    pub fn affected(&self) -> impl Iterator<Item = (Harm, &Cid)> {
        self.affected.iter().flat_map(|(harm, roots)| roots.iter().map(|root| (*harm, root)))
    }

    /// How long a place takes for its part; `None` when nothing is known of its speed.
    /// They work at the same time: all is done when the last one is.
    #[must_use]
    pub fn takes(healed: &Healed, pace: Pace) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "rounded for people")]
        let (bytes, limit) = (healed.bytes as f64, pace.limit.map(|limit| limit as f64));
        let rate = match (pace.measured.filter(|rate| *rate > 0.0), limit) {
            (Some(measured), Some(limit)) => measured.min(limit),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return None,
        };
        Duration::try_from_secs_f64((bytes / rate).ceil()).ok()
    }

    /// Millionths of money: once (requests, and bytes read), and a month for what is new.
    #[must_use]
    pub fn cost(&self) -> (u64, u64) {
        let price = |id: &BackendId| {
            self.after.get(id).map_or_else(Price::default, |place| place.settings.price)
        };
        let (mut once, mut month) = (0u128, 0u128);
        for (id, healed) in &self.healed {
            let price = price(id);
            once += u128::from(price.request.0) * u128::from(healed.blocks);
            month += u128::from(price.gb_month.0) * u128::from(healed.bytes) / GB;
        }
        for (id, bytes) in &self.read_from {
            once += u128::from(price(id).gb_out.0) * u128::from(*bytes) / GB;
        }
        let whole = |money: u128| u64::try_from(money).unwrap_or(u64::MAX);
        (whole(once), whole(month))
    }

    /// The place as it stays.
    #[must_use]
    pub fn place(&self, id: &BackendId) -> Option<&Candidate> {
        self.after.get(id)
    }

    /// Places that would stay and are in reach.
    #[must_use]
    pub fn left(&self) -> usize {
        let gone = |id: &BackendId| self.gone.contains(id);
        let there = |place: &&Candidate| place.state != BackendState::Down && !gone(&place.id);
        self.after.all.iter().filter(there).count()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::backends::{Micros, PlaceSettings};
    use crate::metadata::{CopyRecord, PinState, VerifyMethod};
    use crate::types::{Timestamp, cid};

    fn place(n: usize, domain: usize, down: bool) -> Candidate {
        let id = if n == 0 { BackendId::local() } else { format!("b{n}").parse().unwrap() };
        Candidate {
            id,
            domains: [format!("d{domain}"), "h".into(), "s".into(), "p".into()],
            durable: true,
            cache: false,
            state: if down { BackendState::Down } else { BackendState::Up },
            readable: !down,
            available: !down,
            space: None,
            room: None,
            stopped: false,
            draining: false,
            paused: false,
            given_up: false,
            trusted_since: Timestamp::default(),
            latency: Duration::ZERO,
            mebibyte: Duration::ZERO,
            settings: PlaceSettings::default(),
        }
    }

    fn record(copies: &[(usize, CopyState)], size: u64) -> ContentRecord {
        let copy = |(n, state): &(usize, CopyState)| CopyRecord {
            backend: if *n == 0 { BackendId::local() } else { format!("b{n}").parse().unwrap() },
            state: *state,
            at: Timestamp { seconds: 1, nanoseconds: 0 },
            method: VerifyMethod::ReadBack,
        };
        ContentRecord {
            size,
            tsize: size,
            blocks: 1,
            refs: 1,
            profile: String::new(),
            min: 2,
            target: 3,
            max: 5,
            pin: PinState::AtTarget,
            copies: copies.iter().map(copy).collect(),
            holes: 0,
            policies: Vec::new(),
            created_s: 0,
            accessed_s: 0,
        }
    }

    const STATES: [CopyState; 4] =
        [CopyState::Claimed, CopyState::Verified, CopyState::Corrupt, CopyState::Released];

    fn moment(places: &Places) -> Moment<'_> {
        Moment { places, now: Timestamp::default(), proof_age: Duration::from_hours(24) }
    }

    type Rows = Vec<std::collections::BTreeMap<usize, usize>>;

    proptest! {
        /// Against sets that are written down plainly.
        #[test]
        fn a_loss_is_counted_as_a_plain_model_counts_it(
            domains in prop::collection::vec((0usize..5, any::<bool>()), 1..7),
            rows in prop::collection::vec(prop::collection::btree_map(0usize..7, 0usize..4, 0..6), 0..30),
            gone in prop::collection::btree_set(0usize..7, 0..4),
            limits in prop::array::uniform2(1u8..5),
        ) {
            let rows: Rows = rows;
            let all: Vec<Candidate> =
                domains.iter().enumerate().map(|(n, (d, down))| place(n, *d, *down && n > 0)).collect();
            let policy = Policy { min: limits[0].min(limits[1]), target: limits[0].max(limits[1]), ..Policy::default() };
            let ids: Vec<BackendId> = gone.iter().filter_map(|n| all.get(*n)).map(|p| p.id.clone()).collect();
            let places = Places::new(all.clone());
            let mut loss = Loss::new(&ids, &moment(&places));
            let (mut lost, mut uncertain, mut min, mut target, mut lacking) = (0, 0, 0, 0, 0);
            for (n, row) in rows.iter().enumerate() {
                let copies: Vec<(usize, CopyState)> =
                    row.iter().map(|(place, state)| (*place, STATES[*state])).collect();
                loss.add(&cid::of_raw(&n.to_le_bytes()), &record(&copies, 10), &policy);
                let known = |n: &usize| *n < domains.len();
                let good: BTreeSet<usize> =
                    row.iter().filter(|(n, s)| known(n) && **s < 2).map(|(n, _)| *n).collect();
                let apart = |places: &BTreeSet<usize>| places.iter().map(|n| domains[*n].0).collect::<BTreeSet<_>>().len();
                let left: BTreeSet<usize> = good.iter().filter(|n| !gone.contains(n)).copied().collect();
                let touched = row.keys().any(|n| known(n) && gone.contains(n));
                if good.is_empty() || !touched {
                    continue;
                }
                // Of a place that the volume does not have, the row still claims a copy.
                let claimed_anywhere = row.iter().any(|(n, s)| *s < 2 && !(known(n) && gone.contains(n)));
                let proven = left.iter().any(|n| row[n] == 1 && !(domains[*n].1 && *n > 0));
                lost += u64::from(!claimed_anywhere);
                uncertain += u64::from(claimed_anywhere && !proven);
                let (before, after) = (apart(&good), apart(&left));
                min += u64::from(before >= usize::from(policy.min) && after < usize::from(policy.min));
                target += u64::from(before >= usize::from(policy.target) && after < usize::from(policy.target));
                lacking += u64::from(after > 0 && after < usize::from(policy.target));
            }
            prop_assert_eq!(loss.contents, rows.len() as u64);
            prop_assert_eq!(loss.lost.contents, lost);
            prop_assert_eq!(loss.uncertain.contents, uncertain);
            prop_assert_eq!(loss.below_min.contents, min);
            prop_assert_eq!(loss.below_target.contents, target);
            let copied: u64 = loss.healed.values().map(|healed| healed.copies).sum();
            prop_assert!(lacking == 0 || copied + loss.unplaced.copies > 0);
            for id in loss.healed.keys() {
                prop_assert!(id.is_local() || !ids.contains(id), "a copy at a place that is gone");
            }
            let bytes: u64 = loss.healed.values().map(|healed| healed.bytes).sum();
            prop_assert_eq!(bytes, copied * 10);
        }
    }

    #[test]
    fn a_loss_is_healed_tier_by_tier_as_the_planner_does_it() {
        let mut all: Vec<Candidate> = (0..6).map(|n| place(n, n, false)).collect();
        for (n, tier) in [(1, "ssd"), (2, "ssd"), (3, "disk")] {
            all[n].settings.tier = Some(tier.to_owned());
        }
        let policy: Policy = "min=1,target=3,level=PROGRESSIVE,tiers=disk:1/ssd:1".parse().unwrap();
        let places = Places::new(all);
        let mut loss = Loss::new(&["b1".parse().unwrap()], &moment(&places));
        let held = [(0, CopyState::Verified), (1, CopyState::Verified), (3, CopyState::Verified)];
        for n in 0..40u8 {
            loss.add(&cid::of_raw(&[n]), &record(&held, 10), &policy);
        }
        // The others have no tier: the one that is left of the tier gets all.
        let to: Vec<(&str, u64)> =
            loss.healed.iter().map(|(id, healed)| (id.as_str(), healed.copies)).collect();
        assert_eq!((to, loss.unplaced.copies), (vec![("b2", 40)], 0));
    }

    #[test]
    fn a_loss_says_where_copies_would_go_how_long_that_takes_and_what_it_costs() {
        let mut all: Vec<Candidate> = (0..4).map(|n| place(n, n, false)).collect();
        all[2].settings.price.gb_month = Micros(20_000);
        all[2].settings.price.request = Micros(5);
        all[3].space = Some((1 << 40, 15));
        let policy = Policy {
            min: 2,
            target: 3,
            prefer: ["b3".parse().unwrap()].into(),
            ..Policy::default()
        };
        let places = Places::new(all);
        let mut loss = Loss::new(&["b1".parse().unwrap()], &moment(&places));
        let held = record(&[(0, CopyState::Verified), (1, CopyState::Verified)], 10);
        for n in 0..2u8 {
            loss.add(&cid::of_raw(&[n]), &held, &policy);
        }
        // The preferred place has room for one.
        assert_eq!(loss.healed[&"b3".parse().unwrap()].copies, 1);
        assert_eq!(loss.healed[&"b2".parse().unwrap()].copies, 2);
        assert_eq!((loss.unplaced.copies, loss.below_min.contents, loss.lost.contents), (1, 2, 0));
        assert_eq!(loss.cost().0, 2 * 5);
        let healed = Healed { copies: 1, bytes: 1000, blocks: 1 };
        let pace = |measured, limit| Loss::takes(&healed, Pace { measured, limit });
        assert_eq!(pace(None, None), None, "nothing was measured");
        assert_eq!(pace(Some(500.0), None), Some(Duration::from_secs(2)));
        assert_eq!(pace(Some(500.0), Some(100)), Some(Duration::from_secs(10)));
        assert_eq!(pace(None, Some(1000)), Some(Duration::from_secs(1)));
    }
}
