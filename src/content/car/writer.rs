use std::io::Write;

use super::{CarError, HeaderMap, PRAGMA, V2_DATA_OFFSET};
use crate::types::Cid;

/// Bytes that `value` takes as a varint.
#[must_use]
pub fn varint_len(value: u64) -> u64 {
    u64::from((70 - (value | 1).leading_zeros()) / 7)
}

/// Encodes a `CARv1` header, its length included.
///
/// # Errors
/// None that is known: roots always encode.
pub fn encode_header(roots: &[Cid]) -> Result<Vec<u8>, CarError> {
    let map = HeaderMap { roots: Some(roots.to_vec()), version: 1 };
    let body = serde_ipld_dagcbor::to_vec(&map).map_err(std::io::Error::other)?;
    let mut buffer = unsigned_varint::encode::u64_buffer();
    let mut out = unsigned_varint::encode::u64(body.len() as u64, &mut buffer).to_vec();
    out.extend_from_slice(&body);
    Ok(out)
}

/// Bytes of a whole section.
#[must_use]
pub fn section_len(id: &Cid, data_len: u64) -> u64 {
    let body = id.encoded_len() as u64 + data_len;
    varint_len(body) + body
}

/// Writes what comes before a block's bytes: its section's length, its CID.
///
/// # Errors
/// Of `out`.
pub fn put_section_head(out: &mut dyn Write, id: &Cid, data_len: u64) -> std::io::Result<()> {
    let id = id.to_bytes();
    let mut buffer = unsigned_varint::encode::u64_buffer();
    out.write_all(unsigned_varint::encode::u64(id.len() as u64 + data_len, &mut buffer))?;
    out.write_all(&id)
}

/// Writes one section.
///
/// # Errors
/// Of `out`.
pub fn put_section(out: &mut dyn Write, id: &Cid, data: &[u8]) -> std::io::Result<()> {
    put_section_head(out, id, data.len() as u64)?;
    out.write_all(data)
}

/// Writes pragma and header of a `CARv2` whose index follows the data at once.
/// No characteristic is set: identity CIDs are not in the index.
///
/// # Errors
/// Of `out`.
pub fn put_v2_header(out: &mut dyn Write, data_size: u64) -> std::io::Result<()> {
    out.write_all(PRAGMA)?;
    out.write_all(&[0; 16])?;
    for number in [V2_DATA_OFFSET, data_size, V2_DATA_OFFSET + data_size] {
        out.write_all(&number.to_le_bytes())?;
    }
    Ok(())
}
