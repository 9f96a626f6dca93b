//! Where a gateway has its blocks from.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Bytes;

use crate::backends::{Backend, BackendError, ErrorKind, Presence};
use crate::types::{Cid, cid};

/// Blocks by their CIDs. Identity CIDs are not asked for.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// A whole block that is what its CID says.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, or what keeps it from being read now.
    async fn whole(&self, id: &Cid) -> Result<Bytes, BackendError>;

    /// Its length.
    ///
    /// # Errors
    /// As [`Source::whole`].
    async fn len(&self, id: &Cid) -> Result<u64, BackendError> {
        Ok(self.whole(id).await?.len() as u64)
    }

    /// A part of it, which is within its length.
    ///
    /// # Errors
    /// As [`Source::whole`].
    async fn part(&self, id: &Cid, range: Range<u64>) -> Result<Bytes, BackendError> {
        let data = self.whole(id).await?;
        Ok(data.slice(range.start as usize..range.end as usize))
    }

    /// Keeps all that is there until it is dropped.
    fn hold(&self) -> Option<Box<dyn Any + Send>> {
        None
    }
}

/// A storage node's blocks.
pub(super) struct Stored(pub Arc<dyn Backend>);

#[async_trait]
impl Source for Stored {
    async fn whole(&self, id: &Cid) -> Result<Bytes, BackendError> {
        let data = self.0.get(id, None).await?;
        if cid::verify(id, &data) == cid::Verdict::Match {
            return Ok(data);
        }
        let message = format!("block {id} in {} is damaged", self.0.location());
        Err(BackendError::new(ErrorKind::Corrupt, message))
    }

    async fn len(&self, id: &Cid) -> Result<u64, BackendError> {
        let (kind, message) = match self.0.presence(&[*id]).await?.first() {
            Some(Presence::Present(len)) => return Ok(*len),
            Some(Presence::Unknown) => {
                (ErrorKind::Unavailable, format!("it is not known whether {id} is there"))
            }
            Some(Presence::Absent) | None => {
                (ErrorKind::NotFound, format!("{} has no block {id}", self.0.location()))
            }
        };
        Err(BackendError::new(kind, message))
    }

    async fn part(&self, id: &Cid, range: Range<u64>) -> Result<Bytes, BackendError> {
        self.0.get(id, Some(range)).await
    }
}
