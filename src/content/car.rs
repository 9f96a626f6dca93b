//! `CARv1` and `CARv2` on the wire (<https://ipld.io/specs/transport/car>).
//!
//! The written spec of the v2 index is not what go-car writes: `index` follows
//! go-car, whose files are the ones that exist.

mod error;
mod index;
mod reader;
mod writer;

pub use self::error::CarError;
pub use self::index::{IndexRow, read_index, write_index};
pub use self::reader::{CarHeader, CarReader, ReadSection, Section};
pub use self::writer::{
    encode_header, put_section, put_section_head, put_v2_header, section_len, varint_len,
};

use ipld_core::cid::Cid as IpldCid;
use serde::{Deserialize, Serialize};

/// The 11 bytes that a `CARv2` begins with: a header of version 2.
const PRAGMA: &[u8] = &[0x0a, 0xa1, 0x67, b'v', b'e', b'r', b's', b'i', b'o', b'n', 0x02];
/// Bytes of the `CARv2` header behind the pragma.
const V2_HEADER: u64 = 40;
/// Where the data of a `CARv2` begins at the earliest, and where we put it.
pub const V2_DATA_OFFSET: u64 = PRAGMA.len() as u64 + V2_HEADER;

/// The dag-cbor map of a `CARv1` header, in its canonical order.
#[derive(Serialize, Deserialize)]
struct HeaderMap {
    #[serde(default)]
    roots: Option<Vec<IpldCid>>,
    version: u64,
}
