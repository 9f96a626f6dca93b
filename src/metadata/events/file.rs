//! One sealed file: `events-<first>-<last>.parquet`, numbers of 20 digits. It never
//! changes. `src/docs/format.md`, "Event files", has its columns.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{StringBuilder, TimestampMicrosecondBuilder, UInt64Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{TimestampMicrosecondType, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::{EventQuery, NumberedEvent, Severity};
use crate::metadata::{EventRecord, MetadataError};
use crate::types::Timestamp;

/// The newest format of an event file.
const FORMAT: u32 = 1;
/// Rows that are decoded at a time.
const BATCH_ROWS: usize = 8192;

/// A sealed file, by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventFile {
    /// Number of its first event.
    pub first: u64,
    /// Number of its last event.
    pub last: u64,
    /// Its length.
    pub bytes: u64,
}

/// What a file has, so that it need not be read for what it has not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub kinds: BTreeSet<String>,
    pub backends: BTreeSet<String>,
    pub most_severe: Severity,
    pub earliest: Timestamp,
    pub latest: Timestamp,
}

impl EventFile {
    /// Its name in `events/`; on a backend without the ending.
    #[must_use]
    pub fn name(&self) -> String {
        format!("events-{:020}-{:020}.parquet", self.first, self.last)
    }

    /// The file that a name stands for; `None` for any other name.
    #[must_use]
    pub fn from_name(name: &str, bytes: u64) -> Option<Self> {
        let numbers = name.strip_prefix("events-")?.strip_suffix(".parquet")?;
        let (first, last) = numbers.split_once('-')?;
        if first.len() != 20 || last.len() != 20 {
            return None;
        }
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(Self { first, last, bytes })
    }
}

fn failed(error: impl std::fmt::Display) -> MetadataError {
    MetadataError::Checkpoint(format!("an event file cannot be written: {error}"))
}

fn damaged(path: &Path, reason: impl std::fmt::Display) -> MetadataError {
    MetadataError::Checkpoint(format!(
        "{} is damaged: {reason}; a backend may have it whole, in names volumes/*/events-*",
        path.display()
    ))
}

fn schema() -> Arc<Schema> {
    let text = |name: &str, null| Field::new(name, DataType::Utf8, null);
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("number", DataType::UInt64, false),
        Field::new("time", time, false),
        text("kind", false),
        text("severity", false),
        text("subject", false),
        text("backend", true),
        Field::new("count", DataType::UInt64, false),
        text("detail", false),
    ]))
}

fn micros(at: Timestamp) -> i64 {
    at.seconds.saturating_mul(1_000_000).saturating_add(i64::from(at.nanoseconds / 1000))
}

fn time_of(micros: i64) -> Timestamp {
    let rest = u32::try_from(micros.rem_euclid(1_000_000)).unwrap_or(0);
    Timestamp { seconds: micros.div_euclid(1_000_000), nanoseconds: rest * 1000 }
}

fn summary_of(events: &[NumberedEvent]) -> Summary {
    let records = || events.iter().map(|numbered| &numbered.event);
    // To the microsecond, as a reader of the rows sees them.
    let times = || records().map(|event| time_of(micros(event.at)));
    Summary {
        kinds: records().map(|event| event.kind.clone()).collect(),
        backends: records().map(|event| event.backend.clone()).collect(),
        most_severe: records().map(|event| event.severity).max().unwrap_or_default(),
        earliest: times().min().unwrap_or_default(),
        latest: times().max().unwrap_or_default(),
    }
}

fn batch_of(events: &[NumberedEvent]) -> Result<RecordBatch, MetadataError> {
    let texts = |of: &dyn Fn(&EventRecord) -> &str| -> ArrayRef {
        let mut column = StringBuilder::new();
        events.iter().for_each(|numbered| column.append_value(of(&numbered.event)));
        Arc::new(column.finish())
    };
    let mut numbers = UInt64Builder::new();
    let mut times = TimestampMicrosecondBuilder::new().with_timezone("UTC");
    let mut counts = UInt64Builder::new();
    let mut backends = StringBuilder::new();
    for NumberedEvent { number, event } in events {
        numbers.append_value(*number);
        times.append_value(micros(event.at));
        counts.append_value(event.count);
        backends.append_option(Some(&event.backend).filter(|backend| !backend.is_empty()));
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(numbers.finish()),
        Arc::new(times.finish()),
        texts(&|event| &event.kind),
        texts(&|event| event.severity.as_str()),
        texts(&|event| &event.subject),
        Arc::new(backends.finish()),
        Arc::new(counts.finish()),
        texts(&|event| &event.detail),
    ];
    RecordBatch::try_new(schema(), columns).map_err(failed)
}

