use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder, BinaryBuilder, BooleanBuilder, Int64Builder, NullBufferBuilder, StringBuilder,
    UInt32Builder, UInt64Builder,
};
use arrow_array::{ArrayRef, RecordBatch, StructArray};
use arrow_schema::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::super::{Change, MetadataError};
use super::tables::{Cell, Kind, Row, Table, rows_of};
use crate::runtime::failpoint;

/// Rows that are held before they are encoded.
const BATCH_ROWS: usize = 1024;
/// Rows of a Parquet row group: what a reader skips or reads at a time.
const GROUP_ROWS: usize = 65_536;
/// Bytes of a row group that is being made: a base has six.
const GROUP_BYTES: usize = 2 << 20;
/// Bytes of a page, and of a dictionary: each of a delta's 60 columns holds both.
const PAGE_BYTES: usize = 64 << 10;

/// A file that was written and made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// Where.
    pub path: PathBuf,
    /// The table (`delta` for a delta).
    pub table: String,
    /// Rows in it.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
}

fn failed(error: impl std::fmt::Display) -> MetadataError {
    MetadataError::Checkpoint(format!("cannot be written: {error}"))
}

fn data_type(kind: Kind) -> DataType {
    match kind {
        Kind::U64 => DataType::UInt64,
        Kind::U32 => DataType::UInt32,
        Kind::I64 => DataType::Int64,
        Kind::Text => DataType::Utf8,
        Kind::Bytes => DataType::Binary,
        Kind::Bool => DataType::Boolean,
    }
}

pub(super) fn fields(table: Table) -> Fields {
    table.columns().iter().map(|(name, kind)| Field::new(*name, data_type(*kind), true)).collect()
}

enum Builder {
    U64(UInt64Builder),
    U32(UInt32Builder),
    I64(Int64Builder),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Bool(BooleanBuilder),
}

impl Builder {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::U64 => Self::U64(UInt64Builder::new()),
            Kind::U32 => Self::U32(UInt32Builder::new()),
            Kind::I64 => Self::I64(Int64Builder::new()),
            Kind::Text => Self::Text(StringBuilder::new()),
            Kind::Bytes => Self::Bytes(BinaryBuilder::new()),
            Kind::Bool => Self::Bool(BooleanBuilder::new()),
        }
    }

    /// A cell of another type than the column's is a null: the row's encoder
    /// and the columns are next to each other in `tables`, and tested together.
    fn push(&mut self, cell: Option<&Cell>) {
        match (self, cell) {
            (Self::U64(b), Some(Cell::U64(value))) => b.append_value(*value),
            (Self::U32(b), Some(Cell::U32(value))) => b.append_value(*value),
            (Self::I64(b), Some(Cell::I64(value))) => b.append_value(*value),
            (Self::Text(b), Some(Cell::Text(value))) => b.append_value(value),
            (Self::Bytes(b), Some(Cell::Bytes(value))) => b.append_value(value),
            (Self::Bool(b), Some(Cell::Bool(value))) => b.append_value(*value),
            (Self::U64(b), _) => b.append_null(),
            (Self::U32(b), _) => b.append_null(),
            (Self::I64(b), _) => b.append_null(),
            (Self::Text(b), _) => b.append_null(),
            (Self::Bytes(b), _) => b.append_null(),
            (Self::Bool(b), _) => b.append_null(),
        }
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::U64(mut b) => ArrayBuilder::finish(&mut b),
            Self::U32(mut b) => ArrayBuilder::finish(&mut b),
            Self::I64(mut b) => ArrayBuilder::finish(&mut b),
            Self::Text(mut b) => ArrayBuilder::finish(&mut b),
            Self::Bytes(mut b) => ArrayBuilder::finish(&mut b),
            Self::Bool(mut b) => ArrayBuilder::finish(&mut b),
        }
    }
}

fn columns<'r>(table: Table, rows: impl Iterator<Item = Option<&'r Row>>) -> Vec<ArrayRef> {
    let mut builders: Vec<Builder> =
        table.columns().iter().map(|(_, kind)| Builder::new(*kind)).collect();
    for row in rows {
        for (index, builder) in builders.iter_mut().enumerate() {
            builder.push(row.and_then(|row| row.get(index)));
        }
    }
    builders.into_iter().map(Builder::finish).collect()
}

fn properties(table: &str, sequence: u64) -> WriterProperties {
    let pair =
        |key: &str, value: String| parquet::file::metadata::KeyValue::new(key.to_owned(), value);
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_data_page_size_limit(PAGE_BYTES)
        .set_dictionary_page_size_limit(PAGE_BYTES)
        .set_key_value_metadata(Some(vec![
            pair("cairn.format", "1".into()),
            pair("cairn.table", table.to_owned()),
            pair("cairn.sequence", sequence.to_string()),
        ]))
        .build()
}

/// A file under a temporary name until it is whole and durable.
struct Target {
    temporary: PathBuf,
    path: PathBuf,
    writer: ArrowWriter<File>,
}

