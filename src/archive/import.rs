//! Reading whole archives: everything is checked before anything is used.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::car::{CarHeader, CarReader};
use super::export::encode_index;
use super::{ArchiveError, metadata};
use crate::content::{
    Link, Node, Profile, inline_block, parse_node, read_directory, unescape_name, walk_post_order,
};
use crate::types::{Cid, FileKind, Name, Timestamp, cid};

/// Directories nest at most this deep (4095 bytes of path, 2 a level).
const MAX_DEPTH: usize = 2048;

/// A content of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportContent {
    /// Its root.
    pub link: Link,
    /// Blocks of its DAG, duplicates counted.
    pub blocks: u64,
    /// `foreign` when the volume's profile would not have made it; else empty.
    pub profile: String,
}

/// A file, directory or other node to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportNode {
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits, where the archive has them.
    pub mode: Option<u32>,
    /// Owner, where the archive has it.
    pub uid: Option<u32>,
    /// Group, where the archive has it.
    pub gid: Option<u32>,
    /// Device number.
    pub rdev: u32,
    /// Access time.
    pub atime: Option<Timestamp>,
    /// Modification time.
    pub mtime: Option<Timestamp>,
    /// Creation time.
    pub btime: Option<Timestamp>,
    /// Target of a symlink.
    pub target: Vec<u8>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Content of a file; `None` is empty.
    pub content: Option<ImportContent>,
}

impl ImportNode {
    pub(super) fn of(kind: FileKind) -> Self {
        Self {
            kind,
            mode: None,
            uid: None,
            gid: None,
            rdev: 0,
            atime: None,
            mtime: None,
            btime: None,
            target: Vec::new(),
            xattrs: Vec::new(),
            content: None,
        }
    }
}

/// A name of a plan; a node with several is hard-linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportEntry {
    /// Index of the directory.
    pub parent: usize,
    /// The name.
    pub name: Name,
    /// Index of the node.
    pub node: usize,
}

/// What an import makes, parents before their entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportPlan {
    /// All nodes.
    pub nodes: Vec<ImportNode>,
    /// All names.
    pub entries: Vec<ImportEntry>,
    /// Index of the top.
    pub root: usize,
}

/// An archive that was read whole: blocks hashed, DAG complete.
pub struct Archive {
    header: CarHeader,
    spool: File,
    _path: PathBuf,
    places: HashMap<Cid, (u64, u32)>,
    order: Vec<Cid>,
    /// Blocks that occur again.
    pub duplicates: u64,
    /// Blocks that no root leads to.
    pub extra: Vec<Cid>,
    /// Whether an index was there and fits.
    pub indexed: bool,
}

impl Archive {
    /// Reads, checks and spools an archive. `progress` gets blocks so far.
    ///
    /// # Errors
    /// Everything that [`ArchiveError`] names.
    pub fn read(
        input: &mut dyn Read,
        spool_dir: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, ArchiveError> {
        let mut reader = CarReader::new(input)?;
        let header = reader.header_of().clone();
        if header.roots.is_empty() {
            return Err(ArchiveError::Unusable("it has no root".into()));
        }
        let path = spool_dir.join("blocks");
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        let mut spool = BufWriter::with_capacity(1 << 20, file);
        let (mut places, mut order, mut rows) = (HashMap::new(), Vec::new(), Vec::new());
        let (mut at, mut duplicates) = (0u64, 0);
        while let Some(section) = reader.next_section()? {
            rows.push((section.cid, section.offset - header.data_offset));
            if places.contains_key(&section.cid) {
                duplicates += 1;
                continue;
            }
            spool.write_all(&section.data)?;
            places.insert(section.cid, (at, section.data.len() as u32));
            order.push(section.cid);
            at += section.data.len() as u64;
            progress(order.len() as u64);
        }
        let indexed = check_index(&header, reader, &rows)?;
        let spool = spool.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let mut archive = Self {
            header,
            spool,
            _path: path,
            places,
            order,
            duplicates,
            extra: Vec::new(),
            indexed,
        };
        archive.walk()?;
        Ok(archive)
    }

    /// Follows every link from the roots.
    fn walk(&mut self) -> Result<(), ArchiveError> {
        let mut reached = HashSet::new();
        let mut missing = Vec::new();
        let mut stack: Vec<Cid> = self.header.roots.clone();
        while let Some(id) = stack.pop() {
            if !reached.insert(id) {
                continue;
            }
            match inline_block(&id).map_or_else(|| self.load(&id), Ok) {
                Ok(block) if id.codec() == cid::RAW => drop(block),
                Ok(block) => stack.extend(parse_node(&id, &block)?.children()),
                Err(ArchiveError::Incomplete { .. }) => missing.push(id),
                Err(error) => return Err(error),
            }
        }
        if let Some(first) = missing.first() {
            return Err(ArchiveError::Incomplete { count: missing.len() as u64, first: *first });
        }
        self.extra = self.order.iter().filter(|id| !reached.contains(*id)).copied().collect();
        Ok(())
    }

    /// What the archive says of itself.
    #[must_use]
    pub fn header(&self) -> &CarHeader {
        &self.header
    }

    /// Its roots.
    #[must_use]
    pub fn roots(&self) -> &[Cid] {
        &self.header.roots
    }

    /// Number of different blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.order.len() as u64
    }

