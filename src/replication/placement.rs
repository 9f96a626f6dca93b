//! Which backends get a content. Pure.

use std::collections::BTreeSet;
use std::hash::Hasher;

use crate::metadata::{CopyRecord, CopyState, PinState};
use crate::types::{BackendId, Cid};

/// A backend as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub id: BackendId,
    pub domain: String,
    /// Takes writes now.
    pub available: bool,
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

/// Backends that should get a copy now: up to `target` distinct domains in
/// all, by rendezvous hashing, so that contents spread and a choice is stable.
pub(super) fn choose(
    root: &Cid,
    target: u8,
    held: &BTreeSet<String>,
    candidates: &[Candidate],
) -> Vec<BackendId> {
    let weight = |id: &BackendId| {
        // FNV would do; the default hasher with fixed keys is stable in a build,
        // and a choice need only be stable while copies are made.
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&root.to_bytes());
        hasher.write(id.as_str().as_bytes());
        hasher.finish()
    };
    let mut ordered: Vec<&Candidate> = candidates.iter().filter(|c| c.available).collect();
    ordered.sort_by_key(|c| std::cmp::Reverse(weight(&c.id)));
    let mut covered = held.clone();
    let mut chosen = Vec::new();
    for candidate in ordered {
        if covered.len() >= usize::from(target) {
            break;
        }
        if covered.insert(candidate.domain.clone()) {
            chosen.push(candidate.id.clone());
        }
    }
    chosen
}
