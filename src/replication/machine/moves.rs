//! Copies that are to move from one place to another: which ones, and how far each is.
//! Pure.
//!
//! A wish is a row (`metadata::MoveRecord`). What it asks of a single content is worked
//! out here from the copies as they are, so that a crash at any step repeats nothing and
//! forgets nothing: first the new copy, then its proof, then the old one goes by the rules
//! that hold for every copy that is given up. The policy stands above the wish.

use std::collections::HashMap;

use super::super::{BackendState, Strategy};
use super::places::{DomainSet, Standing};
use super::planner::{Content, Moment, is_active, of_tier};
use crate::types::{BackendId, Cid};

/// Contents that are on their way at the same time.
pub const WINDOW: usize = 16_384;

/// The copies that are to move.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moves {
    /// The first of each takes new copies last, and what is missing of its contents goes
    /// to the second first.
    pairs: Vec<(BackendId, BackendId)>,
    /// Between which places contents move, and the contents.
    ways: Vec<(BackendId, BackendId)>,
    window: HashMap<Cid, usize>,
}

/// How far the move of one content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// There is nothing (left) to move.
    Done,
    /// It is not moved, and why.
    Stays(&'static str),
    /// It is not moved now, and why.
    Waits(&'static str),
    /// The new copy is to be made.
    Send,
    /// It is there: the old one may go as soon as enough others are proven.
    Leave,
}

impl Moves {
    /// These pairs of places, without contents.
    #[must_use]
    pub fn of_pairs(pairs: Vec<(BackendId, BackendId)>) -> Self {
        Self { pairs, ..Self::default() }
    }

    /// Contents under way stay.
    pub fn set_pairs(&mut self, pairs: Vec<(BackendId, BackendId)>) {
        self.pairs = pairs;
    }

    /// The place that takes new copies last.
    #[must_use]
    pub fn is_retiring(&self, id: &BackendId) -> bool {
        self.pairs.iter().any(|(from, _)| from == id)
    }

    /// What stands in for a place.
    #[must_use]
    pub fn successor(&self, id: &BackendId) -> Option<&BackendId> {
        self.pairs.iter().find(|(from, _)| from == id).map(|(_, to)| to)
    }

    /// From where to where a content is to move.
    #[must_use]
    pub fn of(&self, root: &Cid) -> Option<&(BackendId, BackendId)> {
        self.ways.get(*self.window.get(root)?)
    }

    /// Takes a content up; false when there is no room.
    pub fn add(&mut self, root: Cid, from: &BackendId, to: &BackendId) -> bool {
        if self.window.len() >= WINDOW && !self.window.contains_key(&root) {
            return false;
        }
        let known = self.ways.iter().position(|(a, b)| a == from && b == to);
        let way = known.unwrap_or_else(|| {
            self.ways.push((from.clone(), to.clone()));
            self.ways.len() - 1
        });
        self.window.insert(root, way);
        true
    }

    /// It is done, or is to stay.
    pub fn drop(&mut self, root: &Cid) {
        self.window.remove(root);
        if self.window.is_empty() {
            self.ways.clear();
        }
    }

    /// Contents that are under way.
    pub fn contents(&self) -> impl Iterator<Item = &Cid> {
        self.window.keys()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.window.len()
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.window.is_empty()
    }
}

impl Content<'_> {
    /// How far a move of this content is.
    #[must_use]
    pub fn stage(&self, from: &BackendId, to: &BackendId, moment: &Moment<'_>) -> Stage {
        let places = moment.places;
        let (Some(from), Some(to)) = (places.number(from), places.number(to)) else {
            return Stage::Stays("its place is not the volume's any more");
        };
        if places.all[from].id.is_local() || places.all[to].id.is_local() || from == to {
            return Stage::Stays("the local store has its own copy");
        }
        let standing = |number: usize| {
            let id = &places.all[number].id;
            let copy = self.record.copies.iter().find(|copy| copy.backend == *id)?;
            places.standing(copy).map(|(_, standing)| standing)
        };
        let (source, sink) = (&places.all[from], &places.all[to]);
        if standing(from) != Some(Standing::Good) || self.is_unwanted(source, moment.now) {
            return Stage::Done;
        }
        let weightless = self.policy.strategy == Strategy::Custom
            && self.policy.weights.get(&sink.id).is_some_and(|weight| *weight == 0);
        if weightless || !sink.durable || self.is_unwanted(sink, moment.now) {
            return Stage::Stays("its policy wants no copy there");
        }
        // The good copies that stay, and the new one.
        let mut after: Vec<usize> = vec![to];
        for copy in &self.record.copies {
            if let Some((number, Standing::Good)) = places.standing(copy)
                && number != from
                && number != to
                && !self.is_unwanted(&places.all[number], moment.now)
            {
                after.push(number);
            }
        }
        if let Err(why) = self.suffices(&after, source.settings.tier.as_deref(), moment) {
            return Stage::Stays(why);
        }
        if standing(to) == Some(Standing::Good) {
            return Stage::Leave;
        }
        match sink.state {
            BackendState::Down => Stage::Waits("the place it goes to is down"),
            BackendState::ReadOnly => Stage::Waits("the place it goes to is read-only"),
            BackendState::Full => Stage::Waits("the place it goes to is full"),
            _ if sink.paused => Stage::Waits("the place it goes to is paused"),
            _ if sink.stopped => Stage::Waits("the place it goes to is above its stop threshold"),
            _ if !sink.takes(self.record.stored_bytes()) => {
                Stage::Waits("the place it goes to has too little space")
            }
            _ => Stage::Send,
        }
    }

    /// Whether these copies are what the policy wants.
    fn suffices(
        &self,
        after: &[usize],
        tier: Option<&str>,
        moment: &Moment<'_>,
    ) -> Result<(), &'static str> {
        let (places, policy) = (moment.places, self.policy);
        let apart = |numbers: &mut dyn Iterator<Item = usize>| {
            let mut domains = DomainSet::default();
            for number in numbers {
                domains.insert(places.domain(number, policy.distinct));
            }
            domains.len()
        };
        if apart(&mut after.iter().copied()) < usize::from(policy.target) {
            return Err("without both it would have fewer copies than its target");
        }
        let active = |rule: &&super::super::TierRule| {
            tier == Some(rule.tier.as_str()) && is_active(rule, self.record, moment.now)
        };
        for rule in policy.tiers.iter().filter(active) {
            let of_it = after.iter().copied().filter(|n| of_tier(&places.all[*n], &rule.tier));
            if apart(&mut of_it.into_iter()) < usize::from(rule.copies) {
                return Err("its tier would have too few copies");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::cid;

    #[test]
    fn contents_under_way_are_bounded_and_each_has_one_way() {
        let [a, b, c] = ["a", "b", "c"].map(|id| id.parse::<BackendId>().unwrap());
        let mut moves = Moves::of_pairs(vec![(a.clone(), b.clone())]);
        assert!(moves.is_retiring(&a) && !moves.is_retiring(&b));
        assert_eq!(moves.successor(&a), Some(&b));
        for n in 0..WINDOW {
            assert!(moves.add(cid::of_raw(&n.to_le_bytes()), &a, &b));
        }
        let (first, other) = (cid::of_raw(&0usize.to_le_bytes()), cid::of_raw(b"other"));
        assert!(!moves.add(other, &a, &b), "there is no room");
        assert!(moves.add(first, &a, &c), "what is known may get another way");
        assert_eq!(moves.of(&first), Some(&(a.clone(), c)));
        moves.drop(&first);
        assert!(moves.of(&first).is_none() && moves.add(other, &a, &b));
        assert_eq!(moves.len(), WINDOW);
    }
}
