//! Wishes that copies move, for verbs and the daemon.

use super::machine::MoveReport;
use super::{ReplicationError, Replicator};
use crate::metadata::{MoveKind, MoveRecord};
use crate::types::BackendId;

impl Replicator {
    /// A wish that copies move; it is durable when this returns. For a replacement the
    /// old place is drained from now on.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn begin_move(&self, record: &MoveRecord) -> Result<u32, ReplicationError> {
        let core = &self.core;
        let number = core.machine.begin_move(record)?;
        if let (MoveKind::Replace, Some(from)) = (record.kind, &record.from) {
            self.set_draining(from, true)?;
        }
        core.namespace.engine().persist()?;
        core.scheduler.ring();
        Ok(number)
    }

    /// Ends a wish; what is under way stays where it is.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn end_move(&self, number: u32, record: &MoveRecord) -> Result<(), ReplicationError> {
        let core = &self.core;
        core.machine.end_move(number)?;
        if let (MoveKind::Replace, Some(from)) = (record.kind, &record.from) {
            self.set_draining(from, false)?;
        }
        core.namespace.engine().persist()?;
        core.scheduler.ring();
        Ok(())
    }

    /// All copies are to leave a backend, or not any more.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn set_draining(&self, id: &BackendId, draining: bool) -> Result<(), ReplicationError> {
        self.core.registry.fleet().write().set_draining(id, draining);
        self.keep(id)
    }

    /// Carries wishes out by a step; how far each is.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn move_some(&self) -> Result<Vec<(u32, MoveRecord, MoveReport)>, ReplicationError> {
        let reports = self.core.machine.move_some()?;
        self.core.scheduler.ring();
        Ok(reports)
    }
}
