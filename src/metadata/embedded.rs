use std::path::Path;

use super::{Engine, MetadataError, Reader, Transaction};

/// The default engine: an LSM tree in the volume's `meta` folder.
pub struct EmbeddedEngine {}

impl EmbeddedEngine {
    /// Opens or makes the engine in `dir`; `cache_bytes` bounds its block cache.
    ///
    /// # Errors
    /// `Storage` when the files are damaged or in use, `TooNew` when a newer
    /// format is found.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, MetadataError> {
        let _ = (dir, cache_bytes);
        todo!()
    }
}

impl Engine for EmbeddedEngine {
    fn get(&self, _key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        todo!()
    }
    fn snapshot(&self) -> Result<Box<dyn Reader + '_>, MetadataError> {
        todo!()
    }
    fn begin(&self) -> Result<Box<dyn Transaction + '_>, MetadataError> {
        todo!()
    }
    fn persist(&self) -> Result<(), MetadataError> {
        todo!()
    }
}
