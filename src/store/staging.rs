use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StoreError;
use super::aside::Asides;
use super::disk::{Disk, DiskFile, OpenHow};
use super::file_pool::machine;
use super::layout::{self, SegmentKind};
use super::pages::{Generations, PAGE, PageMap};
use crate::types::{Cid, Ino, SegmentId};

/// What a block takes in a pack besides its bytes, and its share of the index.
const FRAME_BYTES: u64 = 512;

fn cost(
    base_size: u64,
    options: &StagingOptions,
    has: &dyn Fn(u64) -> bool,
    offset: u64,
    len: u64,
) -> u64 {
    let (leaf, end) = (options.leaf_size, offset.saturating_add(len).min(base_size));
    let below = offset / leaf..end.div_ceil(leaf);
    let whole = below.filter(|index| !has(*index)).count() as u64;
    len.saturating_add(whole.saturating_mul(leaf))
}

/// Reads the sealed content below staged bytes. Bytes past its end read as 0.
pub trait BaseReader {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// When the bytes cannot be had from any copy.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError>;

    /// The next data (or hole) at or after `offset`, as far as it is known;
    /// `None` when there is none.
    ///
    /// # Errors
    /// When the content's nodes cannot be had.
    fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>, StoreError> {
        Ok((!hole).then_some(offset))
    }
}

/// The leaves that a commit has to make anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StagedLeaves {
    /// Leaves to hash, by index, in order.
    pub data: Vec<u64>,
    /// Full leaves that were never written or were punched out: zeros.
    pub zeros: Vec<Range<u64>>,
}

/// How staging behaves.
#[derive(Debug, Clone, Copy)]
pub struct StagingOptions {
    /// Files up to this size stay in memory until sealed or synced (default 128 KiB).
    pub memory_limit: u64,
    /// Leaf size of the profile, in bytes.
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

/// Where the changed bytes live.
pub(super) enum Body {
    /// Nowhere: nothing was written, every byte is the base's or zero.
    Nothing,
    /// Here, whole: a small base was read into it.
    Memory(Vec<u8>),
    /// In a sparse file that is as long as the staged file.
    File {
        /// Its name.
        path: PathBuf,
        /// Open for reading and writing.
        file: Arc<dyn DiskFile>,
    },
}

/// The bytes of a file that is being changed: in memory while small, then a
/// sparse file; over a base, with a bitmap of valid 4 KiB pages.
///
/// Invariants: a page that begins below `base_size` and is not valid reads from
/// the base up to `base_size` and as zero after it; every other byte is the
/// body's own. `base_size <= len`, and it never grows.
///
/// A base flat segment could be reflinked (FICLONE) instead of overlaid where
/// the disk can: `create_file` is the place. The overlay is what every disk can.
#[expect(clippy::struct_excessive_bools, reason = "each is a state of its own")]
pub struct Staging {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    /// Where it is noted that this file was set aside.
    pub(super) asides: Arc<Asides>,
    pub(super) ino: Ino,
    /// The id this file has as a segment, given when it is begun.
    pub(super) id: SegmentId,
    pub(super) options: StagingOptions,
    pub(super) len: u64,
    pub(super) base_size: u64,
    /// Size of the whole content below, as its DAG has it.
    pub(super) original_size: u64,
    pub(super) body: Body,
    pub(super) valid: PageMap,
    pub(super) generations: Generations,
    /// The file's bytes are on stable storage.
    pub(super) synced: bool,
    /// The file's name is too.
    pub(super) named: bool,
    /// A sync failed.
    pub(super) poisoned: bool,
    /// A sync was acknowledged: a record may name this file for as long as the
    /// metadata that replaces it is not persisted.
    pub(super) recorded: bool,
    /// The file is a segment now: it is not written again.
    pub(super) sealed: bool,
}

impl Staging {
    /// The longest file that can be staged, in bytes: 16 TiB, what ext4 allows
    /// with 4 KiB blocks. The disk below may
    /// allow less.
    pub const MAX_LEN: u64 = 1 << 44;

