use std::ops::ControlFlow;
use std::slice::from_ref;
use std::sync::Arc;

use super::node::NodeState;
use super::{Vfs, VfsError};
use crate::content::{ContentError, LeafSpan, Link, Node as DagNode, Run, parse_node, runs, seek};
use crate::metadata::InodeRecord;
use crate::store::{BaseReader, StoreError};
use crate::types::{Cid, cid};

/// Files up to this many leaves keep their list while they are open (80 bytes
/// a leaf: 5 MiB for 64 GiB).
const LISTED_LEAVES: u64 = 65_536;

/// Reads committed content below a staging.
pub(super) struct Base<'v> {
    pub vfs: &'v Vfs,
    pub root: Option<Cid>,
    pub size: u64,
}

impl BaseReader for Base<'_> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let Some(root) = self.root else {
            buf.fill(0);
            return Ok(());
        };
        let link = Link { cid: root, size: self.size, tsize: 0 };
        self.vfs.read_content(&link, None, offset, buf).map_err(of_base)
    }

    fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>, StoreError> {
        let Some(root) = self.root else {
            return Ok((hole && offset < self.size).then_some(offset));
        };
        let link = Link { cid: root, size: self.size, tsize: 0 };
        self.vfs.seek_content(&link, offset, hole).map_err(of_base)
    }
}

fn of_base(error: VfsError) -> StoreError {
    match error {
        VfsError::Store(error) => error,
        other => StoreError::Io {
            path: "content".into(),
            source: std::io::Error::other(other.to_string()),
        },
    }
}

