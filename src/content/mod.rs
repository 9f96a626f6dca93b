//! Bytes to DAGs and back: chunking, `UnixFS` over dag-pb, directories with HAMT
//! sharding, walks and verification.
//!
//! Pure: no file, no network, no clock. Blocks leave through a sink and enter
//! through a loader. A CID made here is the CID that `ipfs add` makes under the
//! same profile (IPIP-499); `tests/` holds it against published vectors.

pub mod car;
mod dag;
mod dag_pb;
mod directory;
mod error;
mod hamt;
mod measure;
mod names;
mod node;
mod profile;
mod walk;
mod zeros;

pub use self::dag::{Changed, FileBuilder, Rebuilt, import_file, leaf, rebuild};
pub use self::directory::{DirectoryEntry, build_directory, read_directory, symlink};
pub use self::error::ContentError;
pub use self::measure::{Measured, measure_file};
pub use self::names::{escape_name, unescape_name};
pub use self::node::{Node, UnixFsMetadata, inline_block, parse_node};
pub use self::profile::{DirectoryEstimate, Profile, UnknownProfile};
pub use self::walk::{LeafSpan, Run, leaves, runs, walk_post_order};
pub use self::zeros::{Zeros, holes, seek};

use bytes::Bytes;

use crate::types::Cid;

/// A finished sub-DAG, as its parent links to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The root block of the sub-DAG.
    pub cid: Cid,
    /// Bytes of content below: what a reader gets.
    pub size: u64,
    /// Cumulative bytes of all blocks below, duplicates counted each time
    /// (dag-pb `Tsize`).
    pub tsize: u64,
}

/// Takes each block that a builder finishes. Children come before parents.
pub type Sink<'a> = dyn FnMut(Cid, Bytes) -> Result<(), ContentError> + 'a;

/// Gives the bytes of a block, already verified, or an error.
pub type Load<'a> = dyn FnMut(&Cid) -> Result<Bytes, ContentError> + 'a;

#[cfg(test)]
mod dag_tests;
#[cfg(test)]
mod node_tests;
#[cfg(test)]
mod vectors_tests;
