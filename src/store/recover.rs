//! What opening a store after a crash repairs.

use std::collections::HashSet;

use super::disk::{Disk, OpenHow};
use super::layout::{self, Layout, SegmentKind};
use super::pack::{PREFIX_LEN, PackWriter};
use super::{BlockIndex, StoreError};
use crate::runtime::failpoint;
use crate::types::SegmentId;

/// Makes the folders, cuts what no index entry can refer to, and goes on in
/// the newest pack that has room.
///
/// A pack without a mark was never indexed. It is not deleted here unless it
/// has no block: an index that was lost must not take the blocks with it. A
/// collection removes it.
pub(super) fn recover(
    disk: &dyn Disk,
    layout: &Layout,
    index: &dyn BlockIndex,
    packs: &PackWriter,
) -> Result<(), StoreError> {
    for dir in [layout.packs(), layout.segments(), layout.staging()] {
        disk.make_dir(&dir).map_err(|e| StoreError::io(&dir, e))?;
    }
    disk.sync_dir(layout.root()).map_err(|e| StoreError::io(layout.root(), e))?;

    let folder = layout.packs();
    let names = disk.list(&folder).map_err(|e| StoreError::io(&folder, e))?;
    let mut found: HashSet<_> =
        names.iter().filter_map(|name| layout::parse_segment_name(name, "car")).collect();
    found.retain(|id| layout::kind(*id) == SegmentKind::Pack);
    let mut marks = index.marks()?;
    marks.sort_by_key(|mark| mark.segment);
    for mark in &marks {
        layout::note_id(mark.segment);
    }
    for id in &found {
        layout::note_id(*id);
    }

    let newest = marks.iter().rev().find(|mark| found.contains(&mark.segment)).map(|m| m.segment);
    for mark in marks.iter().filter(|mark| mark.len > 0) {
        if !found.remove(&mark.segment) {
            tracing::error!(pack = %mark.segment, "a pack is missing; its blocks need other copies");
            continue;
        }
        let path = layout.file(mark.segment);
        let io = |e| StoreError::io(&path, e);
        let file = disk.open(&path, OpenHow::ReadWrite).map_err(io)?;
        let len = file.stat().map_err(io)?.len;
        if len > mark.len {
            tracing::info!(pack = %mark.segment, from = len, to = mark.len, "unindexed tail is cut");
            file.set_len(mark.len).map_err(io)?;
            failpoint::reach("store.recover.cut");
        } else if len < mark.len {
            tracing::error!(pack = %mark.segment, len, indexed = mark.len, "a pack was cut short");
            continue;
        }
        if newest == Some(mark.segment) {
            packs.resume(mark.segment, file, mark.len);
        }
    }
    for id in found {
        let path = layout.file(id);
        let io = |e| StoreError::io(&path, e);
        if disk.open(&path, OpenHow::Read).map_err(io)?.stat().map_err(io)?.len <= PREFIX_LEN {
            disk.remove(&path).map_err(io)?;
        } else {
            tracing::warn!(pack = %id, "no block of this pack is indexed");
        }
    }
    Ok(())
}

/// Removes staging files that are not in `keep`.
pub(super) fn discard_staging(
    disk: &dyn Disk,
    layout: &Layout,
    keep: &[SegmentId],
) -> Result<u64, StoreError> {
    let keep: HashSet<SegmentId> = keep.iter().copied().collect();
    let folder = layout.staging();
    let mut removed = 0;
    for name in disk.list(&folder).map_err(|e| StoreError::io(&folder, e))? {
        let Some((_, id)) = layout::parse_staging_name(&name) else { continue };
        if !keep.contains(&id) {
            let path = folder.join(name);
            disk.remove(&path).map_err(|e| StoreError::io(&path, e))?;
            failpoint::reach("store.recover.discarded");
            removed += 1;
        }
    }
    Ok(removed)
}
