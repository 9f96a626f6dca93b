//! Copies that a reader found fault with: they are to be read back.

use std::collections::BTreeSet;
use std::ops::Bound;

use parking_lot::Mutex;

use crate::types::{BackendId, Cid};

/// So many at most; the scrub comes to the others.
const MOST: usize = 4096;
/// Looked at in one turn.
const TURN: usize = 64;

/// A content, and the place whose copy of it is doubted.
type Doubt = (Cid, BackendId);

#[derive(Debug, Default)]
struct State {
    doubted: BTreeSet<Doubt>,
    /// The last that was looked at: those that cannot be settled now hold up no others.
    last: Option<Doubt>,
}

/// The doubted copies. In memory: after a restart the scrub finds them.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<State>);

impl Doubts {
    pub fn add(&self, root: Cid, id: &BackendId) {
        let mut state = self.0.lock();
        if state.doubted.len() < MOST {
            state.doubted.insert((root, id.clone()));
        }
    }

    /// Looks at some; `settle` says which of them are doubted no more.
    pub fn settle(&self, mut settle: impl FnMut(&Cid, &BackendId) -> bool) {
        let turn: Vec<Doubt> = {
            let mut state = self.0.lock();
            let after = state.last.take().map_or(Bound::Unbounded, Bound::Excluded);
            let turn: Vec<Doubt> =
                state.doubted.range((after, Bound::Unbounded)).take(TURN).cloned().collect();
            state.last = turn.last().filter(|_| turn.len() == TURN).cloned();
            turn
        };
        for one in turn {
            if settle(&one.0, &one.1) {
                self.0.lock().doubted.remove(&one);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::cid;

    #[test]
    fn those_that_cannot_be_settled_hold_up_no_others_and_there_is_a_most() {
        let (doubts, id) = (Doubts::default(), BackendId::local());
        for n in 0..=MOST {
            doubts.add(cid::of_raw(&n.to_le_bytes()), &id);
            doubts.add(cid::of_raw(&n.to_le_bytes()), &id);
        }
        let mut looked = BTreeSet::new();
        for _ in 0..MOST / TURN {
            doubts.settle(|root, _| {
                looked.insert(*root);
                looked.len() % 2 == 0
            });
        }
        assert_eq!(looked.len(), MOST, "each once in a round");
        let mut left = 0;
        for _ in 0..=MOST / TURN / 2 {
            doubts.settle(|_, _| {
                left += 1;
                true
            });
        }
        assert_eq!(left, MOST / 2);
        doubts.settle(|_, _| panic!("none is left"));
    }
}
