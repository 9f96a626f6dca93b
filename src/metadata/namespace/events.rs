use std::ops::{ControlFlow, Range};

use serde::{Deserialize, Serialize};

use super::{Namespace, Tx};
use crate::metadata::records::{Stored, decode, encode};
use crate::metadata::{Commit, Engine, EventKind, MetadataError, Reader, Severity, keys};
use crate::types::Timestamp;

/// Events that wait to be sealed at most; while none can be, the oldest make room
/// (they are an audit, not the truth).
const UNSEALED_MAX: u64 = 65_536;
/// Events that one transaction removes.
const PAGE: u64 = 4096;
/// Numbers passed over after a recovery: what was numbered since the checkpoint is
/// not known, and who remembers a number must not miss what has it again.
const GAP: u64 = 1 << 20;

impl Stored for EventRecord {
    const VERSION: u8 = 2;
    /// `severity`: info; `backend`: none; `count`: one.
    const ADDED: &'static [&'static [u8]] = &[&[0, 0, 1]];
}

/// Something that happened to the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// When.
    pub at: Timestamp,
    /// What: a name of [`EventKind`], or of a newer version's.
    pub kind: String,
    /// To what: a CID, a path, a backend's id, an alarm.
    pub subject: String,
    /// For people.
    pub detail: String,
    /// How much it matters.
    pub severity: Severity,
    /// At which backend; empty: at none.
    pub backend: String,
    /// How many of the kind it stands for; mostly 1.
    pub count: u64,
}

impl EventRecord {
    /// An event of a kind, with its severity.
    #[must_use]
    pub fn new(at: Timestamp, kind: EventKind, subject: impl Into<String>) -> Self {
        Self {
            at,
            kind: kind.as_str().to_owned(),
            subject: subject.into(),
            detail: String::new(),
            severity: kind.severity(),
            backend: String::new(),
            count: 1,
        }
    }