impl Vfs {
    pub(super) fn base_of<'v>(&'v self, record: &InodeRecord, size: u64) -> Base<'v> {
        Base { vfs: self, root: record.content, size }
    }

    /// Reads committed content; the range lies within it. Inside [`Vfs::near`] all
    /// that it lacks is sent for.
    pub(super) fn read_content(
        &self,
        root: &Link,
        listed: Option<&[LeafSpan]>,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), VfsError> {
        let read = self.read_what_is_here(root, listed, offset, buf);
        if read.is_err() && Self::lacks_blocks() {
            self.send_for_lacking(&self.whereabouts_of(&root.cid));
        }
        read
    }

    fn read_what_is_here(
        &self,
        root: &Link,
        listed: Option<&[LeafSpan]>,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), VfsError> {
        if buf.is_empty() {
            return Ok(());
        }
        if root.cid.codec() == cid::RAW {
            return self.read_leaf(&root.cid, offset, buf);
        }
        let end = offset + buf.len() as u64;
        if let Some(listed) = listed {
            let first = listed.partition_point(|span| span.offset + span.len <= offset);
            let listed = || listed[first..].iter().take_while(|span| span.offset < end);
            // What is not listed is a hole.
            let covered: u64 =
                listed().map(|s| (s.offset + s.len).min(end) - s.offset.max(offset)).sum();
            if covered < end - offset {
                buf.fill(0);
            }
            let mut lacking = Ok(());
            for span in listed() {
                match self.read_span(span, offset, buf) {
                    Err(error) if Self::can_look_on(&error) => lacking = lacking.and(Err(error)),
                    read => read?,
                }
            }
            return lacking;
        }
        let (mut failure, mut lacking) = (None, Ok(()));
        let zeros = Some(&self.zeros);
        let range = offset..end;
        let walked = runs(root, from_ref(&range), zeros, &mut |id| self.load(id), &mut |run| {
            let read = match &run {
                Run::Leaf(span) => self.read_span(span, offset, buf),
                Run::Hole(hole) => {
                    let (from, to) = (hole.start.max(offset), hole.end.min(end));
                    buf[(from - offset) as usize..(to - offset) as usize].fill(0);
                    Ok(())
                }
            };
            match read {
                Ok(()) => Ok(ControlFlow::Continue(())),
                Err(error) if Self::can_look_on(&error) => {
                    lacking = std::mem::replace(&mut lacking, Ok(())).and(Err(error));
                    Ok(ControlFlow::Continue(()))
                }
                Err(error) => {
                    failure = Some(error);
                    Err(ContentError::Missing(root.cid))
                }
            }
        });
        match failure {
            Some(error) => Err(error),
            None => Ok(walked?).and(lacking),
        }
    }

    /// The part of a leaf that lies in `buf`, which begins at `offset`.
    fn read_span(&self, span: &LeafSpan, offset: u64, buf: &mut [u8]) -> Result<(), VfsError> {
        let end = offset + buf.len() as u64;
        let (from, to) = (span.offset.max(offset), (span.offset + span.len).min(end));
        let target = &mut buf[(from - offset) as usize..(to - offset) as usize];
        self.read_leaf(&span.cid, from - span.offset, target)
    }

    /// The next data or hole of committed content.
    pub(super) fn seek_content(
        &self,
        root: &Link,
        offset: u64,
        hole: bool,
    ) -> Result<Option<u64>, VfsError> {
        Ok(seek(root, offset, hole, &self.zeros, &mut |id| self.load(id))?)
    }

    /// Content bytes of one leaf, from `offset`.
    fn read_leaf(&self, id: &Cid, offset: u64, buf: &mut [u8]) -> Result<(), VfsError> {
        if id.codec() == cid::RAW {
            match self.store.read(id, offset, buf) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "a local block is bad; reading another copy"),
            }
        }
        let block = self.load(id)?;
        let (DagNode::Raw(data) | DagNode::File { data, .. }) = parse_node(id, &block)? else {
            return Err(rustix::io::Errno::IO.into());
        };
        let start = offset as usize;
        match data.get(start..start + buf.len()) {
            Some(part) => {
                buf.copy_from_slice(part);
                Ok(())
            }
            None => Err(rustix::io::Errno::IO.into()),
        }
    }

    /// The list of a file's leaves but those of zeros, kept while it is open. None
    /// while nodes of it are not here: who reads a part of a large file waits for those
    /// on its path only.
    pub(super) fn leaves_of(
        &self,
        record: &InodeRecord,
    ) -> Result<Option<Arc<Vec<LeafSpan>>>, VfsError> {
        let Some(root) = record.content.filter(|root| root.codec() != cid::RAW) else {
            return Ok(None);
        };
        if record.size.saturating_sub(record.holes) / u64::from(self.options.profile.chunk_size)
            > LISTED_LEAVES
        {
            return Ok(None);
        }
        let link = Link { cid: root, size: record.size, tsize: 0 };
        let mut list = Vec::new();
        let zeros = Some(&self.zeros);
        let all = 0..record.size;
        let mut absent = false;
        let load = &mut |id: &Cid| {
            let here = self.replicator.here(id);
            let here = here.map_err(|error| ContentError::Io(std::io::Error::other(error)))?;
            absent |= here.is_none();
            here.ok_or(ContentError::Missing(*id))
        };
        let walked = runs(&link, from_ref(&all), zeros, load, &mut |run| {
            if let Run::Leaf(span) = run {
                list.push(span);
            }
            Ok(ControlFlow::Continue(()))
        });
        match walked {
            Err(_) if absent => Ok(None),
            walked => Ok(walked.map(|()| Some(Arc::new(list)))?),
        }
    }

    /// Reads what a reader sees now, up to the end of the file.
    pub(super) fn read_state(
        &self,
        state: &NodeState,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize, VfsError> {
        if let Some(staging) = &state.staging {
            let base = self.base_of(&state.record, staging.original_size());
            return Ok(staging.read_at(offset, buf, &base)?);
        }
        let want = state.record.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..want];
        match &state.record.content {
            Some(root) => {
                self.store.note_read(root);
                let link = Link { cid: *root, size: state.record.size, tsize: 0 };
                let listed = state.leaves.as_ref().map(|leaves| leaves.as_slice());
                self.read_content(&link, listed, offset, buf)?;
            }
            None => buf.fill(0),
        }
        Ok(want)
    }
}
