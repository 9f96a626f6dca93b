//! The few things the store asks of the operating system. Crash tests put a
//! disk below it that drops, reorders and tears what was not synced.
//!
//! Assumed of the medium: `sync_data` returns only when the file's bytes and
//! length are on stable storage; `sync_dir` the same for names; a rename shows
//! the old name, the new one or both, never neither; what was synced stays.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FallocateFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;

use super::pages::PAGE;
use crate::runtime::Room;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenHow {
    /// It must exist.
    Read,
    /// It must exist.
    ReadWrite,
    /// It must not exist.
    CreateNew,
}

/// What a file takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileStat {
    /// Bytes that a reader sees.
    pub len: u64,
    /// Bytes on the disk; a page at least unless the file is all hole.
    pub allocated: u64,
    /// Names of the file.
    pub links: u64,
}

/// Names and directories.
pub(crate) trait Disk: Send + Sync + Debug + 'static {
    fn open(&self, path: &Path, how: OpenHow) -> io::Result<Arc<dyn DiskFile>>;
    /// Never replaces: `AlreadyExists` when `to` is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// With its parents; fine when it exists.
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory that are UTF-8 (all of ours are).
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    fn space(&self, path: &Path) -> io::Result<Room>;
}

/// One open file. All offsets are absolute; there is no cursor.
pub(crate) trait DiskFile: Send + Sync + Debug {
    /// Fills `buf` as far as the file goes; the bytes read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `data`, or fails with any part written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn stat(&self) -> io::Result<FileStat>;
    /// Reserves space without changing bytes or length.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Zeroes a range and frees its space; the length stays.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// The next data (or hole) at or after `offset`; `None` when there is none.
    fn seek(&self, offset: u64, hole: bool) -> io::Result<Option<u64>>;
    fn sync_data(&self) -> io::Result<()>;
    /// A sync of it failed, also one that nobody asked for: what was written since
    /// the one before may be gone.
    fn is_lost(&self) -> bool {
        false
    }
    /// It was renamed: a file that is opened again must know.
    fn renamed(&self, _to: &Path) {}
}

/// The machine's own, each file open for as long as it is held: see
/// [`super::file_pool::machine`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, how: OpenHow) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(how != OpenHow::Read).create_new(how == OpenHow::CreateNew);
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // A filesystem without the flag. Ids are unique, so a plain rename will do.
            Err(Errno::INVAL | Errno::NOSYS) if !to.exists() => std::fs::rename(from, to),
            other => Ok(other?),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn space(&self, path: &Path) -> io::Result<Room> {
        Ok(Room::at(path)?)
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn stat(&self) -> io::Result<FileStat> {
        let meta = self.0.metadata()?;
        // st_blocks counts 512 bytes, whatever the filesystem's block is (stat(2)).
        let blocks = meta.blocks() * 512;
        // A disk may keep few bytes in the inode itself: they are data.
        let some = blocks > 0 || (meta.len() > 0 && self.seek(0, false)?.is_some());
        let allocated = blocks.max(if some { PAGE } else { 0 });
        Ok(FileStat { len: meta.len(), allocated, links: meta.nlink() })
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.0, flags, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(offset, len),
            other => Ok(other?),
        }
    }

    fn seek(&self, offset: u64, hole: bool) -> io::Result<Option<u64>> {
        let from = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        match rustix::fs::seek(&self.0, from) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            // A filesystem without holes: all is data up to the end.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let len = self.0.metadata()?.len();
                Ok(if offset >= len { None } else { Some(if hole { len } else { offset }) })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl RealFile {
    /// For filesystems that cannot punch: the bytes must read as zero all the same.
    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = vec![0; 64 * 1024];
        let end = (offset + len).min(self.0.metadata()?.len());
        let mut at = offset;
        while at < end {
            let step = (end - at).min(zeros.len() as u64);
            self.0.write_all_at(&zeros[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }
}
