//! A pack: a sealed `CARv2` whose first block, its label, says what is in it.
//!
//! The label (`label`) is the one root, a raw block that links to nothing, so a tool that
//! pins roots has nothing to look for elsewhere. What is in a pack is known from its
//! beginning, and sure when the label has the hash that the header's root has. The index at
//! the end is for other tools.

use ipld_core::ipld::Ipld;
use uuid::Uuid;

use super::label::{self, BLOCKS_MAX, Bad, Label, Read, Row, Sealed, lost};
use crate::content::car::{
    V2_DATA_OFFSET, encode_header, put_section, put_v2_header, section_len, varint_len, write_index,
};
use crate::types::{Block, Cid, cid};

/// Header, root and most labels are within so many bytes from the start.
pub(super) const HEAD: u64 = 32 << 10;

/// Rows of blocks that follow a label of `label_len` bytes behind a header of `header_len`.
fn rows_of(blocks: &[(Cid, u32)], header_len: u64, label: &Cid, label_len: u64) -> (Vec<Row>, u64) {
    let mut at = V2_DATA_OFFSET + header_len + section_len(label, label_len);
    let mut rows = Vec::with_capacity(blocks.len());
    for (id, len) in blocks {
        let section = section_len(id, u64::from(*len));
        rows.push(Row { cid: *id, offset: at + section - u64::from(*len), len: *len });
        at += section;
    }
    (rows, at)
}

/// Makes a pack of distinct blocks, in their order, called `id`.
///
/// # Errors
/// When they do not fit; of the encoders, which do not fail.
pub(super) fn seal(
    backend: Uuid,
    (id, created): (Uuid, i64),
    blocks: &[Block],
) -> Result<Sealed, Bad> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let rows = blocks.iter().map(|block| {
        vec![Ipld::Bytes(block.cid.to_bytes()), Ipld::Integer(block.data.len() as i128)]
    });
    let label = Block::raw(label::encode(backend, (id, created), rows)?.into());
    let header = encode_header(&[label.cid]).map_err(|error| said(&error))?;
    let lens: Vec<(Cid, u32)> =
        blocks.iter().map(|block| (block.cid, block.data.len() as u32)).collect();
    let (header_len, label_len) = (header.len() as u64, label.data.len() as u64);
    let (rows, end) = rows_of(&lens, header_len, &label.cid, label_len);
    let mut out = Vec::with_capacity(end as usize + 64 + blocks.len() * 40);
    let mut index = vec![(cid::sha256(&label.data), header_len)];
    let mut write = || -> std::io::Result<()> {
        put_v2_header(&mut out, end - V2_DATA_OFFSET)?;
        out.extend_from_slice(&header);
        put_section(&mut out, &label.cid, &label.data)?;
        for block in blocks {
            // Readers find a block's section by its digest.
            if let Ok(digest) = block.cid.hash().digest().try_into() {
                index.push((digest, out.len() as u64 - V2_DATA_OFFSET));
            }
            put_section(&mut out, &block.cid, &block.data)?;
        }
        write_index(&mut out, std::mem::take(&mut index)).map(drop)
    };
    write().map_err(|error| said(&error))?;
    let label = Label { backend, created, rows, end };
    Ok(Sealed { bytes: out.into(), label })
}

/// A varint at the start of `bytes`, and its length.
fn varint(bytes: &[u8]) -> Result<(u64, usize), Bad> {
    let (value, rest) = unsigned_varint::decode::u64(bytes)
        .map_err(|error| format!("a length that does not decode: {error}"))?;
    Ok((value, bytes.len() - rest.len()))
}

