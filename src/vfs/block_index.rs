//! The store's index in the metadata engine: one log, one flush for both.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::metadata::{Engine, MetadataError, keys, transact};
use crate::store::{BlockIndex, IndexChange, IndexMark, Location, StoreError};
use crate::types::{Cid, SegmentId};

/// Changes of one transaction.
const PAGE: usize = 4096;

/// A block index over an engine. Keys: `B` cid, `P` segment; see `metadata::keys`.
/// A location is 20 bytes: segment, offset (u64 BE), length (u32 BE).
pub struct EngineIndex {
    /// Where the rows are.
    pub engine: Arc<dyn Engine>,
}

fn of_engine(error: MetadataError) -> StoreError {
    match error {
        MetadataError::NoSpace => StoreError::NoSpace,
        other => failed(other),
    }
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Index(error.to_string())
}

fn encode(place: &Location) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20);
    bytes.extend_from_slice(&place.segment.0.to_be_bytes());
    bytes.extend_from_slice(&place.offset.to_be_bytes());
    bytes.extend_from_slice(&place.len.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Result<Location, StoreError> {
    let part =
        |range: std::ops::Range<usize>| bytes.get(range).ok_or_else(|| failed("a short location"));
    Ok(Location {
        segment: SegmentId(u64::from_be_bytes(part(0..8)?.try_into().map_err(failed)?)),
        offset: u64::from_be_bytes(part(8..16)?.try_into().map_err(failed)?),
        len: u32::from_be_bytes(part(16..20)?.try_into().map_err(failed)?),
    })
}

impl BlockIndex for EngineIndex {
    fn get(&self, cid: &Cid) -> Result<Option<Location>, StoreError> {
        let value = self.engine.get(&keys::of_cid(keys::BLOCK, cid)).map_err(failed)?;
        value.map(|value| decode(&value)).transpose()
    }

    fn apply(&self, changes: &[IndexChange]) -> Result<(), StoreError> {
        // A crash between two pages leaves a prefix: blocks without a row that
        // refers to them.
        for page in changes.chunks(PAGE) {
            transact(self.engine.as_ref(), |tx| {
                for change in page {
                    match change {
                        IndexChange::Put(cid, place) => {
                            tx.put(&keys::of_cid(keys::BLOCK, cid), &encode(place));
                        }
                        IndexChange::Remove(cid) => tx.delete(&keys::of_cid(keys::BLOCK, cid)),
                        IndexChange::Mark(segment, 0) => {
                            tx.delete(&keys::number(keys::PACK, segment.0));
                        }
                        IndexChange::Mark(segment, len) => {
                            tx.put(&keys::number(keys::PACK, segment.0), &len.to_be_bytes());
                        }
                    }
                }
                Ok(())
            })
            .map_err(of_engine)?;
        }
        Ok(())
    }

    fn page(&self, after: Option<&Cid>, limit: usize) -> Result<Vec<(Cid, Location)>, StoreError> {
        let start = after.map_or_else(
            || vec![keys::BLOCK],
            |cid| {
                let mut key = keys::of_cid(keys::BLOCK, cid);
                key.push(0);
                key
            },
        );
        let mut rows = Vec::new();
        let snapshot = self.engine.snapshot().map_err(failed)?;
        snapshot
            .scan(&start, &[keys::BLOCK + 1], &mut |key, value| {
                rows.push((key[1..].to_vec(), value.to_vec()));
                if rows.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .map_err(failed)?;
        rows.iter()
            .map(|(key, value)| {
                Ok((Cid::try_from(key.as_slice()).map_err(failed)?, decode(value)?))
            })
            .collect()
    }

    fn marks(&self) -> Result<Vec<IndexMark>, StoreError> {
        let mut marks = Vec::new();
        let snapshot = self.engine.snapshot().map_err(failed)?;
        snapshot
            .scan(&[keys::PACK], &[keys::PACK + 1], &mut |key, value| {
                let len = value.try_into().map(u64::from_be_bytes);
                if let (Some(id), Ok(len)) = (keys::number_in(key), len) {
                    marks.push(IndexMark { segment: SegmentId(id), len });
                }
                ControlFlow::Continue(())
            })
            .map_err(failed)?;
        Ok(marks)
    }
}
