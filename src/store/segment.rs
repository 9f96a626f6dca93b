//! Open segment files, flat and pack alike.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;

use super::disk::{Disk, DiskFile, OpenHow};
use super::layout::Layout;
use super::{Location, StoreError};
use crate::types::{Cid, SegmentId};

struct OpenSegment {
    file: Arc<dyn DiskFile>,
    /// Bytes that are known to be there; a pack grows.
    len: AtomicU64,
}

/// A bounded set of open segment files.
pub(super) struct Files {
    disk: Arc<dyn Disk>,
    layout: Layout,
    open: Cache<SegmentId, Arc<OpenSegment>>,
}

impl Files {
    pub fn new(disk: Arc<dyn Disk>, layout: Layout, limit: usize) -> Self {
        Self { disk, layout, open: Cache::new(limit.max(8)) }
    }

    /// Whether the file is there and long enough: cheap, no byte is read.
    pub fn holds(&self, location: &Location) -> Result<bool, StoreError> {
        let Some(segment) = self.segment(location.segment)? else { return Ok(false) };
        let Some(end) = location.offset.checked_add(u64::from(location.len)) else {
            return Ok(false);
        };
        if end > segment.len.load(Ordering::Relaxed) {
            let path = self.layout.file(location.segment);
            let len = segment.file.stat().map_err(|e| StoreError::io(&path, e))?.len;
            segment.len.store(len, Ordering::Relaxed);
            return Ok(end <= len);
        }
        Ok(true)
    }

    /// Fills `buf` from byte `at` of the block at `location`.
    pub fn read(
        &self,
        cid: &Cid,
        location: &Location,
        at: u64,
        buf: &mut [u8],
    ) -> Result<(), StoreError> {
        let missing = || StoreError::SegmentMissing { cid: *cid, segment: location.segment };
        let segment = self.segment(location.segment)?.ok_or_else(missing)?;
        let got = segment.file.read_at(location.offset + at, buf);
        let got = got.map_err(|e| StoreError::io(&self.layout.file(location.segment), e))?;
        if got == buf.len() { Ok(()) } else { Err(missing()) }
    }

    /// For changing the file: opened anew, not cached.
    pub fn open_for_writing(&self, id: SegmentId) -> Result<Arc<dyn DiskFile>, StoreError> {
        let path = self.layout.file(id);
        self.disk.open(&path, OpenHow::ReadWrite).map_err(|e| StoreError::io(&path, e))
    }

    pub fn forget(&self, id: SegmentId) {
        self.open.remove(&id);
    }

    fn segment(&self, id: SegmentId) -> Result<Option<Arc<OpenSegment>>, StoreError> {
        if let Some(segment) = self.open.get(&id) {
            return Ok(Some(segment));
        }
        let path = self.layout.file(id);
        let file = match self.disk.open(&path, OpenHow::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StoreError::io(&path, e)),
        };
        let segment = Arc::new(OpenSegment { file, len: AtomicU64::new(0) });
        self.open.insert(id, segment.clone());
        Ok(Some(segment))
    }
}
