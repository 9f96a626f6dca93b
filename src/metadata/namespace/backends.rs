use std::ops::ControlFlow;

use super::stats::TrustedSince;
use super::{Namespace, Tx};
use crate::metadata::records::{damaged, decode, encode};
use crate::metadata::{BackendRecord, ContentRecord, MetadataError, Reader, keys};
use crate::types::{BackendId, Timestamp};

fn key(id: &BackendId) -> Vec<u8> {
    [&[keys::BACKEND], id.as_str().as_bytes()].concat()
}

/// Since when each backend is trusted; a row that does not decode counts as none.
pub(super) fn trusted_since(reader: &dyn Reader) -> Result<TrustedSince, MetadataError> {
    let mut since = TrustedSince::new();
    reader.scan(&[keys::BACKEND], &[keys::BACKEND + 1], &mut |key, value| {
        let id = std::str::from_utf8(&key[1..]).ok().and_then(|id| id.parse().ok());
        if let (Some(id), Ok(record)) = (id, decode::<BackendRecord>(key, value)) {
            since.insert(id, record.trusted_since);
        }
        ControlFlow::Continue(())
    })?;
    Ok(since)
}

impl Tx<'_> {
    /// A content's row changes: the counters follow. Rows of backends are read for that,
    /// so that a change of trust and one of copies do not cross.
    pub(super) fn count_content(
        &mut self,
        before: Option<&ContentRecord>,
        after: Option<&ContentRecord>,
    ) -> Result<(), MetadataError> {
        let records = before.into_iter().chain(after);
        for copy in records.flat_map(ContentRecord::good_copies) {
            if !self.trusted_since.contains_key(&copy.backend) {
                let record: Option<BackendRecord> = self.get(&key(&copy.backend))?;
                let since = record.map_or_else(Timestamp::default, |record| record.trusted_since);
                self.trusted_since.insert(copy.backend.clone(), since);
            }
        }
        self.delta.content(before, after, &self.trusted_since);
        Ok(())
    }
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

    /// Keeps what is known of a backend; `None` forgets it, after its copies. Where the
    /// time moves since which it is trusted, its copies were all looked at before.
    ///
    /// # Errors
    /// `Storage`, `Contended`.
    pub fn set_backend_record(
        &self,
        id: &BackendId,
        record: Option<&BackendRecord>,
    ) -> Result<(), MetadataError> {
        self.run(|tx| {
            let before: Option<BackendRecord> = tx.get(&key(id))?;
            let since = |record: Option<&BackendRecord>| record.map(|record| record.trusted_since);
            if since(before.as_ref()).unwrap_or_default() != since(record).unwrap_or_default() {
                tx.delta.distrusted.push(id.clone());
                tx.delta.touched = true;
            }
            if let Some(record) = record {
                tx.inner.put(&key(id), &encode(record));
            } else {
                tx.delta.forgotten.push(id.clone());
                tx.delta.touched = true;
                tx.inner.delete(&key(id));
            }
            Ok(())
        })
    }
}
