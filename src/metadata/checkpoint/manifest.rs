use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::MetadataError;
use crate::types::{Cid, Timestamp, VolumeId, WriterId};

/// The newest format of a manifest. 2: `policies`; without any, 1 is written.
const FORMAT: u32 = 2;

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// The table, or `delta`.
    pub table: String,
    /// Of the file's `UnixFS` content (profile unixfs-v1-2025), as text.
    pub cid: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
    /// The manifest that the file first appeared in.
    pub sequence: u64,
}

/// The base of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseEntry {
    /// The manifest that it first appeared in.
    pub sequence: u64,
    /// One file a table.
    pub files: Vec<FileEntry>,
}

/// Names everything that a volume's metadata of one moment consists of. JSON,
/// stored as a raw block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1, or 2 with `policies`.
    pub format: u32,
    /// Whose.
    pub volume: VolumeId,
    /// Rises by one with each manifest of a volume.
    pub sequence: u64,
    /// The manifest before, as CID text.
    pub previous: Option<String>,
    /// All rows.
    pub base: BaseEntry,
    /// Changes since, oldest first.
    pub deltas: Vec<FileEntry>,
    /// The volume's policy, in text form.
    pub policy: String,
    /// Policies by name, in text form.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub policies: BTreeMap<String, String>,
    /// Profile of the contents.
    pub profile: String,
    /// The volume's backends (id and URL, no secrets).
    pub backends: BTreeMap<String, String>,
    /// Who wrote it.
    pub writer: WriterId,
    /// The newest sequence of each writer that this one knows of.
    pub versions: BTreeMap<String, u64>,
    /// When.
    pub created: Timestamp,
    /// Regular files and their bytes, for a listing of checkpoints.
    pub files: u64,
    /// Sum of file sizes.
    pub bytes: u64,
}

impl Manifest {
    /// The lowest format that can say all.
    #[must_use]
    pub fn format_for(policies: &BTreeMap<String, String>) -> u32 {
        if policies.is_empty() { 1 } else { FORMAT }
    }

    /// The JSON form.
    ///
    /// # Errors
    /// `Checkpoint`.
    pub fn encode(&self) -> Result<Vec<u8>, MetadataError> {
        serde_json::to_vec_pretty(self)
            .map_err(|e| MetadataError::Checkpoint(format!("manifest: {e}")))
    }

    /// Reads what [`Manifest::encode`] wrote; refuses newer formats first.
    ///
    /// # Errors
    /// `TooNew`, `Checkpoint`.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetadataError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let bad = |e: serde_json::Error| {
            MetadataError::Checkpoint(format!("a manifest does not decode: {e}"))
        };
        let head: Head = serde_json::from_slice(bytes).map_err(bad)?;
        if head.format > FORMAT {
            return Err(MetadataError::TooNew { found: head.format, supported: FORMAT });
        }
        serde_json::from_slice(bytes).map_err(bad)
    }

    /// All files: the base's and the deltas.
    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        self.base.files.iter().chain(&self.deltas)
    }

    /// CIDs of all files.
    ///
    /// # Errors
    /// `Checkpoint` when one is no CID.
    pub fn roots(&self) -> Result<Vec<Cid>, MetadataError> {
        let parse = |file: &FileEntry| {
            file.cid.parse().map_err(|e| {
                MetadataError::Checkpoint(format!("manifest names `{}`: {e}", file.cid))
            })
        };
        self.files().map(parse).collect()
    }

    /// The local file name of a base file or delta.
    #[must_use]
    pub fn local_name(file: &FileEntry) -> String {
        if file.table == "delta" {
            format!("delta-{:012}.parquet", file.sequence)
        } else {
            format!("base-{:012}/{}.parquet", file.sequence, file.table)
        }
    }
}
