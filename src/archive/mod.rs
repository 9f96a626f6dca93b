//! CAR archives: writing, strict reading, export of a tree, import into one.
//!
//! An export is plain UnixFS that any IPFS tool opens; with metadata a second
//! root holds Parquet tables, so that modes, owners, times, xattrs and hard
//! links come back. An import trusts nothing: lengths, varints and hashes are
//! checked, and the DAG is walked from the root before anything becomes visible.
mod car;
mod error;
mod export;
mod import;
mod metadata;

pub use self::car::{CarHeader, CarReader, Section};
pub use self::error::{ArchiveError, io_error};
pub use self::export::{ExportReport, export};
pub use self::import::{Archive, ImportContent, ImportEntry, ImportNode, ImportPlan};
pub use self::metadata::encode_metadata;

#[cfg(test)]
mod tests;
