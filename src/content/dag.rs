use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::ops::Range;

use bytes::Bytes;

use super::dag_pb::{PbLink, TYPE_FILE, UnixFs, encode};
use super::hamt::node_cid;
use super::{ContentError, Link, Load, Node, Profile, Sink, Zeros, parse_node};
use crate::types::{Cid, cid};

/// Encodes one leaf of `data` (at most `chunk_size` bytes). The block is `data`
/// itself under raw leaves; otherwise the encoded node is in the second field.
#[must_use]
pub fn leaf(profile: &Profile, data: &[u8]) -> (Link, Option<Bytes>) {
    let size = data.len() as u64;
    if profile.raw_leaves {
        return (Link { cid: cid::of_raw(data), size, tsize: size }, None);
    }
    let unixfs = UnixFs {
        kind: TYPE_FILE,
        data: (!data.is_empty()).then(|| Bytes::copy_from_slice(data)),
        file_size: Some(size),
        ..UnixFs::default()
    };
    let block = encode(&[], &unixfs);
    let link = Link { cid: node_cid(profile, &block), size, tsize: block.len() as u64 };
    (link, Some(Bytes::from(block)))
}

/// Encodes an inner node over `children`, sends it, and links to it.
fn inner(profile: &Profile, children: &[Link], sink: &mut Sink<'_>) -> Result<Link, ContentError> {
    let (link, block) = encode_inner(profile, children);
    sink(link.cid, block)?;
    Ok(link)
}

/// An inner node over `children`, and the link to it.
pub(super) fn encode_inner(profile: &Profile, children: &[Link]) -> (Link, Bytes) {
    let links: Vec<PbLink> =
        children.iter().map(|c| PbLink { cid: c.cid, name: Vec::new(), tsize: c.tsize }).collect();
    let size = children.iter().fold(0u64, |sum, c| sum.saturating_add(c.size));
    let unixfs = UnixFs {
        kind: TYPE_FILE,
        file_size: Some(size),
        block_sizes: children.iter().map(|c| c.size).collect(),
        ..UnixFs::default()
    };
    let block = encode(&links, &unixfs);
    let tsize = children.iter().fold(block.len() as u64, |sum, c| sum.saturating_add(c.tsize));
    (Link { cid: node_cid(profile, &block), size, tsize }, Bytes::from(block))
}

/// The empty file: one leaf of no bytes.
fn empty(profile: &Profile, sink: &mut Sink<'_>) -> Result<Link, ContentError> {
    let (link, block) = leaf(profile, &[]);
    sink(link.cid, block.unwrap_or_default())?;
    Ok(link)
}

/// Builds a balanced file DAG from its leaves, in order, holding at most one
/// node a level.
pub struct FileBuilder {
    profile: Profile,
    /// Unwritten links of each level, leaves first; none is over `max_links`.
    levels: Vec<Vec<Link>>,
    blocks: u64,
}

impl FileBuilder {
    /// A builder that has no leaf yet.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self { profile, levels: vec![Vec::new()], blocks: 0 }
    }

    /// Adds the next leaf; inner nodes that become full go to `sink`.
    ///
    /// # Errors
    /// What `sink` returns.
    pub fn push(&mut self, leaf: Link, sink: &mut Sink<'_>) -> Result<(), ContentError> {
        self.blocks += 1;
        self.push_at(0, leaf, sink)
    }

    fn push_at(
        &mut self,
        level: usize,
        link: Link,
        sink: &mut Sink<'_>,
    ) -> Result<(), ContentError> {
        if level == self.levels.len() {
            self.levels.push(Vec::new());
        }
        if self.levels[level].len() == self.profile.max_links {
            self.flush(level, sink)?;
        }
        self.levels[level].push(link);
        Ok(())
    }

    fn flush(&mut self, level: usize, sink: &mut Sink<'_>) -> Result<(), ContentError> {
        let children = std::mem::take(&mut self.levels[level]);
        let node = inner(&self.profile, &children, sink)?;
        self.blocks += 1;
        self.push_at(level + 1, node, sink)
    }

    /// Blocks of the tree so far, duplicates counted each time; complete after
    /// [`FileBuilder::finish_counted`].
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Finishes the tree; a file without leaves is the empty file.
    ///
    /// # Errors
    /// What `sink` returns.
    pub fn finish(self, sink: &mut Sink<'_>) -> Result<Link, ContentError> {
        self.finish_counted(sink).map(|(link, _)| link)
    }

    /// Like [`FileBuilder::finish`], with the number of blocks in the DAG.
    ///
    /// # Errors
    /// What `sink` returns.
    pub fn finish_counted(mut self, sink: &mut Sink<'_>) -> Result<(Link, u64), ContentError> {
        let mut level = 0;
        loop {
            let top = level + 1 == self.levels.len();
            match self.levels[level].as_slice() {
                [] if top => return empty(&self.profile, sink).map(|link| (link, 1)),
                [only] if top => return Ok((*only, self.blocks)),
                [] => {}
                _ => self.flush(level, sink)?,
            }
            level += 1;
        }
    }
}