    /// The blocks that the roots lead to, in the archive's order; identity
    /// blocks, which need no storing, left out.
    #[must_use]
    pub fn cids(&self) -> Vec<Cid> {
        let extra: HashSet<&Cid> = self.extra.iter().collect();
        let stored = |id: &&Cid| id.hash().code() != cid::IDENTITY && !extra.contains(*id);
        self.order.iter().filter(stored).copied().collect()
    }

    /// A block, from the spool.
    ///
    /// # Errors
    /// `Incomplete` when the archive lacks it.
    pub fn load(&self, id: &Cid) -> Result<Bytes, ArchiveError> {
        if let Some(inline) = inline_block(id) {
            return Ok(inline);
        }
        let (offset, len) =
            *self.places.get(id).ok_or(ArchiveError::Incomplete { count: 1, first: *id })?;
        let mut data = vec![0; len as usize];
        self.spool.read_exact_at(&mut data, offset)?;
        Ok(Bytes::from(data))
    }

    pub(super) fn load_for_walk(&self, id: &Cid) -> Result<Bytes, crate::content::ContentError> {
        self.load(id).map_err(|e| super::io_error(&e))
    }

    /// What to make of it: the first root's tree, with the metadata of a second
    /// root where there is one.
    ///
    /// # Errors
    /// `Unusable` for names that cannot be, or a root that is no UnixFS;
    /// `Metadata` when the second root's tables do not decode.
    pub fn plan(&self) -> Result<ImportPlan, ArchiveError> {
        let roots = self.roots();
        if let [_, second, ..] = roots
            && let Some(tables) = metadata::find(self, second)?
        {
            return metadata::plan(self, &roots[0], &tables);
        }
        let mut plan = ImportPlan::default();
        let (node, _) = self.node(&roots[0])?;
        plan.nodes.push(node);
        let mut stack = vec![(0usize, roots[0], 0usize)];
        while let Some((index, id, depth)) = stack.pop() {
            if plan.nodes[index].kind != FileKind::Directory {
                continue;
            }
            if depth > MAX_DEPTH {
                return Err(ArchiveError::Unusable("directories nest too deep".into()));
            }
            let mut found = Vec::new();
            read_directory(&id, &mut |id| self.load_for_walk(id), &mut |entry| {
                found.push(entry);
                Ok(())
            })?;
            let mut names = HashSet::new();
            for entry in found {
                let name = Name::new(unescape_name(&entry.name)).map_err(|e| {
                    ArchiveError::Unusable(format!("the name `{}`: {e}", entry.name.escape_debug()))
                })?;
                if !names.insert(name.clone()) {
                    return Err(ArchiveError::Unusable(format!(
                        "{name:?} occurs twice in a directory"
                    )));
                }
                let (node, _) = self.node(&entry.link.cid)?;
                plan.nodes.push(node);
                let child = plan.nodes.len() - 1;
                plan.entries.push(ImportEntry { parent: index, name, node: child });
                stack.push((child, entry.link.cid, depth + 1));
            }
        }
        Ok(plan)
    }

    /// The node that a CID stands for.
    pub(super) fn node(&self, id: &Cid) -> Result<(ImportNode, Node), ArchiveError> {
        let parsed = parse_node(id, &self.load(id)?)?;
        let extra = parsed.metadata();
        let mut node = match &parsed {
            Node::Raw(_) | Node::File { .. } => {
                let content = self.content(id, &parsed)?;
                ImportNode {
                    content: (content.link.size > 0).then_some(content),
                    ..ImportNode::of(FileKind::File)
                }
            }
            Node::Directory { .. } | Node::Shard { .. } => ImportNode::of(FileKind::Directory),
            Node::Symlink { target, .. } => {
                ImportNode { target: target.to_vec(), ..ImportNode::of(FileKind::Symlink) }
            }
        };
        node.mode = extra.mode.map(|mode| mode & 0o7777);
        node.mtime = extra.mtime;
        Ok((node, parsed))
    }

