//! close, fsync: the steps after which bytes and names are as durable as asked.
//!
//! Who syncs waits for the content that the file has, not for one that another
//! writer's commit has replaced meanwhile: the names that become durable with it
//! lead to the newest.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::file::{Handle, HandleId};
use super::{Vfs, VfsError};
use crate::replication::{Level, OnDegraded, Policy, ReplicationError, WaitOn};
use crate::runtime::{Step, failpoint};
use crate::types::Cid;

/// How often who syncs waits for a content that is replaced by another meanwhile.
const ROUNDS: u32 = 64;

/// What is next.
enum Stage {
    Begin,
    /// The content is committed.
    Committed,
    /// The names have their copies.
    Named,
}

/// A close or an fsync under way.
struct Syncing {
    vfs: Arc<Vfs>,
    handle: Arc<Handle>,
    policy: Policy,
    stage: Stage,
    /// The content that has its copies.
    copied: Option<Cid>,
    rounds: u32,
}

type Next = Result<Step<(), VfsError>, VfsError>;

impl Vfs {
    /// The steps of [`Vfs::flush`].
    pub fn flush_steps(self: &Arc<Self>, id: HandleId) -> impl FnMut() -> Next + Send + use<> {
        // What another descriptor's owner writes from here on is for its close.
        let wrote = |handle: &Handle| handle.wrote.swap(false, Ordering::AcqRel);
        self.sync_steps(id, wrote, Syncing::flush)
    }

    /// The steps of [`Vfs::fsync`].
    pub fn fsync_steps(self: &Arc<Self>, id: HandleId) -> impl FnMut() -> Next + Send + use<> {
        self.sync_steps(id, |_| true, Syncing::fsync)
    }

    fn sync_steps(
        self: &Arc<Self>,
        id: HandleId,
        wanted: fn(&Handle) -> bool,
        step: fn(&mut Syncing) -> Next,
    ) -> impl FnMut() -> Next + Send + use<> {
        let (vfs, mut under_way) = (Arc::clone(self), None);
        move || {
            if let Some(syncing) = &mut under_way {
                return step(syncing);
            }
            let handle = vfs.handle(id)?;
            handle.deliver()?;
            if !wanted(&handle) {
                return Ok(Step::Done(()));
            }
            let syncing = Syncing::new(&vfs, Arc::clone(&handle));
            // What was written is for the next close then.
            let syncing = syncing.inspect_err(|_| handle.wrote.store(true, Ordering::Release));
            step(under_way.insert(syncing?))
        }
    }

    /// The wait of a request on this handle was cut off by a signal: its next
    /// close waits for nothing, and says so.
    pub fn interrupted(&self, id: HandleId) {
        if let Ok(handle) = self.handle(id) {
            handle.cut.store(true, Ordering::Release);
            handle.wrote.store(true, Ordering::Release);
        }
    }
}

impl Syncing {
    fn new(vfs: &Arc<Vfs>, handle: Arc<Handle>) -> Result<Self, VfsError> {
        let policy = vfs.policy_of(handle.node.ino)?;
        let vfs = Arc::clone(vfs);
        Ok(Self { vfs, handle, policy, stage: Stage::Begin, copied: None, rounds: 0 })
    }

    fn flush(&mut self) -> Next {
        let next = self.next_of_flush();
        let handle = Arc::clone(&self.handle);
        let fails = move || handle.wrote.store(true, Ordering::Release);
        match next {
            Ok(Step::Wait(wait)) => {
                Ok(Step::wait(async move { wait.await.inspect_err(|_| fails()) }))
            }
            next => next.inspect_err(|_| fails()),
        }
    }

    fn next_of_flush(&mut self) -> Next {
        if let Stage::Begin = self.stage {
            if self.has_no_name() {
                return Ok(Step::Done(()));
            }
            if self.policy.wait_on == WaitOn::Fsync {
                self.vfs.commit_later(&self.handle.node);
                return Ok(Step::Done(()));
            }
            if self.handle.cut.load(Ordering::Acquire) {
                // Somebody asked its program to end: it is not kept by a second wait.
                self.vfs.commit_later(&self.handle.node);
                return Err(Errno::INTR.into());
            }
            return Ok(self.commit());
        }
        if let Some(wait) = self.copies()? {
            return Ok(wait);
        }
        if self.policy.level == Level::LocalDurability {
            self.vfs.persist()?;
        }
        Ok(Step::Done(()))
    }

    fn fsync(&mut self) -> Next {
        loop {
            match self.stage {
                Stage::Begin if self.has_no_name() => {
                    // Its bytes live across anything but a crash, synced or not; that
                    // it has no name is made durable.
                    self.vfs.persist()?;
                    return Ok(Step::Done(()));
                }
                Stage::Begin => {
                    let local = self.policy.level == Level::LocalDurability;
                    if local && self.vfs.sync_staged(&self.handle)? {
                        self.vfs.persist()?;
                        return Ok(self.synced());
                    }
                    return Ok(self.commit());
                }
                Stage::Committed => {
                    if let Some(wait) = self.copies()? {
                        return Ok(wait);
                    }
                    self.stage = Stage::Named;
                    if let Step::Wait(wait) = self.vfs.names_recorded(&self.policy)? {
                        return Ok(Step::Wait(wait));
                    }
                }
                Stage::Named if self.is_replaced() => self.stage = Stage::Committed,
                Stage::Named => return Ok(self.synced()),
            }
        }
    }

    fn has_no_name(&self) -> bool {
        self.handle.node.row().nlink == 0
    }

    /// It waited to the end: no later close needs to say otherwise.
    fn synced(&self) -> Step<(), VfsError> {
        self.handle.cut.store(false, Ordering::Release);
        Step::Done(())
    }

    fn commit(&mut self) -> Step<(), VfsError> {
        self.stage = Stage::Committed;
        let handle = Arc::clone(&self.handle);
        let committed = self.vfs.commit_begun(&handle.node);
        Step::wait(async move {
            committed.await.inspect_err(|_| handle.was_told())?;
            failpoint::reach("vfs.fsync.committed");
            Ok(())
        })
    }

    fn content(&self) -> Option<Cid> {
        self.handle.node.row().content
    }

    /// Another writer's commit came in between, whose content the names have.
    fn is_replaced(&self) -> bool {
        self.policy.level != Level::LocalDurability && self.content() != self.copied
    }

    /// A wait for the copies of what the file has now; `None` when they are there.
    fn copies(&mut self) -> Result<Option<Step<(), VfsError>>, VfsError> {
        if !self.is_replaced() {
            return Ok(None);
        }
        self.copied = self.content();
        let Some(root) = self.copied else { return Ok(None) };
        self.rounds += 1;
        if self.rounds > ROUNDS {
            let text = "others replace the content faster than it can be copied";
            return match self.policy.on_degraded {
                OnDegraded::Queue => Ok(None),
                OnDegraded::Fail => Err(ReplicationError::Io(std::io::Error::other(text)).into()),
            };
        }
        let level = self.vfs.replicator.level(&root, &self.policy);
        Ok(Some(Step::wait(async move {
            level.await?;
            failpoint::reach("vfs.fsync.replicated");
            Ok(())
        })))
    }
}
