//! Writing: depth first, each block once, the root first (as `ipfs dag export`).

use std::collections::HashSet;
use std::io::Write;

use bytes::Bytes;

use super::ArchiveError;
use super::car::{PRAGMA, V2_HEADER, encode_header};
use crate::content::{inline_block, parse_node};
use crate::types::{Cid, cid};

/// Multicodec of `MultihashIndexSorted`.
pub(super) const INDEX_CODEC: u64 = 0x0401;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportReport {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of the whole archive.
    pub bytes: u64,
}

type LoadBlock<'a> = dyn FnMut(&Cid) -> Result<Bytes, crate::content::ContentError> + 'a;

fn section_len(id: &Cid, data_len: u64) -> u64 {
    let body = id.encoded_len() as u64 + data_len;
    let mut buffer = unsigned_varint::encode::u64_buffer();
    unsigned_varint::encode::u64(body, &mut buffer).len() as u64 + body
}

/// The blocks below `roots`, in order, with their lengths. Identity CIDs have
/// no section.
fn list(roots: &[Cid], load: &mut LoadBlock<'_>) -> Result<Vec<(Cid, u32)>, ArchiveError> {
    let mut seen = HashSet::new();
    let mut order = Vec::new();
    let mut stack: Vec<Cid> = roots.iter().rev().copied().collect();
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        let inline = inline_block(&id);
        let is_inline = inline.is_some();
        let block = inline.map_or_else(|| load(&id), Ok)?;
        if !is_inline {
            order.push((id, block.len() as u32));
        }
        if id.codec() != cid::RAW {
            stack.extend(parse_node(&id, &block)?.children().into_iter().rev());
        }
    }
    Ok(order)
}

/// Writes everything below `roots` into a CAR of `version` 1 or 2 (with a
/// `MultihashIndexSorted`). Two passes: the first learns order and lengths, so
/// that a CARv2 can go to a pipe. Memory: about 100 bytes a block.
///
/// # Errors
/// Of `load` and `out`.
pub fn export(
    out: &mut dyn Write,
    version: u8,
    roots: &[Cid],
    load: &mut LoadBlock<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ExportReport, ArchiveError> {
    let order = list(roots, load)?;
    let header = encode_header(roots)?;
    let data_size: u64 = header.len() as u64
        + order.iter().map(|(id, len)| section_len(id, u64::from(*len))).sum::<u64>();
    let mut written = 0;
    if version == 2 {
        let data_offset = PRAGMA.len() as u64 + V2_HEADER;
        out.write_all(PRAGMA)?;
        out.write_all(&[0; 16])?;
        for number in [data_offset, data_size, data_offset + data_size] {
            out.write_all(&number.to_le_bytes())?;
        }
        written += data_offset;
    }
    out.write_all(&header)?;
    let mut offset = header.len() as u64;
    let mut index = Vec::with_capacity(if version == 2 { order.len() } else { 0 });
    let mut buffer = unsigned_varint::encode::u64_buffer();
    for (done, (id, len)) in order.iter().enumerate() {
        let data = load(id)?;
        if data.len() as u64 != u64::from(*len) {
            return Err(ArchiveError::Unusable(format!(
                "block {id} changed while it was exported"
            )));
        }
        let id_bytes = id.to_bytes();
        out.write_all(unsigned_varint::encode::u64(
            (id_bytes.len() + data.len()) as u64,
            &mut buffer,
        ))?;
        out.write_all(&id_bytes)?;
        out.write_all(&data)?;
        if version == 2 {
            index.push((*id, offset));
        }
        offset += section_len(id, u64::from(*len));
        progress(done as u64 + 1, order.len() as u64);
    }
    written += offset;
    if version == 2 {
        let bytes = encode_index(&index);
        out.write_all(&bytes)?;
        written += bytes.len() as u64;
    }
    out.flush()?;
    Ok(ExportReport { blocks: order.len() as u64, bytes: written })
}

/// The index as go-car writes it: codec, then per multihash code, per digest
/// width, the sorted `digest | offset` rows (widths and lengths in bytes).
pub(super) fn encode_index(rows: &[(Cid, u64)]) -> Vec<u8> {
    use std::collections::BTreeMap;
    let mut codes: BTreeMap<u64, BTreeMap<u32, Vec<(Vec<u8>, u64)>>> = BTreeMap::new();
    for (id, offset) in rows {
        let digest = id.hash().digest().to_vec();
        let width = digest.len() as u32 + 8;
        codes
            .entry(id.hash().code())
            .or_default()
            .entry(width)
            .or_default()
            .push((digest, *offset));
    }
    let mut buffer = unsigned_varint::encode::u64_buffer();
    let mut out = unsigned_varint::encode::u64(INDEX_CODEC, &mut buffer).to_vec();
    out.extend_from_slice(&(codes.len() as u32).to_le_bytes());
    for (code, widths) in codes {
        out.extend_from_slice(&code.to_le_bytes());
        out.extend_from_slice(&(widths.len() as u32).to_le_bytes());
        for (width, mut rows) in widths {
            rows.sort();
            out.extend_from_slice(&width.to_le_bytes());
            out.extend_from_slice(&(rows.len() as u64 * u64::from(width)).to_le_bytes());
            for (digest, offset) in rows {
                out.extend_from_slice(&digest);
                out.extend_from_slice(&offset.to_le_bytes());
            }
        }
    }
    out
}