/// Writes events, which are in the order of their numbers, into a file of `dir`;
/// `None` when there are none. Durable when it returns.
pub(super) fn write(
    dir: &Path,
    events: &[NumberedEvent],
) -> Result<Option<EventFile>, MetadataError> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(None) };
    let mut file = EventFile { first: first.number, last: last.number, bytes: 0 };
    let summary = summary_of(events);
    let join = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(",");
    let pair = |key: &str, value: String| KeyValue::new(key.to_owned(), value);
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_key_value_metadata(Some(vec![
            pair("cairn.format", FORMAT.to_string()),
            pair("cairn.table", "events".into()),
            pair("cairn.kinds", join(&summary.kinds)),
            pair("cairn.backends", join(&summary.backends)),
            pair("cairn.most_severe", summary.most_severe.as_str().into()),
            pair("cairn.earliest_us", micros(summary.earliest).to_string()),
            pair("cairn.latest_us", micros(summary.latest).to_string()),
        ]))
        .build();
    let path = dir.join(file.name());
    let temporary = path.with_extension("parquet.tmp");
    let out = File::create(&temporary)?;
    let mut writer = ArrowWriter::try_new(out, schema(), Some(properties)).map_err(failed)?;
    writer.write(&batch_of(events)?).map_err(failed)?;
    let out = writer.into_inner().map_err(failed)?;
    out.sync_all()?;
    file.bytes = out.metadata()?.len();
    std::fs::rename(&temporary, &path)?;
    File::open(dir)?.sync_all()?;
    Ok(Some(file))
}

/// Reads what the footer says of a file.
pub(super) fn summary(path: &Path) -> Result<Summary, MetadataError> {
    let metadata = ArrowReaderMetadata::load(&File::open(path)?, ArrowReaderOptions::default())
        .map_err(|e| damaged(path, e))?;
    let pairs = metadata.metadata().file_metadata().key_value_metadata();
    let value = |key: &str| {
        let found = pairs.into_iter().flatten().find(|pair| pair.key == key);
        found
            .and_then(|pair| pair.value.clone())
            .ok_or_else(|| damaged(path, format!("{key} is missing")))
    };
    let format: u32 = value("cairn.format")?.parse().map_err(|e| damaged(path, e))?;
    if format > FORMAT {
        return Err(MetadataError::TooNew { found: format, supported: FORMAT });
    }
    let set = |text: String| text.split(',').map(str::to_owned).collect();
    let time = |key| value(key)?.parse().map(time_of).map_err(|e| damaged(path, e));
    Ok(Summary {
        kinds: set(value("cairn.kinds")?),
        backends: set(value("cairn.backends")?),
        // Of a newer version: nothing is passed over.
        most_severe: Severity::from_name(&value("cairn.most_severe")?).unwrap_or(Severity::Alarm),
        earliest: time("cairn.earliest_us")?,
        latest: time("cairn.latest_us")?,
    })
}

impl Summary {
    /// False: no event of the file is asked for.
    pub fn may_have(&self, query: &EventQuery) -> bool {
        self.kinds.iter().any(|kind| query.wants_kind(kind))
            && query.severity.is_none_or(|least| self.most_severe >= least)
            && query.backend.as_ref().is_none_or(|backend| self.backends.contains(backend))
            && query.since.is_none_or(|since| self.latest >= since)
            && query.until.is_none_or(|until| self.earliest <= until)
    }
}

fn text<'b>(batch: &'b RecordBatch, name: &str) -> Option<&'b StringArray> {
    batch.column_by_name(name)?.as_string_opt::<i32>()
}

