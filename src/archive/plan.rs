//! What an import makes: nodes and names, to be grafted into a volume.

use std::collections::{HashMap, HashSet};

use super::metadata::{self, Tables};
use super::{Archive, ArchiveError};
use crate::content::{
    DirectoryEntry, Link, Node, Profile, measure_file, parse_node, read_directory, unescape_name,
};
use crate::types::{Cid, FileKind, Name, Timestamp, printable};

/// Directories nest at most this deep (4095 bytes of path, 2 a level).
const MAX_DEPTH: usize = 2048;
/// Longest target of a symbolic link (Linux `PATH_MAX`, its NUL not counted).
const MAX_TARGET: usize = 4095;
/// A directory that occurs many times costs an archive nothing and a plan its
/// size each time, so a plan has at most this many nodes...
const MIN_NODES: u64 = 1 << 20;
/// ...and this many more for each block.
const NODES_PER_BLOCK: u64 = 64;
/// Measured contents that are remembered.
const CACHED_CONTENTS: usize = 4096;
/// Notes that are kept.
const MAX_NOTES: usize = 100;

/// A content of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportContent {
    /// Its root.
    pub link: Link,
    /// Blocks of its DAG, duplicates counted.
    pub blocks: u64,
    /// Name of the profile that makes this tree, so that a rebuild can go on from
    /// it; empty when that is the profile that was planned for; `foreign` when
    /// none does (change such a file by importing it anew).
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
    /// Change time. POSIX has no way to set it.
    pub ctime: Option<Timestamp>,
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
            ctime: None,
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

/// What an import makes. A directory's entries come after its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportPlan {
    /// All nodes.
    pub nodes: Vec<ImportNode>,
    /// All names.
    pub entries: Vec<ImportEntry>,
    /// Index of the top.
    pub root: usize,
    /// Where metadata and tree of the archive disagree, for people (the first
    /// 100). The tree is right: it is what the root CID names.
    pub notes: Vec<String>,
}

impl Archive {
    /// Says what to make. Every content's profile is named.
    ///
    /// # Errors
    /// `Content` when a part is no valid `UnixFS`; `Unusable` when a name, target
    /// or depth is none that a filesystem takes.
    pub fn plan(&self) -> Result<ImportPlan, ArchiveError> {
        self.plan_with(None)
    }

    /// [`Archive::plan`] for a volume: contents of its own profile have an empty
    /// profile name, as in [`crate::metadata::InodeRecord`].
    ///
    /// # Errors
    /// Those of [`Archive::plan`].
    pub fn plan_for(&self, profile: &Profile) -> Result<ImportPlan, ArchiveError> {
        self.plan_with(Some(profile))
    }

    fn plan_with(&self, own: Option<&Profile>) -> Result<ImportPlan, ArchiveError> {
        let mut planner = Planner {
            archive: self,
            own: own.map(|profile| profile.name),
            max_nodes: MIN_NODES + NODES_PER_BLOCK * self.blocks(),
            contents: HashMap::new(),
            plan: ImportPlan::default(),
        };
        match self.roots() {
            [root] => planner.tree(root, None)?,
            [root, second] => match metadata::find(self, second)? {
                Some(tables) => planner.tree(root, Some(&tables))?,
                None => planner.forest(self.roots())?,
            },
            roots => planner.forest(roots)?,
        }
        Ok(planner.plan)
    }
}

/// A directory whose entries are to be planned.
struct Open {
    node: usize,
    cid: Cid,
    depth: usize,
    /// The row that describes it.
    ino: Option<crate::types::Ino>,
}

struct Planner<'a> {
    archive: &'a Archive,
    own: Option<&'static str>,
    max_nodes: u64,
    contents: HashMap<Cid, ImportContent>,
    plan: ImportPlan,
}

