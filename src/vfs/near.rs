//! Work that reads content without waiting for a backend.
//!
//! Requests read content with an inode's state locked, and on threads that also
//! answer others: a backend that never answers must not hold either. So inside
//! [`Vfs::near`] a block that is not here ends the work at once, the request
//! waits for it holding nothing, and is tried again with the block at hand. The
//! scope is the thread's: a read deep below a staging finds it there.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::future::try_join_all;
use parking_lot::{Mutex, RwLockReadGuard, RwLockWriteGuard};
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::node::{Node, NodeState};
use super::{Vfs, VfsError};
use crate::content::ContentError;
use crate::replication::{Wanted, Whereabouts};
use crate::runtime::{Held, Step};
use crate::store::StoreError;
use crate::types::{Cid, Ino, Name};

/// Bytes of blocks that a request keeps when the store has no place for them; one
/// request at a time does.
const KEPT_BYTES: usize = 8 << 20;

/// What a request has brought from elsewhere, for its next try: the store has it,
/// or it is kept here.
#[derive(Clone, Default)]
pub struct Brought(Arc<Mutex<Blocks>>);

#[derive(Default)]
struct Blocks {
    kept: VecDeque<(Cid, Bytes)>,
    bytes: usize,
    seen: HashSet<Cid>,
    /// The turn to keep blocks.
    turn: Option<OwnedSemaphorePermit>,
}

impl Brought {
    fn get(&self, id: &Cid) -> Option<Bytes> {
        let blocks = self.0.lock();
        blocks.kept.iter().find(|(kept, _)| kept == id).map(|(_, data)| data.clone())
    }

    fn keeps(&self) -> bool {
        self.0.lock().turn.is_some()
    }

    fn put(&self, id: Cid, data: Bytes) {
        let mut blocks = self.0.lock();
        blocks.bytes += data.len();
        blocks.kept.push_back((id, data));
        while blocks.bytes > KEPT_BYTES && blocks.kept.len() > 1 {
            let gone = blocks.kept.pop_front().map_or(0, |(_, data)| data.len());
            blocks.bytes -= gone;
        }
    }
}

struct Scope {
    brought: Brought,
    missing: Option<Missing>,
}

/// Blocks that one request waits for at a time.
const TOGETHER: usize = 64;

/// What work in a scope ended for.
enum Missing {
    Blocks(Vec<Wanted>),
    /// The file is being committed; this changes when a commit is over.
    Commit(watch::Receiver<u64>),
}

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Ends a scope, also when its work panics.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        SCOPE.with_borrow_mut(|scope| *scope = None);
    }
}

impl Vfs {
    /// Runs `work`, which reads content, without waiting for a backend. `Wait`
    /// brings the blocks that it found it lacked; then it is run again from its
    /// beginning, with the same `brought`.
    ///
    /// # Errors
    /// Of the work; `NoSpace` when a block that was brought has no place.
    pub fn near<T>(
        &self,
        brought: &Brought,
        work: impl FnOnce() -> Result<T, VfsError>,
    ) -> Result<Step<T, VfsError>, VfsError> {
        SCOPE.set(Some(Scope { brought: brought.clone(), missing: None }));
        let leave = Leave;
        let result = work();
        let missing = SCOPE.with_borrow_mut(|scope| scope.as_mut().and_then(|s| s.missing.take()));
        drop(leave);
        let lacking = match (result, missing) {
            (Ok(value), _) => return Ok(Step::Done(value)),
            (Err(error), None) => return Err(error),
            (Err(_), Some(Missing::Blocks(lacking))) => lacking,
            (Err(_), Some(Missing::Commit(mut ended))) => {
                return Ok(Step::wait(async move {
                    // An error says that the volume is closed; the next try says so.
                    drop(ended.changed().await);
                    Ok(())
                }));
            }
        };
        let again = {
            let mut blocks = brought.0.lock();
            let new = lacking.iter().filter(|wanted| blocks.seen.insert(wanted.cid)).count();
            new < lacking.len()
        };
        if again && brought.keeps() {
            return Err(StoreError::NoSpace.into());
        }
        let (replicator, store) = (Arc::clone(&self.replicator), Arc::clone(&self.store));
        let (turns, brought) = (Arc::clone(&self.keepers), brought.clone());
        Ok(Step::wait(async move {
            if !brought.keeps() {
                // However many wait, their blocks are in memory on their way only.
                if !again {
                    let coming = lacking.iter().map(|wanted| {
                        let coming = replicator.bring(wanted.clone());
                        async { coming.await.map(drop) }
                    });
                    try_join_all(coming).await?;
                    let mut kept = true;
                    for wanted in &lacking {
                        kept = kept && store.contains(&wanted.cid)?;
                    }
                    if kept {
                        return Ok(());
                    }
                }
                let turn = turns.acquire_owned().await.map_err(|_| Errno::SHUTDOWN)?;
                brought.0.lock().turn = Some(turn);
            }
            for wanted in lacking {
                let id = wanted.cid;
                brought.put(id, replicator.bring(wanted).await?);
            }
            Ok(())
        }))
    }

    /// Keeps the bytes of a write that has to wait: in memory, or on the disk.
    ///
    /// # Errors
    /// `NoSpace`; of the disk.
    pub fn hold(&self, bytes: &[u8]) -> Result<Held, VfsError> {
        if let Some(held) = self.spool.in_memory(bytes) {
            return Ok(held);
        }
        self.store.admit(bytes.len() as u64, self.owed_bytes.load(Ordering::Relaxed))?;
        let held = self.spool.on_disk(bytes);
        Ok(held.map_err(|error| StoreError::io(self.store.root(), error))?)
    }

