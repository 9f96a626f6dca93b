use std::sync::Arc;

use super::Strategy;
use super::machine::Holds;
use crate::types::{BackendId, Cid};

/// What is known of where a content lies, for who reads its blocks. By default nothing:
/// then any place may have them.
#[derive(Debug, Clone, Default)]
pub struct Whereabouts(Option<Arc<Known>>);

#[derive(Debug)]
struct Known {
    root: Cid,
    copies: Vec<(BackendId, Holds)>,
    strategy: Strategy,
}

impl Whereabouts {
    /// Of a content with these good copies besides the local one; without any, nothing
    /// is known.
    pub(super) fn new(root: Cid, copies: Vec<(BackendId, Holds)>, strategy: Strategy) -> Self {
        if copies.is_empty() {
            return Self::default();
        }
        Self(Some(Arc::new(Known { root, copies, strategy })))
    }

    /// What is known of a place; `None`: nothing of any.
    pub(super) fn at(&self, id: &BackendId) -> Option<Holds> {
        let known = self.0.as_ref()?;
        let copy = known.copies.iter().find(|(backend, _)| backend == id);
        Some(copy.map_or(Holds::No, |(_, holds)| *holds))
    }

    /// The content that a place with a copy of it should have in whole.
    pub(super) fn root_at(&self, id: &BackendId) -> Option<Cid> {
        let known = self.0.as_ref()?;
        known.copies.iter().any(|(backend, _)| backend == id).then_some(known.root)
    }

    /// The strategy of the content's policy.
    pub(super) fn strategy(&self) -> Option<Strategy> {
        self.0.as_ref().map(|known| known.strategy)
    }
}
