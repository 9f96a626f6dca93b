//! Sends contents to one backend, children before parents.
//!
//! Blocks gather in a batch, many contents in one; full batches are put while
//! the next one is read. Order: a node is added only when no put is in flight,
//! and `put_many` keeps the order within a batch, so a backend never holds a
//! node without what it links to, wherever the work is cut off.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::ReplicationError;
use super::calls::Calls;
use super::fetch::Fetcher;
use super::whole::Below;
use crate::backends::{Backend, BackendError, ErrorKind, Layout, Presence};
use crate::content::{ContentError, Node, inline_block, parse_node, walk_post_order};
use crate::types::{Block, Cid, cid};

/// Bytes of blocks in one put. Each of a lane's workers has at most
/// `in_flight` of these and one that is being filled.
pub(super) const BATCH_BYTES: usize = 4 << 20;

/// One backend's end of the pipe, on a thread of its own.
pub(super) struct Sender<'s> {
    backend: &'s Arc<dyn Backend>,
    calls: &'s Calls,
    fetcher: &'s Arc<Fetcher>,
    below: &'s Below<'s>,
    /// Nodes that were walked since the last batch was put, and before.
    walked: Vec<Cid>,
    put: Vec<Cid>,
    batch: Vec<Block>,
    /// What `batch` holds or held since the last barrier.
    pushed: HashSet<Cid>,
    bytes: usize,
    batch_blocks: usize,
    batch_bytes: usize,
    in_flight: JoinSet<Result<(), BackendError>>,
    most_in_flight: usize,
}

/// What a look at all blocks of a copy found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// All are there, and match their hashes.
    Good,
    /// All are there by the place's word; those that were read match their hashes.
    Sound,
    /// A block does not match its hash.
    Wrong,
    /// A block is not there.
    Missing,
}

pub(super) fn stopped() -> ContentError {
    ContentError::Io(std::io::Error::other("stopped"))
}

/// The error that a callback kept, or the walk's own.
fn outcome(
    kept: Option<ReplicationError>,
    walked: Result<(), ContentError>,
) -> Result<(), ReplicationError> {
    match (kept, walked) {
        (Some(error), _) => Err(error),
        (None, walked) => walked.map_err(|e| ReplicationError::Io(std::io::Error::other(e))),
    }
}

impl<'s> Sender<'s> {
    pub fn new(
        backend: &'s Arc<dyn Backend>,
        calls: &'s Calls,
        fetcher: &'s Arc<Fetcher>,
        below: &'s Below<'s>,
        (most_in_flight, batch_bytes): (usize, usize),
    ) -> Self {
        // A place of single objects syncs each: more puts at a time bring more
        // than longer ones. A place of archives writes each put as one.
        let batch_blocks = match backend.capabilities().layout {
            Layout::Blocks => 16,
            Layout::Packs => 1024,
        };
        Self {
            backend,
            calls,
            fetcher,
            below,
            walked: Vec::new(),
            put: Vec::new(),
            batch: Vec::new(),
            pushed: HashSet::new(),
            bytes: 0,
            batch_blocks,
            batch_bytes,
            in_flight: JoinSet::new(),
            most_in_flight: most_in_flight.max(1),
        }
    }

    /// Adds a content. It is there only when [`Sender::finish`] said so. After
    /// an error nothing of it but children of nodes is sent.
    pub fn add(&mut self, root: &Cid) -> Result<(), ReplicationError> {
        if inline_block(root).is_some() {
            return Ok(());
        }
        if root.codec() == cid::RAW {
            let data = self.fetcher.block(root)?;
            return self.push(Block { cid: *root, data });
        }
        self.add_dag(root)
    }

