use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::super::{Change, ContentRecord, EventRecord, MetadataError};
use super::tables::{Cell, Kind, Row, Table, change_of, copy_of};
use crate::types::{Cid, Ino, Name};

fn damaged(path: &Path, reason: impl std::fmt::Display) -> MetadataError {
    MetadataError::Checkpoint(format!(
        "{} is damaged: {reason}; an earlier checkpoint or another backend may have it whole",
        path.display()
    ))
}

fn open(path: &Path) -> Result<ParquetRecordBatchReader, MetadataError> {
    let file = File::open(path)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(path, e))?;
    builder.build().map_err(|e| damaged(path, e))
}

fn cell(array: &ArrayRef, kind: Kind, row: usize) -> Option<Cell> {
    if array.is_null(row) {
        return Some(Cell::Null);
    }
    Some(match kind {
        Kind::U64 => Cell::U64(array.as_primitive_opt::<UInt64Type>()?.value(row)),
        Kind::U32 => Cell::U32(array.as_primitive_opt::<UInt32Type>()?.value(row)),
        Kind::I64 => Cell::I64(array.as_primitive_opt::<Int64Type>()?.value(row)),
        Kind::Text => Cell::Text(array.as_string_opt::<i32>()?.value(row).to_owned()),
        Kind::Bytes => Cell::Bytes(array.as_binary_opt::<i32>()?.value(row).to_vec()),
        Kind::Bool => Cell::Bool(array.as_boolean_opt()?.value(row)),
    })
}

/// Reads a row by the columns' names, so that added columns do no harm.
fn row_of(table: Table, column: &dyn Fn(&str) -> Option<ArrayRef>, row: usize) -> Option<Row> {
    let one = |(name, kind): &(&str, Kind)| match column(name) {
        Some(array) => cell(&array, *kind, row),
        None => table.was_added(name).then_some(Cell::Null),
    };
    table.columns().iter().map(one).collect()
}

/// Rows of one table's file.
fn table_rows(
    path: &Path,
    table: Table,
) -> Result<impl Iterator<Item = Result<Row, MetadataError>> + use<>, MetadataError> {
    let path = path.to_owned();
    let rows = open(&path)?.flat_map(move |batch| {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => return vec![Err(damaged(&path, error))],
        };
        let column = |name: &str| batch.column_by_name(name).cloned();
        (0..batch.num_rows())
            .map(|row| {
                row_of(table, &column, row).ok_or_else(|| damaged(&path, "a column is missing"))
            })
            .collect()
    });
    Ok(rows)
}

/// Reads one table of a base (not `copies`, which comes with `contents`).
///
/// # Errors
/// `Io`, `Checkpoint`.
pub fn read_table(
    dir: &Path,
    table: Table,
) -> Result<Box<dyn Iterator<Item = Result<Change, MetadataError>>>, MetadataError> {
    let rows = table_rows(&dir.join(format!("{}.parquet", table.name())), table)?;
    if table != Table::Contents {
        return Ok(Box::new(rows.map(move |row| change_of(table, true, row?))));
    }
    // Both files are in the order of the CIDs: a merge join holds one content.
    let path = dir.join("copies.parquet");
    let mut copies = table_rows(&path, Table::Copies)?.peekable();
    let mut rows = rows;
    Ok(Box::new(std::iter::from_fn(move || {
        let Some(row) = rows.next() else {
            // A copy that no content took: the files do not belong together.
            let left = copies.next()?;
            return Some(left.and_then(|_| Err(damaged(&path, "a copy without its content"))));
        };
        let joined = row.and_then(|row| {
            let change = change_of(Table::Contents, true, row)?;
            let Change::Content(root, Some(mut record)) = change else { return Ok(change) };
            let wanted = Cell::Text(root.to_string());
            while let Some(next) = copies.next_if(|row| match row {
                Ok(row) => row.first() == Some(&wanted),
                Err(_) => true,
            }) {
                record.copies.push(copy_of(next?)?.1);
            }
            Ok(Change::Content(root, Some(record)))
        });
        Some(joined)
    })))
}

