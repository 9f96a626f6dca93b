//! In which order places are asked for a block. Pure: what is known is given.
//!
//! 1. Places that are said to hold the content come before those that are not.
//! 2. A place that lately gave wrong bytes comes last of these; before it those that
//!    lacked a block lately, flap, or fail now and then.
//! 3. Then the quickest for a block of this size, as measured. Times within a factor of
//!    one and a half or so, and all below a millisecond, are equal. A copy that was
//!    never read back counts as twice as slow.
//! 4. Of equal ones the cheapest by price per byte and per request, then the one with
//!    the fewest reads under way. With the strategy `cost` the price comes before 3.
//!
//! A place that was never measured, or long ago, is tried by one read at a time.

use std::time::Duration;

use super::speed::Trust;
use crate::backends::Price;
use crate::types::BackendId;

/// What is known of the content's copy at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holds {
    /// It was read back.
    Verified,
    /// The place said so; also where nothing is known of the content.
    Claimed,
    /// No good copy is known there.
    No,
}

/// A place that may have a block.
#[derive(Debug, Clone, Copy)]
pub struct Source<'p> {
    /// Its id: settles what else is equal.
    pub id: &'p BackendId,
    /// How far it is believed.
    pub trust: Trust,
    /// What is known of the copy there.
    pub holds: Holds,
    /// How long the block will take; `None`: never measured.
    pub expected: Option<Duration>,
    /// The same, less for what was measured long ago.
    pub expected_now: Option<Duration>,
    /// Reads under way there.
    pub busy: u32,
    /// Prices.
    pub price: Price,
}

/// Of a place that was never measured and is being tried.
const UNKNOWN: Duration = Duration::from_millis(250);

/// What decides, and what settles what is equal.
type Rank<'r> = ((bool, Trust, u128, u128), (u32, u64, &'r BackendId));

impl Source<'_> {
    /// Microseconds that it counts with.
    fn time(&self) -> u64 {
        let expected = if self.busy == 0 {
            self.expected_now.unwrap_or_default()
        } else {
            self.expected.unwrap_or(UNKNOWN)
        };
        let micros = u64::try_from(expected.as_micros()).unwrap_or(u64::MAX);
        micros.saturating_mul(if self.holds == Holds::Verified { 1 } else { 2 })
    }

    /// What reading so many bytes costs, in 10^-15 of the user's money.
    fn cost(&self, bytes: u64) -> u128 {
        u128::from(self.price.request.0) * 1_000_000_000
            + u128::from(self.price.gb_out.0) * u128::from(bytes)
    }

    /// The order: lower first.
    fn rank(&self, bytes: u64, by_cost: bool) -> Rank<'_> {
        let (time, cost) = (u128::from(half_doublings(self.time())), self.cost(bytes));
        let (first, second) = if by_cost { (cost, time) } else { (time, cost) };
        let absent = self.holds == Holds::No;
        ((absent, self.trust, first, second), (self.busy, self.time(), self.id))
    }
}

/// Times in steps of about the square root of two; all below a millisecond are one.
fn half_doublings(micros: u64) -> u32 {
    let micros = micros.max(1000);
    let whole = micros.ilog2();
    // 1.5 is near enough to the square root of two.
    whole * 2 + u32::from(micros >> (whole - 1) & 1 == 1)
}

