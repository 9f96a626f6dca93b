//! Which backends get a content. Pure.

use std::collections::BTreeSet;

use super::BackendState;
use crate::metadata::{CopyRecord, CopyState, PinState};
use crate::types::{BackendId, Cid};

/// A backend as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub id: BackendId,
    pub domain: String,
    /// What it took survives a crash there: else a copy counts for nothing.
    pub durable: bool,
    pub state: BackendState,
    /// Takes writes now.
    pub available: bool,
    /// Bytes in all and bytes free, when known.
    pub space: Option<(u64, u64)>,
}

impl Candidate {
    /// Takes a write of so many bytes now.
    pub fn takes(&self, size: u64) -> bool {
        self.available && self.space.is_none_or(|(_, free)| free >= size)
    }
}

/// What placement decided, and why it passed the others over.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    pub selected: Vec<BackendId>,
    pub passed_over: Vec<(BackendId, &'static str)>,
}

/// Failure domains that hold a good copy; two copies in one count once.
pub(super) fn domains<'a>(
    copies: impl IntoIterator<Item = &'a CopyRecord>,
    domain_of: &dyn Fn(&BackendId) -> Option<String>,
) -> BTreeSet<String> {
    copies
        .into_iter()
        .filter(|copy| matches!(copy.state, CopyState::Claimed | CopyState::Verified))
        .filter_map(|copy| domain_of(&copy.backend))
        .collect()
}

/// Where a number of distinct copies stands.
pub(super) fn judge(min: u8, target: u8, max: u8, copies: usize) -> PinState {
    match copies {
        n if n < usize::from(min) => PinState::BelowMin,
        n if n < usize::from(target) => PinState::BelowTarget,
        n if n <= usize::from(max) => PinState::AtTarget,
        _ => PinState::OverMax,
    }
}

