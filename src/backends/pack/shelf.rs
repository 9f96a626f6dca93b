//! Where packs lie.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use crate::backends::BackendError;

/// Which version of an object was read, as its place tells them apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backends) struct Tag(pub String);

/// The head, to somebody who may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backends) enum HeadNow {
    /// There is none.
    None,
    /// The version that is known.
    Same,
    /// This one.
    Is(Bytes, Tag),
}

/// A bucket's prefix, or a directory: whole objects by name, of which one, the head, is
/// changed by compare-and-swap.
#[async_trait]
pub(in crate::backends) trait Shelf: Send + Sync + 'static {
    /// For messages.
    fn location(&self) -> String;

    /// Stores an object, durably and whole or not at all; over one of this name. Names have
    /// the hash of what is in an object.
    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), BackendError>;

    /// The bytes of an object, or of a range that may go beyond its end; `None` when it is
    /// not there.
    async fn read(
        &self,
        name: &str,
        range: Option<Range<u64>>,
    ) -> Result<Option<Bytes>, BackendError>;

    /// Its length; `None` when it is not there.
    async fn length(&self, name: &str) -> Result<Option<u64>, BackendError>;

    /// Packs whose names come after this one, in their order, with their lengths; at most
    /// so many, and fewer at the end only.
    async fn list(&self, after: &str, limit: usize) -> Result<Vec<(String, u64)>, BackendError>;

    /// Removes objects; one that is not there is success.
    async fn delete(&self, names: &[String]) -> Result<(), BackendError>;

    /// The head as it is now; who knows it is spared its bytes.
    async fn head(&self, known: Option<&Tag>) -> Result<HeadNow, BackendError>;

    /// Puts another head in the place of the one that was read, or where there was none;
    /// false when it is another one meanwhile.
    async fn swap(&self, before: Option<&Tag>, head: Bytes) -> Result<bool, BackendError>;

    /// All packs have so many bytes: the place's own sum of what is used counts them.
    fn hold(&self, bytes: u64);

    /// `Full` when so many bytes more are beyond the place's `capacity=`.
    async fn refuse_beyond_capacity(&self, more: u64) -> Result<(), BackendError>;
}