/// Sorts places for a block of so many bytes; `by_cost`: the policy's strategy is `cost`.
pub fn order(sources: &mut [Source<'_>], bytes: u64, by_cost: bool) {
    sources.sort_by(|a, b| a.rank(bytes, by_cost).cmp(&b.rank(bytes, by_cost)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backends::Micros;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn place(id: &BackendId) -> Source<'_> {
        let (price, known) = (Price::default(), Some(MS(10)));
        let (trust, holds) = (Trust::Good, Holds::Verified);
        Source { id, trust, holds, expected: known, expected_now: known, busy: 0, price }
    }

    fn first(change: impl Fn(&mut Source<'_>, &mut Source<'_>), by_cost: bool) -> &'static str {
        let ids: [BackendId; 2] = ["a".parse().unwrap(), "b".parse().unwrap()];
        let (mut a, mut b) = (place(&ids[0]), place(&ids[1]));
        change(&mut a, &mut b);
        let mut both = [a, b];
        order(&mut both, 1 << 20, by_cost);
        if both[0].id == &ids[0] { "a" } else { "b" }
    }

    fn takes(place: &mut Source<'_>, ms: u64) {
        (place.expected, place.expected_now) = (Some(MS(ms)), Some(MS(ms)));
    }

    #[test]
    fn the_quickest_comes_first_and_of_equal_ones_the_cheapest_then_the_idlest() {
        assert_eq!(first(|a, _| takes(a, 40), false), "b");
        assert_eq!(first(|a, _| a.price.gb_out = Micros(1), false), "b");
        assert_eq!(first(|a, _| a.price.request = Micros(1), false), "b");
        assert_eq!(first(|a, _| a.busy = 1, false), "b");
        let quicker = |a: &mut Source<'_>, b: &mut Source<'_>| {
            takes(b, 40);
            a.price.gb_out = Micros(90_000);
        };
        assert_eq!(first(quicker, false), "a", "time is dearer than money");
        assert_eq!(first(quicker, true), "b", "but for who asks for the cheapest");
        assert_eq!(first(|a, _| takes(a, 40), true), "b", "which costs the same");
        assert_eq!(first(|_, _| {}, false), "a");
    }

    #[test]
    fn who_misled_comes_after_who_did_not_and_who_has_no_copy_after_all() {
        let slow_and_dear = |b: &mut Source<'_>| {
            takes(b, 5000);
            b.price.gb_out = Micros(1_000_000);
        };
        for by_cost in [false, true] {
            let bad = |a: &mut Source<'_>, b: &mut Source<'_>| {
                a.trust = Trust::Bad;
                b.trust = Trust::Doubtful;
                slow_and_dear(b);
            };
            assert_eq!(first(bad, by_cost), "b");
            let absent = |a: &mut Source<'_>, b: &mut Source<'_>| {
                a.holds = Holds::No;
                b.trust = Trust::Bad;
                slow_and_dear(b);
            };
            assert_eq!(first(absent, by_cost), "b");
        }
    }

    #[test]
    fn a_copy_that_was_read_back_comes_before_a_claim_unless_it_is_much_slower() {
        assert_eq!(first(|a, _| a.holds = Holds::Claimed, false), "b");
        let slower = |a: &mut Source<'_>, b: &mut Source<'_>| {
            a.holds = Holds::Claimed;
            takes(b, 60);
        };
        assert_eq!(first(slower, false), "a");
    }

    #[test]
    fn what_was_never_measured_is_tried_by_one_read_at_a_time() {
        let unknown = |place: &mut Source<'_>| (place.expected, place.expected_now) = (None, None);
        assert_eq!(first(|_, b| unknown(b), false), "b");
        let tried = |_: &mut Source<'_>, b: &mut Source<'_>| {
            unknown(b);
            b.busy = 1;
        };
        assert_eq!(first(tried, false), "a");
    }

    fn any_source(id: BackendId) -> impl proptest::strategy::Strategy<Value = (BackendId, Facts)> {
        let trust = prop_oneof![Just(Trust::Good), Just(Trust::Doubtful), Just(Trust::Bad)];
        let holds = prop_oneof![Just(Holds::Verified), Just(Holds::Claimed), Just(Holds::No)];
        let time = proptest::option::of(0u64..20_000);
        (trust, holds, time, 0u32..4, 0u64..3, 0u64..3).prop_map(move |facts| (id.clone(), facts))
    }

    type Facts = (Trust, Holds, Option<u64>, u32, u64, u64);

    fn of_facts((id, facts): &(BackendId, Facts)) -> Source<'_> {
        let (trust, holds, time, busy, gb_out, request) = *facts;
        let mut price = Price::default();
        (price.gb_out, price.request) = (Micros(gb_out * 50_000), Micros(request));
        let expected = time.map(MS);
        Source { id, trust, holds, expected, expected_now: expected, busy, price }
    }

    proptest! {
        /// Whatever is known: each place once, the same order whatever order they come
        /// in, no distrusted holder before a trusted one, nothing dearer and slower first.
        #[test]
        fn the_order_is_one_and_nothing_worse_in_all_comes_first(
            places in ["a", "b", "c", "d", "e"].map(|id| any_source(id.parse().unwrap())),
            bytes in 0u64..(2 << 20),
            by_cost: bool,
            seed: u64,
        ) {
            let mut sorted: Vec<_> = places.iter().map(of_facts).collect();
            order(&mut sorted, bytes, by_cost);
            let ids = |all: &[Source<'_>]| all.iter().map(|s| s.id.clone()).collect::<Vec<_>>();
            let mut shuffled: Vec<_> = places.iter().map(of_facts).collect();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            order(&mut shuffled, bytes, by_cost);
            prop_assert_eq!(ids(&sorted), ids(&shuffled));
            let mut all = ids(&sorted);
            all.sort();
            all.dedup();
            prop_assert_eq!(all.len(), places.len());
            for (n, earlier) in sorted.iter().enumerate() {
                for later in &sorted[n + 1..] {
                    let no = |s: &Source<'_>| s.holds == Holds::No;
                    prop_assert!(no(later) || !no(earlier));
                    if no(later) != no(earlier) {
                        continue;
                    }
                    prop_assert!(earlier.trust <= later.trust);
                    if earlier.trust < later.trust {
                        continue;
                    }
                    let worse = earlier.time() >= later.time() * 3 / 2 + 1500
                        && earlier.cost(bytes) >= later.cost(bytes);
                    prop_assert!(!worse, "{earlier:?} before {later:?}");
                }
            }
        }
    }
}