impl Target {
    fn create(
        path: PathBuf,
        schema: Schema,
        table: &str,
        sequence: u64,
    ) -> Result<Self, MetadataError> {
        let temporary = path.with_extension("parquet.tmp");
        let file = File::create(&temporary)?;
        let writer =
            ArrowWriter::try_new(file, Arc::new(schema), Some(properties(table, sequence)))
                .map_err(failed)?;
        Ok(Self { temporary, path, writer })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), MetadataError> {
        self.writer.write(batch).map_err(failed)?;
        if self.writer.memory_size() > GROUP_BYTES {
            self.writer.flush().map_err(failed)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(PathBuf, u64), MetadataError> {
        let file = self.writer.into_inner().map_err(failed)?;
        failpoint::reach("checkpoint.table.written");
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        std::fs::rename(&self.temporary, &self.path)?;
        failpoint::reach("checkpoint.table.named");
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok((self.path, bytes))
    }
}

struct TableFile {
    table: Table,
    target: Target,
    held: Vec<Row>,
    rows: u64,
}

impl TableFile {
    fn push(&mut self, row: Row) -> Result<(), MetadataError> {
        self.held.push(row);
        self.rows += 1;
        if self.held.len() >= BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), MetadataError> {
        let rows = std::mem::take(&mut self.held);
        let arrays = columns(self.table, rows.iter().map(Some));
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields(self.table))), arrays)
            .map_err(failed)?;
        self.target.write(&batch)
    }
}

/// Writes a base: every table into `<dir>/<table>.parquet`. Memory: one batch
/// and one row group a table.
pub struct BaseWriter {
    files: Vec<TableFile>,
}

impl BaseWriter {
    /// Begins the files in `dir`, which exists.
    ///
    /// # Errors
    /// `Io`, `Checkpoint`.
    pub fn create(dir: &Path, sequence: u64) -> Result<Self, MetadataError> {
        let open = |table: Table| {
            let path = dir.join(format!("{}.parquet", table.name()));
            let target = Target::create(path, Schema::new(fields(table)), table.name(), sequence)?;
            Ok(TableFile { table, target, held: Vec::new(), rows: 0 })
        };
        Ok(Self { files: Table::ALL.into_iter().map(open).collect::<Result<_, MetadataError>>()? })
    }

    /// Adds a row; deletions have no place in a base.
    ///
    /// # Errors
    /// `Io`, `Checkpoint`.
    pub fn push(&mut self, change: &Change) -> Result<(), MetadataError> {
        let (table, put, row, copies) = rows_of(change);
        if put {
            self.files[table as usize].push(row)?;
        }
        for copy in copies {
            self.files[Table::Copies as usize].push(copy)?;
        }
        Ok(())
    }

    /// Makes the files durable.
    ///
    /// # Errors
    /// `Io`, `Checkpoint`.
    pub fn finish(self) -> Result<Vec<WrittenFile>, MetadataError> {
        let mut written = Vec::new();
        for mut file in self.files {
            file.flush()?;
            let (path, bytes) = file.target.finish()?;
            written.push(WrittenFile {
                path,
                table: file.table.name().to_owned(),
                rows: file.rows,
                bytes,
            });
        }
        Ok(written)
    }
}

/// Writes a delta: columns `table`, `op` (`put` or `delete`), and one struct
/// column a table, of which each row fills one.
pub struct DeltaWriter {
    target: Target,
    held: Vec<(Table, bool, Row)>,
    rows: u64,
}

fn delta_schema() -> Schema {
    let mut all =
        vec![Field::new("table", DataType::Utf8, false), Field::new("op", DataType::Utf8, false)];
    all.extend(
        Table::ALL.map(|table| Field::new(table.name(), DataType::Struct(fields(table)), true)),
    );
    Schema::new(all)
}

impl DeltaWriter {
    /// Begins the file.
    ///
    /// # Errors
    /// `Io`, `Checkpoint`.
    pub fn create(path: PathBuf, sequence: u64) -> Result<Self, MetadataError> {
        let target = Target::create(path, delta_schema(), "delta", sequence)?;
        Ok(Self { target, held: Vec::new(), rows: 0 })
    }

    /// Adds a row. A content is followed by all of its copies, which replace
    /// those of earlier files.
    ///
    /// # Errors
    /// `Io`, `Checkpoint`.
    pub fn push(&mut self, change: &Change) -> Result<(), MetadataError> {
        let (table, put, row, copies) = rows_of(change);
        let before = self.held.len();
        self.held.push((table, put, row));
        self.held.extend(copies.into_iter().map(|copy| (Table::Copies, true, copy)));
        self.rows += (self.held.len() - before) as u64;
        if self.held.len() >= BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), MetadataError> {
        let held = std::mem::take(&mut self.held);
        let (mut names, mut ops) = (StringBuilder::new(), StringBuilder::new());
        for (table, put, _) in &held {
            names.append_value(table.name());
            ops.append_value(if *put { "put" } else { "delete" });
        }
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(names.finish()), Arc::new(ops.finish())];
        for table in Table::ALL {
            let mut nulls = NullBufferBuilder::new(held.len());
            for (of, ..) in &held {
                nulls.append(*of == table);
            }
            let rows = held.iter().map(|(of, _, row)| (*of == table).then_some(row));
            let array = StructArray::try_new(fields(table), columns(table, rows), nulls.finish())
                .map_err(failed)?;
            arrays.push(Arc::new(array));
        }
        let batch = RecordBatch::try_new(Arc::new(delta_schema()), arrays).map_err(failed)?;
        self.target.write(&batch)
    }

    /// Makes the file durable.
    ///
    /// # Errors
    /// `Io`, `Checkpoint`.
    pub fn finish(mut self) -> Result<WrittenFile, MetadataError> {
        self.flush()?;
        let (path, bytes) = self.target.finish()?;
        Ok(WrittenFile { path, table: "delta".into(), rows: self.rows, bytes })
    }
}
