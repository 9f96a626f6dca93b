use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom};

use super::StoreError;
use super::segment::sync_dir;
use crate::types::{Cid, Ino};

/// Unit of the valid bitmap, in bytes: what the kernel writes back.
const PAGE: u64 = 4096;
/// Linux refuses offsets beyond this.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// Reads the sealed content below staged bytes.
pub trait BaseReader {
    /// Fills `buf` from `offset`; the range lies within the content.
    ///
    /// # Errors
    /// When the bytes cannot be had from any copy.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError>;
}

/// How staging behaves.
#[derive(Debug, Clone, Copy)]
pub struct StagingOptions {
    /// Files up to this size stay in memory until sealed or synced.
    pub memory_limit: u64,
    /// Leaf size of the profile, in bytes; a multiple of 4096.
    pub leaf_size: u64,
}

/// A leaf of a staging file that becomes part of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedLeaf {
    /// Its raw block.
    pub cid: Cid,
    /// Offset in the staging file (the leaf's natural place).
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

enum Body {
    Memory(Vec<u8>),
    File(Arc<File>),
}

/// The bytes of a file that is being changed: in memory while small and new,
/// then a sparse file; over a base, with a bitmap of valid 4 KiB pages.
///
/// A page comes from the base when it begins below `base_size` and its bit is
/// not set; else from here. Bytes at and above `base_size` never come from the
/// base, so truncation needs no copy: it lowers `base_size`.
pub struct Staging {
    path: PathBuf,
    body: Body,
    len: u64,
    base_size: u64,
    /// Size of the content that the next DAG is rebuilt from.
    original_size: u64,
    /// Pages written, per leaf.
    pages: BTreeMap<u64, Vec<u8>>,
    options: StagingOptions,
    poisoned: bool,
    /// Whether the directory entry of the file is durable.
    entered: bool,
    /// The file is a segment now.
    sealed: bool,
}

impl Staging {
    /// For a file with nothing below it.
    #[must_use]
    pub fn empty(dir: &Path, ino: Ino, options: StagingOptions) -> Self {
        Self::over(dir, ino, 0, options)
    }

    /// Over a base of `base_size` bytes: nothing is valid here yet.
    #[must_use]
    pub fn over(dir: &Path, ino: Ino, base_size: u64, options: StagingOptions) -> Self {
        Self {
            path: dir.join(Self::file_name(ino)),
            body: Body::Memory(Vec::new()),
            len: base_size,
            base_size,
            original_size: base_size,
            pages: BTreeMap::new(),
            options,
            poisoned: false,
            entered: false,
            sealed: false,
        }
    }

