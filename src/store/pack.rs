//! The open pack: small blocks, framed as CAR (`CARv1` specification), made
//! durable in groups.
//!
//! The header has a fixed size, so that a pack can be begun before its content
//! is known: one root, the CID of the empty raw block, which is also the first
//! section. Readers that refuse a CAR without roots, or whose root is missing,
//! accept it.
//!
//! Lock order: `state` is the only lock here and is never held over a sync or
//! over the index. One caller at a time is the leader of a group; the others
//! wait for it.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use super::disk::{Disk, DiskFile, OpenHow};
use super::layout::{self, Layout, SegmentKind};
use super::{BlockIndex, IndexChange, Location, StoreError};
use crate::runtime::failpoint;
use crate::telemetry;
use crate::types::{Block, Cid, SegmentId, cid};

/// Space is reserved in steps of this many bytes: a sync into reserved space
/// need not allocate (measured: 115 instead of 158 microseconds).
const RESERVE_STEP: u64 = 8 << 20;
/// With this much waiting, an append syncs by itself: bounds `pending`.
const PENDING_MAX: usize = 64 * 1024;

/// Bytes before the first block of every pack: header (59), empty block (37).
pub(super) const PREFIX_LEN: u64 = 96;

/// The header and the first section.
pub(super) fn prefix() -> Vec<u8> {
    let root = cid::of_raw(b"").to_bytes();
    // DAG-CBOR {"roots": [42(h'00' root)], "version": 1}, keys by length.
    let mut header = vec![0xa2, 0x65];
    header.extend(b"roots");
    header.extend([0x81, 0xd8, 0x2a, 0x58, 0x25, 0x00]);
    header.extend(&root);
    header.push(0x67);
    header.extend(b"version");
    header.push(0x01);
    let mut out = Vec::with_capacity(PREFIX_LEN as usize);
    frame(&mut out, &[], &header);
    frame(&mut out, &root, &[]);
    out
}

/// One length-prefixed part; returns where `data` begins in `out`.
fn frame(out: &mut Vec<u8>, cid: &[u8], data: &[u8]) -> usize {
    let mut varint = unsigned_varint::encode::u64_buffer();
    let total = (cid.len() + data.len()) as u64;
    out.extend(unsigned_varint::encode::u64(total, &mut varint));
    out.extend(cid);
    let at = out.len();
    out.extend(data);
    at
}

struct OpenPack {
    id: SegmentId,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    len: u64,
    reserved: u64,
    /// Its name is on stable storage.
    named: bool,
}

#[derive(Default)]
struct State {
    open: Option<OpenPack>,
    /// Full packs that the next group syncs and seals.
    full: Vec<OpenPack>,
    /// Bytes appended in this life, and how many of them are durable.
    appended: u64,
    synced: u64,
    /// Appended and not in the index yet.
    pending: HashMap<Cid, Location>,
    /// The same in order; what the next group indexes.
    order: Vec<IndexChange>,
    /// A leader is at work.
    committing: bool,
    /// Packs that the leader has taken from `full`.
    sealing: Vec<SegmentId>,
}

pub(super) struct PackWriter {
    disk: Arc<dyn Disk>,
    layout: Layout,
    index: Arc<dyn BlockIndex>,
    pack_bytes: u64,
    poisoned: Arc<AtomicBool>,
    state: Mutex<State>,
    turn: Condvar,
}

impl PackWriter {
    pub fn new(
        disk: Arc<dyn Disk>,
        layout: Layout,
        index: Arc<dyn BlockIndex>,
        pack_bytes: u64,
        poisoned: Arc<AtomicBool>,
    ) -> Self {
        let pack_bytes = pack_bytes.max(PREFIX_LEN + 1);
        let state = Mutex::default();
        Self { disk, layout, index, pack_bytes, poisoned, state, turn: Condvar::new() }
    }

    /// Goes on in a pack that an earlier life began, cut to what is indexed.
    pub fn resume(&self, id: SegmentId, file: Arc<dyn DiskFile>, len: u64) {
        if len < self.pack_bytes {
            let path = self.layout.file(id);
            let pack = OpenPack { id, path, file, len, reserved: len, named: true };
            self.state.lock().open = Some(pack);
        }
    }

    pub fn pending(&self, cid: &Cid) -> Option<Location> {
        self.state.lock().pending.get(cid).copied()
    }

    /// Packs that may still be written.
    pub fn active(&self) -> HashSet<SegmentId> {
        let state = self.state.lock();
        let packs = state.open.iter().chain(&state.full).map(|pack| pack.id);
        packs.chain(state.sealing.iter().copied()).collect()
    }