    /// Size, block count and profile of a file's DAG.
    fn content(&self, id: &Cid, root: &Node) -> Result<ImportContent, ArchiveError> {
        let size = match root {
            Node::Raw(data) => data.len() as u64,
            Node::File { size, .. } => *size,
            _ => 0,
        };
        let (mut blocks, mut tsize) = (0, 0);
        walk_post_order(
            id,
            &mut |_| Ok(true),
            &mut |id| self.load_for_walk(id),
            &mut |_, data| {
                blocks += 1;
                tsize += data.len() as u64;
                Ok(())
            },
        )?;
        let profile =
            if self.is_ours(id, root, size)? { String::new() } else { "foreign".to_owned() };
        Ok(ImportContent { link: Link { cid: *id, size, tsize }, blocks, profile })
    }

    /// Whether the default profile makes the same tree: the first leaves tell
    /// (an editor that goes on with the tree checks its shape again).
    fn is_ours(&self, id: &Cid, root: &Node, size: u64) -> Result<bool, ArchiveError> {
        let ours = Profile::UNIXFS_V1_2025;
        let chunk = u64::from(ours.chunk_size);
        if id.codec() == cid::RAW {
            return Ok(size <= chunk);
        }
        let mut at = root.clone();
        let mut depth = 0u32;
        loop {
            let Node::File { data, links, metadata, .. } = &at else { return Ok(false) };
            let Some(first) = links.first() else { return Ok(false) };
            if !data.is_empty() || metadata.mode.is_some() || metadata.mtime.is_some() {
                return Ok(false);
            }
            depth += 1;
            if first.cid.codec() == cid::RAW {
                let full = links.iter().rev().skip(1).all(|link| link.size == chunk);
                let mut wanted = 1;
                while (ours.max_links as u64).saturating_pow(wanted) < size.div_ceil(chunk) {
                    wanted += 1;
                }
                return Ok(full && first.size <= chunk && depth == wanted);
            }
            at = parse_node(&first.cid, &self.load(&first.cid)?)?;
        }
    }
}

/// Reads what follows a CARv2's payload and compares its index with the blocks.
fn check_index<R: Read>(
    header: &CarHeader,
    reader: CarReader<R>,
    rows: &[(Cid, u64)],
) -> Result<bool, ArchiveError> {
    let (mut rest, offset) = reader.into_rest();
    if header.version == 1 {
        return Ok(false);
    }
    if header.index_offset == 0 {
        return Ok(false);
    }
    let truncated = |inside| ArchiveError::Truncated { offset, inside };
    let padding = header.index_offset - offset;
    let skipped = std::io::copy(&mut (&mut rest).take(padding), &mut std::io::sink())?;
    if skipped != padding {
        return Err(truncated("the padding before the index"));
    }
    let indexable: Vec<(Cid, u64)> =
        rows.iter().filter(|(id, _)| id.hash().code() != cid::IDENTITY).copied().collect();
    let expected = encode_index(&indexable);
    let mut found = Vec::new();
    (&mut rest).take(expected.len() as u64 * 2 + 4096).read_to_end(&mut found)?;
    if found == expected {
        return Ok(true);
    }
    // Another codec, or duplicates and identities that another writer keeps:
    // every block must still be found in it.
    match parse_index(&found) {
        Some(index) => {
            let known: BTreeMap<(Vec<u8>, u64), ()> =
                index.into_iter().map(|row| (row, ())).collect();
            let absent = indexable
                .iter()
                .find(|(id, offset)| !known.contains_key(&(id.hash().digest().to_vec(), *offset)));
            match absent {
                None => Ok(true),
                Some((id, _)) => {
                    Err(ArchiveError::BadIndex(format!("block {id} is not where it says")))
                }
            }
        }
        None => Err(ArchiveError::BadIndex("it does not decode".into())),
    }
}

/// Rows of an `IndexSorted` (0x0400) or `MultihashIndexSorted` (0x0401).
fn parse_index(bytes: &[u8]) -> Option<Vec<(Vec<u8>, u64)>> {
    let (codec, mut rest) = unsigned_varint::decode::u64(bytes).ok()?;
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at_checked(n)?;
        rest = tail;
        Some(head)
    };
    let codes = match codec {
        0x0400 => 1,
        0x0401 => u32::from_le_bytes(take(4)?.try_into().ok()?),
        _ => return None,
    };
    let mut rows = Vec::new();
    for _ in 0..codes {
        if codec == 0x0401 {
            take(8)?;
        }
        let buckets = u32::from_le_bytes(take(4)?.try_into().ok()?);
        for _ in 0..buckets {
            let width = u32::from_le_bytes(take(4)?.try_into().ok()?) as usize;
            let len = u64::from_le_bytes(take(8)?.try_into().ok()?);
            if width < 8 || !usize::try_from(len).ok()?.is_multiple_of(width) {
                return None;
            }
            for row in take(usize::try_from(len).ok()?)?.chunks_exact(width) {
                let (digest, offset) = row.split_at(width - 8);
                rows.push((digest.to_vec(), u64::from_le_bytes(offset.try_into().ok()?)));
            }
        }
    }
    Some(rows)
}