/// Chunks all of `reader` and sends every block, leaves too, to `sink`.
/// Memory: one chunk and one node a level.
///
/// # Errors
/// What `reader` or `sink` return.
pub fn import_file(
    profile: &Profile,
    reader: &mut dyn Read,
    sink: &mut Sink<'_>,
) -> Result<Link, ContentError> {
    let mut builder = FileBuilder::new(*profile);
    let mut chunk = vec![0u8; profile.chunk_size as usize];
    loop {
        let filled = fill(reader, &mut chunk)?;
        if filled == 0 {
            return builder.finish(sink);
        }
        let (link, block) = leaf(profile, &chunk[..filled]);
        sink(link.cid, block.unwrap_or_else(|| Bytes::copy_from_slice(&chunk[..filled])))?;
        builder.push(link, sink)?;
    }
}

fn fill(reader: &mut dyn Read, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match reader.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// The leaves of a file that differ from its former state.
#[derive(Debug, Clone, Default)]
pub struct Changed {
    /// By index (offset / `chunk_size`).
    pub leaves: BTreeMap<u64, Link>,
    /// Runs of full leaves of zeros, by index, in order and apart; none of them
    /// is in `leaves`.
    pub zeros: Vec<Range<u64>>,
}

impl Changed {
    fn touches(&self, start: u64, end: u64) -> bool {
        self.leaves.range(start..end).next().is_some()
            || self.run_at(start).is_some_and(|run| run.start < end)
    }

    /// Whether a run of zeros has all of these leaves.
    fn is_zeros(&self, start: u64, end: u64) -> bool {
        self.run_at(start).is_some_and(|run| run.start <= start && end <= run.end)
    }

    /// The first run that ends after `leaf`.
    fn run_at(&self, leaf: u64) -> Option<&Range<u64>> {
        self.zeros.get(self.zeros.partition_point(|run| run.end <= leaf))
    }
}

/// What [`rebuild`] made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// The new root.
    pub root: Link,
    /// Inner nodes that were encoded and hashed.
    pub nodes_hashed: u64,
    /// Inner nodes of the old tree that were loaded.
    pub nodes_loaded: u64,
    /// Blocks in the new DAG, leaves included, duplicates counted each time.
    pub blocks: u64,
}

/// Makes the DAG of a changed file from the DAG of its former state: only the
/// paths from changed leaves to the root are loaded, encoded and hashed.
///
/// `old` is the former root with its size (`None`: there was no content), built
/// under the same profile, as `zeros` is; `new_size` is the size now; `changed`
/// has each leaf whose bytes differ. The caller must include: every leaf beyond the old size, and the old last leaf when its length
/// changes (growth over a partial leaf, or truncation into a leaf).
///
/// # Errors
/// [`ContentError::Missing`] and the like from `load`; what `sink` returns;
/// `Malformed` when the old tree is not a balanced one of this profile (import
/// such a file anew).
pub fn rebuild(
    profile: &Profile,
    old: Option<&Link>,
    new_size: u64,
    (changed, zeros): (&Changed, &Zeros),
    load: &mut Load<'_>,
    sink: &mut Sink<'_>,
) -> Result<Rebuilt, ContentError> {
    let shape = Shape::of(profile, new_size);
    if new_size == 0 {
        let root = empty(profile, sink)?;
        return Ok(Rebuilt { root, nodes_hashed: 0, nodes_loaded: 0, blocks: 1 });
    }
    let old = old.filter(|link| link.size > 0).map(|link| Old {
        root: *link,
        shape: Shape::of(profile, link.size),
        path: BTreeMap::new(),
        loaded: 0,
    });
    let mut work = Rebuild { profile, shape, old, changed, zeros, given: 0, load, sink, hashed: 0 };
    let root = work.node(shape.depth, 0)?;
    if root.size != new_size {
        return Err(not_balanced(&root.cid, "the leaves do not add up to the size"));
    }
    Ok(Rebuilt {
        root,
        nodes_hashed: work.hashed,
        nodes_loaded: work.old.map_or(0, |old| old.loaded),
        blocks: shape.blocks(),
    })
}

fn not_balanced(id: &Cid, reason: &str) -> ContentError {
    ContentError::Malformed { cid: *id, codec: "unixfs", reason: reason.to_owned() }
}

/// The shape of a balanced tree: all that follows from the number of leaves.
#[derive(Debug, Clone, Copy)]
struct Shape {
    size: u64,
    chunk: u64,
    raw_leaves: bool,
    leaves: u64,
    width: u64,
    /// Levels above the leaves; 0 when one leaf is the root.
    depth: u32,
}

