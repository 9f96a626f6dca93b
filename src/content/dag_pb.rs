//! dag-pb and `UnixFS` protobuf, byte for byte.
//!
//! Rules: ipfs/specs `src/unixfs.md`, "dag-pb Node" and "Data Field"; IPLD
//! dag-pb spec. We write what Kubo writes: links first, then data; each link
//! has hash, name (also when empty) and size.

use bytes::Bytes;

use crate::types::Cid;

/// `UnixFS` `Data.Type`.
pub(super) const TYPE_RAW: u64 = 0;
pub(super) const TYPE_DIRECTORY: u64 = 1;
pub(super) const TYPE_FILE: u64 = 2;
pub(super) const TYPE_SYMLINK: u64 = 4;
pub(super) const TYPE_HAMT: u64 = 5;

/// A link as dag-pb has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PbLink {
    pub cid: Cid,
    pub name: Vec<u8>,
    pub tsize: u64,
}

/// A node as dag-pb has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PbNode {
    pub links: Vec<PbLink>,
    pub data: Option<Bytes>,
}

/// The `UnixFS` message in a node's data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct UnixFs {
    pub kind: u64,
    pub data: Option<Bytes>,
    pub file_size: Option<u64>,
    pub block_sizes: Vec<u64>,
    pub hash_type: Option<u64>,
    pub fanout: Option<u64>,
    pub mode: Option<u32>,
    pub mtime: Option<(i64, u32)>,
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that `value` takes as a varint.
pub(super) fn varint_len(value: u64) -> u64 {
    u64::from((70 - (value | 1).leading_zeros()) / 7)
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends one `PBNode.Links` field.
pub(super) fn put_link(out: &mut Vec<u8>, link: &PbLink) {
    let cid = link.cid.to_bytes();
    let len = link_body_len(cid.len() as u64, link.name.len() as u64, link.tsize);
    out.push(0x12);
    put_varint(out, len);
    put_bytes(out, 0x0a, &cid);
    put_bytes(out, 0x12, &link.name);
    out.push(0x18);
    put_varint(out, link.tsize);
}

fn link_body_len(cid: u64, name: u64, tsize: u64) -> u64 {
    1 + varint_len(cid) + cid + 1 + varint_len(name) + name + 1 + varint_len(tsize)
}

/// Length of a whole link field, tag included.
pub(super) fn link_field_len(cid: u64, name: u64, tsize: u64) -> u64 {
    let body = link_body_len(cid, name, tsize);
    1 + varint_len(body) + body
}

/// Encodes a node from its links and its `UnixFS` message.
pub(super) fn encode(links: &[PbLink], unixfs: &UnixFs) -> Vec<u8> {
    let data = encode_unixfs(unixfs);
    let mut out = Vec::with_capacity(data.len() + 8 + links.len() * 56);
    for link in links {
        put_link(&mut out, link);
    }
    put_bytes(&mut out, 0x0a, &data);
    out
}

fn encode_unixfs(message: &UnixFs) -> Vec<u8> {
    let inline = message.data.as_ref().map_or(0, Bytes::len);
    let mut out = Vec::with_capacity(inline + 24 + message.block_sizes.len() * 5);
    out.push(0x08);
    put_varint(&mut out, message.kind);
    if let Some(data) = &message.data {
        put_bytes(&mut out, 0x12, data);
    }
    if let Some(size) = message.file_size {
        out.push(0x18);
        put_varint(&mut out, size);
    }
    for size in &message.block_sizes {
        out.push(0x20);
        put_varint(&mut out, *size);
    }
    if let Some(hash) = message.hash_type {
        out.push(0x28);
        put_varint(&mut out, hash);
    }
    if let Some(fanout) = message.fanout {
        out.push(0x30);
        put_varint(&mut out, fanout);
    }
    if let Some(mode) = message.mode {
        out.push(0x38);
        put_varint(&mut out, u64::from(mode));
    }
    if let Some((seconds, nanos)) = message.mtime {
        let mut time = vec![0x08];
        put_varint(&mut time, seconds.cast_unsigned());
        if nanos != 0 {
            time.push(0x15);
            time.extend_from_slice(&nanos.to_le_bytes());
        }
        put_bytes(&mut out, 0x42, &time);
    }
    out
}

/// Reads protobuf fields one after the other.
struct Fields {
    rest: Bytes,
}

enum Value {
    Varint(u64),
    Bytes(Bytes),
    Fixed32(u32),
}

impl Fields {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for (index, byte) in self.rest.iter().enumerate().take(10) {
            if index == 9 && *byte > 1 {
                return Err("varint over 64 bits".into());
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                if *byte == 0 && index > 0 {
                    return Err("an over-long varint".into());
                }
                drop(self.rest.split_to(index + 1));
                return Ok(value);
            }
        }
        Err("truncated varint".into())
    }

    fn next(&mut self) -> Result<Option<(u64, Value)>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|e| e.to_string())?;
                if len > self.rest.len() {
                    return Err(format!("a field of {len} bytes, {} are left", self.rest.len()));
                }
                Value::Bytes(self.rest.split_to(len))
            }
            5 => {
                let Some(bytes) = self.rest.first_chunk::<4>().copied() else {
                    return Err("truncated fixed32".into());
                };
                drop(self.rest.split_to(4));
                Value::Fixed32(u32::from_le_bytes(bytes))
            }
            wire => return Err(format!("wire type {wire}")),
        };
        Ok(Some((key >> 3, value)))
    }
}

