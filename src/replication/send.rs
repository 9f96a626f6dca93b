//! Sends contents to one backend, children before parents.

use std::sync::Arc;
use std::time::Duration;

use super::ReplicationError;
use super::fetch::Fetcher;
use crate::backends::{Backend, BackendError, ErrorKind, Presence};
use crate::content::{ContentError, walk_post_order};
use crate::runtime::Bridge;
use crate::types::{Block, Cid, cid};

/// Bytes of blocks that wait for one put of one backend.
const BATCH_BYTES: usize = 8 << 20;
/// Blocks of one put.
const BATCH_BLOCKS: usize = 128;

/// One backend's end of the pipe. Runs on a blocking thread.
pub(super) struct Sender<'s> {
    pub backend: &'s Arc<dyn Backend>,
    pub bridge: &'s Bridge,
    pub fetcher: &'s Fetcher,
    pub deadline: Duration,
}

impl Sender<'_> {
    fn call<T>(
        &self,
        future: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, ReplicationError> {
        // The stack below has deadlines of its own; this one is the last resort.
        match self.bridge.wait(self.deadline.saturating_mul(20), future) {
            Ok(result) => Ok(result?),
            Err(e) => {
                Err(BackendError::new(crate::backends::ErrorKind::Timeout, e.to_string()).into())
            }
        }
    }

    /// Sends many contents of a single block each in one go.
    pub fn send_single_blocks(&self, roots: &[Cid]) -> Result<(), ReplicationError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for root in roots {
            let data = self.fetcher.block(root)?;
            bytes += data.len();
            batch.push(Block { cid: *root, data });
            if bytes >= BATCH_BYTES || batch.len() >= BATCH_BLOCKS {
                self.call(self.backend.put_many(&batch))?;
                batch.clear();
                bytes = 0;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.call(self.backend.put_many(&batch)) }
    }

    /// Sends a DAG, pruned where the backend already holds a node (a node is
    /// there only when all below it is).
    pub fn send_dag(&self, root: &Cid) -> Result<(), ReplicationError> {
        let failure = std::cell::RefCell::new(None);
        let stop = |error: ReplicationError| {
            *failure.borrow_mut() = Some(error);
            ContentError::Io(std::io::Error::other("stopped"))
        };
        let batch = std::cell::RefCell::new((Vec::<Block>::new(), 0usize));
        let flush = || {
            let mut batch = batch.borrow_mut();
            if !batch.0.is_empty() {
                self.call(self.backend.put_many(&batch.0))?;
                *batch = (Vec::new(), 0);
            }
            Ok::<(), ReplicationError>(())
        };
        let walked = walk_post_order(
            root,
            &mut |id| {
                let found = self.call(self.backend.presence(&[*id])).map_err(stop)?;
                Ok(!matches!(found.first(), Some(Presence::Present(_))))
            },
            &mut |id| self.fetcher.block(id).map_err(stop),
            &mut |id, data| {
                // A parent goes only after its children are durable there.
                if id.codec() == cid::DAG_PB {
                    flush().map_err(stop)?;
                }
                let full = {
                    let mut batch = batch.borrow_mut();
                    batch.1 += data.len();
                    batch.0.push(Block { cid: *id, data: data.clone() });
                    batch.1 >= BATCH_BYTES || batch.0.len() >= BATCH_BLOCKS
                };
                if full || id.codec() == cid::DAG_PB {
                    flush().map_err(stop)?;
                }
                Ok(())
            },
        );
        if let Some(error) = failure.borrow_mut().take() {
            return Err(error);
        }
        walked.map_err(|e| ReplicationError::Io(std::io::Error::other(e)))?;
        flush()
    }

    /// Replaces every wrong or missing block of a content at the backend. A put
    /// alone would not: a block of the right length counts as there.
    pub fn repair(&self, root: &Cid) -> Result<(), ReplicationError> {
        let mut failure = None;
        let walked = walk_post_order(
            root,
            &mut |_| Ok(true),
            &mut |id| {
                self.fetcher.block(id).map_err(|e| ContentError::Io(std::io::Error::other(e)))
            },
            &mut |id, data| {
                // "Cannot read" is not "wrong": only proof replaces a block.
                match self.call(self.backend.get(id, None)) {
                    Ok(there) if cid::verify(id, &there) == cid::Verdict::Match => return Ok(()),
                    Ok(_) => {}
                    Err(ReplicationError::Backend(e))
                        if matches!(e.kind, ErrorKind::NotFound | ErrorKind::Corrupt) => {}
                    Err(error) => {
                        failure = Some(error);
                        return Err(ContentError::Io(std::io::Error::other("stopped")));
                    }
                }
                let block = Block { cid: *id, data: data.clone() };
                let replaced = self
                    .call(self.backend.delete(id))
                    .and_then(|()| self.call(self.backend.put(&block)));
                replaced.map_err(|error| {
                    failure = Some(error);
                    ContentError::Io(std::io::Error::other("stopped"))
                })
            },
        );
        match (failure, walked) {
            (Some(error), _) => Err(error),
            (None, walked) => walked.map_err(|e| ReplicationError::Io(std::io::Error::other(e))),
        }
    }

    /// Reads a content back from the backend and re-hashes every block. False
    /// when one is wrong or missing.
    pub fn verify(&self, root: &Cid) -> Result<bool, ReplicationError> {
        let failure = std::cell::RefCell::new(None);
        let walked = walk_post_order(
            root,
            &mut |_| Ok(true),
            &mut |id| match self.call(self.backend.get(id, None)) {
                Ok(data) if cid::verify(id, &data) == cid::Verdict::Match => Ok(data),
                Ok(_) => Err(ContentError::Mismatch(*id)),
                Err(ReplicationError::Backend(e))
                    if e.kind == crate::backends::ErrorKind::NotFound =>
                {
                    Err(ContentError::Missing(*id))
                }
                Err(error) => {
                    *failure.borrow_mut() = Some(error);
                    Err(ContentError::Io(std::io::Error::other("stopped")))
                }
            },
            &mut |_, _| Ok(()),
        );
        match (failure.into_inner(), walked) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(true),
            (None, Err(ContentError::Mismatch(_) | ContentError::Missing(_))) => Ok(false),
            (None, Err(error)) => Err(ReplicationError::Io(std::io::Error::other(error))),
        }
    }
}
