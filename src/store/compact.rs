//! Room in segments that hold little: live blocks move out of packs that are
//! mostly dead, and what no entry names is punched out of flat segments.
//!
//! A pack whose blocks have moved is removed by the next collection, once the
//! new places are durable. Bytes of a flat segment are named by no entry when
//! the same block was sealed again elsewhere.

use std::collections::{HashMap, HashSet};

use super::collect::{PAGE_ROWS, Tally, punch_pages};
use super::layout::{self, SegmentKind};
use super::{CollectReport, LocalStore, Location, StoreError};
use crate::runtime::failpoint;
use crate::types::{Block, Cid, SegmentId};

/// Entries looked at in one collection: bounds memory and time.
const ENTRIES_MAX: u64 = 64 * 1024;
/// Bytes moved in one collection.
const MOVED_MAX: u64 = 256 << 20;
/// Bytes that one sync makes durable.
const BATCH_BYTES: usize = 4 << 20;
/// Less garbage than this in one segment is let be.
pub(super) const WORTH: u64 = 1 << 20;

/// Makes room in the segments of `files`. A full disk ends it early: the next
/// collection goes on with what this one freed.
pub(super) fn compact(
    store: &LocalStore,
    files: &HashSet<SegmentId>,
    busy: &HashSet<SegmentId>,
    tallies: &HashMap<SegmentId, Tally>,
    live: &dyn Fn(&Cid) -> bool,
    report: &mut CollectReport,
) -> Result<(), StoreError> {
    let chosen = choose(store, files, busy, tallies)?;
    let mut places: Vec<(Cid, Location)> = Vec::new();
    let mut after = None;
    while !chosen.is_empty() {
        let page = store.index.page(after.as_ref(), PAGE_ROWS)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        places.extend(page.into_iter().filter(|(_, place)| chosen.contains(&place.segment)));
    }
    places.sort_by_key(|(_, place)| (place.segment, place.offset));
    // Who read a place before its entry moved has done with it.
    drop(store.gate.write());
    let mut packed = Vec::new();
    for segment in places.chunk_by(|(_, a), (_, b)| a.segment == b.segment) {
        let id = segment[0].1.segment;
        match layout::kind(id) {
            SegmentKind::Flat => report.bytes_freed += trim(store, id, segment)?,
            SegmentKind::Pack => packed.extend_from_slice(segment),
        }
    }
    match move_out(store, &packed, live) {
        Ok(bytes) => {
            report.bytes_moved += bytes;
            report.more |= bytes > 0;
        }
        Err(StoreError::NoSpace) => tracing::debug!("no room to move blocks out of packs"),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Segments with enough garbage, those with the most first.
fn choose(
    store: &LocalStore,
    files: &HashSet<SegmentId>,
    busy: &HashSet<SegmentId>,
    tallies: &HashMap<SegmentId, Tally>,
) -> Result<HashSet<SegmentId>, StoreError> {
    let mut found = Vec::new();
    for id in files.difference(busy) {
        let Some(tally) = tallies.get(id) else { continue };
        let allocated = store.allocated(*id)?;
        let garbage = allocated.saturating_sub(tally.bytes);
        let enough = match layout::kind(*id) {
            SegmentKind::Flat => garbage >= WORTH,
            // Moving costs as much as stays: only where more goes.
            SegmentKind::Pack => garbage >= WORTH && garbage > allocated / 2,
        };
        if enough {
            found.push((garbage, *id, *tally));
        }
    }
    found.sort_by_key(|(garbage, id, _)| (std::cmp::Reverse(*garbage), *id));
    let (mut entries, mut moved) = (0, 0);
    found.retain(|(_, id, tally)| {
        let bytes = if layout::kind(*id) == SegmentKind::Pack { tally.bytes } else { 0 };
        let fits = entries + tally.blocks <= ENTRIES_MAX && moved + bytes <= MOVED_MAX;
        if fits {
            entries += tally.blocks;
            moved += bytes;
        }
        fits
    });
    Ok(found.into_iter().map(|(_, id, _)| id).collect())
}

/// Punches what lies between the places. No entry ever comes to an old flat
/// segment, so what is unnamed now stays so.
fn trim(store: &LocalStore, id: SegmentId, places: &[(Cid, Location)]) -> Result<u64, StoreError> {
    let path = store.layout.file(id);
    let io = |e| StoreError::io(&path, e);
    let file = store.files.open_for_writing(id)?;
    let before = file.stat().map_err(io)?;
    let mut at = 0;
    for (_, place) in places {
        if place.offset > at {
            punch_pages(file.as_ref(), at, place.offset, before.len).map_err(io)?;
            failpoint::reach("store.compact.trimmed");
        }
        at = at.max(place.offset + u64::from(place.len));
    }
    if at < before.len {
        punch_pages(file.as_ref(), at, before.len, before.len).map_err(io)?;
    }
    let after = file.stat().map_err(io)?;
    Ok(before.allocated.saturating_sub(after.allocated))
}

/// Appends live blocks to the open pack. Those that died or moved meanwhile, or
/// that are damaged, stay where they are.
fn move_out(
    store: &LocalStore,
    places: &[(Cid, Location)],
    live: &dyn Fn(&Cid) -> bool,
) -> Result<u64, StoreError> {
    let mut moved = 0;
    let mut batch: Vec<Block> = Vec::new();
    let mut bytes = 0;
    for (at, (cid, place)) in places.iter().enumerate() {
        if live(cid) && store.index.get(cid)? == Some(*place) {
            let gate = store.gate.read();
            match store.load_from(cid, place) {
                Ok(data) => {
                    bytes += data.len();
                    batch.push(Block { cid: *cid, data });
                }
                Err(error) => tracing::warn!(%error, "a damaged block stays where it is"),
            }
            drop(gate);
        }
        if bytes >= BATCH_BYTES || at + 1 == places.len() {
            let ticket = {
                let recent = store.gate.read();
                let blocks: Vec<&Block> = batch.iter().collect();
                store.put(&recent, &blocks, true)?
            };
            store.sync(ticket)?;
            failpoint::reach("store.compact.moved");
            moved += bytes as u64;
            batch.clear();
            bytes = 0;
        }
    }
    Ok(moved)
}
