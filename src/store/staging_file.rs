//! How a staging becomes a file, durable, and how a crash's file is taken up.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StoreError;
use super::disk::{Disk, DiskFile, OpenHow};
use super::file_pool::machine;
use super::layout::{self, Layout, SegmentKind};
use super::pages::PAGE;
use super::staging::{BaseReader, Body, Staging, StagingOptions, create};
use crate::runtime::failpoint;
use crate::types::{Ino, SegmentId};

impl Staging {
    /// The leaf index under which [`Staging::pages`] keeps its own header: 8 bytes
    /// id of the staging file, 8 bytes size of the whole content below, little
    /// endian. No leaf has it: a file of that many leaves cannot be.
    pub const HEADER_LEAF: u64 = u64::MAX;

    /// Takes up a staging file that a crash left, with its persisted pages.
    ///
    /// The file may be newer than the record: what was appended after it is
    /// cut, a truncation after it stands (both as a local disk would do). When
    /// the file was sealed but the index lost it, its bytes are copied back from
    /// the segment, which stays as it is.
    ///
    /// `sizes`: of the file, of the base that is still visible, of the whole
    /// content below.
    ///
    /// # Errors
    /// `Io` when there is no such file or the pages do not fit.
    pub fn adopt(
        dir: &Path,
        ino: Ino,
        sizes: (u64, u64, u64),
        pages: &[(u64, Vec<u8>)],
        options: StagingOptions,
    ) -> Result<Self, StoreError> {
        Self::adopt_on(machine(), dir, ino, sizes, pages, options)
    }

