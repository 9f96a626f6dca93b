//! Everything that lives: a streamed mark in bounded memory.

use std::collections::HashSet;

use bytes::Bytes;

use crate::content::{ContentError, inline_block, parse_node};
use crate::store::MarkSet;
use crate::types::{Cid, cid};

/// Most memory of a mark: some 50 million blocks; beyond that garbage stays.
const MARK_BYTES: u64 = 64 << 20;
/// Nodes whose children are known to be marked (some 20 bytes each); then forgotten
/// and met again.
const SEEN_MAX: usize = 512 * 1024;

/// A mark that is being made.
pub struct Mark {
    marks: MarkSet,
    /// Certain, where the marks are not. Of walks that need every node, and of
    /// those that pass over nodes that are not here.
    whole: HashSet<[u8; 16]>,
    partial: HashSet<[u8; 16]>,
}

impl Mark {
    /// For about so many blocks.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        Self {
            marks: MarkSet::new(blocks.saturating_add(4096), MARK_BYTES),
            whole: HashSet::new(),
            partial: HashSet::new(),
        }
    }

    /// Marks all blocks of a content. `load` brings a node; `None` is one that is
    /// not here and not needed, and makes the walk `partial`. Memory: the links of
    /// the nodes on one path.
    ///
    /// # Errors
    /// Of `load`, and of a node that is none: then nothing is known to be dead.
    pub fn content<E: From<ContentError>>(
        &mut self,
        root: &Cid,
        partial: bool,
        load: &mut dyn FnMut(&Cid) -> Result<Option<Bytes>, E>,
    ) -> Result<(), E> {
        let mut stack = vec![*root];
        while let Some(id) = stack.pop() {
            self.marks.insert(&id);
            if id.codec() != cid::DAG_PB || !self.remember(&id, partial) {
                continue;
            }
            let block = match inline_block(&id) {
                Some(block) => Some(block),
                None => load(&id)?,
            };
            if let Some(block) = block {
                stack.extend(parse_node(&id, &block)?.children());
            }
        }
        Ok(())
    }

    /// Marks one block.
    pub fn block(&mut self, id: &Cid) {
        self.marks.insert(id);
    }

    /// Whether it may live; false is certain.
    #[must_use]
    pub fn contains(&self, id: &Cid) -> bool {
        self.marks.contains(id)
    }

    /// Whether all below a node is certainly marked; false when that is not known.
    #[must_use]
    pub fn is_walked(&self, id: &Cid) -> bool {
        self.whole.contains(&key(id))
    }

    /// Whether a part of what is dead stays because the mark is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.marks.is_saturated()
    }

    /// The marks alone.
    #[must_use]
    pub fn into_marks(self) -> MarkSet {
        self.marks
    }

    /// False when the node's children are marked already.
    fn remember(&mut self, id: &Cid, partial: bool) -> bool {
        if self.is_walked(id) {
            return false;
        }
        let seen = if partial { &mut self.partial } else { &mut self.whole };
        if seen.len() >= SEEN_MAX {
            seen.clear();
        }
        seen.insert(key(id))
    }
}

/// Half of a digest: two nodes with the same half are as hard to find as one.
fn key(id: &Cid) -> [u8; 16] {
    let mut key = [0; 16];
    for (to, from) in key.iter_mut().zip(id.hash().digest()) {
        *to = *from;
    }
    key
}
