use std::ops::ControlFlow;

use super::MetadataError;

/// An ordered key-value store. Keys are compared as bytes.
pub trait Engine: Send + Sync + 'static {
    /// The newest committed value.
    ///
    /// # Errors
    /// `Storage` when the engine fails.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError>;

    /// A consistent view of one moment.
    ///
    /// # Errors
    /// `Storage` when the engine fails.
    fn snapshot(&self) -> Result<Box<dyn Reader + '_>, MetadataError>;

    /// An optimistic transaction: reads see one moment and its own writes; the
    /// commit fails when a key or range that it read was changed meanwhile.
    ///
    /// # Errors
    /// `Storage` when the engine fails.
    fn begin(&self) -> Result<Box<dyn Transaction + '_>, MetadataError>;

    /// Returns when everything committed before the call is on stable storage.
    /// Calls at the same time share one flush. A failure poisons the engine:
    /// no later persist succeeds (a failed fsync tells once; `PostgreSQL`'s
    /// fsync findings of 2018).
    ///
    /// # Errors
    /// `Storage` or `NoSpace`.
    fn persist(&self) -> Result<(), MetadataError>;

    /// Waits while it is behind with writing out what was committed. To be called
    /// before each transaction that writes, with no lock held: commits do not wait.
    ///
    /// # Errors
    /// `Storage` when the engine fails.
    fn admit(&self) -> Result<(), MetadataError> {
        Ok(())
    }

    /// Bytes of changes that it holds in memory to write them out together.
    fn write_buffer_bytes(&self) -> u64 {
        0
    }
}

/// Reads of one moment.
pub trait Reader {
    /// The value of `key`.
    ///
    /// # Errors
    /// `Storage` when the engine fails.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError>;

    /// Visits `start..end` in order until `visit` breaks.
    ///
    /// # Errors
    /// `Storage` when the engine fails.
    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MetadataError>;
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// All its writes are visible.
    Done,
    /// None is: something that it read has changed. Do it again.
    Conflict,
}

/// Reads and writes that happen together or not at all.
pub trait Transaction: Reader {
    /// Sets `key` at commit.
    fn put(&mut self, key: &[u8], value: &[u8]);

    /// Removes `key` at commit.
    fn delete(&mut self, key: &[u8]);

    /// Ends the transaction.
    ///
    /// # Errors
    /// `Storage` or `NoSpace`; then none of its writes is visible.
    fn commit(self: Box<Self>) -> Result<Commit, MetadataError>;
}

/// Runs `body` in a transaction, again after each conflict, at most 64 times.
/// An error of `body` ends it without a commit.
///
/// # Errors
/// Of `body`; `Contended`; `Storage`.
pub fn transact<T>(
    engine: &dyn Engine,
    mut body: impl FnMut(&mut dyn Transaction) -> Result<T, MetadataError>,
) -> Result<T, MetadataError> {
    for _ in 0..64 {
        engine.admit()?;
        let mut transaction = engine.begin()?;
        let value = body(transaction.as_mut())?;
        if transaction.commit()? == Commit::Done {
            return Ok(value);
        }
    }
    Err(MetadataError::Contended)
}
