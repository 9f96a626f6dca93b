use std::collections::HashSet;
use std::sync::Arc;
use std::vec::IntoIter;

use super::fetch::{Fetcher, Wanted};
use super::send::children;
use super::{ReplicationError, Whereabouts};
use crate::content::Node;
use crate::types::Cid;

/// Blocks of one walk that are on their way at a time.
const AT_ONCE: usize = 16;

/// Brings what a walk of a content will load next while it works on what it has. The
/// blocks' memory is the fetcher's to bound.
pub(super) struct Upcoming<'f> {
    fetcher: &'f Arc<Fetcher>,
    whereabouts: Whereabouts,
    /// Children of the nodes that were loaded, the last node on top.
    nodes: Vec<IntoIter<(Cid, Option<u64>)>>,
    /// Sent for, and not loaded yet.
    sent: HashSet<Cid>,
}

impl<'f> Upcoming<'f> {
    pub fn new(fetcher: &'f Arc<Fetcher>, whereabouts: Whereabouts) -> Self {
        Self { fetcher, whereabouts, nodes: Vec::new(), sent: HashSet::new() }
    }

    /// The block to be loaded now, as it is wanted.
    pub fn wanted(&self, id: &Cid) -> Wanted {
        Wanted { whereabouts: self.whereabouts.clone(), ..Wanted::new(*id) }
    }

    /// It was loaded.
    pub fn loaded(&mut self, id: &Cid, node: &Node) -> Result<(), ReplicationError> {
        self.sent.remove(id);
        let below = children(node);
        if !below.is_empty() {
            self.nodes.push(below.into_iter());
        }
        self.go_on()
    }

    fn go_on(&mut self) -> Result<(), ReplicationError> {
        while self.sent.len() < AT_ONCE {
            let Some(children) = self.nodes.last_mut() else { return Ok(()) };
            let Some((id, len)) = children.as_slice().first().copied() else {
                self.nodes.pop();
                continue;
            };
            if !self.sent.contains(&id) && !self.fetcher.is_here(&id)? {
                let mut wanted = self.wanted(&id);
                wanted.bytes = len.unwrap_or(wanted.bytes);
                if !self.fetcher.ahead(&wanted, true) {
                    // Later, when there is room again.
                    return Ok(());
                }
                self.sent.insert(id);
            }
            if let Some(children) = self.nodes.last_mut() {
                children.next();
            }
        }
        Ok(())
    }
}
