//! What lies at a backend already becomes copies, without being sent.
//!
//! A content is adopted when every node of its DAG was read there and matches its hash,
//! and each leaf is there with the right length. That is a claim: the copy is read back
//! and hashed behind everything else, as any other. Nothing is ever deleted here.

use std::cell::RefCell;
use std::path::Path;

use super::calls::Calls;
use super::machine::Outcome;
use super::send::{Met, children};
use super::{ReplicationError, Replicator};
use crate::backends::{Backend, BackendError, ErrorKind, Presence, block_paths};
use crate::content::{ContentError, inline_block, parse_node, walk_post_order};
use crate::metadata::{ContentRecord, CopyState, VerifyMethod};
use crate::types::{BackendId, Block, Cid, cid};

/// Contents that are asked about together.
const PAGE: usize = 256;

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Contents that were looked for.
    pub looked: u64,
    /// They have a copy there that is known.
    pub known: u64,
    /// They are there, whole, and are copies now.
    pub adopted: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their root is there, and a block is missing or wrong.
    pub incomplete: u64,
}

fn missing(id: &Cid) -> ContentError {
    ContentError::Missing(*id)
}

/// A call that failed, which says nothing about a content; or the walk's verdict.
fn verdict(
    failure: Option<ReplicationError>,
    walked: Result<(), ContentError>,
) -> Result<bool, ReplicationError> {
    match (failure, walked) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(true),
        (None, Err(ContentError::Missing(_) | ContentError::Mismatch(_))) => Ok(false),
        (None, Err(error)) => Err(ReplicationError::Io(std::io::Error::other(error))),
    }
}

/// Whether all of a content is there: nodes by their bytes, leaves by their lengths.
fn is_whole(
    backend: &dyn Backend,
    calls: &Calls,
    root: &Cid,
    record: &ContentRecord,
) -> Result<bool, ReplicationError> {
    let there = |wanted: &[(Cid, Option<u64>)]| -> Result<bool, ReplicationError> {
        let cids: Vec<Cid> = wanted.iter().map(|(id, _)| *id).collect();
        let found = calls.wait(backend.presence(&cids))?;
        let right = |(presence, (_, len)): (&Presence, &(Cid, Option<u64>))| matches!(presence, Presence::Present(n) if len.is_none_or(|len| len == *n));
        Ok(found.iter().zip(wanted).all(right))
    };
    if root.codec() == cid::RAW {
        return there(&[(*root, Some(record.size))]);
    }
    let (failure, mut met) = (RefCell::new(None), Met::default());
    let fail = |error: ReplicationError| {
        *failure.borrow_mut() = Some(error);
        ContentError::Io(std::io::Error::other("stopped"))
    };
    let walked = walk_post_order(
        root,
        &mut |id| Ok(id.codec() != cid::RAW && met.first(id)),
        &mut |id| {
            let data = match calls.wait(backend.get(id, None)) {
                Ok(data) if cid::verify(id, &data) == cid::Verdict::Match => data,
                Ok(_) => return Err(ContentError::Mismatch(*id)),
                Err(ReplicationError::Backend(error)) if error.kind == ErrorKind::NotFound => {
                    return Err(missing(id));
                }
                Err(error) => return Err(fail(error)),
            };
            let leaves: Vec<(Cid, Option<u64>)> = children(&parse_node(id, &data)?)
                .into_iter()
                .filter(|(id, _)| id.codec() == cid::RAW)
                .collect();
            if !leaves.is_empty() && !there(&leaves).map_err(fail)? {
                return Err(missing(id));
            }
            Ok(data)
        },
        &mut |_, _| Ok(()),
    );
    verdict(failure.into_inner(), walked)
}

/// Where blocks are that a backend lacks, not hashed yet.
pub type BlockSource<'s> = dyn Fn(&Cid) -> std::io::Result<Option<bytes::Bytes>> + 's;

