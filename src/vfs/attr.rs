use std::sync::atomic::Ordering;

use super::accessed::lay_over;
use super::{HandleId, Vfs, VfsError};
use crate::metadata::{InodeRecord, MetadataError};
use crate::types::{FileKind, Ino, Timestamp};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// A setattr request; `None` keeps.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of a file.
    pub size: Option<u64>,
    /// The descriptor that the length is set by.
    pub handle: Option<HandleId>,
    /// Access time; `Some(None)` is now.
    pub atime: Option<Option<Timestamp>>,
    /// Modification time; `Some(None)` is now.
    pub mtime: Option<Option<Timestamp>>,
}

/// statfs. Sizes in bytes.
#[derive(Debug, Clone, Copy)]
pub struct StatFs {
    /// In all.
    pub capacity: u64,
    /// Not in use.
    pub free: u64,
    /// What can be written.
    pub available: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that may be made.
    pub free_inodes: u64,
}

impl Vfs {
    /// The attributes as readers see them.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn attributes(&self, ino: Ino) -> Result<InodeRecord, VfsError> {
        // Before the row: a time that is written in between is in the row.
        let waiting = self.accessed.of(ino);
        if let Some(node) = self.nodes.get(ino) {
            let mut record = match node.look() {
                Ok(state) => {
                    let mut record = state.record.clone();
                    if let Some(staging) = &state.staging {
                        // Until the commit counts leaves: what the disk below has.
                        let data = staging.data_bytes(record.holes)?;
                        record.holes = record.size.saturating_sub(data);
                        node.told_holes.store(record.holes, Ordering::Release);
                    }
                    record
                }
                Err(shown) => {
                    node.told_holes.store(shown.holes, Ordering::Release);
                    shown
                }
            };
            lay_over(waiting, &mut record);
            return Ok(record);
        }
        let record = self.record(ino).map(|mut record| {
            lay_over(waiting, &mut record);
            record
        });
        match record {
            // Removed, but a program still has it as a directory, current directory
            // or O_PATH handle, of which we are not told: fstat works there.
            Err(VfsError::Metadata(MetadataError::NotFound))
                if let Some(row) = self.gone.get(&ino) =>
            {
                Ok(row)
            }
            other => other,
        }
    }

    /// An inode that has a name, by its number.
    ///
    /// # Errors
    /// `NotFound`: there is none, or it is removed.
    pub fn by_number(&self, ino: Ino) -> Result<(Ino, InodeRecord), VfsError> {
        let record = self.record(ino)?;
        if record.nlink == 0 {
            return Err(MetadataError::NotFound.into());
        }
        Ok((ino, record))
    }

    /// chmod, chown, truncate, utimens. The kernel has checked permissions.
    ///
    /// # Errors
    /// EINVAL, EISDIR for a size of something else; ENOSPC, EFBIG.
    pub fn set_attributes(
        &self,
        ino: Ino,
        set: &SetAttr,
        caller: Caller,
    ) -> Result<InodeRecord, VfsError> {
        self.refuse_read_only()?;
        if let Some(size) = set.size {
            let node = self.node(ino)?;
            match node.row().kind {
                FileKind::File => {}
                FileKind::Directory => return Err(rustix::io::Errno::ISDIR.into()),
                _ => return Err(rustix::io::Errno::INVAL.into()),
            }
            self.truncate_node(&node, size, None)?;
            if let Some(id) = set.handle {
                self.handle(id)?.wrote();
            }
            if node.opens.load(Ordering::Acquire) == 0 {
                self.commit_later(&node);
            }
        }
        let now = self.now();
        let time = |time: Option<Option<Timestamp>>| time.map(|time| time.unwrap_or(now));
        let (atime, mtime) = (time(set.atime), time(set.mtime));
        let owner_changes = set.uid.is_some() || set.gid.is_some();
        let rows = set.mode.is_some() || owner_changes || atime.is_some() || mtime.is_some();
        if !rows {
            return self.attributes(ino);
        }
        // Under the state's lock: a commit beside would put its own mtime over
        // this one, and its content would not be in the row that we take.
        let node = self.nodes.get(ino);
        let mut state = node.as_ref().map(|node| self.write_node(node)).transpose()?;
        if atime.is_some() {
            self.accessed.forget(ino);
        }
        let row = self.namespace.update_inode(ino, &mut |inode| {
            if let Some(mode) = set.mode {
                inode.mode = mode & 0o7777;
            }
            inode.uid = set.uid.unwrap_or(inode.uid);
            inode.gid = set.gid.unwrap_or(inode.gid);
            // POSIX chown: an ordinary user's change drops setuid and setgid.
            if owner_changes
                && set.mode.is_none()
                && inode.kind == FileKind::File
                && caller.uid != 0
            {
                inode.mode &= !SETUID;
                if inode.mode & GROUP_EXEC != 0 {
                    inode.mode &= !SETGID;
                }
            }
            inode.atime = atime.unwrap_or(inode.atime);
            inode.mtime = mtime.unwrap_or(inode.mtime);
            inode.ctime = now;
            Ok(())
        })?;
        self.forget_record(ino);
        if let Some(mut state) = state.take() {
            state.take_row(row);
            if let Some(mtime) = mtime {
                state.record.mtime = mtime;
            }
        } else {
            // It may have been opened meanwhile.
            self.reload(&[ino])?;
        }
        self.attributes(ino)
    }

    /// Space at an inode: of the disk below, or of the smallest quota above it if
    /// that is smaller. Never asks a backend.
    ///
    /// # Errors
    /// EIO.
    pub fn stat_fs(&self, ino: Ino) -> Result<StatFs, VfsError> {
        let usage = self.store.usage()?;
        let stats = self.namespace.stats();
        // What is in memory will be on the disk.
        let owed = self.owed_bytes.load(std::sync::atomic::Ordering::Relaxed);
        let available = usage.available_bytes.saturating_sub(owed);
        let mut stat = StatFs {
            capacity: usage.capacity_bytes,
            free: available,
            available,
            inodes: stats.files + stats.directories,
            free_inodes: u64::from(u32::MAX),
        };
        let quotas = match self.namespace.quotas_at(ino) {
            Err(MetadataError::NotFound) => Vec::new(),
            other => other?,
        };
        for quota in quotas.iter().rev() {
            if let Some(limit) = quota.limits.bytes {
                let left = limit.saturating_sub(quota.bytes);
                stat.available = stat.available.min(left);
                if limit < stat.capacity {
                    (stat.capacity, stat.free) = (limit, left);
                }
            }
            if let Some(limit) = quota.limits.inodes {
                stat.inodes = quota.inodes;
                stat.free_inodes = stat.free_inodes.min(limit.saturating_sub(quota.inodes));
            }
        }
        Ok(stat)
    }
}
