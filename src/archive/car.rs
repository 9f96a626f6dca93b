//! CARv1 and CARv2, read strictly from a stream (ipld.io/specs/transport/car).
//!
//! Every length and varint is checked before memory is taken for it, and every
//! block is hashed. A CARv2's payload ends where its header says; padding is
//! legal; its index is read by [`super::Archive`] only when asked to.

use std::io::Read;

use bytes::Bytes;
use ipld_core::cid::Cid as IpldCid;
use serde::{Deserialize, Serialize};

use super::ArchiveError;
use crate::types::{Block, Cid, cid};

/// The 11 bytes that a CARv2 begins with: a header of version 2.
pub(super) const PRAGMA: &[u8] =
    &[0x0a, 0xa1, 0x67, b'v', b'e', b'r', b's', b'i', b'o', b'n', 0x02];
/// Bytes of the CARv2 header behind the pragma.
pub(super) const V2_HEADER: u64 = 40;
/// Longest header that is read: some 800,000 roots (go-car's limit).
const MAX_HEADER: u64 = 32 << 20;
/// Longest CID in a section: identity digests have up to 128 bytes.
const MAX_CID: u64 = 160;

#[derive(Serialize, Deserialize)]
struct HeaderV1 {
    #[serde(default)]
    roots: Option<Vec<IpldCid>>,
    version: u64,
}

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarHeader {
    /// 1 or 2.
    pub version: u8,
    /// The roots.
    pub roots: Vec<Cid>,
    /// Offset of the CARv1 payload.
    pub data_offset: u64,
    /// Its length, when the header says it (v2).
    pub data_size: Option<u64>,
    /// Offset of the index; 0 is none.
    pub index_offset: u64,
}

/// One block of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its CID.
    pub cid: Cid,
    /// Offset of the section (its varint) from the start of the archive.
    pub offset: u64,
    /// Its bytes, hashed and found right.
    pub data: Bytes,
}

/// Encodes a CARv1 header, its length included.
pub(super) fn encode_header(roots: &[Cid]) -> Result<Vec<u8>, ArchiveError> {
    let header = HeaderV1 { roots: Some(roots.to_vec()), version: 1 };
    let body =
        serde_ipld_dagcbor::to_vec(&header).map_err(|e| ArchiveError::NotACar(e.to_string()))?;
    let mut buffer = unsigned_varint::encode::u64_buffer();
    let mut out = unsigned_varint::encode::u64(body.len() as u64, &mut buffer).to_vec();
    out.extend_from_slice(&body);
    Ok(out)
}

/// Reads a CAR block by block.
pub struct CarReader<R> {
    input: R,
    offset: u64,
    header: CarHeader,
    /// Where the payload ends (v2).
    end: Option<u64>,
}

struct Counted<'r, R> {
    input: &'r mut R,
    offset: &'r mut u64,
}