    /// Walks a DAG, pruned where the backend already holds a leaf of the right length,
    /// or a node that was found whole not long ago; below other nodes that are there,
    /// what is missing is sent.
    fn add_dag(&mut self, root: &Cid) -> Result<(), ReplicationError> {
        let (calls, backend, fetcher) = (self.calls, self.backend, self.fetcher);
        let below = self.below;
        let held_nodes: RefCell<HashSet<Cid>> = RefCell::default();
        let failure = RefCell::new(None);
        let fail = |error: ReplicationError| {
            *failure.borrow_mut() = Some(error);
            stopped()
        };
        // Answers for the children of nodes on the path; asked together.
        let there: RefCell<HashMap<Cid, bool>> = RefCell::default();
        let look = |wanted: &[(Cid, Option<u64>)]| {
            // A sparse file's node links to one leaf of zeros a thousand times.
            let mut asked = HashSet::new();
            let wanted: Vec<_> = wanted.iter().filter(|(id, _)| asked.insert(*id)).collect();
            let cids: Vec<Cid> = wanted.iter().map(|(id, _)| *id).collect();
            let found = calls.wait(backend.presence(&cids)).map_err(fail)?;
            let mut there = there.borrow_mut();
            for ((id, len), presence) in wanted.iter().zip(found) {
                let held =
                    matches!(presence, Presence::Present(n) if len.is_none_or(|len| len == n));
                there.insert(*id, held);
            }
            Ok::<(), ContentError>(())
        };
        let sender = RefCell::new(self);
        let walked = walk_post_order(
            root,
            &mut |id| {
                let known = there.borrow_mut().remove(id);
                if known.is_none() {
                    look(&[(*id, None)])?;
                }
                let held = known.or_else(|| there.borrow_mut().remove(id)).unwrap_or(false);
                if held && id.codec() != cid::RAW && !below.is_whole(id) {
                    held_nodes.borrow_mut().insert(*id);
                    return Ok(true);
                }
                Ok(!held)
            },
            &mut |id| {
                let data = fetcher.block(id).map_err(fail)?;
                if id.codec() == cid::DAG_PB {
                    look(&children(&parse_node(id, &data)?))?;
                }
                Ok(data)
            },
            &mut |id, data| {
                let mut sender = sender.borrow_mut();
                if id.codec() != cid::RAW {
                    let held = held_nodes.borrow_mut().remove(id);
                    sender.walked(id, held);
                    if held {
                        return Ok(());
                    }
                }
                let block = Block { cid: *id, data: data.clone() };
                sender.push(block).map_err(fail)
            },
        );
        outcome(failure.into_inner(), walked)
    }

    /// All below a node is there, or on its way. Told as soon as it is durable: what
    /// fails later goes on from there.
    fn walked(&mut self, node: &Cid, held: bool) {
        if held && self.batch.is_empty() && self.in_flight.is_empty() {
            self.below.note(&[*node]);
        } else {
            self.walked.push(*node);
        }
    }

    fn push(&mut self, block: Block) -> Result<(), ReplicationError> {
        if block.cid.codec() != cid::RAW && !self.in_flight.is_empty() {
            self.barrier()?;
        }
        if !self.pushed.insert(block.cid) {
            return Ok(());
        }
        self.bytes += block.data.len();
        self.batch.push(block);
        if self.bytes >= self.batch_bytes || self.batch.len() >= self.batch_blocks {
            self.flush()?;
        }
        Ok(())
    }

    /// Begins to put what is gathered; waits only for a place in flight.
    fn flush(&mut self) -> Result<(), ReplicationError> {
        let batch = std::mem::take(&mut self.batch);
        self.put.append(&mut self.walked);
        self.bytes = 0;
        if batch.is_empty() {
            return Ok(());
        }
        let backend = Arc::clone(self.backend);
        let (in_flight, most) = (&mut self.in_flight, self.most_in_flight);
        self.calls.wait(async move {
            while in_flight.len() >= most {
                next(in_flight).await?;
            }
            in_flight.spawn(async move { backend.put_many(&batch).await });
            Ok(())
        })
    }

    /// Waits for all puts in flight.
    fn barrier(&mut self) -> Result<(), ReplicationError> {
        let in_flight = &mut self.in_flight;
        self.calls.wait(async move {
            while !in_flight.is_empty() {
                next(in_flight).await?;
            }
            Ok(())
        })?;
        self.below.note(&std::mem::take(&mut self.put));
        self.pushed = self.batch.iter().map(|block| block.cid).collect();
        Ok(())
    }

    /// Returns when all that was added is durable there.
    pub fn finish(&mut self) -> Result<(), ReplicationError> {
        if self.in_flight.is_empty() && !self.batch.is_empty() {
            let batch = std::mem::take(&mut self.batch);
            self.calls.wait(self.backend.put_many(&batch))?;
        } else {
            self.flush()?;
            self.barrier()?;
        }
        self.below.note(&std::mem::take(&mut self.walked));
        self.below.note(&std::mem::take(&mut self.put));
        Ok(())
    }