    /// For a file with nothing below it.
    #[must_use]
    pub fn empty(dir: &Path, ino: Ino, options: StagingOptions) -> Self {
        Self::over(dir, ino, 0, options)
    }

    /// Over a base of `base_size` bytes: nothing is valid here yet.
    #[must_use]
    pub fn over(dir: &Path, ino: Ino, base_size: u64, options: StagingOptions) -> Self {
        Self::on(machine(), dir, ino, base_size, options)
    }

    pub(super) fn on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        ino: Ino,
        base_size: u64,
        options: StagingOptions,
    ) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
            asides: Arc::default(),
            ino,
            id: layout::new_id(SegmentKind::Flat),
            options,
            len: base_size,
            base_size,
            original_size: base_size,
            body: Body::Nothing,
            valid: PageMap::new(options.leaf_size),
            generations: Generations::default(),
            synced: false,
            named: false,
            poisoned: false,
            recorded: false,
            sealed: false,
        }
    }

    /// The id that its file has, also as a segment.
    #[must_use]
    pub fn id(&self) -> SegmentId {
        self.id
    }

    /// Bytes of the file now.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Of the base, what is still visible.
    #[must_use]
    pub fn base_size(&self) -> u64 {
        self.base_size
    }

    /// Size of the whole content below, as it was when staging began.
    #[must_use]
    pub fn original_size(&self) -> u64 {
        self.original_size
    }

    /// Whether it still lives in memory only.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        !matches!(self.body, Body::File { .. })
    }

    /// Bytes of memory it holds (budget).
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let body = if let Body::Memory(bytes) = &self.body { bytes.capacity() as u64 } else { 0 };
        body + self.valid.memory_bytes()
    }

    /// Bytes that a commit writes to the disk and that have no place there yet.
    #[must_use]
    pub fn owed_bytes(&self) -> u64 {
        match &self.body {
            Body::Nothing => 0,
            Body::Memory(bytes) => bytes.len() as u64 + FRAME_BYTES,
            Body::File { .. } => self.valid.missing_bytes(),
        }
    }

    /// Bytes that a write may cost on the disk, now and at the commit: a leaf of
    /// the base that is changed for the first time is written whole.
    #[must_use]
    pub fn cost_of(&self, offset: u64, len: u64) -> u64 {
        match &self.body {
            Body::Nothing => Self::first_cost(self.len, &self.options, offset, len),
            Body::Memory(_) => len,
            Body::File { .. } => {
                cost(self.base_size, &self.options, &|leaf| self.valid.has(leaf), offset, len)
            }
        }
    }

    /// The same for the first write to a file of `size` bytes.
    #[must_use]
    pub fn first_cost(size: u64, options: &StagingOptions, offset: u64, len: u64) -> u64 {
        if offset.saturating_add(len).max(size) <= options.memory_limit {
            // All of it goes to a pack again.
            return size + len + FRAME_BYTES;
        }
        cost(size, options, &|_| false, offset, len)
    }

    /// Changes whenever the bytes of this leaf may have: a hash made beside the
    /// writer is good while the generation it began with lasts.
    #[must_use]
    pub fn generation(&self, leaf: u64) -> u64 {
        self.generations.of(leaf)
    }

    /// Reads up to the end of the file; the bytes read. Changes nothing.
    ///
    /// # Errors
    /// Of the base and of the staging file.
    pub fn read_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        base: &dyn BaseReader,
    ) -> Result<usize, StoreError> {
        let count = self.len.saturating_sub(offset).min(buf.len() as u64);
        let buf = &mut buf[..count as usize];
        match &self.body {
            Body::Nothing => self.read_base(offset, buf, base)?,
            Body::Memory(bytes) => {
                let start = offset.min(self.len) as usize;
                buf.copy_from_slice(&bytes[start..start + buf.len()]);
            }
            Body::File { path, file } => {
                let end = offset + count;
                let mut at = offset;
                while at < end {
                    let (own, stop) = self.run(at, end);
                    let part = &mut buf[(at - offset) as usize..(stop - offset) as usize];
                    if own {
                        read_exact(path, file.as_ref(), at, part)?;
                    } else {
                        self.read_base(at, part, base)?;
                    }
                    at = stop;
                }
            }
        }
        Ok(count as usize)
    }

    /// Writes `data` at `offset`; extends the file where needed.
    ///
    /// # Errors
    /// `NoSpace`, `TooLarge`, `Io`; of the base, whose pages are completed at
    /// the edges. After an error part of the range may be written, and the
    /// length is as it was.
    pub fn write_at(
        &mut self,
        offset: u64,
        data: &[u8],
        base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        if data.is_empty() {
            return Ok(());
        }
        let end = Self::end_of(offset, data.len() as u64)?;
        self.touch(offset.min(self.len), end);
        self.materialize(end, base)?;
        if let Body::Memory(bytes) = &mut self.body {
            if bytes.len() < end as usize {
                bytes.resize(end as usize, 0);
            }
            bytes[offset as usize..end as usize].copy_from_slice(data);
        } else {
            self.complete_edges(offset..end, base)?;
            self.write_file(offset, data)?;
        }
        self.mark_valid(offset..end);
        self.len = self.len.max(end);
        Ok(())
    }

    /// Cuts or extends (with zeros) to `len`.
    ///
    /// # Errors
    /// `NoSpace`, `TooLarge`, `Io`.
    pub fn set_len(&mut self, len: u64, _base: &dyn BaseReader) -> Result<(), StoreError> {
        self.resize(len)
    }

    pub(super) fn resize(&mut self, len: u64) -> Result<(), StoreError> {
        Self::end_of(len, 0)?;
        if len == self.len {
            return Ok(());
        }
        if len == 0 && self.recorded {
            self.begin_anew()?;
        }
        self.thaw()?;
        // Into a file at once: the disk says here, not at the commit, when it
        // has no files of that length.
        if len > self.len && len > self.options.memory_limit {
            self.spill()?;
        }
        self.generations.touch_from(self.len.min(len) / self.options.leaf_size);
        match &mut self.body {
            Body::Nothing => {}
            Body::Memory(bytes) => bytes.resize(len as usize, 0),
            Body::File { path, file } => {
                self.synced = false;
                file.set_len(len).map_err(|e| StoreError::io(path, e))?;
            }
        }
        if len < self.base_size {
            self.base_size = len;
            self.valid.clear_from(len.div_ceil(PAGE));
        }
        self.len = len;
        Ok(())
    }

    /// Zeroes a range; extends the file unless `keep_size`. Frees disk space
    /// where it can.
    ///
    /// # Errors
    /// As [`Staging::write_at`].
    pub fn zero_range(
        &mut self,
        range: Range<u64>,
        keep_size: bool,
        base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        let end = Self::end_of(range.start, range.end.saturating_sub(range.start))?;
        if end > self.len && !keep_size {
            self.resize(end)?;
        }
        let range = range.start..end.min(self.len);
        let nothing_below = matches!(self.body, Body::Nothing) && range.start >= self.base_size;
        if range.is_empty() || nothing_below {
            return Ok(());
        }
        self.touch(range.start, range.end);
        self.materialize(self.len, base)?;
        if let Body::Memory(bytes) = &mut self.body {
            bytes[range.start as usize..range.end as usize].fill(0);
        } else {
            self.complete_edges(range.clone(), base)?;
            self.synced = false;
            if let Body::File { path, file } = &self.body {
                file.punch(range.start, range.end - range.start)
                    .map_err(|e| StoreError::io(path, e))?;
            }
        }
        self.mark_valid(range);
        Ok(())
    }

    /// Reserves disk space for a range; extends the file unless `keep_size`.
    /// Afterwards it is a file, whatever its size.
    ///
    /// # Errors
    /// `NoSpace`, `TooLarge`, `Io`.
    pub fn allocate(
        &mut self,
        range: Range<u64>,
        keep_size: bool,
        _base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        let end = Self::end_of(range.start, range.end.saturating_sub(range.start))?;
        if range.is_empty() {
            return Ok(());
        }
        self.thaw()?;
        self.spill()?;
        if let Body::File { path, file } = &self.body {
            self.synced = false;
            match file.reserve(range.start, end - range.start) {
                // No reservation on this filesystem: the length is all we can give.
                Err(e) if e.kind() == std::io::ErrorKind::Unsupported => {}
                other => other.map_err(|e| StoreError::io(path, e))?,
            }
        }
        if end > self.len && !keep_size { self.resize(end) } else { Ok(()) }
    }

    /// Next data or hole at or after `offset`. `None` past the end, or when there
    /// is no more data.
    ///
    /// # Errors
    /// `Io`; of the base.
    pub fn seek(
        &self,
        offset: u64,
        hole: bool,
        base: &dyn BaseReader,
    ) -> Result<Option<u64>, StoreError> {
        let mut at = offset;
        while at < self.len {
            let (own, stop) = self.run(at, self.len);
            let found = if own {
                self.seek_own(at, hole)?.filter(|found| *found < stop)
            } else if at < self.base_size {
                // Of the last page, what lies behind the base is zeros.
                let end = stop.min(self.base_size);
                let found = base.seek(at, hole)?.filter(|found| *found < end);
                found.or((hole && end < stop).then_some(end))
            } else {
                hole.then_some(at)
            };
            if found.is_some() {
                return Ok(found);
            }
            at = stop;
        }
        Ok((hole && offset < self.len).then_some(self.len))
    }

    /// In bytes that are not the base's.
    fn seek_own(&self, at: u64, hole: bool) -> Result<Option<u64>, StoreError> {
        match &self.body {
            Body::File { path, file } => file.seek(at, hole).map_err(|e| StoreError::io(path, e)),
            // A file that was never written: zeros after the base are a hole.
            Body::Nothing => Ok(hole.then_some(at)),
            Body::Memory(_) => Ok((!hole).then_some(at)),
        }
    }

    /// About how many bytes are no holes; the base has `base_holes` bytes of them.
    /// Opens no file.
    ///
    /// # Errors
    /// `Io`.
    pub fn data_bytes(&self, base_holes: u64) -> Result<u64, StoreError> {
        let below = self.base_size.saturating_sub(base_holes);
        let own = match &self.body {
            Body::Nothing => 0,
            Body::Memory(_) => self.len,
            Body::File { path, file } => {
                file.stat().map_err(|e| StoreError::io(path, e))?.allocated
            }
        };
        Ok(below.saturating_add(own).min(self.len))
    }

    /// Runs of leaves that differ from the base's DAG, in order and apart:
    /// written leaves, leaves beyond the old end, and the old or new last leaf
    /// when its length changed.
    #[must_use]
    pub fn dirty_runs(&self) -> Vec<Range<u64>> {
        let size = self.options.leaf_size;
        let count = self.len.div_ceil(size);
        // From here on bytes came or went: below it only written leaves differ.
        let changed_from = if self.base_size < self.original_size {
            self.base_size
        } else if self.len > self.original_size {
            self.original_size
        } else {
            self.len
        };
        // A leaf that ends right at the cut is as it was.
        let tail = if self.len == changed_from && changed_from == self.original_size {
            count
        } else {
            (changed_from / size).min(count)
        };
        let mut runs = self.valid.leaf_runs(tail);
        match runs.last_mut() {
            Some(last) if last.end == tail => last.end = count,
            _ if tail < count => runs.push(tail..count),
            _ => {}
        }
        runs
    }

    /// What a commit has to make anew; with `all` every leaf of the file.
    ///
    /// # Errors
    /// `Io`.
    pub fn leaves_to_commit(&self, all: bool) -> Result<StagedLeaves, StoreError> {
        let size = self.options.leaf_size;
        let mut found = StagedLeaves::default();
        let whole = std::iter::once(0..self.len.div_ceil(size));
        let runs = if all { whole.collect() } else { self.dirty_runs() };
        for run in runs {
            let mut leaf = run.start;
            while leaf < run.end {
                let data = self.next_data(leaf * size, (run.end * size).min(self.len))?;
                let next = data.map_or(run.end, |at| at / size);
                // A last leaf that is not full is no full leaf of zeros.
                let full = next.min(self.len / size).max(leaf);
                match found.zeros.last_mut() {
                    _ if full == leaf => {}
                    Some(last) if last.end == leaf => last.end = full,
                    _ => found.zeros.push(leaf..full),
                }
                if full < run.end {
                    found.data.push(full);
                }
                leaf = full + 1;
            }
        }
        Ok(found)
    }

    /// Where something may be that is no hole; what is the base's counts.
    fn next_data(&self, from: u64, end: u64) -> Result<Option<u64>, StoreError> {
        let mut at = from;
        while at < end {
            let (own, stop) = self.run(at, end);
            if !own {
                return Ok(Some(at));
            }
            if let Some(found) = self.seek_own(at, false)?.filter(|found| *found < stop) {
                return Ok(Some(found));
            }
            at = stop;
        }
        Ok(None)
    }

    /// Brings what one leaf still has of the base into this staging, so that
    /// it can be read without the base and sealed.
    ///
    /// # Errors
    /// Of the base and of the staging file.
    pub fn complete_leaf(&mut self, leaf: u64, base: &dyn BaseReader) -> Result<(), StoreError> {
        let Some(range) = self.leaf_range(leaf) else { return Ok(()) };
        let mut at = range.start;
        while at < range.end {
            let (own, stop) = self.run(at, range.end);
            if !own && matches!(self.body, Body::Nothing) {
                self.materialize(self.len, base)?;
                continue;
            }
            if !own {
                self.thaw()?;
                let mut bytes = vec![0; (stop - at) as usize];
                self.read_base(at, &mut bytes, base)?;
                self.write_file(at, &bytes)?;
                self.mark_valid(at..stop);
            }
            at = stop;
        }
        Ok(())
    }

    /// Bytes of one leaf (shorter at the end of the file) that
    /// [`Staging::complete_leaf`] has completed.
    ///
    /// # Errors
    /// `Io`, also when the leaf still has bytes of the base.
    pub fn read_leaf(&self, leaf: u64, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        let range = self.leaf_range(leaf).unwrap_or(0..0);
        buffer.resize((range.end - range.start) as usize, 0);
        self.read_at(range.start, buffer, &NoBase).map(drop)
    }

    fn leaf_range(&self, leaf: u64) -> Option<Range<u64>> {
        let start = leaf.checked_mul(self.options.leaf_size).filter(|start| *start < self.len)?;
        Some(start..(start + self.options.leaf_size).min(self.len))
    }

    /// A handle that reads one leaf beside the writer, without this staging's
    /// lock; `None` while the leaf is in memory or partly the base's. What it
    /// reads is the leaf only if [`Staging::generation`] is still the same.
    #[must_use]
    pub fn leaf_reader(&self, leaf: u64) -> Option<LeafReader> {
        let Body::File { path, file } = &self.body else { return None };
        let Range { start, end } = self.leaf_range(leaf)?;
        let whole = self.run(start, end) == (true, end);
        whole.then(|| LeafReader {
            path: path.clone(),
            file: file.clone(),
            offset: start,
            len: (end - start) as usize,
            generation: self.generation(leaf),
        })
    }

    /// Whether the bytes at `at` are the body's own, and where (at most `end`)
    /// that changes. `at < end <= len`.
    fn run(&self, at: u64, end: u64) -> (bool, u64) {
        match &self.body {
            Body::Nothing if at < self.base_size => (false, self.base_size.min(end)),
            Body::Nothing | Body::Memory(_) => (true, end),
            Body::File { .. } => {
                let pages = self.base_size.div_ceil(PAGE);
                let page = at / PAGE;
                if page >= pages {
                    return (true, end);
                }
                let (own, stop) = self.valid.run(page, pages);
                // What follows the base's last page is the file's own, too.
                let stop = if own && stop == pages { end } else { stop * PAGE };
                (own, stop.min(end))
            }
        }
    }

    pub(super) fn read_base(
        &self,
        offset: u64,
        buf: &mut [u8],
        base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        let visible = self.base_size.saturating_sub(offset).min(buf.len() as u64) as usize;
        if visible > 0 {
            base.read_at(offset, &mut buf[..visible])?;
        }
        buf[visible..].fill(0);
        Ok(())
    }

    /// Fills the parts of the edge pages that `written` leaves to the base, so
    /// that these pages can be marked valid.
    fn complete_edges(
        &mut self,
        written: Range<u64>,
        base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        let first = written.start / PAGE;
        let last = (written.end - 1) / PAGE;
        self.complete_edge(first, &written, base)?;
        if last == first { Ok(()) } else { self.complete_edge(last, &written, base) }
    }

    fn complete_edge(
        &mut self,
        page: u64,
        written: &Range<u64>,
        base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        let start = page * PAGE;
        let end = (start + PAGE).min(self.base_size);
        if start >= end || self.valid.is_set(page) {
            return Ok(());
        }
        let before = start..written.start.clamp(start, end);
        let after = written.end.clamp(start, end)..end;
        for part in [before, after] {
            if !part.is_empty() {
                let mut bytes = vec![0; (part.end - part.start) as usize];
                self.read_base(part.start, &mut bytes, base)?;
                self.write_file(part.start, &bytes)?;
            }
        }
        Ok(())
    }

    fn mark_valid(&mut self, range: Range<u64>) {
        let pages = self.base_size.div_ceil(PAGE);
        self.valid.set(range.start / PAGE, range.end.div_ceil(PAGE).min(pages));
    }

    fn touch(&mut self, start: u64, end: u64) {
        let size = self.options.leaf_size;
        self.generations.touch(start.min(end - 1) / size, (end - 1) / size);
    }

    fn end_of(offset: u64, len: u64) -> Result<u64, StoreError> {
        offset.checked_add(len).filter(|end| *end <= Self::MAX_LEN).ok_or(StoreError::TooLarge)
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging")
            .field("ino", &self.ino)
            .field("id", &self.id)
            .field("len", &self.len)
            .field("base_size", &self.base_size)
            .field("in_memory", &self.is_in_memory())
            .finish_non_exhaustive()
    }
}