    pub(super) fn adopt_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        ino: Ino,
        (size, base_size, original_size): (u64, u64, u64),
        pages: &[(u64, Vec<u8>)],
        options: StagingOptions,
    ) -> Result<Self, StoreError> {
        let (id, original_size) = match header_of(pages) {
            Some(header) => parse_header(header)
                .ok_or_else(|| StoreError::invalid(dir, "a staged record has a bad header"))?,
            None => (only_file_of(disk.as_ref(), dir, ino)?, original_size),
        };
        let mut staging = Self::on(disk, dir, ino, base_size, options);
        staging.recorded = true;
        staging.original_size = original_size.max(base_size);
        for (leaf, bits) in pages.iter().filter(|(leaf, _)| *leaf != Self::HEADER_LEAF) {
            if !staging.valid.import(*leaf, bits) {
                return Err(StoreError::invalid(dir, "a staged bitmap does not fit the leaf size"));
            }
        }
        let path = dir.join(layout::staging_name(ino, id));
        staging.take_file(id, path)?;
        staging.cut_to_record(size)?;
        Ok(staging)
    }

    /// Makes the file `path` the body, or a copy when another name shares it.
    fn take_file(&mut self, id: SegmentId, path: PathBuf) -> Result<(), StoreError> {
        let sealed = Layout::new(self.dir.parent().unwrap_or(&self.dir)).file(id);
        let (found, file) = match self.disk.open(&path, OpenHow::ReadWrite) {
            Ok(file) => (path, file),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let file = self.disk.open(&sealed, OpenHow::Read);
                (sealed.clone(), file.map_err(|_| StoreError::io(&path, e))?)
            }
            Err(e) => return Err(StoreError::io(&path, e)),
        };
        let stat = file.stat().map_err(|e| StoreError::io(&found, e))?;
        if found != sealed && stat.links < 2 {
            self.id = id;
            layout::note_id(id);
            self.body = Body::File { path: found, file };
            return Ok(());
        }
        self.copy_into_own(file.as_ref())
    }

    /// A segment is never written again: goes on in a copy, under a new id.
    fn copy_into_own(&mut self, from: &dyn DiskFile) -> Result<(), StoreError> {
        self.id = layout::new_id(SegmentKind::Flat);
        let path = self.own_path();
        let file = create(self.disk.as_ref(), &path)?;
        copy_sparse(from, file.as_ref()).map_err(|e| StoreError::io(&path, e))?;
        self.body = Body::File { path, file };
        (self.synced, self.named) = (false, false);
        Ok(())
    }

    /// Before a change: a sealed file (whose commit failed afterwards) belongs
    /// to the store, so the change goes to a copy.
    pub(super) fn thaw(&mut self) -> Result<(), StoreError> {
        if self.sealed
            && let Body::File { file, .. } = &self.body
        {
            let file = file.clone();
            self.copy_into_own(file.as_ref())?;
        }
        self.sealed = false;
        Ok(())
    }

    /// Before all is cut away: what a record names stays as it is, so that a
    /// crash finds all of the old bytes, never new ones between them.
    pub(super) fn begin_anew(&mut self) -> Result<(), StoreError> {
        self.release()?;
        self.id = layout::new_id(SegmentKind::Flat);
        self.body = Body::Nothing;
        (self.synced, self.named) = (false, false);
        (self.sealed, self.recorded) = (false, false);
        Ok(())
    }

    fn cut_to_record(&mut self, size: u64) -> Result<(), StoreError> {
        let Body::File { path, file } = &self.body else { return Ok(()) };
        let found = file.stat().map_err(|e| StoreError::io(path, e))?.len;
        if found > size {
            file.set_len(size).map_err(|e| StoreError::io(path, e))?;
        } else if found < size {
            tracing::warn!(
                ino = self.ino.0,
                size,
                found,
                "staged file was cut after its last sync"
            );
        }
        self.len = found.min(size);
        self.base_size = self.base_size.min(self.len);
        self.valid.clear_from(self.base_size.div_ceil(PAGE));
        Ok(())
    }

    /// Moves it into its file.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn spill(&mut self) -> Result<(), StoreError> {
        let bytes = match &self.body {
            Body::File { .. } => return Ok(()),
            Body::Memory(bytes) => bytes.as_slice(),
            Body::Nothing => &[],
        };
        let path = self.own_path();
        let file = create(self.disk.as_ref(), &path)?;
        let filled = file.set_len(self.len).and_then(|()| file.write_at(0, bytes));
        if let Err(error) = filled {
            if let Err(error) = self.disk.remove(&path) {
                tracing::warn!(%error, path = %path.display(), "half-made staging file is left");
            }
            return Err(StoreError::io(&path, error));
        }
        failpoint::reach("store.staging.spilled");
        if matches!(self.body, Body::Memory(_)) {
            // All of the base was read into memory: nothing is below any more.
            self.valid.set(0, self.base_size.div_ceil(PAGE));
        }
        self.body = Body::File { path, file };
        Ok(())
    }

    /// fdatasync of the file (spills first). A failure poisons: every later
    /// sync fails too.
    ///
    /// # Errors
    /// `Poisoned`, `NoSpace`, `Io`.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.check_poison()?;
        self.spill()?;
        self.sync_bytes()?;
        if !self.named {
            self.poisoned = true;
            self.disk.sync_dir(&self.dir).map_err(|e| StoreError::io(&self.dir, e))?;
            self.poisoned = false;
            self.named = true;
            failpoint::reach("store.staging.named");
        }
        self.recorded = true;
        Ok(())
    }

    /// Asks the disk for what was written to the file: whether all arrived. For
    /// files whose bytes were read back to be kept elsewhere: pages that the disk
    /// refused may read as zeros, and only a sync says so.
    ///
    /// # Errors
    /// `Poisoned`, `NoSpace`, `Io`; as [`Staging::sync`].
    pub fn sync_bytes(&mut self) -> Result<(), StoreError> {
        self.check_poison()?;
        match &self.body {
            Body::File { path, file } if !self.synced => {
                self.poisoned = true;
                file.sync_data().map_err(|e| StoreError::io(path, e))?;
                (self.poisoned, self.synced) = (false, true);
                failpoint::reach("store.staging.synced");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// `Poisoned` after a sync of it that failed: its bytes are not known.
    pub fn check_poison(&self) -> Result<(), StoreError> {
        let lost = matches!(&self.body, Body::File { file, .. } if file.is_lost());
        if self.poisoned || lost { Err(StoreError::Poisoned) } else { Ok(()) }
    }

    /// The valid pages per leaf, to be persisted (`StagedRecord::pages`), and
    /// one entry that names the file. A file without base needs no bitmap: all
    /// of it is its own.
    #[must_use]
    pub fn pages(&self) -> Vec<(u64, Vec<u8>)> {
        let mut header = self.id.0.to_le_bytes().to_vec();
        header.extend(self.original_size.to_le_bytes());
        let mut pages = self.valid.export();
        pages.push((Self::HEADER_LEAF, header));
        pages
    }

    /// The file that pages of [`Staging::pages`] name.
    #[must_use]
    pub fn id_in(pages: &[(u64, Vec<u8>)]) -> Option<SegmentId> {
        header_of(pages).and_then(parse_header).map(|(id, _)| id)
    }

    /// Frees the disk's space outside of `data`, all dirty leaves that are no
    /// zeros, in order: there the bytes are zero or the base's. Does nothing while
    /// the file takes little more than `data`.
    ///
    /// # Errors
    /// `Io`.
    pub fn give_back(
        &self,
        data: impl Iterator<Item = Range<u64>> + Clone,
    ) -> Result<(), StoreError> {
        let Body::File { path, file } = &self.body else { return Ok(()) };
        let io = |e| StoreError::io(path, e);
        let allocated = file.stat().map_err(io)?.allocated;
        let needed: u64 = data.clone().map(|range| range.end - range.start).sum();
        if self.sealed || allocated <= needed.saturating_add(self.options.leaf_size) {
            return Ok(());
        }
        let mut at = 0;
        for range in data.chain(std::iter::once(self.len..self.len)) {
            if at < range.start {
                file.punch(at, range.start - at).map_err(io)?;
            }
            at = range.end;
        }
        // What KEEP_SIZE reserved past the end goes by truncation: ext4 punches
        // nothing there.
        file.set_len(self.len).map_err(io)
    }

    /// Lets go of a file that is not needed any more, unless it has become a
    /// segment.
    ///
    /// # Errors
    /// `Io`.
    pub fn discard_unless_sealed(self) -> Result<(), StoreError> {
        self.discard()
    }

    /// Removes the staging file. A file that a sync acknowledged is set aside
    /// among the segments instead, unindexed: should a crash bring its record
    /// back, it is found there by its id. See [`super::Aside`].
    ///
    /// # Errors
    /// `Io`.
    pub fn discard(self) -> Result<(), StoreError> {
        self.release()
    }

    pub(super) fn release(&self) -> Result<(), StoreError> {
        let Body::File { path, file } = &self.body else { return Ok(()) };
        if self.sealed {
            return Ok(());
        }
        let gone = if self.recorded {
            self.set_aside(path, file.as_ref())
        } else {
            self.disk.remove(path)
        };
        match gone {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io(path, e)),
            _ => Ok(()),
        }
    }

    fn set_aside(&self, path: &Path, file: &dyn DiskFile) -> std::io::Result<()> {
        let bytes = file.stat()?.allocated;
        let layout = Layout::new(self.dir.parent().unwrap_or(&self.dir));
        self.disk.make_dir(&layout.folder(self.id))?;
        self.disk.rename(path, &layout.file(self.id))?;
        failpoint::reach("store.staging.set_aside");
        self.asides.add(self.ino, self.id, bytes);
        Ok(())
    }

    /// Gets a body that can take writes up to `end`: memory while everything
    /// is small, else the file.
    pub(super) fn materialize(
        &mut self,
        end: u64,
        base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        self.thaw()?;
        let small = end.max(self.len) <= self.options.memory_limit;
        match &self.body {
            Body::Nothing if small => {
                let mut bytes = vec![0; self.len as usize];
                self.read_base(0, &mut bytes, base)?;
                self.body = Body::Memory(bytes);
                Ok(())
            }
            Body::Memory(_) if small => Ok(()),
            _ => self.spill(),
        }
    }

    /// Writes to the file without marking anything. When it fails, the file
    /// is not left longer than the staged file: the tail would show later.
    pub(super) fn write_file(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let Body::File { path, file } = &self.body else {
            return Err(StoreError::invalid(&self.dir, "staged bytes are not in a file"));
        };
        self.synced = false;
        if let Err(error) = file.write_at(offset, data) {
            if offset + data.len() as u64 > self.len {
                file.set_len(self.len).map_err(|e| StoreError::io(path, e))?;
            }
            return Err(StoreError::io(path, error));
        }
        Ok(())
    }

    fn own_path(&self) -> PathBuf {
        self.dir.join(layout::staging_name(self.ino, self.id))
    }
}

fn header_of(pages: &[(u64, Vec<u8>)]) -> Option<&[u8]> {
    let header = pages.iter().find(|(leaf, _)| *leaf == Staging::HEADER_LEAF);
    header.map(|(_, header)| header.as_slice())
}

pub(super) fn parse_header(bytes: &[u8]) -> Option<(SegmentId, u64)> {
    let (id, size) = bytes.split_at_checked(8)?;
    let id = u64::from_le_bytes(id.try_into().ok()?);
    Some((SegmentId(id), u64::from_le_bytes(size.try_into().ok()?)))
}

/// For a record without header: unambiguous only when the inode has one file.
fn only_file_of(disk: &dyn Disk, dir: &Path, ino: Ino) -> Result<SegmentId, StoreError> {
    let names = disk.list(dir).map_err(|e| StoreError::io(dir, e))?;
    let mut of_ino = names
        .iter()
        .filter_map(|name| layout::parse_staging_name(name))
        .filter(|(of, _)| *of == ino);
    match (of_ino.next(), of_ino.next()) {
        (Some((_, id)), None) => Ok(id),
        _ => Err(StoreError::invalid(dir, format!("inode {ino} has no single staging file"))),
    }
}

fn copy_sparse(from: &dyn DiskFile, to: &dyn DiskFile) -> std::io::Result<()> {
    let len = from.stat()?.len;
    to.set_len(len)?;
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while let Some(start) = from.seek(at, false)? {
        let end = from.seek(start, true)?.unwrap_or(len);
        at = start;
        while at < end {
            let want = (end - at).min(buf.len() as u64) as usize;
            let got = from.read_at(at, &mut buf[..want])?;
            if got == 0 {
                return Ok(());
            }
            to.write_at(at, &buf[..got])?;
            at += got as u64;
        }
    }
    Ok(())
}
