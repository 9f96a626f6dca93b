//! Requests that may wait for backends, in steps that hold no thread and no lock
//! meanwhile. A step itself waits for this machine only.

use std::sync::Arc;

use super::file::HandleId;
use super::near::Brought;
use super::{Vfs, VfsError};
use crate::replication::Policy;
use crate::runtime::{Bridge, Step};
use crate::types::Ino;

/// What is next.
enum Stage {
    Begin,
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

    /// Makes names durable as a level asks.
    pub(super) fn names_recorded(&self, policy: &Policy) -> Result<Step<(), VfsError>, VfsError> {
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
            Stage::End => Ok(Step::Done(())),
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
        move || {
            let (from, to) = ((from, from_offset), (to, to_offset));
            vfs.near(&brought, || vfs.copy_part(from, to, len))
        }
    }
}
