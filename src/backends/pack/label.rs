//! What a pack says is in it: dag-cbor, with the blocks in their order.
//!
//! ```text
//! {"format": 1, "backend": 16 bytes, "created": seconds since 1970, "id": 16 bytes,
//!  "blocks": [[CID as bytes, length], ..]}
//! ```
//!
//! Where they lie follows from that in a CAR; in a Parquet file each has its offset as well.
//! No two packs have the same `id`: a block that is put again soon after it died would else
//! come into a pack of the same name, and be as dead as it was.

use std::collections::BTreeMap;

use bytes::Bytes;
use ipld_core::ipld::Ipld;
use uuid::Uuid;

use crate::types::{Block, Cid, cid};

/// Version of the label.
const FORMAT: i128 = 1;
/// Larger blocks are objects of their own where small ones only share.
pub(super) const BLOCK_MAX: usize = 128 << 10;
/// Blocks in a pack: the label stays a block.
pub(super) const BLOCKS_MAX: usize = 32_768;
/// How the words about a newer pack end.
pub(super) const NEWER: &str = "use a newer cairn";

/// A block in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backends) struct Row {
    pub cid: Cid,
    /// From the start of the object: of its bytes in a CAR, of its page in Parquet.
    pub offset: u64,
    /// Of the block itself.
    pub len: u32,
}

/// One that is not what it was: it stands for nothing that anybody asks for, and keeps its
/// position.
pub(super) fn lost(offset: u64) -> Row {
    Row { cid: cid::v1(cid::RAW, &[0; 32]), offset, len: 0 }
}

/// What a pack is, without its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backends) struct Label {
    /// The place that it was made for.
    pub backend: Uuid,
    pub created: i64,
    /// By position.
    pub rows: Vec<Row>,
    /// Where the blocks end in the object.
    pub end: u64,
}

/// A whole pack.
#[derive(Debug, Clone)]
pub(super) struct Sealed {
    pub bytes: Bytes,
    pub label: Label,
}

/// Why it is none, in words.
pub(in crate::backends) type Bad = String;

/// How much of a pack has to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Read {
    Whole(Label),
    /// So many bytes, from the end at which the label lies.
    More(u64),
}

/// # Errors
/// When there are too many blocks, or none.
pub(in crate::backends) fn encode(
    backend: Uuid,
    (id, created): (Uuid, i64),
    rows: impl Iterator<Item = Vec<Ipld>>,
) -> Result<Vec<u8>, Bad> {
    let rows: Vec<Ipld> = rows.map(Ipld::List).collect();
    if rows.is_empty() || rows.len() > BLOCKS_MAX {
        return Err(format!("a pack has 1 to {BLOCKS_MAX} blocks, not {}", rows.len()));
    }
    let label = Ipld::Map(BTreeMap::from([
        ("format".to_owned(), Ipld::Integer(FORMAT)),
        ("backend".to_owned(), Ipld::Bytes(backend.as_bytes().to_vec())),
        ("created".to_owned(), Ipld::Integer(created.into())),
        ("id".to_owned(), Ipld::Bytes(id.as_bytes().to_vec())),
        ("blocks".to_owned(), Ipld::List(rows)),
    ]));
    serde_ipld_dagcbor::to_vec(&label).map_err(|error| error.to_string())
}

/// Reads a label whose rows have so many columns: the place, the time, and CID, length and
/// offset (0 without one) of each block.
///
/// # Errors
/// With what is wrong about it; [`NEWER`] ends what is said of a higher format.
pub(in crate::backends) fn parse(
    data: &[u8],
    columns: usize,
) -> Result<(Uuid, i64, Vec<(Cid, u32, u64)>), Bad> {
    let wrong = || "its label is not one".to_owned();
    let Ok(Ipld::Map(map)) = serde_ipld_dagcbor::from_slice::<Ipld>(data) else {
        return Err(wrong());
    };
    match map.get("format") {
        Some(Ipld::Integer(FORMAT)) => {}
        Some(Ipld::Integer(format)) if *format > FORMAT => {
            return Err(format!(
                "it has format {format}, and this cairn knows up to {FORMAT}: {NEWER}"
            ));
        }
        _ => return Err(wrong()),
    }
    let (Some(Ipld::Bytes(backend)), Some(Ipld::Integer(created)), Some(Ipld::List(list))) =
        (map.get("backend"), map.get("created"), map.get("blocks"))
    else {
        return Err(wrong());
    };
    if list.len() > BLOCKS_MAX {
        return Err(wrong());
    }
    let mut blocks = Vec::with_capacity(list.len());
    for row in list {
        let Ipld::List(row) = row else { return Err(wrong()) };
        let (id, len, offset) = match &row[..] {
            [Ipld::Bytes(id), Ipld::Integer(len)] if columns == 2 => (id, len, 0),
            [Ipld::Bytes(id), Ipld::Integer(len), Ipld::Integer(offset)] if columns == 3 => {
                (id, len, *offset)
            }
            _ => return Err(wrong()),
        };
        let id = Cid::try_from(&id[..]).map_err(|_| wrong())?;
        let len = u32::try_from(*len).map_err(|_| wrong())?;
        if len as usize > Block::MAX_LEN {
            return Err(wrong());
        }
        blocks.push((id, len, u64::try_from(offset).map_err(|_| wrong())?));
    }
    let backend = Uuid::from_slice(backend).map_err(|_| wrong())?;
    Ok((backend, i64::try_from(*created).map_err(|_| wrong())?, blocks))
}