/// Reads a delta, in its order.
///
/// # Errors
/// `Io`, `Checkpoint`.
pub fn read_delta(path: &Path) -> Result<Vec<Change>, MetadataError> {
    let mut changes: Vec<Change> = Vec::new();
    for batch in open(path)? {
        let batch = batch.map_err(|e| damaged(path, e))?;
        let text =
            |name: &str| batch.column_by_name(name).and_then(|c| c.as_string_opt::<i32>().cloned());
        let (Some(tables), Some(ops)) = (text("table"), text("op")) else {
            return Err(damaged(path, "column `table` or `op` is missing"));
        };
        for index in 0..batch.num_rows() {
            let table = Table::from_name(tables.value(index))
                .ok_or_else(|| damaged(path, "unknown table"))?;
            let parts = batch.column_by_name(table.name()).and_then(|c| c.as_struct_opt());
            let parts = parts.ok_or_else(|| damaged(path, "a table's column is missing"))?;
            let column = |name: &str| parts.column_by_name(name).cloned();
            let row = row_of(table, &column, index)
                .ok_or_else(|| damaged(path, "a column is missing"))?;
            if table == Table::Copies {
                let (root, copy) = copy_of(row)?;
                match changes.last_mut() {
                    Some(Change::Content(of, Some(record))) if *of == root => {
                        record.copies.push(copy);
                    }
                    _ => return Err(damaged(path, "a copy without its content")),
                }
                continue;
            }
            changes.push(change_of(table, ops.value(index) == "put", row)?);
        }
    }
    Ok(changes)
}

/// The events of a base and its deltas, in their order.
///
/// # Errors
/// `Io`, `Checkpoint`.
pub fn load_events(
    base: &Path,
    deltas: Vec<PathBuf>,
) -> Result<impl Iterator<Item = Result<(u64, EventRecord), MetadataError>> + use<>, MetadataError>
{
    let of = |change| match change {
        Ok(Change::Event(number, event)) => Some(Ok((number, event))),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    };
    let later = deltas.into_iter().flat_map(|path| match read_delta(&path) {
        Ok(changes) => changes.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    });
    Ok(read_table(base, Table::Events)?.chain(later).filter_map(of))
}

/// The key of a row, by which a later file replaces an earlier one's.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Inode(Ino),
    Dentry(Ino, Name),
    Xattr(Ino, Vec<u8>),
    Content(Cid),
}

fn key_of(change: &Change) -> Option<Key> {
    Some(match change {
        Change::Inode(ino, _) => Key::Inode(*ino),
        Change::Dentry(parent, name, _) => Key::Dentry(*parent, name.clone()),
        Change::Xattr(ino, name, _) => Key::Xattr(*ino, name.clone()),
        Change::Content(root, _) => Key::Content(*root),
        Change::Event(..) => return None,
    })
}

/// A base with its deltas, as one stream of rows, each key once. Memory: the
/// deltas (the checkpointer bounds them); the base is streamed.
///
/// # Errors
/// `Io`, `Checkpoint`.
pub fn load_checkpoint(
    base: &Path,
    deltas: &[PathBuf],
) -> Result<Box<dyn Iterator<Item = Result<Change, MetadataError>>>, MetadataError> {
    let mut newer: HashMap<Key, Change> = HashMap::new();
    for path in deltas {
        for change in read_delta(path)? {
            if let Some(key) = key_of(&change) {
                newer.insert(key, change);
            }
        }
    }
    let mut tables = Vec::new();
    for table in [Table::Inodes, Table::Dentries, Table::Xattrs, Table::Contents] {
        tables.push(read_table(base, table)?);
    }
    // Rows of the base that a delta replaced are given in their place; what is
    // left comes at the end, inodes first (names refer to them).
    let mut stream = tables.into_iter().flatten();
    let mut rest: Option<std::vec::IntoIter<Change>> = None;
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            if let Some(rest) = &mut rest {
                return rest.next().map(Ok);
            }
            match stream.next() {
                Some(Ok(change)) => {
                    let replaced = key_of(&change).and_then(|key| newer.remove(&key));
                    match replaced.unwrap_or(change) {
                        gone if is_deletion(&gone) => {}
                        kept => return Some(Ok(kept)),
                    }
                }
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    let mut left: Vec<Change> = newer
                        .drain()
                        .map(|(_, change)| change)
                        .filter(|change| !is_deletion(change))
                        .collect();
                    left.sort_by_key(|change| !matches!(change, Change::Inode(..)));
                    rest = Some(left.into_iter());
                }
            }
        }
    })))
}

fn is_deletion(change: &Change) -> bool {
    matches!(
        change,
        Change::Inode(_, None)
            | Change::Dentry(_, _, None)
            | Change::Xattr(_, _, None)
            | Change::Content(_, None::<ContentRecord>)
    )
}