impl Planner<'_> {
    /// Several roots become a directory of them, each named by its CID.
    fn forest(&mut self, roots: &[Cid]) -> Result<(), ArchiveError> {
        self.plan.nodes.push(ImportNode::of(FileKind::Directory));
        let mut stack = Vec::new();
        let mut seen = HashSet::new();
        for root in roots.iter().filter(|root| seen.insert(**root)) {
            let name = Name::new(root.to_string().into_bytes())
                .map_err(|e| ArchiveError::Unusable(format!("root {root} as a name: {e}")))?;
            let made = self.node(root)?;
            let node = self.add(made)?;
            self.plan.entries.push(ImportEntry { parent: 0, name, node });
            stack.push(Open { node, cid: *root, depth: 1, ino: None });
        }
        self.fill(stack, None)
    }

    fn tree(&mut self, root: &Cid, tables: Option<&Tables>) -> Result<(), ArchiveError> {
        let mut made = self.node(root)?;
        let ino = tables.map(Tables::top);
        if let (Some(tables), Some(ino)) = (tables, ino)
            && !tables.describe(ino, &mut made)
        {
            return Err(ArchiveError::Unusable("its metadata describes another tree".into()));
        }
        let node = self.add(made)?;
        self.fill(vec![Open { node, cid: *root, depth: 0, ino }], tables)
    }

    fn add(&mut self, node: ImportNode) -> Result<usize, ArchiveError> {
        if self.plan.nodes.len() as u64 >= self.max_nodes {
            let reason = format!(
                "its {} blocks stand for more than {} files",
                self.archive.blocks(),
                self.max_nodes
            );
            return Err(ArchiveError::Unusable(reason));
        }
        self.plan.nodes.push(node);
        Ok(self.plan.nodes.len() - 1)
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.plan.notes.len() < MAX_NOTES {
            self.plan.notes.push(text());
        }
    }

    /// Plans the entries of directories, and of those below them. What is in the
    /// tree is made as the tree has it; rows add attributes, hard links and the
    /// nodes that `UnixFS` cannot express.
    fn fill(&mut self, mut stack: Vec<Open>, tables: Option<&Tables>) -> Result<(), ArchiveError> {
        // Of inodes with a node: its index, and the CID it was made from.
        let mut linked: HashMap<crate::types::Ino, (usize, Option<Cid>)> = HashMap::new();
        while let Some(open) = stack.pop() {
            if self.plan.nodes[open.node].kind != FileKind::Directory {
                continue;
            }
            if open.depth > MAX_DEPTH {
                return Err(ArchiveError::Unusable("directories nest too deep".into()));
            }
            let mut rows = match (tables, open.ino) {
                (Some(tables), Some(ino)) => tables.entries(ino),
                _ => HashMap::new(),
            };
            let mut names = HashSet::new();
            for entry in self.entries(&open.cid)? {
                let name = Name::new(unescape_name(&entry.name)).map_err(|e| {
                    ArchiveError::Unusable(format!("the name `{}`: {e}", printable(&entry.name)))
                })?;
                if !names.insert(name.clone()) {
                    return Err(ArchiveError::Unusable(format!(
                        "{name:?} occurs twice in a directory"
                    )));
                }
                let cid = entry.link.cid;
                let ino = rows.remove(&name);
                if let Some((node, Some(of))) = ino.and_then(|ino| linked.get(&ino).copied())
                    && of == cid
                {
                    self.plan.entries.push(ImportEntry { parent: open.node, name, node });
                    continue;
                }
                let mut made = self.node(&cid)?;
                let described = match (tables, ino) {
                    (Some(tables), Some(ino)) if !linked.contains_key(&ino) => {
                        tables.describe(ino, &mut made).then_some(ino)
                    }
                    _ => None,
                };
                if described.is_none() && open.ino.is_some() {
                    self.note(|| {
                        format!("{name:?} is in the tree, and not like this in the metadata")
                    });
                }
                let kind = made.kind;
                let node = self.add(made)?;
                if let Some(ino) = described {
                    // A directory has one name; no CID equals `None`.
                    linked.insert(ino, (node, (kind != FileKind::Directory).then_some(cid)));
                }
                self.plan.entries.push(ImportEntry { parent: open.node, name, node });
                if kind == FileKind::Directory {
                    stack.push(Open { node, cid, depth: open.depth + 1, ino: described });
                }
            }
            let mut rest: Vec<_> = rows.into_iter().collect();
            rest.sort_unstable();
            for (name, ino) in rest {
                let Some(tables) = tables else { break };
                let node = match (linked.get(&ino).copied(), tables.special(ino)) {
                    (Some((node, None)), Some(_)) => node,
                    (None, Some(made)) => {
                        let node = self.add(made)?;
                        linked.insert(ino, (node, None));
                        node
                    }
                    _ => {
                        self.note(|| format!("{name:?} is in the metadata only and is left out"));
                        continue;
                    }
                };
                self.plan.entries.push(ImportEntry { parent: open.node, name, node });
            }
        }
        Ok(())
    }

    fn entries(&self, directory: &Cid) -> Result<Vec<DirectoryEntry>, ArchiveError> {
        let mut found = Vec::new();
        read_directory(directory, &mut |id| self.archive.load_node(id), &mut |entry| {
            found.push(entry);
            Ok(())
        })?;
        Ok(found)
    }

    /// The node that a CID stands for.
    fn node(&mut self, id: &Cid) -> Result<ImportNode, ArchiveError> {
        if id.codec() == crate::types::cid::RAW {
            // Its bytes are not needed to know what it is.
            let content = self.content(id)?;
            return Ok(ImportNode { content, ..ImportNode::of(FileKind::File) });
        }
        let parsed = parse_node(id, &self.archive.load(id)?)?;
        let extra = parsed.metadata();
        let mut node = match parsed {
            Node::Raw(_) | Node::File { .. } => {
                ImportNode { content: self.content(id)?, ..ImportNode::of(FileKind::File) }
            }
            Node::Directory { .. } | Node::Shard { .. } => ImportNode::of(FileKind::Directory),
            Node::Symlink { target, .. } => {
                if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                    let reason = format!("symlink {id} has a target that no filesystem takes");
                    return Err(ArchiveError::Unusable(reason));
                }
                ImportNode { target: target.to_vec(), ..ImportNode::of(FileKind::Symlink) }
            }
        };
        node.mode = extra.mode.map(|mode| mode & 0o7777);
        node.mtime = extra.mtime;
        Ok(node)
    }

    fn content(&mut self, id: &Cid) -> Result<Option<ImportContent>, ArchiveError> {
        if let Some(content) = self.contents.get(id) {
            return Ok(Some(content.clone()));
        }
        let archive = self.archive;
        let found =
            measure_file(id, &mut |id| archive.load_node(id), &mut |id| archive.block_len(id))?;
        if found.link.size == 0 {
            return Ok(None);
        }
        let profile = match found.profile.map(|profile| profile.name) {
            Some(name) if Some(name) == self.own => String::new(),
            Some(name) => name.to_owned(),
            None => "foreign".to_owned(),
        };
        let content = ImportContent { link: found.link, blocks: found.blocks, profile };
        if found.blocks > 1 {
            if self.contents.len() >= CACHED_CONTENTS {
                self.contents.clear();
            }
            self.contents.insert(*id, content.clone());
        }
        Ok(Some(content))
    }
}
