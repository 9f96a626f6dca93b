//! What packs are written as. A place may have packs of each form: their names tell.

use std::ops::Range;

use bytes::Bytes;
use uuid::Uuid;

use super::label::{Bad, Label, Read, Row, Sealed};
use super::page::{self, Page};
use super::{car, parquet};
use crate::types::{Block, Cid, Timestamp, cid};

/// A kind of file in which blocks share an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backends) enum Form {
    /// `CARv2`, which says at its beginning what is in it.
    Car,
    /// Parquet, which says so at its end.
    Parquet,
}

impl Form {
    /// Its name, which is also the scheme of a directory of such archives, and how names of
    /// its packs end.
    pub fn name(self) -> &'static str {
        match self {
            Self::Car => "car",
            Self::Parquet => "parquet",
        }
    }

    /// The form of a pack, or of a scheme.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Car, Self::Parquet].into_iter().find(|form| form.name() == name)
    }

    /// The form of a pack with this name; a CAR for any other name.
    pub(super) fn of(pack: &str) -> Self {
        pack.rsplit_once('.').and_then(|(_, end)| Self::named(end)).unwrap_or(Self::Car)
    }

    /// Makes a pack of distinct blocks, in their order, called `id`.
    ///
    /// # Errors
    /// When they do not fit; of the encoders, which do not fail.
    pub(super) fn seal_as(
        self,
        backend: Uuid,
        name: (Uuid, i64),
        blocks: &[Block],
    ) -> Result<Sealed, Bad> {
        match self {
            Self::Car => car::seal(backend, name, blocks),
            Self::Parquet => parquet::seal(backend, name, blocks),
        }
    }

    /// The same, called as no other one.
    ///
    /// # Errors
    /// As there.
    pub(super) fn seal(
        self,
        backend: Uuid,
        now: Timestamp,
        blocks: &[Block],
    ) -> Result<Sealed, Bad> {
        self.seal_as(backend, (Uuid::new_v4(), now.seconds), blocks)
    }

    /// How much of a pack mostly tells what is in it.
    pub(super) fn usual(self) -> u64 {
        match self {
            Self::Car => car::HEAD,
            Self::Parquet => parquet::TAIL,
        }
    }

    /// So much of an object of `len` bytes, from the end at which its label lies.
    pub(super) fn part(self, wanted: u64, len: u64) -> Range<u64> {
        let wanted = wanted.min(len);
        match self {
            Self::Car => 0..wanted,
            Self::Parquet => len - wanted..len,
        }
    }

    /// Reads what a pack of `len` bytes is from such a part of it.
    ///
    /// # Errors
    /// With what is wrong about it.
    pub(super) fn read_label(self, part: &[u8], len: u64) -> Result<Read, Bad> {
        match self {
            Self::Car => car::read_label(part),
            Self::Parquet => parquet::read_label(part, len),
        }
    }

    /// What is in a pack whose label does not say it.
    pub(super) fn scan(self, backend: Uuid, bytes: &[u8]) -> Label {
        match self {
            Self::Car => car::scan(backend, bytes),
            Self::Parquet => parquet::scan(backend, bytes),
        }
    }

    /// Whether a block is within an object of `len` bytes, as far as its row tells.
    pub(super) fn is_within(self, row: &Row, len: u64) -> bool {
        match self {
            Self::Car => row.offset + u64::from(row.len) <= len,
            // A page may be shorter than its block.
            Self::Parquet => row.offset < len,
        }
    }

    /// What is read of a pack for a part of a block that lies at `offset` and has `len` bytes.
    pub(super) fn range(self, (offset, len): (u64, u32), part: &Range<u64>) -> Range<u64> {
        match self {
            Self::Car => offset + part.start..offset + part.end,
            Self::Parquet => offset..offset + page::most(len),
        }
    }

    /// The part of a block from what was read for it. Only a part is hashed here, as far as
    /// its block is at hand: a whole one is by whoever asked for it.
    ///
    /// # Errors
    /// When the bytes are none of this block.
    pub(super) fn data(
        self,
        read: Bytes,
        (id, len): (&Cid, u32),
        part: &Range<u64>,
    ) -> Result<Bytes, Bad> {
        let wanted = part.start as usize..part.end as usize;
        if self == Self::Car {
            return if read.len() == wanted.len() { Ok(read) } else { Err("it is cut off".into()) };
        }
        let block = Page::read(&read)?.value(len as usize)?;
        if block.len() != len as usize {
            return Err(format!("block {id} has {} bytes there, not {len}", block.len()));
        }
        if wanted.len() < block.len() && cid::verify(id, &block) != cid::Verdict::Match {
            return Err(format!("block {id} does not match its hash"));
        }
        Ok(block.slice(wanted))
    }
}
