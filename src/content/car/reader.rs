//! Strict reading from a stream: every length and varint is checked before
//! memory is taken for it, and every block is hashed.

use std::io::{BufRead, BufReader, ErrorKind, Read};

use bytes::Bytes;

use super::{CarError, HeaderMap, PRAGMA, V2_DATA_OFFSET, V2_HEADER};
use crate::types::{Block, Cid, cid};

/// Longest header that is read: some 800,000 roots (go-car's limit).
const MAX_HEADER: u64 = 32 << 20;
/// Longest CID in a section: identity digests have up to 128 bytes.
const MAX_CID: u64 = 160;
/// Memory is taken in steps of this, as the bytes really come.
const STEP: u64 = 1 << 20;

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarHeader {
    /// 1 or 2.
    pub version: u8,
    /// The roots.
    pub roots: Vec<Cid>,
    /// Offset of the `CARv1` payload.
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

/// A section whose hash may not match.
pub struct ReadSection {
    /// As it was read.
    pub section: Section,
    /// Of its hash.
    pub verdict: cid::Verdict,
    /// CID and data, as they came.
    pub body: Bytes,
}

/// Reads a CAR block by block.
pub struct CarReader<R> {
    input: Counted<R>,
    header: CarHeader,
    first_section: u64,
    /// Where the payload ends (v2).
    end: Option<u64>,
}

/// An input that knows its offset.
struct Counted<R> {
    input: BufReader<R>,
    offset: u64,
}

impl<R: Read> Counted<R> {
    fn exact(&mut self, buf: &mut [u8], inside: &'static str) -> Result<(), CarError> {
        let mut done = 0;
        while done < buf.len() {
            match self.input.read(&mut buf[done..]) {
                Ok(0) => return Err(CarError::Truncated { offset: self.offset, inside }),
                Ok(n) => {
                    done += n;
                    self.offset += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn at_end(&mut self) -> Result<bool, CarError> {
        loop {
            match self.input.fill_buf() {
                Ok(bytes) => return Ok(bytes.is_empty()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// A minimal varint of at most 63 bits (the unsigned-varint spec).
    fn varint(&mut self) -> Result<u64, CarError> {
        let start = self.offset;
        let bad = |reason: &str| CarError::Malformed { offset: start, reason: reason.to_owned() };
        let mut value = 0u64;
        for index in 0..9 {
            let mut byte = [0u8];
            self.exact(&mut byte, "a length")?;
            value |= u64::from(byte[0] & 0x7f) << (7 * index);
            if byte[0] & 0x80 == 0 {
                return if byte[0] == 0 && index > 0 {
                    Err(bad("an over-long varint"))
                } else {
                    Ok(value)
                };
            }
        }
        Err(bad("a varint over 63 bits"))
    }

    /// `len` bytes, in steps: a false length does not take memory.
    fn bytes(&mut self, len: u64, inside: &'static str) -> Result<Vec<u8>, CarError> {
        let mut out = Vec::new();
        while (out.len() as u64) < len {
            let from = out.len();
            out.resize(from + (len - from as u64).min(STEP) as usize, 0);
            self.exact(&mut out[from..], inside)?;
        }
        Ok(out)
    }

    fn skip(&mut self, mut len: u64, inside: &'static str) -> Result<(), CarError> {
        let mut buffer = [0; 4096];
        while len > 0 {
            let step = len.min(buffer.len() as u64);
            self.exact(&mut buffer[..step as usize], inside)?;
            len -= step;
        }
        Ok(())
    }

    fn header_map(&mut self) -> Result<HeaderMap, CarError> {
        let start = self.offset;
        let len = self.varint()?;
        if len == 0 || len > MAX_HEADER {
            return Err(CarError::NotACar(format!("a header of {len} bytes at offset {start}")));
        }
        // Before waiting for all of it: is it a map at all (dag-cbor, major type 5)?
        let mut first = [0];
        self.exact(&mut first, "the header")?;
        if first[0] >> 5 != 5 {
            return Err(CarError::NotACar(format!("what is at offset {start} is no header")));
        }
        let body = [&first[..], &self.bytes(len - 1, "the header")?].concat();
        serde_ipld_dagcbor::from_slice(&body)
            .map_err(|e| CarError::NotACar(format!("its header at offset {start}: {e}")))
    }
}

fn roots_of(map: HeaderMap) -> Result<Vec<Cid>, CarError> {
    match map {
        HeaderMap { roots: Some(roots), version: 1 } => Ok(roots),
        HeaderMap { roots: None, version: 1 } => {
            Err(CarError::NotACar("its header has no list of roots".into()))
        }
        HeaderMap { version, .. } => {
            Err(CarError::NotACar(format!("version {version} is not known")))
        }
    }
}

impl<R: Read> CarReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// `NotACar`, `Truncated`, `Malformed`.
    pub fn new(input: R) -> Result<Self, CarError> {
        let mut input = Counted { input: BufReader::with_capacity(1 << 17, input), offset: 0 };
        if input.at_end()? {
            return Err(CarError::NotACar("it is empty".into()));
        }
        let first = input.header_map()?;
        if first.version == 2 && first.roots.is_none() {
            return Self::version_2(input);
        }
        let header = CarHeader {
            version: 1,
            roots: roots_of(first)?,
            data_offset: 0,
            data_size: None,
            index_offset: 0,
        };
        let first_section = input.offset;
        Ok(Self { input, header, first_section, end: None })
    }

    fn version_2(mut input: Counted<R>) -> Result<Self, CarError> {
        let at = PRAGMA.len() as u64;
        let bad = |reason: String| CarError::Malformed { offset: at, reason };
        if input.offset != at {
            return Err(CarError::NotACar("its CARv2 pragma is not the one there is".into()));
        }
        let fields = input.bytes(V2_HEADER, "the CARv2 header")?;
        let number = |at: usize| {
            let bytes = fields[at..at + 8].iter().rev();
            bytes.fold(0u64, |value, byte| (value << 8) | u64::from(*byte))
        };
        let (data_offset, data_size, index_offset) = (number(16), number(24), number(32));
        let end = data_offset
            .checked_add(data_size)
            .ok_or_else(|| bad("the data size overflows".into()))?;
        if data_offset < V2_DATA_OFFSET {
            return Err(bad(format!("the data offset {data_offset} is inside the header")));
        }
        if index_offset != 0 && index_offset < end {
            return Err(bad(format!(
                "the index offset {index_offset} is inside the data, which ends at {end}"
            )));
        }
        input.skip(data_offset - V2_DATA_OFFSET, "the padding before the data")?;
        let roots = roots_of(input.header_map()?)?;
        if input.offset > end {
            return Err(bad(format!(
                "the data size {data_size} is shorter than the data's header"
            )));
        }
        let header =
            CarHeader { version: 2, roots, data_offset, data_size: Some(data_size), index_offset };
        let first_section = input.offset;
        Ok(Self { input, header, first_section, end: Some(end) })
    }

    /// What the archive says of itself.
    pub fn header_of(&self) -> &CarHeader {
        &self.header
    }

    /// The next block, hashed; `None` at the end.
    ///
    /// # Errors
    /// `Truncated`, `Malformed`, `Mismatch`.
    pub fn next_section(&mut self) -> Result<Option<Section>, CarError> {
        let Some(ReadSection { section, verdict, .. }) = self.next_unchecked()? else {
            return Ok(None);
        };
        match verdict {
            cid::Verdict::Match => Ok(Some(section)),
            cid::Verdict::Mismatch => {
                Err(CarError::Mismatch { cid: section.cid, offset: section.offset })
            }
            cid::Verdict::UnknownHash => {
                let code = section.cid.hash().code();
                let reason =
                    format!("block {} has a hash of an unknown kind (0x{code:x})", section.cid);
                Err(CarError::Malformed { offset: section.offset, reason })
            }
        }
    }

    /// The next section with the verdict on its hash; `None` at the end.
    ///
    /// # Errors
    /// `Truncated`, `Malformed`, `Io`.
    pub fn next_unchecked(&mut self) -> Result<Option<ReadSection>, CarError> {
        let start = self.input.offset;
        match self.end {
            Some(end) if start >= end => return Ok(None),
            None if self.input.at_end()? => return Ok(None),
            _ => {}
        }
        let bad = |reason: String| CarError::Malformed { offset: start, reason };
        let len = self.input.varint()?;
        if len == 0 {
            return Err(bad("a section of no bytes".into()));
        }
        if len > Block::MAX_LEN as u64 + MAX_CID {
            return Err(bad(format!(
                "a section of {len} bytes; blocks have at most {}",
                Block::MAX_LEN
            )));
        }
        if self.end.is_some_and(|end| self.input.offset + len > end) {
            return Err(bad(format!("a section of {len} bytes goes beyond the data")));
        }
        let body = Bytes::from(self.input.bytes(len, "a section")?);
        let mut rest = &body[..];
        let id = Cid::read_bytes(&mut rest)
            .map_err(|e| bad(format!("a CID that does not decode: {e}")))?;
        let data = body.slice(body.len() - rest.len()..);
        if data.len() > Block::MAX_LEN {
            let reason = format!("block {id} has {} bytes, over {}", data.len(), Block::MAX_LEN);
            return Err(bad(reason));
        }
        let verdict = cid::verify(&id, &data);
        Ok(Some(ReadSection { section: Section { cid: id, offset: start, data }, verdict, body }))
    }

    /// Offset of the first section.
    pub fn first_section(&self) -> u64 {
        self.first_section
    }

    /// After the last section: what follows the padding before the index.
    pub fn index(&mut self) -> Result<&mut dyn Read, CarError> {
        let padding = self.header.index_offset.saturating_sub(self.input.offset);
        self.input.skip(padding, "the padding before the index")?;
        Ok(&mut self.input.input)
    }

    /// Reads what is left; gives its length.
    pub fn drain(&mut self) -> Result<u64, CarError> {
        Ok(std::io::copy(&mut self.input.input, &mut std::io::sink())?)
    }
}
