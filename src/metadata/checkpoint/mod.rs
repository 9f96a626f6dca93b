//! Parquet: tables, base, deltas and manifest, and reading them back.
//!
//! A *base* has every row, one Parquet file a table. A *delta* has the rows that
//! changed since, in one file for all tables. The *manifest* names them with
//! their CIDs. `src/docs/format.md`, "Parquet checkpoints", has the columns.
//! What is here writes and reads files; when, and where copies go, is the
//! checkpointer's business.

mod manifest;
mod read;
mod tables;
mod write;

pub use self::manifest::{BaseEntry, FileEntry, Manifest};
pub use self::read::{load_checkpoint, load_events, read_delta, read_table};
pub use self::tables::Table;
pub use self::write::{BaseWriter, DeltaWriter, WrittenFile};

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
