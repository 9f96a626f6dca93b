//! The index of a `CARv2`, in the layout of go-car (v2/index).
//!
//! ```text
//! varint codec            0x0401 MultihashIndexSorted (0x0400: IndexSorted)
//! i32le  multihash codes  (0x0401 only)
//!   u64le code            (0x0401 only)
//!   i32le buckets
//!     u32le width         digest length + 8
//!     u64le bytes         of the bucket (the written spec says: rows)
//!     rows                digest, u64le offset; sorted by digest
//! ```
//! An offset counts from the start of the data to the section's varint.

use std::io::{Read, Write};

use crate::types::cid::SHA2_256;

/// Multicodec of `MultihashIndexSorted`.
const MULTIHASH_INDEX_SORTED: u64 = 0x0401;
/// Multicodec of `IndexSorted`.
const INDEX_SORTED: u64 = 0x0400;
/// Widest row that is read: a digest of 128 bytes and its offset.
const MAX_WIDTH: u32 = 136;

/// Writes the index of sha2-256 blocks; gives its length.
///
/// # Errors
/// Of `out`.
pub fn write_index(out: &mut dyn Write, mut rows: Vec<([u8; 32], u64)>) -> std::io::Result<u64> {
    const WIDTH: u32 = 40;
    rows.sort_unstable();
    let mut buffer = unsigned_varint::encode::u64_buffer();
    let codec = unsigned_varint::encode::u64(MULTIHASH_INDEX_SORTED, &mut buffer);
    out.write_all(codec)?;
    let hash_count = u32::from(!rows.is_empty());
    out.write_all(&hash_count.to_le_bytes())?;
    let mut len = codec.len() as u64 + 4;
    if hash_count > 0 {
        let bytes = rows.len() as u64 * u64::from(WIDTH);
        out.write_all(&SHA2_256.to_le_bytes())?;
        out.write_all(&1u32.to_le_bytes())?;
        out.write_all(&WIDTH.to_le_bytes())?;
        out.write_all(&bytes.to_le_bytes())?;
        len += 24 + bytes;
    }
    for (digest, offset) in rows {
        out.write_all(&digest)?;
        out.write_all(&offset.to_le_bytes())?;
    }
    Ok(len)
}

/// A row that was read.
pub struct IndexRow<'r> {
    /// Multihash code; an `IndexSorted` has none.
    pub code: Option<u64>,
    /// The digest.
    pub digest: &'r [u8],
    /// Offset of the section in the data.
    pub offset: u64,
}

fn array<const N: usize>(input: &mut dyn Read) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => "it is cut off".to_owned(),
        _ => e.to_string(),
    })?;
    Ok(bytes)
}

fn varint(input: &mut dyn Read) -> Result<u64, String> {
    let mut value = 0u64;
    for index in 0..9 {
        let [byte] = array(input)?;
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return if byte == 0 && index > 0 {
                Err("an over-long varint".into())
            } else {
                Ok(value)
            };
        }
    }
    Err("a varint over 63 bits".into())
}

/// Reads an index to the end of `input`, row by row; nothing may follow it.
///
/// # Errors
/// With what is wrong about it; of `visit`.
pub fn read_index(
    input: &mut dyn Read,
    visit: &mut dyn FnMut(&IndexRow<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let codec = varint(input)?;
    let hash_count = match codec {
        INDEX_SORTED => 1,
        MULTIHASH_INDEX_SORTED => u32::from_le_bytes(array(input)?),
        _ => return Err(format!("0x{codec:x} is no kind of index")),
    };
    for _ in 0..hash_count {
        let code = match codec {
            INDEX_SORTED => None,
            _ => Some(u64::from_le_bytes(array(input)?)),
        };
        for _ in 0..u32::from_le_bytes(array(input)?) {
            bucket(input, code, visit)?;
        }
    }
    match input.read(&mut [0]).map_err(|e| e.to_string())? {
        0 => Ok(()),
        _ => Err("there are bytes after it".into()),
    }
}

fn bucket(
    input: &mut dyn Read,
    code: Option<u64>,
    visit: &mut dyn FnMut(&IndexRow<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let width = u32::from_le_bytes(array(input)?);
    let bytes = u64::from_le_bytes(array(input)?);
    if !(9..=MAX_WIDTH).contains(&width) || !bytes.is_multiple_of(u64::from(width)) {
        return Err(format!("a bucket of {bytes} bytes in rows of {width}"));
    }
    let (mut row, mut last) = (vec![0; width as usize], Vec::new());
    for _ in 0..bytes / u64::from(width) {
        input.read_exact(&mut row).map_err(|_| "it is cut off".to_owned())?;
        let Some((digest, offset)) = row.split_last_chunk::<8>() else {
            return Err("a row without an offset".into());
        };
        // Readers search by halves: rows out of order would not be found.
        if digest < &last[..] {
            return Err("its rows are not sorted".into());
        }
        visit(&IndexRow { code, digest, offset: u64::from_le_bytes(*offset) })?;
        last.clear();
        last.extend_from_slice(digest);
    }
    Ok(())
}
