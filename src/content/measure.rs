//! Takes stock of a file's DAG that somebody else built.

use std::collections::HashMap;

use super::node::{Node, inline_block, parse_node};
use super::{ContentError, Link, Load, Profile};
use crate::types::{Cid, cid};

/// No builder makes a deeper file.
const MAX_DEPTH: u32 = 64;

/// What [`measure_file`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// The root with its true sizes.
    pub link: Link,
    /// Blocks in the DAG, duplicates counted each time.
    pub blocks: u64,
    /// The profile that makes this very tree, so that [`super::rebuild`] can go
    /// on from it; `None` for any other shape.
    pub profile: Option<Profile>,
}

/// Checks every length in a file's DAG (what a node says of a child against
/// what the child has) and adds them up. Each distinct node is loaded once, and
/// raw leaves not at all: `raw_len` gives the length of their blocks.
///
/// # Errors
/// Of the callbacks; `Malformed` when a length is wrong or a part is no file;
/// `TooDeep`.
pub fn measure_file(
    root: &Cid,
    load: &mut Load<'_>,
    raw_len: &mut dyn FnMut(&Cid) -> Result<u64, ContentError>,
) -> Result<Measured, ContentError> {
    let mut work = Measure { load, raw_len, known: HashMap::new() };
    let part = work.part(root, 0)?;
    let profiles = [Profile::UNIXFS_V1_2025, Profile::UNIXFS_V0_2015];
    let profile = profiles.into_iter().zip(part.fits).find_map(|(profile, fit)| {
        let Fit { depth, leaves, .. } = fit?;
        // Neither a taller tree than needed nor an empty last leaf is what the
        // profile makes.
        let needed = depth == 0 || leaves > (profile.max_links as u64).saturating_pow(depth - 1);
        let filled = leaves == part.size.div_ceil(u64::from(profile.chunk_size)).max(1);
        (needed && filled).then_some(profile)
    });
    let link = Link { cid: *root, size: part.size, tsize: part.tsize };
    Ok(Measured { link, blocks: part.blocks, profile })
}

/// A sub-DAG that is balanced under a profile.
#[derive(Debug, Clone, Copy)]
struct Fit {
    /// Levels above the leaves.
    depth: u32,
    leaves: u64,
    /// No leaf could be added without another level, nor any byte to a leaf.
    full: bool,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    size: u64,
    tsize: u64,
    blocks: u64,
    /// Under the v1 and the v0 profile.
    fits: [Option<Fit>; 2],
}

struct Measure<'m, 'l> {
    load: &'m mut Load<'l>,
    raw_len: &'m mut dyn FnMut(&Cid) -> Result<u64, ContentError>,
    known: HashMap<Cid, Part>,
}

fn malformed(id: &Cid, reason: impl Into<String>) -> ContentError {
    ContentError::Malformed { cid: *id, codec: "unixfs", reason: reason.into() }
}

fn leaf_fit(profile: &Profile, id: &Cid, len: u64) -> Option<Fit> {
    let chunk = u64::from(profile.chunk_size);
    let ours = is_ours(profile, id) && (id.codec() == cid::RAW) == profile.raw_leaves;
    (ours && len <= chunk).then_some(Fit { depth: 0, leaves: 1, full: len == chunk })
}

fn is_ours(profile: &Profile, id: &Cid) -> bool {
    id.version() as u64 == u64::from(profile.cid_version) && id.hash().code() == cid::SHA2_256
}

fn inner_fit(profile: &Profile, id: &Cid, children: &[Option<Fit>]) -> Option<Fit> {
    let (last, before) = children.split_last()?;
    let last = (*last)?;
    let same = |child: &Option<Fit>| child.is_some_and(|c| c.full && c.depth == last.depth);
    if children.len() > profile.max_links || !is_ours(profile, id) || !before.iter().all(same) {
        return None;
    }
    let leaves = before.iter().flatten().map(|child| child.leaves).sum::<u64>() + last.leaves;
    let full = last.full && children.len() == profile.max_links;
    Some(Fit { depth: last.depth + 1, leaves, full })
}

impl Measure<'_, '_> {
    fn part(&mut self, id: &Cid, depth: u32) -> Result<Part, ContentError> {
        let profiles = [Profile::UNIXFS_V1_2025, Profile::UNIXFS_V0_2015];
        let inline = inline_block(id);
        if id.codec() == cid::RAW {
            let len = match &inline {
                Some(bytes) => bytes.len() as u64,
                None => (self.raw_len)(id)?,
            };
            let fits = profiles.map(|profile| leaf_fit(&profile, id, len));
            return Ok(Part { size: len, tsize: len, blocks: 1, fits });
        }
        if let Some(part) = self.known.get(id) {
            return Ok(*part);
        }
        if depth > MAX_DEPTH {
            return Err(ContentError::TooDeep(*id));
        }
        let block = inline.map_or_else(|| (self.load)(id), Ok)?;
        let Node::File { data, links, size, metadata } = parse_node(id, &block)? else {
            return Err(malformed(id, "not a file, nor a part of one"));
        };
        let (mut tsize, mut blocks) = (block.len() as u64, 1u64);
        let mut below: [Vec<Option<Fit>>; 2] = [Vec::new(), Vec::new()];
        for link in &links {
            let child = self.part(&link.cid, depth + 1)?;
            if child.size != link.size {
                let reason = format!(
                    "it says that {} has {} bytes of content, which has {}",
                    link.cid, link.size, child.size
                );
                return Err(malformed(id, reason));
            }
            let over = || malformed(id, "sizes over 64 bits");
            tsize = tsize.checked_add(child.tsize).ok_or_else(over)?;
            blocks = blocks.checked_add(child.blocks).ok_or_else(over)?;
            for (list, fit) in below.iter_mut().zip(child.fits) {
                list.push(fit);
            }
        }
        let plain = metadata.mode.is_none() && metadata.mtime.is_none();
        let mut fits = [None, None];
        if plain && links.is_empty() {
            fits = profiles.map(|profile| leaf_fit(&profile, id, size));
        } else if plain && data.is_empty() {
            for ((fit, profile), children) in fits.iter_mut().zip(&profiles).zip(&below) {
                *fit = inner_fit(profile, id, children);
            }
        }
        let part = Part { size, tsize, blocks, fits };
        self.known.insert(*id, part);
        Ok(part)
    }
}