    /// With words for people.
    #[must_use]
    pub fn detail(self, detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    /// At a backend.
    #[must_use]
    pub fn backend(self, backend: impl Into<String>) -> Self {
        Self { backend: backend.into(), ..self }
    }
}

/// The number after the last event, never one that a checkpoint or a file has taken;
/// and how many are rows.
pub(super) fn rows_from(
    engine: &dyn Engine,
    sealed: u64,
    taken: u64,
) -> Result<(u64, u64), MetadataError> {
    let (mut next, mut count) = (taken.max(sealed), 0);
    let start = keys::number(keys::EVENT, sealed);
    engine.snapshot()?.scan(&start, &[keys::EVENT + 1], &mut |key, _| {
        next = keys::number_in(key).map_or(next, |number| next.max(number.saturating_add(1)));
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok((next, count))
}

/// The keys of the oldest rows.
fn oldest(reader: &dyn Reader, from: u64, count: u64) -> Result<Vec<Vec<u8>>, MetadataError> {
    let mut found = Vec::new();
    if count == 0 {
        return Ok(found);
    }
    reader.scan(&keys::number(keys::EVENT, from), &[keys::EVENT + 1], &mut |key, _| {
        found.push(key.to_vec());
        if (found.len() as u64) < count {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(found)
}

/// Events of a snapshot; at most [`UNSEALED_MAX`].
pub(super) fn between(
    reader: &dyn Reader,
    from: u64,
    to: u64,
    visit: &mut dyn FnMut(u64, EventRecord) -> Result<(), MetadataError>,
) -> Result<(), MetadataError> {
    let (start, end) = (keys::number(keys::EVENT, from), keys::number(keys::EVENT, to));
    let mut outcome = Ok(());
    reader.scan(&start, &end, &mut |key, value| {
        let number = keys::number_in(key).unwrap_or(0);
        outcome = decode(key, value).and_then(|event| visit(number, event));
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    outcome
}

impl Namespace {
    /// Records an event for the next checkpoint.
    ///
    /// # Errors
    /// `Storage`.
    pub fn append_event(&self, event: &EventRecord) -> Result<(), MetadataError> {
        self.append_events(std::slice::from_ref(event)).map(drop)
    }

    /// Records events in one transaction; how many older ones had to make room.
    ///
    /// # Errors
    /// `Storage`; then none is recorded.
    pub fn append_events(&self, events: &[EventRecord]) -> Result<u64, MetadataError> {
        self.engine.admit()?;
        // Numbered and committed under one lock: a checkpoint's snapshot has
        // every event below the number it notes.
        let mut sequenced = self.sequenced.lock();
        let mut inner = self.engine.begin()?;
        let mut next = sequenced.event;
        for event in events {
            inner.put(&keys::number(keys::EVENT, next), &encode(event));
            next += 1;
        }
        let rows = sequenced.event_rows + events.len() as u64;
        let excess = rows.saturating_sub(UNSEALED_MAX).min(sequenced.event_rows);
        let dropped = oldest(self.engine.snapshot()?.as_ref(), sequenced.events_sealed, excess)?;
        dropped.iter().for_each(|key| inner.delete(key));
        let mut sealed = sequenced.events_sealed;
        if let Some(last) = dropped.last().and_then(|key| keys::number_in(key)) {
            sealed = last.saturating_add(1);
            inner.put(keys::EVENTS_SEALED, &encode(&sealed));
        }
        match inner.commit()? {
            Commit::Done => {
                let dropped = dropped.len() as u64;
                sequenced.event = next;
                sequenced.events_sealed = sealed;
                sequenced.event_rows = rows - dropped;
                Ok(dropped)
            }
            Commit::Conflict => Err(MetadataError::Contended),
        }
    }

    /// Numbers of the events that are rows: the first one that is not sealed, and
    /// the one after the last.
    pub fn event_numbers(&self) -> Range<u64> {
        let sequenced = self.sequenced.lock();
        sequenced.events_sealed..sequenced.event
    }

    /// How many events are rows.
    pub fn event_rows(&self) -> u64 {
        self.sequenced.lock().event_rows
    }

    /// Visits the rows of events from a number on, as of one moment.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn visit_events(
        &self,
        from: u64,
        visit: &mut dyn FnMut(u64, EventRecord) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        let (snapshot, sealed) = (self.engine.snapshot()?, self.event_numbers().start);
        let mut outcome = Ok(());
        let start = keys::number(keys::EVENT, from.max(sealed));
        snapshot.scan(&start, &[keys::EVENT + 1], &mut |key, value| {
            let number = keys::number_in(key).unwrap_or(0);
            match decode(key, value) {
                Ok(event) => visit(number, event),
                Err(error) => {
                    outcome = Err(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        outcome
    }

    /// The events below `end` are in durable files: their rows go.
    ///
    /// # Errors
    /// `Storage`.
    pub fn events_sealed(&self, end: u64) -> Result<(), MetadataError> {
        let start = {
            let mut sequenced = self.sequenced.lock();
            // A tree that went back in time: no number comes twice.
            sequenced.event = sequenced.event.max(end);
            let start = sequenced.events_sealed;
            sequenced.events_sealed = start.max(end);
            start
        };
        let mut page = Vec::new();
        self.engine.snapshot()?.scan(
            &keys::number(keys::EVENT, start),
            &keys::number(keys::EVENT, end),
            &mut |key, _| {
                page.push(key.to_vec());
                ControlFlow::Continue(())
            },
        )?;
        for keys in page.chunks(PAGE as usize) {
            self.run(|tx: &mut Tx<'_>| {
                keys.iter().for_each(|key| tx.inner.delete(key));
                Ok(())
            })?;
            let mut sequenced = self.sequenced.lock();
            sequenced.event_rows = sequenced.event_rows.saturating_sub(keys.len() as u64);
        }
        if start < end {
            self.run(|tx| {
                tx.inner.put(keys::EVENTS_SEALED, &encode(&end));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Takes up the events of a recovered checkpoint that no file has; `sealed` is
    /// the number after those of files. Later numbers are new.
    ///
    /// # Errors
    /// Of the iterator; `Storage`.
    pub fn load_events(
        &self,
        sealed: u64,
        events: &mut dyn Iterator<Item = Result<(u64, EventRecord), MetadataError>>,
    ) -> Result<u64, MetadataError> {
        let sealed = sealed.max(1);
        let (mut next, mut count) = (sealed, 0);
        loop {
            let page: Vec<(u64, EventRecord)> =
                events.take(PAGE as usize).collect::<Result<_, _>>()?;
            if page.is_empty() {
                break;
            }
            let of_rows = || page.iter().filter(|(number, _)| *number >= sealed);
            self.run(|tx| {
                for (number, event) in of_rows() {
                    tx.inner.put(&keys::number(keys::EVENT, *number), &encode(event));
                }
                Ok(())
            })?;
            next = of_rows().fold(next, |next, (number, _)| next.max(number.saturating_add(1)));
            count += of_rows().count() as u64;
        }
        let next = next.saturating_add(GAP);
        // Kept by the first event, which has it: see `rows_from`.
        self.run(|tx| {
            tx.inner.put(keys::EVENTS_SEALED, &encode(&sealed));
            Ok(())
        })?;
        let mut sequenced = self.sequenced.lock();
        sequenced.events_sealed = sealed;
        sequenced.event = sequenced.event.max(next);
        sequenced.event_rows = count;
        Ok(count)
    }
}

/// What a layer above keeps in one row, in a form that it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NoteRecord {
    /// JSON; see `src/docs/format.md`.
    pub json: Vec<u8>,
}

impl Stored for NoteRecord {}

impl Namespace {
    fn store_note(&self, key: &[u8], json: &[u8]) -> Result<(), MetadataError> {
        let record = encode(&NoteRecord { json: json.to_vec() });
        self.run(|tx| {
            tx.inner.put(key, &record);
            Ok(())
        })
    }

    fn stored_note(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        let value = self.engine.get(key)?;
        value.map(|value| decode::<NoteRecord>(key, &value).map(|note| note.json)).transpose()
    }

    /// Keeps the alarms that hold for the next life of the volume.
    ///
    /// # Errors
    /// `Storage`.
    pub fn store_alarms(&self, json: &[u8]) -> Result<(), MetadataError> {
        self.store_note(keys::ALARMS, json)
    }

    /// What [`Namespace::store_alarms`] kept.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn stored_alarms(&self) -> Result<Option<Vec<u8>>, MetadataError> {
        self.stored_note(keys::ALARMS)
    }

    /// Keeps what was read and asked of backends in the running month.
    ///
    /// # Errors
    /// `Storage`.
    pub fn store_spending(&self, json: &[u8]) -> Result<(), MetadataError> {
        self.store_note(keys::SPENT, json)
    }

    /// What [`Namespace::store_spending`] kept.
    ///
    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn stored_spending(&self) -> Result<Option<Vec<u8>>, MetadataError> {
        self.stored_note(keys::SPENT)
    }
}