/// Decodes a dag-pb node. Strict as the spec asks: no unknown field, no field
/// twice, links next to each other (before or after the data).
pub(super) fn decode(bytes: &Bytes) -> Result<PbNode, String> {
    let mut fields = Fields { rest: bytes.clone() };
    let mut node = PbNode::default();
    let mut links_ended = false;
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Value::Bytes(data)) if node.data.is_none() => {
                node.data = Some(data);
                links_ended = !node.links.is_empty();
            }
            (1, Value::Bytes(_)) => return Err("two data fields".into()),
            (2, Value::Bytes(_)) if links_ended => return Err("links around the data".into()),
            (2, Value::Bytes(link)) => node.links.push(decode_link(link)?),
            (field, _) => return Err(format!("unknown field {field} in PBNode")),
        }
    }
    Ok(node)
}

/// The fields of a link come in the order hash, name, size, each at most once.
fn decode_link(bytes: Bytes) -> Result<PbLink, String> {
    let mut fields = Fields { rest: bytes };
    let (mut cid, mut name, mut tsize) = (None, Vec::new(), 0);
    let mut last = 0;
    while let Some((field, value)) = fields.next()? {
        if field <= last {
            return Err(format!("field {field} after field {last} in PBLink"));
        }
        last = field;
        match (field, value) {
            (1, Value::Bytes(bytes)) => {
                let id = Cid::try_from(&bytes[..]).map_err(|e| format!("link CID: {e}"))?;
                // The parser stops at the CID's end; the field must too.
                if id.encoded_len() != bytes.len() {
                    return Err("a link CID with bytes after it".into());
                }
                cid = Some(id);
            }
            (2, Value::Bytes(bytes)) => name = bytes.to_vec(),
            (3, Value::Varint(value)) => tsize = value,
            (field, _) => return Err(format!("unknown field {field} in PBLink")),
        }
    }
    Ok(PbLink { cid: cid.ok_or("a link without a CID")?, name, tsize })
}

fn once<T>(slot: &mut Option<T>, value: T, what: &str) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{what} occurs twice in UnixFS data")),
    }
}

/// Decodes the `UnixFS` message of a node.
pub(super) fn decode_unixfs(bytes: &Bytes) -> Result<UnixFs, String> {
    let mut fields = Fields { rest: bytes.clone() };
    let mut message = UnixFs::default();
    let mut kind = None;
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Value::Varint(value)) => once(&mut kind, value, "the type")?,
            (2, Value::Bytes(data)) => once(&mut message.data, data, "the data")?,
            (3, Value::Varint(size)) => once(&mut message.file_size, size, "the file size")?,
            (4, Value::Varint(size)) => message.block_sizes.push(size),
            // Packed form: readers of proto2 repeated fields accept both.
            (4, Value::Bytes(packed)) => {
                let mut sizes = Fields { rest: packed };
                while !sizes.rest.is_empty() {
                    message.block_sizes.push(sizes.varint()?);
                }
            }
            (5, Value::Varint(hash)) => once(&mut message.hash_type, hash, "the hash type")?,
            (6, Value::Varint(fanout)) => once(&mut message.fanout, fanout, "the fanout")?,
            (7, Value::Varint(mode)) => {
                let mode = u32::try_from(mode).map_err(|_| "a mode over 32 bits")?;
                once(&mut message.mode, mode, "the mode")?;
            }
            (8, Value::Bytes(time)) => once(&mut message.mtime, decode_time(time)?, "the mtime")?,
            (field, _) => return Err(format!("unknown field {field} in UnixFS data")),
        }
    }
    message.kind = kind.ok_or("UnixFS data without a type")?;
    Ok(message)
}

fn decode_time(bytes: Bytes) -> Result<(i64, u32), String> {
    let mut fields = Fields { rest: bytes };
    let (mut seconds, mut nanos) = (None, 0);
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Value::Varint(value)) => seconds = Some(value.cast_signed()),
            (2, Value::Fixed32(value)) if (1..1_000_000_000).contains(&value) => nanos = value,
            (2, Value::Fixed32(value)) => return Err(format!("{value} nanoseconds")),
            (field, _) => return Err(format!("unknown field {field} in UnixTime")),
        }
    }
    Ok((seconds.ok_or("UnixTime without seconds")?, nanos))
}
