//! Segment files: their names, and a bounded set of open ones.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;

use super::StoreError;
use crate::types::{Cid, SegmentId};

/// The lowest bit of an id tells a pack from a flat segment.
const PACK_BIT: u64 = 1;

/// Finds and opens segment files.
pub(super) struct Segments {
    dir: PathBuf,
    next: AtomicU64,
    open: Cache<SegmentId, Arc<File>>,
}

impl Segments {
    /// Counts on from the highest id in `dir`.
    pub fn scan(dir: &Path, open_files: usize) -> Result<(Self, Vec<SegmentId>, u64), StoreError> {
        let (mut ids, mut used) = (Vec::new(), 0);
        for folder in ["packs", "segments"] {
            let path = dir.join(folder);
            std::fs::create_dir_all(&path).map_err(|e| StoreError::io(&path, e))?;
            for entry in std::fs::read_dir(&path).map_err(|e| StoreError::io(&path, e))? {
                let entry = entry.map_err(|e| StoreError::io(&path, e))?;
                let name = entry.file_name();
                let stem =
                    name.to_str().and_then(|name| name.split_once('.')).map(|(stem, _)| stem);
                let Some(id) = stem.and_then(|stem| u64::from_str_radix(stem, 16).ok()) else {
                    continue;
                };
                ids.push(SegmentId(id));
                used += entry
                    .metadata()
                    .map_or(0, |m| std::os::unix::fs::MetadataExt::blocks(&m) * 512);
            }
        }
        let next = ids.iter().map(|id| id.0 | PACK_BIT).max().map_or(2, |highest| highest + 1);
        let segments =
            Self { dir: dir.to_owned(), next: AtomicU64::new(next), open: Cache::new(open_files) };
        Ok((segments, ids, used))
    }

    /// A new id of a pack or a flat segment.
    pub fn next_id(&self, pack: bool) -> SegmentId {
        SegmentId(self.next.fetch_add(2, Ordering::SeqCst) | u64::from(pack))
    }

    pub fn is_pack(id: SegmentId) -> bool {
        id.0 & PACK_BIT == PACK_BIT
    }

    pub fn path(&self, id: SegmentId) -> PathBuf {
        if Self::is_pack(id) {
            self.dir.join("packs").join(format!("{id}.car"))
        } else {
            self.dir.join("segments").join(format!("{id}.seg"))
        }
    }

    /// An open file of a segment, for reading.
    pub fn open(&self, id: SegmentId, for_block: &Cid) -> Result<Arc<File>, StoreError> {
        if let Some(file) = self.open.get(&id) {
            return Ok(file);
        }
        let path = self.path(id);
        match File::open(&path) {
            Ok(file) => {
                let file = Arc::new(file);
                self.open.insert(id, Arc::clone(&file));
                Ok(file)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(StoreError::SegmentMissing { cid: *for_block, segment: id })
            }
            Err(error) => Err(StoreError::io(&path, error)),
        }
    }

    pub fn forget(&self, id: SegmentId) {
        self.open.remove(&id);
    }
}

/// Makes a rename or a new file in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(|e| StoreError::io(dir, e))
}
