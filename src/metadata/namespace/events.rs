use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::{Namespace, Tx};
use crate::metadata::records::{Stored, decode, encode};
use crate::metadata::{Commit, Engine, MetadataError, Reader, keys};
use crate::types::Timestamp;

/// Events that wait for a checkpoint at most; while none can be written, the
/// oldest make room (they are an audit, not the truth).
const EVENTS_MAX: u64 = 4096;

impl Stored for EventRecord {}

/// Something that happened to the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// When.
    pub at: Timestamp,
    /// What: `mount`, `recover`, `backend_added`, `copy_corrupt`, ...
    pub kind: String,
    /// To what: an id, a CID, a path.
    pub subject: String,
    /// For people.
    pub detail: String,
}

/// The number after the last event; never one that a checkpoint has taken.
pub(super) fn next_number(engine: &dyn Engine, taken: u64) -> Result<u64, MetadataError> {
    let mut next = taken;
    let start = keys::number(keys::EVENT, taken);
    engine.snapshot()?.scan(&start, &[keys::EVENT + 1], &mut |key, _| {
        next = keys::number_in(key).map_or(next, |number| number.saturating_add(1));
        ControlFlow::Continue(())
    })?;
    Ok(next)
}

/// Events of a snapshot; at most [`EVENTS_MAX`].
pub(super) fn between(
    reader: &dyn Reader,
    from: u64,
    to: u64,
) -> Result<Vec<(u64, EventRecord)>, MetadataError> {
    let (start, end) = (keys::number(keys::EVENT, from), keys::number(keys::EVENT, to));
    let mut rows = Vec::new();
    reader.scan(&start, &end, &mut |key, value| {
        let number = keys::number_in(key).unwrap_or(0);
        rows.push(decode(key, value).map(|event| (number, event)));
        ControlFlow::Continue(())
    })?;
    rows.into_iter().collect()
}

impl Namespace {
    /// Records an event for the next checkpoint.
    ///
    /// # Errors
    /// `Storage`.
    pub fn append_event(&self, event: &EventRecord) -> Result<(), MetadataError> {
        self.engine.admit()?;
        // Numbered and committed under one lock: a checkpoint's snapshot has
        // every event below the number it notes.
        let mut sequenced = self.sequenced.lock();
        let mut inner = self.engine.begin()?;
        inner.put(&keys::number(keys::EVENT, sequenced.event), &encode(event));
        if let Some(old) = sequenced.event.checked_sub(EVENTS_MAX) {
            inner.delete(&keys::number(keys::EVENT, old));
        }
        match inner.commit()? {
            Commit::Done => sequenced.event += 1,
            Commit::Conflict => return Err(MetadataError::Contended),
        }
        Ok(())
    }

    /// Removes the events below `end`.
    pub(super) fn forget_events(&self, end: u64) -> Result<(), MetadataError> {
        let taken = self.sequenced.lock().events_taken;
        let first = taken.max(end.saturating_sub(EVENTS_MAX));
        self.run(|tx: &mut Tx<'_>| {
            for number in first..end {
                tx.inner.delete(&keys::number(keys::EVENT, number));
            }
            Ok(())
        })
    }
}