/// A block from a folder of files that are named by their CID.
///
/// # Errors
/// Of the disk.
pub fn block_of_folder(folder: &Path, id: &Cid) -> std::io::Result<Option<bytes::Bytes>> {
    for path in block_paths(folder, id) {
        match std::fs::metadata(&path) {
            Ok(found) if found.is_file() && found.len() <= Block::MAX_LEN as u64 => {
                return Ok(Some(std::fs::read(&path)?.into()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Puts what a source has of a content, children first, where it is missing.
fn bring_from(
    source: &BlockSource<'_>,
    (backend, calls): (&dyn Backend, &Calls),
    root: &Cid,
) -> Result<bool, ReplicationError> {
    let failure = RefCell::new(None);
    let fail = |error: ReplicationError| {
        *failure.borrow_mut() = Some(error);
        ContentError::Io(std::io::Error::other("stopped"))
    };
    let walked = walk_post_order(
        root,
        &mut |id| {
            if inline_block(id).is_some() {
                return Ok(false);
            }
            let found = calls.wait(backend.presence(&[*id])).map_err(fail)?;
            Ok(!matches!(found.as_slice(), [Presence::Present(_)]))
        },
        &mut |id| match source(id) {
            Ok(Some(data)) if cid::verify(id, &data) == cid::Verdict::Match => Ok(data),
            Ok(Some(_)) => Err(ContentError::Mismatch(*id)),
            Ok(None) => Err(missing(id)),
            Err(error) => Err(fail(error.into())),
        },
        &mut |id, data| {
            let block = Block { cid: *id, data: data.clone() };
            calls.wait(backend.put(&block)).map_err(fail)
        },
    );
    verdict(failure.into_inner(), walked)
}

impl Replicator {
    /// Finds what lies at a backend and nobody recorded; with a `source`, what it has
    /// is put there first. A dry run changes nothing.
    ///
    /// # Errors
    /// `Backend` when it does not answer: nothing is known of the rest then.
    pub fn adopt(
        &self,
        id: &BackendId,
        source: Option<&BlockSource<'_>>,
        dry_run: bool,
        progress: &mut dyn FnMut(&Adopted),
    ) -> Result<Adopted, ReplicationError> {
        let core = &self.core;
        let away = || BackendError::new(ErrorKind::Unavailable, "it is not in reach");
        let (backend, down) = core.registry.until_down(id).ok_or_else(away)?;
        let calls = core.calls.until(down);
        let (mut found, mut after) = (Adopted::default(), None);
        loop {
            let page = core.namespace.contents_page(after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            after = Some(*last);
            let mut wanted: Vec<&(Cid, ContentRecord)> = Vec::new();
            for one in page.iter().filter(|(_, record)| record.refs > 0) {
                let copy = one.1.copies.iter().find(|copy| copy.backend == *id);
                found.looked += 1;
                match copy.map(|copy| copy.state) {
                    None | Some(CopyState::Lost) => wanted.push(one),
                    // What was given up is not taken back: its blocks may be on their
                    // way out. A bad copy is for the repair.
                    Some(_) => found.known += 1,
                }
            }
            let outside = |one: &&&(Cid, ContentRecord)| inline_block(&one.0).is_none();
            let wanted: Vec<&(Cid, ContentRecord)> =
                wanted.iter().filter(outside).copied().collect();
            let roots: Vec<Cid> = wanted.iter().map(|(root, _)| *root).collect();
            let there = calls.wait(backend.presence(&roots))?;
            let mut outcomes = Vec::new();
            for ((root, record), presence) in wanted.into_iter().zip(there) {
                let mut at_all = matches!(presence, Presence::Present(_));
                if let (false, Some(source)) = (at_all, source) {
                    let has = source(root)?.is_some();
                    if has && !dry_run && !bring_from(source, (&*backend, &calls), root)? {
                        found.incomplete += 1;
                        continue;
                    }
                    at_all = has && !dry_run;
                    if has && dry_run {
                        found.adopted += 1;
                        found.bytes += record.size;
                    }
                }
                if !at_all {
                    continue;
                }
                if !is_whole(&*backend, &calls, root, record)? {
                    found.incomplete += 1;
                    continue;
                }
                found.adopted += 1;
                found.bytes += record.size;
                outcomes.push((*root, Outcome::Stored(CopyState::Claimed, VerifyMethod::None)));
            }
            if !dry_run {
                core.record(id, &outcomes)?;
            }
            progress(&found);
        }
    }
}