fn batches(
    path: &Path,
    only: Option<&str>,
) -> Result<impl Iterator<Item = Result<RecordBatch, MetadataError>> + use<>, MetadataError> {
    let file = File::open(path)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(path, e))?;
    let mask = match only {
        Some(column) => ProjectionMask::columns(builder.parquet_schema(), [column]),
        None => ProjectionMask::all(),
    };
    let reader = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build();
    let reader = reader.map_err(|e| damaged(path, e))?;
    let path = path.to_owned();
    Ok(reader.map(move |batch| batch.map_err(|e| damaged(&path, e))))
}

fn decode(path: &Path, batch: &RecordBatch) -> Result<Vec<NumberedEvent>, MetadataError> {
    let missing = || damaged(path, "a column is missing");
    let column = |name| text(batch, name).ok_or_else(missing);
    let numbers = batch.column_by_name("number").and_then(|c| c.as_primitive_opt::<UInt64Type>());
    let counts = batch.column_by_name("count").and_then(|c| c.as_primitive_opt::<UInt64Type>());
    let times =
        batch.column_by_name("time").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
    let (Some(numbers), Some(counts), Some(times)) = (numbers, counts, times) else {
        return Err(missing());
    };
    let (kinds, severities) = (column("kind")?, column("severity")?);
    let (subjects, details, backends) = (column("subject")?, column("detail")?, column("backend")?);
    let event = |row: usize| NumberedEvent {
        number: numbers.value(row),
        event: EventRecord {
            at: time_of(times.value(row)),
            kind: kinds.value(row).to_owned(),
            subject: subjects.value(row).to_owned(),
            detail: details.value(row).to_owned(),
            // A word of a newer version is at least worth a look.
            severity: Severity::from_name(severities.value(row)).unwrap_or(Severity::Notice),
            backend: if backends.is_null(row) { "" } else { backends.value(row) }.to_owned(),
            count: counts.value(row),
        },
    };
    Ok((0..batch.num_rows()).map(event).collect())
}

/// The events of a file that are asked for.
pub(super) fn read(path: &Path, query: &EventQuery) -> Result<Vec<NumberedEvent>, MetadataError> {
    if query.subject.is_some() {
        // One column tells whether the others are worth it.
        let mut found = false;
        for batch in batches(path, Some("subject"))? {
            let batch = batch?;
            let subjects =
                text(&batch, "subject").ok_or_else(|| damaged(path, "a column is missing"))?;
            found |= subjects.iter().flatten().any(|subject| query.wants_subject(subject));
        }
        if !found {
            return Ok(Vec::new());
        }
    }
    let mut events = Vec::new();
    for batch in batches(path, None)? {
        let all = decode(path, &batch?)?;
        events.extend(all.into_iter().filter(|numbered| {
            query.after.is_none_or(|after| numbered.number > after) && query.wants(&numbered.event)
        }));
    }
    Ok(events)
}

/// Reads a file from end to end: it is whole, and has what its name says.
///
/// # Errors
/// `Io`, `Checkpoint` for damage.
pub fn check_event_file(path: &Path) -> Result<EventFile, MetadataError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let bytes = std::fs::metadata(path)?.len();
    let file = EventFile::from_name(name, bytes)
        .ok_or_else(|| damaged(path, "its name is none of an event file"))?;
    check_events_of(path, &file)?;
    Ok(file)
}

/// The same of a file with another name: it has what `file` says.
///
/// # Errors
/// As there.
pub fn check_events_of(path: &Path, file: &EventFile) -> Result<(), MetadataError> {
    summary(path)?;
    let events = read(path, &EventQuery::default())?;
    let sorted = events.is_sorted_by(|a, b| a.number < b.number);
    let ends = (events.first().map(|e| e.number), events.last().map(|e| e.number));
    if !sorted || ends != (Some(file.first), Some(file.last)) {
        return Err(damaged(path, "it has other events than its name says"));
    }
    Ok(())
}

/// The files of `dir`, the oldest first. What is not finished, or not ours, is left
/// out.
pub(super) fn list(dir: &Path) -> Result<Vec<(EventFile, PathBuf)>, MetadataError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let file = EventFile::from_name(&name.to_string_lossy(), entry.metadata()?.len());
        found.extend(file.map(|file| (file, entry.path())));
    }
    found.sort();
    Ok(found)
}
