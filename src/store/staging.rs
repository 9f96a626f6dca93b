use std::ops::Range;
use std::path::Path;

use super::StoreError;
use crate::types::{Cid, Ino};

/// Reads the sealed content below staged bytes. Bytes past its end read as 0.
pub trait BaseReader {
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// When the bytes cannot be had from any copy.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError>;
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

/// The bytes of a file that is being changed: in memory while small and new,
/// then a sparse file; over a base, with a bitmap of valid 4 KiB pages.
pub struct Staging {}

#[expect(missing_docs, clippy::missing_errors_doc, reason = "documented by its owner")]
impl Staging {
    /// For a file with nothing below it.
    pub fn empty(dir: &Path, ino: Ino, options: StagingOptions) -> Self {
        let _ = (dir, ino, options);
        todo!()
    }
    /// Over a base of `base_size` bytes: nothing is valid here yet.
    pub fn over(dir: &Path, ino: Ino, base_size: u64, options: StagingOptions) -> Self {
        let _ = (dir, ino, base_size, options);
        todo!()
    }
    /// Takes up a staging file that a crash left, with its persisted pages.
    pub fn adopt(
        dir: &Path,
        ino: Ino,
        size: u64,
        base_size: u64,
        pages: &[(u64, Vec<u8>)],
        options: StagingOptions,
    ) -> Result<Self, StoreError> {
        let _ = (dir, ino, size, base_size, pages, options);
        todo!()
    }
    pub fn len(&self) -> u64 {
        todo!()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Of the base, what is still visible.
    pub fn base_size(&self) -> u64 {
        todo!()
    }
    pub fn write_at(
        &mut self,
        _offset: u64,
        _data: &[u8],
        _base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        todo!()
    }
    pub fn read_at(
        &self,
        _offset: u64,
        _buf: &mut [u8],
        _base: &dyn BaseReader,
    ) -> Result<usize, StoreError> {
        todo!()
    }
    pub fn set_len(&mut self, _len: u64, _base: &dyn BaseReader) -> Result<(), StoreError> {
        todo!()
    }
    /// Zeroes a range; extends the file unless `keep_size`.
    pub fn zero_range(
        &mut self,
        _range: Range<u64>,
        _keep_size: bool,
        _base: &dyn BaseReader,
    ) -> Result<(), StoreError> {
        todo!()
    }
    /// Reserves disk space for a range; extends the file unless `keep_size`.
    pub fn allocate(&mut self, _range: Range<u64>, _keep_size: bool) -> Result<(), StoreError> {
        todo!()
    }
    /// Next data or hole at or after `offset`; base bytes count as data. `None` past the end.
    pub fn seek(&self, _offset: u64, _hole: bool) -> Result<Option<u64>, StoreError> {
        todo!()
    }
    /// Leaf indexes that differ from the base, in order.
    pub fn dirty_leaves(&self) -> Vec<u64> {
        todo!()
    }
    /// Bytes of one leaf (shorter at the end of the file), completed from the base and, when this is a file, made complete in it too.
    pub fn complete_leaf(
        &mut self,
        _leaf: u64,
        _base: &dyn BaseReader,
    ) -> Result<Vec<u8>, StoreError> {
        todo!()
    }
    /// Whether it still lives in memory only.
    pub fn is_in_memory(&self) -> bool {
        todo!()
    }
    /// Bytes of memory it holds (budget).
    pub fn memory_bytes(&self) -> u64 {
        todo!()
    }
    /// Moves it into its file.
    pub fn spill(&mut self) -> Result<(), StoreError> {
        todo!()
    }
    /// fdatasync of the file (spills first). A failure poisons: every later sync fails too.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        todo!()
    }
    /// The valid pages per leaf, to be persisted (`StagedRecord::pages`).
    pub fn pages(&self) -> Vec<(u64, Vec<u8>)> {
        todo!()
    }
    /// Removes the staging file.
    pub fn discard(self) -> Result<(), StoreError> {
        todo!()
    }
}