    /// Bytes in memory of writes that wait.
    pub fn held_bytes(&self) -> u64 {
        self.spool.held().0
    }

    /// The state for reading. Inside [`Vfs::near`] no thread waits for a commit.
    ///
    /// # Errors
    /// Ends the work in the scope.
    pub(super) fn read_node<'n>(
        &self,
        node: &'n Node,
    ) -> Result<RwLockReadGuard<'n, NodeState>, VfsError> {
        self.refuse_to_wait(node)?;
        Ok(node.state.read())
    }

    /// As [`Vfs::read_node`], for writing.
    ///
    /// # Errors
    /// Ends the work in the scope.
    pub(super) fn write_node<'n>(
        &self,
        node: &'n Node,
    ) -> Result<RwLockWriteGuard<'n, NodeState>, VfsError> {
        self.refuse_to_wait(node)?;
        Ok(node.state.write())
    }

    /// Before a change of a row that open state has to follow, and before its
    /// directory is locked. A commit that begins right after is waited for.
    ///
    /// # Errors
    /// Ends the work in the scope.
    pub(super) fn refuse_busy(&self, ino: Ino) -> Result<(), VfsError> {
        self.nodes.get(ino).map_or(Ok(()), |node| self.refuse_to_wait(&node))
    }

    /// As [`Vfs::refuse_busy`]; what is not there is for the change to say.
    ///
    /// # Errors
    /// Ends the work in the scope.
    pub(super) fn refuse_busy_name(&self, parent: Ino, name: &Name) -> Result<(), VfsError> {
        // Mostly nothing is: the look at the name is spared.
        if self.shown.load(Ordering::Acquire) == 0 || SCOPE.with_borrow(Option::is_none) {
            return Ok(());
        }
        let found = self.namespace.lookup(parent, name);
        found.map_or(Ok(()), |dentry| self.refuse_busy(dentry.ino))
    }

    /// As [`Node::show`].
    pub(super) fn show(&self, node: &Node, state: &NodeState) {
        self.shown.fetch_add(1, Ordering::Release);
        node.show(state);
    }

    /// As [`Node::conceal`].
    pub(super) fn conceal(&self, node: &Node) {
        node.conceal();
        self.shown.fetch_sub(1, Ordering::Release);
    }

    fn refuse_to_wait(&self, node: &Node) -> Result<(), VfsError> {
        if !node.is_shown() || SCOPE.with_borrow(Option::is_none) {
            return Ok(());
        }
        // Before the second look: a commit that ends in between is seen.
        let ended = self.commits_ended.subscribe();
        if !node.is_shown() {
            return Ok(());
        }
        SCOPE.with_borrow_mut(|scope| {
            if let Some(scope) = scope {
                scope.missing = Some(Missing::Commit(ended));
            }
        });
        Err(Errno::AGAIN.into())
    }

    /// A block for walks and reads. Inside [`Vfs::near`]: only when it is here.
    pub(super) fn load(&self, id: &Cid) -> Result<Bytes, ContentError> {
        let failed = |error| ContentError::Io(std::io::Error::other(error));
        let in_scope = SCOPE.with_borrow(|scope| scope.as_ref().map(|s| s.brought.get(id)));
        match in_scope {
            None => return self.replicator.fetch(id).map_err(failed),
            Some(Some(data)) => return Ok(data),
            Some(None) => {}
        }
        if let Some(data) = self.replicator.here(id).map_err(failed)? {
            return Ok(data);
        }
        SCOPE.with_borrow_mut(|scope| {
            if let Some(scope) = scope {
                scope.lacks(*id);
            }
        });
        Err(ContentError::Missing(*id))
    }

    /// Whether an error is for a block that the scope waits for: the rest of the same
    /// read can be looked at, so that all that it lacks comes at once.
    pub(super) fn can_look_on(error: &VfsError) -> bool {
        matches!(error, VfsError::Content(ContentError::Missing(_)))
            && SCOPE.with_borrow(|scope| {
                matches!(
                    scope.as_ref().and_then(|scope| scope.missing.as_ref()),
                    Some(Missing::Blocks(lacking)) if lacking.len() < TOGETHER
                )
            })
    }

    /// Inside [`Vfs::near`]: whether blocks were found to be lacking.
    pub(super) fn lacks_blocks() -> bool {
        SCOPE.with_borrow(|scope| {
            matches!(scope.as_ref().and_then(|s| s.missing.as_ref()), Some(Missing::Blocks(_)))
        })
    }

    /// Sends for what the scope's work was found to lack, of a content that lies there.
    pub(super) fn send_for_lacking(&self, whereabouts: &Whereabouts) {
        let lacking = SCOPE.with_borrow_mut(|scope| match scope.as_mut() {
            Some(Scope { missing: Some(Missing::Blocks(lacking)), .. }) => {
                for wanted in lacking.iter_mut() {
                    wanted.whereabouts = whereabouts.clone();
                }
                lacking.clone()
            }
            _ => Vec::new(),
        });
        for wanted in lacking {
            self.replicator.begin(wanted);
        }
    }
}

impl Scope {
    fn lacks(&mut self, id: Cid) {
        let wanted = Wanted::new(id);
        match &mut self.missing {
            Some(Missing::Blocks(lacking)) => {
                if lacking.iter().all(|known| known.cid != id) {
                    lacking.push(wanted);
                }
            }
            missing => *missing = Some(Missing::Blocks(vec![wanted])),
        }
    }
}
