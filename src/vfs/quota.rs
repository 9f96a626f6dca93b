use super::{Vfs, VfsError};
use crate::metadata::{MetadataError, QuotaLimits, QuotaUsage};
use crate::types::Ino;

impl Vfs {
    /// Sets a directory's quota; returns when it holds, what is written and not
    /// committed included.
    ///
    /// # Errors
    /// ENOTDIR, EROFS; ENOSPC for too many quotas.
    pub fn set_quota(&self, ino: Ino, limits: QuotaLimits) -> Result<QuotaUsage, VfsError> {
        self.refuse_read_only()?;
        self.namespace.set_quota(ino, limits, self.now(), &mut || {
            for node in self.nodes.all() {
                let state = node.state.write();
                let growth = state.record.size.cast_signed() - state.stored_size.cast_signed();
                if state.dirty && growth != 0 {
                    self.namespace.stage_growth(node.ino, growth, true)?;
                }
            }
            Ok(())
        })?;
        self.reload(&[ino])?;
        let quotas = self.namespace.quotas_at(ino)?;
        let own = quotas.into_iter().find(|quota| quota.ino == ino);
        own.ok_or_else(|| MetadataError::NotFound.into())
    }

    /// Removes a directory's quota.
    ///
    /// # Errors
    /// ENODATA when it has none; EROFS.
    pub fn remove_quota(&self, ino: Ino) -> Result<(), VfsError> {
        self.refuse_read_only()?;
        self.namespace.remove_quota(ino, self.now())?;
        self.reload(&[ino])
    }
}