    /// No more blocks go into the open pack, if it is this one: most of it is
    /// garbage. It stays active while something of it is not durable.
    pub fn retire(&self, id: SegmentId) {
        let mut state = self.state.lock();
        let Some(pack) = state.open.take_if(|pack| pack.id == id) else { return };
        if state.committing || state.synced < state.appended || !pack.named {
            state.full.push(pack);
            return;
        }
        drop(state);
        give_back_reserve(&pack);
    }

    /// Writes blocks to the pack, each whether it is elsewhere or not (but
    /// once in `pending`, unless `again`). Returns places and the position.
    pub fn append(
        &self,
        blocks: &[&Block],
        again: bool,
    ) -> Result<(Vec<Location>, u64), StoreError> {
        if blocks.iter().any(|block| block.data.len() > Block::MAX_LEN) {
            return Err(StoreError::TooLarge);
        }
        let mut state = self.state.lock();
        if state.order.len() > PENDING_MAX {
            let ticket = state.appended;
            drop(state);
            self.sync(ticket)?;
            state = self.state.lock();
        }
        if self.poisoned.load(Ordering::Acquire) {
            return Err(StoreError::Poisoned);
        }
        let mut places = Vec::with_capacity(blocks.len());
        let mut rest = blocks;
        while !rest.is_empty() {
            let count = self.append_run(&mut state, rest, again, &mut places)?;
            rest = &rest[count..];
        }
        Ok((places, state.appended))
    }

    /// Appends as many blocks as one write into one pack takes: at least one.
    fn append_run(
        &self,
        state: &mut State,
        blocks: &[&Block],
        again: bool,
        places: &mut Vec<Location>,
    ) -> Result<usize, StoreError> {
        let mut pack = match state.open.take() {
            Some(pack) if pack.len < self.pack_bytes => pack,
            full => {
                let rolls_over = full.is_some();
                state.full.extend(full);
                let begun = self.begin()?;
                if rolls_over {
                    failpoint::reach("store.pack.rolled_over");
                }
                begun
            }
        };
        let mut buf = Vec::new();
        let mut fresh: HashMap<Cid, Location> = HashMap::new();
        let mut order = Vec::new();
        let mut count = 0;
        for block in blocks {
            // 1 MiB: bounds the copy; the kernel takes larger writes no faster.
            if buf.len() >= 1 << 20 || pack.len + buf.len() as u64 >= self.pack_bytes {
                break;
            }
            let known = fresh.get(&block.cid).or_else(|| state.pending.get(&block.cid));
            let place = match known {
                Some(place) if !again => *place,
                _ => {
                    let at = frame(&mut buf, &block.cid.to_bytes(), &block.data) as u64;
                    let len = block.data.len() as u32;
                    let place = Location { segment: pack.id, offset: pack.len + at, len };
                    fresh.insert(block.cid, place);
                    order.push(IndexChange::Put(block.cid, place));
                    place
                }
            };
            places.push(place);
            count += 1;
        }
        let written = self.write(&mut pack, &buf);
        failpoint::reach("store.pack.appended");
        state.open = Some(pack);
        written?;
        state.pending.extend(fresh);
        let metrics = telemetry::metrics();
        metrics.store_packs_appended.inc_by(order.len() as u64);
        metrics.store_bytes_written.inc_by(buf.len() as u64);
        state.order.append(&mut order);
        state.appended += buf.len() as u64;
        Ok(count)
    }

    /// After an error the pack's length is as before: the next append
    /// overwrites what this one left.
    fn write(&self, pack: &mut OpenPack, buf: &[u8]) -> Result<(), StoreError> {
        let end = pack.len + buf.len() as u64;
        if end > pack.reserved {
            let step = RESERVE_STEP.min(self.pack_bytes).max(end - pack.len);
            // Only an optimization: without room the write itself will say so.
            match pack.file.reserve(pack.len, step) {
                Ok(()) => pack.reserved = pack.len + step,
                Err(error) => {
                    tracing::debug!(%error, "no reservation for the pack");
                    pack.reserved = u64::MAX;
                }
            }
        }
        pack.file.write_at(pack.len, buf).map_err(|e| StoreError::io(&pack.path, e))?;
        pack.len = end;
        Ok(())
    }