impl Shape {
    fn of(profile: &Profile, size: u64) -> Self {
        let chunk = u64::from(profile.chunk_size);
        let leaves = size.div_ceil(chunk).max(1);
        let width = profile.max_links as u64;
        let mut depth = 0;
        while width.saturating_pow(depth) < leaves {
            depth += 1;
        }
        Self { size, chunk, raw_leaves: profile.raw_leaves, leaves, width, depth }
    }

    /// Where leaf `index` begins, or the end of the file.
    fn offset(&self, index: u64) -> u64 {
        index.saturating_mul(self.chunk).min(self.size)
    }

    /// Leaves below node `index` of `level`, as a half-open range.
    fn covered(&self, level: u32, index: u64) -> (u64, u64) {
        let span = self.width.saturating_pow(level);
        let start = index.saturating_mul(span).min(self.leaves);
        (start, start.saturating_add(span).min(self.leaves))
    }

    fn blocks(&self) -> u64 {
        (0..=self.depth).map(|level| self.leaves.div_ceil(self.width.saturating_pow(level))).sum()
    }
}

/// The former tree, of which one node a level is held.
struct Old {
    root: Link,
    shape: Shape,
    path: BTreeMap<u32, (u64, Vec<Link>)>,
    loaded: u64,
}

struct Rebuild<'r, 'l, 's> {
    profile: &'r Profile,
    shape: Shape,
    old: Option<Old>,
    changed: &'r Changed,
    zeros: &'r Zeros,
    /// Levels of zeros whose nodes were sent.
    given: u32,
    load: &'r mut Load<'l>,
    sink: &'r mut Sink<'s>,
    hashed: u64,
}

impl Rebuild<'_, '_, '_> {
    fn node(&mut self, level: u32, index: u64) -> Result<Link, ContentError> {
        let (start, end) = self.shape.covered(level, index);
        if self.changed.is_zeros(start, end)
            && end - start == self.shape.width.saturating_pow(level)
            && let Some(link) = self.zeros.full(level)
        {
            return self.give_zeros(level).map(|()| link);
        }
        if !self.changed.touches(start, end)
            && let Some(old) = &mut self.old
            && level <= old.shape.depth
            && old.shape.covered(level, index) == (start, end)
        {
            return old_link(old, level, index, self.load);
        }
        if level == 0 {
            return self.changed.leaves.get(&index).copied().ok_or_else(|| {
                not_balanced(&Cid::default(), "a leaf beyond the former content was not given")
            });
        }
        let children = (start..end).step_by(self.shape.width.saturating_pow(level - 1) as usize);
        let first = index * self.shape.width;
        let count = children.count() as u64;
        let mut links = Vec::with_capacity(count as usize);
        for child in first..first + count {
            links.push(self.node(level - 1, child)?);
        }
        self.hashed += 1;
        inner(self.profile, &links, self.sink)
    }

    /// Sends the nodes of a full tree of zeros, once.
    fn give_zeros(&mut self, level: u32) -> Result<(), ContentError> {
        while self.given < level {
            self.given += 1;
            if let (Some(link), Some(node)) =
                (self.zeros.full(self.given), self.zeros.node(self.given))
            {
                (self.sink)(link.cid, node.clone())?;
            }
        }
        Ok(())
    }
}

fn old_link(
    old: &mut Old,
    level: u32,
    index: u64,
    load: &mut Load<'_>,
) -> Result<Link, ContentError> {
    if level == old.shape.depth {
        return Ok(old.root);
    }
    let parent = index / old.shape.width;
    if old.path.get(&(level + 1)).is_none_or(|(held, _)| *held != parent) {
        let link = old_link(old, level + 1, parent, load)?;
        let Node::File { data, links, .. } = parse_node(&link.cid, &load(&link.cid)?)? else {
            return Err(not_balanced(&link.cid, "an inner node is not a file node"));
        };
        let (start, end) = old.shape.covered(level + 1, parent);
        let span = old.shape.width.saturating_pow(level);
        let expected = (end - start).div_ceil(span);
        // Leaves of other lengths can add up to the same size; only a tree whose
        // every part has the length that its place asks for may be continued.
        let fits = |(at, link): (u64, &Link)| {
            let first = start + at * span;
            let bytes = old.shape.offset(first + span) - old.shape.offset(first);
            let right_leaf = level > 0 || (link.cid.codec() == cid::RAW) == old.shape.raw_leaves;
            link.size == bytes && right_leaf
        };
        if !data.is_empty() || links.len() as u64 != expected || !(0..).zip(&links).all(fits) {
            return Err(not_balanced(&link.cid, "not a balanced tree of this profile"));
        }
        old.loaded += 1;
        old.path.insert(level + 1, (parent, links));
    }
    old.path
        .get(&(level + 1))
        .and_then(|(_, links)| links.get((index % old.shape.width) as usize))
        .copied()
        .ok_or_else(|| not_balanced(&old.root.cid, "a child is missing"))
}
