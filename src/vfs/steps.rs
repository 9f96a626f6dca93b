//! Requests that may wait for backends, in steps that hold no thread and no lock
//! meanwhile. A step itself waits for this machine only.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::file::{Handle, HandleId};
use super::near::Brought;
use super::{Vfs, VfsError};
use crate::replication::{Level, Policy, WaitOn};
use crate::runtime::{Bridge, Step, failpoint};
use crate::types::Ino;

/// What is next of a sync.
enum Stage {
    Begin,
    /// The content has its copies.
    Copied,
    /// The names have theirs.
    End,
}

impl Vfs {
    /// The way to tasks that wait without a thread.
    pub fn bridge(&self) -> &Bridge {
        self.replicator.bridge()
    }

    /// Takes steps on this thread until it is done.
    pub(super) fn finish<T>(
        &self,
        mut step: impl FnMut() -> Result<Step<T, VfsError>, VfsError>,
    ) -> Result<T, VfsError> {
        loop {
            match step()? {
                Step::Done(value) => return Ok(value),
                Step::Wait(wait) => self.replicator.block_on(wait)?,
            }
        }
    }

    /// Commits what is dirty and waits for the copies of the level.
    fn committed_and_copied(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        policy: &Policy,
    ) -> impl Future<Output = Result<(), VfsError>> + Send + use<> {
        let (vfs, handle, policy) = (Arc::clone(self), Arc::clone(handle), policy.clone());
        let committed = vfs.commit_begun(&handle.node);
        async move {
            committed.await.inspect_err(|_| handle.was_told())?;
            failpoint::reach("vfs.fsync.committed");
            let root = handle.node.state.read().record.content;
            if let Some(root) = root.filter(|_| policy.level != Level::LocalDurability) {
                vfs.replicator.level(&root, &policy).await?;
            }
            failpoint::reach("vfs.fsync.replicated");
            Ok(())
        }
    }

    /// The steps of [`Vfs::flush`].
    pub fn flush_steps(
        self: &Arc<Self>,
        id: HandleId,
    ) -> impl FnMut() -> Result<Step<(), VfsError>, VfsError> + Send + use<> {
        let (vfs, mut stage) = (Arc::clone(self), Stage::Begin);
        move || {
            if let Stage::Begin = stage {
                stage = Stage::Copied;
                return vfs.begin_flush(id);
            }
            let handle = vfs.handle(id)?;
            handle.wrote.store(false, Ordering::Release);
            if vfs.policy_of(handle.node.ino)?.level == Level::LocalDurability {
                vfs.persist()?;
            }
            Ok(Step::Done(()))
        }
    }

    fn begin_flush(self: &Arc<Self>, id: HandleId) -> Result<Step<(), VfsError>, VfsError> {
        let handle = self.handle(id)?;
        handle.deliver()?;
        if !handle.wrote.load(Ordering::Acquire) || handle.node.state.read().record.nlink == 0 {
            return Ok(Step::Done(()));
        }
        let policy = self.policy_of(handle.node.ino)?;
        if policy.wait_on == WaitOn::Fsync {
            self.commit_later(&handle.node);
            return Ok(Step::Done(()));
        }
        if handle.cut.load(Ordering::Acquire) {
            // Somebody asked its program to end: it is not kept by a second wait.
            self.commit_later(&handle.node);
            return Err(Errno::INTR.into());
        }
        Ok(Step::wait(self.committed_and_copied(&handle, &policy)))
    }

    /// The wait of a request on this handle was cut off by a signal: its next
    /// close waits for nothing, and says so.
    pub fn interrupted(&self, id: HandleId) {
        if let Ok(handle) = self.handle(id) {
            handle.cut.store(true, Ordering::Release);
        }
    }

    /// The steps of [`Vfs::fsync`].
    pub fn fsync_steps(
        self: &Arc<Self>,
        id: HandleId,
    ) -> impl FnMut() -> Result<Step<(), VfsError>, VfsError> + Send + use<> {
        let (vfs, mut stage) = (Arc::clone(self), Stage::Begin);
        let mut policy = Policy::default();
        move || match stage {
            Stage::Begin => {
                stage = Stage::Copied;
                let handle = vfs.handle(id)?;
                handle.deliver()?;
                if handle.node.state.read().record.nlink == 0 {
                    // Its bytes live across anything but a crash, synced or not; that
                    // it has no name is made durable.
                    vfs.persist()?;
                    return Ok(Step::Done(()));
                }
                policy = vfs.policy_of(handle.node.ino)?;
                if policy.level == Level::LocalDurability && vfs.sync_staged(&handle)? {
                    vfs.persist()?;
                    return Ok(Step::Done(()));
                }
                Ok(Step::wait(vfs.committed_and_copied(&handle, &policy)))
            }
            Stage::Copied => {
                stage = Stage::End;
                Ok(vfs.names_recorded(&policy)?)
            }
            Stage::End => Ok(Step::Done(())),
        }
    }

    /// Makes names durable as a level asks.
    fn names_recorded(&self, policy: &Policy) -> Result<Step<(), VfsError>, VfsError> {
        Ok(match self.persisting(|| Ok(self.checkpointer.record(policy)?))? {
            None => Step::Done(()),
            Some(sequence) => {
                let reached = self.checkpointer.reached(sequence, policy);
                Step::wait(async move { Ok(reached.await?) })
            }
        })
    }

    /// The steps of [`Vfs::sync_directory`].
    pub fn sync_directory_steps(
        self: &Arc<Self>,
        ino: Ino,
    ) -> impl FnMut() -> Result<Step<(), VfsError>, VfsError> + Send + use<> {
        let (vfs, mut stage) = (Arc::clone(self), Stage::Begin);
        move || match stage {
            Stage::Begin => {
                stage = Stage::End;
                vfs.names_recorded(&vfs.policy_of(ino)?)
            }
            Stage::Copied | Stage::End => Ok(Step::Done(())),
        }
    }

    /// The steps of a copy between files; see [`Vfs::copy_range`].
    pub fn copy_steps(
        self: &Arc<Self>,
        (from, from_offset): (HandleId, u64),
        (to, to_offset): (HandleId, u64),
        len: u64,
    ) -> impl FnMut() -> Result<Step<u64, VfsError>, VfsError> + Send + use<> {
        let (vfs, brought) = (Arc::clone(self), Brought::default());
        let mut left: Option<Range<u64>> = None;
        move || {
            let (from, to) = ((from, from_offset), (to, to_offset));
            vfs.near(&brought, || vfs.copy_part(from, to, len, &mut left))
        }
    }

    /// The steps of a virtual attribute: what is dirty is committed first.
    pub fn get_xattr_steps(
        self: &Arc<Self>,
        ino: Ino,
        name: Vec<u8>,
    ) -> impl FnMut() -> Result<Step<Vec<u8>, VfsError>, VfsError> + Send + use<> {
        let (vfs, mut stage) = (Arc::clone(self), Stage::Begin);
        move || {
            if let Stage::Begin = stage {
                stage = Stage::End;
                let commits = name == b"user.cairn.cid" || name == b"user.cairn.copies";
                if commits && !vfs.options.read_only {
                    let waits = vfs.commits_begun(ino)?;
                    return Ok(Step::wait(async move {
                        for wait in waits {
                            wait.await?;
                        }
                        Ok(())
                    }));
                }
            }
            vfs.get_xattr(ino, &name).map(Step::Done)
        }
    }
}
