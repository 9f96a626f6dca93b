//! Nodes that a place holds with all that is below them, as far as that is known.
//!
//! A node is put after all that it links to, so one that is there was whole when it was
//! put. That was perhaps long ago: what was lost or rotted away under it since would be
//! spread to every content that shares it. So a walk that sends looks below a node that
//! is there, once in `dedup_proof_s` and life of the backend's handle.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backends::Backend;
use crate::types::{BackendId, Cid};

/// Nodes that are remembered of a place; what is forgotten is looked below again.
const REMEMBERED: usize = 16_384;

/// What is known of one place. It was opened anew: nothing.
#[derive(Default)]
struct Known {
    handle: Option<Weak<dyn Backend>>,
    nodes: HashMap<Cid, Instant>,
}

/// Of all places.
#[derive(Default)]
pub(super) struct Whole(Mutex<HashMap<BackendId, Known>>);

/// One place, as a walk asks.
pub(super) struct Below<'b> {
    pub id: &'b BackendId,
    pub backend: &'b Arc<dyn Backend>,
    pub whole: &'b Whole,
    /// For how long it is relied on.
    pub age: Duration,
}

impl Below<'_> {
    /// Whether the node was found to be whole, not long ago.
    pub fn is_whole(&self, node: &Cid) -> bool {
        let all = self.whole.0.lock();
        let Some(known) = all.get(self.id).filter(|known| known.is_of(self.backend)) else {
            return false;
        };
        known.nodes.get(node).is_some_and(|at| at.elapsed() <= self.age)
    }

    /// These were walked to the end: all below them is there.
    pub fn note(&self, nodes: &[Cid]) {
        if nodes.is_empty() {
            return;
        }
        let mut all = self.whole.0.lock();
        let known = all.entry(self.id.clone()).or_default();
        if !known.is_of(self.backend) {
            *known = Known { handle: Some(Arc::downgrade(self.backend)), ..Known::default() };
        }
        if known.nodes.len() + nodes.len() > REMEMBERED {
            known.nodes.clear();
        }
        let now = Instant::now();
        known.nodes.extend(nodes.iter().take(REMEMBERED).map(|node| (*node, now)));
    }
}

impl Known {
    fn is_of(&self, backend: &Arc<dyn Backend>) -> bool {
        let held = self.handle.as_ref();
        held.is_some_and(|held| Weak::ptr_eq(held, &Arc::downgrade(backend)))
    }
}
