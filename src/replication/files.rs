//! Files of the metadata to and from a backend, as `UnixFS` contents.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::ReplicationError;
use crate::backends::{Backend, BackendError, ErrorKind};
use crate::content::{ContentError, Link, Node, Profile, import_file, leaves, parse_node};
use crate::runtime::Bridge;
use crate::types::{Block, Cid, cid};

/// Bytes of blocks in one put.
const BATCH_BYTES: usize = 4 << 20;
/// Deadline of one put of a batch.
const PUT: Duration = Duration::from_mins(10);
/// Deadline of one other call.
const CALL: Duration = Duration::from_mins(2);

/// Sends a file; its root. Leaves are durable before the nodes above them are sent.
pub(super) fn upload(
    bridge: &Bridge,
    backend: &Arc<dyn Backend>,
    path: &Path,
) -> Result<Cid, ReplicationError> {
    let mut batch: Vec<Block> = Vec::new();
    let mut failure = None;
    let mut send = |batch: &mut Vec<Block>| {
        let sent = match bridge.wait(PUT, backend.put_many(batch)) {
            Ok(sent) => sent,
            Err(e) => Err(BackendError::new(ErrorKind::Timeout, e.to_string())),
        };
        batch.clear();
        sent.map_err(|error| {
            failure = Some(error);
            ContentError::Io(std::io::Error::other("stopped"))
        })
    };
    let profile = &Profile::UNIXFS_V1_2025;
    let walked = import_file(profile, &mut File::open(path)?, &mut |id, data| {
        if id.codec() == cid::DAG_PB && !batch.is_empty() {
            send(&mut batch)?;
        }
        batch.push(Block { cid: id, data });
        if batch.len() * (1 << 20) >= BATCH_BYTES { send(&mut batch) } else { Ok(()) }
    })
    .and_then(|link| {
        if !batch.is_empty() {
            send(&mut batch)?;
        }
        Ok(link.cid)
    });
    match (failure, walked) {
        (Some(error), _) => Err(error.into()),
        (None, Ok(root)) => Ok(root),
        (None, Err(error)) => Err(ReplicationError::Io(std::io::Error::other(error))),
    }
}

/// A backend to read from.
pub(super) struct Source<'s> {
    pub backend: &'s Arc<dyn Backend>,
    pub bridge: &'s Bridge,
}

impl Source<'_> {
    pub fn call<T>(
        &self,
        future: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, ReplicationError> {
        match self.bridge.wait(CALL, future) {
            Ok(result) => Ok(result?),
            Err(e) => Err(BackendError::new(ErrorKind::Timeout, e.to_string()).into()),
        }
    }

    /// A block that matches its CID.
    pub fn block(&self, id: &Cid) -> Result<bytes::Bytes, ReplicationError> {
        let data = self.call(self.backend.get(id, None))?;
        if cid::verify(id, &data) == cid::Verdict::Match {
            Ok(data)
        } else {
            Err(BackendError::new(ErrorKind::Corrupt, format!("block {id} has wrong bytes there"))
                .into())
        }
    }

    /// Streams a file of a known length into a local one.
    pub fn file(&self, root: Cid, size: u64, to: &Path) -> Result<(), ReplicationError> {
        let other = |e: ContentError| ReplicationError::Io(std::io::Error::other(e));
        let link = Link { cid: root, size, tsize: 0 };
        let io = |e: ReplicationError| ContentError::Io(std::io::Error::other(e.to_string()));
        let mut out = File::create(to)?;
        leaves(&link, 0..size, &mut |id| self.block(id).map_err(io), &mut |leaf| {
            let data = self.block(&leaf.cid).map_err(io)?;
            out.write_all(&data).map_err(ContentError::Io)
        })
        .map_err(other)?;
        out.sync_all()?;
        Ok(())
    }

    /// The same, of the length that its root says.
    pub fn whole_file(&self, root: &Cid, to: &Path) -> Result<(), ReplicationError> {
        let data = self.block(root)?;
        let size = if root.codec() == cid::RAW {
            data.len() as u64
        } else {
            match parse_node(root, &data).map_err(|e| std::io::Error::other(e.to_string()))? {
                Node::File { size, .. } => size,
                _ => return Err(std::io::Error::other(format!("{root} is no file")).into()),
            }
        };
        self.file(*root, size, to)
    }
}
