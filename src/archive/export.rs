//! Writing: depth first, each block once, the root first (as `ipfs dag export`).

use std::collections::HashSet;
use std::io::Write;

use super::ArchiveError;
use super::places::Key;
use crate::content::car::{
    V2_DATA_OFFSET, encode_header, put_section, put_v2_header, section_len, write_index,
};
use crate::content::{Load, Node, inline_block, parse_node};
use crate::types::{Block, Cid, cid};

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportReport {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of the whole archive.
    pub bytes: u64,
}

/// A block that is written, and its length if that had to be learnt.
type Listed = (Key, Option<u32>);

/// Told of a block that will be loaded soon, with its length where that is known.
pub type Soon<'a> = dyn FnMut(&Cid, Option<u64>) + 'a;

/// So many blocks before it is.
const SOON: usize = 16;

/// The blocks below `roots`, in order; identity CIDs have no section. Leaves
/// that a file's node gives the length of are not loaded; any other leaf is only
/// when `lengths` are needed.
fn list(
    roots: &[Cid],
    lengths: bool,
    load: &mut Load<'_>,
    soon: &mut Soon<'_>,
) -> Result<Vec<Listed>, ArchiveError> {
    let mut tell = |(id, said): &(Cid, Option<u64>)| {
        if id.codec() != cid::RAW || (lengths && said.is_none()) {
            soon(id, *said);
        }
    };
    let mut seen = HashSet::new();
    let mut inlined = HashSet::new();
    let mut order = Vec::new();
    let mut stack: Vec<(Cid, Option<u64>)> = roots.iter().rev().map(|id| (*id, None)).collect();
    while let Some((id, said)) = stack.pop() {
        if let Some(at) = stack.len().checked_sub(SOON) {
            tell(&stack[at]);
        }
        if let Some(block) = inline_block(&id) {
            if inlined.insert(id) {
                push_children(&parse_node(&id, &block)?, &mut stack);
            }
            continue;
        }
        let Some(key) = Key::of(&id) else {
            return Err(ArchiveError::Unusable(format!("block {id} is not named by sha2-256")));
        };
        if !seen.insert(key) {
            continue;
        }
        let said = said.and_then(|len| u32::try_from(len).ok());
        if id.codec() == cid::RAW && (said.is_some() || !lengths) {
            order.push((key, said));
            continue;
        }
        let block = load(&id)?;
        if block.len() > Block::MAX_LEN {
            let reason = format!("block {id} has {} bytes, over {}", block.len(), Block::MAX_LEN);
            return Err(ArchiveError::Unusable(reason));
        }
        order.push((key, Some(block.len() as u32)));
        push_children(&parse_node(&id, &block)?, &mut stack);
        stack.iter().rev().take(SOON).for_each(&mut tell);
    }
    Ok(order)
}

fn push_children(node: &Node, stack: &mut Vec<(Cid, Option<u64>)>) {
    match node {
        Node::File { links, .. } => {
            stack.extend(links.iter().rev().map(|link| (link.cid, Some(link.size))));
        }
        // The sizes in a directory are hints that nobody checks.
        other => stack.extend(other.children().into_iter().rev().map(|id| (id, None))),
    }
}

/// Writes everything below `roots` into a CAR of `version` 1 or 2 (with a
/// `MultihashIndexSorted`). Two passes: the first learns the order, from the
/// inner nodes alone where it can, so that a damaged tree fails before anything
/// is written and a `CARv2` can go to a pipe. `load` gives verified blocks.
/// `progress` gets blocks written and in all. Memory: about 130 bytes a block.
///
/// # Errors
/// Of `load` and `out`; `Unusable` when a block changes meanwhile or is over 2 MiB.
pub fn export(
    out: &mut dyn Write,
    version: u8,
    roots: &[Cid],
    load: &mut Load<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ExportReport, ArchiveError> {
    export_telling(out, version, roots, (load, &mut |_, _| {}), progress)
}

/// As [`export`], telling which blocks it will load soon, so that those that are far
/// away can be on their way.
///
/// # Errors
/// As [`export`].
pub fn export_telling(
    out: &mut dyn Write,
    version: u8,
    roots: &[Cid],
    (load, soon): (&mut Load<'_>, &mut Soon<'_>),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ExportReport, ArchiveError> {
    let indexed = match version {
        1 => false,
        2 => true,
        _ => return Err(ArchiveError::Unusable(format!("there is no CAR version {version}"))),
    };
    let order = list(roots, indexed, load, soon)?;
    let header = encode_header(roots)?;
    let mut before = 0;
    if indexed {
        let sections =
            order.iter().map(|(key, len)| section_len(&key.cid(), u64::from(len.unwrap_or(0))));
        put_v2_header(out, header.len() as u64 + sections.sum::<u64>())?;
        before = V2_DATA_OFFSET;
    }
    out.write_all(&header)?;
    let mut offset = header.len() as u64;
    let mut rows = Vec::with_capacity(if indexed { order.len() } else { 0 });
    let mut tell = |(key, len): &Listed| soon(&key.cid(), len.map(u64::from));
    order.iter().take(SOON).for_each(&mut tell);
    for (done, (key, len)) in order.iter().enumerate() {
        let id = key.cid();
        if let Some(later) = order.get(done + SOON) {
            tell(later);
        }
        let data = load(&id)?;
        if len.is_some_and(|len| len as usize != data.len()) || data.len() > Block::MAX_LEN {
            let reason = format!("block {id} has {} bytes, not {len:?}", data.len());
            return Err(ArchiveError::Unusable(reason));
        }
        put_section(out, &id, &data)?;
        if indexed {
            rows.push((key.digest(), offset));
        }
        offset += section_len(&id, data.len() as u64);
        progress(done as u64 + 1, order.len() as u64);
    }
    let mut bytes = before + offset;
    if indexed {
        bytes += write_index(out, rows)?;
    }
    out.flush()?;
    Ok(ExportReport { blocks: order.len() as u64, bytes })
}
