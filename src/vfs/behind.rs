//! Hashes full leaves behind a sequential writer, so that who waits for the
//! commit has only the tail to wait for. A hash counts only while its leaf's
//! generation stands: whatever is late, dropped or fails is hashed at the commit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::node::{Node, NodeState};
use super::{Vfs, VfsError};
use crate::content::{Link, Profile, leaf};
use crate::replication::{Level, WaitOn};
use crate::store::Staging;
use crate::types::SegmentId;

/// Leaves that wait. A writer that is faster than that leaves some to the commit.
const QUEUED: usize = 64;
/// Threads at most; a commit may use more.
const THREADS: usize = 4;

/// Hashes of one staging's leaves.
#[derive(Default)]
pub(super) struct Hashes {
    staging: Option<SegmentId>,
    /// By leaf: the generation that was hashed, and the link to it.
    leaves: BTreeMap<u64, (u64, Link)>,
    /// Where the last write ended.
    next: u64,
}

impl Hashes {
    /// What is known of this staging's leaves.
    pub fn of(&mut self, staging: SegmentId) -> &mut BTreeMap<u64, (u64, Link)> {
        if self.staging.replace(staging) != Some(staging) {
            self.leaves.clear();
        }
        &mut self.leaves
    }
}

#[derive(Default)]
struct Queue {
    leaves: VecDeque<(Weak<Node>, u64)>,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Shared {
    /// The next leaf; `None` at the end.
    fn next(&self) -> Option<(Weak<Node>, u64)> {
        let mut queue = self.queue.lock();
        loop {
            if queue.stopped {
                return None;
            }
            if let Some(next) = queue.leaves.pop_front() {
                return Some(next);
            }
            self.wake.wait(&mut queue);
        }
    }
}

/// The threads end when it is dropped.
#[derive(Default)]
pub(super) struct Behind {
    shared: Arc<Shared>,
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.shared.queue.lock().stopped = true;
        self.shared.wake.notify_all();
    }
}

impl Behind {
    pub fn start(vfs: &Arc<Vfs>) -> Result<(), VfsError> {
        for _ in 0..vfs.options.hash_threads.clamp(1, THREADS) {
            let (shared, weak) = (Arc::clone(&vfs.behind.shared), Arc::downgrade(vfs));
            let work = move || {
                while let Some((node, index)) = shared.next() {
                    if let (Some(vfs), Some(node)) = (weak.upgrade(), node.upgrade()) {
                        vfs.hash_behind(&node, index);
                    }
                }
            };
            let started = std::thread::Builder::new().name("cairn-hash".into()).spawn(work);
            started.map_err(|e| VfsError::Replication(e.into()))?;
        }
        Ok(())
    }
}

impl Vfs {
    /// After a write: the leaves that it filled are handed on, if somebody is
    /// going to wait for their hashes.
    pub(super) fn note_written(
        &self,
        node: &Arc<Node>,
        state: &mut NodeState,
        (start, len): (u64, u64),
    ) {
        let sequential = std::mem::replace(&mut state.hashes.next, start + len) == start;
        let size = u64::from(self.options.profile.chunk_size);
        let filled = start / size..(start + len) / size;
        let staged = state.staging.as_ref().is_some_and(|staging| !staging.is_in_memory());
        if !sequential || !staged || filled.is_empty() || !self.options.profile.raw_leaves {
            return;
        }
        let waits = self.policy_of_locked(&state.record).is_ok_and(|policy| {
            policy.level != Level::LocalDurability || policy.wait_on == WaitOn::Close
        });
        if !waits {
            return;
        }
        let mut queue = self.behind.shared.queue.lock();
        for index in filled {
            if queue.leaves.len() < QUEUED {
                queue.leaves.push_back((Arc::downgrade(node), index));
                self.behind.shared.wake.notify_one();
            }
        }
    }

    fn hash_behind(&self, node: &Arc<Node>, index: u64) {
        let found = {
            let state = node.state.read();
            state.staging.as_ref().and_then(|s| Some((s.id(), s.leaf_reader(index)?)))
        };
        let Some((id, reader)) = found else { return };
        // What cannot be read is told by the commit.
        let Ok(bytes) = reader.read() else { return };
        let (link, _) = leaf(&self.options.profile, &bytes);
        let mut state = node.state.write();
        let same = state
            .staging
            .as_ref()
            .is_some_and(|s| s.id() == id && s.generation(index) == reader.generation());
        if same {
            state.hashes.of(id).insert(index, (reader.generation(), link));
        }
        self.count_hashed(link.size);
    }

    /// Hashes leaves, in parallel when there are many.
    pub(super) fn hash_leaves(
        &self,
        profile: &Profile,
        staging: &Staging,
        dirty: &[u64],
        known: &BTreeMap<u64, (u64, Link)>,
    ) -> Result<Vec<(u64, Link, Option<Bytes>)>, VfsError> {
        let one = |index: u64, buffer: &mut Vec<u8>| {
            if let Some((generation, link)) = known.get(&index)
                && *generation == staging.generation(index)
            {
                return Ok((index, *link, None));
            }
            staging.read_leaf(index, buffer)?;
            self.count_hashed(buffer.len() as u64);
            let (link, block) = leaf(profile, buffer);
            Ok::<_, VfsError>((index, link, block))
        };
        let threads = self.options.hash_threads.clamp(1, dirty.len().div_ceil(4).max(1));
        if threads == 1 {
            let mut buffer = Vec::new();
            return dirty.iter().map(|index| one(*index, &mut buffer)).collect();
        }
        let part = dirty.len().div_ceil(threads);
        std::thread::scope(|scope| {
            let workers: Vec<_> = dirty
                .chunks(part)
                .map(|indexes| {
                    let one = &one;
                    scope.spawn(move || {
                        let mut buffer = Vec::new();
                        indexes
                            .iter()
                            .map(|index| one(*index, &mut buffer))
                            .collect::<Result<Vec<_>, _>>()
                    })
                })
                .collect();
            let mut all = Vec::with_capacity(dirty.len());
            for worker in workers {
                match worker.join() {
                    Ok(hashed) => all.extend(hashed?),
                    Err(_) => return Err(VfsError::Posix(rustix::io::Errno::IO)),
                }
            }
            Ok(all)
        })
    }
}
