//! What `fsck` and `status` ask of the store.

use bytes::Bytes;

use super::disk::OpenHow;
use super::layout;
use super::{LocalStore, StoreError, StoreUsage, VerifyProblem};
use crate::types::{Cid, SegmentId};

/// Index entries checked between two reports of progress.
const PAGE_ROWS: usize = 1024;

impl LocalStore {
    /// Re-hashes every block; `report` gets problems, `progress` (blocks, bytes)
    /// now and then. `deep=false` checks presence and length only.
    ///
    /// # Errors
    /// `Index`: what is wrong with a block goes to `report` instead.
    pub fn verify(
        &self,
        deep: bool,
        report: &mut dyn FnMut(VerifyProblem),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        let (mut blocks, mut bytes) = (0, 0);
        let mut after = None;
        loop {
            let mut page = self.index.page(after.as_ref(), PAGE_ROWS)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(*last);
            // In the disk's order, not in that of the hashes.
            page.sort_by_key(|(_, place)| (place.segment, place.offset));
            for (cid, place) in page {
                let _gate = self.gate.read();
                let checked = match (deep, self.files.holds(&place)) {
                    (true, Ok(true)) => self.rehash(&cid, &place),
                    (false, Ok(true)) => Ok(()),
                    (_, Ok(false)) => {
                        Err(StoreError::SegmentMissing { cid, segment: place.segment })
                    }
                    (_, Err(error)) => Err(error),
                };
                // A block that was moved or dropped meanwhile is no problem.
                if let Err(error) = checked
                    && self.index.get(&cid)? == Some(place)
                {
                    report(VerifyProblem { cid, error });
                }
                blocks += 1;
                bytes += u64::from(place.len);
            }
            progress(blocks, bytes);
        }
    }

    /// As [`LocalStore::get`], read and hashed again whatever was verified before.
    ///
    /// # Errors
    /// As there.
    pub fn reread(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        let _gate = self.gate.read();
        let Some(location) = self.find(cid)? else { return Ok(None) };
        self.cache.forget(cid, Some(&location));
        self.load(cid, location).map(Some)
    }

    /// Space taken and left. The first call looks at every segment file, later
    /// ones only ask the filesystem below.
    ///
    /// # Errors
    /// `Io`.
    pub fn usage(&self) -> Result<StoreUsage, StoreError> {
        let root = self.layout.root();
        let space = self.disk.space(root).map_err(|e| StoreError::io(root, e))?;
        let known = *self.used.lock();
        let used_bytes = if let Some(used) = known {
            used
        } else {
            let mut used = 0;
            self.each_file(&mut |id| {
                used += self.allocated(id)?;
                Ok(())
            })?;
            *self.used.lock() = Some(used);
            used
        };
        Ok(StoreUsage {
            used_bytes,
            capacity_bytes: space.capacity,
            available_bytes: space.available.saturating_sub(super::local::RESERVE_BYTES),
        })
    }

    pub(super) fn allocated(&self, id: SegmentId) -> Result<u64, StoreError> {
        let path = self.layout.file(id);
        match self.disk.open(&path, OpenHow::Read).and_then(|file| file.stat()) {
            Ok(stat) => Ok(stat.allocated),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(StoreError::io(&path, e)),
        }
    }

    /// Visits every segment file, packs first.
    pub(super) fn each_file(
        &self,
        visit: &mut dyn FnMut(SegmentId) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let list = |dir: &std::path::Path| self.disk.list(dir).map_err(|e| StoreError::io(dir, e));
        let folders = list(&self.layout.segments())?;
        let flat = folders.iter().map(|shard| (self.layout.segments().join(shard), "seg"));
        for (folder, extension) in std::iter::once((self.layout.packs(), "car")).chain(flat) {
            for name in list(&folder)? {
                if let Some(id) = layout::parse_segment_name(&name, extension)
                    && self.layout.file(id) == folder.join(&name)
                {
                    visit(id)?;
                }
            }
        }
        Ok(())
    }
}