impl<R: Read> Counted<'_, R> {
    fn exact(&mut self, buf: &mut [u8], inside: &'static str) -> Result<(), ArchiveError> {
        let mut done = 0;
        while done < buf.len() {
            match self.input.read(&mut buf[done..]) {
                Ok(0) => {
                    return Err(ArchiveError::Truncated {
                        offset: *self.offset + done as u64,
                        inside,
                    });
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        *self.offset += buf.len() as u64;
        Ok(())
    }

    /// A minimal varint; `None` at a clean end.
    fn varint(&mut self) -> Result<Option<u64>, ArchiveError> {
        let start = *self.offset;
        let mut value = 0u64;
        for index in 0..10 {
            let mut byte = [0u8];
            if index == 0 {
                loop {
                    match self.input.read(&mut byte) {
                        Ok(0) => return Ok(None),
                        Ok(_) => break,
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                *self.offset += 1;
            } else {
                self.exact(&mut byte, "a varint")?;
            }
            let bad =
                |reason: &str| ArchiveError::Malformed { offset: start, reason: reason.to_owned() };
            if index == 9 {
                return Err(bad("a varint over 63 bits"));
            }
            value |= u64::from(byte[0] & 0x7f) << (7 * index);
            if byte[0] & 0x80 == 0 {
                if byte[0] == 0 && index > 0 {
                    return Err(bad("an over-long varint"));
                }
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// `len` bytes, in steps: a false length does not take memory.
    fn bytes(&mut self, len: u64, inside: &'static str) -> Result<Vec<u8>, ArchiveError> {
        let mut out = Vec::new();
        while (out.len() as u64) < len {
            let from = out.len();
            let step = (len - from as u64).min(1 << 20) as usize;
            out.resize(from + step, 0);
            self.exact(&mut out[from..], inside)?;
        }
        Ok(out)
    }
}

fn roots_of(header: HeaderV1) -> Result<Vec<Cid>, ArchiveError> {
    match header.roots {
        Some(roots) if header.version == 1 => Ok(roots),
        _ => Err(ArchiveError::NotACar(format!("version {} is not 1 or 2", header.version))),
    }
}

impl<R: Read> CarReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// `NotACar`, `Truncated`, `Malformed`.
    pub fn new(mut input: R) -> Result<Self, ArchiveError> {
        let mut offset = 0;
        let mut counted = Counted { input: &mut input, offset: &mut offset };
        let first = Self::header(&mut counted)?;
        if first.version != 2 || first.roots.is_some() {
            let roots = roots_of(first)?;
            let header =
                CarHeader { version: 1, roots, data_offset: 0, data_size: None, index_offset: 0 };
            return Ok(Self { input, offset, header, end: None });
        }
        let fields = counted.bytes(V2_HEADER, "the CARv2 header")?;
        let number = |at: usize| {
            fields[at..at + 8]
                .iter()
                .rev()
                .fold(0u64, |value, byte| (value << 8) | u64::from(*byte))
        };
        let (data_offset, data_size, index_offset) = (number(16), number(24), number(32));
        let bad = |reason: String| ArchiveError::Malformed { offset: PRAGMA.len() as u64, reason };
        let earliest = PRAGMA.len() as u64 + V2_HEADER;
        let end = data_offset
            .checked_add(data_size)
            .ok_or_else(|| bad("the data size overflows".into()))?;
        if data_offset < earliest {
            return Err(bad(format!("the data offset {data_offset} is inside the header")));
        }
        if index_offset != 0 && index_offset < end {
            return Err(bad(format!(
                "the index offset {index_offset} is inside the data, which ends at {end}"
            )));
        }
        let mut padding = data_offset - earliest;
        while padding > 0 {
            let step = padding.min(1 << 16);
            counted.bytes(step, "the padding before the data")?;
            padding -= step;
        }
        let roots = roots_of(Self::header(&mut counted)?)?;
        let header =
            CarHeader { version: 2, roots, data_offset, data_size: Some(data_size), index_offset };
        if offset > end {
            return Err(ArchiveError::Malformed {
                offset,
                reason: "the data size is shorter than its header".into(),
            });
        }
        Ok(Self { input, offset, header, end: Some(end) })
    }

    fn header(counted: &mut Counted<'_, R>) -> Result<HeaderV1, ArchiveError> {
        let len = counted.varint()?.ok_or_else(|| ArchiveError::NotACar("it is empty".into()))?;
        if len == 0 || len > MAX_HEADER {
            return Err(ArchiveError::NotACar(format!("a header of {len} bytes")));
        }
        let body = counted.bytes(len, "the header").map_err(|error| match error {
            ArchiveError::Truncated { .. } => {
                ArchiveError::NotACar("it ends inside its header".into())
            }
            other => other,
        })?;
        serde_ipld_dagcbor::from_slice(&body)
            .map_err(|e| ArchiveError::NotACar(format!("its header: {e}")))
    }

    /// What the archive says of itself.
    pub fn header_of(&self) -> &CarHeader {
        &self.header
    }

    /// The next block, hashed; `None` at the end.
    ///
    /// # Errors
    /// `Truncated`, `Malformed`, `Mismatch`.
    pub fn next_section(&mut self) -> Result<Option<Section>, ArchiveError> {
        let start = self.offset;
        let end = self.end;
        if end.is_some_and(|end| start >= end) {
            return Ok(None);
        }
        let mut counted = Counted { input: &mut self.input, offset: &mut self.offset };
        let bad = |reason: String| ArchiveError::Malformed { offset: start, reason };
        let Some(len) = counted.varint()? else {
            return match end {
                Some(_) => Err(ArchiveError::Truncated { offset: start, inside: "the data" }),
                None => Ok(None),
            };
        };
        if len == 0 {
            return Err(bad("a section of no bytes".into()));
        }
        if len > Block::MAX_LEN as u64 + MAX_CID {
            return Err(bad(format!(
                "a section of {len} bytes; blocks have at most {}",
                Block::MAX_LEN
            )));
        }
        if end.is_some_and(|end| *counted.offset + len > end) {
            return Err(bad("a section that goes beyond the data".into()));
        }
        let body = Bytes::from(counted.bytes(len, "a section")?);
        let mut rest = &body[..];
        let id = Cid::read_bytes(&mut rest)
            .map_err(|e| bad(format!("a CID that does not decode: {e}")))?;
        let data = body.slice(body.len() - rest.len()..);
        if data.len() > Block::MAX_LEN {
            return Err(bad(format!("a block of {} bytes", data.len())));
        }
        match cid::verify(&id, &data) {
            cid::Verdict::Match => Ok(Some(Section { cid: id, offset: start, data })),
            cid::Verdict::Mismatch => Err(ArchiveError::Mismatch { cid: id, offset: start }),
            cid::Verdict::UnknownHash => Err(bad(format!(
                "block {id} has a hash that cannot be checked (0x{:x})",
                id.hash().code()
            ))),
        }
    }

    /// What follows the payload, for the index.
    pub(super) fn into_rest(self) -> (R, u64) {
        (self.input, self.offset)
    }
}
