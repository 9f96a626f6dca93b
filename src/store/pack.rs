//! Packs: shared segments for small blocks, framed as CARv1, with group commit.
//!
//! A pack begins with a CAR header of one root, the empty raw block, and that
//! block; so it is a valid CAR of one root at every section border (readers
//! refuse an empty list of roots).

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::segment::Segments;
use super::{IndexChange, Location, StoreError};
use crate::types::{Block, Cid, SegmentId, cid};

/// Space reserved ahead of the writer: a sync of bytes in reserved space does
/// not have to sync the file's length too.
const RESERVE_BYTES: u64 = 4 << 20;

/// The pack that is written now, and what of it is not yet durable.
#[derive(Default)]
pub(super) struct Packs {
    current: Option<Open>,
    /// Bytes appended since the store was opened; tickets count in these.
    pub stream: u64,
    /// Blocks that are not in the index yet.
    pub pending: HashMap<Cid, Location>,
    /// To be applied after the next sync.
    changes: Vec<IndexChange>,
    /// Files with bytes that are not durable.
    unsynced: Vec<(SegmentId, Arc<File>)>,
    /// A file was made: its directory must be synced.
    new_file: bool,
}

struct Open {
    id: SegmentId,
    file: Arc<File>,
    len: u64,
    reserved: u64,
}

/// What one group commit makes durable.
pub(super) struct Group {
    pub up_to: u64,
    pub changes: Vec<IndexChange>,
    pub files: Vec<(SegmentId, Arc<File>)>,
    pub new_file: bool,
}

/// The header and first section of every pack.
pub(super) fn preamble() -> Vec<u8> {
    let empty = cid::of_raw(&[]).to_bytes();
    // dag-cbor: {"roots": [CID], "version": 1}; a CID is tag 42 over 0x00 + bytes.
    let mut header = vec![0xa2, 0x65];
    header.extend_from_slice(b"roots");
    header.extend_from_slice(&[0x81, 0xd8, 0x2a, 0x58, empty.len() as u8 + 1, 0]);
    header.extend_from_slice(&empty);
    header.push(0x67);
    header.extend_from_slice(b"version");
    header.push(0x01);
    let mut out = vec![header.len() as u8];
    out.extend_from_slice(&header);
    out.push(empty.len() as u8);
    out.extend_from_slice(&empty);
    out
}

fn put_section(out: &mut Vec<u8>, block: &Block) -> u64 {
    let id = block.cid.to_bytes();
    let mut buffer = unsigned_varint::encode::u64_buffer();
    let len = (id.len() + block.data.len()) as u64;
    out.extend_from_slice(unsigned_varint::encode::u64(len, &mut buffer));
    out.extend_from_slice(&id);
    let offset = out.len() as u64;
    out.extend_from_slice(&block.data);
    offset
}

impl Packs {
    /// Goes on with a pack that an earlier life left.
    pub fn resume(&mut self, id: SegmentId, file: File, len: u64) {
        self.current = Some(Open { id, file: Arc::new(file), len, reserved: len });
    }

    /// Appends blocks in one write; none of them is indexed or pending.
    /// Returns their places.
    pub fn append(
        &mut self,
        blocks: &[&Block],
        segments: &Segments,
        pack_bytes: u64,
    ) -> Result<Vec<Location>, StoreError> {
        if self.current.as_ref().is_some_and(|pack| pack.len >= pack_bytes) {
            self.current = None;
        }
        let mut bytes = Vec::with_capacity(blocks.iter().map(|b| b.data.len() + 48).sum());
        if self.current.is_none() {
            let id = segments.next_id(true);
            let path = segments.path(id);
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(|e| StoreError::io(&path, e))?;
            self.current = Some(Open { id, file: Arc::new(file), len: 0, reserved: 0 });
            self.new_file = true;
            bytes = preamble();
        }
        let Some(pack) = self.current.as_mut() else { return Err(StoreError::Poisoned) };
        let mut places = Vec::with_capacity(blocks.len());
        for block in blocks {
            let offset = pack.len + put_section(&mut bytes, block);
            places.push(Location { segment: pack.id, offset, len: block.data.len() as u32 });
        }
        let end = pack.len + bytes.len() as u64;
        let path = segments.path(pack.id);
        if end > pack.reserved {
            // Only a hint: a disk that cannot reserve still writes.
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            let step = bytes.len() as u64 + RESERVE_BYTES;
            if rustix::fs::fallocate(&pack.file, flags, pack.len, step).is_ok() {
                pack.reserved = pack.len + step;
            }
        }
        // On failure `len` stays: the next append writes over the torn bytes.
        pack.file.write_all_at(&bytes, pack.len).map_err(|e| StoreError::io(&path, e))?;
        pack.len = end;
        self.stream += bytes.len() as u64;
        for (block, place) in blocks.iter().zip(&places) {
            self.pending.insert(block.cid, *place);
            self.changes.push(IndexChange::Put(block.cid, *place));
        }
        if self.unsynced.last().is_none_or(|(id, _)| *id != pack.id) {
            self.unsynced.push((pack.id, Arc::clone(&pack.file)));
        }
        Ok(places)
    }

    /// Takes everything that is not durable.
    pub fn take_group(&mut self) -> Group {
        let mut changes = std::mem::take(&mut self.changes);
        let files = std::mem::take(&mut self.unsynced);
        for (id, _) in &files {
            let len = match &self.current {
                Some(pack) if pack.id == *id => pack.len,
                _ => u64::MAX,
            };
            changes.push(IndexChange::Mark(*id, len));
        }
        Group { up_to: self.stream, changes, files, new_file: std::mem::take(&mut self.new_file) }
    }
}
