use super::{Engine, MetadataError, Reader, Transaction};

/// An engine in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryEngine {}

impl Engine for MemoryEngine {
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
