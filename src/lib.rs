//! Cairn: a FUSE filesystem with transparent replication.
//!
//! Every file is content-addressed into an IPFS CID, written through to several
//! storage backends under a policy, recorded in Parquet, and recoverable, names
//! and all, from what lies on the backends. `src/docs/design.md` has the
//! architecture; `tests/tidy.rs` holds the direction of the imports below.

pub mod api;
pub mod archive;
pub mod backends;
pub mod cli;
pub mod config;
pub mod content;
pub mod daemon;
pub mod fuse;
pub mod metadata;
pub mod node;
pub mod replication;
pub mod runtime;
pub mod store;
pub mod telemetry;
pub mod types;
pub mod vfs;
