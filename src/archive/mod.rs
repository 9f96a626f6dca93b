//! CAR archives: writing, strict reading, export of a tree, import into one.
//!
//! An export is plain `UnixFS` that any IPFS tool opens; with metadata a second
//! root holds Parquet tables, so that modes, owners, times, xattrs and hard
//! links come back. An import trusts nothing: lengths, varints and hashes are
//! checked, and the DAG is walked from the root before anything becomes visible.
//! Nothing here writes into a volume: an [`ImportPlan`] says what to make, and
//! [`Archive::load`] gives the blocks.
mod error;
mod export;
mod import;
mod metadata;
mod places;
mod plan;
mod report;
mod shelf;

pub use self::error::{ArchiveError, io_error};
pub use self::export::{ExportReport, Soon, export, export_telling};
pub use self::import::{Archive, verify};
pub use self::metadata::encode_metadata;
pub use self::plan::{ImportContent, ImportEntry, ImportNode, ImportPlan};
pub use self::report::{Finding, Findings, IndexState, Report};
pub use self::shelf::Shelf;

#[cfg(test)]
mod tests;