    /// Replaces every wrong or missing block of a content at the backend. A put
    /// alone would not: a block of the right length counts as there. Nothing is
    /// deleted on the word of a call that failed.
    pub fn repair(&self, root: &Cid) -> Result<(), ReplicationError> {
        let failure = RefCell::new(None);
        let fail = |error: ReplicationError| {
            *failure.borrow_mut() = Some(error);
            stopped()
        };
        let walked = walk_post_order(
            root,
            &mut |_| Ok(true),
            &mut |id| self.fetcher.block(id).map_err(fail),
            &mut |id, data| {
                match self.look(id).map_err(fail)? {
                    Found::Good | Found::Sound => return Ok(()),
                    Found::Wrong => self.calls.wait(self.backend.delete(id)).map_err(fail)?,
                    Found::Missing => {}
                }
                let block = Block { cid: *id, data: data.clone() };
                self.calls.wait(self.backend.put(&block)).map_err(fail)
            },
        );
        outcome(failure.into_inner(), walked)
    }

    fn look(&self, id: &Cid) -> Result<Found, ReplicationError> {
        match self.calls.wait(self.backend.get(id, None)) {
            Ok(data) if cid::verify(id, &data) == cid::Verdict::Match => Ok(Found::Good),
            Ok(_) => Ok(Found::Wrong),
            Err(ReplicationError::Backend(e)) if e.kind == ErrorKind::NotFound => {
                Ok(Found::Missing)
            }
            Err(ReplicationError::Backend(e)) if e.kind == ErrorKind::Corrupt => Ok(Found::Wrong),
            Err(error) => Err(error),
        }
    }
}

async fn next(in_flight: &mut JoinSet<Result<(), BackendError>>) -> Result<(), BackendError> {
    match in_flight.join_next().await {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(cut)) => {
            Err(BackendError::new(ErrorKind::Other, format!("a put was cut off: {cut}")))
        }
    }
}

/// A node's children, with the length of the block where the node says it.
pub(super) fn children(node: &Node) -> Vec<(Cid, Option<u64>)> {
    let outside = |id: &Cid| inline_block(id).is_none();
    match node {
        Node::File { links, .. } => links
            .iter()
            .filter(|link| outside(&link.cid))
            .map(|link| (link.cid, (link.cid.codec() == cid::RAW).then_some(link.size)))
            .collect(),
        other => other.children().into_iter().filter(outside).map(|id| (id, None)).collect(),
    }
}

/// Blocks that a walk met already: a sparse file links to one leaf of zeros a
/// million times. Bounded: what is forgotten is read again.
#[derive(Debug, Default)]
pub(super) struct Met(HashSet<Cid>);

impl Met {
    /// Whether it is new.
    pub fn first(&mut self, id: &Cid) -> bool {
        if self.0.len() >= 65_536 {
            self.0.clear();
        }
        self.0.insert(*id)
    }
}

/// Reads a content back from a backend and hashes every block. The second part
/// of the answer is the number of bytes read.
pub(super) fn read_back(
    backend: &Arc<dyn Backend>,
    calls: &Calls,
    root: &Cid,
) -> Result<(Found, u64), ReplicationError> {
    let failure = RefCell::new(None);
    let (mut bytes, mut met) = (0, Met::default());
    let walked = walk_post_order(
        root,
        &mut |id| Ok(met.first(id)),
        &mut |id| match calls.wait(backend.get(id, None)) {
            Ok(data) if cid::verify(id, &data) == cid::Verdict::Match => {
                bytes += data.len() as u64;
                Ok(data)
            }
            Ok(_) => Err(ContentError::Mismatch(*id)),
            Err(ReplicationError::Backend(e)) if e.kind == ErrorKind::Corrupt => {
                Err(ContentError::Mismatch(*id))
            }
            Err(ReplicationError::Backend(e)) if e.kind == ErrorKind::NotFound => {
                Err(ContentError::Missing(*id))
            }
            Err(error) => {
                *failure.borrow_mut() = Some(error);
                Err(stopped())
            }
        },
        &mut |_, _| Ok(()),
    );
    match (failure.into_inner(), walked) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok((Found::Good, bytes)),
        (None, Err(ContentError::Mismatch(_))) => Ok((Found::Wrong, bytes)),
        (None, Err(ContentError::Missing(_))) => Ok((Found::Missing, bytes)),
        (None, Err(error)) => Err(ReplicationError::Io(std::io::Error::other(error))),
    }
}