/// Hashes to 64 well-mixed bits: FNV-1a, then the finisher of splitmix64. The
/// same for ever, unlike the standard library's hasher, so that a choice holds
/// over releases.
fn mix(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in parts.iter().flat_map(|part| part.iter()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Weighted rendezvous hashing: contents spread in proportion to free space, and
/// a backend that comes or goes moves only its own share.
#[expect(clippy::cast_precision_loss, reason = "weights need no more than 52 bits")]
fn score(root: &Cid, candidate: &Candidate) -> f64 {
    // Tenths, so that a choice does not move with every block that is written.
    let weight = candidate.space.map_or(10, |(capacity, free)| {
        free.saturating_mul(10).checked_div(capacity).unwrap_or(0).clamp(1, 10)
    });
    let hash = mix(&[&root.to_bytes(), candidate.id.as_str().as_bytes()]);
    let uniform = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
    weight as f64 / -uniform.ln()
}

/// Backends that should get a copy of `size` bytes now: up to `target` distinct
/// domains in all, when `covered` ones have it already or will. A backend in
/// `damaged` (its copy is bad) comes first, then those that answer without
/// errors, then by score.
pub(super) fn choose(
    root: &Cid,
    target: usize,
    size: u64,
    covered: &BTreeSet<String>,
    damaged: &BTreeSet<BackendId>,
    candidates: &[Candidate],
) -> Choice {
    let mut ordered: Vec<(&Candidate, f64)> =
        candidates.iter().map(|candidate| (candidate, score(root, candidate))).collect();
    ordered.sort_by(|(a, a_score), (b, b_score)| {
        let rank = |c: &Candidate| (!damaged.contains(&c.id), c.state != BackendState::Up);
        rank(a).cmp(&rank(b)).then(b_score.total_cmp(a_score)).then(a.id.cmp(&b.id))
    });
    let mut covered = covered.clone();
    let mut choice = Choice::default();
    for (candidate, _) in ordered {
        let why_not = match candidate.state {
            BackendState::Down => Some("down"),
            BackendState::ReadOnly => Some("read-only"),
            BackendState::Full => Some("full"),
            _ if !candidate.durable => Some("not durable"),
            _ if !candidate.available => Some("not open"),
            _ if candidate.space.is_some_and(|(_, free)| free < size) => Some("too little space"),
            _ if covered.contains(&candidate.domain) => Some("its failure domain has a copy"),
            _ if covered.len() >= target => Some("not needed"),
            _ => None,
        };
        if let Some(reason) = why_not {
            choice.passed_over.push((candidate.id.clone(), reason));
        } else {
            covered.insert(candidate.domain.clone());
            choice.selected.push(candidate.id.clone());
        }
    }
    choice
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::cid;

    fn candidate(n: usize, domain: usize, state: BackendState, free: u64) -> Candidate {
        Candidate {
            id: format!("b{n}").parse().unwrap(),
            domain: format!("d{domain}"),
            durable: true,
            state,
            available: matches!(state, BackendState::Up | BackendState::Degraded),
            space: Some((1000, free)),
        }
    }

    fn states() -> impl Strategy<Value = BackendState> {
        prop_oneof![
            4 => Just(BackendState::Up),
            1 => Just(BackendState::Degraded),
            1 => Just(BackendState::Down),
            1 => Just(BackendState::ReadOnly),
            1 => Just(BackendState::Full),
        ]
    }

    proptest! {
        #[test]
        fn a_choice_has_distinct_domains_in_reach_and_reaches_the_target_if_it_can(
            backends in prop::collection::vec((0usize..6, states(), 0u64..1000), 0..8),
            target in 1usize..6,
            size in 0u64..500,
            seed in any::<u64>(),
        ) {
            let candidates: Vec<Candidate> = backends
                .iter()
                .enumerate()
                .map(|(n, (domain, state, free))| candidate(n, *domain, *state, *free))
                .collect();
            let root = cid::of_raw(&seed.to_le_bytes());
            let local = BTreeSet::from(["d0".to_owned()]);
            let choice = choose(&root, target, size, &local, &BTreeSet::new(), &candidates);
            let by_id = |id: &BackendId| candidates.iter().find(|c| c.id == *id).unwrap();
            let mut seen = local.clone();
            for id in &choice.selected {
                let chosen = by_id(id);
                prop_assert!(chosen.available && chosen.space.unwrap().1 >= size);
                prop_assert!(seen.insert(chosen.domain.clone()), "two copies in one domain");
            }
            let mut possible = local.clone();
            possible.extend(
                candidates
                    .iter()
                    .filter(|c| c.available && c.space.unwrap().1 >= size)
                    .map(|c| c.domain.clone()),
            );
            prop_assert_eq!(seen.len(), target.min(possible.len()).max(1));
            prop_assert_eq!(choice.selected.len() + choice.passed_over.len(), candidates.len());
            let mut shuffled = candidates.clone();
            shuffled.reverse();
            let again = choose(&root, target, size, &local, &BTreeSet::new(), &shuffled);
            prop_assert_eq!(choice.selected, again.selected);
        }
    }

    #[test]
    fn contents_spread_in_proportion_to_free_space() {
        let candidates =
            [candidate(1, 1, BackendState::Up, 900), candidate(2, 2, BackendState::Up, 300)];
        let mut first = 0;
        for n in 0..4000u32 {
            let root = cid::of_raw(&n.to_le_bytes());
            let choice = choose(&root, 1, 1, &BTreeSet::new(), &BTreeSet::new(), &candidates);
            first += u32::from(choice.selected[0].as_str() == "b1");
        }
        assert!((2800..3200).contains(&first), "{first} of 4000 went to the emptier backend");
    }

    #[test]
    fn a_backend_with_a_damaged_copy_is_asked_first_and_reasons_are_given() {
        let candidates = [
            candidate(1, 1, BackendState::Up, 900),
            candidate(2, 2, BackendState::Degraded, 900),
            candidate(3, 3, BackendState::Down, 900),
        ];
        let damaged = BTreeSet::from(["b2".parse().unwrap()]);
        let root = cid::of_raw(b"root");
        let choice = choose(&root, 1, 1, &BTreeSet::new(), &damaged, &candidates);
        assert_eq!(choice.selected, ["b2".parse().unwrap()]);
        let reasons: Vec<&str> = choice.passed_over.iter().map(|(_, why)| *why).collect();
        assert_eq!(reasons, ["not needed", "down"]);
    }
}