    /// Takes up a staging file that a crash left, with its persisted pages.
    ///
    /// # Errors
    /// `Io` when the file is gone.
    pub fn adopt(
        dir: &Path,
        ino: Ino,
        (len, base_size, original_size): (u64, u64, u64),
        pages: &[(u64, Vec<u8>)],
        options: StagingOptions,
    ) -> Result<Self, StoreError> {
        let path = dir.join(Self::file_name(ino));
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| StoreError::io(&path, e))?;
        // Bytes beyond the recorded length were never acknowledged.
        file.set_len(len).map_err(|e| StoreError::io(&path, e))?;
        Ok(Self {
            path,
            body: Body::File(Arc::new(file)),
            len,
            base_size,
            original_size,
            pages: pages.iter().cloned().collect(),
            options,
            poisoned: false,
            entered: true,
            sealed: false,
        })
    }

    /// The name of an inode's staging file.
    pub(super) fn file_name(ino: Ino) -> String {
        format!("{:016x}", ino.0)
    }

    /// Bytes of the file as it is now.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Of the base, what is still visible.
    #[must_use]
    pub fn base_size(&self) -> u64 {
        self.base_size
    }

    /// Size of the content below, as it was when staging began.
    #[must_use]
    pub fn original_size(&self) -> u64 {
        self.original_size
    }

    /// Whether it still lives in memory only.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        matches!(self.body, Body::Memory(_))
    }

    /// Bytes of memory it holds.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        match &self.body {
            Body::Memory(bytes) => bytes.len() as u64,
            Body::File(_) => 0,
        }
    }

    fn error(&self, source: std::io::Error) -> StoreError {
        StoreError::io(&self.path, source)
    }

    fn is_set(&self, page: u64) -> bool {
        let per_leaf = self.options.leaf_size / PAGE;
        let bit = page % per_leaf;
        self.pages
            .get(&(page / per_leaf))
            .is_some_and(|bits| bits[(bit / 8) as usize] & (1 << (bit % 8)) != 0)
    }

    fn set(&mut self, pages: Range<u64>) {
        let per_leaf = self.options.leaf_size / PAGE;
        let bytes = per_leaf.div_ceil(8) as usize;
        for page in pages {
            let bit = page % per_leaf;
            let bits = self.pages.entry(page / per_leaf).or_insert_with(|| vec![0; bytes]);
            bits[(bit / 8) as usize] |= 1 << (bit % 8);
        }
    }

    fn from_base(&self, page: u64) -> bool {
        page * PAGE < self.base_size && !self.is_set(page)
    }

    fn write_body(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        match &mut self.body {
            Body::Memory(bytes) => {
                let end = offset as usize + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[offset as usize..end].copy_from_slice(data);
                Ok(())
            }
            Body::File(file) => {
                let written = file.write_all_at(data, offset);
                written.map_err(|e| StoreError::io(&self.path, e))
            }
        }
    }

    /// Reads from the body; what was never written there is zeros.
    fn read_body(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        match &self.body {
            Body::Memory(bytes) => {
                let start = (offset as usize).min(bytes.len());
                let have = (bytes.len() - start).min(buf.len());
                buf[..have].copy_from_slice(&bytes[start..start + have]);
                buf[have..].fill(0);
                Ok(())
            }
            Body::File(file) => {
                let mut done = 0;
                while done < buf.len() {
                    match file.read_at(&mut buf[done..], offset + done as u64) {
                        Ok(0) => {
                            buf[done..].fill(0);
                            break;
                        }
                        Ok(n) => done += n,
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(self.error(e)),
                    }
                }
                Ok(())
            }
        }
    }

    /// Before the first change: a small base comes into memory whole, a large
    /// one is overlaid by a file.
    fn prepare(&mut self, end: u64, base: &dyn BaseReader) -> Result<(), StoreError> {
        if end > MAX_OFFSET {
            return Err(StoreError::TooLarge);
        }
        if !self.is_in_memory() {
            return Ok(());
        }
        let limit = self.options.memory_limit;
        if self.base_size > 0 && self.base_size.max(end) <= limit {
            let mut bytes = vec![0; self.base_size as usize];
            base.read_at(0, &mut bytes)?;
            self.set(0..self.base_size.div_ceil(PAGE));
            self.body = Body::Memory(bytes);
            self.base_size = 0;
        } else if self.base_size > 0 || end > limit {
            self.spill()?;
        }
        Ok(())
    }

    /// Makes a partly overwritten page whole: its base bytes come here.
    fn complete_page(&mut self, page: u64, base: &dyn BaseReader) -> Result<(), StoreError> {
        if self.from_base(page) {
            let start = page * PAGE;
            let end = (start + PAGE).min(self.base_size);
            let mut bytes = vec![0; (end - start) as usize];
            base.read_at(start, &mut bytes)?;
            self.write_body(start, &bytes)?;
            self.set(page..page + 1);
        }
        Ok(())
    }

    /// Writes; extends the file as needed.
    ///
    /// # Errors
    /// `NoSpace`, `TooLarge`, `Io`; of `base` when a page's edge must be read.
    pub fn write_at(
        &mut self,
        offset: u64,
        data: &[u8],
        base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(data.len() as u64).ok_or(StoreError::TooLarge)?;
        self.prepare(end, base)?;
        let pages = offset / PAGE..end.div_ceil(PAGE);
        if !offset.is_multiple_of(PAGE) {
            self.complete_page(pages.start, base)?;
        }
        if !end.is_multiple_of(PAGE) {
            self.complete_page(pages.end - 1, base)?;
        }
        self.write_body(offset, data)?;
        self.set(pages);
        self.len = self.len.max(end);
        Ok(())
    }

    /// Reads up to the end of the file.
    ///
    /// # Errors
    /// `Io`; of `base`.
    pub fn read_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        base: &dyn BaseReader,
    ) -> Result<usize, StoreError> {
        let want = self.len.saturating_sub(offset).min(buf.len() as u64);
        let end = offset + want;
        let mut at = offset;
        while at < end {
            let below = self.from_base(at / PAGE);
            let mut run = (at / PAGE + 1) * PAGE;
            while run < end && self.from_base(run / PAGE) == below {
                run += PAGE;
            }
            let stop = run.min(end);
            let part = &mut buf[(at - offset) as usize..(stop - offset) as usize];
            if below {
                let known = self.base_size.saturating_sub(at).min(stop - at) as usize;
                base.read_at(at, &mut part[..known])?;
                if known < part.len() {
                    self.read_body(at + known as u64, &mut part[known..])?;
                }
            } else {
                self.read_body(at, part)?;
            }
            at = stop;
        }
        Ok(want as usize)
    }

    /// Truncates or extends (with zeros).
    ///
    /// # Errors
    /// `NoSpace`, `TooLarge`, `Io`; of `base`.
    pub fn set_len(&mut self, len: u64, base: &dyn BaseReader) -> Result<(), StoreError> {
        self.base_size = self.base_size.min(len);
        self.prepare(len, base)?;
        if len < self.len {
            let per_leaf = self.options.leaf_size / PAGE;
            let first_gone = len.div_ceil(PAGE);
            self.pages.split_off(&first_gone.div_ceil(per_leaf));
            if let Some(bits) = self.pages.get_mut(&(first_gone / per_leaf)) {
                for bit in first_gone % per_leaf..per_leaf {
                    bits[(bit / 8) as usize] &= !(1 << (bit % 8));
                }
            }
        }
        match &mut self.body {
            Body::Memory(bytes) => bytes.truncate(len as usize),
            Body::File(file) => {
                file.set_len(len).map_err(|e| StoreError::io(&self.path, e))?;
            }
        }
        self.len = len;
        Ok(())
    }

    /// Zeroes a range; extends the file unless `keep_size`.
    ///
    /// # Errors
    /// `NoSpace`, `TooLarge`, `Io`; of `base`.
    pub fn zero_range(
        &mut self,
        range: Range<u64>,
        keep_size: bool,
        base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        if range.end > MAX_OFFSET {
            return Err(StoreError::TooLarge);
        }
        if !keep_size && range.end > self.len {
            self.set_len(range.end, base)?;
        }
        let end = range.end.min(self.len);
        if range.start >= end {
            return Ok(());
        }
        self.prepare(end, base)?;
        let inner = range.start.div_ceil(PAGE)..end / PAGE;
        if inner.start < inner.end {
            let (start, stop) = (inner.start * PAGE, inner.end * PAGE);
            match &mut self.body {
                Body::Memory(bytes) => {
                    let (start, stop) =
                        ((start as usize).min(bytes.len()), (stop as usize).min(bytes.len()));
                    bytes[start..stop].fill(0);
                }
                Body::File(file) => {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    if rustix::fs::fallocate(&*file, flags, start, stop - start).is_err() {
                        self.write_zeros(start..stop)?;
                    }
                }
            }
            self.set(inner.clone());
            self.write_zeros_at(range.start..start, base)?;
            self.write_zeros_at(stop..end, base)
        } else {
            self.write_zeros_at(range.start..end, base)
        }
    }

    fn write_zeros(&mut self, range: Range<u64>) -> Result<(), StoreError> {
        let zeros = vec![0; (range.end - range.start).min(1 << 20) as usize];
        let mut at = range.start;
        while at < range.end {
            let part = (range.end - at).min(zeros.len() as u64) as usize;
            self.write_body(at, &zeros[..part])?;
            at += part as u64;
        }
        Ok(())
    }

    fn write_zeros_at(
        &mut self,
        range: Range<u64>,
        base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        let zeros = vec![0; range.end.saturating_sub(range.start) as usize];
        self.write_at(range.start, &zeros, base)
    }

    /// Reserves disk space for a range; extends the file unless `keep_size`.
    ///
    /// # Errors
    /// `NoSpace`, `TooLarge`, `Io`; of `base`.
    pub fn allocate(
        &mut self,
        range: Range<u64>,
        keep_size: bool,
        base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        if range.end > MAX_OFFSET {
            return Err(StoreError::TooLarge);
        }
        if range.end > self.options.memory_limit {
            self.prepare(range.end, base)?;
            if let Body::File(file) = &self.body {
                let flags = FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(file, flags, range.start, range.end - range.start)
                    .map_err(|e| self.error(e.into()))?;
            }
        }
        if !keep_size && range.end > self.len {
            self.set_len(range.end, base)?;
        }
        Ok(())
    }

    /// Next data or hole at or after `offset`; base bytes count as data. `None`
    /// past the end of the file, or when no data follows.
    ///
    /// # Errors
    /// `Io`.
    pub fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>, StoreError> {
        if offset >= self.len {
            return Ok(None);
        }
        let in_base = self.base_size.min(self.len);
        let from = offset.max(in_base);
        if !hole && offset < in_base {
            return Ok(Some(offset));
        }
        if from >= self.len {
            return Ok(Some(self.len));
        }
        let Body::File(file) = &self.body else {
            return Ok(Some(if hole { self.len } else { offset }));
        };
        let how = if hole { SeekFrom::Hole(from) } else { SeekFrom::Data(from) };
        match rustix::fs::seek(file, how) {
            Ok(at) => Ok(Some(at.min(self.len)).filter(|at| hole || *at < self.len)),
            Err(rustix::io::Errno::NXIO) => Ok(hole.then_some(self.len)),
            Err(error) => Err(self.error(error.into())),
        }
    }

    /// Leaf indexes whose bytes may differ from the base's DAG, in order: leaves
    /// with a written page, the leaf of a moved end, and all beyond the base.
    #[must_use]
    pub fn dirty_leaves(&self) -> BTreeSet<u64> {
        let leaf = self.options.leaf_size;
        let count = self.len.div_ceil(leaf);
        let mut dirty: BTreeSet<u64> = self.pages.range(..count).map(|(index, _)| *index).collect();
        // The last leaf that the base still has whole.
        let kept = self.base_size.min(self.original_size);
        if kept != self.original_size || self.len != self.original_size {
            dirty.extend(kept / leaf..count);
        }
        dirty
    }

    /// Whether a leaf was never written: all zeros, and no disk space.
    ///
    /// # Errors
    /// `Io`.
    pub fn leaf_is_hole(&self, index: u64) -> Result<bool, StoreError> {
        let start = index * self.options.leaf_size;
        let end = (start + self.options.leaf_size).min(self.len);
        if start < self.base_size || self.is_in_memory() {
            return Ok(false);
        }
        Ok(self.seek(start, false)?.is_none_or(|data| data >= end))
    }

    /// Bytes of one leaf (shorter at the end of the file), completed from the
    /// base; when this is a file, made complete in it too.
    ///
    /// # Errors
    /// `NoSpace`, `Io`; of `base`.
    pub fn complete_leaf(&mut self, index: u64, base: &dyn BaseReader) -> Result<(), StoreError> {
        let start = index * self.options.leaf_size;
        let end = (start + self.options.leaf_size).min(self.len);
        let mut page = start / PAGE;
        let mut buffer = Vec::new();
        while page * PAGE < end.min(self.base_size) {
            let mut stop = page;
            while stop * PAGE < end.min(self.base_size) && !self.is_set(stop) {
                stop += 1;
            }
            if stop > page {
                let (from, to) = (page * PAGE, (stop * PAGE).min(self.base_size).min(end));
                buffer.resize((to - from) as usize, 0);
                base.read_at(from, &mut buffer)?;
                let bytes = std::mem::take(&mut buffer);
                self.write_body(from, &bytes)?;
                buffer = bytes;
                self.set(page..stop);
            }
            page = stop + 1;
        }
        Ok(())
    }

    /// Reads a leaf that [`Staging::complete_leaf`] has completed.
    ///
    /// # Errors
    /// `Io`.
    pub fn read_leaf(&self, index: u64, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        let start = index * self.options.leaf_size;
        let end = (start + self.options.leaf_size).min(self.len);
        buffer.resize(end.saturating_sub(start) as usize, 0);
        self.read_body(start, buffer)
    }

    /// Moves it into its file.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn spill(&mut self) -> Result<(), StoreError> {
        let Body::Memory(bytes) = &self.body else { return Ok(()) };
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&self.path)
            .map_err(|e| self.error(e))?;
        let filled = file.write_all_at(bytes, 0).and_then(|()| file.set_len(self.len));
        filled.map_err(|e| self.error(e))?;
        self.body = Body::File(Arc::new(file));
        self.entered = false;
        Ok(())
    }

    /// Makes the bytes durable (spills first). A failure poisons: every later
    /// sync of this staging fails too.
    ///
    /// # Errors
    /// `Poisoned`, `NoSpace`, `Io`.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        if self.poisoned {
            return Err(StoreError::Poisoned);
        }
        self.spill()?;
        let Body::File(file) = &self.body else { return Ok(()) };
        if let Err(error) = file.sync_data() {
            self.poisoned = true;
            return Err(self.error(error));
        }
        if !self.entered {
            sync_dir(self.path.parent().unwrap_or(Path::new("/")))?;
            self.entered = true;
        }
        Ok(())
    }

    /// The written pages per leaf, to be persisted.
    #[must_use]
    pub fn pages(&self) -> Vec<(u64, Vec<u8>)> {
        self.pages.iter().map(|(leaf, bits)| (*leaf, bits.clone())).collect()
    }

    /// The staging file becomes a segment file.
    pub(super) fn become_segment(&mut self, to: &Path) -> Result<(), StoreError> {
        std::fs::rename(&self.path, to).map_err(|e| self.error(e))?;
        to.clone_into(&mut self.path);
        self.sealed = true;
        Ok(())
    }

    /// Removes the staging file, unless it has become a segment.
    ///
    /// # Errors
    /// `Io`.
    pub fn discard_unless_sealed(self) -> Result<(), StoreError> {
        if self.sealed { Ok(()) } else { self.discard() }
    }

    /// Removes the staging file.
    ///
    /// # Errors
    /// `Io`.
    pub fn discard(self) -> Result<(), StoreError> {
        match self.body {
            Body::Memory(_) => Ok(()),
            Body::File(_) => match std::fs::remove_file(&self.path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(StoreError::io(&self.path, e))
                }
                _ => Ok(()),
            },
        }
    }
}