/// Reads what a pack is from the beginning of it.
///
/// # Errors
/// With what is wrong about it.
pub(super) fn read_label(head: &[u8]) -> Result<Read, Bad> {
    let data_offset = V2_DATA_OFFSET as usize;
    // Pragma, header of the archive, and room for the length of the next one.
    if head.len() < data_offset + 10 {
        return Err("it is shorter than any pack".into());
    }
    let mut expected = Vec::new();
    let field = |at: usize| head[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let data_size = field(data_offset - 16);
    put_v2_header(&mut expected, data_size).map_err(|error| error.to_string())?;
    if head[..data_offset] != expected[..] {
        return Err("it does not begin as a pack".into());
    }
    let (map_len, prefix) = varint(&head[data_offset..])?;
    let header_len = prefix as u64 + map_len;
    let section = data_offset as u64 + header_len;
    if header_len > 1024 {
        return Err("its header is longer than that of one root".into());
    }
    let Some(rest) = head.get(section as usize..).filter(|rest| rest.len() >= 64) else {
        return Ok(Read::More(section + 64));
    };
    let (len, prefix) = varint(rest)?;
    let id = Cid::read_bytes(&rest[prefix..])
        .map_err(|error| format!("its label's CID does not decode: {error}"))?;
    let label_len = len
        .checked_sub(id.encoded_len() as u64)
        .filter(|len| *len <= Block::MAX_LEN as u64)
        .ok_or("its label is longer than a block")?;
    let wanted = encode_header(&[id]).map_err(|error| error.to_string())?;
    let header = &head[data_offset..section as usize];
    if header != wanted {
        return Err("its first block is not its root".into());
    }
    let start = section + u64::from(varint_len(len) as u32) + id.encoded_len() as u64;
    let end = start + label_len;
    let Some(data) = head.get(start as usize..end as usize) else {
        return Ok(Read::More(end));
    };
    if cid::verify(&id, data) != cid::Verdict::Match {
        return Err("its label does not match its hash".into());
    }
    let (backend, created, blocks) = label::parse(data, 2)?;
    let blocks: Vec<(Cid, u32)> = blocks.into_iter().map(|(id, len, _)| (id, len)).collect();
    let (rows, whole) = rows_of(&blocks, header_len, &id, label_len);
    if whole != V2_DATA_OFFSET + data_size {
        return Err("it is longer or shorter than its label says".into());
    }
    Ok(Read::Whole(Label { backend, created, rows, end: whole }))
}

/// What is in a pack whose label does not say it: the whole of it is read, section by
/// section, as far as their lengths lead. Blocks that do not match are left out, and keep
/// their positions.
pub(super) fn scan(backend: Uuid, bytes: &[u8]) -> Label {
    // The header of one root of this kind is always as long.
    let header = encode_header(&[cid::of_raw(b"")]).map_or(0, |header| header.len());
    let start = V2_DATA_OFFSET as usize;
    let said = bytes.get(start - 16..start - 8).and_then(|field| field.try_into().ok());
    let end = V2_DATA_OFFSET.saturating_add(said.map_or(u64::MAX, u64::from_le_bytes));
    let end = usize::try_from(end).unwrap_or(usize::MAX).min(bytes.len());
    let mut rows = Vec::new();
    let mut at = start + header;
    // The label is the first one.
    let mut is_label = true;
    while at < end && rows.len() < BLOCKS_MAX {
        let Ok((len, prefix)) = varint(&bytes[at..end]) else { break };
        let section = usize::try_from(len).ok().and_then(|len| {
            let body = bytes.get(at + prefix..(at + prefix).checked_add(len)?)?;
            (!body.is_empty()).then_some(body)
        });
        let Some(body) = section else { break };
        let mut rest = body;
        let read = Cid::read_bytes(&mut rest).ok().filter(|_| rest.len() <= Block::MAX_LEN);
        if !std::mem::take(&mut is_label) {
            let offset = (at + prefix + body.len() - rest.len()) as u64;
            // One that is not what it was stands for nothing that anybody asks for.
            let good = read.filter(|id| cid::verify(id, rest) == cid::Verdict::Match);
            rows.push(match good {
                Some(cid) => Row { cid, offset, len: rest.len() as u32 },
                None => lost(offset),
            });
        }
        at += prefix + body.len();
    }
    Label { backend, created: 0, rows, end: at as u64 }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::label::BLOCK_MAX;
    use super::*;
    use crate::content::car::CarReader;

    const NOW: i64 = 1_794_000_000;

    fn seal(backend: Uuid, blocks: &[Block]) -> Result<Sealed, Bad> {
        super::seal(backend, (Uuid::new_v4(), NOW), blocks)
    }

    fn blocks(count: usize) -> Vec<Block> {
        let mut random = fastrand::Rng::with_seed(count as u64);
        let data = |n: usize| -> Bytes {
            let len = [0, 1, 100, 4096, BLOCK_MAX][n % 5].min(if n < 10 { BLOCK_MAX } else { 64 });
            std::iter::repeat_with(|| random.u8(..)).take(len).chain(n.to_le_bytes()).collect()
        };
        let mut blocks: Vec<Block> = (0..count).map(data).map(Block::raw).collect();
        if let Some(last) = blocks.last_mut() {
            last.cid = cid::v0(&cid::sha256(&last.data));
        }
        blocks
    }

    #[test]
    fn a_pack_says_what_is_in_it_and_where_and_any_reader_takes_it() {
        let backend = Uuid::new_v4();
        for count in [1, 2, 9, 300, 5000] {
            let blocks = blocks(count);
            let pack = seal(backend, &blocks).unwrap();
            assert_eq!((pack.label.backend, pack.label.created), (backend, NOW));
            for (row, block) in pack.label.rows.iter().zip(&blocks) {
                let at = row.offset as usize;
                assert_eq!(row.cid, block.cid);
                assert_eq!(pack.bytes.slice(at..at + row.len as usize), block.data);
            }
            assert_eq!(pack.label.rows.len(), count);
            // From its beginning alone, in at most two steps.
            let some = pack.bytes.len().min(HEAD as usize);
            let read = match read_label(&pack.bytes[..some]).unwrap() {
                Read::More(len) => read_label(&pack.bytes[..len as usize]).unwrap(),
                whole @ Read::Whole(_) => whole,
            };
            assert_eq!(read, Read::Whole(pack.label.clone()));
            let mut reader = CarReader::new(&pack.bytes[..]).unwrap();
            assert_eq!(reader.header_of().roots.len(), 1);
            assert_eq!(reader.header_of().index_offset, pack.label.end);
            let label = reader.next_section().unwrap().unwrap();
            assert_eq!(reader.header_of().roots[0], label.cid);
            for block in &blocks {
                assert_eq!(reader.next_section().unwrap().unwrap().data, block.data);
            }
            assert!(reader.next_section().unwrap().is_none());
        }
        assert!(seal(backend, &[]).is_err());
    }

    #[test]
    fn a_pack_without_a_label_is_read_through() {
        let backend = Uuid::new_v4();
        let blocks = blocks(9);
        let pack = seal(backend, &blocks).unwrap();
        let first = pack.label.rows[0].offset as usize - 40;
        let last = &pack.label.rows[8];
        for (name, at, lost) in [
            ("the pragma", 3, 0..0),
            ("the header", 80, 0..0),
            ("the label", first - 7, 0..0),
            ("a block", last.offset as usize + 1, 8..9),
            ("the end", usize::MAX, 7..9),
        ] {
            let mut bytes = pack.bytes.to_vec();
            match bytes.get_mut(at) {
                Some(byte) => *byte ^= 0x10,
                None => bytes.truncate(last.offset as usize - 45),
            }
            let found = scan(backend, &bytes).rows;
            for (n, row) in pack.label.rows.iter().enumerate() {
                assert_eq!(found.get(n) == Some(row), !lost.contains(&n), "{name}: {n}");
            }
        }
        assert!(scan(backend, b"").rows.is_empty());
    }

    #[test]
    fn a_beginning_that_was_changed_is_no_label() {
        let pack = seal(Uuid::nil(), &blocks(9)).unwrap();
        let Read::Whole(label) = read_label(&pack.bytes[..HEAD as usize]).unwrap() else {
            panic!("it is small");
        };
        let first = label.rows[0].offset as usize;
        let len_of_first_section = 40;
        for at in 0..first - len_of_first_section {
            let mut bytes = pack.bytes[..HEAD as usize].to_vec();
            bytes[at] ^= 1;
            match read_label(&bytes) {
                Err(_) | Ok(Read::More(_)) => {}
                Ok(Read::Whole(other)) => panic!("byte {at}: {other:?}"),
            }
        }
        for len in 0..first - len_of_first_section {
            assert!(!matches!(read_label(&pack.bytes[..len]), Ok(Read::Whole(_))), "{len}");
        }
    }
}
