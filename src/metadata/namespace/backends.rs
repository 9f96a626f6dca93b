use std::ops::ControlFlow;

use super::Namespace;
use crate::metadata::records::{damaged, decode, encode};
use crate::metadata::{BackendRecord, MetadataError, keys};
use crate::types::BackendId;

fn key(id: &BackendId) -> Vec<u8> {
    [&[keys::BACKEND], id.as_str().as_bytes()].concat()
}

impl Namespace {
    /// What is known of each backend; of one without a row, nothing.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn backend_records(&self) -> Result<Vec<(BackendId, BackendRecord)>, MetadataError> {
        let mut rows = Vec::new();
        let (start, end) = ([keys::BACKEND], [keys::BACKEND + 1]);
        self.engine.snapshot()?.scan(&start, &end, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        let row = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let id = std::str::from_utf8(&key[1..]).ok().and_then(|id| id.parse().ok());
            let id = id.ok_or_else(|| damaged(key, "it names no backend"))?;
            Ok((id, decode(key, value)?))
        };
        rows.iter().map(row).collect()
    }

    /// Whether the user holds the whole queue.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn is_queue_paused(&self) -> Result<bool, MetadataError> {
        Ok(self.engine.get(keys::PAUSED)?.is_some())
    }

    /// Holds the whole queue, or lets it go on.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn set_queue_paused(&self, paused: bool) -> Result<(), MetadataError> {
        self.run(|tx| {
            if paused {
                tx.inner.put(keys::PAUSED, &[1]);
            } else {
                tx.inner.delete(keys::PAUSED);
            }
            Ok(())
        })
    }

    /// Whether the local store was a cache when this was last noted: then no content's
    /// record has a copy there.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn is_cache_noted(&self) -> Result<bool, MetadataError> {
        Ok(self.engine.get(keys::CACHE)?.is_some())
    }

    /// Notes what the local store is from now on.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn note_cache(&self, cache: bool) -> Result<(), MetadataError> {
        self.run(|tx| {
            if cache {
                tx.inner.put(keys::CACHE, &[1]);
            } else {
                tx.inner.delete(keys::CACHE);
            }
            Ok(())
        })
    }

    /// Keeps what is known of a backend; `None` forgets it.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn set_backend_record(
        &self,
        id: &BackendId,
        record: Option<&BackendRecord>,
    ) -> Result<(), MetadataError> {
        self.run(|tx| {
            match record {
                Some(record) => tx.inner.put(&key(id), &encode(record)),
                None => tx.inner.delete(&key(id)),
            }
            Ok(())
        })
    }
}
