//! Pages of a Parquet file, as packs have them: of version 1, compressed by zstd, their
//! values required, of variable length and plain.
//!
//! A page is read where the label says that it begins, with nothing else of its file; so
//! its header (Thrift, compact) is read here.

use bytes::Bytes;

use super::label::Bad;

/// No header of such a page is longer.
const HEADER_MAX: u64 = 64;
/// Length of a value before its bytes.
const PREFIX: usize = 4;
/// Types of the compact protocol.
const I32: u8 = 5;
const STRUCT: u8 = 12;
/// Fields of a page's header, and of a data page's header in it.
const KIND: i16 = 1;
const PLAIN_LEN: i16 = 2;
const STORED_LEN: i16 = 3;
const DATA_PAGE: i16 = 5;
const VALUES: i16 = 1;
const ENCODING: i16 = 2;

/// A page with a block of `len` bytes takes no more than so many, however badly it
/// compresses: the bound of zstd, and its header.
pub(super) fn most(len: u32) -> u64 {
    let plain = u64::from(len) + PREFIX as u64;
    plain + plain / 256 + 128 + HEADER_MAX
}

/// A page, not decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page<'b> {
    pub values: usize,
    /// Of its values with their lengths.
    plain_len: usize,
    body: &'b [u8],
    /// Bytes of its header and its body.
    pub len: usize,
}

/// Reads fields of Thrift's compact protocol.
struct Fields<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Fields<'_> {
    fn byte(&mut self) -> Result<u8, Bad> {
        let byte = self.bytes.get(self.at).ok_or("a page's header is cut off")?;
        self.at += 1;
        Ok(*byte)
    }

    /// A number in zigzag.
    fn number(&mut self) -> Result<i64, Bad> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        Err("a number in a page's header is too long".into())
    }

    /// The next field after `last` of a struct, and its type; `None` at its end.
    fn next(&mut self, last: i16) -> Result<Option<(i16, u8)>, Bad> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        let field = match byte >> 4 {
            0 => i16::try_from(self.number()?).map_err(|error| error.to_string())?,
            delta => last + i16::from(delta),
        };
        Ok(Some((field, byte & 0xf)))
    }

    /// The numbers of a struct by their fields; `nested` takes those of other types.
    fn numbers(
        &mut self,
        mut nested: impl FnMut(&mut Self, i16, u8) -> Result<(), Bad>,
    ) -> Result<Vec<(i16, i64)>, Bad> {
        let (mut last, mut found) = (0, Vec::new());
        while let Some((field, kind)) = self.next(last)? {
            if kind == I32 {
                found.push((field, self.number()?));
            } else {
                nested(self, field, kind)?;
            }
            // A struct of these has eight fields at most.
            if found.len() > 16 || !(0..=64).contains(&field) {
                return Err("a page's header has other fields".into());
            }
            last = field;
        }
        Ok(found)
    }
}

fn unknown(_: &mut Fields<'_>, field: i16, kind: u8) -> Result<(), Bad> {
    Err(format!("a page's header has field {field} of type {kind}"))
}

impl<'b> Page<'b> {
    /// The page at the beginning of `bytes`.
    ///
    /// # Errors
    /// When it is none of these, or is cut off.
    pub fn read(bytes: &'b [u8]) -> Result<Self, Bad> {
        let mut fields = Fields { bytes, at: 0 };
        let mut data = Vec::new();
        let page = fields.numbers(|fields, field, kind| match (field, kind) {
            (DATA_PAGE, STRUCT) => {
                data = fields.numbers(unknown)?;
                Ok(())
            }
            _ => unknown(fields, field, kind),
        })?;
        let of = |found: &[(i16, i64)], wanted: i16| {
            let (_, value) = found.iter().find(|(field, _)| *field == wanted)?;
            usize::try_from(*value).ok()
        };
        let (Some(0), Some(plain_len), Some(stored), Some(values), Some(0)) = (
            of(&page, KIND),
            of(&page, PLAIN_LEN),
            of(&page, STORED_LEN),
            of(&data, VALUES),
            of(&data, ENCODING),
        ) else {
            return Err("it is no page of a pack".into());
        };
        let body = fields.at.checked_add(stored).and_then(|end| bytes.get(fields.at..end));
        let body = body.ok_or("a page is cut off")?;
        Ok(Self { values, plain_len, body, len: fields.at + stored })
    }

    /// All values with their lengths, at most so many bytes.
    fn plain(&self, most: usize) -> Result<Vec<u8>, Bad> {
        if self.plain_len > most {
            return Err(format!("a page has {} bytes, and {most} at most", self.plain_len));
        }
        let plain = zstd::bulk::decompress(self.body, self.plain_len);
        let plain = plain.map_err(|error| format!("a page does not decompress: {error}"))?;
        if plain.len() != self.plain_len {
            return Err("a page has another length than its header says".into());
        }
        Ok(plain)
    }

    /// Its one value, of at most so many bytes.
    ///
    /// # Errors
    /// When it has others, or does not decompress to it.
    pub fn value(&self, most: usize) -> Result<Bytes, Bad> {
        let plain = Bytes::from(self.plain(most + PREFIX)?);
        match plain.split_first_chunk::<PREFIX>() {
            Some((len, rest))
                if self.values == 1 && u32::from_le_bytes(*len) as usize == rest.len() =>
            {
                Ok(plain.slice(PREFIX..))
            }
            _ => Err("a page has not one value".into()),
        }
    }

    /// Its values as text, of at most so many bytes together.
    ///
    /// # Errors
    /// When they are none, or do not decompress.
    pub fn texts(&self, most: usize) -> Result<Vec<String>, Bad> {
        let plain = self.plain(most)?;
        let (mut rest, mut texts) = (&plain[..], Vec::new());
        while let Some((len, more)) = rest.split_first_chunk::<PREFIX>() {
            let len = u32::from_le_bytes(*len) as usize;
            let (text, more) = more.split_at_checked(len).ok_or("a text is cut off")?;
            texts.push(std::str::from_utf8(text).map_err(|error| error.to_string())?.to_owned());
            rest = more;
        }
        if !rest.is_empty() || texts.len() != self.values {
            return Err("a page has other values than its header says".into());
        }
        Ok(texts)
    }
}