    fn begin(&self) -> Result<OpenPack, StoreError> {
        let id = layout::new_id(SegmentKind::Pack);
        let path = self.layout.file(id);
        let file =
            self.disk.open(&path, OpenHow::CreateNew).map_err(|e| StoreError::io(&path, e))?;
        let mut pack = OpenPack { id, path, file, len: 0, reserved: 0, named: false };
        if let Err(error) = self.write(&mut pack, &prefix()) {
            if let Err(error) = self.disk.remove(&pack.path) {
                tracing::warn!(%error, pack = %pack.id, "half-made pack is left");
            }
            return Err(error);
        }
        failpoint::reach("store.pack.begun");
        Ok(pack)
    }

    /// Bytes appended in this life: the position of the last append.
    pub fn appended(&self) -> u64 {
        self.state.lock().appended
    }

    /// Returns when everything up to `ticket` is durable and in the index.
    pub fn sync(&self, ticket: u64) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        loop {
            if state.synced >= ticket {
                return Ok(());
            }
            if self.poisoned.load(Ordering::Acquire) {
                return Err(StoreError::Poisoned);
            }
            if !state.committing {
                break;
            }
            self.turn.wait(&mut state);
        }
        let group = Group::take(&mut state);
        drop(state);
        let result = self.commit(&group);
        self.settle(group, &result);
        result
    }

    /// The leader's work, without the lock.
    fn commit(&self, group: &Group) -> Result<(), StoreError> {
        for (path, file) in &group.files {
            file.sync_data().map_err(|e| self.poison(StoreError::io(path, e)))?;
            telemetry::metrics().store_syncs.inc();
        }
        failpoint::reach("store.pack.synced");
        if group.unnamed {
            let packs = self.layout.packs();
            self.disk.sync_dir(&packs).map_err(|e| self.poison(StoreError::io(&packs, e)))?;
            failpoint::reach("store.pack.named");
        }
        self.index.apply(&group.changes)?;
        failpoint::reach("store.pack.indexed");
        Ok(())
    }

    /// A failed sync tells once and may have thrown the bytes away (fsync
    /// findings of `PostgreSQL`, 2018): nothing more is accepted in this life.
    fn poison(&self, error: StoreError) -> StoreError {
        tracing::error!(%error, "a sync failed; the store takes no more writes");
        self.poisoned.store(true, Ordering::Release);
        error
    }

    fn settle(&self, group: Group, result: &Result<(), StoreError>) {
        let mut state = self.state.lock();
        state.committing = false;
        state.sealing.clear();
        if result.is_ok() {
            state.synced = state.synced.max(group.end);
            for change in &group.changes {
                if let IndexChange::Put(cid, place) = change
                    && state.pending.get(cid) == Some(place)
                {
                    state.pending.remove(cid);
                }
            }
            if let Some(pack) = &mut state.open {
                pack.named |= group.open == Some(pack.id);
            }
        } else {
            // Only the index failed, or we are poisoned: the changes wait for the next group.
            let later = std::mem::replace(&mut state.order, group.changes);
            state.order.extend(later);
            state.full.extend(group.full);
            self.turn.notify_all();
            return;
        }
        self.turn.notify_all();
        drop(state);
        group.full.iter().for_each(give_back_reserve);
    }
}

/// Gives back the reserved space behind the end of a pack.
fn give_back_reserve(pack: &OpenPack) {
    if let Err(error) = pack.file.set_len(pack.len) {
        tracing::warn!(%error, pack = %pack.id, "reserved space is not given back");
    }
    failpoint::reach("store.pack.closed");
}

/// What one leader makes durable.
struct Group {
    files: Vec<(PathBuf, Arc<dyn DiskFile>)>,
    full: Vec<OpenPack>,
    open: Option<SegmentId>,
    unnamed: bool,
    changes: Vec<IndexChange>,
    end: u64,
}

impl Group {
    fn take(state: &mut State) -> Self {
        state.committing = true;
        let full = std::mem::take(&mut state.full);
        state.sealing = full.iter().map(|pack| pack.id).collect();
        let order = std::mem::take(&mut state.order);
        let packs = || full.iter().chain(&state.open);
        // Marks first: should an index apply only a beginning, no indexed byte
        // lies behind its pack's mark.
        let marks = packs().map(|pack| IndexChange::Mark(pack.id, pack.len));
        let changes = marks.chain(order).collect();
        Self {
            files: packs().map(|pack| (pack.path.clone(), pack.file.clone())).collect(),
            unnamed: packs().any(|pack| !pack.named),
            open: state.open.as_ref().map(|pack| pack.id),
            end: state.appended,
            full,
            changes,
        }
    }
}