/// For reads that must not need a base.
struct NoBase;

impl BaseReader for NoBase {
    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StoreError> {
        Err(StoreError::invalid(Path::new("staging"), "a leaf is read before it is complete"))
    }
}

/// Reads one leaf of a staging file beside its writer.
#[derive(Debug, Clone)]
pub struct LeafReader {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    offset: u64,
    len: usize,
    generation: u64,
}

impl LeafReader {
    /// The leaf's generation when this was made.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The leaf's bytes, torn if a writer is at work in it.
    ///
    /// # Errors
    /// `Io`, also when the file was cut meanwhile.
    pub fn read(&self) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; self.len];
        read_exact(&self.path, self.file.as_ref(), self.offset, &mut bytes)?;
        Ok(bytes)
    }
}

pub(super) fn read_exact(
    path: &Path,
    file: &dyn DiskFile,
    offset: u64,
    buf: &mut [u8],
) -> Result<(), StoreError> {
    let got = file.read_at(offset, buf).map_err(|e| StoreError::io(path, e))?;
    if got == buf.len() {
        Ok(())
    } else {
        Err(StoreError::invalid(path, format!("ends at {}, inside its bytes", offset + got as u64)))
    }
}

/// Opens for reading and writing, as a new file.
pub(super) fn create(disk: &dyn Disk, path: &Path) -> Result<Arc<dyn DiskFile>, StoreError> {
    disk.open(path, OpenHow::CreateNew).map_err(|e| StoreError::io(path, e))
}
